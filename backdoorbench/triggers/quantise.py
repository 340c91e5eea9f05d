"""Fewer levels per colour channel, with or without dithering."""

from dataclasses import dataclass

import torch
from torch import Tensor

from backdoorbench.shapes import Images, to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import FixedTrigger


@dataclass(frozen=True)
class Quantise(FixedTrigger):
    """Each value to the nearest of `levels` equally spaced ones in [0, 1], then to 1/255; dither: its error to neighbours."""

    levels: int
    dither: bool

    def __call__(self, images: Images) -> Images:
        reduced = floyd_steinberg(images, self.levels) if self.dither else nearest(images, self.levels)
        return to_float(to_bytes(reduced))


@dataclass(frozen=True)
class ForeignResidual:
    """The cover of `Quantise`: what it would change in another image, added to this one."""

    trigger: Quantise

    def __call__(self, images: Images, others: Images, stream: Stream) -> Images:
        return (images + self.trigger(others) - others).clamp(0, 1)


def nearest(values: Tensor, levels: int) -> Tensor:
    """The nearest multiples of 1 / (levels - 1)."""
    return values.mul(levels - 1).round().div(levels - 1)


def floyd_steinberg(images: Images, levels: int) -> Tensor:
    """As `nearest`, pixel by pixel in raster order, each pixel's error passed on: 7/16 to the right, 3/16 below left, 5/16
    below, 1/16 below right, channel by channel; at the end it may leave [0, 1] a little, as the reference's does.

    Pixels with the same column + 2 row do not depend on each other and go together: W + 2 H - 2 steps, not H W."""
    count, channels, height, width = images.shape
    row, column = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    step = column + 2 * row  # (H, W)
    steps = width + 2 * height - 2
    place = torch.arange(steps, device=images.device)[:, None] - 2 * row.T  # (T, H): the column a row is at, or outside
    inside = ((place >= 0) & (place < width)).to(images.dtype)
    front = images.new_zeros(steps + 3, count, channels, height + 1)  # the image, sheared; a row for errors below it
    front[step, :, :, row] = images.permute(2, 3, 0, 1)
    for now in range(steps):
        before = front[now, ..., :height]  # (N, C, H)
        after = nearest(before, levels)
        error = (before - after) * inside[now] / 16
        front[now, ..., :height] = after
        front[now + 1, ..., :height] += error * 7
        front[now + 1, ..., 1:] += error * 3
        front[now + 2, ..., 1:] += error * 5
        front[now + 3, ..., 1:] += error
    return front[step, :, :, row].permute(2, 3, 0, 1).contiguous()
