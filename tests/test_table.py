"""Tables out of records, compared as text."""

from typing import Any

from backdoorbench import config
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import Run
from backdoorbench.reporting import table


def run(defense: str, seed: int, asr: float, *more: str, **changes: Any) -> Run:
    settings = config.compose(["attack=badnets", f"defense={defense}", f"seed={seed}", *more])
    before, after = Scores(0.97, 0.95, 0.05, 360, 324), Scores(0.96, asr, 1 - asr, 360, 324)
    done = Run(
        f"{defense}{seed}", "done", "", settings, before, after, {"status": "took"}, environment={"device": "a CPU"}
    )
    for name, value in changes.items():
        setattr(done, name, value)
    return done


RUNS = [run("ft", 0, 0.9), run("ft", 1, 0.8), run("fst", 0, 0.01), run("fst", 1, 0.03)]


def test_seeds_are_aggregated() -> None:
    rows = table.aggregate(RUNS)
    assert [(row.names["defense"], row.n, row.seeds) for row in rows] == [("ft", 2, (0, 1)), ("fst", 2, (0, 1))]
    assert table.show(rows[0].after["asr"]) == "85.00 ± 7.07" and table.show(rows[1].before["ca"]) == "97.00 ± 0.00"
    assert table.footer(rows, RUNS) == "mean ± sample standard deviation over seeds; seeds 0, 1; a CPU"


def test_markdown() -> None:
    assert table.as_markdown(table.aggregate(RUNS)) == (
        "dataset digits · model demo · rate 10 %\n\n"
        "| attack | defense | n | CA | ASR | RA | CA after | ASR after | RA after |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| badnets | ft | 2 | 97.00 ± 0.00 | 95.00 ± 0.00 | 5.00 ± 0.00 | 96.00 ± 0.00 | 85.00 ± 7.07 | 15.00 ± 7.07 |\n"
        "| badnets | fst | 2 | 97.00 ± 0.00 | 95.00 ± 0.00 | 5.00 ± 0.00 | 96.00 ± 0.00 | 2.00 ± 1.41 | 98.00 ± 1.41 |\n"
    )


def test_csv_holds_fractions() -> None:
    lines = table.as_csv(table.aggregate(RUNS[:1])).splitlines()
    assert lines[0].startswith(
        "dataset,model,attack,rate,defense,n,seeds,status,infected_ca,infected_ca_std,infected_asr"
    )
    assert lines[1].startswith("digits,demo,badnets,10 %,ft,1,0,took,0.970000,,0.950000,")


def test_latex_is_booktabs() -> None:
    text = table.as_latex(table.aggregate(RUNS))
    assert text.splitlines()[1] == r"\begin{tabular}{llrrrrrrr}"
    assert r"badnets & ft & 2 & 97.00 $\pm$ 0.00 & 95.00" in text and text.count(r"\\") == 4
    assert table.latex("10 % _x_ –") == r"10 \% \_x\_ --"


def test_what_differs_is_a_column() -> None:
    rows = table.aggregate([run("fst", 0, 0.1), run("fst", 0, 0.2, "defense.alpha=0.5"), run("ft", 0, 0.3)])
    assert [row.names.get("defense.alpha") for row in rows] == ["0.1", "0.5", "–"]
    _, columns = table.split_constant(rows)
    assert columns == ["attack", "defense", "defense.alpha"]


def test_failed_and_weak_runs_are_not_hidden() -> None:
    failed = run("fst", 2, 0.5, status="failed")
    weak = run("ft", 0, 0.9, infection={"status": "weak"})
    rows = table.aggregate([failed, weak])
    assert [row.n for row in rows] == [1] and rows[0].marks == ("weak",)
    assert "badnets (weak)" in table.as_markdown(rows)


def test_missing_figures_are_dashes() -> None:
    clean = run("ft", 0, 0.5, infected=Scores(0.9, None, None, 10, 0), purified=Scores(0.8, None, None, 10, 0))
    assert "| 90.00 | – | – | 80.00 | – | – |" in table.as_markdown(table.aggregate([clean]))


def test_a_run_repeated_counts_once() -> None:
    rows = table.aggregate([run("ft", 0, 0.9), run("ft", 0, 0.7)])
    assert rows[0].n == 1 and table.show(rows[0].after["asr"]) == "70.00"
