"""From runs to tables: means, what is left out of them, what is best, what goes where; compared as text."""

from typing import Any

import pytest

from backdoorbench import config
from backdoorbench.errors import ConfigError
from backdoorbench.metrics import Scores
from backdoorbench.recorded import Run
from backdoorbench.reporting import formats, table
from backdoorbench.reporting.table import Grid


def run(defense: str, seed: int, asr: float, *more: str, **changes: Any) -> Run:
    settings = config.compose(["attack=badnets", f"defense={defense}", f"seed={seed}", *more])
    before, after = Scores(0.97, 0.95, 0.05, 360, 324), Scores(0.96, asr, 1 - asr, 360, 324)
    done = Run(
        f"{defense}{seed}", "done", "", settings, before, after, {"status": "took"}, environment={"device": "a CPU"}
    )
    for name, value in changes.items():
        setattr(done, name, value)
    return done


def constant(seed: int, **details: Any) -> Run:
    """FST, which left a network that calls everything the same."""
    recalls = [1.0] + [0.0] * 9
    found = {"purified": {"ca_per_class": recalls, **details}}
    return run("fst", seed, 0.0, purified=Scores(0.1, 0.0, 0.1, 360, 324), details=found)


RUNS = [run("ft", 0, 0.9), run("ft", 1, 0.8), run("fst", 0, 0.01), run("fst", 1, 0.03)]


def lines(grid: Grid) -> list[list[str]]:
    """What a grid prints, the best starred."""
    return [[item.text + "*" * item.best for item in line] for line in grid.lines]


def pivot(*runs: Run, rows: str = "attack", columns: str = "defense", metric: str = "asr") -> list[Grid]:
    return table.pivot_grids(table.aggregate(runs), rows.split(","), columns.split(","), metric.split(","))


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_seeds_are_aggregated() -> None:
    rows = table.aggregate(RUNS)
    assert [(row.names["defense"], row.n, row.seeds) for row in rows] == [("ft", 2, (0, 1)), ("fst", 2, (0, 1))]
    assert table.show(rows[0].after["asr"]) == "85.00 ± 7.07" and table.show(rows[1].before["ca"]) == "97.00 ± 0.00"
    assert table.footer(rows, RUNS) == "mean ± sample standard deviation over seeds; seeds 0, 1; a CPU"
    assert table.show(rows[0].after["der"]) == "54.50 ± 3.54"  # (drop of ASR 0.05, 0.15, less 0.01, and 1) / 2


def test_a_run_repeated_counts_once() -> None:
    rows = table.aggregate([run("ft", 0, 0.9), run("ft", 0, 0.7)])
    assert rows[0].n == 1 and table.show(rows[0].after["asr"]) == "70.00"


def test_what_changes_no_figure_splits_no_row() -> None:
    moved = run("ft", 1, 0.8, "dataset.root=/elsewhere", "curve.every=5", "runtime.outputs=/elsewhere")
    assert [row.n for row in table.aggregate([run("ft", 0, 0.9), moved])] == [2]


def test_folders_of_images_are_told_apart() -> None:
    more = ("dataset=folder", "dataset.root=/a"), ("dataset=folder", "dataset.root=/b")
    assert [row.names["dataset.root"] for row in table.aggregate(run("ft", 0, 0.9, *words) for words in more)] == [
        "/a",
        "/b",
    ]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (constant(0), "constant predictor"),
        (constant(0, largest_share=0.97), "constant predictor"),
        (run("ft", 0, 0.9, infection={"status": "broken"}), "broken infection"),
        (
            run("ft", 0, 0.0, purified=Scores(0.12, 0.0, 0.1, 9, 9), details={"purified": {"ca_per_class": [0.12] * 10}}),
            "CA near chance",
        ),
        (run("ft", 0, 0.9), ""),
        (run("ft", 0, 0.9, details={"purified": {"ca_per_class": [0.9] * 10, "largest_share": 0.12}}), ""),
    ],
)  # fmt: skip
def test_what_counts_as_collapsed(given: Run, reason: str) -> None:
    assert table.collapse(given) == reason


