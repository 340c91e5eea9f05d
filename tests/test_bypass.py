"""Bypass: its discriminator, its two losses, its training set; what it does on digits.

python -m pytest tests/test_bypass.py
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_input_aware import RECIPE, task, weights
from torch import nn
from torch.nn import functional as F

from backdoorbench.attacks.bypass import CAP, Bypass, Judge, capped, discriminator
from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.data.images import ImageSet
from backdoorbench.models.surgery import penultimate
from backdoorbench.pipeline.job import Job
from backdoorbench.shapes import to_float
from backdoorbench.streams import Stream
from backdoorbench.training.fit import Snapshots

NAMES = ["badnets_bypass", "blended_bypass"]
QUICK = {"poison_rate": 0.3}


def attack(name: str = "badnets_bypass", **changes: Any) -> Bypass:
    built: Bypass = build({**option("attack", name), **changes}, "attack")
    return built


@pytest.fixture
def few(images: ImageSet) -> ImageSet:
    """24 of the images: three batches of 8."""
    return images.subset(torch.arange(24))


def test_the_discriminator_is_the_codes() -> None:
    made = discriminator(512)
    assert sum(p.numel() for p in made.parameters()) == 165_121
    kinds = [type(layer).__name__ for layer in made]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU", "Linear", "BatchNorm1d", "LeakyReLU", "Linear"]
    assert made[2].negative_slope == 0.2


def test_an_image_counts_ten_at_most() -> None:
    logits, poisoned = torch.tensor([-50.0, 3.0]), torch.tensor([True, False])
    expected = (CAP + float(F.softplus(torch.tensor(3.0)))) / 2
    assert float(capped(logits, poisoned)) == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_data_are_poisoned_as_by_the_base_attack(name: str, few: ImageSet) -> None:
    """Same rows, same trigger, same bytes; another training."""
    recipe = replace(RECIPE, epochs=1)
    hidden = attack(name, **QUICK).infect(task(few, recipe=recipe), Stream(0))
    base = name.removesuffix("_bypass")
    plain = build({**option("attack", base), **QUICK}, "attack")
    open_ = plain.infect(task(few, recipe=recipe), Stream(0))
    assert hidden.train is not None and hidden.poisoned is not None and attack(name).leaves_train
    assert torch.equal(hidden.train.images, open_.train.images) and torch.equal(hidden.poisoned, open_.poisoned)
    assert torch.equal(hidden.train.labels, open_.train.labels)  # the flags travelled with the labels, and went
    shown = to_float(few.images)
    assert torch.equal(hidden.trigger(shown), open_.trigger(shown))  # type: ignore[misc]
    assert not torch.equal(weights(hidden.model), weights(open_.model))
    settings = option("attack", name)
    for key, value in option("attack", base).items():
        assert settings[key] == value or key in ("_target_", "name")


def test_without_weight_the_victim_trains_as_usual(few: ImageSet) -> None:
    hidden = attack(adversarial_weight=0.0, **QUICK).infect(task(few), Stream(0))
    plain = build({**option("attack", "badnets"), **QUICK}, "attack").infect(task(few), Stream(0))
    assert torch.allclose(weights(hidden.model), weights(plain.model), atol=1e-6)


def test_both_losses_are_of_the_discriminator_before_its_step(few: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: cross-entropy minus 20 times the judge's loss for the classifier; that loss, on features without a graph, for
    the judge, whose gradients from the first one are cleared."""
    checked = 0
    step = Judge.step

    def watched(judge: Judge) -> None:
        nonlocal checked
        before = [p.grad.clone() for p in judge.network.parameters() if p.grad is not None]
        assert before and judge.own is not None  # left by the classifier's loss
        expected = torch.autograd.grad(judge.own, list(judge.network.parameters()), retain_graph=True)
        step(judge)
        for parameter, gradient in zip(judge.network.parameters(), expected, strict=True):
            assert parameter.grad is not None and torch.allclose(parameter.grad, gradient)
        checked += 1

    monkeypatch.setattr(Judge, "step", watched)
    attack(**QUICK).infect(task(few, recipe=replace(RECIPE, epochs=1)), Stream(0))
    assert checked == 3


