"""BPP's quantisation, its negatives; and that digits are no place for it.

python -m pytest tests/test_bpp.py
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from backdoorbench.attacks.bpp import BPP
from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline.job import Job
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.triggers import base
from backdoorbench.triggers.quantise import ForeignResidual, Quantise, floyd_steinberg

LEVELS = {0, 36, 73, 109, 146, 182, 219, 255}


def attack(**changes: Any) -> BPP:
    built: BPP = build({**option("attack", "bpp"), **changes}, "attack")
    return built


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("dither", [False, True])
def test_contract(dither: bool, size: int) -> None:
    wave = torch.arange(2 * 3 * size * size).mul(0.37).sin().add(1).div(2).view(2, 3, size, size)
    images = torch.cat([to_float(to_bytes(wave)), torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)])
    before, trigger = images.clone(), Quantise(8, dither)
    shown = trigger(images)
    assert torch.equal(images, before)
    assert shown.shape == images.shape and shown.dtype == images.dtype
    assert torch.equal(shown[1:2], trigger(images[1:2]))
    assert {int(value) for value in (shown * 255).round().unique()} == LEVELS
    assert torch.equal(shown[2:], images[2:])
    spec, tensors = base.dump(trigger)
    assert torch.equal(base.load(json.loads(json.dumps(spec)), tensors)(images), shown)


def test_without_dithering_values_move_by_eighteen_levels_and_only_once(wave: torch.Tensor) -> None:
    trigger, stored = Quantise(8, False), to_float(to_bytes(wave))
    shown = trigger(stored)
    assert torch.equal(trigger(shown), shown)
    assert round(float((shown - stored).abs().max()) * 255) == 18


def test_dithering_is_what_a_plain_loop_does(wave: torch.Tensor) -> None:
    images = wave[:2, :, :9, :7].double()
    expected = images.clone()
    for y in range(9):
        for x in range(7):
            before = expected[..., y, x].clone()
            expected[..., y, x] = (before * 7).round() / 7
            error = before - expected[..., y, x]
            for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if y + down < 9 and 0 <= x + right < 7:
                    expected[..., y + down, x + right] += error * share / 16
    assert torch.allclose(floyd_steinberg(images, 8), expected, atol=1e-9)


def test_dithering_keeps_the_mean_of_an_area() -> None:
    grey = torch.full((1, 3, 32, 32), 0.47)
    assert abs(float(Quantise(8, True)(grey).mean()) - 0.47) < 0.01
    assert abs(float(Quantise(8, False)(grey).mean()) - 0.47) > 0.04


def test_a_batch_is_triggered_then_negative_then_clean(wave: torch.Tensor) -> None:
    chosen, images = attack(poison_rate=0.2), to_float(to_bytes(wave.repeat(5, 1, 1, 1).roll(1, -1)))
    trigger, rows = chosen.trigger(None, Stream(0)), Counter[str]()  # type: ignore[arg-type]
    change = chosen.mix(trigger, chosen.cover(trigger), chosen.make_target(10), rows)
    labels = torch.arange(20) % 10
    shown, names = change(images, labels, Stream(0))
    assert rows == {"all": 20, "poisoned": 4, "cover": 4}
    assert torch.equal(shown[:4], trigger(images[:4])) and (names[:4] == 0).all()
    others = images[5:9]
    assert torch.equal(shown[4:8], (images[4:8] + trigger(others) - others).clamp(0, 1))
    assert torch.equal(shown[8:], images[8:]) and torch.equal(names[4:], labels[4:])


def test_a_foreign_residual_is_no_trigger(wave: torch.Tensor) -> None:
    cover = ForeignResidual(Quantise(8, False))
    stored = to_float(to_bytes(wave))
    assert torch.allclose(cover(stored, stored, Stream(0)), cover.trigger(stored), atol=1e-6)  # its own residual is
    assert (cover(stored, stored.flip(0), Stream(0)) - cover.trigger(stored)).abs().max() > 0.05


def test_one_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="attack.levels is 1; expected a number between 2 and 256"):
        attack(levels=1)


@pytest.mark.parametrize(("dither", "pixels", "total"), [(False, [182, 36, 0], 1567520), (True, [146, 36, 0], 1567516)])
def test_golden(dither: bool, pixels: list[int], total: int, wave: torch.Tensor) -> None:
    """Grey levels of the wave (a range through a sine, no generator), reduced: three pixels and the sum of all."""
    shown = Quantise(8, dither)(to_float(to_bytes(wave))).mul(255).round().long()
    found = [int(shown[image, channel, 15, 20]) for image, channel in ((0, 0), (1, 1), (3, 2))]
    assert (found, int(shown.sum())) == (pixels, total)


@pytest.mark.slow
def test_digits_stay_themselves(run: Callable[..., Job]) -> None:
    """Their 17 grey levels lie in blocks of 4x4 pixels: fewer levels leave no banding to see, and ASR was 0.02. The demo's
    recipe does not learn it, which is a finding and no reason to tune; natural images are where BPP takes (12,000 of CIFAR-10,
    scale=small: CA 0.72, ASR 0.66). Negatives are not the reason: without them ASR is 0.04."""
    found = run("attack=bpp", "defense=none").run
    assert found.infected is not None and found.infected.ca >= 0.95
    assert found.infection.notes["cover_accuracy"] > found.infected.ca - 0.05
    assert round(found.infection.notes["largest_levels"]) == 18