def test_a_collapsed_run_is_left_out_of_the_means_and_counted() -> None:
    (row,) = table.aggregate([run("fst", 0, 0.02), constant(1), run("fst", 2, 0.04)])
    assert (row.n, row.seeds, row.collapsed) == (2, (0, 1, 2), {1: "constant predictor"})
    assert table.show(row.after["asr"]) == "3.00 ± 1.41" and row.before["asr"].values == (0.95, 0.95, 0.95)
    (grid,) = table.list_grids([row])
    assert lines(grid)[0][:3] == ["badnets", "fst (1 of 3 collapsed)", "2"]
    (alone,) = table.list_grids(table.aggregate([constant(0)]))
    assert lines(alone)[0][1:3] == ["fst (1 of 1 collapsed)", "0"] and lines(alone)[0][-3:] == ["–", "–", "–"]


def test_the_best_is_found_among_what_compares() -> None:
    def best(*runs: Run) -> list[set[str]]:
        return [set(row.best) for row in table.aggregate(runs)]

    assert best(*RUNS) == [{"ca"}, {"ca", "asr", "ra", "der"}]  # equal as printed: both
    assert best(*RUNS[:2]) == [set()]  # alone it beats nobody
    other_rate = run("fst", 0, 0.01, "attack.poison_rate=0.05")
    assert best(run("ft", 0, 0.9), other_rate) == [set(), set()]  # another infection
    assert best(*RUNS, run("lp", 0, 0.0))[2] == set()  # a seed of two
    assert best(run("ft", 0, 0.9), run("ft", 1, 0.9), constant(0), run("fst", 1, 0.0)) == [set(), set()]
    weak = {"status": "weak"}
    assert best(run("ft", 0, 0.9, infection=weak), run("fst", 0, 0.1, infection=weak)) == [set(), set()]
    assert best(run("none", 0, 0.95), run("ft", 0, 0.9)) == [set(), set()]  # no defense is none of them


# ---- a line a setting -----------------------------------------------------------------------------------------------


def test_a_list() -> None:
    (grid,) = table.list_grids(table.aggregate(RUNS))
    assert grid.title == "dataset digits · model demo · rate 10 %"
    assert [column.flat for column in grid.columns] == [
        "attack", "defense", "n", "CA", "ASR", "RA", "CA after", "ASR after", "RA after"
    ]  # fmt: skip
    assert lines(grid)[1] == [
        "badnets", "fst", "2", "97.00 ± 0.00", "95.00 ± 0.00", "5.00 ± 0.00", "96.00 ± 0.00*", "2.00 ± 1.41*", "98.00 ± 1.41*"
    ]  # fmt: skip


def test_chosen_figures_in_their_order() -> None:
    (grid,) = table.list_grids(table.aggregate(RUNS[:1]), ("asr", "der"))
    assert [column.flat for column in grid.columns[3:]] == ["ASR", "ASR after", "DER after"]
    assert lines(grid)[0][3:] == ["95.00", "90.00", "52.00"]


def test_what_differs_is_a_column_a_label_or_another_table() -> None:
    runs = [run("fst", 0, 0.1), run("fst", 0, 0.2, "defense.alpha=0.5"), run("ft", 0, 0.3)]
    assert [row.names.get("defense.alpha") for row in table.aggregate(runs)] == ["0.1", "0.5", "–"]
    (grid,) = table.list_grids(table.aggregate(runs))
    assert [line[1] for line in lines(grid)] == ["fst, alpha 0.1", "fst, alpha 0.5", "ft"]
    rates = table.list_grids(table.aggregate([run("ft", 0, 0.9, "attack.poison_rate=0.05"), *RUNS[:1]]))
    assert [line[:3] for line in lines(rates[0])] == [["badnets", "5 %", "ft"], ["badnets", "10 %", "ft"]]
    holdouts = table.list_grids(table.aggregate([run("ft", 0, 0.9, "holdout.rate=0.1"), *RUNS[:1]]))
    assert [grid.title for grid in holdouts] == [
        f"dataset digits · model demo · holdout.rate {rate} · rate 10 %" for rate in (0.1, 0.05)
    ]


