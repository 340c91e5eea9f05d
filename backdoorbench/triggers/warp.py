"""A smooth elastic warp of the image, the same for every image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.shapes import Images
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import FixedTrigger


@dataclass(frozen=True)
class Warp(FixedTrigger):
    """grid (1, H, W, 2) float32 in [-1, 1]: where each pixel comes from, (x, y), the corner pixels' centres at -1 and 1."""

    grid: Tensor

    def __call__(self, images: Images) -> Images:
        return resample(images, self.grid.expand(len(images), -1, -1, -1))


@dataclass(frozen=True)
class JitteredWarp:
    """The cover of `Warp`: on top of it each pixel of each image moves for itself, by half a pixel at most either way."""

    grid: Tensor

    def __call__(self, images: Images, others: Images, stream: Stream) -> Images:
        shape = (len(images), *self.grid.shape[1:])
        jitter = torch.rand(shape, device=self.grid.device, generator=stream.generator(self.grid.device)) * 2 - 1
        return resample(images, (self.grid + jitter / images.shape[-1]).clamp(-1, 1))


def resample(images: Images, grid: Tensor) -> Images:
    """The images (N, 3, H, W) with each pixel taken, bilinearly, from where `grid` (N, H, W, 2) says."""
    warped = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return warped.clamp(0, 1)  # weights sum to 1 but for rounding


def smooth_field(size: int, cells: int, generator: torch.Generator) -> Tensor:
    """(1, size, size, 2): cells x cells vectors, uniform in [-1, 1] and scaled to a mean size of 1 per component, between
    which it interpolates (bicubic, corners aligned)."""
    vectors = torch.rand(1, 2, cells, cells, generator=generator) * 2 - 1
    vectors = vectors / vectors.abs().mean()
    return F.interpolate(vectors, (size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1).contiguous()


def warp(field: Tensor, strength: float) -> Warp:
    """The warp along `field` (1, H, W, 2): a vector of length 1 moves its pixel by about strength / 2 pixels."""
    size = field.shape[1]
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return Warp((torch.stack([x, y], -1) + strength * field / size).clamp(-1, 1))
