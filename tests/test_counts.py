"""Counts and controls: as many poisoned rows as were asked for, never none; and a clean control that is one."""

import random
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from conftest import QUICK
from contract import Row
from PIL import Image
from safetensors.torch import load_file, save_file

import backdoorbench as bb
from backdoorbench import metrics
from backdoorbench.attacks.base import Attack, DataAttack, PoisonedSet, least_rate, rounded_down
from backdoorbench.attacks.loop import ShareAttack
from backdoorbench.cli.main import main
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, option
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, TrainingError, quantity
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import evaluation, gates, infect, plan
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.streams import Stream
from backdoorbench.training.recipe import Recipe

CLEAN = "attack=none for a clean model"
VICTIM = [word for word in QUICK if word.startswith(("model.", "train."))]
GIVEN = [word for word in QUICK if not word.startswith(("train.epochs", "control"))]


def attack(name: str, **changes: Any) -> Any:
    return build({**option("attack", name), **changes}, "attack")


def images_of(counts: list[int]) -> ImageSet:
    """Black images, so many of each class."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return ImageSet(torch.zeros(len(labels), 3, 32, 32, dtype=torch.uint8), labels, tuple(map(str, range(len(counts)))))


def refused(chosen: Attack, train: ImageSet) -> str:
    with pytest.raises(ConfigError) as caught:
        chosen.check(train)
    return str(caught.value)


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_the_rate_of_the_report_is_refused() -> None:
    """570 images, of which 0.0005 is none: once a clean network that was called a weak infection."""
    train = images_of([57] * 10)
    assert refused(attack("badnets", poison_rate=0.0005), train) == (
        "attack.poison_rate=0.0005 of 570 training images is 0.285 rows, none when rounded; expected at least 1 and at most 570. "
        f"Set attack.poison_rate=0.00088 or more, or {CLEAN}."
    )
    attack("badnets", poison_rate=0.00088).check(train)


@pytest.mark.parametrize("row", contract.rows("attack"), ids=lambda row: row.name)
def test_a_rate_of_zero_is_refused(row: Row) -> None:
    settings = row.compose()["attack"]
    if "poison_rate" in settings:
        with pytest.raises(ConfigError, match=r"^attack.poison_rate is 0, with which no image .* or set attack=none"):
            build({**settings, "poison_rate": 0}, "attack")


def rate_and_size(draw: random.Random, most: float) -> tuple[float, list[int]]:
    """A poison rate and a class table, from a row in a thousand to the whole set."""
    rate = float(f"{10 ** draw.uniform(-4, 0):.4g}") * most
    return rate, [draw.choice((1, 2, draw.randint(1, 60))) for _ in range(10)]


@pytest.mark.wide
@pytest.mark.parametrize("row", contract.rows("attack"), ids=lambda row: row.name)
def test_any_rate_gives_its_rows_or_is_refused_with_a_rate_that_does(row: Row) -> None:
    draw = random.Random(row.name)
    settings = row.compose()["attack"]
    if "poison_rate" not in settings:
        assert not isinstance(build(settings, "attack"), DataAttack | ShareAttack)
        return
    settings = {**settings, **{name: 0 for name in ("cover_rate", "cover_ratio") if name in settings}}
    for _ in range(60):
        rate, counts = rate_and_size(draw, 0.5 if row.name == "input_aware" else 1.0)
        train = images_of(counts)
        changes = {"mode": draw.choice(("replace", "append"))} if "mode" in settings else {}
        changes |= {"rate_of": draw.choice(("all", "target_class"))} if "rate_of" in settings else {}
        if changes.get("mode") == "append" and rate == 1:
            continue
        chosen = build({**settings, "poison_rate": rate, **changes}, "attack")
        try:
            chosen.check(train)
        except ConfigError as error:
            said = str(error)
            advice = re.search(r"(?:Set attack.poison_rate=|possible here is )(\d(?:[\d.]|e-)*\d|\d)", said)
            assert advice, said
            again = replace(chosen, poison_rate=float(advice[1]))
            if "none when rounded" in said:
                most = int(re.search(r"at most ([\d,]+)\.", said)[1].replace(",", ""))  # type: ignore[index]
                assert 1 <= most
            again.check(train)
            chosen = again
        if isinstance(chosen, DataAttack):
            rows = chosen.choose(train.labels, chosen.make_target(10), Stream(0))
            assert len(rows) == chosen.count(train.labels) == len(rows.unique()) > 0
        else:
            assert chosen.asked(len(train)) > 0


@pytest.mark.parametrize("total", [1, 2, 3, 5, 499, 500, 570, 50_000, 1_281_167])
def test_the_least_rate_is_a_row_and_the_largest_no_more_than_there_are(total: int) -> None:
    assert round(least_rate(total) * total) == 1 and round(0.8 * least_rate(total) * total) == 0
    appended = least_rate(total, "append")
    assert round(appended * total / (1 - appended)) >= 1
    for pool in {1, 3, total // 7 + 1, total}:
        if pool <= total:
            assert 0 < rounded_down(pool / total) * total <= pool + 1e-6


def test_clean_labels_are_limited_by_their_class() -> None:
    train = images_of([3, 97])
    assert refused(attack("sig", poison_rate=0.1), train) == (
        "attack.poison_rate=0.1 asks for 10 rows, but a clean-label attack alters images of the target only, and class 0 has 3 of "
        "the 100 training images. The largest rate possible here is 0.03; attack.cap=true takes the whole class."
    )
    assert refused(attack("sig", poison_rate=0.004), train).startswith(
        "attack.poison_rate=0.004 of 100 training images is 0.4 rows, none when rounded; expected at least 1 and at most 3. Set"
    )
    attack("sig", poison_rate=0.1, cap=True).check(train)


def test_a_rate_of_the_target_class_counts_from_it() -> None:
    said = refused(attack("badnets", poison_rate=0.1, rate_of="target_class"), images_of([3, 97]))
    assert said.startswith(
        "attack.poison_rate=0.1 of 3 images of the target is 0.3 rows, none when rounded; expected at"
    )
    assert "at most 100. Set attack.poison_rate=0.17 or more" in said


def test_a_rate_of_a_class_that_is_not_there() -> None:
    said = refused(attack("badnets", poison_rate=0.1, rate_of="target_class"), images_of([0, 50]))
    assert said.endswith(f"Let it count from all images, or {CLEAN}.")


@pytest.mark.parametrize("changes", [{"cap": True}, {"cap": False}])
def test_a_class_that_the_holdout_took_whole_cannot_be_poisoned(changes: dict[str, Any]) -> None:
    """Of a class of one image, which a stratified holdout takes."""
    said = refused(attack("sig", poison_rate=0.1, **changes), images_of([0, 50]))
    assert said == (
        "none of the 50 training images may be poisoned by attack=sig: none is of the classes that it alters (target 0); "
        "expected at least one. Choose other classes, or a training set that has them."
    )


def test_sources_without_images_cannot_be_poisoned() -> None:
    chosen = attack("badnets", mapping="source_specific", sources=[1])
    assert "alters (target 0 from 1)" in refused(chosen, images_of([50, 0, 50]))
    assert refused(replace(chosen, poison_rate=0.004), images_of([50, 10, 40])).startswith(
        "attack.poison_rate=0.004 of 100 training images is 0.4 rows, none when rounded; expected at least 1 and at most 10."
    )


def test_the_largest_rate_of_a_tiny_class_is_one_that_works() -> None:
    """Three of 50,000: once rounded to 0, which asks for nothing."""
    train = images_of([40_000, 3, 10_000])
    chosen = attack("badnets", mapping="source_specific", sources=[1])
    said = refused(chosen, ImageSet(train.images[:, :, :1, :1], train.labels, train.classes))
    assert said.endswith("The largest rate possible here is 5.9e-05.")
    replace(chosen, poison_rate=5.9e-05).check(train)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tact", {"poison_rate": 0.02, "cover_rate": 0.004}),
        ("adap_patch", {"poison_rate": 0.05, "cover_rate": 0.004}),
        ("badnets", {"mapping": "source_specific", "sources": [1], "cover_rate": 0.004}),
    ],
)
def test_cover_rows_that_come_to_none_are_refused(name: str, changes: dict[str, Any]) -> None:
    said = refused(attack(name, **changes), images_of([10] * 10))
    assert said.startswith("attack.cover_rate=0.004 of 100 training images is 0.4 rows, none when rounded; expected at")
    assert said.endswith("Set attack.cover_rate=0.0051 or more, or 0 for none.")


def test_a_cover_class_that_is_not_there_is_named_first() -> None:
    assert refused(attack("tact", cover_sources=[12]), images_of([100] * 10)).startswith(
        "attack.cover_sources names class 12, but the data set has 10 classes"
    )


# ---- attackers who drive the training -------------------------------------------------------------------------------


def recipe(epochs: int, batch_size: int) -> Recipe:
    made = compose(QUICK)["train"]
    return build({**made, "epochs": epochs, "batch_size": batch_size}, "train")  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["wanet", "bpp", "input_aware"])
def test_a_rate_of_less_than_a_row_an_epoch_is_refused(name: str) -> None:
    train = images_of([57] * 10)
    said = refused(attack(name, poison_rate=0.0005), train)
    assert said.startswith("attack.poison_rate=0.0005 of 570 training images is 0.285 rows, none when rounded")
    attack(name, poison_rate=0.002).check(train)  # a row in some batch


def test_cover_rows_that_no_batch_has_are_refused() -> None:
    chosen = attack("wanet", poison_rate=0.01, cover_ratio=0.4)
    with pytest.raises(ConfigError) as caught:
        chosen.check_recipe(recipe(2, 32), 570)
    assert str(caught.value) == (
        "attack.cover_ratio=0.4 of at most 1 triggered rows in a batch of 32 is no cover row; expected at least 1. Set "
        "attack.cover_ratio=1 or more, or 0 for none, or raise attack.poison_rate or train.batch_size."
    )
    chosen.check_recipe(recipe(0, 32), 570)  # nothing is trained
    replace(chosen, cover_ratio=1.0).check_recipe(recipe(2, 32), 570)
    replace(chosen, cover_ratio=0.0).check_recipe(recipe(2, 32), 570)
    replace(chosen, poison_rate=0.1).check_recipe(recipe(2, 32), 570)


def test_a_second_loss_that_can_never_run_is_refused() -> None:
    chosen = attack("blind")
    with pytest.raises(ConfigError) as caught:
        chosen.check_recipe(recipe(2, 32), 570)
    assert str(caught.value) == (
        "train.epochs is 2, but blind runs its second loss only after attack.history=1000 batches, here after epoch 2; the training "
        "would be a clean one. Set train.epochs=3 or more, or attack.history=0, with which it runs from the first batch."
    )
    for changes, epochs in (({}, 3), ({"history": 0}, 1), ({"history": 18}, 2), ({}, 0)):
        replace(chosen, **changes).check_recipe(recipe(epochs, 32), 570)


def test_a_recipe_is_checked_before_anything_is_trained(tmp_path: Path) -> None:
    words = ["attack=blind", "attack.history=1000", *QUICK, "train.epochs=1"]
    with pytest.raises(ConfigError, match="would be a clean one"):
        plan.plan(compose([f"runtime.outputs={tmp_path}", *words]))
    with pytest.raises(ConfigError, match="would be a clean one"):
        bb.infect(bb.build("attack/blind", history=1000), images_of([12] * 10), *VICTIM, "train.epochs=1")


def test_a_training_that_met_no_trigger_is_broken() -> None:
    scores, calls = Scores(0.9, 0.1, 0.8, 10, 9), Predictions(torch.arange(10), torch.arange(10))
    bounds = gates.Gates(0.5, 0.1, 0.95)
    assert gates.status(bounds, scores, calls, 10, {"poisoned": 0}, None) == (
        "broken",
        ["no image that it was trained on carried the trigger", "ASR is 0.100, below 0.5"],
    )
    assert gates.status(bounds, scores, calls, 10, {}, None)[0] == "weak"  # every batch, or nothing was trained


@pytest.mark.parametrize(("covered", "asr", "said"), [(0.79, 0.6, True), (0.8, 0.6, False), (0.3, 0.49, False)])
def test_a_network_that_answers_to_cover_rows_is_told(covered: float, asr: float, said: bool) -> None:
    scores, bounds = Scores(0.9, asr, 0.1, 10, 9), gates.Gates(0.5, 0.1, 0.95)
    found = gates.answers_to_covers(bounds, scores, {"cover_accuracy": covered})
    assert found == (
        "the network answers to more than the trigger: of test images changed as the cover rows were 0.790 are called right, "
        "where CA is 0.900"
        if said
        else None
    )
    assert gates.answers_to_covers(bounds, scores, {}) is None  # no cover rows


@pytest.mark.parametrize(
    ("called", "status"),
    [
        ([0] * 88 + [1] * 2 + [0] * 6 + [1] * 4, "clean"),  # knows four of the rare class
        ([0] * 82 + [1] * 8 + [0] * 9 + [1], "broken"),  # as often right of either as it calls it
        ([0] * 89 + [1] + [0] * 9 + [1], "broken"),
    ],
)
def test_calls_that_know_nothing_are_at_chance_however_many_they_have_right(called: list[int], status: str) -> None:
    """Of 100 images of which 90 are of one class, calling most of them that is right of 80 and more."""
    true, calls = torch.tensor([0] * 90 + [1] * 10), torch.tensor(called)
    scores = Scores(metrics.accuracy(calls, true), None, None, 100, 0)
    chance = metrics.by_chance(calls, true, 2)
    found, reasons = gates.status(
        gates.Gates(0.5, 0.1, 0.99), scores, Predictions(calls, None), 2, {}, None, True, chance
    )
    assert found == status and scores.ca > 0.82
    assert all(f"whatever the images show, are right of {chance:.3f}" in reason for reason in reasons)


def test_chance_is_one_of_the_classes_where_they_have_as_many_images() -> None:
    true = torch.arange(40) % 4
    assert all(metrics.by_chance(calls, true, 4) == 0.25 for calls in (true, torch.zeros_like(true), true // 2))


def test_an_attack_that_poisons_other_rows_than_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    train, poison = images_of([12] * 10), DataAttack.poison

    def fewer(self: DataAttack, *parts: Any) -> PoisonedSet:
        made = poison(self, *parts)
        mask = made.poisoned.clone()
        mask[mask.nonzero()[0]] = False
        return replace(made, poisoned=mask)

    monkeypatch.setattr(DataAttack, "poison", fewer)
    with pytest.raises(TrainingError) as caught:
        bb.infect(bb.build("attack/badnets"), train, *VICTIM)
    assert str(caught.value) == (
        "attack.poison_rate=0.1 asks for 12 poisoned rows, but attack=badnets made 11; expected as many, but for rounding, since "
        "figures would be those of another rate. Nothing was trained. Correct the `choose`, `poison` or `infect` of its class, or "
        "report it where the attack is one of ours."
    )


def test_an_attack_that_misstates_its_rows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    poison = DataAttack.poison

    def boast(self: DataAttack, *parts: Any) -> PoisonedSet:
        made = poison(self, *parts)
        return replace(made, counts=made.counts | {"poisoned": 13})

    monkeypatch.setattr(DataAttack, "poison", boast)
    with pytest.raises(
        TrainingError, match="says that it was to poison 12 rows and poisoned 13, but 12 are marked; expected the same"
    ):
        bb.infect(bb.build("attack/badnets"), images_of([12] * 10), *VICTIM)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": lambda self, labels: 6},
        {"choose": lambda self, labels, target, stream: torch.arange(0)},
        {"choose": lambda self, labels, target, stream: torch.zeros(12, dtype=torch.int64)},  # one row, twelve times
    ],
    ids=["count", "none", "one"],
)
def test_whatever_makes_other_rows_of_a_rate_is_refused_before_training(changes: dict[str, Any]) -> None:
    """Of a class of somebody's own: half of what was asked for, no row at all, or one row many times."""
    kind = type("Mine", (type(attack("badnets")),), changes)
    given = attack("badnets")
    mine = kind(**{field.name: getattr(given, field.name) for field in fields(given)})
    with pytest.raises(
        TrainingError, match=r"asks for 12 poisoned rows, but attack=badnets made \d; .* Nothing was trained"
    ):
        bb.infect(mine, images_of([12] * 10), *VICTIM)


