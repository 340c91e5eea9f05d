"""Random crops, flips, rotations and resized crops of a whole batch: a few kernels, each image its own numbers.

All random numbers are drawn first (`Augment.draw`, on the CPU, by name), then used (`Augment.apply`: pure, on any
device, without waiting for it). Each function below is what torchvision does to one image, for a batch at once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Only, Unless
from backdoorbench.errors import ConfigError
from backdoorbench.shapes import Bytes, Images, Mask, check_images, to_float
from backdoorbench.streams import Stream

MOST_SIDE = 4096  # pixels: as large as an image may be
ATTEMPTS = 10  # boxes tried before a resized crop takes the whole image; torchvision's number
LOG_RATIO = math.log(4 / 3)  # widest box: 4 to 3; narrowest: 3 to 4


@dataclass(frozen=True)
class Draws:
    """The random numbers for N images; None where the augmentation does not ask for them.

    offsets  (N, 2) int64, top and left of the crop in the padded image, each in [0, 2 * crop_padding]
    mirrored (N,) bool
    degrees  (N,) float32, counter-clockwise
    boxes    (N, 4) int64, top, left, height, width of the part that is resized
    """

    offsets: Tensor | None
    mirrored: Mask | None
    degrees: Tensor | None
    boxes: Tensor | None

    def to(self, device: torch.device | str) -> "Draws":
        """The same numbers on `device`."""
        return Draws(*(None if part is None else part.to(device, non_blocking=True) for part in self._parts()))

    def __getitem__(self, rows: slice) -> "Draws":
        """The numbers of the images at `rows`."""
        return Draws(*(None if part is None else part[rows] for part in self._parts()))

    def _parts(self) -> list[Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Augment:
    """How training images are varied: crop or resized crop, then flip, then rotation."""

    crop_padding: int  # pixels of black border before a random crop back to the stored size; 0: no crop
    flip: bool  # left-right with probability 1/2
    rotation: float  # degrees, uniform in +-rotation; 0: none
    resized_crop: tuple[float, float] | None  # share of the area of a random resized crop; null: none
    crop: int | None  # side of the result of resized_crop, in pixels; null: as stored

    def __post_init__(self) -> None:
        if not 0 <= self.crop_padding <= MOST_SIDE:
            raise ConfigError(
                f"crop_padding is {self.crop_padding}; expected pixels of border, 0 to {MOST_SIDE}: "
                "set it to 0 for no crop, or to 4, the usual border of 32-pixel images"
            )
        if not 0 <= self.rotation <= 180:
            raise ConfigError(
                f"rotation is {self.rotation}; expected degrees between 0 and 180, the most that an image is turned "
                "either way: set it to 0 for no rotation, or to 10"
            )
        if self.resized_crop is None:
            if self.crop is not None:
                raise ConfigError(
                    f"crop is {self.crop} but resized_crop is null; crop is the side of a resized crop's result: "
                    "set crop to null, or resized_crop to the range of areas, for instance [0.08, 1]"
                )
            return
        if len(self.resized_crop) != 2 or not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ConfigError(
                f"resized_crop is {list(self.resized_crop)}; expected the smallest and the largest share of the area, "
                "above 0, at most 1, in this order: set it to [0.08, 1], the usual range, or to null for none"
            )
        if self.crop_padding:
            raise ConfigError(
                f"crop_padding is {self.crop_padding} and resized_crop is {list(self.resized_crop)}; expected at most "
                "one kind of crop: set crop_padding to 0, or resized_crop to null"
            )
        if self.crop is not None and not 1 <= self.crop <= MOST_SIDE:
            raise ConfigError(
                f"crop is {self.crop}; expected the side of the resized crop's result in pixels, 1 to {MOST_SIDE}: "
                "set it to the side that the network expects, or to null for the stored one"
            )

    def draw(self, count: int, size: int, stream: Stream) -> Draws:
        """All random numbers for `count` images of side `size`, from torchvision's distributions, on the CPU.

        Each kind has its own child stream, so switching one on or off does not move another.
        """

        def uniform(name: str, *shape: int) -> Tensor:
            return torch.rand(count, *shape, dtype=torch.float64, generator=stream.child(name).generator())

        offsets = mirrored = degrees = boxes = None
        if self.crop_padding:
            generator = stream.child("crop").generator()
            offsets = torch.randint(2 * self.crop_padding + 1, (count, 2), generator=generator)
        if self.flip:
            mirrored = uniform("flip") < 0.5
        if self.rotation:
            degrees = ((2 * uniform("angle") - 1) * self.rotation).float()
        if self.resized_crop is not None:
            smallest, largest = self.resized_crop
            area = (smallest + (largest - smallest) * uniform("area", ATTEMPTS)) * size**2  # (N, A)
            ratio = ((2 * uniform("ratio", ATTEMPTS) - 1) * LOG_RATIO).exp()  # width : height
            sides = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()], -1)  # (N, A, 2)
            fits = ((sides >= 1) & (sides <= size)).all(-1)
            first = fits.to(torch.uint8).argmax(1)  # (N,) the first attempt that fits, or 0 where none does
            side = torch.where(fits.any(1)[:, None], sides[torch.arange(count), first], float(size))  # (N, 2)
            corner = (uniform("corner", 2) * (size - side + 1)).floor()
            boxes = torch.cat([corner, side], 1).long()
        return Draws(offsets, mirrored, degrees, boxes)

    def apply(self, images: Bytes | Images, draws: Draws) -> Images:
        """The augmented images, float32 in [0, 1]: row by row, `images` unchanged.

        Crop and flip move values and are exact; they come before the conversion because bytes are four times cheaper.
        """
        check_images(images)
        if draws.offsets is not None:
            images = windows(self.framed(images), draws.offsets[:, 0], draws.offsets[:, 1], images.shape[-2:])
        if draws.mirrored is not None:
            images = flip(images, draws.mirrored)
        result = images if images.is_floating_point() else to_float(images)
        if draws.boxes is not None:
            result = resized_crop(result, draws.boxes, self.crop or images.shape[-1])
        if draws.degrees is not None:
            result = rotate(result, draws.degrees)
        return result

    def framed(self, images: Tensor) -> Tensor:
        """The images with the border that crops are cut from, dtype kept."""
        return F.pad(images, (self.crop_padding,) * 4)


@dataclass(frozen=True)
class Alternating(Augment):
    """The same for few epochs: no crop need be partly black, and an image is as often seen flipped as not.

    border       reflect: an image goes on beyond its border, mirrored
    alternating  a coin decides in the first epoch, and from then on an image is flipped in every other epoch; who trains it
                 counts them. False: a coin in each
    """

    acts: ClassVar[Acts] = {"border": Unless("crop_padding", 0), "alternating": Only("flip", True)}

    border: Literal["black", "reflect"]
    alternating: bool

    def draw(self, count: int, size: int, stream: Stream) -> Draws:
        if self.border == "reflect" and self.crop_padding >= size:
            raise ConfigError(
                f"crop_padding is {self.crop_padding} with border=reflect, but images of {size} px have no "
                f"{self.crop_padding} pixels beside their border to reflect; lower crop_padding to {size - 1} or less, or set "
                f"border to black"
            )
        return super().draw(count, size, stream)

    def framed(self, images: Tensor) -> Tensor:
        if self.border == "black":
            return super().framed(images)
        return F.pad(images, (self.crop_padding,) * 4, mode="reflect")


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Windows of the images' own size, cut out of a black border of `padding` pixels: (N, C, H, W), dtype kept.

    top, left  (N,) int64, the window's first row and column in the padded image, in [0, 2 * padding]
    """
    return windows(F.pad(images, (padding,) * 4), top, left, images.shape[-2:])


