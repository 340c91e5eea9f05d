"""The tensors everything here speaks in, the check that they are what they say, and how many rows a share of them is.

Axis letters: N images, C channels, H height, W width, K classes, D features.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor

Images: TypeAlias = Tensor  # (N, 3, H, W) float32 in [0, 1]
Bytes: TypeAlias = Tensor  # (N, 3, H, W) uint8, images at rest
Labels: TypeAlias = Tensor  # (N,) int64 in [0, K)
Logits: TypeAlias = Tensor  # (N, K) float
Rows: TypeAlias = Tensor  # (M,) int64, positions in a data set
Mask: TypeAlias = Tensor  # (N,) bool

SLACK = (
    1e-9  # of a row, that floating-point numbers may be off: 0.29 of 100 is 29, though 0.29 * 100 is 28.999999999999996
)


def to_float(images: Bytes) -> Images:
    """The same images as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def to_bytes(images: Images) -> Bytes:
    """The same images as uint8: clamped first, then rounded half to even (a cast alone would wrap and truncate)."""
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)


def check_images(images: Tensor) -> None:
    """Raises ValueError unless `images` is (N, 3, H, W), uint8 or floating."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (N, 3, H, W)")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images have dtype {images.dtype}; expected uint8, or floating in [0, 1]")


def floor_of(share: float, count: int) -> int:
    """That share of a count, rounded down.

    >>> floor_of(0.29, 100), floor_of(0.58, 50), floor_of(0.1, 128)
    (29, 29, 12)
    """
    return math.floor(share * count + SLACK)


def ceil_of(share: float, count: int) -> int:
    """That share of a count, rounded up.

    >>> ceil_of(0.07, 100), ceil_of(0.1, 128)
    (7, 13)
    """
    return math.ceil(share * count - SLACK)
