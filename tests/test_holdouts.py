"""What a defender has: kinds of holdouts, so many images a class, what records and tables say of them, and who refuses which."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from conftest import QUICK
from PIL import Image
from records import made_run

import backdoorbench as bb
from backdoorbench.attacks.base import DataAttack
from backdoorbench.cli.main import main
from backdoorbench.config.compose import Plain, compose
from backdoorbench.data.holdout import Holdout
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import BdxError, ConfigError, DataError, IdleError
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import job, outcome, plan
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting import grids, holdouts, notes, published, rows
from backdoorbench.storage import record
from backdoorbench.streams import Stream

SCORES = Scores(0.9, 0.9, 0.1, 100, 90)
KINDS: dict[str, list[str]] = {
    "reserved": [],
    "seen": ["holdout=backdoorbench"],
    "reserved test": ["holdout.split=test"],
}


def holdout(**changes: Any) -> Holdout:
    settings = {
        "name": "x",
        "kind": "reserved",
        "split": "train",
        "rate": 0.1,
        "per_class": None,
        "draw": "stratified",
        "root": None,
        "validate": 0.0,
    }
    return Holdout(**{**settings, **changes})  # type: ignore[arg-type]


def keys_of(images: ImageSet) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.images}


def images_of(counts: list[int]) -> ImageSet:
    """So many distinct images of each class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    pixels = torch.arange(len(labels), dtype=torch.int32).view(-1, 1).view(torch.uint8).view(-1, 4)[:, :3]
    return ImageSet(pixels.reshape(-1, 3, 1, 1).repeat(1, 1, 4, 4), labels, tuple(f"c{i}" for i in range(len(counts))))


# ---- so many images a class -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "split"), [("reserved", "train"), ("reserved", "test"), ("seen", "train")])
@pytest.mark.parametrize("draw", ["stratified", "uniform", "balanced"])
def test_so_many_of_each_class_whatever_the_draw_and_the_rate(kind: str, split: str, draw: str) -> None:
    train, test = images_of([30, 8, 12]), images_of([9, 40, 7])
    made = holdout(kind=kind, split=split, draw=draw, rate=0.0, per_class=6)
    parts = made.divide(train, test, Stream(0))
    assert parts.holdout is not None and parts.holdout.labels.bincount().tolist() == [6, 6, 6] and not made.is_empty
    assert parts.describe() == {"images": 18, "fewest": 6, "most": 6}
    assert len(parts.train) == (32 if (kind, split) == ("reserved", "train") else 50)
    assert len(parts.test_rows) == (38 if split == "test" else 56)
    other = made.divide(train, test, Stream(1)).holdout
    assert other is not None and not torch.equal(other.images, parts.holdout.images)


def test_a_class_with_too_few_images_is_named() -> None:
    said = (
        "holdout.per_class=12 asks for 12 images of each class, but class 1 ('c1') has 8 training images, of which one at least "
        "must be left, the fewest of 2 such classes. Set holdout.per_class=7 or less, say how many with holdout.rate, a share of "
        "all images, or give more images, with dataset.train_size."
    )
    train, test = images_of([30, 8, 12]), images_of([9, 40, 7])
    with pytest.raises(DataError) as caught:
        holdout(per_class=12).divide(train, test, Stream(0))
    assert str(caught.value) == said
    with pytest.raises(
        DataError, match=r"class 2 \('c2'\) has 7 test images, of which .* or give more images, with dataset.test_size"
    ):
        holdout(per_class=7, split="test").divide(train, test, Stream(0))
    assert holdout(per_class=7).divide(train, test, Stream(0)).holdout is not None
    assert (
        holdout(per_class=8, kind="seen").divide(train, test, Stream(0)).holdout is not None
    )  # which takes nothing away
    with pytest.raises(DataError, match=r"has 8 training images\. Set holdout.per_class=8 or less"):
        holdout(per_class=9, kind="seen").divide(train, test, Stream(0))
    with pytest.raises(
        DataError, match=r"\('c0'\) has 1 training images, of .*\. Leave holdout.per_class out, say how many"
    ):
        holdout(per_class=1).divide(images_of([1, 5]), test, Stream(0))
    with pytest.raises(ConfigError, match="holdout.per_class is 0; expected a number at least 1"):
        holdout(per_class=0)