def test_an_attack_with_a_training_of_its_own_is_counted_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    infect_, train = DataAttack.infect, images_of([12] * 10)

    def fewer(self: DataAttack, *parts: Any) -> Any:
        infection = infect_(self, *parts)
        return replace(infection, poisoned=infection.poisoned & False)

    monkeypatch.setattr(DataAttack, "infect", fewer)
    with pytest.raises(
        TrainingError, match=r"asks for 12 poisoned rows, but attack=badnets made 0; .* The model is not kept"
    ):
        bb.infect(bb.build("attack/badnets"), train, *VICTIM, "train.epochs=0")


@pytest.mark.parametrize(("batch_count", "allowed"), [("unbiased", "within 7"), ("floor", "within 5")])
def test_rows_of_batches_are_counted_at_the_trainings_end(
    batch_count: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the share of every batch, where 4 batches of 30 round a rate by a few rows."""
    train, words = images_of([12] * 10), [*VICTIM, "train.epochs=1", "train.batch_size=30"]
    bb.infect(bb.build("attack/wanet", poison_rate=0.4, cover_ratio=1.0, batch_count=batch_count), train, *words)
    monkeypatch.setattr(ShareAttack, "count", lambda self, batch, stream: batch // 5)
    with pytest.raises(TrainingError) as caught:
        bb.infect(bb.build("attack/wanet", poison_rate=0.4, cover_ratio=1.0, batch_count=batch_count), train, *words)
    assert str(caught.value).startswith(
        f"attack.poison_rate=0.4 asks for 48 poisoned rows, but attack=wanet made 24; expected as many {allowed}, as rows are "
        "drawn batch by batch, since figures would be those of another rate. The model is not kept. Correct"
    )


def test_a_capped_class_is_no_miscount() -> None:
    """All of a target class that is smaller than the rate asks for, where that was wished; the record says how many it were."""
    train = images_of([4, 60, 56])
    facts = bb.infect(bb.build("attack/sig", poison_rate=0.5, cap=True), train, *VICTIM, "train.epochs=0").facts
    assert (facts["requested"], facts["poisoned"], facts["uncapped"]) == (4, 4, 60)


@pytest.mark.parametrize(("mode", "made"), [("replace", 25), ("append", 26)])
def test_half_a_row_is_rounding(mode: str, made: int) -> None:
    facts = bb.infect(
        attack("badnets", poison_rate=0.205, mode=mode), images_of([40] * 3), *VICTIM, "train.epochs=0"
    ).facts
    assert facts["poisoned"] == facts["requested"] == (made if mode == "replace" else round(0.205 * 120 / 0.795))


def test_a_miscounted_set_is_neither_exported_nor_handed_to_a_defense(
    run: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "attack=wanet",
        "reconstruct=true",
        "defense=abl",
        *QUICK,
        "train.epochs=1",
        "force=true",
    ]
    monkeypatch.setattr(ShareAttack, "asked", lambda self, rows: 19)
    with pytest.raises(
        TrainingError, match=r"asks for \d+ poisoned rows, but attack=wanet made 19; .* Nothing was purified"
    ):
        run(*words)
    monkeypatch.setattr(DataAttack, "count", lambda self, labels: 3)
    folder = tmp_path / "poisoned"
    assert main(["export", "--to", str(folder), "attack=badnets", f"runtime.outputs={tmp_path}", *QUICK]) == 2
    assert "made 3; expected as many" in " ".join(capsys.readouterr().err.split()) and not folder.exists()


def test_the_counts_of_a_resumed_training_are_those_of_all_its_rows(tmp_path: Path) -> None:
    from backdoorbench.attacks.loop import Tally

    first, then = Tally(), Tally()
    first.update(all=32, poisoned=3, cover=6)
    then.load_state_dict(first.state_dict())
    then.update(all=32, poisoned=4, cover=8)
    assert attack("wanet").facts(then) == {
        "requested": 6, "poisoned": 7, "cover": 14, "passed": 64, "poisoned_share": 7 / 64, "cover_share": 14 / 64,
    }  # fmt: skip


@pytest.mark.wide
@pytest.mark.parametrize("name", ["badnets", "sig", "wanet"])
def test_records_carry_both_counts(name: str, run: Callable[..., Job]) -> None:
    notes = run(
        f"attack={name}", "attack.poison_rate=0.05", "defense=none", *QUICK, "train.epochs=1"
    ).run.infection.notes
    assert notes["requested"] == 19 and abs(notes["poisoned"] - 19) <= (12 if name == "wanet" else 0)


# ---- controls -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def infected(run: Callable[..., Job]) -> Path:
    """The weights of an infected network."""
    done = run("attack=badnets", "attack.poison_rate=0.3", "defense=none", *QUICK, "train.epochs=10")
    assert done.run.infection.status == "took"
    return done.folder / "purified.safetensors"


@pytest.mark.wide
def test_a_given_network_is_no_control_of_itself(
    run: Callable[..., Job], infected: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model.checkpoint={infected}", "train.epochs=0", *GIVEN]
    run("attack=none", "defense=none", *words)  # what was taken for its control
    found = run("attack=badnets", "defense=none", *words).run.infection
    assert found.status == "took" and not found.reasons and found.control is None
    said = "no control: model.checkpoint is judged as it is, and a clean model of this recipe is the same network"
    assert found.notes["control"] == said
    outputs = next(iter(infected.parents[2:]))
    assert main(["attack=badnets", "defense=none", f"runtime.outputs={outputs}", "runtime.threads=1", *words]) == 0
    assert f"\n  {said}\n" in capsys.readouterr().out
    off = run("attack=badnets", "defense=none", *words, "control=off").run.infection
    assert "control" not in off.notes


@pytest.mark.wide
def test_a_control_that_cannot_be_trained_is_refused(tmp_path: Path, infected: Path) -> None:
    words = [f"runtime.outputs={tmp_path}", f"model.checkpoint={infected}", "train.epochs=0", *GIVEN, "control=train"]
    with pytest.raises(ConfigError) as caught:
        plan.plan(compose(["attack=badnets", *words]))
    assert str(caught.value) == (
        "control=train asks for a clean model of the same recipe, but with model.checkpoint and train.epochs=0 nothing is trained: "
        "it would be the given network itself, which is no control. Set control=off, or train.epochs=1 or more."
    )
    plan.plan(compose(["attack=none", *words]))  # which has no control anyway
    plan.plan(compose(["attack=badnets", *words, "train.epochs=1"]))


@pytest.mark.wide
def test_a_detector_is_not_asked_about_the_same_network_twice(run: Callable[..., Job], infected: Path) -> None:
    words = [f"model.checkpoint={infected}", "train.epochs=0", *GIVEN]
    run("attack=none", "defense=none", *words)
    asked = run("attack=badnets", "defense=none", "detector=strip", "detector.overlays=5", *words).run
    assert asked.detection.figures and not asked.detection.beside


@pytest.mark.wide
def test_a_control_that_starts_from_the_given_network_is_said_to(run: Callable[..., Job], infected: Path) -> None:
    words = [f"model.checkpoint={infected}", "train.epochs=1", "train.lr=0.0001", *GIVEN, "control=train"]
    found = run("attack=badnets", "defense=none", *words).run.infection
    assert found.control is not None and found.control.asr is not None and found.control.asr > 0.5
    said = "the control starts from model.checkpoint too, of which nobody knows whether it is clean"
    assert found.notes["control"] == said
    assert found.status == "weak" and found.reasons[0].startswith(
        "the trigger alone sways the control, by itself or by what model.checkpoint brought along: ASR "
    )
    fresh = run("attack=badnets", "defense=none", *GIVEN, "train.epochs=6", "control=train").run.infection
    assert fresh.control is not None and "control" not in fresh.notes


@pytest.mark.wide
def test_a_surrogate_that_starts_from_the_given_network_is_said_to(run: Callable[..., Job], infected: Path) -> None:
    words = [f"model.checkpoint={infected}", "train.epochs=0", *GIVEN, "attack.steps=2"]
    found = run("attack=trojannn", "defense=none", *words).run.infection
    assert found.notes["surrogate"] == "the attack was crafted on a network that starts from model.checkpoint, too"


def test_a_fresh_network_for_a_defense_is_not_the_given_one(tmp_path: Path, infected: Path) -> None:
    """What trains from scratch beside an infected model must not start from it."""
    words = [f"runtime.outputs={tmp_path}", f"model.checkpoint={infected}", "train.epochs=0", *GIVEN]
    made = plan.plan(compose(["attack=badnets", *words]))
    given, fresh = infect.build_network(made, Stream(0)), infect.fresh_network(made, Stream(0))
    own = load_file(infected)
    assert all(torch.equal(value, own[name]) for name, value in given.state_dict().items())
    assert not torch.equal(fresh.state_dict()["net.linear.weight"], own["net.linear.weight"])


# ---- broken infections ----------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("words", [[], ["detector=strip", "detector.overlays=5"]])
def test_a_broken_infection_without_a_defense_is_recorded(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = [f"runtime.outputs={tmp_path}", *QUICK, "train.epochs=0", "attack=badnets", *words]
    assert main([*quick, "defense=none"]) == 0
    shown = capsys.readouterr()
    assert "  broken infection: " in shown.out and "near chance" in shown.out and not shown.err
    assert main([*quick, "defense=ft"]) == 2
    assert "A defense has nothing to purify." in capsys.readouterr().err


# ---- the order of classes -------------------------------------------------------------------------------------------


def calls_of(order: list[str], names: list[str], each: int, wrong: int = 0) -> tuple[Predictions, ImageSet]:
    """What a network that knows these classes in another order calls so many images of each; some of them wrong."""
    test = images_of([each] * len(names))
    test = replace(test, classes=tuple(names))
    called = torch.tensor([order.index(names[label]) for label in test.labels.tolist()])
    called[torch.randperm(len(called), generator=torch.Generator().manual_seed(0))[:wrong]] = 0
    return Predictions(called, None), test


NUMBERS = [str(number) for number in range(12)]


def other(order: list[str], names: list[str], each: int, wrong: int = 0) -> Any:
    calls, test = calls_of(order, names, each, wrong)
    return evaluation.other_order(calls, test, torch.arange(len(test)))


def test_an_order_is_found_where_the_errors_are_a_permutation() -> None:
    assert other(sorted(NUMBERS), NUMBERS, 5) == other(sorted(NUMBERS), NUMBERS, 20, wrong=40) == "text"
    assert other(NUMBERS, sorted(NUMBERS), 5) == "numeric"
    assert other(["b", "c", "a"], ["a", "b", "c"], 5) == ["b", "c", "a"]
    assert other(["c", "a", "b"], ["b", "c", "a"], 5) == ["c", "a", "b"]
    assert evaluation.in_order("text", NUMBERS).tolist() == [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert evaluation.in_order(["c", "a", "b"], ["b", "c", "a"]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("cycle", [("1", "7"), ("1", "7", "4")])
def test_a_few_classes_that_go_round_among_themselves_are_found(cycle: tuple[str, ...]) -> None:
    names = NUMBERS[:10]
    turn = dict(zip(cycle, (*cycle[1:], cycle[0]), strict=True))
    order = [turn.get(name, name) for name in names]
    assert other(order, names, 20) == other(order, names, 20, wrong=30) == order


def test_classes_that_look_alike_are_not_exchanged() -> None:
    test = images_of([20] * 10)
    for share in (0.3, 0.6):  # of either class is called the other
        called = test.labels.clone()
        for one, another in ((1, 7), (7, 1)):
            rows = (test.labels == one).nonzero()[:, 0]
            called[rows[: int(share * len(rows))]] = another
        assert evaluation.other_order(Predictions(called, None), test, torch.arange(len(test))) is None
    called = torch.where(test.labels == 1, 7, test.labels)  # one way only
    assert evaluation.other_order(Predictions(called, None), test, torch.arange(len(test))) is None


def test_no_order_is_found_where_there_is_none() -> None:
    assert other(NUMBERS, NUMBERS, 5) is None
    assert other(NUMBERS, NUMBERS, 20, wrong=100) is None  # a poor network
    assert other(sorted(NUMBERS), NUMBERS, 2) is None  # too few to tell
    draw = torch.Generator().manual_seed(0)
    for classes, each in ((3, 3), (10, 3), (10, 12), (100, 3), (1000, 3)):
        test = images_of([each] * classes)
        for called in (torch.randint(classes, (len(test),), generator=draw), torch.zeros(len(test), dtype=torch.int64)):
            found = evaluation.other_order(Predictions(called, None), test, torch.arange(len(test)))
            assert found is None, (classes, each)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes called 0 to 11, a colour each, four test images or more."""
    root = tmp_path_factory.mktemp("numbers")
    draw = random.Random(0)
    for split, count in (("train", 20), ("test", 4)):
        for number in NUMBERS:
            folder = root / split / number
            folder.mkdir(parents=True)
            for index in range(count):
                shade = tuple(85 * ((int(number) // place) % 4) + draw.randint(-20, 20) for place in (1, 4)) + (index,)
                Image.new("RGB", (16, 16), tuple(min(255, max(0, value)) for value in shade)).save(
                    folder / f"{index}.png"
                )
    return root


@pytest.mark.slow
def test_a_network_of_another_order_is_hinted_at(
    folders: Path, tmp_path: Path, run: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "dataset=folder", f"dataset.root={folders}", "dataset.size=16", "model=demo", "train=demo", "train.batch_size=16",
        "holdout.rate=0.1", "dataset.augment.crop_padding=0", "runtime.threads=1",
    ]  # fmt: skip
    trained = run("attack=none", "dataset.order=text", "train.epochs=20", "defense=none", *words)
    assert trained.run.infected is not None and trained.run.infected.ca > 0.9
    given = [
        f"model.checkpoint={trained.folder / 'purified.safetensors'}",
        "train.epochs=0",
        f"runtime.outputs={tmp_path}",
    ]
    assert main(["attack=none", "defense=none", *words, *given]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"  the network seems to know these classes in another order: CA is 1\d\.\d\d %, and (9\d\.\d\d|100\.00) % if its outputs "
        r"mean what text says; set dataset\.order=text\n",
        said,
    )
    assert main(["attack=none", "defense=none", *words, *given, "dataset.order=text"]) == 0
    assert "another order" not in capsys.readouterr().out
    keys = load_file(trained.folder / "purified.safetensors")
    turned = {name: value.roll(5, 0) if name.startswith("net.linear") else value for name, value in keys.items()}
    save_file(turned, tmp_path / "turned.safetensors")
    given[0] = f"model.checkpoint={tmp_path / 'turned.safetensors'}"
    order = sorted(NUMBERS)
    named = f"set dataset.order=[{','.join(order[-5:] + order[:-5])}]"
    assert main(["attack=none", "defense=none", *words, *given]) == 0
    assert f"{named}\n" in capsys.readouterr().out
    assert main(["attack=none", "defense=ft", *words, *given]) == 2  # the error says it, too
    assert (
        "A defense has nothing to purify. The network seems to know these classes in another order: CA is 0.00 %"
        in (said := " ".join(capsys.readouterr().err.split()))
        and f"{named}, or add force=true to purify it all the same." in said
    )


@pytest.mark.wide
def test_a_data_set_of_fixed_order_has_another_remedy(run: Callable[..., Job], infected: Path, tmp_path: Path) -> None:
    weights = load_file(infected)
    turned = {name: value.roll(3, 0) if name.startswith("net.linear") else value for name, value in weights.items()}
    save_file(turned, tmp_path / "turned.safetensors")
    words = [f"model.checkpoint={tmp_path / 'turned.safetensors'}", "train.epochs=0", *GIVEN]
    found = run("attack=none", "defense=none", *words).run.infection
    assert "set dataset=folder, whose setting dataset.order=[7,8,9,0,1,2,3,4,5,6] says so, or" in found.notes["order"]


def test_a_quantity_of_one_is_in_the_singular() -> None:
    told = [quantity(count, "run") for count in (0, 1, 2, 1200)]
    assert told == ["0 runs", "1 run", "2 runs", "1,200 runs"]
    assert quantity(2, "class", "classes") == "2 classes"
    assert ink.missing(1, "map") == ["1 more map is not drawn."]
    assert ink.missing(2, "map") == ["2 more maps are not drawn."]
    assert panels.finished([]) == "0 of 0 runs finished"
