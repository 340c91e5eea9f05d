"""A small patch that a network writes for each image, where another network puts it."""

from typing import Any

import torch
from torch import Tensor, nn

from backdoorbench.models.base import Normalize
from backdoorbench.shapes import Images

HALVINGS = 3
MULTIPLE = 2**HALVINGS  # an image's side must be one of it


class InputAware(nn.Module):
    """x + (G(x) - x) M(x), with a pattern G(x) (N, 3, H, W) and a mask M(x) (N, 1, H, W), both in [0, 1].

    The networks read normalised pixels, mean and std per channel. Sides are multiples of 8. 723,273 and 722,691
    parameters."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"mean": list(mean), "std": list(std)}
        self.normalize = Normalize(tuple(mean), tuple(std))
        self.generator = hourglass(3)
        self.masker = hourglass(1)

    def forward(self, images: Images) -> Images:
        return self.cross(images, images)

    def cross(self, images: Images, others: Images) -> Images:
        """`images` under the pattern and the mask that belong to `others`, row by row. In float32 whatever the autocast:
        the trigger is the same function in every precision."""
        with torch.autocast(images.device.type, enabled=False):
            return paste(images, self.pattern(others), self.mask(others))

    def pattern(self, images: Images) -> Images:
        """G(x), in the caller's precision up to the last layer."""
        return torch.tanh(self.generator(self.normalize(images)).float()) / 2 + 0.5

    def mask(self, images: Images) -> Tensor:
        """M(x): the network's answer, sharpened towards 0 and 1."""
        soft = torch.tanh(self.masker(self.normalize(images)).float()) / 2 + 0.5
        return torch.tanh(20 * soft - 10) / 2 + 0.5


def paste(images: Images, pattern: Images, mask: Tensor) -> Images:
    """The images, covered by the pattern as far as the mask says."""
    return torch.lerp(images, pattern, mask).clamp(0, 1)  # between both but for rounding


def hourglass(outputs: int) -> nn.Sequential:
    """(N, 3, H, W) -> (N, outputs, H, W), of any sign: three halvings and three doublings, without shortcuts."""
    layers: list[nn.Module] = []
    channels, width = 3, 32
    for _ in range(HALVINGS):
        layers += [*block(channels, width), *block(width, width), nn.MaxPool2d(2)]
        channels, width = width, width * 2
    layers += block(channels, channels)
    for step in range(HALVINGS):
        last = step == HALVINGS - 1
        layers += [nn.Upsample(scale_factor=2, mode="bilinear"), *block(channels, channels)]
        layers += block(channels, outputs, relu=False) if last else block(channels, channels // 2)
        channels //= 2
    return nn.Sequential(*layers)


def block(inputs: int, outputs: int, relu: bool = True) -> list[nn.Module]:
    """A 3x3 convolution, batch norm, and ReLU unless it is the last."""
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, momentum=0.05)]
    return [*layers, nn.ReLU()] if relu else layers