@pytest.mark.parametrize(
    ("changes", "counts", "said"),
    [
        (
            {"rate": 0.1},
            [30, 1, 12],
            "holdout.rate=0.1 takes the only training image of class 1 ('c1'); expected one of each class at least to be left. Give "
            "that class more images, or take holdout.kind=seen, which takes nothing away.",
        ),
        (
            {"rate": 0.4, "draw": "balanced"},
            [60, 5, 4],
            "holdout.rate=0.4 takes all 5 training images of class 1 ('c1'), and all of 1 other class; expected one of each class "
            "at least to be left. Lower holdout.rate, give that class more images, or take holdout.kind=seen, which takes nothing "
            "away.",
        ),
        (
            {"rate": 0.1, "split": "test"},
            [30, 30, 40],
            "holdout.rate=0.1 takes the only test image of class 2 ('c2'); expected one of each class at least to be left. Give "
            "that class more images, or take holdout.split=train.",
        ),
    ],
    ids=["stratified", "balanced", "test"],
)
def test_no_class_is_left_without_an_image(changes: dict[str, Any], counts: list[int], said: str) -> None:
    """A victim that has never seen a class, or a test set without one, would have figures like any other."""
    train, test = images_of(counts), images_of([20, 20, 1])
    with pytest.raises(DataError) as caught:
        holdout(**changes).divide(train, test, Stream(0))
    assert str(caught.value) == said
    if changes.get("split") != "test":
        assert holdout(**changes, kind="seen").divide(train, test, Stream(0)).train is train


def test_a_share_and_a_number_a_class_are_not_given_together(tmp_path: Path) -> None:
    where = f"runtime.outputs={tmp_path}"
    with pytest.raises(
        IdleError, match="^holdout.rate is 0.1, and nothing reads it beside holdout.per_class=2: it acts only with "
    ):
        plan.sketch(compose([where, "holdout.per_class=2", "holdout.rate=0.1"]), plan.Shared())
    for words in (["holdout=fmp"], ["holdout=fst"], []):  # whose own rates nobody gave
        plan.sketch(compose([where, *words, "holdout.per_class=2"]), plan.Shared())


def test_a_rate_that_an_experiment_pins_gives_way_to_a_number_a_class() -> None:
    from backdoorbench.config import acts

    config = compose(["experiment=fst", "dataset=tiny_imagenet", "holdout.per_class=10"])
    assert config["holdout"]["rate"] == 0.05 != compose(["holdout=fst"])["holdout"]["rate"]
    acts.refuse_idle("holdout", acts.idle(Holdout, config["holdout"], "holdout"), config)


def test_the_public_function_withholds_so_many_a_class() -> None:
    clean = images_of([20, 10])
    train, held = bb.withhold(clean, per_class=4)
    assert held.labels.tolist() == [0] * 4 + [1] * 4 and len(train) == 22 and not keys_of(train) & keys_of(held)
    for wrong in ({}, {"rate": 0.1, "per_class": 4}):
        with pytest.raises(ConfigError, match="expected one of them: a share of the images, or so many of each class"):
            bb.withhold(clean, **wrong)  # type: ignore[arg-type]


# ---- kinds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
def test_what_is_seen_was_trained_on_and_what_is_reserved_was_not(words: list[str], tmp_path: Path) -> None:
    made = plan.plan(compose([f"runtime.outputs={tmp_path}", "attack=badnets", "dataset.train_size=400", *words]))
    assert made.parts.holdout is not None
    held, trained = keys_of(made.parts.holdout), keys_of(made.parts.train)
    assert (held <= trained) == (made.holdout.kind == "seen") and bool(held & trained) == (made.holdout.kind == "seen")
    kept = {"reserved": 380}.get("reserved" if made.holdout.changes_training else "", 400)
    assert len(made.parts.train) == kept and len(made.parts.holdout) == 20


def test_the_clean_original_of_a_poisoned_row_may_be_among_what_is_seen(tmp_path: Path) -> None:
    """As in BackdoorBench, which draws from the clean version of the whole training set."""
    words = [f"runtime.outputs={tmp_path}", "attack=badnets", "attack.poison_rate=0.5", "holdout=backdoorbench", *QUICK]
    made = plan.plan(compose(words))
    clean, attack, stream = made.parts.train, made.attack, Stream(0)
    assert isinstance(attack, DataAttack) and made.parts.holdout is not None
    poisoned = attack.choose(clean.labels, attack.make_target(10), stream)
    assert keys_of(made.parts.holdout) & keys_of(clean.subset(poisoned))  # clean images, with their own labels
    assert not keys_of(made.parts.holdout) <= keys_of(clean.subset(poisoned))


