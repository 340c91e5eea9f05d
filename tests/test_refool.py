"""Refool's reflections: doubled, blurred, blended in linear light; where they come from; that it takes on digits.

What every trigger must be is in test_triggers.py.    python -m pytest tests/test_refool.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK
from PIL import Image
from test_poisoning import attack
from test_triggers import task

from backdoorbench.attacks.base import Task
from backdoorbench.attacks.refool import Refool
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline import plan
from backdoorbench.pipeline.job import Job
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.triggers.reflection import (
    Reflections,
    blur,
    double,
    draw_reflections,
    give_way,
    resize,
    scenes,
    window,
)


def refool(**changes: Any) -> Refool:
    made = attack("refool", **changes)
    assert isinstance(made, Refool)
    return made


def reflections(count: int = 20, size: int = 32, share: float | None = 0.4, doubled: float = 0.5) -> Reflections:
    pictures = scenes(count, size, torch.Generator().manual_seed(1))
    return draw_reflections(pictures, size, size, share, doubled, torch.Generator().manual_seed(0))


def test_a_doubled_black_reflection_only_dims(wave: torch.Tensor) -> None:
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    made = draw_reflections(black, 32, 32, 0.4, 1.0, torch.Generator().manual_seed(0))
    assert torch.allclose(made(wave), 0.4 ** (1 / 2.2) * wave, atol=1e-5)


def test_doubling_is_two_shifted_copies(wave: torch.Tensor) -> None:
    picture = wave[0]
    found = double(picture, (3, 5), 0.7)
    frame = torch.zeros(3, 35, 37)
    frame[:, :32, :32] += 0.7 * picture
    frame[:, 3:, 5:] += 0.3 * picture
    inside = frame[:, 3:-3, 5:-5]  # where both are
    assert inside.shape == (3, 29, 27) and torch.allclose(found, resize(inside, 32))


def test_blurring_is_a_gaussian_on_few_taps() -> None:
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    for sigma, reach in ((1.0, 2), (4.2, 9), (5.0, 10)):
        found = blur(point, sigma)[0]
        assert float(found.sum()) == pytest.approx(1) and found[20, 20] == found.max()
        assert found[20, 20 + reach] > 0 and found[20, 21 + reach :].abs().sum() == 0
        assert float(found[20, 21] / found[20, 20]) == pytest.approx(torch.exp(torch.tensor(-0.5 / sigma**2)).item())


def test_the_window_is_brightest_in_the_middle() -> None:
    shown = window(33)
    assert shown[16, 16] == 1 and shown.max() == 1
    assert float(shown[16, 0]) == pytest.approx(torch.exp(torch.tensor(-9 / 4)).item())  # root of exp(-3^2 / 2)


def test_a_layer_gives_way_to_a_bright_scene() -> None:
    layer, scene = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
    scene[1, 0, 0, :2] = torch.tensor([0.7, 0.9])  # sums of 1.2 and 1.4 in red: 0.3 too much on average
    found = give_way(layer, scene, torch.tensor([1.1, 1.1]))
    assert torch.equal(found[0], layer[0]) and torch.equal(found[1, 1:], layer[1, 1:])
    assert torch.allclose(found[1, 0], torch.full((4, 4), 0.5 - 0.3 * 1.1))


def test_blurred_ones_follow_the_formula(wave: torch.Tensor) -> None:
    made = reflections(7, doubled=0.0)
    which = made.which(wave)
    layer, scene = made.layers[which].float(), wave**2.2
    dimmed = give_way(layer, scene, made.recede[which])
    expected = ((dimmed * window(32) * (1 - 0.4 / 2) + scene * 0.4).clamp(0, 1)) ** (1 / 2.2)
    assert torch.allclose(made(wave), expected, atol=1e-6)
    assert ((made.recede >= 1.08) & (made.recede <= 1.18)).all()


def test_an_images_bytes_choose_its_reflection(wave: torch.Tensor) -> None:
    made = reflections(7)
    stored = to_bytes(wave)
    assert made.which(to_float(stored)).tolist() == [int(image.long().sum()) % 7 for image in stored]
    many = torch.rand(400, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert set(made.which(many).tolist()) == set(range(7))
    grey = torch.full((7, 3, 32, 32), 100 / 255)
    grey[:, 0, 0, 0] += torch.arange(7) / 255
    shown = made(grey)[:, :, 8:24, 8:24]
    assert len({tuple(image.flatten().tolist()) for image in shown}) == 7


def test_half_of_the_reflections_are_doubled_and_shares_are_drawn() -> None:
    made = reflections(300, 24, share=None, doubled=0.49)
    assert 0.4 < float(made.doubled.float().mean()) < 0.58
    assert 0.55 <= made.share.min() < 0.6 and 0.9 < made.share.max() <= 0.95
    assert (reflections(3).share == 0.4).all()


def victim(labels: torch.Tensor) -> ImageSet:
    """Images of 32 pixels, each of one colour that is its row."""
    rows = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(rows.expand(-1, 3, 32, 32).contiguous(), labels, tuple("abcdefghij"))


def test_other_classes_are_reflected() -> None:
    train = victim(torch.arange(40) % 10)
    pictures = refool(reflections=36, target=3).pictures(train, Stream(0))
    rows = pictures[:, 0, 0, 0].long()
    assert sorted(rows.tolist()) == [row for row in range(40) if row % 10 != 3]
    again = refool(reflections=50, target=3).pictures(train, Stream(0))  # fewer pictures come round again
    assert torch.equal(again[36:], again[:14])


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (50, 40), colour).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    made = refool(source="folder", source_folder=str(tmp_path), reflections=3)
    pictures = made.pictures(victim(torch.arange(10)), Stream(0))
    assert pictures.shape == (3, 3, 32, 32)
    assert sorted(tuple(picture[:, 0, 0].tolist()) for picture in pictures[:2]) == [(0, 0, 255), (255, 0, 0)]


def test_a_folders_content_is_part_of_the_key(tmp_path: Path) -> None:
    def key() -> str:
        words = ["attack=refool", "attack.source=folder", f"attack.source_folder={tmp_path / 'own'}", *QUICK]
        return plan.plan(compose([f"runtime.outputs={tmp_path / 'out'}", *words])).infection_key

    (tmp_path / "own").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "own" / "a.png")
    first = key()
    assert key() == first
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "own" / "a.png")
    assert key() != first


@pytest.mark.parametrize(
    ("changes", "labels", "size", "said"),
    [
        (
            {"source": "folder"},
            10,
            32,
            "attack.source is folder with attack.source_folder=None; reflections of your own need both. Set attack.source=folder "
            "attack.source_folder=DIR, or neither.",
        ),
        (
            {"source": "folder", "source_folder": "nowhere"},
            10,
            32,
            "attack.source_folder is 'nowhere', which holds no image; expected a folder of PNG, JPEG, BMP or WebP files.",
        ),
        (
            {},
            1,
            32,
            "attack.source is images, but all training images are of class 0, the target; reflections come from the others. Set "
            "attack.source=scenes.",
        ),
        (
            {},
            10,
            16,
            "the images have 16 pixels a side, but a reflection is doubled or blurred over up to 10; expected at least 22 "
            "pixels. Set attack.work_size=560, where reflections are made before they shrink to the image, or dataset.size.",
        ),
        (
            {"work_size": 10},
            10,
            32,
            "attack.work_size is 10; expected a number between 22 and 4096. Change attack.work_size.",
        ),
    ],
)
def test_what_cannot_be_reflected_is_said(changes: dict[str, Any], labels: int, size: int, said: str) -> None:
    train = victim(torch.arange(20) % labels)
    train = ImageSet(train.images[:, :, :size, :size].contiguous(), train.labels, train.classes)
    with pytest.raises(ConfigError) as caught:
        refool(**changes).check(train)
    assert str(caught.value) == said


def test_work_at_another_size_shrinks_the_reflection() -> None:
    train = victim(torch.arange(20) % 10)
    made = refool(work_size=64, reflections=5).trigger(Task(train, None, None, None), Stream(0))  # type: ignore[arg-type]
    assert made.layers.shape == (5, 3, 32, 32)


def test_the_papers_variant_keeps_labels(images: ImageSet) -> None:
    chosen = refool(labels="clean", rate_of="target_class", poison_rate=0.5, target=3, source="scenes", reflections=4)
    made = chosen.poison(images, chosen.stored(task(32), Stream(0)), Stream(0))
    assert made.counts["poisoned"] == 6 and torch.equal(made.train.labels, images.labels)
    assert (images.labels[made.poisoned] == 3).all()


@pytest.mark.slow
def test_takes_on_digits(run: Callable[..., Job]) -> None:
    found = run("attack=refool", "defense=none").run
    assert found.infected is not None and found.infected.asr is not None
    assert found.infected.asr >= 0.8 and found.infected.ca >= 0.95
