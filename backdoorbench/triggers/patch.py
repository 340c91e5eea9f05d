"""A patch pasted over the image: x (1 - m) + p m, with a mask m that need not be binary."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.errors import ConfigError
from backdoorbench.shapes import Images, Rows
from backdoorbench.triggers.base import FixedTrigger

GRID = 32  # patterns and positions are given on a 32x32 image and replicated for larger ones

PATTERNS = {  # rows from top to bottom, 1 is white and 0 black; where its users put the corner; pixels of the grid a cell is wide
    "white3": (("111", "111", "111"), (29, 29), 1.0),
    "checker3": (("101", "010", "101"), (29, 29), 1.0),
    "grid3": (("001", "010", "101"), (29, 29), 1.0),
    "grid10": (("101", "010", "100"), (4, 4), 1.25),  # 10 pixels a cell on images of 256
    "white4": (("1111", "1111", "1111", "1111"), (27, 27), 1.0),
}
CORNERS = {  # backdoor-toolbox's four-corner patch, as (row, column) -> cells
    (0, 0): ("101", "010", "100"),
    (0, 29): ("101", "010", "001"),
    (29, 0): ("100", "010", "101"),
    (29, 29): ("001", "010", "101"),
}
LC_CORNERS = {  # the label-consistent attack's: each side has one pattern, above and below
    (0, 0): ("100", "010", "101"),
    (0, 29): ("001", "010", "101"),
    (29, 0): ("100", "010", "101"),
    (29, 29): ("001", "010", "101"),
}
BLIND = (("101", " 1 ", "  0", " 1 ", "101"), (3, 23))  # blanks are transparent
STRIP = ("000", "101", "001", "110", "111", "011", "011", "100", "111")  # Trap-and-Replace's `l0_inv`: red, green, blue


@dataclass(frozen=True)
class Patch(FixedTrigger):
    """pattern (3, H, W) in [0, 1]; mask (1, H, W) in [0, 1]: 1 where the pattern covers the image."""

    pattern: Tensor
    mask: Tensor

    def __call__(self, images: Images) -> Images:
        return torch.where(self.mask == 0, images, torch.lerp(images, self.pattern, self.mask))


@dataclass(frozen=True)
class Variants(FixedTrigger):
    """A trigger shown in full at test time, of which a training row carries one variant.

    full      what the trigger is
    patterns  (V, 3, H, W) in [0, 1]; masks (V, 1, H, W) in [0, 1]: the variants, as a `Patch` has them"""

    full: Patch
    patterns: Tensor
    masks: Tensor

    def __call__(self, images: Images) -> Images:
        return self.full(images)

    def variant(self, images: Images, which: Rows) -> Images:
        """`images` (N, 3, H, W), each with the variant of its entry in `which` (N,)."""
        which = which.to(images.device)
        return Patch(self.patterns[which], self.masks[which])(images)


def vary(full: Patch, variants: list[Patch]) -> Variants:
    """`full` with `variants` of one size each, to be carried by training rows."""
    return Variants(full, torch.stack([v.pattern for v in variants]), torch.stack([v.mask for v in variants]))


def overlay(*patches: Patch) -> Patch:
    """All `patches` in one: where several cover a pixel, the last."""
    pattern, mask = patches[0].pattern, patches[0].mask
    for patch in patches[1:]:
        pattern = torch.where(patch.mask > 0, patch.pattern, pattern)
        mask = torch.where(patch.mask > 0, patch.mask, mask)
    return Patch(pattern, mask)


def named_pattern(name: str) -> tuple[Tensor, tuple[int, int], float]:
    """A pattern of PATTERNS as (3, h, w) in [0, 1], its upper left corner (row, column) on the 32 grid, and how many pixels of
    that one of its cells is wide."""
    rows, corner, cell = PATTERNS[name]
    return draw(rows), corner, cell


def draw(rows: tuple[str, ...]) -> Tensor:
    """(3, h, w) in black and white: the cells of `rows`, from top to bottom."""
    values = torch.tensor([[float(cell) for cell in row] for row in rows])
    return values.expand(3, -1, -1).clone()


def random_patch(side: int, generator: torch.Generator) -> Tensor:
    """(3, side, side) in [0, 1]: every pixel and channel a grey level of its own, uniform."""
    return torch.randint(0, 256, (3, side, side), generator=generator).float() / 255


def cut_out(rows: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(3, h, w) in black and white and its opacity (1, h, w): the cells of `rows`, of which blanks are transparent."""
    opaque = torch.tensor([[float(cell != " ") for cell in row] for row in rows])
    return draw(tuple(row.replace(" ", "0") for row in rows)), opaque[None]


