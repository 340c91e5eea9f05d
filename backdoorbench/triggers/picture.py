"""A user's own image file as a trigger's pattern."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from backdoorbench.errors import ConfigError


def read_picture(path: str, size: tuple[int, int] | None, setting: str) -> Tensor:
    """The image as (4, H, W) float32 in [0, 1]: red, green, blue, opacity; resized (antialiased) to (H, W) = `size`.

    Raises ConfigError, naming `setting`, where the file is missing or no image."""
    from PIL import Image, UnidentifiedImageError

    file = Path(path).expanduser()
    try:
        with Image.open(file) as image:
            picture = image.convert("RGBA")
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{setting} is '{path}', which is no file; expected an image (PNG, JPEG, ...).") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:  # Pillow's, over broken files
        raise ConfigError(f"{setting} is '{path}', which cannot be read as an image ({error}).") from None
    except Image.DecompressionBombError as error:
        raise ConfigError(
            f"{setting} is '{path}', which Pillow does not open, to guard memory ({error}). Scale it down beforehand."
        ) from None
    if size is not None and picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
