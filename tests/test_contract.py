"""What every attack, defense, detector and after-attack keeps, whichever it is: the folder listing of conf/ says which there are,
tests/contract.py what a test must know of each, its class the rest.

pytest tests/test_contract.py -k wanet    all that is asked of one method
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

import contract
import pytest
import torch
from contract import Leaves, Row, Takes
from torch import Tensor, nn

from backdoorbench.attacks.base import DataAttack, Infection
from backdoorbench.attacks.loop import ShareAttack
from backdoorbench.config import groups
from backdoorbench.config.build import build
from backdoorbench.data.images import ImageSet
from backdoorbench.detectors.base import Verdict
from backdoorbench.errors import ConfigError
from backdoorbench.models.layouts import is_overrun
from backdoorbench.pipeline import after, detect, evaluation, infect, plan, purify
from backdoorbench.pipeline.job import Job
from backdoorbench.pipeline.plan import Plan
from backdoorbench.storage.record import Finding
from backdoorbench.streams import Stream
from backdoorbench.triggers import base as triggers

# ---- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "name"), contract.listed(), ids=["=".join(each) for each in contract.listed()])
def test_every_method_has_a_row(group: str, name: str) -> None:
    found = [row for row in contract.ROWS if (row.group, row.name) == (group, name)]
    assert found, f"conf/{group}/{name}.yaml has no row; add to tests/contract.py: {contract.line_to_add(group, name)}"
    assert len(found) == 1


def test_every_row_has_a_method() -> None:
    left = [str(row) for row in contract.ROWS if (row.group, row.name) not in contract.listed()]
    assert not left, f"these rows of tests/contract.py have no yaml in conf/; delete them: {', '.join(left)}"


def test_the_line_to_add_is_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backdoorbench.config.catalog.names", lambda group, *_: ["ft"] if group == "defense" else [])
    monkeypatch.setattr(contract, "ROWS", ())
    with pytest.raises(AssertionError) as caught:
        test_every_method_has_a_row("defense", "ft")
    line = 'Row("defense", "ft", quick=("defense.epochs=1",), why="no bound is known yet"),'
    assert str(caught.value).startswith(f"conf/defense/ft.yaml has no row; add to tests/contract.py: {line}")
    monkeypatch.setattr(contract, "ROWS", eval(f"({line})"))
    test_every_method_has_a_row("defense", "ft")
    assert contract.rows("defense")[0].compose()["defense"]["epochs"] == 1


# ---- what the tests share -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def no_gradientis_overrun() -> Iterator[None]:
    """The narrow network of these tests is one whose shortcuts torch may write beyond the gradient of, if maps lie channels last."""

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Conv2d) and is_overrun(module) and inputs[0].requires_grad:
            assert inputs[0].is_contiguous(), (
                "these maps lie channels last; they must lie as layout_of(model, device) says"
            )

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    yield
    handle.remove()


def planned(row: Row, outputs: Path, *words: str) -> Plan:
    return plan.plan(row.compose(f"runtime.outputs={outputs}", "curve.every=0", *words))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def pixels(*sets: ImageSet | None) -> dict[str, Tensor]:
    """Copies of all images and labels."""
    return {
        f"{number} {name}": getattr(each, name).clone()
        for number, each in enumerate(sets)
        if each is not None
        for name in ("images", "labels")
    }


def cases(group: str) -> Any:
    params = [pytest.param(row, marks=[pytest.mark.wide] * row.wide, id=row.name) for row in contract.rows(group)]
    return pytest.fixture(scope="module", params=params)


DRAWS = {
    True: "two seeds make no difference: `draws: ClassVar[bool] = False` in its class, if it draws no random number",
    False: "two seeds make a difference: it draws random numbers, so drop `draws = False` from its class",
}


# ---- attacks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """An attack, ready to be carried out; one epoch of the victim's training is enough for whatever is asked here."""

    made: Plan

    def carry_out(self, **changes: Any) -> Infection:
        """The infection, made anew: of the cache it reads the surrogate and the trigger's network alone. changes: of the attack."""
        made = replace(self.made, attack=replace(self.made.attack, **changes))
        test, clean = made.splits.test, plan.clean_plan(made)
        return infect.infect(
            made, None, lambda: infect.obtain(clean, test, Finding("infect", ""))[0].model, lambda: infect.obtain_network(made)
        )  # fmt: skip

    def untrained(self, seed: int = 0, **changes: Any) -> Infection:
        """The same without the victim's training."""
        made = replace(self.made, seed=seed, recipe=replace(self.made.recipe, epochs=0))
        return Planned(made).carry_out(**changes)


