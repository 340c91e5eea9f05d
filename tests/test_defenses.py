"""Defenses: FT, FST's assertions by number (specification, 6.8), and what none can see. What all keep: test_contract.py."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import scenes
import torch
from conftest import QUICK
from torch import nn

from backdoorbench.attacks.base import Infection
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, option
from backdoorbench.data.holdout import Parts
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.defenses.fst import FST
from backdoorbench.defenses.ft import FT
from backdoorbench.errors import DataError, PairingError
from backdoorbench.models.surgery import classifier_head
from backdoorbench.pipeline import infect, plan
from backdoorbench.pipeline.job import Job
from backdoorbench.pipeline.plan import Plan
from backdoorbench.storage.record import Finding
from backdoorbench.streams import Stream
from backdoorbench.training.fit import Epoch


@pytest.fixture(scope="module")
def scene(outputs: Any) -> tuple[Plan, Infection, Parts, ImageSet]:
    """A quickly infected small model with everything around it."""
    made = plan.plan(compose([f"runtime.outputs={outputs}", "runtime.threads=1", "attack=badnets", *QUICK]))
    infection, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))
    return made, infection, made.parts, made.splits.test


@pytest.mark.parametrize(
    ("name", "setting", "of"),
    [
        ("abl", "isolation_rate", "12 training images"),
        ("d_br", "poisoned_share", "12 training images"),
        ("d_br", "clean_share", "12 training images"),
        ("nc", "share", "12 images of the holdout"),
        ("ss", "remove_fraction", "2 images of the largest class"),
    ],
)
def test_a_share_of_none_is_refused_before_any_training(name: str, setting: str, of: str) -> None:
    """Nothing would be unlearnt, stamped or left out, and nothing said so."""
    chosen = scenes.defense(name, **{setting: 0.01})
    with pytest.raises(DataError) as caught:
        chosen.purify(scenes.scenario(scenes.network(), scenes.few(12), chosen.needs))
    assert str(caught.value) == (
        f"defense.{setting} is 0.01, none of {of}; expected one at least, or a share of 0. Raise defense.{setting}."
    )


def defense(name: str, **changes: Any) -> Defense:
    node = compose([f"defense={name}", "dataset=digits"])["defense"]
    built: Defense = build({**node, "epochs": 2, **changes}, "defense")
    return built


def purify(scene: Any, chosen: Defense, seed: int = 0, notes: dict[str, Any] | None = None) -> nn.Module:
    made, infection, parts, _ = scene
    scenario = Scenario(
        chosen.needs,
        model=copy.deepcopy(infection.model),
        holdout=parts.holdout,
        train=infection.train,
        build=lambda stream: infect.build_network(made, stream),
        recipe=made.recipe,
        stream=Stream(seed).child("purify"),
        device=made.device,
        probe=lambda model, epoch: None,
        note=(notes if notes is not None else {}).__setitem__,
    )
    return chosen.purify(scenario)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- what tuning shares ---------------------------------------------------------------------------------------------


def test_zero_epochs_change_nothing_but_what_is_redrawn(scene: Any) -> None:
    before = state(scene[1].model)
    assert same(state(purify(scene, defense("ft", epochs=0))), before)
    after = state(purify(scene, defense("fst", epochs=0)))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "net.linear.weight",
        "net.linear.bias",
    ]


def test_a_holdout_smaller_than_a_batch_is_one_step(scene: Any) -> None:
    made, infection, parts, test = scene
    few = replace(parts, holdout=parts.holdout.subset(torch.arange(5)))
    assert purify((made, infection, few, test), defense("fst", epochs=1, batch_size=128)) is not None


# ---- FT -------------------------------------------------------------------------------------------------------------


def test_ft_with_lr_zero_moves_statistics_only(scene: Any) -> None:
    before, after = state(scene[1].model), state(purify(scene, defense("ft", lr=0.0)))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved and all("running" in name or "num_batches" in name for name in moved)
    frozen = state(purify(scene, defense("ft", lr=0.0, bn_mode="eval")))
    assert same(frozen, before)


def test_ft_keeps_the_heads_norm_where_asked(scene: Any) -> None:
    norm = classifier_head(scene[1].model).weight.norm()
    kept = classifier_head(purify(scene, defense("ft", keep_head_norm=True, lr=0.05))).weight.norm()
    free = classifier_head(purify(scene, defense("ft", lr=0.05))).weight.norm()
    assert abs(kept - norm) <= 1e-4 * norm < abs(free - norm)


def test_ft_lowers_the_loss_on_the_holdout(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Specification 2.1."""
    from backdoorbench.defenses import ft as module

    told: list[Epoch] = []
    plain = module.fit
    monkeypatch.setattr(module, "fit", lambda *args, **kwargs: told.extend(plain(*args, **kwargs)))
    purify(scene, defense("ft", lr=0.05))
    assert told[1].loss < told[0].loss


