"""Two frequencies of a block cosine transform, raised in the colour planes. The transform is linear, so raising a
coefficient adds one fixed wave, whatever the image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from backdoorbench.errors import ConfigError
from backdoorbench.shapes import Images
from backdoorbench.triggers.base import FixedTrigger

BLOCK = 32  # pixels, the side of a transform's window
YUV_TO_RGB = (1.14, -0.977, 2.029)  # what one unit of U and one of V together do to red, green and blue


def cosine_waves(size: int, frequencies: tuple[tuple[int, int], ...], amplitude: float) -> Tensor:
    """(size, size) in grey levels: `amplitude` on each of the coefficients (row, column) of an orthonormal two-dimensional
    DCT-II over BLOCK x BLOCK windows, transformed back. Windows tile the image from its upper left corner; what remains
    to the right and below is 0. ConfigError where no window fits."""
    if size < BLOCK:
        raise ConfigError(
            f"the images have {size} pixels a side, but this trigger lives in the cosine transform of {BLOCK}x{BLOCK} "
            f"windows. Take a data set of at least {BLOCK} pixels, or set dataset.size."
        )
    position = torch.arange(BLOCK, dtype=torch.float64)

    def basis(frequency: int) -> Tensor:
        norm = math.sqrt((1 if frequency == 0 else 2) / BLOCK)
        return norm * torch.cos(math.pi * (2 * position + 1) * frequency / (2 * BLOCK))

    window = sum((torch.outer(basis(row), basis(column)) for row, column in frequencies), torch.zeros(BLOCK, BLOCK))
    waves, count = torch.zeros(size, size), size // BLOCK
    waves[: count * BLOCK, : count * BLOCK] = (amplitude * window).float().repeat(count, count)
    return waves


def yuv_pattern(waves: Tensor) -> Tensor:
    """(H, W) grey levels, added to both U and V -> (3, H, W), what to add to an image in [0, 1]."""
    return waves * torch.tensor(YUV_TO_RGB).view(3, 1, 1) / 255


@dataclass(frozen=True)
class ChromaAdd(FixedTrigger):
    """waves (H, W) in grey levels, added to Cr and Cb of the image's YCrCb planes, each held in whole levels 0 … 255
    before, as OpenCV holds them. Pixels outside `blocks` (H, W), bool, stay as they are."""

    waves: Tensor
    blocks: Tensor

    def __call__(self, images: Images) -> Images:
        red, green, blue = (images * 255).unbind(1)
        luma = (0.299 * red + 0.587 * green + 0.114 * blue).round()
        planes = (0.713 * (red - luma) + 128, 0.564 * (blue - luma) + 128)
        cr, cb = ((plane.round().clamp(0, 255) + self.waves).clamp(0, 255) - 128 for plane in planes)
        shown = torch.stack([luma + 1.403 * cr, luma - 0.714 * cr - 0.344 * cb, luma + 1.773 * cb], 1)
        return torch.where(self.blocks, (shown / 255).clamp(0, 1), images)
