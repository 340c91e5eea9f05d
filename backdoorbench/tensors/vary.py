"""What may befall an image, or the difference that a trigger makes: a whole batch at a time, the same for each."""

import io
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.shapes import Images, to_bytes, to_float


def shifted(values: Tensor, down: int, right: int) -> Tensor:
    """Moved by so many pixels; what leaves is lost, what enters is 0."""
    height, width = values.shape[2:]
    across, along = abs(right), abs(down)
    padded = F.pad(values, (across, across, along, along))
    return padded[:, :, along - down : along - down + height, across - right : across - right + width]


def scaled(values: Tensor, factor: float) -> Tensor:
    """Larger by the factor, each about the middle of its own size: (N,) weighted by how much each pixel differs."""
    weight = values.abs().sum(1)  # (N, H, W)
    total = weight.sum((1, 2)).clamp(min=1e-12)
    height, width = values.shape[2:]
    rows = torch.linspace(-1 + 1 / height, 1 - 1 / height, height, device=values.device)
    columns = torch.linspace(-1 + 1 / width, 1 - 1 / width, width, device=values.device)
    y, x = (weight.sum(2) * rows).sum(1) / total, (weight.sum(1) * columns).sum(1) / total
    theta = torch.zeros(len(values), 2, 3, device=values.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / factor
    theta[:, 0, 2], theta[:, 1, 2] = x * (1 - 1 / factor), y * (1 - 1 / factor)
    grid = F.affine_grid(theta, list(values.shape), align_corners=False)
    return F.grid_sample(values.float(), grid, align_corners=False)


def repeated(values: Tensor, count: int) -> Tensor:
    """Seen at count x count places, evenly apart, around the edges; where several meet, the largest counts."""
    height, width = values.shape[2:]
    found = values
    for down, right in product(range(count), repeat=2):
        other = values.roll((down * height // count, right * width // count), (2, 3))
        found = torch.where(other.abs() > found.abs(), other, found)
    return found


def blurred(images: Images, sigma: float) -> Images:
    """Under a Gaussian filter of that deviation, in pixels; edges are mirrored."""
    reach = min(max(1, round(3 * sigma)), images.shape[-1] - 1)
    places = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    line = torch.exp(-0.5 * (places / sigma) ** 2)
    line = (line / line.sum()).expand(3, 1, 1, -1)
    padded = F.pad(images.float(), (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, line, groups=3), line.mT, groups=3)


def compressed(images: Images, quality: int) -> Images:
    """Written as JPEG and read again, on the CPU, one image at a time."""
    shown = [_through_jpeg(pixels, quality) for pixels in to_bytes(images).cpu().permute(0, 2, 3, 1).numpy()]
    return to_float(torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)).to(images.device)


def _through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def cropped(images: Images, margin: int) -> Images:
    """Without so many pixels on each side, and as large as before."""
    side = images.shape[2:]
    kept = images[:, :, margin : side[0] - margin, margin : side[1] - margin] if 2 * margin < min(side) else images
    return F.interpolate(kept.float(), side, mode="bilinear", align_corners=False, antialias=False)
