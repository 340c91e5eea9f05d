"""Reflections, as of a room in a window pane: a doubled or a blurred picture, blended into the image in linear light."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.shapes import Bytes, Images, Rows, to_bytes, to_float
from backdoorbench.triggers.base import FixedTrigger

GAMMA = 2.2  # of the display
REACH = 3.0  # standard deviations of the window that a blurred reflection shows through, at its border


@dataclass(frozen=True)
class Reflections(FixedTrigger):
    """One of M reflections an image: that whose number is the sum of the image's bytes modulo M, so that an image has
    always the same one, alone or in a batch.

    layers  (M, 3, H, W) float16 in [0, 1], linear light: the reflection, doubled or blurred
    doubled (M,) bool
    share   (M,) in [0, 1]: what is left of the image
    recede  (M,): how far a blurred layer gives way where the sum is too bright"""

    layers: Tensor
    doubled: Tensor
    share: Tensor
    recede: Tensor

    def __call__(self, images: Images) -> Images:
        which = self.which(images)
        share, doubled = self.share[which].view(-1, 1, 1, 1), self.doubled[which].view(-1, 1, 1, 1)
        layer, scene = self.layers[which].float(), images**GAMMA
        dimmed = give_way(layer, scene, self.recede[which]) * window(images.shape[-1]).to(images.device)
        pane = torch.where(doubled, layer * (1 - share), dimmed * (1 - share / 2))
        return (pane + scene * share).clamp(0, 1) ** (1 / GAMMA)

    def which(self, images: Images) -> Rows:
        """(N,) the number of each image's reflection."""
        return to_bytes(images).sum((1, 2, 3), dtype=torch.int64) % len(self.layers)


def give_way(layer: Images, scene: Images, recede: Tensor) -> Images:
    """`layer` darkened where it and `scene` together are brighter than white: in each channel by the mean excess over 1 of
    those pixels, times `recede` (N,)."""
    total = layer + scene
    over = total > 1
    mean = (total * over).sum((2, 3), keepdim=True) / over.sum((2, 3), keepdim=True).clamp(min=1)
    excess = mean.clamp(min=1) - 1
    return (layer - excess * recede.view(-1, 1, 1, 1)).clamp(0, 1)


def window(size: int) -> Tensor:
    """(size, size): the root of a Gaussian over REACH standard deviations either way, 1 in the middle."""
    line = torch.linspace(-REACH, REACH, size).square().neg().div(4).exp()
    return line.outer(line) / line.max() ** 2


def double(picture: Tensor, offset: tuple[int, int], balance: float) -> Tensor:
    """(3, W, W) linear light -> the same size: the picture and its copy `offset` (down, right) pixels away, `balance` and
    1 - balance of them, where both are, stretched to the whole."""
    down, right = offset
    both = balance * F.pad(picture, (0, right, 0, down)) + (1 - balance) * F.pad(picture, (right, 0, down, 0))
    return resize(both[:, down : both.shape[1] - down, right : both.shape[2] - right], picture.shape[-1])


def blur(picture: Tensor, sigma: float) -> Tensor:
    """(3, W, W) -> the same size, a Gaussian of `sigma` pixels on 2 ceil(2 sigma) + 1 taps, mirrored at the border."""
    reach = math.ceil(2 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    taps = (taps / taps.sum()).to(picture.device)
    padded = F.pad(picture[None], (reach,) * 4, mode="reflect")[0][:, None]
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1))[:, 0]


def resize(picture: Tensor, size: int) -> Tensor:
    """(3, H, W) -> (3, size, size), bilinear, antialiased where it shrinks."""
    if picture.shape[-2:] == (size, size):
        return picture
    return F.interpolate(picture[None], (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)


def draw_reflections(
    pictures: Bytes, size: int, work_size: int, share: float | None, doubled_rate: float, generator: torch.Generator
) -> Reflections:
    """As many reflections as `pictures` (M, 3, h, w), for images of `size` pixels.

    work_size     side at which they are doubled or blurred
    share         what is left of the image; None: 1 - U(0.05, 0.45) for each
    doubled_rate  chance of a doubled rather than a blurred one"""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    layers, doubled, shares, recede = [], [], [], []
    for picture in pictures:
        linear = resize(to_float(picture), work_size) ** GAMMA
        doubled.append(uniform(0, 1) < doubled_rate)
        shares.append(1 - uniform(0.05, 0.45) if share is None else share)
        recede.append(1.08 + uniform(0, 0.1))
        down, right = (int(torch.randint(3, 9, (), generator=generator)) for _ in range(2))
        balance, sigma = abs(round(uniform(0, 1)) - uniform(0.15, 0.5)), uniform(1, 5)
        layer = double(linear, (down, right), balance) if doubled[-1] else blur(linear, sigma)
        layers.append(resize(layer, size).half())
    return Reflections(torch.stack(layers), torch.tensor(doubled), torch.tensor(shares), torch.tensor(recede))


def scenes(count: int, size: int, generator: torch.Generator) -> Bytes:
    """(count, 3, size, size) uint8: a gradient between two colours with five soft-edged ellipses of other colours on it."""
    line = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    drawn = []
    for _ in range(count):
        angle = float(draw()) * 2 * math.pi
        ramp = ((math.cos(angle) * x + math.sin(angle) * y) / math.sqrt(2) + 1) / 2
        picture = torch.lerp(draw(3, 1, 1), draw(3, 1, 1), ramp)
        for _ in range(5):
            (cy, cx), (ry, rx), angle = draw(2) * 2 - 1, draw(2) * 0.6 + 0.1, float(draw()) * math.pi
            across = math.cos(angle) * (x - cx) + math.sin(angle) * (y - cy)
            along = math.cos(angle) * (y - cy) - math.sin(angle) * (x - cx)
            inside = torch.sigmoid(8 * (1 - (across / rx).square() - (along / ry).square()))
            picture = torch.lerp(picture, draw(3, 1, 1), inside)
        drawn.append(to_bytes(picture))
    return torch.stack(drawn)