@cases("attack")
def attack(request: pytest.FixtureRequest, outputs: Path) -> Planned:
    return Planned(planned(request.param, outputs, "train.epochs=1"))


def parts(infection: Infection) -> dict[str, Tensor]:
    """All that an infection is made of."""
    found = weights(infection.model) | pixels(infection.train)
    if infection.poisoned is not None:
        found["poisoned"] = infection.poisoned
    if infection.trigger is not None:
        found |= {f"trigger.{name}": value for name, value in triggers.dump(infection.trigger)[1].items()}
    return found


def test_an_infection_repeats_and_is_kept_bit_for_bit(attack: Planned) -> None:
    made, clean = attack.made, pixels(attack.made.parts.train, attack.made.splits.test)
    first = attack.carry_out()
    kept, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))  # trained once more, saved, and read
    assert same(parts(first), parts(kept)) and first.target == kept.target
    assert first.facts.items() <= kept.facts.items()
    assert [epoch.loss for epoch in first.history] == [epoch.loss for epoch in kept.history]
    assert same(pixels(made.parts.train, made.splits.test), clean)
    assert all(value.isfinite().all() for value in parts(first).values() if value.is_floating_point())
    assert not any(module.training for module in first.model.modules())
    assert (first.train is not None) == (first.poisoned is not None) == made.attack.leaves_train


@pytest.mark.wide
def test_another_seed_is_another_infection(attack: Planned) -> None:
    first, other = attack.untrained(), attack.untrained(seed=1)
    assert not same(weights(first.model), weights(other.model))
    if first.poisoned is not None and first.poisoned.any():
        assert not torch.equal(first.poisoned, other.poisoned)