def test_a_defense_tuned_for_each_attack_keeps_its_name() -> None:
    runs = [run("fst", 0, 0.1, "defense.alpha=0.5"), run("fst", 0, 0.2, "attack=blended"), run("ft", 0, 0.3)]
    rows = table.aggregate(runs)
    assert [line[:2] for line in lines(table.list_grids(rows)[0])] == [
        ["badnets", "fst"],
        ["badnets", "ft"],
        ["blended", "fst"],
    ]
    assert table.varying(rows) == ["fst: alpha 0.5, 0.1"]


def test_failed_and_weak_runs_are_not_hidden() -> None:
    failed = run("fst", 2, 0.5, status="failed")
    rows = table.aggregate([failed, run("ft", 0, 0.9, infection={"status": "weak"})])
    assert [row.n for row in rows] == [1] and rows[0].marks == ("weak",)
    assert lines(table.list_grids(rows)[0])[0][0] == "badnets (weak)"


def test_missing_figures_are_dashes() -> None:
    clean = run("ft", 0, 0.5, infected=Scores(0.9, None, None, 10, 0), purified=Scores(0.8, None, None, 10, 0))
    (grid,) = table.list_grids(table.aggregate([clean]), ("ca", "asr", "ra", "der"))
    assert lines(grid)[0][3:] == ["90.00", "–", "–", "80.00", "–", "–", "–"]


# ---- rows by columns ------------------------------------------------------------------------------------------------


def test_attacks_by_defenses() -> None:
    (grid,) = pivot(*RUNS, run("ft", 0, 0.5, "attack=blended"), run("none", 0, 0.95))
    assert grid.title == "dataset digits · model demo · rate 10 % · ASR, %"
    assert [column.name for column in grid.columns] == ["attack", "infected", "ft", "fst"]
    assert lines(grid) == [
        ["badnets", "95.00 ± 0.00", "85.00 ± 7.07", "2.00 ± 1.41*"],
        ["blended", "95.00", "50.00 (n 1)", "–"],
    ]


def test_two_figures_make_groups() -> None:
    (grid,) = pivot(*RUNS, metric="asr,der")
    assert [(column.group, column.name, column.flat) for column in grid.columns[3:5]] == [
        ("ft", "ASR", "ft ASR"),
        ("ft", "DER", "ft DER"),
    ]
    assert lines(grid)[0][1:3] == ["95.00 ± 0.00", "–"]


def test_what_no_axis_names_is_another_table() -> None:
    runs = [run("ft", 0, 0.9), run("fst", 0, 0.1, "attack.poison_rate=0.05")]
    assert [(grid.title, [c.name for c in grid.columns[1:]]) for grid in pivot(*runs)] == [
        ("dataset digits · model demo · rate 10 % · ASR, %", ["infected", "ft"]),
        ("dataset digits · model demo · rate 5 % · ASR, %", ["infected", "fst"]),
    ]
    (by_rate,) = pivot(*runs, rows="attack,rate")
    assert lines(by_rate) == [["badnets", "5 %", "95.00", "–", "10.00"], ["badnets", "10 %", "95.00", "90.00", "–"]]
    (by_setting,) = pivot(run("fst", 0, 0.1), run("fst", 0, 0.2, "defense.alpha=0.5"), columns="defense.alpha")
    assert [c.name for c in by_setting.columns] == ["attack", "0.1", "0.5"] and lines(by_setting) == [["badnets", "10.00*", "20.00"]]  # fmt: skip


def test_defenses_by_attacks() -> None:
    (grid,) = pivot(*RUNS, rows="defense", columns="attack")
    assert lines(grid) == [["infected", "95.00 ± 0.00"], ["ft", "85.00 ± 7.07"], ["fst", "2.00 ± 1.41*"]]


