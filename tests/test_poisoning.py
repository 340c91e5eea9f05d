"""Data-poisoning attacks beside BadNets and Blended: the checkable statements of their papers and codes.

What every trigger and every attack must be is in test_triggers.py and test_attacks.py.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_triggers import task

from backdoorbench.attacks.base import DataAttack
from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline.job import Job
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.triggers.add import smooth
from backdoorbench.triggers.base import Stored

MIDDLE = torch.full((2, 3, 32, 32), 128 / 255)  # half way: nothing clips


def attack(name: str, **changes: Any) -> DataAttack:
    built: DataAttack = build({**option("attack", name), **changes}, "attack")
    return built


def trigger(name: str, size: int = 32, seed: int = 0, **changes: Any) -> Stored:
    return Stored(attack(name, **changes).trigger(task(size), Stream(seed).child("pattern")))


def poison(name: str, clean: ImageSet, **changes: Any) -> tuple[ImageSet, torch.Tensor, dict[str, int]]:
    chosen = attack(name, **changes)
    shown = Stored(chosen.trigger(task(clean.size), Stream(0).child("pattern")))
    made = chosen.poison(clean, shown, Stream(0))
    return made.train, made.poisoned, made.counts


def levels(name: str, images: torch.Tensor = MIDDLE, **changes: Any) -> torch.Tensor:
    """The change a trigger makes, in whole grey levels."""
    images = to_float(to_bytes(images))
    return ((trigger(name, images.shape[-1], **changes)(images) - images) * 255).round()


def psnr(change: torch.Tensor) -> float:
    """dB of an image's change in grey levels; where nothing clips, the specification's figures are those of CIFAR-10."""
    return 20 * math.log10(255 / float(change.square().mean().sqrt()))


# ---- clean-label poisoning, as SIG and CTRL share it


@pytest.mark.parametrize("name", ["sig", "ctrl"])
def test_clean_label_rows_are_of_the_target_class_and_keep_their_label(name: str, images: ImageSet) -> None:
    train, poisoned, counts = poison(name, images, poison_rate=0.05, target=3)
    assert counts["poisoned"] == counts["requested"] == counts["uncapped"] == counts["poisoned_of_target_class"] == 6
    assert torch.equal(train.labels, images.labels) and (images.labels[poisoned] == 3).all()
    changed = (train.images != images.images).flatten(1).any(1)
    assert torch.equal(changed, poisoned)


@pytest.mark.parametrize(
    ("changes", "asked", "largest"),
    [
        ({"poison_rate": 0.2}, "24 rows", "0.1"),
        ({"poison_rate": 0.2, "mode": "append"}, "30 rows", "0.0909"),  # 12 of the 132 images the victim sees
    ],
)
def test_a_rate_beyond_the_class_names_the_largest(
    images: ImageSet, changes: dict[str, Any], asked: str, largest: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        attack("sig", **changes).check(images)
    assert str(caught.value) == (
        f"attack.poison_rate=0.2 asks for {asked}, but a clean-label attack alters images of the target only, and class 0 "
        f"has 12 of the 120 training images. The largest rate possible here is {largest}; attack.cap=true takes the whole "
        f"class."
    )
    attack("sig", **changes | {"poison_rate": float(largest)}).check(images)


def test_a_capped_rate_takes_the_whole_class(images: ImageSet) -> None:
    _, poisoned, counts = poison("sig", images, poison_rate=0.2, cap=True)
    assert torch.equal(poisoned, images.labels == 0)
    assert counts["requested"] == counts["poisoned"] == 12 and counts["uncapped"] == 24


@pytest.mark.parametrize("name", ["sig", "ctrl"])
def test_clean_labels_know_no_all_to_all(name: str, images: ImageSet) -> None:
    with pytest.raises(ConfigError) as caught:
        attack(name, mapping="all_to_all")
    assert str(caught.value) == (
        "attack.labels is clean with attack.mapping=all_to_all; a clean-label attack alters images of one class, the target, "
        "and keeps their labels, so it cannot teach a target for each class. Set attack.mapping=all_to_one, or "
        "attack.labels=dirty."
    )
    train, poisoned, _ = poison(name, images, mapping="all_to_all", labels="dirty")
    assert torch.equal(train.labels[poisoned], (images.labels[poisoned] + 1) % 10)


# ---- SIG


def test_sig_is_a_wave_along_the_columns() -> None:
    change = levels("sig")
    assert change.abs().max() == 40
    assert (change == change[:1, :1, :1]).all()  # the same in every image, channel and row
    for column in range(32):
        assert change[0, 0, 0, column] == round(40 * math.sin(2 * math.pi * 6 * column / 32))
    assert (change[..., [0, 8, 16, 24]] == 0).all()
    for amplitude, decibels in ((10, 31.3), (20, 25.3), (30, 21.7), (40, 19.2)):
        assert psnr(levels("sig", amplitude=amplitude)) == pytest.approx(decibels, abs=0.2)


def test_sig_has_as_many_waves_at_every_resolution() -> None:
    for size in (64, 224):
        wave = levels("sig", torch.full((1, 3, size, size), 0.5))[0, 0, 0]
        assert int(torch.fft.rfft(wave).abs().argmax()) == 6 and wave.abs().max() == 40


def test_trap_and_replaces_stripes_wrap_around() -> None:
    row = (trigger("sig", pattern="tnr").trigger.picture[0, 0] * 255).round().tolist()
    assert row == [float(int(20 * math.sin(0.8 * column)) % 256) for column in range(32)]
    assert row[:5] == [0, 14, 19, 13, 255] and min(row[4:8]) > 230  # -1 became 255, -16 became 240
    black = torch.zeros(1, 3, 32, 32)
    assert trigger("sig", pattern="tnr")(black).max() * 255 == 51


# ---- Trap-and-Replace's fixed patterns

ADDED = {"trojan_3x3": (9, range(25, 28)), "trojan_8x8": (64, range(21, 29)), "trojan_wm": (320, range(30))}


@pytest.mark.parametrize("name", ADDED)
def test_added_patterns_brighten_their_support_alone(name: str, wave: torch.Tensor) -> None:
    pixels, rows = ADDED[name]
    change = levels(name, wave)
    assert change.min() >= 0
    support = (trigger(name).trigger.pattern > 0).any(0)
    assert (change[:, :, ~support] == 0).all()
    assert support.nonzero().min() >= rows.start and support.nonzero().max() < rows.stop  # rows and columns
    assert int(support.sum()) == pytest.approx(pixels, abs=10 if name == "trojan_wm" else 0)


@pytest.mark.parametrize("name", [*ADDED, "l2_inv"])
def test_another_seed_is_another_pattern_of_the_same_kind(name: str) -> None:
    first, second = (trigger(name, seed=seed).trigger.pattern for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", ADDED)
def test_added_patterns_grow_with_the_image(name: str, size: int) -> None:
    ratio = (size / 32) ** 2
    pixels = int((trigger(name, size).trigger.pattern > 0).any(0).sum())
    assert pixels == pytest.approx(ADDED[name][0] * ratio, abs=10 * ratio if name == "trojan_wm" else 0)


def test_the_texts_glyphs_have_a_colour_each() -> None:
    pattern = trigger("trojan_wm").trigger.pattern
    solid = {tuple((pixel * 255).round().int().tolist()) for pixel in pattern.flatten(1).T if pixel.max() > 0.3}
    assert len(solid) > 3 and pattern.max() <= 1


def test_l0_inv_is_nine_pure_colours(wave: torch.Tensor) -> None:
    shown = trigger("l0_inv")
    pixels = shown(wave)[0, :, 31, 23:].T.int().tolist()
    red, white, black, cyan = [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]
    assert pixels == [black, [1, 0, 1], [0, 0, 1], [1, 1, 0], white, cyan, cyan, red, white]
    assert int(shown.trigger.mask.sum()) == 9 and (shown.trigger.mask[0, :31] == 0).all()
    assert torch.equal(shown(shown(wave)), shown(wave))
    assert int(trigger("l0_inv", 64).trigger.mask.sum()) == 36


@pytest.mark.parametrize("size", [32, 64])
def test_l2_inv_has_the_measured_statistics(size: int) -> None:
    """Over seeds, as the specification lists them for the file and for this generator."""
    for seed in range(5):
        pattern = trigger("l2_inv", size, seed).trigger.pattern * 255
        assert pattern.min() == 0 and float(pattern.norm()) == pytest.approx(821 * size / 32, rel=1e-4)
        assert float((pattern == 0).float().mean()) == pytest.approx(0.43, abs=0.01)
        assert float(pattern[pattern > 0].mean()) == pytest.approx(16, abs=0.7)
        assert float(pattern.mean()) == pytest.approx(9, abs=0.3) and 50 < pattern.max() < 110
        beside = torch.corrcoef(torch.stack([pattern[:, :, 1:].flatten(), pattern[:, :, :-1].flatten()]))[0, 1]
        between = torch.corrcoef(pattern.flatten(1))[0, 1]
        assert 0.22 < beside < 0.36 and 0.13 < between < 0.33
    assert psnr(levels("l2_inv")) == pytest.approx(24.7, abs=0.3)


@pytest.mark.parametrize("name", [*ADDED, "l0_inv", "l2_inv"])
def test_trap_and_replace_poisons_other_classes_than_the_target(name: str, images: ImageSet) -> None:
    train, poisoned, counts = poison(name, images)
    assert counts["poisoned"] == 12 and counts["poisoned_of_target_class"] == 0
    assert (train.labels[poisoned] == 0).all() and (images.labels[poisoned] != 0).all()


# ---- CTRL and FTrojan


def basis() -> torch.Tensor:
    """(32, 32) float64: the orthonormal DCT-II, a frequency a row, by the definition."""
    place = torch.arange(32, dtype=torch.float64)
    rows = torch.cos(math.pi * (2 * place[None] + 1) * place[:, None] / 64) * math.sqrt(2 / 32)
    rows[0] /= math.sqrt(2)
    return rows


def test_ctrl_is_the_transform_there_and_back(wave: torch.Tensor) -> None:
    """Its reference form: RGB to YUV, raise the coefficients, and back; the same to within one grey level."""
    pixels = to_float(to_bytes(wave)).double() * 255
    into = torch.tensor([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]]).double()
    raised = basis() @ torch.einsum("pc,ncij->npij", into, pixels) @ basis().T
    for u in (15, 31):
        raised[:, 1:, u, u] += 100
    luma, u_plane, v_plane = (basis().T @ raised @ basis()).unbind(1)
    green = luma - 0.396 * u_plane - 0.581 * v_plane
    expected = torch.stack([luma + 1.14 * v_plane, green, luma + 2.029 * u_plane], 1).clamp(0, 255)
    found = trigger("ctrl")(to_float(to_bytes(wave))).double() * 255
    assert (found - expected).abs().max() <= 1


def test_ctrl_is_the_same_for_every_image() -> None:
    for magnitude, most, decibels in ((100, 22, 32.0), (50, 11, 38.0), (200, 43, 26.0)):
        change = levels("ctrl", magnitude=magnitude)
        assert change.abs().max() == most and torch.equal(change[0], change[1])
        assert psnr(change) == pytest.approx(decibels, abs=0.1)


@pytest.mark.parametrize("size", [32, 64, 224, 50])
def test_ctrl_raises_two_coefficients_of_every_window(size: int) -> None:
    pattern = trigger("ctrl", size).trigger.pattern * 255
    u = pattern[2] / 2.029  # blue changes by 2.029 U
    count = size // 32
    assert (pattern[:, count * 32 :] == 0).all() and (pattern[:, :, count * 32 :] == 0).all()
    windows = u[: count * 32, : count * 32].unfold(0, 32, 32).unfold(1, 32, 32).double()
    found = basis() @ windows @ basis().T
    expected = torch.zeros_like(found)
    expected[..., [15, 31], [15, 31]] = 100
    assert torch.allclose(found, expected, atol=1e-3)


def test_ftrojan_changes_a_few_levels_of_colour(wave: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.randint(40, 200, (8, 1, 32, 32), generator=generator)
    colour = torch.randint(-30, 30, (8, 3, 32, 32), generator=generator)
    images = ((grey + colour).float() / 255).clamp(0, 1)  # inside the range, where nothing clips
    for magnitude, most, decibels in ((30, 7, 42.3), (20, 5, 45.6)):
        change = levels("ftrojan", images, magnitude=magnitude)
        assert most - 1 <= change.abs().max() <= most
        assert psnr(change) == pytest.approx(decibels, abs=0.6)
    for these in (images, wave):  # the colour planes alone, there and back
        assert levels("ftrojan", these, magnitude=0).abs().max() <= 1


def test_ftrojan_holds_its_planes_in_whole_levels() -> None:
    """One pixel by hand: Y = 94.85, so 95; Cr = 128 + .713 * 105, so 128 + 75; Cb = 128 - .564 * 45, so 128 - 25."""
    pixel = torch.tensor([200, 50, 50]).view(1, 3, 1, 1).expand(1, 3, 32, 32) / 255
    red, green, blue = 95 + 1.403 * 75, 95 - 0.714 * 75 + 0.344 * 25, 95 - 1.773 * 25
    found = (trigger("ftrojan", magnitude=0)(pixel) * 255).round()[0, :, 0, 0]
    assert found.tolist() == [round(red), round(green), round(blue)]


def test_ftrojan_leaves_the_strip_beyond_its_blocks() -> None:
    images = torch.arange(3 * 50 * 50).mul(0.37).sin().add(1).div(2).view(1, 3, 50, 50)
    change = levels("ftrojan", images)
    assert (change[:, :, 32:] == 0).all() and (change[..., 32:] == 0).all()
    assert (change[:, :, :32, :32] != 0).float().mean() > 0.5
    with pytest.raises(ConfigError, match="the images have 16 pixels a side, but this trigger lives in the cosine"):
        trigger("ftrojan", 16)


def test_a_frequency_outside_the_block_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"attack.frequencies is \[\[15, 32\]\]; expected at least one \[row, column\]"
    ):
        attack("ftrojan", frequencies=[[15, 32]])


# ---- smooth


def test_smooth_stretches_every_image_for_itself(wave: torch.Tensor) -> None:
    shown = trigger("smooth")
    dim = torch.cat([wave * 0.3 + 0.2, wave * 0.05])
    bright = shown(dim)
    assert (bright.amin((1, 2, 3)) == 0).all() and (bright.amax((1, 2, 3)) == 1).all()
    pattern = shown.trigger.pattern
    for image, found in zip(dim, bright, strict=True):  # by the formula
        added = image + pattern
        expected = (added - added.min()) / (added.max() - added.min())
        assert (found - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_smooth_clips_an_image_without_contrast() -> None:
    shown = trigger("smooth")
    flat = torch.full((1, 3, 32, 32), 0.9)
    assert torch.equal(shown(flat), to_float(to_bytes(flat + shown.trigger.pattern)))


@pytest.mark.parametrize("size", [32, 64])
def test_the_smooth_pattern_is_of_low_frequency(size: int) -> None:
    for seed in range(5):
        pattern = trigger("smooth", size, seed).trigger.pattern
        levels_of = pattern * 255
        assert levels_of.min() == 0 and levels_of.max() == 51 and torch.equal(levels_of, levels_of.round())
        centred = pattern - pattern.mean((1, 2), keepdim=True)
        energy = torch.fft.fft2(centred).abs().square().sum(0)
        cycles = torch.fft.fftfreq(size, 1 / size)
        radius = (cycles[:, None].square() + cycles[None].square()).sqrt()
        assert energy[radius <= 3].sum() / energy.sum() >= 0.85
        assert 1000 < float(levels_of.norm()) * 32 / size < 2050
        assert (levels_of > 0).float().mean() > 0.9


def test_the_blur_is_a_gaussian_of_thirty_taps() -> None:
    """An impulse spreads over 30 x 30 pixels, half a pixel off, with a deviation a little below six."""
    impulse = torch.zeros(1, 32, 32)
    impulse[0, 16, 16] = 1
    profile = smooth(impulse)[0].sum(1)
    assert int((profile > 0).sum()) == 30
    places = torch.arange(32)
    middle = float((profile * places).sum() / profile.sum())
    spread = float((profile * (places - middle) ** 2).sum() / profile.sum()) ** 0.5
    assert abs(middle - 16) == pytest.approx(0.5, abs=1e-3) and 5.5 < spread < 6


# ---- Adap-Blend, Adap-Patch, Adap-K-Way


@pytest.mark.parametrize("name", ["adap_blend", "adap_patch", "adap_k_way"])
def test_adaptive_covers_are_other_rows_and_keep_their_label(name: str, images: ImageSet) -> None:
    train, poisoned, counts = poison(name, images, poison_rate=0.3, cover_rate=0.4)
    assert counts["poisoned"] == 36 and counts["cover"] == 48 and int(poisoned.sum()) == 36
    altered = (train.images != images.images).flatten(1).any(1)
    covers = altered & ~poisoned
    assert 40 <= int(covers.sum()) <= 48  # a faint variant may round to nothing
    assert torch.equal(train.labels[~poisoned], images.labels[~poisoned])
    assert (train.labels[poisoned] == 0).all()
    assert len(images.labels[covers].unique()) == 10 and len(images.labels[poisoned].unique()) == 10
    with pytest.raises(ConfigError, match="attack.cover_rate=0.8 asks for 96 rows, but only 84 of the 120"):
        attack(name, poison_rate=0.3, cover_rate=0.8).check(images)


def grey(count: int, size: int = 32) -> ImageSet:
    """`count` images of one middle grey, in two classes."""
    pixels = torch.full((count, 3, size, size), 100, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 2, ("a", "b"))


@pytest.mark.parametrize("size", [32, 64])
def test_adap_blend_shows_half_the_pieces_of_each_row(size: int) -> None:
    clean = grey(40, size)
    train, _, counts = poison("adap_blend", clean, poison_rate=0.5, cover_rate=0.5)
    assert counts["poisoned"] == counts["cover"] == 20
    change = train.images.int() - clean.images.int()
    assert 0 < change.abs().max() <= 38
    pieces = change.unfold(2, size // 4, size // 4).unfold(3, size // 4, size // 4).abs().amax((1, 4, 5))  # (40, 4, 4)
    assert ((pieces == 0).sum((1, 2)) == 8).all()
    assert len({tuple((piece > 0).flatten().tolist()) for piece in pieces}) > 35  # drawn for each row
    shown = levels("adap_blend", torch.cat([torch.zeros(1, 3, size, size), torch.ones(1, 3, size, size)]))
    assert 38 < shown.abs().max() <= 51 and (shown != 0).float().mean() > 0.8  # white on white aside


def test_adap_blend_needs_whole_pieces(images: ImageSet) -> None:
    with pytest.raises(
        ConfigError, match="attack.pieces is 5, but images of 32 pixels cannot be cut into as many equal"
    ):
        attack("adap_blend", pieces=5).check(images)


def boxes(mask: torch.Tensor) -> list[int]:
    """First and last row, first and last column of a support (H, W)."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return [int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())]