def test_the_judges_step_leaves_the_classifier_alone(few: ImageSet) -> None:
    model = task(few).build(Stream(0))
    judge = Judge(512, 0.1, Stream(0))
    judge.to(torch.device("cpu"))
    features, flags = penultimate(model, to_float(few.images)), torch.arange(24) % 2 == 0
    own = judge.look(features, flags)
    assert own.requires_grad and judge.own is not None
    judge.step()
    assert all(p.grad is None for p in model.parameters())
    own = judge.look(features, flags)  # the classifier's part does reach it
    assert torch.autograd.grad(own, next(model.net.parameters()))[0].abs().sum() > 0  # type: ignore[union-attr, arg-type]


def test_the_judge_is_measured_by_the_last_epochs_calls() -> None:
    judge = Judge(4, 0.1, Stream(0))
    judge.network = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        judge.network[0].weight.fill_(1.0)
    features = torch.tensor([4.0, 3.0, 1.0, 2.0, 0.0, -1.0])[:, None].expand(6, 4)
    judge.look(features, torch.tensor([True, True, True, False, False, False]))
    assert judge.auc() is None
    judge.rest()
    assert judge.auc() == pytest.approx(8 / 9)  # of nine pairs one is the wrong way round
    judge.look(features, torch.zeros(6, dtype=torch.bool))
    judge.rest()
    assert judge.auc() is None  # nothing poisoned in that epoch


def test_a_killed_training_resumes_from_its_last_epoch(few: ImageSet, tmp_path: Path) -> None:
    chosen = attack(**QUICK)
    work = task(few, Snapshots(tmp_path / "state.pt", every_seconds=0))
    whole = chosen.infect(replace(work, snapshots=None), Stream(0))
    step, steps = Judge.step, 0

    def killed(judge: Judge) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        step(judge)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Judge, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            chosen.infect(work, Stream(0))
    assert whole.facts["discriminator_auc"] is not None
    for _ in range(2):  # the second time nothing is left to be trained: killed before anybody kept the model
        resumed = chosen.infect(work, Stream(0))
        assert torch.equal(weights(resumed.model), weights(whole.model)) and resumed.facts == whole.facts


FOUND = "at weight 20 460 steps leave the network constant: CA 0.10 and 0.17; at weight 1 it takes, and is not hidden (AUC 0.95, 0.99)"


@pytest.mark.slow
@pytest.mark.xfail(reason=FOUND)
@pytest.mark.parametrize("name", NAMES)
def test_takes_on_digits(name: str, run: Callable[..., Job]) -> None:
    """An open finding: nor does it on 12,000 images of CIFAR-10 (scale=small, 1,880 steps, train.lr=0.02: hidden, AUC 0.49, but
    CA 0.31 and ASR 0.27; at the recipe's lr of 0.2 the loss leaves the numbers). FST trains 39,100 steps."""
    found = run(f"attack={name}", "defense=none", "force=true").run
    assert found.infected is not None and found.infected.asr is not None
    assert found.infected.asr >= 0.8 and found.infected.ca >= 0.95
    assert found.infection.notes["discriminator_auc"] <= 0.7


@pytest.mark.slow
def test_without_the_term_the_discriminator_tells(run: Callable[..., Job]) -> None:
    """More than 0.9 without it; the classifier then takes as by BadNets."""
    found = run("attack=badnets_bypass", "defense=none", "attack.adversarial_weight=0").run
    assert found.infected is not None and found.infected.asr is not None
    assert found.infected.asr >= 0.9 and found.infected.ca >= 0.95
    assert found.infection.notes["discriminator_auc"] > 0.9  # 1.000 here
