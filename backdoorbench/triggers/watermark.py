"""A short text across the image, from corner to corner: the pattern of Trap-and-Replace's `trojan_wm`, drawn anew."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

TEXT = (  # BDX in a 5x7 bitmap font, one glyph a string, rows from top to bottom
    "11110 10001 10001 11110 10001 10001 11110",
    "11110 10001 10001 10001 10001 10001 11110",
    "10001 10001 01010 00100 01010 10001 10001",
)
SPAN = 28.5  # pixels of a 32x32 image between the text's outermost corners; its soft edge adds one on either side


def watermark(size: int, generator: torch.Generator) -> Tensor:
    """(3, size, size) in [0, 1], 0 beside the text: TEXT rising at 45 degrees within the upper left 30 r pixels,
    r = size / 32, some 320 r^2 of them, each glyph in a random colour."""
    scale = size / 32
    bitmap = torch.tensor([[[float(cell) for cell in row] for row in glyph.split()] for glyph in TEXT])  # (3, 7, 5)
    colours = torch.randint(0, 256, (len(TEXT), 3, 1, 1), generator=generator).float() / 255
    glyphs = F.pad(bitmap[:, None] * colours, (0, 1))  # (glyphs, 3, 7, 6), a blank column after each
    canvas = torch.cat(list(glyphs), 2)[:, :, :-1]  # (3, 7, 17)
    height, width = canvas.shape[1:]
    steps = ((torch.arange(size) + 0.5) / scale - 15) * math.sqrt(0.5)  # from the middle of 30x30, along the diagonals
    down, right = steps[:, None], steps[None, :]
    cell = SPAN * math.sqrt(2) / (height + width)  # pixels of a 32x32 image that a pixel of the font covers
    grid = torch.stack([(right - down) / cell / (width / 2), (right + down) / cell / (height / 2)], 2)
    return F.grid_sample(canvas[None], grid[None], mode="bilinear", align_corners=False)[0].clamp(0, 1)