def windows(padded: Tensor, top: Tensor, left: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, *size), dtype kept: the window of each of `padded` (N, C, H, W) that begins in row `top` and column `left`, (N,)
    int64."""
    count, channels = padded.shape[:2]
    height, width = size
    if count == 0:
        return padded[..., :height, :width]
    plane = torch.arange(count * channels, device=padded.device).view(count, channels, 1) * padded.shape[2]
    row = plane + top[:, None, None] + torch.arange(height, device=padded.device)  # (N, C, H), of all padded rows
    start = row * padded.shape[3] + left[:, None, None]
    # A window's rows are runs of `width` neighbours in memory. Every such run is a row of this view, and selecting
    # rows copies runs: on a CPU 2 to 12 times faster than gathering pixels or indexing a two-dimensional unfold.
    runs = padded.reshape(-1).unfold(0, width, 1)
    return runs.index_select(0, start.view(-1)).view(count, channels, height, width)


def flip(images: Tensor, mirrored: Mask) -> Tensor:
    """The images, left and right exchanged where `mirrored` (N,) bool is true: (N, C, H, W), dtype kept."""
    either = torch.cat([images, images.flip(-1)])
    row = torch.arange(len(images), device=images.device) + len(images) * mirrored  # `where` is 4 times slower
    return either.index_select(0, row)


def cut_out(images: Images, centres: Tensor, side: int) -> Images:
    """The images, each with a black square of `side` around a random place, cut off at the border (arXiv 1708.04552v2).

    centres  (N, 2) int64, the row and the column of the square's middle; of an even side, of the pixel below and right of it"""
    rows, columns = (torch.arange(length, device=images.device) for length in images.shape[-2:])
    top, left = (centres - side // 2).unbind(1)

    def inside(places: Tensor, start: Tensor) -> Tensor:
        return (places >= start[:, None]) & (places < start[:, None] + side)  # (N, H) or (N, W)

    hole = inside(rows, top)[:, :, None] & inside(columns, left)[:, None]  # (N, H, W)
    return images * ~hole[:, None]


def rotate(images: Images, degrees: Tensor) -> Images:
    """The images turned counter-clockwise about their centre, bilinear, black outside: (N, C, H, W) float32 in [0, 1].

    degrees  (N,) float

    Bit-equal to torchvision's bilinear rotation on the CPUs tried: cosine and sine in float64, then its order of sums.
    """
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees.double())
    cos, sin = angle.cos().float()[:, None, None], angle.sin().float()[:, None, None]
    x = torch.arange(width, device=images.device) - (width - 1) / 2  # pixel centres, from the image's centre
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    right, down = width / 2, height / 2  # grid_sample counts in half sides
    # Where each pixel comes from, (N, H, W). No matrix product: TF32 would move pixels of large images by a tenth.
    source_x = torch.addcmul(cos / right * x, -sin / right, y)
    source_y = torch.addcmul(sin / down * x, cos / down, y)
    grid = torch.stack([source_x, source_y], -1)
    turned = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.clamp(max=1)  # weights sum to 1 but for rounding


