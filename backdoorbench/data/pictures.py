"""What an image file means: whatever Pillow opens, as the 8-bit RGB picture that it shows, or the reason why it shows none.

Pillow's own convert("RGB") cuts 16-bit grey off at 255, forgets alpha and leaves photographs on their side. What is plain
(8-bit grey or RGB, nothing beside the pixels) goes straight through; for anything else `kinds` says what was done.
"""

import io
import os
import re
import sys
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

Background: TypeAlias = Literal["white", "black", "refuse"]
Source: TypeAlias = str | bytes  # of a picture: a file's path, or its content
Values: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"  # (H, W, C) integers: grey or RGB, with or without alpha

IMAGES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".gif", ".webp", ".avif", ".tif", ".tiff",
)  # fmt: skip
ORIENTATION = 274  # the tag, in EXIF and TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TELLING = {"transparency", "exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # in an image's info: not plain
NAMES = {
    "P": "palette",
    "PA": "palette",
    "1": "1-bit",
    "L": "",
    "LA": "",
    "La": "",
    "RGB": "",
    "RGBA": "",
    "RGBa": "",
    "RGBX": "",
}
SHADES = {"L;2": 85, "L;4": 17}  # what a PNG's grey of few bits is multiplied by, so that white is 255
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how their files start
TOP8, TOP12, TOP16 = 255, 4095, 65535


class Picture(NamedTuple):
    """An RGB image, and what was done to its file's pixels to have it; nothing to plain ones."""

    image: Image.Image
    kinds: tuple[str, ...] = ()


class UnfitError(Exception):
    """A sound file whose pixels have no known meaning. what: `N images ...`; remedy: a sentence; detail: of this one file."""

    def __init__(self, what: str, remedy: str, detail: str = "") -> None:
        super().__init__(what)
        self.what, self.remedy, self.detail = what, remedy, detail


def open_image(source: Source, background: Background) -> Picture:
    """The picture in a file. Raises UnfitError, or whatever Pillow raises over a broken file.

    source      the file's path, or its content
    background  what lies behind transparent pixels
    """
    data = source if isinstance(source, bytes) else content(source)
    try:
        with Image.open(io.BytesIO(data)) as image:
            packing = packing_of(image)
            several = getattr(image, "is_animated", False)
            if image.mode in ("RGB", "L") and ";16" not in packing and not several and image.format != "TIFF":
                image.load()
                if TELLING.isdisjoint(image.info):
                    return Picture(image if image.mode == "RGB" else image.convert("RGB"))
            return convert(image, data, packing, several, background)
    except UnidentifiedImageError:
        if data[:4] not in TIFFS:
            raise UnidentifiedImageError("cannot identify image file") from None  # Pillow names an object in memory
        raise UnfitError(
            "are TIFF files of a kind that Pillow does not read, such as floats of 16 or 64 bits or in RGB, or damaged",
            "Save them as 8-bit or 16-bit PNG images, copy them again from the original, or remove them.",
        ) from None
    except Image.DecompressionBombError as error:
        count = re.search(r"\((\d+) pixels\)", str(error))
        raise UnfitError(
            f"have more than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels that Pillow opens, which guards memory so",
            "Scale them down beforehand (with ImageMagick: mogrify -resize 2048x2048 FILE), to a side still above dataset.size, "
            "to which they are resized anyway.",
            f"{int(count[1]):,} pixels" if count else "",
        ) from None


def content(path: str) -> bytes:
    """What a file holds: at once, which takes half the time of Pillow's many reads of a small one."""
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        data = os.read(file, size)
        while len(data) < size and (more := os.read(file, size - len(data))):
            data += more
        return data
    finally:
        os.close(file)


def convert(image: Image.Image, data: bytes, packing: str, several: bool, background: Background) -> Picture:
    """The picture in an opened file that is not plain. packing: how its pixels lie there; several: whether it has frames."""
    kinds = ["first of several frames"] if several else []
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    inverted = tags.get(262) == 0 and image.mode not in ("1", "L", "P")  # 0 is white, which Pillow heeds in these only
    turned = tags.get(ORIENTATION, 1) in TURNS  # Pillow turns a TIFF as it loads it
    image.load()
    values, top = None, TOP16
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        top = TOP12 if packing == "I;12" else TOP16  # PNG and PPM: 16 bits, whatever the maximum that a PPM names
        kinds.append("12-bit grey" if top == TOP12 else "16-bit grey")
        values = grey(image)
    elif image.mode == "I":
        kinds.append("32-bit grey")
        values = integers(grey(image), packing)
    elif image.mode == "F":
        kinds.append("float grey")
        values = floats(image)
    elif low_of(packing):
        kinds.append("16-bit colour")
        values = wide(data, packing)
    else:
        kinds += ["16-bit colour"] if ";16" in packing else []
        kinds += [name] if (name := NAMES.get(image.mode, image.mode)) else []
    if values is None:
        result, is_transparent = narrow(image, packing, background)
    else:
        result, is_transparent = reduce(
            top - values if inverted else values, top, image.info.get("transparency"), background
        )
    kinds += [f"transparent, on {background}"] if is_transparent else []
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # a dozen kinds, over bytes that are no EXIF
        return Picture(result, (*kinds, "EXIF that cannot be read"))
    if orientation in TURNS:
        result, turned = result.transpose(TURNS[orientation]), True
    return Picture(result, (*kinds, "turned as EXIF says") if turned else tuple(kinds))


def packing_of(image: Image.Image) -> str:
    """How the pixels lie in the file, as Pillow's decoders call it (`RGB;16B`); empty where it does not say."""
    tiles: Any = getattr(image, "tile", ())
    args = tiles[0][3] if tiles else ""
    if image.format == "PPM" and isinstance(args, tuple) and len(args) > 1 and args[1] > TOP8:
        return f"{args[0]};16"  # which Pillow rounds as it reads
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


