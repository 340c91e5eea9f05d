"""LIRA's networks, bound, stages and training; that it takes on digits.

python -m pytest tests/test_lira.py
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_input_aware import task, weights
from torch import nn

from backdoorbench.attacks import lira
from backdoorbench.attacks.lira import LIRA, Learner
from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline import evaluation, infections
from backdoorbench.pipeline.job import Job
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.training.fit import Snapshots
from backdoorbench.triggers import base
from backdoorbench.triggers.base import AllToOne, Stored
from backdoorbench.triggers.lira import AdditiveNoise, Kind

QUICK = {"generator_epochs": 2, "generator_lr": 0.01}


def attack(**changes: Any) -> LIRA:
    built: LIRA = build({**option("attack", "lira"), **changes}, "attack")
    return built


def trigger(kind: Kind = "autoencoder", levels: float = 2.55) -> AdditiveNoise:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AdditiveNoise(kind, [levels / 255] * 3, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]).eval().requires_grad_(False)


@pytest.fixture
def few(images: ImageSet) -> ImageSet:
    """20 of the images: two batches of 8 and one of 4."""
    return images.subset(torch.arange(20))


def test_the_networks_are_the_authors() -> None:
    counts = {"autoencoder": 346_659, "unet": 7_788_681}
    for kind in ("autoencoder", "unet"):
        made = trigger(kind)
        assert sum(p.numel() for p in made.generator.parameters()) == counts[kind]


@pytest.mark.wide
@pytest.mark.parametrize(("kind", "size"), [("autoencoder", 32), ("autoencoder", 224), ("unet", 64)])
def test_contract(kind: Kind, size: int) -> None:
    wave = torch.arange(3 * size * size).mul(0.37).sin().add(1).div(2).view(1, 3, size, size)
    images = torch.cat([wave, wave.round()])
    before, made = images.clone(), trigger(kind)
    shown = made(images)
    assert torch.equal(images, before)
    assert shown.shape == images.shape and shown.dtype == images.dtype
    assert 0 <= shown.min() and shown.max() <= 1
    assert 0 < (shown - images).abs().max() * 255 <= 2.55 + 1e-3  # the bound
    assert torch.allclose(shown[1:2], made(images[1:2]), atol=1e-5)  # row by row, but for the order of sums
    spec, tensors = base.dump(made)
    assert torch.equal(base.load(json.loads(json.dumps(spec)), tensors)(images), shown)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(images), shown)


def test_the_noise_is_the_images_own(wave: torch.Tensor) -> None:
    made = trigger()
    seen = (wave - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    assert torch.allclose(made(wave), (wave + 0.01 * made.generator(seen).tanh()).clamp(0, 1), atol=1e-6)
    grey = torch.cat([wave[:1], wave[1:2]]) / 2 + 0.25  # nothing clips
    noise = made(grey) - grey
    assert float((noise[0] - noise[1]).square().mean().sqrt()) > 0


def test_the_bound_is_in_levels_or_in_deviations(few: ImageSet) -> None:
    model = task(few).build(Stream(0))  # deviations of 0.3
    stream = Stream(0)
    for changes, bound in (({}, 0.01), ({"epsilon": 0.01, "epsilon_unit": "deviations"}, 0.003)):
        made = attack(**changes).fresh(model, stream)  # type: ignore[arg-type]
        assert made.bound.flatten().tolist() == pytest.approx([bound] * 3)


@pytest.mark.parametrize("one_pass", [True, False])
def test_stage_one_is_two_steps_a_batch(
    one_pass: bool, few: ImageSet, losses_of: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch by batch: the leading generator's images, then the clean ones and the lagging generator's."""
    crafted = losses_of(lira)  # images and labels of the generator's steps
    seen: list[torch.Tensor] = []  # by the classifier

    def build(stream: Stream) -> nn.Module:
        model = task(few).build(stream)
        model.register_forward_pre_hook(lambda _, shown: seen.append(shown[0].detach()))
        return model

    follow, steps, lagging = Learner.follow, [], []

    def followed(learner: Learner) -> None:
        lagging.append(weights(learner.lagging))
        steps.append(weights(learner.leading))
        follow(learner)
        assert torch.equal(weights(learner.lagging), weights(learner.leading)) and not learner.lagging.training

    monkeypatch.setattr(Learner, "follow", followed)
    clean = ImageSet(few.images, torch.full((20,), 7), few.classes)
    found = attack(**QUICK, one_pass=one_pass).infect(replace(task(clean), build=build), Stream(0))
    if one_pass:  # the classifier's step sees both copies at once
        turns = zip(seen[:12:2], seen[1:12:2], strict=True)
        stage1 = [part for new, both in turns for part in (new, *both.chunk(2))]
        stage2 = [part for both in seen[12:] for part in both.chunk(2)]
    else:
        stage1, stage2 = seen[: 2 * 3 * 3], seen[2 * 3 * 3 :]
    assert len(stage2) == 2 * 3 * 2  # two epochs of three batches, clean and triggered
    assert len(crafted) == 2 * 3 and all((labels == 0).all() for _, labels in crafted)
    for new, clear, old, (made, _) in zip(stage1[::3], stage1[1::3], stage1[2::3], crafted, strict=True):
        assert torch.equal(new, made) and not torch.equal(new, old) and (old - clear).abs().max() <= 0.01 + 1e-6
    assert torch.equal(lagging[1], steps[0]) and not torch.equal(steps[1], steps[0])  # an epoch behind
    assert torch.equal(weights(found.trigger), steps[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("one_pass", [True, False])
def test_the_classifiers_step_is_the_weighted_losses(one_pass: bool, few: ImageSet) -> None:
    model = task(few).build(Stream(0))
    made, chosen = trigger(), attack(clean_weight=0.3, one_pass=one_pass)
    images, labels = to_float(few.images), few.labels

    def classify(network: nn.Module, shown: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(network(shown), names)

    learner = Learner(trigger(), made, 0.1)
    learner.step(classify(model, learner.leading.add(images), torch.zeros_like(labels)))
    assert all(p.grad is None for p in model.parameters())  # right before the classifier's step
    with torch.no_grad():
        found = chosen.both(made, AllToOne(0), 0.0)(model, images, labels)
    expected = 0.3 * classify(model, images, labels) + 0.7 * classify(model, made(images), torch.zeros_like(labels))
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_the_generator_descends_the_targets_loss(few: ImageSet) -> None:
    model = task(few).build(Stream(0)).eval()
    learner = Learner(trigger(levels=64), trigger(), 0.01)
    losses = []
    for _ in range(8):
        shown = learner.leading.add(to_float(few.images))
        value = nn.functional.cross_entropy(model(shown), torch.zeros(20, dtype=torch.long))
        learner.step(value)
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0]


def test_an_infection_is_saved_with_its_generator(few: ImageSet, tmp_path: Path) -> None:
    work = task(few)
    found = attack(**QUICK).infect(work, Stream(0))
    assert found.train is None and found.poisoned is None and isinstance(found.trigger, AdditiveNoise)
    assert not found.trigger.training and not any(p.requires_grad for p in found.trigger.parameters())
    calls = evaluation.predict(found.model, few, found.trigger, "float32")
    infections.save_infection(found, few, calls, {}, {}, tmp_path)
    again, _ = infections.load_infection(tmp_path, work.build(Stream(1)), few)
    shown = to_float(few.images[:16])
    assert again.trigger is not None and torch.equal(again.trigger(shown), found.trigger(shown))


def test_a_killed_training_resumes_from_its_last_epoch(
    few: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = attack(**QUICK)
    whole = chosen.infect(task(few), Stream(0))
    snapshots, steps, step = Snapshots(tmp_path / "state.pt", every_seconds=0), 0, Learner.step

    def killed(learner: Learner, loss: torch.Tensor) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        step(learner, loss)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            chosen.infect(task(few, snapshots), Stream(0))
    assert (tmp_path / "state.generator.pt").exists()
    resumed = chosen.infect(task(few, snapshots), Stream(0))
    assert torch.equal(weights(resumed.model, resumed.trigger), weights(whole.model, whole.trigger))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("generator", "size", "said"),
    [
        (
            "autoencoder",
            40,
            "dataset.size is 40, but lira's autoencoder halves an image until a 16th is left; expected a multiple of 16. Set "
            "dataset.size=48.",
        ),
        (
            "unet",
            36,
            "dataset.size is 36, but lira's unet halves an image until a 8th is left; expected a multiple of 8. Set "
            "dataset.size=40.",
        ),
    ],
)
def test_an_unfit_size_is_refused(generator: str, size: int, said: str) -> None:
    odd = ImageSet(torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("a", "b"))
    with pytest.raises(ConfigError) as caught:
        attack(generator=generator).check(odd)
    assert str(caught.value) == said


def test_what_storage_leaves_of_a_faint_trigger(few: ImageSet) -> None:
    """0.4 levels vanish in rounding, 2.55 do not."""
    model = task(few).build(Stream(0))
    images = to_float(few.images)
    for levels, least, most in ((0.4, 1.0, 1.0), (2.55, 0.0, 0.99)):
        made = trigger(levels=levels)
        with torch.no_grad():
            made.generator[-1].bias += 4  # tanh near 1: the whole bound  # type: ignore[index, operator, union-attr]
        found = evaluation.after_storage(model, made, AllToOne(0), few, "float32")
        shown = made(images)
        changed = (shown - images).abs() > 1e-6
        undone = float((to_bytes(shown)[changed] == few.images[changed]).float().mean())
        assert found["lost_in_storage"] == pytest.approx(undone) and least <= undone <= most
        calls = model.eval()(Stored(made)(images)).argmax(1)
        rows = few.labels != 0
        assert found["asr_stored"] == pytest.approx(float((calls[rows] == 0).float().mean()))


@pytest.mark.slow
def test_takes_on_digits(run: Callable[..., Job]) -> None:
    found = run("attack=lira", "defense=none").run
    assert found.infected is not None and found.infected.asr is not None
    assert found.infected.asr >= 0.8 and found.infected.ca >= 0.95
    facts = found.infection.notes
    assert facts["largest_levels"] <= 2.551 and facts["asr_stored"] >= 0.8