def resized_crop(images: Images, boxes: Tensor, size: int) -> Images:
    """The part of each image inside its box, resized to side `size`, bilinear with antialiasing: (N, C, size, size).

    boxes  (N, 4) int64, top, left, height, width, inside the image

    Two matrix products with mostly zero weights: made for GPUs and small images; on a CPU, torchvision's loop
    overtakes them somewhere between sides of 64 and 256 pixels.
    """
    rows = _resize_weights(boxes[:, 0], boxes[:, 2], images.shape[-2], size)  # (N, S, H)
    columns = _resize_weights(boxes[:, 1], boxes[:, 3], images.shape[-1], size)  # (N, S, W)
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would keep 8 bits of a pixel
        narrow = (images.flatten(1, 2) @ columns.mT).view(*images.shape[:3], size)  # (N, C, H, S)
        return (rows[:, None] @ narrow).clamp(max=1)  # weights sum to 1 but for rounding


def _resize_weights(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """(N, size, source) float32: the share of each source pixel in each result pixel, rows summing to 1.

    A triangle over the result pixel's centre; where the image shrinks, wide enough that no source pixel is skipped.
    """
    scale = (length.float() / size)[:, None, None]  # source pixels in a result pixel
    pixel = torch.arange(source, device=start.device)
    inside = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])  # (N, source)
    centre = (torch.arange(size, device=start.device) + 0.5)[:, None] * scale  # (N, size, 1), from the box's start
    distance = (pixel + 0.5 - start[:, None])[:, None] - centre  # (N, size, source)
    weights = (1 - distance.abs() / scale.clamp(min=1)).clamp(min=0) * inside[:, None]
    return weights / weights.sum(-1, keepdim=True)