# -- by depth -----------------------------------------------------------------------------------


def grey(image: Image.Image) -> Values:
    return np.asarray(image).astype(np.int32)[..., None]


def integers(values: Values, packing: str) -> Values:
    """Integers that 32 bits would hold, or signed ones: read as 16-bit grey where they can be nothing else."""
    low, high = int(values.min()), int(values.max())
    if packing.endswith("S") and "16" in packing:
        raise UnfitError(
            "are of signed 16-bit integers, whose white is not known", "Save them as 8-bit or unsigned 16-bit images."
        )
    if low < 0 or high > TOP16 or 0 < high <= TOP8:
        raise UnfitError(
            f"are of 32-bit integers (such as {low:,} to {high:,}), whose white is not known; expected some above {TOP8} "
            f"and none above {TOP16:,}, which are read as 16-bit grey",
            "Save them as 8-bit or unsigned 16-bit images.",
        )
    return values


def floats(image: Image.Image) -> Values:
    """Floats in [0, 1], 0 to 65535. Of a whole data set all lie there, or it is refused: 0 to 255 is not taken for it."""
    values = np.asarray(image, np.float64)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        found = f"{values.min():.4g} to {values.max():.4g}"
        raise UnfitError(
            f"are of floats (such as {found}), whose white is not known; expected none beyond 0 to 1",
            "Divide them by the value of white, or save them as 8-bit or 16-bit images.",
        )
    return np.rint(values * TOP16).astype(np.int32)[..., None]


def reduce(values: Values, top: int, clear: Any, background: Background) -> tuple[Image.Image, bool]:
    """Values up to `top` as an RGB image, each rounded, and whether any was transparent. clear: the colour that is."""
    if clear is not None and values.shape[2] in (1, 3):
        hidden = (values == np.asarray(clear)).all(-1, keepdims=True)
        values = np.concatenate([values, np.where(hidden, 0, top)], -1)
    colours = values
    if has_alpha := values.shape[2] in (2, 4):
        colours, alpha = values[..., :-1], values[..., -1:].astype(np.int64)
        has_alpha = bool((alpha < top).any())
        if has_alpha:
            colours = (colours * alpha + (top if background == "white" else 0) * (top - alpha) + top // 2) // top
            check_alpha(is_flat(values), is_flat(colours), background)
    pixels = ((colours * TOP8 + top // 2) // top).astype(np.uint8)
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels.repeat(3, 2)), has_alpha


def narrow(image: Image.Image, packing: str, background: Background) -> tuple[Image.Image, bool]:
    """8 bits as RGB, as Pillow converts them, and whether any was transparent."""
    if packing in SHADES and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= SHADES[packing]  # Pillow compares it with what has been multiplied
    in_palette = image.palette is not None and image.palette.mode == "RGBA"
    if not (image.mode.endswith(("A", "a")) or "transparency" in image.info or in_palette):
        return image if image.mode == "RGB" else image.convert("RGB"), False
    clear = image.convert("RGBA")
    alpha = clear.getchannel("A")
    if alpha.getextrema() == (TOP8, TOP8):
        return clear.convert("RGB"), False
    laid = Image.new("RGB", clear.size, background if background != "refuse" else "white")
    laid.paste(clear, mask=alpha)
    check_alpha(is_one(clear), is_one(laid), background)
    return laid, True


def low_of(packing: str) -> str:
    """The packing under which a decoder that keeps the higher byte of 16 bits keeps the lower one; empty where none does."""
    kind, _, order = packing.partition(";16")
    if kind not in ("RGB", "RGBA", "RGBX") or order not in ("B", "L", "N"):
        return "LA" if packing == "LA;16B" else ""
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    return f"{kind};16{'L' if big else 'B'}"


def wide(data: bytes, packing: str) -> Values:
    """All 16 bits of RGB, RGBA or LA, of which Pillow keeps the higher eight: unpacked twice."""
    if packing == "LA;16B":  # both bytes of both channels, as the four of a pixel
        four = unpack(data, "RGBA")
        return four[..., ::2] * 256 + four[..., 1::2]
    return unpack(data, packing) * 256 + unpack(data, low_of(packing))


def unpack(data: bytes, packing: str) -> Values:
    """The file's pixels, decoded as if they lay there so."""
    with Image.open(io.BytesIO(data)) as image:
        opened: Any = image
        opened.tile = [
            tile._replace(args=packing if isinstance(tile.args, str) else (packing, *tile.args[1:]))
            for tile in opened.tile
        ]
        image.load()
        return np.asarray(image).astype(np.int32)


# -- alpha ------------------------------------------------------------------------------------------------------------


def check_alpha(was_flat: bool, is_flat: bool, background: Background) -> None:
    """Raises UnfitError where transparent pixels are not allowed, or hid all that differed within the image."""
    if background == "refuse":
        raise UnfitError(
            "have transparent pixels, and dataset.background is refuse",
            "Set dataset.background=white or dataset.background=black, whichever shall lie behind them.",
        )
    if is_flat and not was_flat:
        other = "black" if background == "white" else "white"
        raise UnfitError(
            f"show nothing on {background}: their transparent pixels hide all that differs",
            f"Set dataset.background={other}, or save them without alpha.",
        )


def is_flat(values: Values) -> bool:
    return bool((values == values[:1, :1]).all())


def is_one(image: Image.Image) -> bool:
    """Whether all pixels are of one colour."""
    bands: Any = image.getextrema()
    return all(low == high for low, high in bands)
