"""Blind's pattern, its balance of two losses, when the second one starts; that it takes on digits.

python -m pytest tests/test_blind.py
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_input_aware import RECIPE, task, weights
from torch import nn

from backdoorbench.attacks import blind
from backdoorbench.attacks.blind import Blind, Waiting, balance, nearest_to_zero, scaled
from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.data.images import ImageSet
from backdoorbench.models.base import Classifier
from backdoorbench.pipeline.job import Job
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import Snapshots

CPU = torch.device("cpu")


def attack(**changes: Any) -> Blind:
    built: Blind = build({**option("attack", "blind"), **changes}, "attack")
    return built


def blank(size: int) -> ImageSet:
    return ImageSet(torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("a", "b"))


@pytest.fixture
def few(images: ImageSet) -> ImageSet:
    """20 of the images: two batches of 8 and one of 4."""
    return images.subset(torch.arange(20))


def test_the_pattern_is_nine_pixels_in_black_and_white() -> None:
    made = attack().trigger(32)
    shown = made(torch.full((1, 3, 32, 32), 0.5))[0]
    cells = {0.0: "0", 0.5: ".", 1.0: "1"}
    for plane in shown:
        rows = ["".join(cells[float(value)] for value in row) for row in plane[3:8, 23:26]]
        assert rows == ["101", ".1.", "..0", ".1.", "101"]
    assert int(made.mask.sum()) == 9
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[3:8, 23:26] = False
    assert (shown[:, outside] == 0.5).all()


@pytest.mark.parametrize("size", [32, 64, 224])
def test_contract(size: int) -> None:
    made = attack().test_trigger(task(blank(size)), Stream(0))
    wave = torch.arange(2 * 3 * size * size).mul(0.37).sin().add(1).div(2).view(2, 3, size, size)
    images = to_float(to_bytes(wave))
    shown = made(images)
    assert torch.equal(made(shown), shown) and torch.equal(shown[1:], made(images[1:]))
    assert int((shown != images).any(1).sum()) <= 2 * 9 * (size / 32) ** 2


def test_test_images_carry_the_pattern_where_the_training_showed_it() -> None:
    """Of 64 pixels a training shows crops of 48; the network reads the middle 48 of a test image."""
    few, seen = blank(64), []
    few = ImageSet(few.images.expand(8, -1, -1, -1).clone(), torch.zeros(8, dtype=torch.int64), few.classes)
    augment = Augment(crop_padding=0, flip=False, rotation=0.0, resized_crop=(1.0, 1.0), crop=48)
    work = task(few, recipe=replace(RECIPE, epochs=1, augment=augment))

    def build(stream: Stream) -> nn.Module:
        layers = nn.Flatten(), nn.Linear(3 * 48 * 48, 10)
        net = nn.Sequential(*layers)
        net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        return Classifier(net, 48, (0.0,) * 3, (1.0,) * 3)

    found = attack(history=0).infect(replace(work, build=build), Stream(0))
    assert found.trigger is not None
    found.model(found.trigger(to_float(few.images[:1])))
    training, test = seen  # the clean batch and its copy; one test image
    assert torch.equal(training[8:9], test) and 0 < int((test > 0).any(1).sum()) <= 7 * 2**2


def test_the_weight_is_the_point_nearest_to_zero() -> None:
    """Against a search over a grid, for random pairs of vectors."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.linspace(0.001, 0.999, 999)
    for _ in range(50):
        first, second = torch.randn(2, 3, generator=generator) * torch.rand(2, 1, generator=generator) * 3
        found = float(nearest_to_zero(first @ first, first @ second, second @ second))
        lengths = (steps[:, None] * first + (1 - steps)[:, None] * second).norm(dim=1)
        assert found == pytest.approx(float(steps[lengths.argmin()]), abs=2e-3)
        assert 0.001 <= found <= 0.999 + 1e-6


def test_a_gradient_is_scaled_by_its_loss_and_length() -> None:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    for factor, length in ((1.0, 5.0), (0.01, 0.05), (100.0, 500.0)):
        loss = factor * parameter.square().sum() / 2  # 12.5 factor; its gradient is `length` long
        (found,) = scaled(loss, [parameter])
        divisor = min(12.5 * factor * length, 10.0) + 1e-5
        assert float(found.norm()) == pytest.approx(length / divisor, rel=1e-5)


def test_mgda_weighs_two_tasks_that_oppose_each_other() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    same = balance((parameter - 0).square().sum(), (parameter - 2).square().sum(), [parameter])
    assert float(same) == pytest.approx(0.5, abs=1e-4)  # equal losses, opposite gradients
    easy = balance((parameter - 1.01).square().sum(), (parameter - 2).square().sum(), [parameter])
    assert 0.001 <= float(easy) < 0.5  # the tiny loss's gradient is scaled up and needs little weight


def test_the_second_loss_waits_for_the_first() -> None:
    waiting = Waiting(3, 1.0, CPU)
    for epoch, losses in enumerate(([0.1, 0.1], [3.0, 0.1], [0.5, 0.3], [9.0, 9.0])):
        for loss in losses:
            waiting.see(torch.tensor(loss))
        waiting.decide(epoch)
        assert waiting.over == (epoch == 2)  # two batches are too few; then the mean is 1.07, 0.3, 6.1
    assert waiting.started == 4
    assert Waiting(0, 1.0, CPU).over