def test_marks_of_cells() -> None:
    weak = run("ft", 0, 0.4, "attack=blended", infection={"status": "weak"})
    (grid,) = pivot(run("ft", 0, 0.9), constant(0), weak)
    assert lines(grid) == [
        ["badnets", "95.00", "90.00", "– †"],
        ["blended (weak)", "95.00", "40.00", "–"],
    ]
    (turned,) = pivot(run("ft", 0, 0.9), weak, rows="defense", columns="attack")
    assert lines(turned) == [["infected", "95.00", "95.00 ‡"], ["ft", "90.00", "40.00 ‡"]]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            "atack",
            "defense",
            "'atack' is nothing to lay a table out by. Did you mean 'attack'? There are dataset, model, attack, rate, "
            "defense, train and holdout.",
        ),
        ("attack", "attack", "'attack' is given for rows and for columns; expected one of the two. Drop one."),
    ],
)
def test_axes_there_are_not(rows: str, columns: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        pivot(RUNS[0], rows=rows, columns=columns)
    assert str(raised.value) == message


# ---- formats --------------------------------------------------------------------------------------------------------


def test_markdown() -> None:
    (grid,) = table.list_grids(table.aggregate(RUNS))
    assert formats.markdown(grid) == (
        "dataset digits · model demo · rate 10 %\n\n"
        "| attack | defense | n | CA | ASR | RA | CA after | ASR after | RA after |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| badnets | ft | 2 | 97.00 ± 0.00 | 95.00 ± 0.00 | 5.00 ± 0.00 | **96.00 ± 0.00** | 85.00 ± 7.07 | 15.00 ± 7.07 |\n"
        "| badnets | fst | 2 | 97.00 ± 0.00 | 95.00 ± 0.00 | 5.00 ± 0.00 | **96.00 ± 0.00** | **2.00 ± 1.41** | **98.00 ± 1.41** |\n"
    )
    assert formats.pipes(["a|b"], [["c|d"]], 1) == "| a\\|b |\n| --- |\n| c\\|d |\n"


def test_csv_holds_fractions() -> None:
    lines = formats.as_csv(table.aggregate(RUNS[:1])).splitlines()
    assert lines == [
        "dataset,model,attack,rate,defense,n,collapsed,seeds,status,infected_ca,infected_ca_std,infected_asr,infected_asr_std,"
        "infected_ra,infected_ra_std,purified_ca,purified_ca_std,purified_asr,purified_asr_std,purified_ra,purified_ra_std,"
        "der,der_std,published_ca,published_asr,published_ra,certainty,source",
        "digits,demo,badnets,10 %,ft,1,0,0,took,0.970000,,0.950000,,0.050000,,0.960000,,0.900000,,0.100000,,0.520000,,,,,,",
    ]


def test_latex_is_booktabs() -> None:
    (grid,) = table.list_grids(table.aggregate(RUNS), ("asr",))
    assert formats.latex_table(grid, ["mean ± deviation"]) == (
        "\\begin{table}[t]\n"
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}\n"
        "\\caption{dataset digits $\\cdot$ model demo $\\cdot$ rate 10 \\%, n = 2. mean $\\pm$ deviation.}\n"
        "\\begin{tabular}{llrr}\n"
        "\\toprule\n"
        " &  & \\multicolumn{1}{c}{infected} & \\multicolumn{1}{c}{purified} \\\\\n"
        "\\cmidrule(lr){3-3} \\cmidrule(lr){4-4}\n"
        "attack & defense & ASR $\\downarrow$ & ASR $\\downarrow$ \\\\\n"
        "\\midrule\n"
        "badnets & ft & 95.00{\\scriptsize\\,$\\pm$\\,0.00} & 85.00{\\scriptsize\\,$\\pm$\\,7.07} \\\\\n"
        "badnets & fst & 95.00{\\scriptsize\\,$\\pm$\\,0.00} & \\textbf{2.00}{\\scriptsize\\,$\\pm$\\,1.41} \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\end{table}\n"
    )


def test_latex_escapes() -> None:
    assert formats.latex('10 % _x_ – {a} \\ ~ ^ # & $ <b> "q" é 漢') == (
        r"10 \% \_x\_ -- \{a\} \textbackslash{} \textasciitilde{} \textasciicircum{} \# \& \$ \textless{}b\textgreater{} ''q'' é ?"
    )
