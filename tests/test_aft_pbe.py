"""AFT and PBE: the specification's assertions by number (3.8, 4.7; those on crafting are in test_adversarial.py), the
matrix that every purifier passes, and what they do on digits."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK
from PIL import Image
from torch import nn
from torch.nn import functional as F

from backdoorbench import metrics
from backdoorbench.attacks.base import Infection
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, option
from backdoorbench.data.images import ImageSet, spans
from backdoorbench.defenses import pbe as module
from backdoorbench.defenses.aft import AFT
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.defenses.pbe import PBE, agreement, highest, margin, noisy
from backdoorbench.errors import ConfigError, DataError, PairingError, TrainingError
from backdoorbench.pipeline import infect, plan, watch
from backdoorbench.pipeline.job import Job
from backdoorbench.pipeline.plan import Plan
from backdoorbench.storage.record import Finding
from backdoorbench.streams import Stream
from backdoorbench.training.adversarial import PGD

Scene = tuple[Plan, Infection]
SHORT: dict[str, dict[str, Any]] = {  # a purification in a second
    "aft": {"budget": "epochs", "adversarial_epochs": 1, "natural_epochs": 2, "batch_size": 8, "steps": 2},
    "pbe": {"shares": [0.1, 0.2, 0.4], "epochs": 1, "batch_size": 32, "adversarial_batches": 1, "steps": 2},
}
NAMES = sorted(SHORT)


@pytest.fixture(scope="module")
def scene(outputs: Any) -> Scene:
    """A quickly infected small model, with the plan that made it."""
    made = plan.plan(compose([f"runtime.outputs={outputs}", "runtime.threads=1", "attack=badnets", *QUICK]))
    return made, infect.obtain(made, made.splits.test, Finding("infect", ""))[0]


def defense(name: str, **changes: Any) -> Any:
    node = compose([f"defense={name}", "dataset=digits"])["defense"]
    return build({**node, **SHORT.get(name, {}), **changes}, "defense")


def scenario(scene: Scene, chosen: Defense, seed: int = 0, **changes: Any) -> Scenario:
    made, infection = scene
    offered: dict[str, Any] = {
        "model": copy.deepcopy(infection.model), "holdout": made.parts.holdout, "train": infection.train,
        "build": lambda stream: infect.build_network(made, stream), "recipe": made.recipe,
        "stream": Stream(seed).child("purify"), "device": made.device, "probe": lambda model, epoch: None,
        "note": lambda name, value: None,
    }  # fmt: skip
    return Scenario(chosen.needs, **{**offered, **changes})


def purify(scene: Scene, chosen: Defense, seed: int = 0, **changes: Any) -> nn.Module:
    return chosen.purify(scenario(scene, chosen, seed, **changes))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def holdout(scene: Scene) -> ImageSet:
    found = scene[0].parts.holdout
    assert found is not None
    return found


# ---- the matrix of section 9 ----------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_alone_and_runs_are_bit_equal(name: str, scene: Scene) -> None:
    made, infection = scene
    assert infection.train is not None
    before, seen = state(infection.model), [holdout(scene).images.clone(), infection.train.images.clone()]
    finite: list[bool] = []

    def probe(model: nn.Module, epoch: int) -> None:
        assert not any(part.training for part in model.modules())
        finite.append(all(bool(value.isfinite().all()) for value in model.state_dict().values()))

    first = purify(scene, defense(name), probe=probe)
    assert finite == [True] * 3  # after every epoch
    assert all(torch.equal(value, before[key]) for key, value in infection.model.state_dict().items())
    assert torch.equal(seen[0], holdout(scene).images) and torch.equal(seen[1], infection.train.images)
    assert same(first, purify(scene, defense(name))) and not same(first, purify(scene, defense(name), seed=1))
    assert not any(part.training for part in first.modules())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("aft", {"adversarial_epochs": 0, "natural_epochs": 0}),
        ("aft", {"budget": "iterations", "adversarial_iterations": 0, "natural_iterations": 0}),
        ("pbe", {"epochs": 0}),
        ("pbe", {"shares": []}),
    ],
)
def test_zero_epochs_change_nothing(name: str, changes: dict[str, Any], scene: Scene) -> None:
    assert same(purify(scene, defense(name, **changes)), scene[1].model)


@pytest.mark.parametrize("name", NAMES)
def test_fewer_images_than_a_batch(name: str, scene: Scene) -> None:
    _, infection = scene
    assert infection.train is not None
    few = {"holdout": holdout(scene).subset(torch.arange(5)), "train": infection.train.subset(torch.arange(30))}
    assert not same(purify(scene, defense(name, batch_size=128), **few), infection.model)


@pytest.mark.parametrize("name", NAMES)
def test_networks_without_batch_norm(name: str, scene: Scene) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)).eval()
    assert not same(purify(scene, defense(name), model=copy.deepcopy(plain)), plain)


@pytest.mark.wide
@pytest.mark.parametrize("name", NAMES)
def test_frozen_statistics_stay(name: str, scene: Scene) -> None:
    before, after = state(scene[1].model), state(purify(scene, defense(name, bn_mode="eval")))
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert moved and not any("running" in key or "num_batches" in key for key in moved)
    moving = state(purify(scene, defense(name, bn_mode="train")))
    assert all(not torch.equal(moving[key], before[key]) for key in before if "running" in key)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_leaves_the_finite_numbers_stops_it(name: str, scene: Scene) -> None:
    with pytest.raises(TrainingError, match=rf"the loss of '{name}' became "):
        purify(scene, defense(name, lr=1e20))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("aft", {"eps_255": -1}, "defense.eps_255 is -1; expected a number between 0 and 255. Change defense.eps_255."),
        (
            "aft",
            {"natural_epochs": -1},
            "defense.natural_epochs is -1; expected a number at least 0. Change defense.natural_epochs.",
        ),
        ("aft", {"schedule": "turns"}, "defense.schedule is 'turns'; expected two_phase or alternate."),
        (
            "pbe",
            {"shares": [0.05, 1.2]},
            "defense.shares[1] is 1.2; expected a number between 0 and 1. Change defense.shares[1].",
        ),
    ],
)
def test_a_wrong_setting_is_named(name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        defense(name, **change)
    assert str(caught.value) == said


def test_the_authors_values_are_the_defaults() -> None:
    shared = {
        "eps_255": 6, "steps": 7, "step_share": 0.2, "batch_size": 128, "lr": 0.001, "momentum": 0.9, "weight_decay": 5e-4,
        "bn_mode": "train",
    }  # fmt: skip
    aft, pbe = option("defense", "aft"), option("defense", "pbe")
    assert shared.items() <= aft.items() and shared.items() <= pbe.items()
    assert (aft["adversarial_epochs"], aft["natural_epochs"], aft["schedule"]) == (3, 17, "two_phase")
    per_epoch = len(spans(50_000, 128))  # 391
    assert (aft["adversarial_iterations"], aft["natural_iterations"]) == (3 * per_epoch, 17 * per_epoch)
    assert (pbe["shares"], pbe["epochs"], pbe["adversarial_batches"]) == ([0.05, 0.2, 0.5, 0.7], 10, 31)
    assert pbe["restart"] == "current"


@pytest.mark.parametrize("dataset", ["cifar10", "digits"])
def test_pbe_with_a_clean_set_is_aft(dataset: str) -> None:
    first, second = (compose([f"dataset={dataset}", f"defense={name}"])["defense"] for name in ("aft", "pbe_clean"))
    assert second == {**first, "name": "pbe_clean"}
    assert AFT.needs == {"model", "holdout"} and PBE.needs == {"model", "train"}


# ---- AFT, specification 3.8 -----------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("change", [{"eps_255": 0}, {"steps": 0}], ids=["eps 0", "K 0"])
def test_aft_1_without_a_perturbation_it_is_natural_fine_tuning(change: dict[str, Any], scene: Scene) -> None:
    assert same(purify(scene, defense("aft", adversarial_epochs=2, natural_epochs=1, **change)), tuned(scene, 3))


def test_aft_5_without_adversarial_epochs_it_is_fine_tuning(scene: Scene) -> None:
    assert same(purify(scene, defense("aft", adversarial_epochs=0, natural_epochs=3)), tuned(scene, 3))
    assert not same(purify(scene, defense("aft", adversarial_epochs=1, natural_epochs=2)), tuned(scene, 3))


def tuned(scene: Scene, epochs: int) -> nn.Module:
    """Plain FT with AFT's optimiser."""
    aft = defense("aft")
    shared = {name: getattr(aft.tuning, name) for name in ("batch_size", "lr", "momentum", "weight_decay")}
    return purify(scene, defense("ft", epochs=epochs, schedule="constant", **shared))