@pytest.mark.parametrize("one_pass", [True, False])
def test_both_losses_are_of_the_whole_batch(one_pass: bool, few: ImageSet) -> None:
    seen: list[torch.Tensor] = []
    work = task(few, recipe=replace(RECIPE, epochs=2))

    def build(stream: Stream) -> nn.Module:
        model = work.build(stream)
        model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        return model

    chosen = attack(threshold=100.0, history=3, one_pass=one_pass)
    found = chosen.infect(replace(work, build=build), Stream(0))
    second = [16, 16, 8] if one_pass else [8, 8, 8, 8, 4, 4]  # the second epoch has both copies
    assert [len(images) for images in seen] == [8, 8, 4, *second]
    copies = torch.cat(seen[3:]).split([8, 8, 8, 8, 4, 4])
    made = attack().trigger(32)
    assert all(torch.equal(made(clean), shown) for clean, shown in zip(copies[::2], copies[1::2], strict=True))
    assert found.facts == {"started_epoch": 2, "poisoned": 20} and found.train is None and found.poisoned is None


def test_the_losses_are_weighed_and_the_copy_is_the_targets(few: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[float] = []
    whole = ImageSet(few.images[:8], few.labels[:8], few.classes)
    work = task(whole, recipe=replace(RECIPE, epochs=1))

    def watched(model: nn.Module, train: ImageSet, *_: Any, loss: Any, **__: Any) -> list[Any]:
        images, labels = to_float(train.images), train.labels
        values.append(float(loss(model, images, labels).detach()))
        clean, shown = model(images), model(attack().trigger(32)(images))
        wanted = (labels + 1) % 10
        parts = [nn.functional.cross_entropy(a, b) for a, b in ((clean, labels), (shown, wanted))]
        weight = balance(parts[1], parts[0], list(model.parameters()))
        fixed, mgda = parts[0] + 0.9 * parts[1], weight * parts[1] + (1 - weight) * parts[0]
        values.extend((float(fixed.detach()), float(mgda.detach())))
        return []

    monkeypatch.setattr(blind, "fit", watched)
    for way, place in (("fixed", 1), ("mgda", 2)):
        values.clear()
        attack(balance=way, history=0, mapping="all_to_all").infect(work, Stream(0))
        assert values[0] == pytest.approx(values[place], rel=1e-4)


@pytest.mark.parametrize("one_pass", [True, False])
def test_smoothed_labels_do_not_keep_the_second_loss_waiting(
    one_pass: bool, few: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threshold is on the cross-entropy alone: of 43 classes a fifth smoothed, no network's is below 1.22."""
    noted, smoothed = [], []

    def watched(model: nn.Module, train: ImageSet, *_: Any, loss: Any, **__: Any) -> list[Any]:
        smoothed.append(float(loss(model, to_float(train.images), train.labels).detach()))
        noted.append(float(nn.functional.cross_entropy(model(to_float(train.images)), train.labels).detach()))
        return []

    monkeypatch.setattr(blind, "fit", watched)
    monkeypatch.setattr(Waiting, "see", lambda self, loss: noted.append(float(loss)))
    attack(one_pass=one_pass).infect(task(few, recipe=replace(RECIPE, label_smoothing=0.2)), Stream(0))
    assert noted[0] == pytest.approx(noted[1], rel=1e-5) and smoothed[0] != pytest.approx(noted[0], rel=1e-3)


def test_a_second_loss_that_never_runs_is_said(few: ImageSet, caplog: pytest.LogCaptureFixture) -> None:
    found = attack(threshold=0.0).infect(task(few), Stream(0))
    assert found.facts == {"started_epoch": None, "poisoned": 0}
    assert caplog.messages == [
        "blind never ran its second loss: the mean clean loss of the last 6 batches stayed at 0 or more. Train for longer, or "
        "raise attack.threshold."
    ]


def test_a_killed_training_resumes_from_its_last_epoch(few: ImageSet, tmp_path: Any) -> None:
    chosen = attack(threshold=100.0, history=3)
    work = task(few, Snapshots(tmp_path / "state.pt", every_seconds=0), replace(RECIPE, epochs=3))
    whole = chosen.infect(replace(work, snapshots=None), Stream(0))
    decide, epochs = Waiting.decide, 0

    def killed(waiting: Waiting, epoch: int) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 3:
            raise KeyboardInterrupt
        decide(waiting, epoch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Waiting, "decide", killed)
        with pytest.raises(KeyboardInterrupt):
            chosen.infect(work, Stream(0))
    resumed = chosen.infect(work, Stream(0))
    assert torch.equal(weights(resumed.model), weights(whole.model)) and resumed.facts == whole.facts


@pytest.mark.slow
def test_takes_on_digits(run: Callable[..., Job]) -> None:
    found = run("attack=blind", "defense=none").run
    assert found.infected is not None and found.infected.asr is not None
    assert found.infected.asr >= 0.8 and found.infected.ca >= 0.95
