"""What a network was trained to be shown, where its data set does not say so: its normalisation, pixels up to 255, grey."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoorbench.config.acts import Acts, Only
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.shapes import Images

LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in a grey, as ITU-R 601 and Pillow have them
Numbers = tuple[float, ...]


class Grey(nn.Module):
    """(N, 3, H, W) -> (N, 1, H, W): the brightness of each pixel."""

    shares: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shares", torch.tensor(LUMA).view(3, 1, 1), persistent=False)

    def forward(self, images: Images) -> Images:
        return (images * self.shares.to(images.dtype)).sum(1, keepdim=True)


class Swapped(nn.Module):
    """(N, 3, H, W) red, green, blue -> blue, green, red: what OpenCV reads."""

    def forward(self, images: Images) -> Images:
        return images.flip(1)


@dataclass(frozen=True)
class Reads:
    """mean, std  what is subtracted from pixels, and what they are then divided by: a number, or one for each channel, in the
               units of `range`; `none`: nothing; null: as the data set says, and nothing where white is 255
    range      what white is: 1 or 255
    channels   of the images: 3, or 1 where they are turned grey first
    colours    in which order: red first, or blue first
    """

    acts: ClassVar[Acts] = {"colours": Only("channels", 3)}

    mean: float | tuple[float, ...] | Literal["none"] | None
    std: float | tuple[float, ...] | Literal["none"] | None
    range: Literal[1, 255]
    channels: Literal[1, 3]
    colours: Literal["rgb", "bgr"]

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, tuple) and len(value) not in (1, self.channels):
                expected = "one number" if self.channels == 1 else "one number, or one for each of 3 channels"
                raise ConfigError(f"model.{name} has {len(value)} numbers; expected {expected}. Change model.{name}.")
        for number in _numbers(self.std, 1.0):
            if number <= 0:
                raise ConfigError(
                    f"model.std is {number:g}, and pixels are divided by it; expected numbers above 0. Change model.std."
                )

    @property
    def normalises(self) -> bool:
        """Whether it says by what images are normalised, or leaves that to others."""
        return self.mean is not None or self.std is not None or self.range != 1

    def normalisation(self, mean: Numbers, std: Numbers) -> tuple[Numbers, Numbers]:
        """Mean and deviation for pixels in [0, 1], of which this makes what the network reads; one number for grey images.

        mean, std  the data set's"""
        if self.mean is None and self.range == 1:
            found = [share * value for share, value in zip(LUMA, mean, strict=True)]
            mean = mean if self.channels == 3 else (sum(found),)
        else:
            mean = tuple(value / self.range for value in _numbers(self.mean, 0.0))
        if self.std is None and self.range == 1:
            found = [share * value for share, value in zip(LUMA, std, strict=True)]
            std = std if self.channels == 3 else (sum(found),)
        else:
            std = tuple(value / self.range for value in _numbers(self.std, 1.0))
        return tuple(mean) * (self.channels // len(mean)), tuple(std) * (self.channels // len(std))

    def first(self) -> list[nn.Module]:
        """What images pass through before they are normalised."""
        if self.channels == 1:
            return [Grey()]
        return [Swapped()] if self.colours == "bgr" else []

    def narrow(self, net: nn.Module, name: str) -> None:
        """Makes the first convolution of a network for three colours read one, where it is to: the same function, on a grey
        picture in three colours. Raises ModelError where there is none.

        name  the network's, for messages"""
        first = next((part for part in net.modules() if isinstance(part, nn.Conv2d)), None)
        if self.channels == 3 or (first is not None and first.in_channels == 1):
            return
        if first is None or first.in_channels != 3 or not first.weight.requires_grad:
            raise ModelError(
                f"model.channels is 1, but '{name}' does not open with a convolution of three colours that could read one. Set "
                f"model.channels=3, or choose another network."
            )
        first.in_channels = 1
        first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))


def _numbers(value: float | Numbers | str | None, absent: float) -> Numbers:
    if isinstance(value, tuple):
        return value
    return (absent,) if value is None or isinstance(value, str) else (float(value),)