def test_aft_3_the_loss_rises(scene: Scene) -> None:
    model, craft = scene[1].model, PGD(6 / 255, 6 / 255 / 5, 7)
    images, labels = next(iter(holdout(scene).batches(20)))
    with torch.no_grad():
        before, after = (F.cross_entropy(model(x), labels) for x in (images, craft(model, images, labels)))
    assert after > before


@pytest.mark.slow
def test_aft_4_examples_of_an_infected_model_end_in_the_target_class(run: Callable[..., Job], outputs: Any) -> None:
    """The premise: the share of untargeted examples, from other classes, that are called the target."""
    ends = {attack: share_in_target(attack, outputs) for attack in ("badnets", "none")}
    assert ends["badnets"] > 2 / 9 and ends["none"] < 2 / 9


def share_in_target(attack: str, outputs: Any, radius: float = 64 / 255) -> float:
    made = plan.plan(compose([f"runtime.outputs={outputs}", "runtime.threads=1", f"attack={attack}"]))
    model = infect.obtain(made, made.splits.test, Finding("infect", ""))[0].model
    images, labels = next(iter(made.splits.test.batches(1000)))
    images, labels = images[labels != 0], labels[labels != 0]
    with torch.no_grad():
        called = model(PGD(radius, radius / 5, 7)(model, images, labels)).argmax(1)
    return metrics.share(called[called != labels] == 0)


