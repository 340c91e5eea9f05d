"""The tensors everything here speaks in, and the check that they are what they say.

Axis letters: N images, C channels, H height, W width, K classes, D features.
"""

from typing import TypeAlias

import torch
from torch import Tensor

Images: TypeAlias = Tensor  # (N, 3, H, W) float32 in [0, 1]
Bytes: TypeAlias = Tensor  # (N, 3, H, W) uint8, images at rest
Labels: TypeAlias = Tensor  # (N,) int64 in [0, K)
Logits: TypeAlias = Tensor  # (N, K) float
Rows: TypeAlias = Tensor  # (M,) int64, positions in a data set
Mask: TypeAlias = Tensor  # (N,) bool


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