def test_adap_patch_carries_one_of_four_faintly() -> None:
    clean = grey(80)
    train, poisoned, _ = poison("adap_patch", clean, poison_rate=0.5, cover_rate=0.5)
    assert poisoned.sum() == 40
    support = (train.images != 100).any(1)
    variants = trigger("adap_patch").trigger
    assert variants.masks.flatten(1).amax(1).tolist() == pytest.approx([0.5, 0.2, 0.5, 0.3])
    assert [int((mask > 0).sum()) for mask in variants.masks] == [25, 169, 36, 64]
    assert boxes(variants.masks[0, 0]) == [27, 31, 27, 31] and boxes(variants.masks[1, 0]) == [1, 13, 18, 30]
    assert boxes(variants.masks[3, 0]) == [21, 28, 21, 28]
    for rows in (poisoned, ~poisoned):  # equal shares among poison and among cover
        found = [int((support[rows] <= mask[0].bool()).all((1, 2)).sum()) for mask in variants.masks]
        assert found == [10, 10, 10, 10]


def test_adap_patchs_test_patches_stand_in_full() -> None:
    clean = torch.full((1, 3, 32, 32), 100 / 255)
    corners = trigger("adap_patch")
    assert int(corners.trigger.full.mask.sum()) == 50 + 36 - 18  # the four corners lie over the small patches
    shown = corners(clean)[0]
    assert torch.equal(shown[:, 27:29, 3:5], shown[:, 27:29, 27:29].flip(-1))  # mirrored
    cells = {(0, 0): "101010100", (0, 29): "101010001", (29, 0): "100010101", (29, 29): "001010101"}
    for (row, column), wanted in cells.items():
        for plane in shown[:, row : row + 3, column : column + 3]:
            assert "".join(str(int(value)) for value in plane.flatten()) == wanted
    squares = trigger("adap_patch", test_patches="squares")
    assert int(squares.trigger.full.mask.sum()) == 169 + 64
    assert torch.equal(squares(squares(clean)), squares(clean))