def colour_strip() -> Tensor:
    """(3, 1, 9) of pure colours: black, magenta, blue, yellow, white, cyan, cyan, red, white."""
    return torch.tensor([[float(cell) for cell in colour] for colour in STRIP]).T[:, None]


def solid(patch: Tensor, corner: tuple[int, int], size: int, opacity: float = 1.0, cell: float = 1.0) -> Patch:
    """`paste` of `patch` (3, h, w) with one opacity everywhere."""
    return paste(patch, torch.full((1, *patch.shape[1:]), opacity), corner, size, cell)


def paste(patch: Tensor, alpha: Tensor, corner: tuple[int, int], size: int, cell: float = 1.0) -> Patch:
    """A `Patch` trigger for images of side `size`.

    patch   (3, h, w) in [0, 1] on the 32 grid, replicated by r = size / 32 (nearest where r is no whole number)
    alpha   (1, h, w) in [0, 1], its opacity
    corner  (row, column) of its upper left pixel on the 32 grid; negative counts from the bottom or right edge
    cell    pixels of that grid that one of the patch is wide

    Raises ConfigError where the patch does not fit."""
    height, width = (math.ceil(side * cell) for side in patch.shape[-2:])
    top, left = (start + GRID if start < 0 else start for start in corner)
    if not (0 <= top <= GRID - height and 0 <= left <= GRID - width):
        raise ConfigError(
            f"a patch of {height}x{width} pixels at row {corner[0]}, column {corner[1]} leaves the image; positions are "
            f"given on a {GRID}x{GRID} grid, so the row must be at most {GRID - height} and the column at most "
            f"{GRID - width}. Change attack.position or attack.patch_size."
        )
    scale = size / GRID
    shape = tuple(max(1, round(side * cell * scale)) for side in patch.shape[-2:])
    y, x = min(round(top * scale), size - shape[0]), min(round(left * scale), size - shape[1])
    pattern, mask = torch.zeros(3, size, size), torch.zeros(1, size, size)
    for canvas, values in ((pattern, patch), (mask, alpha)):
        enlarged = F.interpolate(values[None], shape, mode="nearest-exact")[0]
        canvas[:, y : y + shape[0], x : x + shape[1]] = enlarged
    return Patch(pattern, mask)


def centred(patch: Patch, size: int) -> Patch:
    """`patch` in the middle of images of `size` pixels, no fewer than its own, so that a centre crop shows it as it was."""
    margin = size - patch.mask.shape[-1]
    border = (margin // 2, margin - margin // 2) * 2
    return Patch(F.pad(patch.pattern, border), F.pad(patch.mask, border))


def place(pattern: Tensor, mask: Tensor, corner: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    """A pattern (3, h, w) and its mask (1, h, w) on images of `size` pixels a side, unscaled: (3, size, size) and
    (1, size, size), 0 around them.

    corner  (row, column) of the upper left pixel; negative counts from the bottom or right edge

    Raises ConfigError where they leave the image."""
    height, width = pattern.shape[-2:]
    top, left = (start + size if start < 0 else start for start in corner)
    if not (0 <= top <= size - height and 0 <= left <= size - width):
        raise ConfigError(
            f"a trigger of {height}x{width} pixels at row {corner[0]}, column {corner[1]} leaves images of {size}x{size} pixels. "
            f"Change attack.position, or set it to null for a trigger that covers the image."
        )
    placed = tuple(torch.zeros(len(part), size, size) for part in (pattern, mask))
    for canvas, part in zip(placed, (pattern, mask), strict=True):
        canvas[:, top : top + height, left : left + width] = part
    return placed[0], placed[1]
