"""What reports say of purified models after attacks on them: figures beside the defenses' own, the mark of superficial work, tables,
plots and the page."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from records import made_run

from backdoorbench.cli import main as cli
from backdoorbench.config.compose import compose
from backdoorbench.errors import ConfigError, DataError
from backdoorbench.metrics import LIMITS, Scores
from backdoorbench.reporting import comebacks, frame, page, report, rows
from backdoorbench.reporting.grids import after_grids, list_grids, pivot_grids
from backdoorbench.reporting.plots.after import against_setting, by_trial
from backdoorbench.storage import record
from backdoorbench.storage.record import Finding, Run

KINDS = {"retune": "retuned", "query": "query", "lmc": "path", "variations": "varied"}


def run(
    after: str,
    asr: float,
    *words: str,
    clean: float | None = 0.02,
    exact: float | None = 0.05,
    before: float = 0.01,
    **more: Any,
) -> Run:
    """A finished run whose purified model has an ASR `before` of 1 % and one of `asr` after the attack, beside controls."""
    config = compose(["attack=badnets", "defense=fst", f"after={after}", "control=train", *words])
    made = made_run(
        f"{after} {' '.join(words)}",
        config,
        Scores(0.94, 0.99, 0.01, 1000, 900),
        Scores(0.92, before, 0.8, 1000, 900),
        **more,
    )
    if after != "none":
        name = KINDS[after]
        figures = {f"asr_{name}": asr, f"asr_{name}_clean": clean, f"asr_{name}_exact": exact, "asr_exact": 0.0}
        kept = {figure: value for figure, value in figures.items() if value is not None}
        counts = {"lmc": "mean", "variations": "largest"}.get(after, "only")
        trials = [{"label": label, "asr": asr, "ca": None, "ra": 0.0, "untriggered": None} for label in ("a", "b")]
        found = {"purified": trials, "exact": [trial | {"asr": exact} for trial in trials]}
        details = {"figure": name, "counts": counts, "images": 100, "trials": found}
        made.stages.append(Finding("after", after, figures=kept, details=details))
    return made


def marked(*runs: Run) -> list[rows.Row]:
    return comebacks.mark(rows.aggregate(runs), rows.afters(runs), LIMITS)


def texts(grid: Any) -> list[list[str]]:
    return [[item.text for item in line] for line in grid.lines]


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_after_attacks_split_no_row_of_a_defense_and_stand_in_it() -> None:
    (row,) = marked(run("none", 0), run("retune", 0.9), run("query", 0.4))
    assert row.n == 1 and row.figures["asr"].values == (0.01,)
    assert (row.figures["asr_retuned"].mean, row.figures["asr_query"].mean) == (0.9, 0.4)
    (grid,) = list_grids([row], ("asr", "asr_retuned", "asr_query"))
    assert [column.flat for column in grid.columns] == [
        "attack",
        "defense",
        "n",
        "ASR",
        "ASR after",
        "ASR retuned",
        "ASR query",
    ]
    assert texts(grid) == [["badnets", "fst (superficial)", "1", "99.00", "1.00", "90.00", "40.00"]]


def test_a_row_of_after_attacks_pools_seeds_and_not_settings() -> None:
    found = rows.afters([run("retune", 0.9), run("retune", 0.7, "seed=1"), run("retune", 1.0, "after.samples=20")])
    assert [(row.n, row.names["after.samples"], row.figures["asr_after"].mean) for row in found] == [
        (2, "5", pytest.approx(0.8)), (1, "20", 1.0)
    ]  # fmt: skip
    (grid,) = after_grids(found)
    assert [column.flat for column in grid.columns] == [
        "attack", "defense", "after", "n", "ASR before", "ASR after", "ASR after clean", "ASR after exact"
    ]  # fmt: skip
    assert texts(grid)[1] == ["badnets", "fst", "retune, samples 20", "1", "1.00", "100.00", "2.00", "5.00"]


def test_of_several_settings_the_usual_one_counts() -> None:
    (row,) = marked(run("retune", 0.9), run("retune", 1.0, "after.samples=20"))
    assert row.figures["asr_retuned"].values == (0.9,)
    (row,) = marked(run("retune", 0.8, "after.samples=10"), run("retune", 1.0, "after.samples=20"))
    assert "asr_retuned" not in row.figures and row.superficial is None
    (row,) = marked(run("retune", 0.8, "after.samples=10"))
    assert row.figures["asr_retuned"].values == (0.8,)


def test_other_defenses_have_their_own() -> None:
    first, second = marked(run("retune", 0.9), run("none", 0, "defense=ft"))
    assert first.superficial and second.superficial is None and "asr_retuned" not in second.figures


@pytest.mark.parametrize(
    ("made", "superficial"),
    [
        (run("retune", 0.9), True),
        (run("retune", 0.24), False),  # less than 20 points above the larger control
        (run("retune", 0.26), True),
        (run("retune", 0.9, clean=0.85), False),  # a clean model learns it as fast
        (run("retune", 0.9, exact=0.85), False),
        (run("retune", 0.9, clean=None), True),
        (run("retune", 0.9, clean=None, exact=None), None),  # nothing to compare with
        (run("retune", 0.9, before=0.5), None),  # it was never ended
        (run("retune", 0.9, "defense=none"), None),
        (run("lmc", 0.9), None),  # a diagnosis, no attack
        (run("variations", 0.9), True),
        (run("none", 0.0), None),
    ],
)
def test_superficial_is_what_lies_above_every_control(made: Run, superficial: bool | None) -> None:
    (row,) = marked(made)
    assert row.superficial is superficial


def test_one_attack_that_brings_it_back_is_enough() -> None:
    (row,) = marked(run("retune", 0.06), run("query", 0.9))
    assert row.superficial


def test_one_seed_whose_backdoor_comes_back_is_enough() -> None:
    """The mean of the two lies 18 points above the controls; as BNP on Blended, CIFAR-10 at 5 %: 6 % with one seed, 41 with another."""
    (row,) = marked(run("retune", 0.06), run("retune", 0.41, "seed=1"))
    assert row.n == 2 and row.figures["asr_retuned"].mean == pytest.approx(0.235) and row.superficial
    (row,) = marked(run("retune", 0.06), run("retune", 0.9, "seed=1", before=0.3))
    assert row.superficial is False  # of the second it was never ended


# ---- reports --------------------------------------------------------------------------------------------------------


def found(*runs: Run) -> dict[Path, Run]:
    return {Path(str(place)): made for place, made in enumerate(runs)}


def test_a_report_has_both_tables_and_says_what_the_mark_means() -> None:
    made = report.make(found(run("none", 0), run("retune", 0.9)), ("asr", "asr_retuned"), (), ())
    assert [[column.flat for column in grid.columns][-1] for grid in made.grids] == ["ASR retuned", "ASR after exact"]
    said = " ".join(made.notes)
    assert (
        "superficial: the backdoor comes back (an ASR below 10 %, and then one that lies 20 points or more above every control's): "
        "fst on badnets, 10 %" in said
    )
    assert "only what lies above both is the backdoor's" in said
    assert "superficial: the backdoor" in report.latex(made)


def test_the_mark_of_several_seeds_says_that_one_was_enough() -> None:
    made = report.make(found(run("retune", 0.06), run("retune", 0.41, "seed=1")), ("asr",), (), ())
    assert "above every control's; by one seed of several, too): fst on badnets" in " ".join(made.notes)


def test_a_cell_is_marked_where_others_of_its_line_are_not() -> None:
    runs = [run("retune", 0.9), run("retune", 0.1, "defense=ft")]
    made = report.make(found(*runs), ("asr",), ("attack",), ("defense",))
    assert texts(made.grids[0])[0][-2:] == ["1.00 ¶", "1.00"]
    assert any(note.startswith("¶ superficial: the backdoor comes back") for note in made.notes)


def test_defenses_by_after_attacks() -> None:
    runs = [run("retune", 0.9), run("query", 0.4), run("query", 0.1, "defense=ft")]
    (grid,) = pivot_grids(rows.afters(runs), ("defense",), ("after",), ("asr_after",))
    assert texts(grid) == [["fst", "90.00", "40.00"], ["ft", "–", "10.00"]]
    made = report.make(found(*runs, run("query", 0.2, "after.alpha=1.0")), ("asr_after",), ("defense",), ("after",))
    heads = [column.flat for column in made.grids[0].columns]
    assert heads == ["defense", "retune", "query, alpha 0.2", "query, alpha 1.0"]


def test_what_was_not_run_cannot_be_shown() -> None:
    with pytest.raises(DataError, match="none with an after-attack; expected one at least. bdx list after shows"):
        report.make(found(run("none", 0)), ("asr_after",), (), ())


def test_a_line_a_run_has_the_figures(tmp_path: Path) -> None:
    listed = list(csv.DictReader(io.StringIO(frame.as_csv(found(run("none", 0), run("retune", 0.9))))))
    assert [line["after"] for line in listed] == ["none", "retune"]
    assert [line["asr_retuned"] for line in listed] == ["", "0.9"] and listed[1]["asr_retuned_clean"] == "0.02"
    assert "after" not in frame.rows(found(run("none", 0)))[0]


def test_metrics_are_those_of_all_after_attacks_that_there_are() -> None:
    assert {"asr_retuned", "asr_query", "asr_retuned_clean", "asr_varied_exact"} <= set(comebacks.figures())


def test_records_are_reported_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, made in enumerate([run("retune", 0.9), run("retune", 0.5, "after.samples=2")]):
        folder = tmp_path / "runs" / str(place)
        folder.mkdir(parents=True)
        record.write(made, folder)
    assert cli.main(["report", str(tmp_path), "--metric", "asr,asr_retuned"]) == 0
    assert "ASR retuned" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path), "--metric", "asr_retund"]) == 2
    assert cli.main(["plot", "after", str(tmp_path), "--output", str(tmp_path / "a.svg")]) == 0
    assert "after.samples" in (tmp_path / "a.svg").read_text() or (tmp_path / "a.svg").stat().st_size > 0


def test_a_damaged_trial_is_a_damaged_record(tmp_path: Path) -> None:
    made = run("retune", 0.9)
    made.after.details["trials"]["purified"][0]["asr"] = "high"
    record.write(made, tmp_path)
    with pytest.raises(DataError, match="its trials are no numbers"):
        record.read(tmp_path)


# ---- plots and the page ---------------------------------------------------------------------------------------------


def test_asr_against_retuning_samples() -> None:
    runs = [run("retune", asr, f"after.samples={m}") for m, asr in ((1, 0.1), (5, 0.5), (20, 0.9))]
    figure = against_setting(runs)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "after.samples"
    drawn = {tuple(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 3}
    assert (10.0, 50.0, 90.0) in drawn and (2.0, 2.0, 2.0) in drawn and (5.0, 5.0, 5.0) in drawn
    with pytest.raises(
        DataError, match="2 runs with after-attacks .query, retune.; expected those of one after-attack"
    ):
        against_setting([run("retune", 0.1), run("query", 0.1)])
    with pytest.raises(DataError, match="which differ in rate, samples; expected"):
        against_setting([run("retune", 0.1), run("retune", 0.1, "after.samples=9", "after.rate=0.1")])


def test_asr_by_trial() -> None:
    figure = by_trial([run("variations", 0.9), run("variations", 0.3, "defense=ft")])
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b"]
    with pytest.raises(DataError, match="0 runs have after-attacks of several trials"):
        by_trial([run("none", 0.9)])


def test_a_page_has_them(tmp_path: Path) -> None:
    runs = found(run("none", 0), run("retune", 0.9), run("retune", 0.3, "after.samples=1"))
    made = report.make({tmp_path / str(place): made for place, made in runs.items()}, ("asr", "asr_retuned"), (), ())
    text = page.render(made, ["outputs"], tmp_path / "page.html", ("asr", "asr_retuned"), [])
    assert "(superficial)" in text and 'ASR retuned<span class="way" title="less is better">' in text
    assert "<span>after-attack</span>" in text and "After an attack on the purified model" in text
    assert "bdx plot after outputs --output after.svg" in text


def test_search_for_an_unknown_metric_says_which_there_are() -> None:
    from backdoorbench.cli.arguments import figures_of

    with pytest.raises(ConfigError, match="asr_retuned"):
        figures_of("asr_retund", ("asr", *comebacks.figures()))
