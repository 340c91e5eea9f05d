"""What the pipeline makes of calls, by hand: other ways of counting, the gates, trials of after-attacks; what it costs, and what the
keys of answers hold."""

import copy
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import QUICK

from backdoorbench.after.base import Scenario, Trial
from backdoorbench.attacks.base import Infection
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, option
from backdoorbench.data.images import ImageSet
from backdoorbench.detectors.base import Verdict
from backdoorbench.errors import TrainingError
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import after, costs, detect, evaluation, gates, infect, plan, purify
from backdoorbench.pipeline.after import Stage
from backdoorbench.pipeline.detect import Case
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.plan import Plan
from backdoorbench.shapes import to_float
from backdoorbench.storage.record import Finding, Run
from backdoorbench.streams import Stream
from backdoorbench.trackers import base as trackers
from backdoorbench.training import fit
from backdoorbench.triggers.base import AllToAll, AllToOne, SourceSpecific

ALL = torch.arange(120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    words = ["attack=badnets", "defense=ft", "detector=strip", "after=retune", "after.rate=0.1", "holdout.split=test"]
    return plan.plan(compose([*QUICK, *words, f"runtime.outputs={tmp_path_factory.mktemp('judging')}"]))


def saying(label: int) -> torch.nn.Module:
    """A network that calls every image the same."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.copy_(torch.eye(10)[label])
    return net


def infected(target: Any, says: int = 0) -> Infection:
    return Infection(saying(says), torch.nn.Identity(), target, None, None, [], {})


# ---- calls ----------------------------------------------------------------------------------------------------------


def test_other_ways_of_counting(images: ImageSet) -> None:
    """Of ten classes of twelve images each, triggered ones of 3 and 4 are called 0, the others what they are."""
    true = images.labels
    swayed = torch.where((true == 3) | (true == 4), 0, true)
    calls = Predictions(true, swayed)
    one = evaluation.details(calls, images, AllToOne(0), ALL)
    assert one["asr_incl_target"] == 36 / 120 and one["asr_other_sources"] is None
    assert one["asr_per_class"] == [None, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert one["ra_per_class"] == [None, 1, 1, 0, 0, 1, 1, 1, 1, 1]
    some = evaluation.details(calls, images, SourceSpecific(0, (3,)), ALL)
    assert some["asr_other_sources"] == 12 / 96  # of the classes from 1 on but for 3
    assert some["asr_incl_target"] == 108 / 120  # what other sources are to be called is what they are
    few = evaluation.details(calls, images, SourceSpecific(0, (3,)), ALL[true == 4])
    assert few["asr_other_sources"] == 1 and few["asr_per_class"] == [None] * 10
    shifted = evaluation.details(Predictions(true, (true + 1) % 10), images, AllToAll(10), ALL)
    assert shifted["asr_per_class"] == [1] * 10 and shifted["asr_other_sources"] is None
    assert set(evaluation.details(Predictions(true, None), images, None, ALL)) == {
        "ca_per_class", "largest_share", "by_chance",
    }  # fmt: skip


BOUNDS = gates.Gates(asr_floor=0.5, ca_drop=0.1, constant_share=0.95)
CLEAN = Scores(0.95, 0.1, 0.8, 120, 108)


class Lost(torch.nn.Module):
    """Calls every image 4; of those that are white in their first pixel one logit is NaN."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.eye(10)[4].repeat(len(images), 1)
        logits[images[:, 0, 0, 0] == 1, 7] = torch.nan
        return logits


def test_logits_that_are_no_numbers_are_no_call(images: ImageSet) -> None:
    """argmax would have called these 7, or 0 where all of them are NaN: an ASR of 0, or one of 100."""
    bright = images.images.clone()
    bright[:, :, 0, 0] = 0
    bright[[3, 50], :, 0, 0] = 255
    assert evaluation.call(Lost(), to_float(bright[2:5])).tolist() == [4, evaluation.NOTHING, 4]
    test = replace(images, images=bright)
    said = "^the model's logits for 2 of 120 images are NaN, so it calls them nothing, and no figure can be had of it; expected "
    with pytest.raises(TrainingError, match=said):
        evaluation.called(Lost(), test, None, "float32")
    with pytest.raises(TrainingError, match=said):
        evaluation.predict(Lost(), test, None, "float32")
    dark = replace(images, images=bright * 0)
    assert evaluation.predict(Lost(), dark, None, "float32").clean.tolist() == [4] * 120
    with pytest.raises(TrainingError, match="the model's logits for 120 of 120"):  # by the trigger alone
        evaluation.predict(Lost(), dark, lambda shown: shown + 1, "float32")


@pytest.mark.parametrize(
    ("scores", "facts", "control", "said"),
    [
        (Scores(0.86, 0.5, 0.5, 120, 108), {"poisoned": 1, "share_changed": 0.1}, CLEAN, ("took", [])),
        (Scores(0.9, None, None, 120, 0), {}, None, ("clean", [])),
        (Scores(0.84, 0.9, 0.1, 120, 108), {}, CLEAN, ("weak", ["CA is 0.840, the clean control's 0.950"])),
        (Scores(0.9, 0.49, 0.1, 120, 108), {}, None, ("weak", ["ASR is 0.490, below 0.5"])),
        (
            Scores(0.9, 0.9, 0.1, 120, 108), {}, replace(CLEAN, asr=0.51),
            ("weak", ["the trigger alone sways a clean model: ASR 0.510"]),
        ),
        (Scores(0.9, 0.9, 0.1, 120, 108), {"share_changed": 0}, None, ("broken", ["the trigger changes no pixel"])),
        (
            Scores(0.14, 0.2, 0.1, 120, 108), {}, None,
            ("broken", ["CA is 0.140, near chance", "ASR is 0.200, below 0.5"]),
        ),
    ],
)  # fmt: skip
def test_the_gates(
    scores: Scores, facts: dict[str, Any], control: Scores | None, said: tuple[str, list[str]], images: ImageSet
) -> None:
    assert gates.status(BOUNDS, scores, Predictions(images.labels, None), 10, facts, control) == said


def test_a_constant_network_is_broken() -> None:
    calls = Predictions(torch.tensor([0] * 96 + [1] * 4), None)
    scores = Scores(0.9, 0.9, 0.1, 100, 90)
    assert gates.status(BOUNDS, scores, calls, 2, {}, None) == (
        "broken",
        ["the network calls 96% of the clean test images the same"],
    )


def test_the_control_is_judged_on_the_images_of_this_run(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found on other images, or of another control, is not taken for it; what was found on the same is."""
    asked: list[str] = []

    def obtain(clean: Plan, *_: Any) -> tuple[Infection, None]:
        asked.append(clean.infection_key)
        return infected(AllToOne(0), 1), None

    test, rows = made.splits.test, made.parts.test_rows
    monkeypatch.setattr(infect, "obtain", obtain)
    monkeypatch.setattr(infect, "has_control", lambda _: True)
    for name, judged, count in (("a", rows, 1), ("a", rows, 1), ("a", rows[:50], 2), ("a", ALL, 3), ("b", ALL, 4)):
        clean = replace(made, infection_key=name)
        monkeypatch.setattr(infect, "clean_plan", lambda _, clean=clean: clean)
        there = replace(made, config={**made.config, "control": "train"}, parts=replace(made.parts, test_rows=judged))
        found = infect.find_control(there, test, infected(AllToOne(0)), Finding("infect", "badnets"))
        labels = test.labels[judged]
        assert found == Scores(int((labels == 1).sum()) / len(labels), 0, int((labels == 1).sum()) / int((labels != 0).sum()), len(labels), int((labels != 0).sum()))  # fmt: skip
        assert len(asked) == count and asked[-1] == name
    off = replace(there, config={**made.config, "control": "off"})
    assert infect.find_control(off, test, infected(AllToOne(0)), Finding("infect", "badnets")) is None


# ---- after-attacks --------------------------------------------------------------------------------------------------


def test_a_trial_by_hand(made: Plan, images: ImageSet) -> None:
    """A network that says 3: a tenth of all images are, and a ninth of those that are to be called 0."""
    stage = Stage(made, infected(AllToOne(0)), None, images, images)
    lured = Trial("x", saying(3), torch.nn.Identity(), lure=torch.nn.Identity(), is_moved=True)
    assert stage.judge(lured, lured.model) == {
        "label": "x", "ca": 0.1, "asr": 0, "ra": 12 / 108, "untriggered": 0,
    }  # fmt: skip
    plain = Trial("x", saying(3), torch.nn.Identity())
    assert stage.judge(plain, saying(0)) == {"label": "x", "ca": None, "asr": 1, "ra": 0, "untriggered": None}
    moved = Stage(made, infected(AllToAll(10)), None, images, images).judge(lured, lured.model)
    assert (moved["asr"], moved["ra"], moved["untriggered"]) == (0.1, 0.1, 0.1)  # those of 2 are to be called 3


def test_an_attacker_triggers_images_that_his_trigger_is_meant_for(made: Plan, images: ImageSet) -> None:
    scenario = Scenario(
        frozenset({"trigger", "train"}), model=saying(0), infected=saying(0), clean=None, trigger=lambda shown: shown * 0,
        target=SourceSpecific(0, (3, 4)), train=images, load=lambda folder: saying(0), recipe=made.recipe, stream=Stream(0),
        device=made.device, note=lambda name, value: None,
    )  # fmt: skip
    found = scenario.eligible(100, Stream(1))
    assert sorted(found.labels.tolist()) == [3] * 12 + [4] * 12
    few = scenario.eligible(5, Stream(1))
    assert torch.equal(few.images, found.images[:5]) and torch.equal(few.labels, found.labels[:5])
    shown = scenario.triggered(few), scenario.triggered(few, torch.zeros_like(few.labels))
    assert all(not each.images.any() and each.images.dtype == torch.uint8 for each in shown)
    assert torch.equal(shown[0].labels, few.labels) and not shown[1].labels.any()


def test_several_trials_as_one() -> None:
    shares = [1.0, 0.25, 0.75]
    assert [after.in_one(shares, counts) for counts in ("only", "mean", "largest")] == [1.0, 2 / 3, 0.75]


@pytest.mark.parametrize(("name", "more"), [("retune", set()), ("query", {"clean"})])
def test_what_answers_of_controls_are_kept_by(
    name: str, more: set[str], made: Plan, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[str, set[str]]] = []
    monkeypatch.setattr(after.store, "key", lambda kind, settings: kept.append((kind, set(settings))) or "key")
    monkeypatch.setattr(after.store, "read_answer", lambda file, names: {"trials": []})
    monkeypatch.setattr(after, "clean_plan", lambda _: made)
    there = replace(made, after=build(option("after", name), "after"))
    stage = Stage(there, infected(AllToOne(0)), None, images, images)
    assert after.obtain_answers(stage, "clean", stage.infection.model, "abc") == []
    assert kept == [("after", {"control", "infection", "after", "holdout", "seed", *more})]


def test_exact_purification_is_tuned_on_triggered_images_and_kept_by_all_that_it_depends_on(
    made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[set[str]] = []
    monkeypatch.setattr(after.store, "key", lambda kind, settings: kept.append(set(settings)) or "key")
    seen: list[ImageSet] = []
    monkeypatch.setattr(
        type(made.exact), "purify", lambda self, model, clean, triggered, *_: seen.extend([clean, triggered])
    )
    monkeypatch.setattr(after, "fresh_network", lambda *_: saying(1))
    infection = replace(infected(AllToOne(0), 1), trigger=lambda shown: shown * 0)
    found = after.obtain_exact(made, infection, made.splits.test)
    assert kept == [{"model", "exact", "holdout", "seed"}]
    clean, triggered = seen
    assert torch.equal(clean.images, made.parts.holdout.images) and not triggered.images.any()  # type: ignore[union-attr]
    assert torch.equal(clean.labels, triggered.labels)
    ones = made.splits.test.labels[made.parts.test_rows] == 1
    assert (found.ca, found.asr) == (int(ones.sum()) / len(ones), 0)


# ---- detectors ------------------------------------------------------------------------------------------------------


def test_no_image_of_the_holdout_arrives(made: Plan) -> None:
    images, positive = detect.arriving(made, lambda shown: shown * 0, AllToOne(0), made.splits.test)
    rows = made.parts.test_rows
    assert len(rows) == 100 and int((~positive).sum()) == 100
    labels = made.splits.test.labels[rows]
    assert int(positive.sum()) == int((labels != 0).sum())
    shown = {image.numpy().tobytes() for image in (images[~positive] * 255).round().to(torch.uint8)}
    assert shown == {image.numpy().tobytes() for image in made.splits.test.images[rows]}


def test_what_a_verdict_is_kept_by(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Verdict(torch.zeros(2), torch.zeros(2, dtype=torch.bool))
    monkeypatch.setattr(detect, "examine", lambda *_: said)
    model, inputs = saying(0), torch.zeros(2, 3, 32, 32)

    def key(plan: Plan, case: Case, model: dict[str, Any]) -> str:
        finding = Finding("detect", "strip")
        detect.obtain_verdict(plan, case, model, finding)
        return finding.key

    shown, alone = (Case(model, None, images, None) for images in (inputs, None))
    settings = {**made.settings, "inspection": {"images": 7}}
    others = [
        replace(made, settings=settings),
        replace(made, settings={**made.settings, "seed": 5}),
        replace(made, settings={**made.settings, "holdout": {"rate": 0.2}}),
        replace(
            made, infection_settings={**made.infection_settings, "seed": 9}
        ),  # whose trigger is shown to a clean model
    ]
    keys = [key(each, shown, {"name": "m"}) for each in (made, *others)] + [key(made, shown, {"name": "n"})]
    assert len(set(keys)) == len(keys)
    of_models = build(option("detector", "signature"), "detector")
    first, second = (key(replace(each, detector=of_models), alone, {"name": "m"}) for each in (made, others[-1]))
    assert first == second  # no image arrives


def test_a_control_that_is_trained_for_a_detector_is_paid_for(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its answers to a trigger are known, and the model was pruned."""

    def obtain(*_: Any) -> tuple[Infection, None]:
        monkeypatch.setattr(fit.PACE, "earlier", fit.PACE.earlier + 50.0)  # most of it by a process that was killed
        return infected(AllToOne(0)), None

    said = Verdict(torch.zeros(2), torch.tensor([False, True]))
    case = Case(saying(0), None, torch.zeros(2, 3, 32, 32), torch.tensor([False, True]))
    for name, known in {"obtain": obtain, "present": lambda *_: case, "obtain_verdict": lambda *_: said}.items():
        monkeypatch.setattr(detect, name, known)
    monkeypatch.setattr(detect, "has_clean_model", lambda _: True)
    run = Run("abc", "running", "x", made.config)
    detect.carry_out(made, infected(AllToOne(0)), made.splits.test, run)
    assert 50 <= run.detection.seconds["control"] < 60 and run.detection.beside["tpr"] == 1


# ---- costs and trackers ---------------------------------------------------------------------------------------------


def test_a_defense_does_not_pay_for_being_watched(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    infection, test = infected(AllToOne(0)), made.splits.test

    def watched(_: Plan, infection: Infection, __: ImageSet, finding: Finding, announce: Any) -> torch.nn.Module:
        with finding.timed("curve"):
            time.sleep(0.1)
        return copy.deepcopy(infection.model)

    monkeypatch.setattr(purify, "purify", watched)
    finding = Finding("purify", "ft")
    calls = evaluation.predict(infection.model, test, infection.trigger, "float32")
    left = purify.work(made, infection, calls, test, finding, lambda stage: None)
    assert not left.is_new and left.predictions is calls
    assert finding.seconds["curve"] >= 0.1 > finding.seconds["purify"] + 0.03
    assert finding.scores is not None and finding.scores.n_clean == 100


def test_settings_are_chosen_by_images_that_the_defense_did_not_get(
    made: Plan, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purify, "purify", lambda made, infection, *_: copy.deepcopy(infection.model))
    infection, test = infected(AllToOne(0)), made.splits.test
    calls = evaluation.predict(infection.model, test, None, "float32")
    parts = (
        replace(made.parts, holdout=images.subset(ALL[images.labels != 0])),
        replace(made.parts, validation=images.subset(ALL[images.labels == 0])),
        replace(made.parts, holdout=None),
    )
    told = []
    for part in parts:
        finding = Finding("purify", "ft")
        purify.work(replace(made, parts=part), infection, calls, test, finding, lambda stage: None)
        told.append(finding.details.get("holdout_ca"))
    assert told == [0, 1, None]


def test_what_a_killed_process_trained_is_paid_for() -> None:
    finding, before = Finding("infect", "badnets"), fit.PACE.earlier
    try:
        with costs.timed(finding, "infect"), costs.timed(finding, "surrogate"):
            fit.PACE.earlier += 50.0
    finally:
        fit.PACE.earlier = before
    assert all(50 <= finding.seconds[part] < 51 for part in ("infect", "surrogate"))


def test_a_tracker_is_told_what_detectors_and_after_attacks_found() -> None:
    run = Run("abc", "running", "x", {})
    run.stages = [Finding("detect", "strip", figures={"auroc": 0.75, "precision": None}), Finding("after", "retune", figures={"asr_retuned": 0.5})]  # fmt: skip
    assert list(trackers.news(run, "detect")) == [(None, {"detection/auroc": 0.75})]
    assert list(trackers.news(run, "after")) == [(None, {"after/asr_retuned": 0.5})]
