"""A pattern added to the image, clip(x + d), or added and followed by a contrast stretch; and the patterns themselves."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.shapes import Images
from backdoorbench.triggers.base import FixedTrigger


@dataclass(frozen=True)
class Add(FixedTrigger):
    """pattern (3, H, W) in [-1, 1], or with axes of length 1 that broadcast: 1 is the whole range of a pixel."""

    pattern: Tensor

    def __call__(self, images: Images) -> Images:
        return (images + self.pattern).clamp(0, 1)


@dataclass(frozen=True)
class AddStretch(FixedTrigger):
    """pattern (3, H, W) in [-1, 1]. The sum is not clipped but stretched: each image's darkest value, over all pixels and
    channels, becomes 0 and its brightest 1. An image of one value has no contrast to stretch; its sum is clipped."""

    pattern: Tensor

    def __call__(self, images: Images) -> Images:
        shifted = images + self.pattern
        low, high = _range(shifted)
        darkest, brightest = _range(images)
        flat = (darkest == brightest) | (low == high)
        return torch.where(flat, shifted.clamp(0, 1), (shifted - low) / torch.where(flat, 1, high - low))


def sinusoid(size: int, amplitude: float, cycles: int) -> Tensor:
    """(1, 1, size): amplitude / 255 * sin(2 pi cycles j / size), the same at every resolution; amplitude in grey levels."""
    columns = torch.arange(size, dtype=torch.float64)
    return (amplitude / 255 * torch.sin(2 * math.pi * cycles * columns / size)).float().view(1, 1, size)


def low_frequency_noise(size: int, amplitude: float, generator: torch.Generator) -> Tensor:
    """(3, size, size) in [0, amplitude], in steps of 1/255: white Gaussian noise under `smooth`, all channels stretched
    together to the whole range, so that they differ in strength."""
    field = smooth(torch.randn(3, size, size, generator=generator))
    return ((field - field.min()) / (field.max() - field.min()) * amplitude * 255).round() / 255


def smooth(field: Tensor) -> Tensor:
    """(C, N, N) blurred, each channel for itself, by a Gaussian of sigma = 6 r pixels on 30 r taps, r = N / 32. Beyond its
    border the field counts as 0; the even number of taps moves it by half a pixel (arXiv 2104.03413, its code)."""
    scale = field.shape[-1] / 32
    count = round(30 * scale)
    taps = torch.exp(-0.5 * ((torch.arange(count) - (count - 1) / 2) / (6 * scale)) ** 2)
    taps = (taps / taps.sum()).to(field.device)
    before, after = (count - 1) // 2, count // 2  # 14 and 15 at 32 pixels
    field = F.pad(field, (before, after, before, after))[:, None]
    return F.conv2d(F.conv2d(field, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[:, 0]


def correlated_noise(size: int, generator: torch.Generator) -> Tensor:
    """(3, size, size) in [0, 1], 43 % of it zero: Gaussian noise, lightly correlated between neighbours and channels, above
    its 43 % quantile, scaled to an L2 norm of 821 r grey levels, r = size / 32. It has the measured statistics of
    Trap-and-Replace's `l2_inv` file."""
    own = torch.randn(3, size, size, generator=generator)
    shared = torch.randn(1, size, size, generator=generator)
    white = math.sqrt(0.73) * own + math.sqrt(0.27) * shared
    blurred = white
    for axis in (1, 2):  # the 3x3 binomial kernel, wrapping around
        blurred = blurred / 2 + (blurred.roll(1, axis) + blurred.roll(-1, axis)) / 4
    mixed = 0.58 * white / white.std() + 0.42 * blurred / blurred.std()
    floor = mixed.flatten().kthvalue(round(0.43 * mixed.numel())).values
    field: Tensor = (mixed - floor).clamp_min(0)
    return field * (821 / 255 * size / 32 / float(torch.linalg.vector_norm(field)))


def _range(images: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1, 1, 1) each: the smallest and the largest value of every image."""
    return images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
