"""Batched augmentation against torchvision's result image by image, for the same random numbers.

python -m pytest tests/test_augment.py
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from backdoorbench.errors import ConfigError
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment, Draws, crop, flip, resized_crop, rotate

NONE = Augment(crop_padding=0, flip=False, rotation=0.0, resized_crop=None, crop=None)
CIFAR = replace(NONE, crop_padding=4, flip=True)
SETTINGS = {
    "none": NONE,
    "crop": replace(NONE, crop_padding=4),
    "crop and flip": CIFAR,
    "crop, flip, rotation": replace(CIFAR, rotation=15.0),
    "resized crop": replace(NONE, resized_crop=(0.08, 1.0), flip=True),
    "resized crop to 24": replace(NONE, resized_crop=(0.5, 0.9), crop=24, rotation=10.0),
}
every_setting = pytest.mark.parametrize("augment", SETTINGS.values(), ids=SETTINGS.keys())


def bytes_(count: int, size: int = 32, width: int | None = None) -> Tensor:
    """(count, 3, size, width or size) uint8: noise, the hardest images to move by less than a pixel."""
    generator = Stream(7).generator()
    return torch.randint(256, (count, 3, size, width or size), dtype=torch.uint8, generator=generator)


def parts(draws: Draws) -> list[Tensor]:
    return [part for part in (draws.offsets, draws.mirrored, draws.degrees, draws.boxes) if part is not None]


# The pure functions: the same offsets give torchvision's result.


@pytest.mark.parametrize("padding", [0, 1, 4, 40])
@pytest.mark.parametrize("size", [(32, 32), (5, 9)])
def test_crop_is_torchvisions_bit_by_bit(padding: int, size: tuple[int, int]) -> None:
    images = bytes_(81, *size)
    top, left = torch.randint(2 * padding + 1, (2, 81), generator=Stream(1).generator())
    ours = crop(images, top, left, padding)
    for row, image in enumerate(images):
        bordered = functional.pad(image, [padding])
        assert torch.equal(ours[row], functional.crop(bordered, int(top[row]), int(left[row]), *size))


def test_crop_knows_every_offset_and_the_middle_one_is_the_image() -> None:
    images = bytes_(1).expand(81, -1, -1, -1)
    top, left = (part.flatten() for part in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    ours = crop(images, top, left, 4)
    assert torch.equal(ours[40], images[0])
    assert len({row.numpy().tobytes() for row in ours}) == 81
    assert ours[0, :, :4].max() == 0 and ours[0, :, :, :4].max() == 0  # window at the corner: black above and left
    assert torch.equal(ours[0, :, 4:, 4:], images[0, :, :28, :28])


def test_crop_and_flip_keep_floats_and_memory_formats() -> None:
    images = bytes_(6).float().div(255).to(memory_format=torch.channels_last)
    offsets, mirrored = torch.tensor([0, 8, 3, 4, 5, 1]), torch.tensor([True, False, True, True, False, False])
    plain = images.contiguous()
    assert torch.equal(crop(images, offsets, offsets, 4), crop(plain, offsets, offsets, 4))
    assert torch.equal(flip(images, mirrored), flip(plain, mirrored))
    assert crop(images, offsets, offsets, 4).dtype == torch.float32


def test_flip_is_torchvisions_bit_by_bit() -> None:
    images, mirrored = bytes_(40), torch.rand(40, generator=Stream(2).generator()) < 0.5
    ours = flip(images, mirrored)
    for row, image in enumerate(images):
        assert torch.equal(ours[row], functional.hflip(image) if mirrored[row] else image)


@pytest.mark.parametrize("size", [(32, 32), (33, 20), (64, 64)])
def test_rotation_is_torchvisions_to_1e_5(size: tuple[int, int]) -> None:
    images = bytes_(24, *size).float().div(255)
    right_angles = torch.tensor([0.0, 90.0, 180.0, -90.0])  # torchvision takes shortcuts here
    degrees = torch.cat([right_angles, (torch.rand(20, generator=Stream(3).generator()) * 2 - 1) * 180])
    ours = rotate(images, degrees)
    for row, image in enumerate(images):
        theirs = functional.rotate(image, float(degrees[row]), interpolation=InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours[row], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [16, 24, 32, 50])
def test_resized_crop_is_torchvisions(size: int) -> None:
    images = bytes_(40, 32, 40)
    generator = Stream(4).generator()
    height, width = torch.randint(1, 33, (40,), generator=generator), torch.randint(1, 41, (40,), generator=generator)
    top = (torch.rand(40, generator=generator) * (33 - height)).long()
    left = (torch.rand(40, generator=generator) * (41 - width)).long()
    boxes = torch.stack([top, left, height, width], 1)
    ours = resized_crop(images.float().div(255), boxes, size)
    for row, image in enumerate(images):
        box = boxes[row].tolist()
        exact = functional.resized_crop(image.float().div(255), *box, [size, size], antialias=True)
        rounded = functional.resized_crop(image, *box, [size, size], antialias=True)
        torch.testing.assert_close(ours[row], exact, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours[row], rounded.float().div(255), rtol=0, atol=1 / 255 + 1e-6)


def test_resized_crop_of_everything_is_the_image() -> None:
    images = bytes_(3).float().div(255)
    torch.testing.assert_close(resized_crop(images, torch.tensor([[0, 0, 32, 32]] * 3), 32), images, rtol=0, atol=1e-6)


# Augment: composition, purity, rows.


def test_apply_is_crop_then_flip_then_rotation() -> None:
    augment, images = SETTINGS["crop, flip, rotation"], bytes_(20)
    draws = augment.draw(20, 32, Stream(0))
    assert draws.offsets is not None and draws.mirrored is not None and draws.degrees is not None
    ours = augment.apply(images, draws)
    for row, image in enumerate(images):
        image = functional.crop(functional.pad(image, [4]), *draws.offsets[row].tolist(), 32, 32)
        image = functional.to_dtype(functional.hflip(image) if draws.mirrored[row] else image, scale=True)
        image = functional.rotate(image, float(draws.degrees[row]), interpolation=InterpolationMode.BILINEAR)
        torch.testing.assert_close(ours[row], image, rtol=0, atol=1e-5)


def test_crop_and_flip_are_exact_to_the_last_bit_of_the_float() -> None:
    images = bytes_(50)
    draws = CIFAR.draw(50, 32, Stream(0))
    assert draws.offsets is not None and draws.mirrored is not None
    ours = CIFAR.apply(images, draws)
    for row, image in enumerate(images):
        image = functional.crop(functional.pad(image, [4]), *draws.offsets[row].tolist(), 32, 32)
        image = functional.hflip(image) if draws.mirrored[row] else image
        assert torch.equal(ours[row], image.float().div(255))  # as ToTensor; v2's to_dtype differs in the last bit


@every_setting
def test_apply_is_pure_in_range_and_row_by_row(augment: Augment) -> None:
    images = bytes_(12)
    images[3] = 255  # white stays at most 1, however its weights were rounded
    draws = augment.draw(12, 32, Stream(0))
    before, drawn = images.clone(), [part.clone() for part in parts(draws)]
    whole = augment.apply(images, draws)
    assert whole.shape == (12, 3, augment.crop or 32, augment.crop or 32) and whole.dtype == torch.float32
    assert whole.is_contiguous() and whole.min() >= 0 and whole.max() <= 1
    assert torch.equal(images, before) and all(map(torch.equal, parts(draws), drawn))
    assert torch.equal(whole, augment.apply(images, draws))
    for rows in (slice(0, 1), slice(3, 10), slice(11, 12)):
        assert torch.equal(augment.apply(images[rows], draws[rows]), whole[rows])


def test_nothing_asked_for_is_only_the_conversion() -> None:
    images = bytes_(4)
    draws = NONE.draw(4, 32, Stream(0))
    assert parts(draws) == []
    assert torch.equal(NONE.apply(images, draws), images.float() / 255)


@every_setting
def test_apply_never_waits_for_the_device(augment: Augment) -> None:
    images, draws, mode = bytes_(12), augment.draw(12, 32, Stream(0)), FakeTensorMode()
    fakes = [None if part is None else mode.from_tensor(part) for part in vars(draws).values()]
    with mode:  # tensors without values: whatever needs one on the host (item, nonzero, a boolean index) raises
        shape = augment.apply(mode.from_tensor(images), Draws(*fakes)).shape
    assert shape == (12, 3, augment.crop or 32, augment.crop or 32)


@every_setting
def test_apply_keeps_full_precision_under_autocast(augment: Augment) -> None:
    images, draws = bytes_(12), augment.draw(12, 32, Stream(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = augment.apply(images, draws)
    assert torch.equal(inside, augment.apply(images, draws))


@every_setting
def test_an_empty_batch_stays_empty(augment: Augment) -> None:
    draws = augment.draw(4, 32, Stream(0))[0:0]
    assert len(augment.apply(bytes_(4)[:0], draws)) == 0


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^images have shape \(4, 32, 32, 3\); expected \(N, 3, H, W\)$"):
        NONE.apply(bytes_(4).permute(0, 2, 3, 1), NONE.draw(4, 32, Stream(0)))


# Draws: by name, from torchvision's distributions.


@every_setting
def test_the_same_stream_gives_the_same_draws(augment: Augment) -> None:
    first, again = (parts(augment.draw(50, 32, Stream(5).child("epoch"))) for _ in range(2))
    other = parts(augment.draw(50, 32, Stream(6).child("epoch")))
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_no_draw_moves_another() -> None:
    alone: dict[str, dict[str, Any]] = {
        "offsets": {"crop_padding": 4},
        "mirrored": {"flip": True},
        "degrees": {"rotation": 15.0},
    }
    together = SETTINGS["crop, flip, rotation"].draw(100, 32, Stream(0))
    for name, settings in alone.items():
        draws = replace(NONE, **settings).draw(100, 32, Stream(0))
        assert len(parts(draws)) == 1 and torch.equal(getattr(draws, name), getattr(together, name))
    with_boxes = SETTINGS["resized crop"].draw(100, 32, Stream(0))
    assert torch.equal(with_boxes.mirrored, together.mirrored)  # type: ignore[arg-type]


def test_draws_move_and_slice_together() -> None:
    draws = SETTINGS["crop, flip, rotation"].draw(10, 32, Stream(0))
    assert all(map(torch.equal, parts(draws.to("cpu")), parts(draws)))
    assert all(torch.equal(part, whole[2:5]) for part, whole in zip(parts(draws[2:5]), parts(draws), strict=True))
    assert all(part.device.type == "meta" for part in parts(draws.to("meta")))


def test_offsets_flips_and_angles_are_uniform() -> None:
    draws = SETTINGS["crop, flip, rotation"].draw(90_000, 32, Stream(0))
    assert draws.offsets is not None and draws.mirrored is not None and draws.degrees is not None
    for column in draws.offsets.unbind(1):
        counts = torch.bincount(column)
        assert len(counts) == 9 and (counts - 10_000).abs().max() < 500  # 5 standard deviations
    together = torch.bincount(draws.offsets[:, 0] * 9 + draws.offsets[:, 1])
    assert len(together) == 81 and together.min() > 900  # top and left are independent
    assert abs(draws.mirrored.float().mean() - 0.5) < 0.01
    tenths = torch.histc(draws.degrees, 10, -15, 15)
    assert tenths.sum() == 90_000 and (tenths - 9_000).abs().max() < 450


@pytest.mark.parametrize("areas", [(0.08, 1.0), (0.5, 0.9)])
def test_boxes_follow_torchvisions_rule(areas: tuple[float, float]) -> None:
    size, count = 256, 20_000
    boxes = replace(NONE, resized_crop=areas).draw(count, size, Stream(0)).boxes
    assert boxes is not None
    top, left, height, width = boxes.unbind(1)
    assert (boxes >= 0).all() and (top + height <= size).all() and (left + width <= size).all()
    area, ratio = height * width / size**2, width / height
    assert areas[0] * 0.97 < area.min() and area.max() < areas[1] * 1.03  # sides are rounded to pixels
    assert ratio.min() > 0.73 and ratio.max() < 1.37
    theirs = _torchvision_boxes(4_000, size, areas)
    for ours_, theirs_ in zip(boxes.float().unbind(1), theirs.float().unbind(1), strict=True):
        assert abs(ours_.mean() - theirs_.mean()) < 5 * theirs_.std() / 4_000**0.5
        assert abs(ours_.std() / theirs_.std() - 1) < 0.06


def _torchvision_boxes(count: int, size: int, areas: tuple[float, float]) -> Tensor:
    from torchvision.transforms import RandomResizedCrop

    image, ratio = torch.empty(1, size, size), [3 / 4, 4 / 3]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.tensor([RandomResizedCrop.get_params(image, list(areas), ratio) for _ in range(count)])


def test_a_box_that_never_fits_is_the_whole_image() -> None:
    boxes = replace(NONE, resized_crop=(1.0, 1.0)).draw(200, 64, Stream(0)).boxes
    assert boxes is not None and ((boxes[:, 2:] - 64).abs() <= 1).all()  # only squares but for rounding have this area
    assert (boxes == torch.tensor([0, 0, 64, 64])).all(1).any()
    assert (replace(NONE, resized_crop=(0.01, 0.01)).draw(50, 2, Stream(0)).boxes[:, 2:] == 2).all()  # type: ignore[index]


ERRORS: list[tuple[dict[str, Any], str]] = [
    (
        {"crop_padding": -1},
        "crop_padding is -1; expected pixels of border, 0 to 4096: "
        "set it to 0 for no crop, or to 4, the usual border of 32-pixel images",
    ),
    (
        {"rotation": -5.0},
        "rotation is -5.0; expected degrees between 0 and 180, the most that an image is turned either way: "
        "set it to 0 for no rotation, or to 10",
    ),
    (
        {"rotation": float("nan")},
        "rotation is nan; expected degrees between 0 and 180, the most that an image is turned either way: "
        "set it to 0 for no rotation, or to 10",
    ),
    (
        {"crop": 24},
        "crop is 24 but resized_crop is null; crop is the side of a resized crop's result: "
        "set crop to null, or resized_crop to the range of areas, for instance [0.08, 1]",
    ),
    (
        {"resized_crop": (1.0, 0.08)},
        "resized_crop is [1.0, 0.08]; expected the smallest and the largest share of the area, above 0, at most 1, "
        "in this order: set it to [0.08, 1], the usual range, or to null for none",
    ),
    (
        {"resized_crop": (0.0, 1.0)},
        "resized_crop is [0.0, 1.0]; expected the smallest and the largest share of the area, above 0, at most 1, "
        "in this order: set it to [0.08, 1], the usual range, or to null for none",
    ),
    (
        {"crop_padding": 4, "resized_crop": (0.08, 1.0)},
        "crop_padding is 4 and resized_crop is [0.08, 1.0]; expected at most one kind of crop: "
        "set crop_padding to 0, or resized_crop to null",
    ),
    (
        {"resized_crop": (0.08, 1.0), "crop": 0},
        "crop is 0; expected the side of the resized crop's result in pixels, 1 to 4096: "
        "set it to the side that the network expects, or to null for the stored one",
    ),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(NONE, **settings)
    assert str(error.value) == message
