"""What the names of options imply, and what must be said beside them."""

import pytest
from records import made_run

from backdoorbench.config import catalog, implied
from backdoorbench.config.compose import compose
from backdoorbench.metrics import Scores
from backdoorbench.reporting import grids, notes, rows


@pytest.mark.wide
@pytest.mark.parametrize(
    "dataset",
    ["digits", pytest.param("gtsrb", marks=pytest.mark.slow), pytest.param("cifar10", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("group", ["attack", "defense", "detector"])
def test_what_is_chosen_by_name_alone_has_nothing_to_say(dataset: str, group: str) -> None:
    for name in catalog.names(group):
        assert implied.beyond(compose([f"dataset={dataset}", f"{group}={name}"])) == {}, name


BEYOND = [
    (["train.epochs=1"], {"train.epochs": 1}),
    (["train=paper"], {"train.name": "paper"}),
    (["holdout=fst"], {"holdout.name": "fst"}),
    (["dataset.augment.flip=true"], {"dataset.augment.flip": True}),  # and not once more for each that follows it
    (["train.augment=null"], {"train.augment": None}),
    (["attack.target=3"], {"attack.target": 3}),
    (["dataset.target=3"], {}),  # it is what attacks follow, and a default of theirs
    (["defense=fst", "defense.lr=0.02"], {"defense.lr": 0.02}),
    (["defense=ft", "defense.epochs=20"], {}),  # what it is on this data set, though typed
    (["gates.asr_floor=0.2"], {"gates.asr_floor": 0.2}),
    (["train.precision=float32"], {}),  # what `auto` is, where a machine has nothing better
    (["detector=strip", "detector.overlays=5"], {"detector.overlays": 5}),
    (["curve.every=0", "control=off", "seed=3", "runtime.threads=1"], {}),  # which bear on no figure
]


@pytest.mark.parametrize(("words", "found"), BEYOND, ids=[" ".join(words) for words, _ in BEYOND])
def test_what_is_beyond_the_names(words: list[str], found: dict[str, object]) -> None:
    assert implied.beyond(compose(words)) == found


def test_an_option_that_is_not_ours_says_nothing() -> None:
    config = compose([])
    config["defense"] = {"_target_": "mine.Method", "name": "mine", "rate": 3}
    assert implied.beyond(config) == {}


SCORES = Scores(0.9, 0.9, 0.1, 100, 90)


def test_a_tables_head_and_its_notes_say_it() -> None:
    """All runs have one epoch, and a defense its own rate: nothing of this differs between rows, so no column tells it."""
    base = ["train.epochs=1", "dataset.train_size=400"]
    chosen = (["defense=fst", "defense.lr=0.02"], ["defense=ft"])
    runs = [
        made_run(f"{number}-{seed}", compose([*base, *words, f"seed={seed}"]), SCORES, SCORES)
        for number, words in enumerate(chosen)
        for seed in (0, 1)
    ]
    found = rows.aggregate(runs)
    (grid,) = grids.list_grids(found)
    assert grid.title == "dataset digits · model demo · dataset.train_size 400 · train.epochs 1 · rate 10 %"
    (pivot,) = grids.pivot_grids(found, ["attack"], ["defense"], ["asr"])
    assert "train.epochs 1" in pivot.title
    assert "not as their names imply: fst: lr 0.02" in notes.below(found, [], runs, [grid], ["asr"])


def test_what_differs_between_rows_is_told_once() -> None:
    runs = [
        made_run(str(epochs), compose(["defense=ft", f"train.epochs={epochs}"]), SCORES, SCORES) for epochs in (1, 20)
    ]
    titles = [grid.title for grid in grids.list_grids(rows.aggregate(runs))]
    assert titles == [
        "dataset digits · model demo · train.epochs 1 · rate 10 %",
        "dataset digits · model demo · train.epochs 20 · rate 10 %",
    ]


def test_a_setting_that_all_of_one_table_share_is_told_with_the_table() -> None:
    """No label tells it, since nothing differs there."""
    chosen = (["train.epochs=1"], ["train.epochs=1", "seed=1"], ["train.epochs=2", "defense.lr=0.02"])
    runs = [
        made_run(str(place), compose(["defense=fst", *words]), SCORES, SCORES) for place, words in enumerate(chosen)
    ]
    found = rows.aggregate(runs)
    assert [grid.lines[0][1].text for grid in grids.list_grids(found)] == ["fst", "fst"]
    assert notes.unusual(found) == ["fst: lr 0.02 (train.epochs 2)"]
