"""What triggers share that a network hides in the image."""

from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from backdoorbench.shapes import Images

PIXELS = 2**20  # of all images that pass the network together


class Hidden(nn.Module):
    """A trigger whose network paints each image anew. Write `paint`.

    settings  what builds the network again, and under `figures` what its training found out"""

    settings: dict[str, Any]

    @property
    def figures(self) -> dict[str, float]:
        """What the training found out."""
        found: dict[str, float] = self.settings["figures"]
        return found

    @abstractmethod
    def paint(self, images: Images) -> Images:
        """(N, 3, H, W) in [0, 1] -> the same with the trigger, not yet clamped; float32, outside any autocast."""

    def forward(self, images: Images) -> Images:
        """In float32 whatever the autocast: the trigger is the same function in every precision."""
        together = max(1, PIXELS // (images.shape[-2] * images.shape[-1]))
        with torch.autocast(images.device.type, enabled=False):
            parts = [self.paint(part) for part in torch.split(images, together)]
        return torch.cat(parts).clamp(0, 1)