def test_infections_are_shared_by_all_holdouts_that_leave_the_training_set_alone(tmp_path: Path) -> None:
    def key(*words: str) -> str:
        return plan.sketch(compose([f"runtime.outputs={tmp_path}", *words]), plan.Shared()).infection_key

    whole = key("holdout.kind=seen")
    assert {key("holdout=fst"), key("holdout.split=test"), key("holdout.kind=seen", "holdout.per_class=3")} == {whole}
    assert len({whole, key(), key("holdout.per_class=3"), key("holdout.rate=0.1")}) == 4


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    """A data set of two classes, and beside it a folder of other images of both."""

    def draw(folder: Path, first: int, count: int) -> None:
        folder.mkdir(parents=True)
        for number in range(first, first + count):
            Image.new("RGB", (16, 16), (number % 256, number // 256, 7)).save(folder / f"{number}.png")

    for label, name in enumerate(("a", "b")):
        draw(tmp_path / "data" / "train" / name, 100 * label, 24)
        draw(tmp_path / "data" / "test" / name, 100 * label + 50, 6)
        draw(tmp_path / "clean" / name, 100 * label + 80, 4)
    yield tmp_path


def of_folders(place: Path, *words: str) -> Plain:
    given = [
        "dataset=folder",
        f"dataset.root={place / 'data'}",
        "dataset.size=16",
        "model=demo",
        "train=demo",
        "train.epochs=1",
    ]
    given += [
        f"runtime.outputs={place / 'out'}",
        "attack=badnets",
        "attack.poison_rate=0.2",
        "control=off",
        "curve.every=0",
    ]
    return compose([*given, "force=true", "runtime.threads=1", *words])


def test_a_foreign_holdout_is_all_that_lies_below_its_root(folders: Path) -> None:
    made = plan.plan(of_folders(folders, "holdout.kind=foreign", f"holdout.root={folders / 'clean'}"))
    assert made.parts.describe() == {"images": 8, "fewest": 4, "most": 4} and len(made.parts.train) == 48


def test_kind_and_root_agree(folders: Path) -> None:
    wrong: list[tuple[list[str], str]] = [
        (["holdout.kind=foreign"], "holdout.kind is foreign, but holdout.root is null; expected a folder with one sub-folder of clean "
         "images for each class. Set holdout.root=DIR."),
        ([f"holdout.root={folders / 'clean'}"], f"holdout.root is {folders / 'clean'}, and nothing reads it beside "
         "holdout.kind=reserved: it acts only with holdout.kind=foreign. Leave holdout.root out, or change holdout.kind."),
        (["holdout.kind=foreign", f"holdout.root={folders / 'data' / 'train'}"],
         "48 of the 48 holdout images are also training images, so that holdout.kind=foreign would be said of images that the "
         "infected model is trained on. Remove them from holdout.root, or take holdout.kind=seen, which draws from the training set."),
        (["holdout.kind=foreign", f"holdout.root={folders / 'data' / 'test'}"],
         "12 of the 12 holdout images are also test images; a defense must not see what it is judged by. Remove them from holdout.root, "
         "or take holdout.kind=reserved holdout.split=test, whose images leave the test set."),
    ]  # fmt: skip
    for words, said in wrong:
        with pytest.raises(BdxError) as caught:
            plan.plan(of_folders(folders, *words))
        assert str(caught.value) == said


TRAIN_READERS = [row for row in contract.rows() if row.name in ("pbe", "abl", "ac", "ss")]


@pytest.mark.wide
@pytest.mark.parametrize("row", TRAIN_READERS, ids=lambda row: row.name)
@pytest.mark.parametrize("words", list(KINDS.values())[1:], ids=list(KINDS)[1:])
def test_whoever_reads_the_training_set_gets_all_of_it(
    row: contract.Row, words: list[str], run: Callable[..., Job]
) -> None:
    """The mask that judges their choice is as long as the set that they see, whichever images the defender has."""
    found = run(*row.words, *words, "dataset.train_size=400", "train.epochs=1", "force=true", "curve.every=0").run
    stage = found.detection if row.group == "detector" else found.purification
    assert found.status == "done" and stage.name == row.name
    if row.group == "detector":
        assert stage.details["positives"] + stage.details["negatives"] == 400


@pytest.mark.wide
@pytest.mark.parametrize("row", TRAIN_READERS, ids=lambda row: row.name)
def test_whoever_reads_the_training_set_works_beside_foreign_images(row: contract.Row, folders: Path) -> None:
    quick = [word for word in row.words if word.startswith((f"{row.group}=", f"{row.group}."))]
    config = of_folders(folders, "holdout.kind=foreign", f"holdout.root={folders / 'clean'}", *quick)
    assert job.carry_out(config).run.status == "done"


# ---- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_a_record_says_the_kind_and_the_images_a_class(
    run: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(
        "attack=badnets",
        "defense=ft",
        "defense.epochs=1",
        "holdout.kind=seen",
        "holdout.per_class=3",
        *QUICK,
        "force=true",
    )
    written = json.loads((done.folder / "record.json").read_text())
    assert written["config"]["holdout"]["kind"] == "seen"
    (stage,) = (stage for stage in written["stages"] if stage["kind"] == "purify")
    assert stage["details"]["holdout"] == {"kind": "seen", "images": 30, "fewest": 3, "most": 3}
    assert " ft, holdout 3 a class, seen " in outcome.stage_line(done.run, "purify")
    done.run.purification.seconds |= {"purify": 4.0, "curve": 7.2}  # what a reader waits for is told
    assert outcome.stage_line(done.run, "purify").endswith("0:04, its curve 0:07")


def test_a_record_from_before_kinds_is_read(tmp_path: Path) -> None:
    for source, said in {
        "withheld": ("reserved", "train"),
        "train_overlap": ("seen", "train"),
        "test": ("reserved", "test"),
    }.items():
        config = compose(["defense=ft"])
        config["holdout"] = {"name": "standard", "rate": 0.05, "source": source, "draw": "stratified", "root": None}
        record.write(made_run("old", config, SCORES, SCORES), tmp_path)
        known = record.read(tmp_path).config["holdout"]
        assert (known["kind"], known["split"]) == said and "source" not in known
    config["holdout"]["source"] = "withheld"
    record.write(
        made_run("old", {**config, "holdout": {**compose([])["holdout"], **config["holdout"]}}, SCORES, SCORES),
        tmp_path,
    )
    new = made_run("new", compose(["defense=ft"]), SCORES, SCORES)
    assert len(rows.aggregate([record.read(tmp_path), new])) == 1  # one setting, called twice


def test_a_table_says_which_holdouts_its_methods_had() -> None:
    def table(*chosen: list[str]) -> tuple[str, list[str]]:
        runs = [made_run(str(number), compose(words), SCORES, SCORES) for number, words in enumerate(chosen)]
        found = rows.aggregate(runs)
        laid = grids.list_grids(found)
        return laid[0].title, [
            line for line in notes.below(found, [], runs, laid, ["asr"]) if line.startswith("holdout")
        ]

    assert table(["defense=ft"]) == (
        "dataset digits · model demo · rate 10 %", ["holdout: 5 %, reserved (the infected model never saw it)"],
    )  # fmt: skip
    assert table(["defense=ft", "holdout=backdoorbench"]) == (
        "dataset digits · model demo · holdout backdoorbench · rate 10 %",
        ["holdout: 5 %, seen (the infected model was trained on it too)"],
    )
    title, (said,) = table(["defense=ft", "holdout.per_class=10", "holdout.kind=seen"])
    assert "holdout.kind seen" in title and "holdout.per_class 10" in title
    assert said == "holdout: 10 a class, seen (the infected model was trained on it too)"
    _, (said,) = table(["defense=ft"], ["defense=ft", "holdout.kind=foreign", "holdout.root=/clean"])
    assert said == "holdout: 5 %, reserved (the infected model never saw it); foreign (images from elsewhere)"
    assert table(["defense=none"])[1] == []  # which has none


def test_a_number_a_class_is_no_published_share() -> None:
    assert holdouts.share(compose([])["holdout"]) == "5"
    assert holdouts.share(compose(["holdout.per_class=10"])["holdout"]) is None
    assert holdouts.share(compose(["holdout.kind=foreign", "holdout.root=/clean"])["holdout"]) is None
    assert published.share is holdouts.share


def test_the_former_name_is_told_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["holdout.source=train_overlap"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "holdout.source is now called holdout.kind: withheld is holdout.kind=reserved, train_overlap is holdout.kind=seen"
        in said
    )
