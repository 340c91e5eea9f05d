"""What the trigger does, to be looked at: clean, triggered, and their difference ten times enlarged, an image a column."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from backdoorbench.shapes import Images, to_bytes
from backdoorbench.storage.store import storage_errors

GAIN = 10  # of the difference
SAID = f"Clean, triggered, and grey plus the difference times {GAIN}."  # of a picture
LEAST = 96  # pixels a small image is enlarged to at least
LINE = 14  # pixels that a line of a caption takes


def gallery(clean: Images, triggered: Images) -> Tensor:
    """(H', W', 3) uint8: three rows (clean, triggered, grey plus ten times the difference) of (N, 3, H, W) images."""
    difference = (triggered - clean) * GAIN + 0.5
    scale = max(1, -(-LEAST // clean.shape[-1]))
    rows = [torch.cat([_framed(image, scale) for image in part], 2) for part in (clean, triggered, difference)]
    return torch.cat(rows, 1).permute(1, 2, 0).contiguous()


def write_gallery(clean: Images, triggered: Images, file: Path) -> None:
    """The gallery as a PNG."""
    _write(gallery(clean, triggered), file)


def write_row(images: Images, file: Path, captions: Sequence[str] = ()) -> None:
    """(N, 3, H, W) images side by side as a PNG.

    captions  what stands below each, in lines; none at all where there are not as many as images"""
    scale = max(1, -(-LEAST // images.shape[-1]))
    row = torch.cat([_framed(image, scale) for image in images], 2).permute(1, 2, 0).contiguous()
    _write(row, file, captions if len(captions) == len(images) else ())


def _write(pixels: Tensor, file: Path, captions: Sequence[str] = ()) -> None:
    from PIL import Image, ImageDraw

    drawn = Image.fromarray(pixels.numpy())
    if captions:
        lines = max(caption.count("\n") + 1 for caption in captions)
        page = Image.new("RGB", (drawn.width, drawn.height + lines * LINE + 2), "white")
        page.paste(drawn)
        for number, caption in enumerate(captions):
            column = Image.new(
                "RGB", (drawn.width // len(captions), lines * LINE + 2), "white"
            )  # what is longer is cut
            ImageDraw.Draw(column).text((2, 0), caption.encode("latin-1", "replace").decode("latin-1"), fill="black")
            page.paste(column, (number * column.width, drawn.height))
        drawn = page
    with storage_errors(file.parent):
        drawn.save(file)


def _framed(image: Tensor, scale: int) -> Tensor:
    """(3, H, W) -> uint8, enlarged pixel by pixel, with a white border of two pixels."""
    large = to_bytes(image).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return torch.nn.functional.pad(large, (2, 2, 2, 2), value=255)