def test_aft_runs_its_passes_in_the_order_of_the_schedule() -> None:
    def order(**changes: Any) -> str:
        return "".join("a" if adversarial else "n" for adversarial in defense("aft", **changes).passes(20))

    epochs = {"budget": "epochs", "adversarial_epochs": 2, "natural_epochs": 4}
    assert order(**epochs) == "aannnn"
    assert order(**epochs, schedule="alternate") == "anannn"
    assert order(**{**epochs, "adversarial_epochs": 4, "natural_epochs": 1}, schedule="alternate") == "anaaa"
    steps = {"budget": "iterations", "adversarial_iterations": 41, "natural_iterations": 40}
    assert order(**steps) == "aaann"  # rounded up to whole passes
    published = defense("aft", budget="iterations", adversarial_iterations=1173, natural_iterations=6647)
    assert len(published.passes(391)) == 20 and sum(published.passes(391)) == 3


def test_aft_keeps_one_optimiser_and_probes_every_pass(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    plain = module.make_optimizer
    monkeypatch.setattr("backdoorbench.training.fit.make_optimizer", lambda *args: (made.append(1), plain(*args))[1])
    seen, notes = [], dict[str, Any]()
    purify(scene, defense("aft"), probe=lambda model, epoch: seen.append(epoch), note=notes.__setitem__)
    assert made == [1] and seen == [0, 1, 2]
    assert notes == {"adversarial_passes": 1, "natural_passes": 2, "batches_per_pass": 3}


# ---- PBE, specification 4.7 -----------------------------------------------------------------------------------------


def selections(scene: Scene, chosen: PBE, seed: int = 0) -> list[tuple[str, torch.Tensor, torch.Tensor | None]]:
    found: list[tuple[str, torch.Tensor, torch.Tensor | None]] = []

    def keep(name: str, rows: torch.Tensor, suspicion: torch.Tensor | None, **_: torch.Tensor | None) -> None:
        found.append((name, rows, suspicion))

    purify(scene, chosen, seed, inspect=keep)
    assert found.pop(0)[0] == "null"
    return found


@pytest.mark.wide
def test_pbe_1_selections_have_their_sizes_and_no_duplicates(scene: Scene) -> None:
    found = selections(scene, defense("pbe", shares=[0.05, 0.29, 0.5, 0.7]))
    assert [name for name, _, _ in found] == ["selection0", "selection1", "selection2", "selection3"]
    assert [len(rows) for _, rows, _ in found] == [19, 110, 190, 266]  # of 380, rounded down
    for _, rows, _ in found:
        assert len(rows.unique()) == len(rows) and 0 <= rows.min() and rows.max() < 380
    assert found[0][2] is None and all(suspicion is not None and len(suspicion) == 380 for *_, suspicion in found[1:])
    assert defense("pbe", shares=[0.29]).count(0, 100) == 29  # 0.29 * 100 is 28.999999999999996


@pytest.mark.slow
def test_pbe_1_the_first_selection_is_as_poisoned_as_the_set(scene: Scene) -> None:
    poisoned = scene[1].poisoned
    assert poisoned is not None
    shares = [
        metrics.share(poisoned[selections(scene, defense("pbe", shares=[0.2], epochs=0), seed)[0][1]])
        for seed in range(30)
    ]
    error = math.sqrt(0.1 * 0.9 / 76 / 30)
    assert len(set(shares)) > 5 and abs(sum(shares) / 30 - 0.1) < 3 * error


@pytest.mark.wide
def test_pbe_2_the_infected_models_logits_are_read_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    infection, found = scene[1], list[torch.Tensor]()
    plain = module.logits

    def watched(model: nn.Module, images: ImageSet) -> torch.Tensor:
        found.append(plain(model, images))
        return found[-1]

    monkeypatch.setattr(module, "logits", watched)
    chosen = defense("pbe")
    asked = scenario(scene, chosen)
    chosen.purify(asked)
    assert (
        len(found) == 4
    )  # of the infected model, of its noisy copy, and before rounds 1 and 2; nothing after the last
    assert infection.train is not None
    with asked.autocast():
        assert torch.equal(plain(infection.model, infection.train), found[0])
    assert not torch.equal(found[0], found[1])


def test_pbe_3_the_infected_model_agrees_with_itself(scene: Scene) -> None:
    *_, (_, _, suspicion) = selections(scene, defense("pbe", epochs=0))
    assert suspicion is not None and suspicion.abs().max() <= 1e-6


def test_pbe_4_one_round_on_a_clean_set_is_adversarial_fine_tuning(scene: Scene) -> None:
    one = purify(scene, defense("pbe", shares=[1.0], epochs=2, batch_size=8, steps=2), train=holdout(scene))
    aft = defense("aft", adversarial_epochs=2, natural_epochs=0, batch_size=8, steps=2)
    assert same(one, purify(scene, aft, stream=Stream(0).child("purify").child("round0")))


@pytest.mark.slow
@pytest.mark.xfail(
    strict=False, reason="a finding: on digits most seeds rank upside down; CIFAR-10 is in docs/papers/pbe.md"
)
def test_pbe_5_poisoned_images_are_told_apart(run: Callable[..., Job]) -> None:
    notes = run("attack=badnets", "defense=pbe").run.purification.notes
    assert notes["selection0"]["auc"] is None
    assert notes["selection1"]["auc"] > 0.9 and notes["selection1"]["poisoned_share"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("patch", ["checker3", "half", "pale"])
def test_pbe_5_softer_patches_are_kept_out_and_erased(patch: str, run: Callable[..., Job], tmp_path: Path) -> None:
    if patch == "checker3":
        pattern = [f"attack.pattern={patch}"]
    else:  # white, as the patch that defeats it, but in part transparent
        side, alpha = (3, 128) if patch == "half" else (8, 64)
        Image.new("RGBA", (side, side), (255, 255, 255, alpha)).save(tmp_path / "white.png")
        pattern = ["attack.pattern=image", f"attack.patch_file={tmp_path}/white.png", f"attack.patch_size={side}"]
    found = run("attack=badnets", *pattern, "defense=pbe").run
    assert found.purification.notes["selection1"]["poisoned_share"] < 0.1
    assert found.infected is not None and found.infected.asr is not None and found.infected.asr > 0.9
    assert found.purified is not None and found.purified.asr is not None and found.purified.asr <= 0.15


def test_pbe_agreement_equals_a_plain_loop() -> None:
    first = torch.arange(40, dtype=torch.float64).mul(0.7).sin().view(8, 5).float()
    second = torch.arange(40, dtype=torch.float64).mul(1.3).cos().view(8, 5).float()
    second[3] = 0
    second[4] = -2 * first[4]
    for row, found in enumerate(agreement(first, second).tolist()):
        one, other = first[row].tolist(), second[row].tolist()
        norms = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
        product = sum(x * y for x, y in zip(one, other, strict=True))
        assert found == pytest.approx(0.5 + 0.5 * product / norms if norms else 0.0, abs=1e-12)
    assert agreement(first, second)[4] < 1e-12 and agreement(first, first).dtype == torch.float64


def test_pbe_takes_the_first_of_equal_scores() -> None:
    assert highest(torch.tensor([1.0, 0.5, 1.0, 0.7, 1.0, 0.7]), 4).tolist() == [0, 2, 3, 4]


def test_pbe_is_adversarial_in_round_0_and_at_the_start_of_the_others() -> None:
    chosen = defense("pbe", batch_size=32, adversarial_batches=3)
    assert all(chosen.is_adversarial(0, 100, step) for step in range(40))
    assert [chosen.is_adversarial(1, 1000, step) for step in range(5)] == [True, True, True, False, False]
    assert [chosen.is_adversarial(2, 64, step) for step in range(4)] == [True, True, False, False]  # one epoch at most


@pytest.mark.wide
@pytest.mark.parametrize(("restart", "optimisers"), [("current", 1), ("infected", 3)])
def test_pbe_restarts_where_asked(restart: str, optimisers: int, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    made, starts, seen = list[int](), list[dict[str, torch.Tensor]](), list[int]()
    optimizer, fit = module.make_optimizer, module.fit
    monkeypatch.setattr(module, "make_optimizer", lambda *args: (made.append(1), optimizer(*args))[1])
    monkeypatch.setattr(module, "fit", lambda model, *a, **k: (starts.append(state(model)), fit(model, *a, **k))[1])
    purify(scene, defense("pbe", restart=restart, epochs=2), probe=lambda model, epoch: seen.append(epoch))
    assert len(made) == optimisers and len(starts) == 3 and seen == [0, 1, 2, 3, 4, 5]
    infected = state(scene[1].model)
    for start in starts[1:]:
        assert all(torch.equal(start[name], infected[name]) for name in infected) == (restart == "infected")


def test_pbe_needs_the_training_set_and_two_images_a_round(scene: Scene) -> None:
    with pytest.raises(PairingError, match="pbe needs the training set, but wanet drives the training itself"):
        defense("pbe").check({"train": False, "holdout": True}, "wanet")
    defense("pbe").check({"train": True, "holdout": False}, "badnets")
    with pytest.raises(DataError) as caught:
        purify(scene, defense("pbe", shares=[0.1, 0.005]))
    assert str(caught.value) == (
        "defense.shares[1] is 0.005, 1 of the 380 training images; expected at least 2, the fewest that batch norm can work "
        "with. Raise it."
    )


# ---- what is told about a selection, and to whom --------------------------------------------------------------------


def test_auc_equals_a_plain_loop() -> None:
    scores = (torch.arange(60) * 7 % 13).float()  # with ties
    positive = torch.arange(60) % 4 == 1
    pairs = [(float(a), float(b)) for a in scores[positive] for b in scores[~positive]]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    assert metrics.auc(scores, positive) == pytest.approx(expected)
    assert metrics.auc(-scores, positive) == pytest.approx(1 - expected)
    assert metrics.auc(scores, positive & False) is None and metrics.auc(scores, positive | True) is None


def test_a_selection_is_judged_for_the_record_only(scene: Scene) -> None:
    infection = scene[1]
    run = Finding("purify", "")
    judge = watch.inspection(infection, run)
    assert infection.poisoned is not None
    rows = torch.cat([infection.poisoned.nonzero()[:3, 0], (~infection.poisoned).nonzero()[:9, 0]])
    assert judge("first", rows, None) is None  # type: ignore[func-returns-value]
    assert judge("second", rows, infection.poisoned.double()) is None  # type: ignore[func-returns-value]
    assert run.notes["first"] == {"images": 12, "poisoned_share": 0.25, "auc": None}
    assert run.notes["second"] == {"images": 12, "poisoned_share": 0.25, "auc": 1.0}
    watch.inspection(replace(infection, poisoned=None), run)("third", rows, None)
    assert run.notes["third"] == {"images": 12}


@pytest.mark.wide
def test_the_record_tells_what_margins_alone_tell(scene: Scene) -> None:
    notes = Finding("purify", "")
    purify(scene, defense("pbe"), inspect=watch.inspection(scene[1], notes))
    null, first = notes.notes["null"], notes.notes["selection1"]
    assert null["auc_margin"] == first["auc_margin"]
    assert null["auc"] + null["auc_margin"] == pytest.approx(1, abs=0.35)  # noise turns what is sure least
    assert 0 <= first["auc_matched"] <= 1 and "auc_margin" not in notes.notes["selection0"]


def test_noise_has_its_share_of_each_tensors_norm(scene: Scene) -> None:
    model = scene[1].model
    shaken = noisy(model, 0.05, Stream(0))
    for before, after in zip(model.parameters(), shaken.parameters(), strict=True):
        assert (after - before).norm().item() == pytest.approx(0.05 * before.norm().item(), rel=1e-4)


def test_a_margin_is_the_lead_of_the_given_label() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0], [0.0, -1.0, 3.0]])
    assert margin(logits, torch.tensor([1, 0])).tolist() == [2.0, -3.0]


def test_scores_that_are_margins_tell_nothing_among_like_margins() -> None:
    generator = torch.Generator().manual_seed(0)
    positive = torch.arange(4000) < 800
    margins = torch.randn(4000, generator=generator) + 2 * positive
    assert metrics.auc(margins, positive) > 0.9
    noise = torch.randn(4000, generator=generator)
    assert metrics.matched_auc(noise, positive, margins) == pytest.approx(0.5, abs=0.03)
    assert metrics.matched_auc(margins, positive, margins) < 0.8
    assert metrics.matched_auc(noise + 3 * positive, positive, margins) > 0.95
    assert metrics.matched_auc(noise, positive & False, margins) is None


@pytest.mark.wide
def test_being_inspected_changes_nothing(scene: Scene) -> None:
    judged = purify(scene, defense("pbe"), inspect=watch.inspection(scene[1], Finding("purify", "")))
    assert same(judged, purify(scene, defense("pbe")))
