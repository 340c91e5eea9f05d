"""A user's own image file, or array, as a trigger's pattern."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.errors import ConfigError, first_line


def read_picture(path: str, size: tuple[int, int] | None, setting: str) -> Tensor:
    """The image as (4, H, W) float32 in [0, 1]: red, green, blue, opacity; resized (antialiased) to (H, W) = `size`.

    Raises ConfigError, naming `setting`, where the file is missing or no image."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    from backdoorbench.data.pictures import UnfitError, open_image

    file = Path(path).expanduser()
    try:
        with Image.open(file) as image:
            turned = ImageOps.exif_transpose(image)  # as a photograph is looked at
            is_deep = image.mode.startswith("I") or image.mode == "F"  # which Pillow cuts off at 255
            picture = (open_image(str(file), "white").image if is_deep else turned).convert("RGBA")
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{setting} is '{path}', which is no file; expected an image (PNG, JPEG, ...).") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:  # Pillow's, over broken files
        raise ConfigError(f"{setting} is '{path}', which cannot be read as an image ({error}).") from None
    except UnfitError as error:
        raise ConfigError(f"{setting} is '{path}', whose pixels {error.what}. Save it with 8 bits a colour.") from None
    except Image.DecompressionBombError as error:
        raise ConfigError(
            f"{setting} is '{path}', which Pillow does not open, to guard memory ({error}). Scale it down beforehand."
        ) from None
    if size is not None and picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def read_opaque(path: str, size: tuple[int, int], setting: str) -> Tensor:
    """The image as (3, H, W) float32 in [0, 1], resized (antialiased) to (H, W) = `size`, for what lies over a whole image.

    Raises ConfigError, naming `setting`, where the file is missing, is no image, or is transparent anywhere."""
    picture = read_picture(path, size, setting)
    if not bool((picture[3] == 1).all()):
        raise ConfigError(
            f"{setting} is '{path}', which is transparent in {float((picture[3] < 1).float().mean()):.0%} of its pixels; "
            f"expected an opaque picture, since nothing says what lies behind it. Lay it on a colour, and save it again."
        )
    return picture[:3]


def read_values(path: str, side: int | None, setting: str) -> Tensor:
    """A picture, or an array in a .npy file, as (4, H, W) float32: red, green, blue, opacity; scaled to (side, side), or as large
    as it is. A picture's values lie in [0, 1], an array's are bytes, taken to [0, 1], or floats within [-1, 1].

    Raises ConfigError, naming `setting`, where the file holds neither."""
    if Path(path).suffix != ".npy":
        return read_picture(path, (side, side) if side is not None else None, setting)
    values = read_array(path, setting)
    if side is not None and values.shape[1:] != (side, side):
        values = F.interpolate(values[None], (side, side), mode="bilinear", antialias=True)[0]
    return torch.cat([values, torch.ones(1, *values.shape[1:])])


def read_mask(path: str, shape: tuple[int, int], setting: str) -> Tensor:
    """(1, H, W) in [0, 1]: the brightness of a picture, or the values of an array, which must be of this shape.

    Raises ConfigError, naming `setting`, where the file holds neither, or one of another shape."""
    values = read_values(path, None, setting)
    if values.shape[1:] != shape:
        raise ConfigError(
            f"{setting} is '{path}', of {values.shape[1]}x{values.shape[2]} pixels, and the trigger has {shape[0]}x{shape[1]}; "
            f"expected as many. Scale one of them."
        )
    return (values[:3].mean(0, keepdim=True) * values[3:]).clamp(0, 1)


def read_array(path: str, setting: str) -> Tensor:
    """(3, H, W) float32 from a .npy file: bytes taken to [0, 1], or floats within [-1, 1] as they are; grey ones thrice."""
    try:
        found = np.load(Path(path).expanduser(), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{setting} is '{path}', which cannot be read as an array ({first_line(error)}).") from None
    values = torch.from_numpy(np.ascontiguousarray(found)) if found.dtype.kind in "uf" else None
    if values is not None and values.dim() == 3 and values.shape[0] != 3 and values.shape[2] in (1, 3):
        values = values.permute(2, 0, 1)
    if values is not None and values.dim() == 2:
        values = values[None]
    if values is None or values.dim() != 3 or values.shape[0] not in (1, 3) or 0 in values.shape:
        raise ConfigError(
            f"{setting} is '{path}', an array {found.shape} of {found.dtype}; expected (H, W), (H, W, 3) or (3, H, W), of bytes "
            f"or floats. Save it again with numpy.save."
        )
    values = values.float() / 255 if values.dtype == torch.uint8 else values.float()
    if not bool((values.abs() <= 1).all()):
        raise ConfigError(
            f"{setting} is '{path}', whose floats reach {float(values.abs().max()):g}; expected them within [-1, 1], 1 being the "
            f"whole range of a pixel. Divide by 255, or save it as bytes."
        )
    return values.expand(3, -1, -1).clone()
