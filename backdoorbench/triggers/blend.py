"""A full-size picture mixed into the image: (1 - a) x + a P."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.errors import ConfigError
from backdoorbench.shapes import Images
from backdoorbench.triggers.base import FixedTrigger
from backdoorbench.triggers.picture import read_opaque

CARTOON_MEAN = (207 / 255, 190 / 255, 198 / 255)  # of the picture the papers blend, per channel
CARTOON_STD = (63 / 255, 74 / 255, 68 / 255)


@dataclass(frozen=True)
class Blend(FixedTrigger):
    """picture (3, H, W) in [0, 1]; ratio in [0, 1]: its share (the papers' alpha)."""

    picture: Tensor
    ratio: float

    def __call__(self, images: Images) -> Images:
        return torch.lerp(images, self.picture, self.ratio)


def check_picture(source: str, file: str | None) -> None:
    """Raises ConfigError unless attack.picture_file is given where, and only where, attack.picture is `image`."""
    if (source == "image") != (file is not None):
        raise ConfigError(
            f"attack.picture is {source} with attack.picture_file={file}; a picture of your own needs both. Set "
            f"attack.picture=image attack.picture_file=FILE, or neither."
        )


def full_picture(source: str, file: str | None, match_stats: bool, size: int, generator: torch.Generator) -> Tensor:
    """(3, size, size) in [0, 1], the picture called `source`: the user's `file`, or noise from `generator`; moved by
    `match_cartoon` where `match_stats` says so."""
    if source == "image":
        assert file is not None
        picture = read_opaque(file, (size, size), "attack.picture_file")
    else:
        picture = {"noise": noise, "smooth_noise": smooth_noise}[source](size, generator)
    return match_cartoon(picture) if match_stats else picture


def noise(size: int, generator: torch.Generator) -> Tensor:
    """(3, size, size) uniform in [0, 1], every pixel and channel for itself."""
    return torch.rand(3, size, size, generator=generator)


def smooth_noise(size: int, generator: torch.Generator) -> Tensor:
    """(3, size, size) in [0, 1]: white Gaussian noise blurred with sigma = size / 16 pixels, each channel stretched to the
    whole range. A random crop moves it a little instead of making it another pattern, as with the papers' picture."""
    sigma = size / 16
    reach = int(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    field = torch.randn(3, 1, size + 2 * reach, size + 2 * reach, generator=generator)
    field = F.conv2d(F.conv2d(field, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[:, 0]
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return (field - low) / (high - low)


def match_cartoon(picture: Tensor) -> Tensor:
    """`picture` (3, H, W) moved to the papers' picture's mean and deviation per channel, and clipped to [0, 1]. That takes some 8
    grey levels off the mean of noise and 12 off its deviation."""
    mean, std = torch.tensor(CARTOON_MEAN).view(3, 1, 1), torch.tensor(CARTOON_STD).view(3, 1, 1)
    centred = picture - picture.mean((1, 2), keepdim=True)
    return (centred / picture.std((1, 2), keepdim=True, correction=0).clamp_min(1e-6) * std + mean).clamp(0, 1)


def wrapped_stripes(size: int) -> Tensor:
    """(3, size, size) in [0, 1], constant along columns: trunc(20 sin(0.8 j)) as an unsigned byte, so that -1 becomes 255 and
    -20 becomes 236. Trap-and-Replace's `sig` blends these stripes, which are no sinusoid any more."""
    columns = torch.arange(size, dtype=torch.float64)
    levels = (20 * torch.sin(0.8 * columns)).trunc() % 256
    return (levels / 255).float().expand(3, size, size).clone()
