"""The stage of a detector: what it is asked, what it may not see, how its verdict is judged, and that it costs a model once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK
from PIL import Image
from test_defenses import reachable

from backdoorbench import metrics
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.detectors.base import Reversed, Verdict
from backdoorbench.detectors.none import NoDetector
from backdoorbench.errors import PairingError
from backdoorbench.pipeline import detect, outcome, plan
from backdoorbench.pipeline.job import Job
from backdoorbench.storage import record
from backdoorbench.triggers.base import AllToAll, AllToOne

NC = ("detector=nc", "detector.units=2")
STRIP = ("detector=strip", "detector.overlays=5")


@pytest.mark.wide
def test_a_verdict_is_a_stage_of_the_record(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", "detector=ss", *QUICK, "seed=11")  # which nobody else that shares the cache asks about
    read = record.read(done.folder)
    assert [stage.kind for stage in read.stages] == ["infect", "detect", "purify"]
    found = read.detection
    assert found.name == "ss" and found.cached is False and found.seconds["detect"] > 0
    assert set(found.figures) == {"auroc", "tpr_1", "tpr_5", "tpr_10", "tpr", "fpr", "precision"}
    assert found.details["positives"] == 38 and found.details["negatives"] == 342  # all rows, 10 % of them poisoned
    assert read.purified == read.infected and done.folder.name.split("_")[1] == "digits-badnets-none-ss"


@pytest.mark.wide
def test_a_verdict_is_made_once_for_a_model(run: Callable[..., Job]) -> None:
    first = run("attack=badnets", *STRIP, "defense=ft", "defense.epochs=1", *QUICK).run
    second = run("attack=badnets", *STRIP, "defense=none", *QUICK).run
    assert second.detection.cached and second.detection.figures == first.detection.figures and second.id != first.id
    other = run("attack=badnets", "detector=strip", "detector.overlays=6", *QUICK).run
    assert not other.detection.cached and other.detection.key != first.detection.key
    fewer = run("attack=badnets", *STRIP, "inspection.images=30", *QUICK).run
    assert fewer.detection.details["positives"] == fewer.detection.details["negatives"] == 30
    assert first.detection.details["positives"] == 108 and first.detection.details["negatives"] == 120


@pytest.mark.wide
def test_a_clean_model_stands_beside_where_there_is_one(run: Callable[..., Job]) -> None:
    words = (
        "attack=badnets",
        "seed=4",
        *[word for word in QUICK if word != "control=off"],
        "detector=ac",
        "train.epochs=2",
        "force=true",
    )
    alone = run(*words, "control=off").run.detection
    assert alone.beside == {}
    found = run(*words, "control=train").run.detection
    assert found.figures == alone.figures and found.cached
    assert found.beside["auroc"] is None and found.beside["tpr"] is None  # no row of a clean set is poisoned
    assert found.beside["fpr"] is not None and found.beside["precision"] in (None, 0.0)


def test_a_run_without_a_detector_has_the_key_it_had() -> None:
    config = compose(["attack=badnets", *QUICK])
    more = {**config, "inspection": {"images": 5}}  # refused where it is given, since nothing reads it
    settings = [plan.run_settings(each, "digest") for each in (config, more)]
    assert settings[0] == settings[1] and "inspection" not in settings[0] and "detector" not in settings[0]
    asked = compose(["attack=badnets", "detector=ss", *QUICK])
    assert plan.run_settings(asked, "digest") != settings[0]


def test_a_model_detector_draws_what_it_reversed(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", *NC, *QUICK)
    with Image.open(done.folder / "reversed_triggers.png") as picture:
        side = picture.width // 10
        below = np.asarray(picture)[side:]  # a caption of two lines, for each class
    assert below.shape == (30, 10 * side, 3)
    assert all((below[:14, number * side :][:, :side] < 128).any() for number in range(10))  # names
    verdict = Verdict(
        torch.ones(2), torch.tensor([False, True]), reversed=Reversed(torch.ones(2, 1, 3, 3), torch.ones(2, 3, 3, 3))
    )
    assert detect.captions(verdict, ("cat", "dog")) == ["cat\n9 px", "dog\n9 px FLAGGED"]
    assert detect.captions(verdict, ("cat",)) == detect.captions(replace(verdict, reversed=None), ("cat", "dog")) == []
    figures = done.run.detection.figures
    assert {"anomaly_index", "any_flagged", "target_flagged"} <= set(figures)
    assert len(done.run.detection.details["scores"]) == 10


def test_what_needs_the_training_set_is_refused_where_there_is_none(run: Callable[..., Job]) -> None:
    words = ("attack=wanet", "detector=ss", *QUICK, "train.epochs=1", "force=true")
    with pytest.raises(PairingError) as caught:
        run(*words)
    assert str(caught.value) == (
        "ss needs the training set, but wanet drives the training itself and leaves none; reconstruct=true rebuilds one with "
        "its trigger; or pick a data-poisoning attack (bdx list attacks) or a detector that needs only the model."
    )
    done = run(*words, "reconstruct=true").run
    assert done.detection.notes["rebuilt_train"]["poisoned"] == done.detection.details["positives"] == 38


@pytest.mark.parametrize("judges", ["inputs", "rows", "model"])
def test_nothing_a_detector_holds_leads_to_the_answers(
    judges: str, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []

    def examine(self: NoDetector, scenario: Any) -> Verdict:
        held.extend(reachable(scenario))
        count = {"inputs": 228, "rows": 380, "model": 10}[judges]
        return Verdict(torch.zeros(count), torch.zeros(count, dtype=torch.bool))

    monkeypatch.setattr(NoDetector, "needs", frozenset({"model", "holdout", "train", "inputs"}))
    monkeypatch.setattr(NoDetector, "judges", judges)
    monkeypatch.setattr(NoDetector, "examine", examine)
    made = plan.plan(compose(["attack=badnets", *QUICK, f"runtime.outputs={outputs}", "runtime.threads=1"]))
    made = replace(made, settings={**made.settings, "detector": {"name": judges}, "inspection": {"images": 1000}})
    run_record = record.Run("", "running", "", made.config)
    infection, _ = detect.obtain(made, made.splits.test, record.Finding("infect", ""))
    detect.carry_out(made, infection, made.splits.test, run_record)
    kinds = {type(thing).__name__ for thing in held}
    assert "Scenario" in kinds and not kinds & {
        "Infection",
        "Stored",
        "Patch",
        "AllToOne",
        "Parts",
        "Splits",
        "Plan",
        "Run",
    }
    assert not [thing for thing in held if isinstance(thing, torch.Tensor) and thing.dtype == torch.bool]
    assert {len(thing) for thing in held if isinstance(thing, ImageSet)} == {20, 380}  # holdout and training set
    if judges == "inputs":
        assert any(isinstance(thing, torch.Tensor) and thing.shape == (228, 3, 32, 32) for thing in held)


def test_inputs_come_in_no_order() -> None:
    made = plan.plan(compose(["attack=badnets", *QUICK]))
    images, positive = detect.arriving(made, lambda images: images * 0, AllToOne(0), made.splits.test)
    assert torch.equal(positive, images.flatten(1).amax(1) == 0) and int(positive.sum()) == 108
    changes = int((positive[1:] != positive[:-1]).sum())
    assert changes > 60  # mixed: of 227 neighbours half differ
    again, _ = detect.arriving(made, lambda images: images * 0, AllToOne(0), made.splits.test)
    assert torch.equal(images, again)


def test_figures_by_hand() -> None:
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    positive = torch.tensor([True, False, True, True, False, False, False, False, False, False])
    flagged = scores > 0.65
    found = metrics.detection(scores, flagged, positive)
    assert found["auroc"] == pytest.approx(19 / 21)  # of 21 pairs, two wrong
    assert found["tpr_1"] == found["tpr_5"] == pytest.approx(1 / 3)  # no clean one may exceed 0.8
    assert found["tpr_10"] == pytest.approx(1 / 3)
    assert metrics.tpr_at(scores, positive, 0.15) == 1.0  # one of seven may: those above 0.5
    assert (
        found["tpr"] == pytest.approx(2 / 3)
        and found["fpr"] == pytest.approx(1 / 7)
        and found["precision"] == pytest.approx(2 / 3)
    )
    nothing = metrics.detection(scores, flagged & False, positive)
    assert (nothing["tpr"], nothing["fpr"], nothing["precision"]) == (0.0, 0.0, None)  # nothing flagged: no false alarm
    clean = metrics.detection(scores, flagged, positive & False)
    assert clean["auroc"] is None and clean["tpr"] is None and clean["fpr"] == 0.3


def test_a_models_figures_ask_for_the_target() -> None:
    flagged = torch.zeros(10, dtype=torch.bool)
    verdict = Verdict(torch.zeros(10), flagged, {"anomaly_index": 1.5})
    assert detect.figures(verdict, None, AllToOne(3)) == {
        "anomaly_index": 1.5,
        "any_flagged": 0.0,
        "target_flagged": 0.0,
    }
    flagged[3] = True
    assert detect.figures(verdict, None, AllToOne(3))["target_flagged"] == 1.0
    assert detect.figures(verdict, None, AllToOne(4))["target_flagged"] == 0.0
    assert detect.figures(verdict, None, AllToAll(10))["target_flagged"] is None


@pytest.mark.wide
def test_the_reversed_trigger_of_the_most_suspicious_class_is_tried_before_and_after(run: Callable[..., Job]) -> None:
    nc = ("detector=nc", "detector.units=4", "detector.success=0.2")
    done = run("attack=badnets", *nc, "defense=ft", "defense.epochs=1", *QUICK).run
    tried = done.detection.details["reversed"]
    scores = torch.tensor(done.detection.details["scores"])
    norms = done.detection.notes["mask_norms"]
    there = torch.tensor([norm is not None for norm in norms])
    assert tried["class"] == int(scores.where(there, -torch.inf).argmax())
    assert tried["pixels"] == pytest.approx(norms[tried["class"]], abs=0.01)
    assert 0 < tried["images"] < 120 and 0 <= tried["before"] <= 1 and 0 <= tried["after"] <= 1
    again = run("attack=badnets", *nc, "defense=none", *QUICK).run.detection
    assert again.cached and again.details["reversed"]["before"] == again.details["reversed"]["after"] == tried["before"]
    said = outcome.detection_lines(done)[-1]
    assert said.startswith(
        f"  reversed   a trigger of {tried['pixels']:g} pixels towards class {tried['class']} moves "
    )