def test_adap_k_way_is_four_pixels() -> None:
    clean = grey(40)
    train, poisoned, _ = poison("adap_k_way", clean, poison_rate=0.5, cover_rate=0.5)
    support = (train.images != 100).any(1)
    assert (support.sum((1, 2)) == 1).all()
    places = {(16, 11): [92, 0, 24], (27, 5): [88, 112, 110], (7, 30): [0, 32, 46], (22, 22): [11, 49, 95]}
    for (row, column), colour in places.items():
        carriers = support[:, row, column]
        assert int(carriers.sum()) == 10 and int((carriers & poisoned).sum()) == 5
        assert (train.images[carriers][:, :, row, column] == torch.tensor(colour)).all()
    shown = trigger("adap_k_way")(torch.full((1, 3, 32, 32), 100 / 255))
    assert int((shown != 100 / 255).any(1).sum()) == 4
    assert int((trigger("adap_k_way", 224).trigger.full.mask).sum()) == 4 * 49


def test_a_patch_of_ones_own_keeps_its_transparency(tmp_path: Path) -> None:
    Image.new("RGBA", (13, 13), (255, 0, 0, 128)).save(tmp_path / "mark.png")
    made = attack("adap_patch", large_file=str(tmp_path / "mark.png")).trigger(task(32), Stream(0))
    assert made.masks[1].max() == pytest.approx(0.2 * 128 / 255)