# ---- FST, specification 6.8 -----------------------------------------------------------------------------------------


def test_fst_1_the_norm_is_kept_after_every_step(scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from backdoorbench.defenses import fst as module

    norms: list[float] = []
    plain = module.fit

    def watched(model: nn.Module, *args: Any, after_step: Callable[[], None], **kwargs: Any) -> Any:
        def watch() -> None:
            after_step()
            norms.append(float(classifier_head(model).weight.detach().norm()))

        return plain(model, *args, after_step=watch, **kwargs)

    monkeypatch.setattr(module, "fit", watched)
    first = float(classifier_head(scene[1].model).weight.detach().norm())
    purify(scene, defense("fst", lr=0.1))
    assert len(norms) >= 4 and all(abs(norm - first) <= 1e-4 * first for norm in norms)


def test_fst_2_without_its_parts_it_is_its_siblings(scene: Any) -> None:
    shared = {"epochs": 3, "batch_size": 8, "lr": 0.02}
    plain = purify(scene, defense("ft", **shared))
    off = purify(scene, defense("fst", alpha=0.0, reinit=False, project=False, **shared))
    assert same(state(plain), state(off))
    rescaled = purify(scene, defense("ft", keep_head_norm=True, **shared))
    projected = purify(scene, defense("fst", alpha=0.0, reinit=False, project=True, **shared))
    assert same(state(rescaled), state(projected))


@pytest.mark.wide
def test_fst_3_the_head_ends_opposite_to_the_infected_one(scene: Any) -> None:
    infected = classifier_head(scene[1].model).weight.detach()

    def cosine(**changes: Any) -> float:
        weight = classifier_head(purify(scene, defense("fst", **changes))).weight.detach()
        return float((weight * infected).sum() / weight.norm() / infected.norm())

    assert abs(cosine(epochs=0)) < 5 / infected.numel() ** 0.5  # just redrawn
    ends = [cosine(epochs=20, batch_size=8, alpha=alpha) for alpha in (0.2, 0.8, 3.2)]
    assert (
        ends[0] > ends[1] > ends[2] and ends[1] < 0
    )  # this net is hardly trained: its norm, so alpha |W0|^2, is small


@pytest.mark.wide
def test_fst_4_siblings_move_what_they_say(scene: Any) -> None:
    before = state(scene[1].model)

    def moved(name: str, **changes: Any) -> set[str]:
        after = state(purify(scene, defense(name, **changes)))
        return {
            key
            for key in before
            if not torch.equal(before[key], after[key]) and "running" not in key and "num" not in key
        }

    head = {"net.linear.weight", "net.linear.bias"}
    assert moved("lp") == head
    assert moved("ft_init") > head
    redrawn = classifier_head(purify(scene, defense("fe_tuning", epochs=0)))
    frozen = classifier_head(purify(scene, defense("fe_tuning")))
    assert torch.equal(redrawn.weight, frozen.weight) and torch.equal(redrawn.bias, frozen.bias)
    rescaled = classifier_head(purify(scene, defense("fe_tuning", project=True)))
    direction = torch.nn.functional.cosine_similarity(redrawn.weight.flatten(), rescaled.weight.flatten(), dim=0)
    assert float(direction.detach()) == pytest.approx(1.0, abs=1e-5) and torch.equal(redrawn.bias, rescaled.bias)
    norms = [float(head.weight.detach().norm()) for head in (rescaled, classifier_head(scene[1].model))]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    plain, init = (purify(scene, defense(name, alpha=0.0, project=False)) for name in ("fst", "ft_init"))
    assert same(state(plain), state(init))  # assertion 2: fst without penalty and projection is ft-init


def test_fst_4_the_note_tells_the_effective_strength(scene: Any) -> None:
    notes: dict[str, Any] = {}
    purify(scene, defense("fst", alpha=0.2), notes=notes)
    norm = float(classifier_head(scene[1].model).weight.detach().norm())
    assert notes["classifier_norm"] == pytest.approx(norm)
    assert notes["penalty_strength"] == pytest.approx(0.2 * norm**2) and -1 <= notes["cosine"] <= 1


def test_fst_strength_stands_in_for_alpha(scene: Any) -> None:
    """The same penalty in two ways: weights and notes agree."""
    notes: dict[str, Any] = {}
    purify(scene, defense("fst", alpha=0.2), notes=notes)
    held, same_notes = notes["penalty_strength"], dict[str, Any]()
    purify(scene, defense("fst", alpha=9.0, strength=held), notes=same_notes)
    assert same_notes["penalty_strength"] == pytest.approx(held) and same_notes["cosine"] == pytest.approx(
        notes["cosine"], abs=1e-3
    )


def test_fst_5_the_infected_head_is_a_constant(scene: Any) -> None:
    model = copy.deepcopy(scene[1].model)
    weight = classifier_head(model).weight
    kept = weight.detach().clone()
    purify((scene[0], replace(scene[1], model=model), *scene[2:]), defense("fst"))
    assert torch.equal(classifier_head(model).weight, kept) and weight.grad is None


def test_the_redrawn_head_is_uniform_within_its_bound(scene: Any) -> None:
    head = classifier_head(purify(scene, defense("fst", epochs=0)))
    bound = head.in_features**-0.5
    assert head.weight.abs().max() <= bound and float(head.weight.detach().std()) == pytest.approx(
        bound / 3**0.5, rel=0.1
    )


def test_the_published_values_are_the_defaults() -> None:
    paper = option("defense", "fst")
    assert (paper["alpha"], paper["lr"], paper["epochs"], paper["batch_size"], paper["weight_decay"]) == (
        0.2,
        0.01,
        10,
        128,
        0.0,
    )
    assert FST.needs == FT.needs == frozenset({"model", "holdout"})


# ---- what a defense may see -----------------------------------------------------------------------------------------


def test_a_scenario_grants_only_what_is_needed(scene: Any) -> None:
    _, infection, parts, _ = scene
    seen: dict[str, Any] = {}

    class Curious(Defense):
        needs = frozenset({"model"})

        def purify(self, scenario: Scenario) -> nn.Module:
            seen["scenario"] = scenario
            for name in ("holdout", "train"):
                with pytest.raises(PermissionError, match=f"this method did not name '{name}' in its `needs`"):
                    getattr(scenario, name)
            return scenario.model

    purify(scene, Curious("curious"))
    hidden = [infection.trigger, infection.target, infection.poisoned, scene[3].images, parts.holdout, infection.train]
    assert not [thing for thing in hidden if any(thing is found for found in reachable(seen["scenario"]))]


def test_nothing_a_scenario_holds_leads_to_the_answers(
    run: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one, as the pipeline makes it: by attributes, no test set, trigger, target or mask can be reached."""
    from backdoorbench.defenses.none import NoDefense

    found: list[Any] = []
    monkeypatch.setattr(NoDefense, "needs", frozenset({"model", "holdout", "train"}))
    monkeypatch.setattr(
        NoDefense, "purify", lambda self, scenario: (found.extend(reachable(scenario)), scenario.model)[1]
    )
    run("attack=badnets", "defense=none", "rerun=true", *QUICK)
    kinds = {type(thing).__name__ for thing in found}
    assert "ImageSet" in kinds and "Scenario" in kinds
    assert not kinds & {"Infection", "Stored", "Patch", "AllToOne", "Parts", "Splits", "Plan", "Run"}
    assert not [thing for thing in found if isinstance(thing, torch.Tensor) and thing.dtype == torch.bool]
    assert {len(thing) for thing in found if isinstance(thing, ImageSet)} == {20, 380}  # holdout and training set


def reachable(root: Any) -> list[Any]:
    """Every object that attributes and containers lead to from `root`."""
    found, queue = [], [root]
    while queue:
        thing = queue.pop()
        if any(thing is known for known in found) or isinstance(thing, str | bytes | int | float | type | None):
            continue
        found.append(thing)
        if isinstance(thing, dict):
            queue.extend(thing.values())
        elif isinstance(thing, list | tuple | set | frozenset):
            queue.extend(thing)
        elif not isinstance(thing, torch.Tensor) and hasattr(thing, "__dict__"):
            queue.extend(vars(thing).values())
    return found


def test_impossible_pairings_fail_before_any_training() -> None:
    chosen = defense("fst")
    with pytest.raises(PairingError) as caught:
        chosen.check({"train": True, "holdout": False}, "badnets")
    assert str(caught.value) == (
        "fst needs clean images, but holdout.rate is 0; give it some, such as holdout.rate=0.05, or pick a defense that needs "
        "none (bdx list defenses)."
    )

    class Retrainer(Defense):
        needs = frozenset({"train"})

        def purify(self, scenario: Scenario) -> nn.Module:
            raise NotImplementedError

    with pytest.raises(PairingError) as caught:
        Retrainer("pbe").check({"train": False, "holdout": True}, "wanet")
    assert str(caught.value) == (
        "pbe needs the training set, but wanet drives the training itself and leaves none; pick a data-poisoning attack (bdx "
        "list attacks) or a defense that needs only the model."
    )
