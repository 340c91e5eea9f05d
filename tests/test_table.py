"""From runs to tables: means, what is left out of them, what is best, what goes where; compared as text."""

import copy
from typing import Any

import pytest
from records import made_run, old_record

from backdoorbench.config.compose import compose
from backdoorbench.errors import ConfigError
from backdoorbench.metrics import Scores
from backdoorbench.reporting import formats, notes
from backdoorbench.reporting.grids import Grid, detection_grids, list_grids, pivot_grids
from backdoorbench.reporting.rows import aggregate, collapse, detections, heading, look_up, show
from backdoorbench.storage.record import Run, from_plain

BEFORE = Scores(0.97, 0.95, 0.05, 360, 324)


def run(defense: str, seed: int, asr: float, *more: str, details: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A finished run. details: of the purification."""
    settings = compose(["attack=badnets", f"defense={defense}", f"seed={seed}", *more])
    scores = {"infected": BEFORE, "purified": Scores(0.96, asr, 1 - asr, 360, 324)}
    made = made_run(f"{defense}{seed}", settings, **scores | changes, environment={"device": "a CPU"})
    made.purification.details |= details or {}
    return made


def constant(seed: int, **details: Any) -> Run:
    """FST, which left a network that calls everything the same."""
    recalls = {"ca_per_class": [1.0] + [0.0] * 9}
    return run("fst", seed, 0.0, purified=Scores(0.1, 0.0, 0.1, 360, 324), details=recalls | details)


RUNS = [run("ft", 0, 0.9), run("ft", 1, 0.8), run("fst", 0, 0.01), run("fst", 1, 0.03)]


def lines(grid: Grid) -> list[list[str]]:
    """What a grid prints, the best starred."""
    return [[item.text + "*" * item.best for item in line] for line in grid.lines]


def pivot(*runs: Run, rows: str = "attack", columns: str = "defense", metric: str = "asr") -> list[Grid]:
    return pivot_grids(aggregate(runs), rows.split(","), columns.split(","), metric.split(","))


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_seeds_are_aggregated() -> None:
    rows = aggregate(RUNS)
    assert [(row.names["defense"], row.n, row.seeds) for row in rows] == [("ft", 2, (0, 1)), ("fst", 2, (0, 1))]
    assert show(rows[0].figures["asr"]) == "85.00 ± 7.07" and show(rows[1].before["ca"]) == "97.00 ± 0.00"
    assert notes.footer(rows, RUNS) == "mean ± sample standard deviation over seeds; seeds 0, 1; a CPU"
    assert show(rows[0].figures["der"]) == "54.50 ± 3.54"  # (drop of ASR 0.05, 0.15, less 0.01, and 1) / 2


def test_a_run_repeated_counts_once() -> None:
    rows = aggregate([run("ft", 0, 0.9), run("ft", 0, 0.7)])
    assert rows[0].n == 1 and show(rows[0].figures["asr"]) == "70.00"


def test_what_changes_no_figure_splits_no_row() -> None:
    moved = run("ft", 1, 0.8, "dataset.root=/elsewhere", "curve.every=5", "runtime.outputs=/elsewhere")
    assert [row.n for row in aggregate([run("ft", 0, 0.9), moved])] == [2]


def test_folders_of_images_are_told_apart() -> None:
    more = ("dataset=folder", "dataset.root=/a"), ("dataset=folder", "dataset.root=/b")
    assert [row.names["dataset.root"] for row in aggregate(run("ft", 0, 0.9, *words) for words in more)] == [
        "/a",
        "/b",
    ]


def test_records_from_before_there_were_stages_make_the_same_tables() -> None:
    runs = [*RUNS, constant(2), run("ft", 2, 0.7, infection="weak")]
    again = [from_plain(old_record(made)) for made in runs]
    rows, others = aggregate(again), aggregate(runs)
    assert list_grids(rows, ("ca", "asr", "der")) == list_grids(others, ("ca", "asr", "der"))
    runs = copy.deepcopy(runs)
    for made in runs:
        made.purification.seconds = {"purify": 1.0}  # as the old records say
    others = aggregate(runs)
    assert formats.as_csv(rows) == formats.as_csv(others) and notes.footer(rows, again) == notes.footer(others, runs)
    (mixed,) = aggregate([RUNS[0], again[1]])  # neither a detector to choose nor a class of the data set splits a row
    assert (mixed.n, show(mixed.figures["asr"])) == (2, "85.00 ± 7.07")


UNEVEN = {"ca_per_class": [0.9, 0.5], "largest_share": 0.9}  # four fifths of the images are of one class


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (constant(0), "constant predictor"),
        (constant(0, largest_share=0.97), "constant predictor"),
        (run("ft", 0, 0.9, infection="broken"), "broken infection"),
        (
            run("ft", 0, 0.0, purified=Scores(0.12, 0.0, 0.1, 9, 9), details={"ca_per_class": [0.12] * 10}),
            "CA near chance",
        ),
        (run("ft", 0, 0.9, purified=Scores(0.82, 0.0, 0.1, 9, 9), details=UNEVEN | {"by_chance": 0.8}), "CA near chance"),
        (run("ft", 0, 0.9, purified=Scores(0.82, 0.0, 0.1, 9, 9), details=UNEVEN | {"by_chance": 0.5}), ""),
        (run("ft", 0, 0.9), ""),
        (run("ft", 0, 0.9, details={"ca_per_class": [0.9] * 10, "largest_share": 0.12}), ""),
    ],
)  # fmt: skip
def test_what_counts_as_collapsed(given: Run, reason: str) -> None:
    assert collapse(given) == reason


def test_a_collapsed_run_is_left_out_of_the_means_and_counted() -> None:
    (row,) = aggregate([run("fst", 0, 0.02), constant(1), run("fst", 2, 0.04)])
    assert (row.n, row.seeds, row.collapsed) == (2, (0, 1, 2), {1: "constant predictor"})
    assert show(row.figures["asr"]) == "3.00 ± 1.41" and row.before["asr"].values == (0.95, 0.95, 0.95)
    (grid,) = list_grids([row])
    assert lines(grid)[0][:3] == ["badnets", "fst (1 of 3 collapsed)", "2"]
    (alone,) = list_grids(aggregate([constant(0)]))
    assert lines(alone)[0][1:3] == ["fst (1 of 1 collapsed)", "0"] and lines(alone)[0][-3:] == ["–", "–", "–"]


def test_the_best_is_found_among_what_compares() -> None:
    def best(*runs: Run) -> list[set[str]]:
        return [set(row.best) for row in aggregate(runs)]

    assert best(*RUNS) == [{"ca"}, {"ca", "asr", "ra", "der"}]  # equal as printed: both
    assert best(*RUNS[:2]) == [set()]  # alone it beats nobody
    other_rate = run("fst", 0, 0.01, "attack.poison_rate=0.05")
    assert best(run("ft", 0, 0.9), other_rate) == [set(), set()]  # another infection
    assert best(*RUNS, run("lp", 0, 0.0))[2] == set()  # a seed of two
    assert best(run("ft", 0, 0.9), run("ft", 1, 0.9), constant(0), run("fst", 1, 0.0)) == [set(), set()]
    weak = "weak"
    assert best(run("ft", 0, 0.9, infection=weak), run("fst", 0, 0.1, infection=weak)) == [set(), set()]
    assert best(run("none", 0, 0.95), run("ft", 0, 0.9)) == [set(), set()]  # no defense is none of them


# ---- a line a setting -----------------------------------------------------------------------------------------------


def test_a_list() -> None:
    (grid,) = list_grids(aggregate(RUNS))
    assert grid.title == "dataset digits · model demo · rate 10 %"
    assert [column.flat for column in grid.columns] == [
        "attack", "defense", "n", "CA", "ASR", "RA", "CA after", "ASR after", "RA after"
    ]  # fmt: skip
    assert lines(grid)[1] == [
        "badnets", "fst", "2", "97.00 ± 0.00", "95.00 ± 0.00", "5.00 ± 0.00", "96.00 ± 0.00*", "2.00 ± 1.41*", "98.00 ± 1.41*"
    ]  # fmt: skip


def test_chosen_figures_in_their_order() -> None:
    (grid,) = list_grids(aggregate(RUNS[:1]), ("asr", "der"))
    assert [column.flat for column in grid.columns[3:]] == ["ASR", "ASR after", "DER after"]
    assert lines(grid)[0][3:] == ["95.00", "90.00", "52.00"]


def test_what_differs_is_a_column_a_label_or_another_table() -> None:
    runs = [run("fst", 0, 0.1), run("fst", 0, 0.2, "defense.alpha=0.5"), run("ft", 0, 0.3)]
    assert [row.names.get("defense.alpha") for row in aggregate(runs)] == ["0.1", "0.5", "–"]
    (grid,) = list_grids(aggregate(runs))
    assert [line[1] for line in lines(grid)] == ["fst, alpha 0.1", "fst, alpha 0.5", "ft"]
    rates = list_grids(aggregate([run("ft", 0, 0.9, "attack.poison_rate=0.05"), *RUNS[:1]]))
    assert [line[:3] for line in lines(rates[0])] == [["badnets", "5 %", "ft"], ["badnets", "10 %", "ft"]]
    holdouts = list_grids(aggregate([run("ft", 0, 0.9, "holdout.rate=0.1"), *RUNS[:1]]))
    assert [grid.title for grid in holdouts] == [
        f"dataset digits · model demo · holdout.rate {rate} · rate 10 %" for rate in (0.1, 0.05)
    ]


def test_a_defense_tuned_for_each_attack_keeps_its_name() -> None:
    runs = [run("fst", 0, 0.1, "defense.alpha=0.5"), run("fst", 0, 0.2, "attack=blended"), run("ft", 0, 0.3)]
    rows = aggregate(runs)
    assert [line[:2] for line in lines(list_grids(rows)[0])] == [
        ["badnets", "fst"],
        ["badnets", "ft"],
        ["blended", "fst"],
    ]
    assert notes.varying(rows) == ["fst: alpha 0.5, 0.1"]


def test_failed_and_weak_runs_are_not_hidden() -> None:
    failed = run("fst", 2, 0.5, status="failed")
    rows = aggregate([failed, run("ft", 0, 0.9, infection="weak")])
    assert [row.n for row in rows] == [1] and rows[0].marks == ("weak",)
    assert lines(list_grids(rows)[0])[0][0] == "badnets (weak)"


def test_missing_figures_are_dashes() -> None:
    clean = run("ft", 0, 0.5, infected=Scores(0.9, None, None, 10, 0), purified=Scores(0.8, None, None, 10, 0))
    (grid,) = list_grids(aggregate([clean]), ("ca", "asr", "ra", "der"))
    assert lines(grid)[0][3:] == ["90.00", "–", "–", "80.00", "–", "–", "–"]


# ---- rows by columns ------------------------------------------------------------------------------------------------


def test_attacks_by_defenses() -> None:
    (grid,) = pivot(*RUNS, run("ft", 0, 0.5, "attack=blended"), run("none", 0, 0.95))
    assert grid.title == "dataset digits · model demo · rate 10 % · ASR, %"
    assert [column.name for column in grid.columns] == ["attack", "infected", "ft", "fst"]
    assert lines(grid) == [
        ["badnets", "95.00 ± 0.00", "85.00 ± 7.07", "2.00 ± 1.41*"],
        ["blended", "95.00 (n 1)", "50.00 (n 1)", "–"],
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


def test_the_clean_model_of_the_same_recipe_stands_where_it_was_judged() -> None:
    runs = [run("ft", 0, 0.9), run("ft", 0, 0.5, "attack=blended"), run("fst", 0, 0.1, "attack=blended")]
    runs[1].infection.control = Scores(0.98, 0.02, 0.66, 360, 324)
    (grid,) = pivot(*runs, rows="defense", columns="attack", metric="asr,ra")
    assert lines(grid)[:2] == [
        ["clean model", "–", "–", "2.00", "66.00"],
        ["infected", "95.00", "5.00", "95.00", "5.00"],
    ]
    assert [column.flat for column in grid.columns[1:]] == ["badnets ASR", "badnets RA", "blended ASR", "blended RA"]
    (turned,) = pivot(*runs)
    assert [column.flat for column in turned.columns] == ["attack", "clean model", "infected", "ft", "fst"]
    assert all(notes.CONTROL in notes.below(aggregate(runs), [], runs, [one], ["asr"]) for one in (grid, turned))
    assert all(notes.CONTROL in notes.footnotes(one, []) for one in (grid, turned))
    assert not notes.has_control(pivot(*RUNS)[0])


def test_marks_of_cells() -> None:
    weak = run("ft", 0, 0.4, "attack=blended", infection="weak")
    (grid,) = pivot(run("ft", 0, 0.9), constant(0), weak)
    assert lines(grid) == [
        ["badnets", "95.00", "90.00", "– †"],
        ["blended (weak)", "95.00", "40.00", "–"],
    ]
    (turned,) = pivot(run("ft", 0, 0.9), weak, rows="defense", columns="attack")
    assert lines(turned) == [["infected", "95.00", "95.00 ‡"], ["ft", "90.00", "40.00 ‡"]]
    weak.purification.seconds["purify"] = 7.0
    (costly,) = pivot(run("ft", 0, 0.9), weak, rows="defense", columns="attack", metric="asr,seconds")
    assert lines(costly)[1] == ["ft", "90.00", "–", "40.00 ‡", "7.00"]  # what a defense costs is not in doubt


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


def test_networks_on_one_data_set_have_columns_of_their_own() -> None:
    (grid,) = pivot(run("ft", 0, 0.9), run("ft", 0, 0.2, "model=resnet18"), rows="defense", columns="dataset")
    assert [column.name for column in grid.columns] == ["defense", "digits, model demo", "digits, model resnet18"]
    assert lines(grid)[1] == ["ft", "90.00", "20.00"]


# ---- detectors ------------------------------------------------------------------------------------------------------

OF_INPUTS = {"auroc": 0.9, "tpr_1": 0.3, "tpr_5": 0.5, "tpr_10": 0.7, "tpr": 0.6, "fpr": 0.05, "precision": 0.9}


def asked(
    detector: str, seed: int, figures: dict[str, float | None], *more: str, defense: str = "none", **changes: Any
) -> Run:
    """A finished run with a detector, which flags 4 % of what it is shown beside the clean model."""
    beside = {"anomaly_index": 1.1, "any_flagged": 0.0} if "any_flagged" in figures else {"auroc": 0.5, "fpr": 0.04}
    return run(defense, seed, 0.1, f"detector={detector}", *more, **{"figures": figures, "beside": beside} | changes)


def nc(seed: int, index: float, found: bool, *more: str) -> Run:
    return asked("nc", seed, {"anomaly_index": index, "any_flagged": 1.0, "target_flagged": float(found)}, *more)


def test_detectors_split_no_row_of_a_defense() -> None:
    runs = [asked("strip", 0, OF_INPUTS, defense="fst"), asked("ac", 0, OF_INPUTS, defense="fst"), run("fst", 1, 0.3)]
    (row,) = aggregate(runs)
    assert (row.n, row.seeds, row.figures["asr"].values) == (2, (0, 1), (0.1, 0.3))
    assert [(found.names["detector"], found.n) for found in detections(runs)] == [("strip", 1), ("ac", 1)]


def test_defenses_split_no_row_of_a_detector() -> None:
    runs = [asked("strip", seed, OF_INPUTS | {"auroc": 0.9 - 0.2 * seed}) for seed in (0, 1)]
    (row,) = detections([*runs, asked("strip", 1, OF_INPUTS, defense="fst"), run("ft", 0, 0.5)])
    assert row.names == {"dataset": "digits", "model": "demo", "attack": "badnets", "rate": "10 %", "detector": "strip"}
    assert (row.n, row.seeds, row.figures["auroc"].values, row.beside["fpr"].values) == (
        2,
        (0, 1),
        (0.9, 0.9),
        (0.04, 0.04),
    )
    assert (
        len(detections([*runs, asked("strip", 0, OF_INPUTS, "inspection.images=50")])) == 2
    )  # other inputs are another setting


def test_a_run_with_a_detector_alone_is_in_both_tables() -> None:
    (grid,) = list_grids(aggregate([asked("strip", 0, OF_INPUTS)]))
    assert lines(grid)[0][:3] == ["badnets", "none", "1"]


def test_a_list_of_detectors() -> None:
    runs = [
        asked("strip", 0, OF_INPUTS),
        asked("strip", 1, OF_INPUTS | {"auroc": 0.7, "precision": None}),
        nc(0, 3.25, True),
    ]
    runs += [nc(1, 1.25, False), asked("ac", 0, OF_INPUTS, "attack.poison_rate=0.05", beside={})]
    of_inputs, of_models = detection_grids(detections(runs))
    assert (
        of_inputs.title == "dataset digits · model demo"
        and of_models.title == "dataset digits · model demo · rate 10 %"
    )
    assert formats.markdown(of_inputs).splitlines()[2:] == [
        "| attack | rate | detector | n | AUROC | TPR@1 | TPR@5 | TPR@10 | TPR | FPR | precision | FPR clean |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| badnets | 5 % | ac | 1 | 90.00 | 30.00 | 50.00 | 70.00 | 60.00 | 5.00 | 90.00 | – |",
        "| badnets | 10 % | strip | 2 | 80.00 ± 14.14 | 30.00 ± 0.00 | 50.00 ± 0.00 | 70.00 ± 0.00 | 60.00 ± 0.00 | 5.00 ± 0.00 "
        "| 90.00 (n 1) | 4.00 ± 0.00 |",
    ]
    assert formats.markdown(of_models).splitlines()[2:] == [
        "| attack | detector | n | index | flagged | target | index clean | flagged clean |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| badnets | nc | 2 | 2.25 ± 1.41 | 100.00 | 50.00 | 1.10 ± 0.00 | 0.00 |",
    ]
    assert [(c.group, c.name) for c in of_models.columns[3:]] == [
        ("infected", "index"), ("infected", "flagged"), ("infected", "target"), ("clean model", "index"), ("clean model", "flagged")
    ]  # fmt: skip
    assert r"AUROC $\uparrow$" in formats.latex_table(of_inputs) and r"FPR $\downarrow$" in formats.latex_table(
        of_inputs
    )


def test_doubtful_infections_of_a_detector() -> None:
    weak = asked("strip", 0, OF_INPUTS, "attack=blended", infection="weak")
    runs = [asked("strip", 0, OF_INPUTS), asked("strip", 1, OF_INPUTS | {"auroc": 0.1}, infection="broken"), weak]
    (grid,) = detection_grids(detections(runs))
    assert [line[:4] for line in lines(grid)] == [
        ["badnets (broken)", "strip (1 of 2 collapsed)", "1", "90.00"],
        ["blended (weak)", "strip", "1", "90.00"],
    ]


def test_attacks_by_detectors() -> None:
    rows = detections([asked("strip", 0, OF_INPUTS), asked("ac", 0, OF_INPUTS | {"auroc": 0.4}), nc(0, 3.0, True)])
    (grid,) = pivot_grids(rows, ("attack",), ("detector",), ("auroc",))
    assert grid.title == "dataset digits · model demo · rate 10 % · AUROC, %"
    assert [column.name for column in grid.columns] == ["attack", "strip", "ac", "nc"]
    assert lines(grid) == [["badnets", "90.00", "40.00", "–"]]
    with pytest.raises(
        ConfigError, match="'defense' is nothing to lay a table out by. There are .* detector, train and holdout."
    ):
        pivot_grids(rows, ("attack",), ("defense",), ("auroc",))


def test_headings() -> None:
    alone, both = asked("strip", 3, OF_INPUTS), asked("strip", 0, OF_INPUTS, defense="fst")
    said = [heading(made) for made in (run("fst", 0, 0.1), run("none", 0, 0.1), both, alone)]
    assert said == [
        f"digits · demo · badnets → {names}"
        for names in ("fst · seed 0", "none · seed 0", "strip → fst · seed 0", "strip · seed 3")
    ]


# ---- formats --------------------------------------------------------------------------------------------------------


def test_markdown() -> None:
    (grid,) = list_grids(aggregate(RUNS))
    assert formats.markdown(grid) == (
        "dataset digits · model demo · rate 10 %\n\n"
        "| attack | defense | n | CA | ASR | RA | CA after | ASR after | RA after |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| badnets | ft | 2 | 97.00 ± 0.00 | 95.00 ± 0.00 | 5.00 ± 0.00 | **96.00 ± 0.00** | 85.00 ± 7.07 | 15.00 ± 7.07 |\n"
        "| badnets | fst | 2 | 97.00 ± 0.00 | 95.00 ± 0.00 | 5.00 ± 0.00 | **96.00 ± 0.00** | **2.00 ± 1.41** | **98.00 ± 1.41** |\n"
    )
    assert formats.pipes(["a|b"], [["c|d"]], 1) == "| a\\|b |\n| --- |\n| c\\|d |\n"


def test_csv_holds_fractions() -> None:
    lines = formats.as_csv(aggregate(RUNS[:1])).splitlines()
    assert lines == [
        "dataset,model,attack,rate,defense,n,infected_n,collapsed,seeds,status,fragile,infected_ca,infected_ca_std,infected_asr,infected_asr_std,"
        "infected_ra,infected_ra_std,purified_ca,purified_ca_std,purified_asr,purified_asr_std,purified_ra,purified_ra_std,"
        "der,der_std,seconds,seconds_n,memory,memory_n,device_memory,device_memory_n,energy,energy_n,images_per_second,images_per_second_n,"
        "published_ca,published_asr,published_ra,certainty,source",
        "digits,demo,badnets,10 %,ft,1,1,0,0,took,,0.970000,,0.950000,,0.050000,,0.960000,,0.900000,,0.100000,,0.520000,,"
        ",0,,0,,0,,0,,0,,,,,",
    ]


def test_latex_is_booktabs() -> None:
    (grid,) = list_grids(aggregate(RUNS), ("asr",))
    assert formats.latex_table(grid, ["mean ± deviation"]) == (
        "\\begin{table}[t]\n"
        "\\centering\\small\\setlength{\\tabcolsep}{4pt}\n"
        "\\caption{Dataset digits $\\cdot$ model demo $\\cdot$ rate 10 \\%, n = 2. Mean $\\pm$ deviation.}\n"
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


def test_attacks_with_one_rate_each_share_a_table() -> None:
    own = run("ft", 0, 0.9, "attack=sig", "attack.poison_rate=0.05")
    (grid,) = pivot(run("ft", 0, 0.9), own)
    assert [[item.text for item in line[:2]] for line in grid.lines] == [["badnets", "10 %"], ["sig", "5 %"]]
    assert len(pivot(run("ft", 0, 0.9), run("ft", 0, 0.9, "attack.poison_rate=0.05"))) == 2  # one attack at two rates


def test_versions_of_a_method_are_told_by_their_number_alone() -> None:
    runs = [run("bnp", 0, asr, f"defense.u={u}") for asr, u in ((0.3, 3), (0.2, 3), (0.1, 4))]
    old = runs[0].config["defense"]
    old |= {"version": 1, "augment": {"flip": True, "crop_padding": 4}}
    (grid,) = pivot(*runs, rows="defense", columns="attack")
    assert [line[0] for line in lines(grid)[1:]] == [
        "bnp, version 1, u 3",
        "bnp, version 2, u 3",
        "bnp, version 2, u 4",
    ]
    (grid,) = pivot(*runs[:2], rows="defense", columns="attack")
    assert [line[0] for line in lines(grid)[1:]] == ["bnp, version 1", "bnp, version 2"]


def test_a_name_with_a_dot_is_looked_up() -> None:
    config = {"model": {"name": "x", "options": {"a.b": {"c": 1}, "a": {"d": 2}, "e": {}}}}
    said = [look_up(config, f"model.options.{key}") for key in ("a.b.c", "a.d", "e", "a.c", "a.b.c.d")]
    assert said == ["1", "2", "{}", "–", "–"]


def test_runs_by_several_versions_are_told() -> None:
    runs = [run("fst", seed, 0.1) for seed in range(3)]
    assert notes.versions(runs) == []
    for each, version in zip(runs, ("2.14.0", "2.15.0", "2.15.0"), strict=True):
        each.environment = {**each.environment, "packages": {"torch": version, "bdx": "0.1.0", "numpy": version}}
    (said,) = notes.versions(runs)
    assert said == "runs by several versions, which may differ by more than their seeds: torch 2.14.0 (1), 2.15.0 (2)"
    assert said in notes.below(aggregate(runs), [], runs, [], ("asr",))