def test_as_many_rows_are_poisoned_as_were_asked_for(attack: Planned) -> None:
    made = attack.made
    kept, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))
    if isinstance(made.attack, DataAttack):
        assert_counts(made, kept, kept.train, kept.poisoned, kept.facts)
        assert round(made.attack.poison_rate * len(made.parts.train)) == kept.facts["requested"] > 0
    elif isinstance(made.attack, ShareAttack):  # a row more or less a batch
        passed, batches = len(made.parts.train), -(-len(made.parts.train) // made.recipe.batch_size)
        assert kept.facts["passed"] == passed and kept.facts["requested"] == round(made.attack.poison_rate * passed)
        assert 0 < kept.facts["poisoned"] and abs(kept.facts["poisoned"] - kept.facts["requested"]) <= batches
    if made.attack.can_rebuild:
        rebuilt = made.attack.rebuild(made.parts.train, kept.trigger, made.stream.child("rebuild"))
        assert_counts(made, kept, rebuilt.train, rebuilt.poisoned, rebuilt.counts)
    else:
        with pytest.raises(ValueError, match="rebuilds no training set"):
            made.attack.rebuild(made.parts.train, kept.trigger, made.stream)


def assert_counts(made: Plan, infection: Infection, train: Any, poisoned: Any, counts: dict[str, Any]) -> None:
    """The poisoned rows are as many as counted, their labels the attacker's; rows that are neither poisoned nor cover are as
    they were."""
    clean = made.parts.train
    assert int(poisoned.sum()) == counts["poisoned"] == counts["requested"] and len(train) == counts["train"]
    assert infection.target is not None
    changed = (train.images != clean.images).flatten(1).any(1)
    assert int((changed & ~poisoned).sum()) <= counts["cover"]
    assert torch.equal(train.labels[~poisoned], clean.labels[~poisoned])
    relabelled = infection.target.label(clean.labels[poisoned])
    assert torch.equal(train.labels[poisoned], relabelled)


@pytest.mark.wide
def test_every_mapping_and_mode_alters_the_rows_that_it_counts(attack: Planned) -> None:
    """Compared with the clean set, row by row: the poisoned ones and the cover rows differ, and no others; labels are as the
    mapping says."""
    chosen, clean = attack.made.attack, attack.made.parts.train
    if not isinstance(chosen, DataAttack):
        return
    hints = get_type_hints(type(chosen))
    for mapping, mode, labels in product(*(get_args(hints[name]) for name in ("mapping", "mode")), labels_of(hints)):
        changes: dict[str, Any] = {"mapping": mapping, "mode": mode, "poison_rate": 0.03} | labels
        if mapping == "source_specific":
            changes |= {"sources": chosen.sources or (3, 4), "cover_rate": 0.05}
        if mapping == "all_to_all" and labels == {"labels": "clean"}:
            continue  # refused, as test_all_to_all finds
        made = attack.untrained(**changes)
        assert made.train is not None and made.poisoned is not None and made.target is not None
        poisoned, counts = made.poisoned[: len(clean)], made.facts
        differs = (made.train.images[: len(clean)] != clean.images).flatten(1).any(1)
        relabelled = made.train.labels[: len(clean)] != clean.labels
        if mode == "append":
            assert not (differs | relabelled | poisoned).any()
            assert len(made.train) - len(clean) == counts["poisoned"] + counts["cover"]
        else:
            assert (differs | relabelled)[poisoned].all() and not relabelled[~poisoned].any()
            covers = int((differs & ~poisoned).sum())
            assert counts["cover"] - left_alone(made.trigger, clean) <= covers <= counts["cover"], (
                mapping,
                mode,
                labels,
            )
            kept = labels == {"labels": "clean"} or made.target.label(clean.labels) == clean.labels
            assert torch.equal(relabelled, poisoned & ~torch.as_tensor(kept))
        assert int(made.poisoned.sum()) == counts["poisoned"] == counts["requested"] > 0, (mapping, mode, labels)
        assert (counts["cover"] > 0) == (chosen.cover_rate > 0 or mapping == "source_specific")


def left_alone(trigger: Any, clean: ImageSet) -> int:
    """Images that a trigger does not change: what it adds to pixels that are full already shows nowhere."""
    shown = (trigger(clean.images.float() / 255) * 255).round()
    return int((shown == clean.images).flatten(1).all(1).sum())


def labels_of(hints: dict[str, Any]) -> list[dict[str, str]]:
    """What the setting `labels` may be; one that an attack without it has: nothing."""
    return [{"labels": value} for value in get_args(hints.get("labels"))] or [{}]


def test_its_trigger_stays_within_the_images_range(attack: Planned) -> None:
    made = attack.made
    kept, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))
    assert (kept.trigger is None) == (kept.target is None)
    if kept.trigger is None:
        return
    images, _ = next(made.splits.test.batches(16))
    before = images.clone()
    shown = kept.trigger(images)
    assert torch.equal(images, before) and not torch.equal(shown, images)
    assert shown.shape == images.shape and shown.dtype == images.dtype and 0 <= shown.min() and shown.max() <= 1


def all_to_all(kind: type) -> dict[str, Any] | None:
    """The settings with which an attack shifts the labels of rows of every class; None where the types of its settings say that
    it cannot."""
    allowed = {name: get_args(get_type_hints(kind).get(name)) for name in ("mapping", "labels")}
    changes = {"mapping": "all_to_all"} | ({"labels": "dirty"} if allowed["labels"] else {})
    if any(value not in allowed[name] for name, value in changes.items()):
        return None
    return changes | ({"poison_rate": 0.3} if issubclass(kind, DataAttack | ShareAttack) else {})


