"""Faint noise that a network writes for each image."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.models.base import Normalize
from backdoorbench.shapes import Images

Kind = Literal["autoencoder", "unet"]
MULTIPLES: dict[str, int] = {"autoencoder": 16, "unet": 8}  # an image's side must be one of these


class AdditiveNoise(nn.Module):
    """clip(x + e G(x)), with G(x) (N, 3, H, W) in [-1, 1] and a bound e for each channel, 1 being a pixel's whole range.

    The network reads normalised pixels, mean and std per channel. 346,659 (autoencoder) or 7,788,681 (unet) parameters."""

    bound: Tensor

    def __init__(self, kind: Kind, bound: list[float], mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"kind": kind, "bound": list(bound), "mean": list(mean), "std": list(std)}
        self.normalize = Normalize(tuple(mean), tuple(std))
        self.generator = autoencoder() if kind == "autoencoder" else UNet()
        self.register_buffer("bound", torch.tensor(bound).view(3, 1, 1))

    def forward(self, images: Images) -> Images:
        """In float32 whatever the autocast: the trigger is the same function in every precision."""
        with torch.autocast(images.device.type, enabled=False):
            return self.add(images)

    def add(self, images: Images) -> Images:
        """The same in the caller's precision up to the network's last layer."""
        noise = torch.tanh(self.generator(self.normalize(images)).float())
        return (images + self.bound * noise).clamp(0, 1)


def autoencoder() -> nn.Sequential:
    """(N, 3, H, W) -> the same shape, any sign: four halvings to 128 channels and four doublings."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    for inputs, outputs in ((128, 64), (64, 32), (32, 16)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1))


class UNet(nn.Module):
    """(N, 3, H, W) -> the same shape, any sign: three average poolings, shortcuts concatenated, bilinear doublings."""

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 256, 512)
        self.down = nn.ModuleList(block(i, o) for i, o in zip((3, *widths[:3]), widths, strict=True))
        self.up = nn.ModuleList(block(low + high, high) for high, low in ((256, 512), (128, 256), (64, 128)))
        self.last = nn.Sequential(nn.Conv2d(64, 3, 1), nn.BatchNorm2d(3))

    def forward(self, images: Tensor) -> Tensor:
        maps, kept = self.down[0](images), []
        for layer in self.down[1:]:
            kept.append(maps)
            maps = layer(F.avg_pool2d(maps, 2))
        for layer in self.up:
            wider = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
            maps = layer(torch.cat([wider, kept.pop()], 1))
        shown: Tensor = self.last(maps)
        return shown


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