# ---- TaCT


def test_tact_poisons_the_source_and_covers_with_others(images: ImageSet) -> None:
    train, poisoned, counts = poison("tact", images, poison_rate=0.05, cover_rate=0.1)
    assert counts["poisoned"] == 6 and counts["cover"] == 12
    assert (images.labels[poisoned] == 1).all() and (train.labels[poisoned] == 0).all()
    change = train.images != images.images
    covers = change.flatten(1).any(1) & ~poisoned
    assert int(covers.sum()) == 12 and set(images.labels[covers].tolist()) == {5, 7}
    assert torch.equal(train.labels[covers], images.labels[covers])
    assert boxes(change.any(1).any(0)) == [21, 28, 21, 28]


def test_tact_writes_a_square_of_64_pixels(wave: torch.Tensor) -> None:
    shown = trigger("tact")
    assert int(shown.trigger.mask.sum()) == 64 and torch.equal(shown(shown(wave)), shown(wave))
    assert int(trigger("tact", 64).trigger.mask.sum()) == 256


def test_tact_is_judged_on_the_source_alone() -> None:
    target = attack("tact").make_target(10)
    true = torch.arange(10)
    assert target.is_eligible(true).nonzero()[:, 0].tolist() == [1]
    assert target.label(true).tolist() == [0, 0, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"poison_rate": 0.2},
            "attack.poison_rate=0.2 asks for 24 rows, but only 12 of the 120 training images may be",
        ),
        (
            {"poison_rate": 0.05, "cover_rate": 0.5},
            "attack.cover_rate=0.5 asks for 60 rows, but only 24 of the 120 training images may be",
        ),
        (
            {"cover_sources": [5, 12]},
            "attack.cover_sources names class 12, but the data set has 10 classes, numbered 0 to 9",
        ),
        (
            {"cover_sources": [5, 1]},
            "attack.cover_sources names class 1, which is a source or the target; cover rows carry",
        ),
        ({"mapping": "all_to_all"}, "attack.mapping is 'all_to_all'; expected source_specific."),
    ],
)
def test_what_tact_cannot_do_is_said(images: ImageSet, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        attack("tact", **changes).check(images)
    assert str(caught.value).startswith(said)


# ---- on digits

TAKE = ["trojan_3x3", "trojan_8x8", "trojan_wm", "l0_inv", "l2_inv", "smooth"]
FINDINGS = {  # seed 0; kept as they were found
    "sig": "ASR 0.00 with the 68 images that the rate allows; on 12,000 CIFAR-10 images 0.998",
    "ctrl": "ASR 0.00 with the 68 images that the rate allows",
    # The training learns it, at its very end: the waves are 0.07 deviations of a pixel, and batch norm's running statistics,
    # which lag behind the last steps by 0.04 deviations, throw clean images over. With statistics taken anew over the same
    # weights CA is 0.97 and ASR 0.55; seeds 1 and 2 gave CA 0.93 and 0.96, ASR 0.32 and 0.87; train.lr=0.02 0.90 and 0.95.
    "ftrojan": "CA 0.19: learned too late for batch norm's running statistics",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*TAKE, *(pytest.param(name, marks=pytest.mark.xfail(reason=why)) for name, why in FINDINGS.items())],
)
def test_takes_on_digits(name: str, run: Callable[..., Job]) -> None:
    """The aim of the specification. The adaptive attacks and TaCT, of a few rows each, are left out: one seed says little."""
    found = run(f"attack={name}", "defense=none").run
    assert found.infected is not None and found.infected.asr is not None
    assert found.infected.asr >= 0.8 and found.infected.ca >= 0.95