@pytest.mark.wide
def test_all_to_all(attack: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attack that relabels can call its rows one more than they are; those that cannot say why, and what they can."""
    changes, settings, clean = (
        all_to_all(type(attack.made.attack)),
        attack.made.config["attack"],
        attack.made.parts.train,
    )
    if changes is None:
        refusals = "|".join(
            (
                r"attack.mapping is 'all_to_all'; expected source_specific\.",
                r"attack.labels is clean with attack.mapping=all_to_all; .*\. Set attack.mapping=all_to_one or source_specific\.",
                r"attack has no setting 'mapping'",  # a clean training
            )
        )
        with pytest.raises(ConfigError, match=f"^({refusals})"):
            build({**settings, "mapping": "all_to_all"}, "attack")
        return
    asked: list[Tensor] = []
    shift = triggers.AllToAll.label

    def label(self: triggers.AllToAll, true: Tensor) -> Tensor:
        asked.append(true)
        return shift(self, true)

    monkeypatch.setattr(triggers.AllToAll, "label", label)
    in_training = not attack.made.attack.leaves_train
    made = attack.carry_out(**changes) if in_training else attack.untrained(**changes)
    assert made.target == triggers.AllToAll(10)
    if attack.made.attack.plants:
        assert len(torch.cat(asked).unique()) == 10 and sum(map(len, asked)) >= made.facts.get("poisoned", 1) > 0
    train, poisoned = made.train, made.poisoned
    if attack.made.attack.can_rebuild:
        assert made.trigger is not None
        again = replace(attack.made.attack, **changes).rebuild(clean, made.trigger, attack.made.stream)  # type: ignore[arg-type]
        train, poisoned = again.train, again.poisoned
    if train is not None and poisoned is not None:
        assert torch.equal(train.labels[poisoned], (clean.labels[poisoned] + 1) % 10)
        assert torch.equal(train.labels[~poisoned], clean.labels[~poisoned])
    assert_counts_shifted(attack.made, made)


def assert_counts_shifted(made: Plan, infection: Infection) -> None:
    """ASR counts every triggered image against the next label, RA against its own."""
    rows, true = made.parts.test_rows, made.splits.test.labels.cpu()
    for triggered, asr, ra in (((true + 1) % 10, 1, 0), (true, 0, 1), ((true + 2) % 10, 0, 0)):
        found = evaluation.judge(evaluation.Predictions(true, triggered), made.splits.test, infection.target, rows)
        assert (found.asr, found.ra, found.n_triggered) == (asr, ra, len(rows))


# ---- defenses -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Defended:
    """A defense before the default attack's quickly infected model."""

    made: Plan
    infection: Infection

    def carry_out(self, seed: int = 0) -> nn.Module:
        made = replace(self.made, seed=seed)
        return purify.purify(made, self.infection, made.splits.test, Finding("purify", ""), lambda _: None)

    @cached_property
    def purified(self) -> nn.Module:
        return self.carry_out()


@cases("defense")
def defense(request: pytest.FixtureRequest, outputs: Path) -> Defended:
    made = planned(request.param, outputs)
    return Defended(made, infect.obtain(made, made.splits.test, Finding("infect", ""))[0])


def test_a_purified_model_repeats_and_its_makings_are_left_alone(defense: Defended) -> None:
    made, infection = defense.made, defense.infection
    infected, clean = weights(infection.model), pixels(made.parts.holdout, infection.train, made.splits.test)
    purified = weights(defense.purified)
    assert same(weights(infection.model), infected)
    assert same(pixels(made.parts.holdout, infection.train, made.splits.test), clean)
    assert same(purified, weights(defense.carry_out()))
    tunes = made.defense.tunes
    assert same(purified, infected) != tunes, (
        "it changes no weight here: settings in its row's `quick` with which it does, or `tunes: ClassVar[bool] = False`"
        if tunes
        else "it changes weights: drop `tunes = False` from its class"
    )


def test_a_purified_model_is_one_to_go_on_with(defense: Defended) -> None:
    model = defense.purified
    assert not any(module.training for module in model.modules())
    assert all(value.isfinite().all() for value in weights(model).values() if value.is_floating_point())
    images, _ = next(defense.made.splits.test.batches(16))
    assert model(images).shape == (16, 10)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_purified_model_fits_the_network_that_its_defense_makes(defense: Defended) -> None:
    """What kept weights are read into; `reshape` of a defense that adds layers."""
    fresh = purify.purified_network(defense.made)
    fresh.load_state_dict(weights(defense.purified))
    usual = infect.fresh_network(defense.made, Stream(0)).state_dict().keys()
    assert (fresh.state_dict().keys() != usual) == defense.made.defense.reshapes


@pytest.mark.wide
def test_another_seed_is_another_purified_model_where_it_draws(defense: Defended) -> None:
    other = defense.carry_out(seed=1)
    draws = defense.made.defense.draws
    assert same(weights(defense.purified), weights(other)) != draws, DRAWS[draws]


def test_a_defense_asks_for_all_that_it_needs(defense: Defended, monkeypatch: pytest.MonkeyPatch) -> None:
    """That what it does not name is kept from it is the scenario's business (test_defenses.py)."""
    needs = defense.made.defense.needs
    for need in needs:
        monkeypatch.setattr(type(defense.made.defense), "needs", needs - {need})
        with pytest.raises(PermissionError, match=f"'{need}' in its `needs`"):
            defense.carry_out()


# ---- detectors ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examined:
    """A detector before the default attack's quickly infected model."""

    made: Plan
    case: detect.Case
    infection: Infection

    def carry_out(self, seed: int = 0) -> Verdict:
        return detect.examine(replace(self.made, seed=seed), self.case, lambda name, value: None)

    @cached_property
    def verdict(self) -> Verdict:
        return self.carry_out()


@cases("detector")
def detector(request: pytest.FixtureRequest, outputs: Path) -> Examined:
    made = planned(request.param, outputs)
    test = made.splits.test
    infection, _ = infect.obtain(made, test, Finding("infect", ""))
    case = detect.present(made, infection, infection.trigger, infection.target, test, Finding("detect", ""))
    return Examined(made, case, infection)


def said(verdict: Verdict) -> dict[str, Tensor]:
    return {"scores": verdict.scores, "flagged": verdict.flagged} | verdict.pictures


def test_a_verdict_repeats_and_is_kept_bit_for_bit(detector: Examined) -> None:
    made, case = detector.made, detector.case
    model, clean = weights(case.model), pixels(made.parts.holdout, case.train)
    arriving = case.inputs.clone() if case.inputs is not None else None
    first = detector.verdict
    kept = detector.carry_out()  # all there is where nothing is judged, and so nothing kept
    if made.detects:
        kept = detect.obtain_verdict(made, case, made.infection_settings, Finding("detect", ""))
    assert same(said(first), said(kept)) and first.figures == kept.figures
    assert same(weights(case.model), model) and same(pixels(made.parts.holdout, case.train), clean)
    assert arriving is None or case.inputs is not None and torch.equal(case.inputs, arriving)


def test_a_verdict_has_a_score_and_a_flag_for_each_thing(detector: Examined) -> None:
    made, case, verdict = detector.made, detector.case, detector.verdict
    things = {"rows": case.train, "inputs": case.inputs, "model": made.splits.test.classes}[made.detector.judges]
    assert things is not None
    assert verdict.scores.shape == verdict.flagged.shape == ((len(things),) if made.detector.needs else (0,))
    assert verdict.scores.is_floating_point() and verdict.flagged.dtype == torch.bool
    assert verdict.scores.device.type == verdict.flagged.device.type == "cpu"
    assert verdict.scores.isfinite().all()
    assert all(value is None or torch.tensor(value).isfinite() for value in verdict.figures.values())


def test_another_seed_is_another_verdict_where_it_draws(detector: Examined) -> None:
    scores = detector.verdict.scores
    differs = any(not torch.equal(scores, detector.carry_out(seed).scores) for seed in (1, 2, 3))
    assert differs == detector.made.detector.draws, DRAWS[detector.made.detector.draws]


def test_a_detector_asks_for_all_that_it_needs(detector: Examined, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = detector.made.detector.needs
    for need in needs:
        monkeypatch.setattr(type(detector.made.detector), "needs", needs - {need})
        with pytest.raises(PermissionError, match=f"'{need}' in its `needs`"):
            detector.carry_out()


# ---- after-attacks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attacked:
    """An after-attack before the default attack's quickly infected model, after the defense that its row names, none by default."""

    stage: after.Stage
    purified: nn.Module

    def carry_out(self, seed: int = 0) -> list[dict[str, Tensor]]:
        """Of each trial the model's weights, and what is shown to it: triggered, and lured."""
        stage = replace(self.stage, made=replace(self.stage.made, seed=seed))
        images, _ = next(self.stage.made.splits.test.batches(16))
        found = []
        for trial in stage.trials(self.purified, lambda name, value: None):
            with torch.no_grad():
                shown = {"triggered": trial.trigger(images)} | ({"lured": trial.lure(images)} if trial.lure else {})
            found.append(weights(trial.model) | shown)
        return found

    @cached_property
    def trials(self) -> list[dict[str, Tensor]]:
        return self.carry_out()


@cases("after")
def after_attack(request: pytest.FixtureRequest, outputs: Path) -> Attacked:
    made = planned(request.param, outputs)
    test = made.splits.test
    infection, _ = infect.obtain(made, test, Finding("infect", ""))
    purified = purify.purify(made, infection, test, Finding("purify", ""), lambda _: None)
    return Attacked(after.prepare(made, infection, test), purified)


def alike(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    return len(first) == len(second) and all(map(same, first, second))


def test_an_after_attack_repeats_and_its_makings_are_left_alone(after_attack: Attacked) -> None:
    stage, made = after_attack.stage, after_attack.stage.made
    models = [model for model in (after_attack.purified, stage.infection.model, stage.clean) if model is not None]
    before, clean = [weights(model) for model in models], pixels(made.parts.train, made.splits.test)
    assert alike(after_attack.trials, after_attack.carry_out())
    assert all(same(weights(model), kept) for model, kept in zip(models, before, strict=True))
    assert same(pixels(made.parts.train, made.splits.test), clean)


def test_what_an_after_attack_shows_is_an_image_and_its_models_are_sound(after_attack: Attacked) -> None:
    made, images = after_attack.stage.made, next(after_attack.stage.made.splits.test.batches(16))[0]
    assert bool(after_attack.trials) == made.is_attacked_after
    for trial in after_attack.trials:
        for name in trial.keys() & {"triggered", "lured"}:
            assert trial[name].shape == images.shape and 0 <= trial[name].min() and trial[name].max() <= 1
        assert all(value.isfinite().all() for value in trial.values() if value.is_floating_point())


def test_an_after_attack_is_judged_in_every_trial(after_attack: Attacked) -> None:
    stage = after_attack.stage
    judged = [
        stage.judge(trial, trial.model) for trial in stage.trials(after_attack.purified, lambda name, value: None)
    ]
    assert len({trial["label"] for trial in judged}) == len(judged)
    if judged:
        figures = after.figures(stage.made.after, {"purified": judged})
        assert f"asr_{stage.made.after.figure}" in figures and all(
            0 <= value <= 1 for value in figures.values() if value
        )
        assert all(trial["asr"] + trial["ra"] <= 1 for trial in judged)


def test_another_seed_is_another_after_attack_where_it_draws(after_attack: Attacked) -> None:
    draws = after_attack.stage.made.after.draws
    assert alike(after_attack.trials, after_attack.carry_out(seed=1)) != draws, DRAWS[draws]


def test_an_after_attack_asks_for_all_that_it_needs(after_attack: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(after_attack.stage.made.after)
    needs = kind.needs
    for need in needs:
        monkeypatch.setattr(kind, "needs", needs - {need})
        with pytest.raises(PermissionError, match=f"'{need}' in its `needs`"):
            after_attack.carry_out()


# ---- effects --------------------------------------------------------------------------------------------------------


BARE = ("control=off", "curve.every=0")  # neither of which bears on what comes out


def effects(group: str) -> list[Any]:
    """The rows that state a bound; those of minutes in the slow tier."""
    found = []
    for row in contract.rows(group):
        if row.effect is not None:
            marks = [pytest.mark.slow] if row.effect.slow else []
            marks += [pytest.mark.xfail(reason=row.effect.finding)] if row.effect.finding else []
            found.append(pytest.param(row, row.effect, marks=marks, id=row.name))
    return found


@pytest.mark.wide
@pytest.mark.parametrize(("row", "effect"), effects(groups.INFECT.group))
def test_takes_on_digits(row: Row, effect: Takes, run: Callable[..., Job]) -> None:
    found = run(str(row), *BARE).run
    assert found.infected is not None and found.infected.asr is not None
    assert found.infected.asr >= effect.asr and found.infected.ca >= effect.ca
    assert found.infection.status == "took" and found.infected.n_triggered == 324
    assert found.purified == found.infected  # no defense, no difference


@pytest.mark.wide
@pytest.mark.parametrize(("row", "effect"), effects(groups.PURIFY.group))
def test_what_is_left_on_digits(row: Row, effect: Leaves, run: Callable[..., Job]) -> None:
    found = run(str(row), *BARE).run
    assert found.infected is not None and found.purified is not None and found.infected.asr is not None
    assert found.infected.asr >= 0.9  # there was something to remove
    assert found.purified.asr is not None and found.purified.asr <= effect.asr
    assert found.infected.ca - found.purified.ca <= effect.loss


@pytest.mark.slow
@pytest.mark.parametrize("name", ["badnets", "blended"])
def test_all_to_all_takes_on_digits(name: str, run: Callable[..., Job]) -> None:
    """At half of the rows; at a tenth a network of 460 steps learns no target for each class."""
    found = run(f"attack={name}", "attack.mapping=all_to_all", "attack.poison_rate=0.5", "defense=none", *BARE).run
    assert found.infection.status == "took" and found.infection.notes["target"] == "all to all"
    assert found.infected is not None and found.infected.n_triggered == found.infected.n_clean == 360
    assert found.infected.asr is not None and found.infected.ra is not None
    assert found.infected.asr >= 0.8 and found.infected.asr + found.infected.ra <= 1
