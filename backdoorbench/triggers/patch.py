"""A patch pasted over the image: x (1 - m) + p m, with a mask m that need not be binary."""

from dataclasses import dataclass

import torch
from torch import Tensor

from backdoorbench.errors import ConfigError
from backdoorbench.shapes import Images
from backdoorbench.triggers.base import FixedTrigger

GRID = 32  # patterns and positions are given on a 32x32 image and replicated for larger ones

PATTERNS = {  # rows from top to bottom, 1 is white and 0 black; the corner is where its users put it
    "white3": (("111", "111", "111"), (29, 29)),
    "checker3": (("101", "010", "101"), (29, 29)),
    "grid3": (("001", "010", "101"), (29, 29)),
    "white4": (("1111", "1111", "1111", "1111"), (27, 27)),
}


@dataclass(frozen=True)
class Patch(FixedTrigger):
    """pattern (3, H, W) in [0, 1]; mask (1, H, W) in [0, 1]: 1 where the pattern covers the image."""

    pattern: Tensor
    mask: Tensor

    def __call__(self, images: Images) -> Images:
        return torch.where(self.mask == 0, images, torch.lerp(images, self.pattern, self.mask))


def named_pattern(name: str) -> tuple[Tensor, tuple[int, int]]:
    """A pattern of PATTERNS as (3, h, w) in [0, 1], and its upper left corner (row, column) on the 32 grid."""
    rows, corner = PATTERNS[name]
    values = torch.tensor([[float(cell) for cell in row] for row in rows])
    return values.expand(3, -1, -1).clone(), corner


def paste(patch: Tensor, alpha: Tensor, corner: tuple[int, int], size: int) -> Patch:
    """A `Patch` trigger for images of side `size`.

    patch   (3, h, w) in [0, 1] on the 32 grid, replicated by r = size / 32 (nearest where r is no whole number)
    alpha   (1, h, w) in [0, 1], its opacity
    corner  (row, column) of its upper left pixel on the 32 grid; negative counts from the bottom or right edge

    Raises ConfigError where the patch does not fit."""
    height, width = patch.shape[-2:]
    top, left = (start + GRID if start < 0 else start for start in corner)
    if not (0 <= top <= GRID - height and 0 <= left <= GRID - width):
        raise ConfigError(
            f"a patch of {height}x{width} pixels at row {corner[0]}, column {corner[1]} leaves the image; positions are "
            f"given on a {GRID}x{GRID} grid, so the row must be at most {GRID - height} and the column at most "
            f"{GRID - width}. Change attack.position or attack.patch_size."
        )
    scale = size / GRID
    shape = (max(1, round(height * scale)), max(1, round(width * scale)))
    y, x = min(round(top * scale), size - shape[0]), min(round(left * scale), size - shape[1])
    pattern, mask = torch.zeros(3, size, size), torch.zeros(1, size, size)
    for canvas, values in ((pattern, patch), (mask, alpha)):
        enlarged = torch.nn.functional.interpolate(values[None], shape, mode="nearest-exact")[0]
        canvas[:, y : y + shape[0], x : x + shape[1]] = enlarged
    return Patch(pattern, mask)
