"""What image files mean: each kind of file with the value that it shows, or the paragraph that refuses it; what is counted,
what is said; class folders, their order, and what lies beside them.

Files that Pillow cannot write are put together here. Run alone: pytest tests/test_pictures.py
"""

import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from backdoorbench import api
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, conf_dir
from backdoorbench.data import store
from backdoorbench.data.base import Dataset, Reading
from backdoorbench.data.pictures import UnfitError, open_image
from backdoorbench.errors import DataError
from backdoorbench.pipeline import environment, plan
from backdoorbench.reporting import rows

SIDE = 4
Write = Callable[[Path], None]


# -- files ------------------------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(colour: int, depth: int, pixel: Sequence[int], key: Sequence[int] = (), late: bytes = b"") -> bytes:
    """A PNG of one colour. colour: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA; key: the colour that is transparent; late: chunks
    after the pixels."""
    if depth == 16:
        line = np.array([pixel] * SIDE, ">u2").tobytes()
    elif depth == 8:
        line = bytes(pixel) * SIDE
    else:
        line = int("".join(f"{pixel[0]:0{depth}b}" * SIDE).ljust(8, "0"), 2).to_bytes(max(1, SIDE * depth // 8), "big")
    head = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)
    clear = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)) if key else b""
    body = chunk(b"IDAT", zlib.compress((b"\0" + line) * SIDE))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + clear + body + late + chunk(b"IEND", b"")


def tiff(
    values: np.ndarray, white_is_zero: bool = False, kind: int | None = None, bits: int | None = None, **tags: int
) -> bytes:
    """An uncompressed TIFF of one strip in the byte order of `values`, (H, W) or (H, W, C).

    kind  1 unsigned, 2 signed, 3 float; bits: of a sample
    """
    big = values.dtype.byteorder == ">"
    mark, data, samples = ">" if big else "<", values.tobytes(), values.shape[2] if values.ndim > 2 else 1
    kind = kind or {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    depth = bits or 8 * values.itemsize
    entries = {256: SIDE, 257: SIDE, 258: depth, 259: 1, 262: 2 if samples > 2 else int(not white_is_zero)}
    entries |= {273: 0, 277: samples, 278: SIDE, 279: len(data), 339: kind} | {int(k[1:]): v for k, v in tags.items()}
    size = 8 + 2 + 12 * len(entries) + 4
    extra = b""
    lines = b""
    for tag, value in sorted(entries.items()):
        value = size + 64 if tag == 273 else value
        if tag in (258, 339) and samples > 2:
            lines += struct.pack(f"{mark}HHII", tag, 3, samples, size + len(extra))
            extra += struct.pack(f"{mark}{samples}H", *[value] * samples)
        elif tag in (273, 279):
            lines += struct.pack(f"{mark}HHII", tag, 4, 1, value)
        else:
            lines += struct.pack(f"{mark}HHIHH", tag, 3, 1, value, 0)
    start = (b"MM" if big else b"II") + struct.pack(f"{mark}HI", 42, 8) + struct.pack(f"{mark}H", len(entries))
    return start + lines + b"\0" * 4 + extra.ljust(64, b"\0") + data


def deflated(values: np.ndarray) -> bytes:
    """Such a TIFF whose pixels are compressed, which libtiff reads."""
    data, mark = values.tobytes(), ">" if values.dtype.byteorder == ">" else "<"
    content = tiff(values, _259=8)[: -len(data)] + zlib.compress(data)
    at = content.index(struct.pack(f"{mark}HH", 279, 4))
    return content[: at + 8] + struct.pack(f"{mark}I", len(zlib.compress(data))) + content[at + 12 :]


def interlaced(colour: int, pixel: Sequence[int]) -> bytes:
    """A 16-bit PNG of one colour in Adam7's order."""
    lines = b""
    for left, top, across, down in ((0, 0, 8, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        width, height = len(range(left, SIDE, across)), len(range(top, SIDE, down))
        lines += (b"\0" + np.array([pixel] * width, ">u2").tobytes()) * height
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, colour, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def flat(value: Any, kind: str) -> np.ndarray:
    return np.full((SIDE, SIDE, len(value)) if isinstance(value, tuple) else (SIDE, SIDE), value, kind)


def saved(image: Image.Image, ending: str, **how: Any) -> Write:
    return lambda path: image.save(path.with_suffix(ending), **how)


def raw(content: bytes, ending: str) -> Write:
    return lambda path: path.with_suffix(ending).write_bytes(content) and None


def shown(tmp_path: Path, write: Write, background: Any = "white") -> tuple[np.ndarray, tuple[str, ...]]:
    """The picture in the file that `write` writes, (H, W, 3), and what was done to it."""
    folder = tmp_path / "one"
    folder.mkdir()
    write(folder / "x")
    image, kinds = open_image(str(next(folder.iterdir())), background)
    assert image.mode == "RGB"
    return np.asarray(image), kinds


def solid(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), colour)


def palette(colours: Sequence[int], **info: Any) -> Image.Image:
    image = solid("P", 0)
    image.putpalette(list(colours))
    image.info.update(info)
    return image


PGM = b"P5 4 4 %d\n"
SHOWN: dict[str, tuple[Write, tuple[int, int, int], tuple[str, ...]]] = {
    # nothing to be done
    "8-bit RGB PNG": (saved(solid("RGB", (1, 2, 3)), ".png"), (1, 2, 3), ()),
    "8-bit grey PNG": (saved(solid("L", 9), ".png"), (9, 9, 9), ()),
    "8-bit RGB TIFF": (saved(solid("RGB", (1, 2, 3)), ".tif"), (1, 2, 3), ()),
    "8-bit grey TIFF, 0 is white": (raw(tiff(flat(250, "u1"), True), ".tif"), (5, 5, 5), ()),
    "BMP": (saved(solid("RGB", (1, 2, 3)), ".bmp"), (1, 2, 3), ()),
    "PPM of at most 100": (raw(b"P6 4 4 100\n" + bytes([50, 0, 100]) * 16, ".ppm"), (128, 0, 255), ()),
    "2-bit grey PNG": (raw(png(0, 2, [2]), ".png"), (170,) * 3, ()),
    "opaque RGBA PNG": (saved(solid("RGBA", (1, 2, 3, 255)), ".png"), (1, 2, 3), ()),
    "opaque LA PNG": (saved(solid("LA", (7, 255)), ".png"), (7, 7, 7), ()),
    "lossless WebP": (saved(solid("RGB", (1, 2, 3)), ".webp", lossless=True), (1, 2, 3), ()),
    "AVIF, at its best": (saved(solid("RGB", (8, 8, 8)), ".avif", quality=100), (8, 8, 8), ()),
    "an orientation that is none": (
        saved(solid("RGB", (1, 2, 3)), ".png", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0"),
        (1, 2, 3),
        (),
    ),
    # depth
    "16-bit grey PNG": (raw(png(0, 16, [4000]), ".png"), (16,) * 3, ("16-bit grey",)),
    "16-bit grey PNG, white": (raw(png(0, 16, [65535]), ".png"), (255,) * 3, ("16-bit grey",)),
    "16-bit grey PNG, dark": (raw(png(0, 16, [200]), ".png"), (1,) * 3, ("16-bit grey",)),
    "16-bit grey TIFF": (raw(tiff(flat(4000, "<u2")), ".tif"), (16,) * 3, ("16-bit grey",)),
    "16-bit grey TIFF, big-endian": (raw(tiff(flat(4000, ">u2")), ".tiff"), (16,) * 3, ("16-bit grey",)),
    "16-bit grey TIFF, 0 is white": (raw(tiff(flat(61535, "<u2"), True), ".tif"), (16,) * 3, ("16-bit grey",)),
    "16-bit grey TIFF, LZW": (
        saved(Image.fromarray(flat(4000, "u2")), ".tif", compression="tiff_lzw"), (16,) * 3, ("16-bit grey",),
    ),
    "12-bit grey TIFF": (
        raw(tiff(np.frombuffer(bytes([0x80, 0x08, 0x00] * 8), "u1"), bits=12), ".tif"), (128,) * 3, ("12-bit grey",),
    ),
    "16-bit PGM": (raw(PGM % 65535 + flat(4000, ">u2").tobytes(), ".pgm"), (16,) * 3, ("16-bit grey",)),
    "PGM of at most 4095": (raw(PGM % 4095 + flat(4000, ">u2").tobytes(), ".pgm"), (249,) * 3, ("16-bit grey",)),
    "16-bit RGB PNG": (raw(png(2, 16, [4000, 65535, 200]), ".png"), (16, 255, 1), ("16-bit colour",)),
    "16-bit RGB TIFF": (raw(tiff(flat((4000, 65535, 200), "<u2")), ".tif"), (16, 255, 1), ("16-bit colour",)),
    "16-bit RGB TIFF, big-endian": (raw(tiff(flat((4000, 65535, 200), ">u2")), ".tif"), (16, 255, 1), ("16-bit colour",)),
    "16-bit PPM": (raw(b"P6 4 4 65535\n" + flat((4000, 65535, 200), ">u2").tobytes(), ".ppm"), (16, 255, 1), ("16-bit colour",)),
    "16-bit RGBA PNG, opaque": (raw(png(6, 16, [4000, 0, 200, 65535]), ".png"), (16, 0, 1), ("16-bit colour",)),
    "16-bit LA PNG, opaque": (raw(png(4, 16, [4000, 65535]), ".png"), (16,) * 3, ("16-bit colour",)),
    "32-bit TIFF within 16 bits": (raw(tiff(flat(4000, "<i4")), ".tif"), (16,) * 3, ("32-bit grey",)),
    "32-bit TIFF, black": (raw(tiff(flat(0, "<i4")), ".tif"), (0,) * 3, ("32-bit grey",)),
    "float TIFF in [0, 1]": (raw(tiff(flat(0.25, "<f4")), ".tif"), (64,) * 3, ("float grey",)),
    "float TIFF in [0, 1], 0 is white": (raw(tiff(flat(0.75, "<f4"), True), ".tif"), (64,) * 3, ("float grey",)),
    # colour
    "1-bit PNG": (saved(solid("1", 1), ".png"), (255,) * 3, ("1-bit",)),
    "1-bit PBM, 1 is black": (raw(b"P4 4 4\n" + b"\xf0" * 4, ".pbm"), (0,) * 3, ("1-bit",)),
    "palette PNG": (saved(palette([1, 2, 3] * 2), ".png"), (1, 2, 3), ("palette",)),
    "palette BMP": (saved(palette([1, 2, 3] * 2), ".bmp"), (1, 2, 3), ("palette",)),
    "palette GIF": (saved(palette([1, 2, 3] * 2), ".gif"), (1, 2, 3), ("palette",)),
    "CMYK TIFF": (saved(solid("CMYK", (255, 0, 0, 0)), ".tif"), (0, 255, 255), ("CMYK",)),
    "CMYK JPEG, as Adobe inverts it": (saved(solid("CMYK", (0, 0, 0, 255)), ".jpg", quality=100), (0,) * 3, ("CMYK",)),
    "PGM of floats": (raw(b"Pf\n4 4\n-1.0\n" + flat(0.5, "<f4").tobytes(), ".pgm"), (128,) * 3, ("float grey",)),
    "plain PGM of 16 bits": (raw(b"P2 4 4 65535\n" + b"4000 " * 16, ".pgm"), (16,) * 3, ("16-bit grey",)),
    "plain PPM of 16 bits": (raw(b"P3 4 4 65535\n" + b"4000 " * 48, ".ppm"), (16,) * 3, ("16-bit colour",)),
    "16-bit RGB TIFF, deflated": (raw(deflated(flat((4000, 65535, 200), "<u2")), ".tif"), (16, 255, 1), ("16-bit colour",)),
    "16-bit RGB TIFF, deflated, big-endian": (
        raw(deflated(flat((4000, 65535, 200), ">u2")), ".tif"), (16, 255, 1), ("16-bit colour",),
    ),
    "16-bit RGB TIFF with a fourth channel that says nothing": (
        raw(tiff(flat((4000, 65535, 200, 5), "<u2"), _338=0), ".tif"), (16, 255, 1), ("16-bit colour",),
    ),
    "16-bit RGBA TIFF": (
        raw(tiff(flat((0, 0, 25700, 13107), "<u2"), _338=2), ".tif"), (204, 204, 224), ("16-bit colour", "transparent, on white"),
    ),
    "16-bit RGBA TIFF, premultiplied": (
        raw(tiff(flat((0, 0, 5140, 13107), "<u2"), _338=1), ".tif"), (204, 204, 224), ("16-bit colour", "transparent, on white"),
    ),
    "16-bit RGB PNG, interlaced": (raw(interlaced(2, [4000, 65535, 200]), ".png"), (16, 255, 1), ("16-bit colour",)),
    "16-bit LA PNG, interlaced": (
        raw(interlaced(4, [0, 13107]), ".png"), (204,) * 3, ("16-bit colour", "transparent, on white"),
    ),
    "1-bit TIFF, as faxes compress it": (saved(solid("1", 1), ".tif", compression="group4"), (255,) * 3, ("1-bit",)),
    "phone JPEG of two pictures": (
        lambda path: solid("RGB", (50, 50, 50)).save(
            path.with_suffix(".jpg"), "MPO", save_all=True, append_images=[solid("RGB", (9, 9, 9))]
        ),
        (50,) * 3, ("first of several frames",),
    ),
    "CMYK TIFF of 16 bits": (raw(tiff(flat((65535, 0, 0, 0), "<u2"), _262=5), ".tif"), (0, 255, 255), ("16-bit colour", "CMYK")),
    "LAB TIFF": (raw(tiff(flat((255, 0, 0), "u1"), _262=8), ".tif"), (254, 255, 254), ("LAB",)),
    # alpha, on white
    "RGBA PNG": (saved(solid("RGBA", (0, 0, 100, 51)), ".png"), (204, 204, 224), ("transparent, on white",)),
    "LA PNG": (saved(solid("LA", (0, 51)), ".png"), (204,) * 3, ("transparent, on white",)),
    "RGBA WebP": (saved(solid("RGBA", (0, 0, 100, 51)), ".webp", lossless=True), (204, 204, 224), ("transparent, on white",)),
    "RGBA TIFF": (saved(solid("RGBA", (0, 0, 100, 51)), ".tif"), (204, 204, 224), ("transparent, on white",)),
    "RGBA TIFF, premultiplied": (
        raw(tiff(flat((0, 0, 20, 51), "u1"), _338=1), ".tif"), (204, 204, 224), ("transparent, on white",),
    ),
    "RGBA PNG, all of it transparent": (saved(solid("RGBA", (0, 0, 0, 0)), ".png"), (255,) * 3, ("transparent, on white",)),
    "palette PNG with a transparent colour": (
        saved(palette([1, 2, 3] * 2), ".png", transparency=0), (255,) * 3, ("palette", "transparent, on white"),
    ),
    "palette PNG with alphas": (
        saved(palette([0, 0, 100] * 2), ".png", transparency=b"\x33\xff"), (204, 204, 224), ("palette", "transparent, on white"),
    ),
    "palette GIF with a transparent colour": (
        saved(palette([1, 2, 3] * 2), ".gif", transparency=0), (255,) * 3, ("palette", "transparent, on white"),
    ),
    "grey PNG with a transparent grey": (raw(png(0, 8, [40], [40]), ".png"), (255,) * 3, ("transparent, on white",)),
    "grey PNG with another transparent grey": (raw(png(0, 8, [40], [41]), ".png"), (40,) * 3, ()),
    "2-bit grey PNG with a transparent grey": (raw(png(0, 2, [1], [1]), ".png"), (255,) * 3, ("transparent, on white",)),
    "4-bit grey PNG with a transparent grey": (raw(png(0, 4, [7], [7]), ".png"), (255,) * 3, ("transparent, on white",)),
    "RGB PNG with a transparent colour": (raw(png(2, 8, [4, 5, 6], [4, 5, 6]), ".png"), (255,) * 3, ("transparent, on white",)),
    "16-bit grey PNG with a transparent grey": (
        raw(png(0, 16, [4000], [4000]), ".png"), (255,) * 3, ("16-bit grey", "transparent, on white"),
    ),
    "16-bit grey PNG with a near grey": (raw(png(0, 16, [4000], [4001]), ".png"), (16,) * 3, ("16-bit grey",)),
    "16-bit RGB PNG with a transparent colour": (
        raw(png(2, 16, [4000, 1, 2], [4000, 1, 2]), ".png"), (255,) * 3, ("16-bit colour", "transparent, on white"),
    ),
    "16-bit RGBA PNG": (
        raw(png(6, 16, [0, 0, 25700, 13107]), ".png"), (204, 204, 224), ("16-bit colour", "transparent, on white"),
    ),
    "16-bit LA PNG": (raw(png(4, 16, [0, 13107]), ".png"), (204,) * 3, ("16-bit colour", "transparent, on white")),
    # the rest
    "GIF of two frames": (
        saved(palette([1, 2, 3] * 2), ".gif", save_all=True, append_images=[palette([9, 9, 9] * 2)]),
        (1, 2, 3), ("first of several frames", "palette"),
    ),
    "TIFF of two pages": (
        saved(solid("RGB", (1, 2, 3)), ".tif", save_all=True, append_images=[solid("RGB", (9, 9, 9))]),
        (1, 2, 3), ("first of several frames",),
    ),
    "WebP of two frames": (
        saved(solid("RGB", (1, 2, 3)), ".webp", lossless=True, save_all=True, append_images=[solid("RGB", (9, 9, 9))]),
        (1, 2, 3), ("first of several frames",),
    ),
    "PNG of two frames": (
        saved(solid("RGB", (1, 2, 3)), ".png", save_all=True, append_images=[solid("RGB", (9, 9, 9))]),
        (1, 2, 3), ("first of several frames",),
    ),
    "EXIF that is none": (saved(solid("L", 3), ".png", exif=b"no exif"), (3, 3, 3), ("EXIF that cannot be read",)),
    "a JPEG called PNG": (
        lambda path: solid("L", 40).save(path.with_suffix(".png"), "JPEG"), (40,) * 3, (),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_a_file_shows(name: str, tmp_path: Path) -> None:
    write, colour, kinds = SHOWN[name]
    pixels, done = shown(tmp_path, write)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert (pixels.min((0, 1)).tolist(), pixels.max((0, 1)).tolist(), done) == (list(colour), list(colour), kinds)


def exif(orientation: Any) -> Image.Exif:
    told = Image.Exif()
    told[274] = orientation
    return told


def scene() -> Image.Image:
    """6 x 4 with four different corners."""
    image = Image.new("RGB", (6, 4))
    for place, colour in (((0, 0), (255, 0, 0)), ((5, 0), (0, 255, 0)), ((0, 3), (0, 0, 255)), ((5, 3), (255, 255, 0))):
        image.putpixel(place, colour)
    return image


CORNERS = {  # orientation -> what then lies top left, top right, bottom left, bottom right: r(ed), g, b, y
    1: "rgby", 2: "gryb", 3: "ybgr", 4: "byrg", 5: "rbgy", 6: "bryg", 7: "ygbr", 8: "gyrb",
}  # fmt: skip


@pytest.mark.parametrize("ending", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", CORNERS)
def test_orientation_is_applied(orientation: int, ending: str, tmp_path: Path) -> None:
    how = {"lossless": True} if ending == ".webp" else {}
    pixels, kinds = shown(tmp_path, saved(scene(), ending, exif=exif(orientation), **how))
    names = {(255, 0, 0): "r", (0, 255, 0): "g", (0, 0, 255): "b", (255, 255, 0): "y"}
    corners = "".join(names[tuple(pixels[place].tolist())] for place in ((0, 0), (0, -1), (-1, 0), (-1, -1)))
    assert corners == CORNERS[orientation]
    assert pixels.shape == ((6, 4, 3) if orientation > 4 else (4, 6, 3))
    assert kinds == (("turned as EXIF says",) if orientation > 1 else ())


def test_orientation_of_a_jpeg_after_the_pixels_in_xmp_and_of_deep_grey(tmp_path: Path) -> None:
    halves = np.repeat(np.array([[0, 0], [255, 255]], np.uint8), 8, 1).repeat(8, 0)  # (16, 16), dark above
    for place, write in enumerate(
        (
            saved(Image.fromarray(halves), ".jpg", exif=exif(6)),
            raw(png(2, 8, [1, 2, 3], late=chunk(b"eXIf", exif(6).tobytes()[6:])), ".png"),
            saved(Image.fromarray(halves), ".webp", lossless=True, xmp=b'<x:xmpmeta tiff:Orientation="6"/>'),
            saved(Image.fromarray(halves.astype(np.uint16) * 257), ".png", exif=exif(6)),
            saved(Image.fromarray(halves.astype(np.uint16) * 257), ".tif", tiffinfo={274: 6}),
        )
    ):
        folder = tmp_path / str(place)
        folder.mkdir()
        pixels, kinds = shown(folder, write)
        assert "turned as EXIF says" in kinds
        if place != 1:  # 6: what lies below goes left, so that white does
            assert pixels[0, 0].min() > 250 and pixels[-1, -1].max() < 5


def test_deep_pixels_are_rounded_not_cut(tmp_path: Path) -> None:
    """Every 16-bit value within half a level of itself, in grey and in colour, interlaced or not, whatever the byte order."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values.astype(np.float64) * 255 / 65535)
    Image.fromarray(values).save(tmp_path / "grey.png")
    assert np.array_equal(np.asarray(open_image(str(tmp_path / "grey.png"), "white").image)[..., 0], expected)
    for order in "<>":
        data = np.stack([values, values[::-1], values[:, ::-1]], -1).astype(f"{order}u2")
        content = tiff(data)
        for tag in (256, 257, 278):  # of another side than the other files here
            at = content.index(struct.pack(f"{order}HH", tag, 3))
            content = content[: at + 8] + struct.pack(f"{order}HH", 256, 0) + content[at + 12 :]
        (tmp_path / "colour.tif").write_bytes(content)
        pixels = np.asarray(open_image(str(tmp_path / "colour.tif"), "white").image)
        assert np.array_equal(pixels[..., 0], expected) and np.array_equal(pixels[..., 2], expected[:, ::-1])


def test_alpha_is_laid_on_what_was_asked_for(tmp_path: Path) -> None:
    """Ink that lives in alpha alone: black with a gradient of alpha."""
    ink = np.zeros((SIDE, SIDE, 4), np.uint8)
    ink[..., 3] = np.arange(16).reshape(SIDE, SIDE) * 17
    Image.fromarray(ink).save(tmp_path / "black.png")
    ink[..., :3] = 255
    Image.fromarray(ink).save(tmp_path / "white.png")
    black, white = str(tmp_path / "black.png"), str(tmp_path / "white.png")
    assert np.array_equal(np.asarray(open_image(black, "white").image)[..., 0], 255 - ink[..., 3])
    assert np.array_equal(np.asarray(open_image(white, "black").image)[..., 0], ink[..., 3])
    assert open_image(white, "black").kinds == ("transparent, on black",)
    for path, behind, other in ((black, "black", "white"), (white, "white", "black")):
        with pytest.raises(UnfitError) as caught:
            open_image(path, behind)
        assert caught.value.what == f"show nothing on {behind}: their transparent pixels hide all that differs"
        assert caught.value.remedy == f"Set dataset.background={other}, or save them without alpha."
    with pytest.raises(UnfitError, match="have transparent pixels, and dataset.background is refuse"):
        open_image(black, "refuse")


LAST = "Save them as 8-bit or unsigned 16-bit images."
REFUSED: dict[str, tuple[bytes, str]] = {
    "float TIFF beyond 1": (tiff(flat(4.5, "<f4")), "are of floats (such as 4.5 to 4.5), whose white is not known"),
    "float TIFF below 0": (tiff(flat(-1, ">f4")), "are of floats (such as -1 to -1), whose white is not known"),
    "float TIFF of NaN": (tiff(flat(np.nan, "<f4")), "are of floats (such as nan to nan), whose white is not known"),
    "32-bit TIFF within 8 bits": (
        tiff(flat(200, "<i4")),
        "are of 32-bit integers (such as 200 to 200), whose white is not",
    ),
    "32-bit TIFF beyond 16 bits": (
        tiff(flat(70_000, "<i4")),
        "are of 32-bit integers (such as 70,000 to 70,000), whose",
    ),
    "32-bit TIFF below 0": (
        tiff(flat(-3, ">i4")),
        "are of 32-bit integers (such as -3 to -3), whose white is not known",
    ),
    "unsigned 32-bit TIFF": (tiff(flat(3_000_000_000, "<u4")), "are of 32-bit integers (such as -1,294,967,296 to"),
    "float TIFF of RGB": (
        tiff(flat((0.1, 0.2, 0.3), "<f4")),
        "are TIFF files of a kind that Pillow does not read, such as",
    ),
    "float TIFF of 16 bits": (
        tiff(flat(0.5, "<f2")),
        "are TIFF files of a kind that Pillow does not read, such as floats",
    ),
    "signed 16-bit TIFF": (tiff(flat(4000, "<i2")), "are of signed 16-bit integers, whose white is not known"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused(name: str, tmp_path: Path) -> None:
    content, what = REFUSED[name]
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(UnfitError) as caught:
        open_image(str(tmp_path / "x.tif"), "white")
    assert caught.value.what.startswith(what)
    assert caught.value.remedy.endswith(".")


# -- data sets --------------------------------------------------------------------------------------------------------


def folder(root: Path, **knobs: Any) -> Dataset:
    node = OmegaConf.load(conf_dir() / "dataset" / "folder.yaml")
    del node["defaults"]
    node = OmegaConf.merge(node, {"root": str(root), "size": SIDE, **knobs})
    return build(OmegaConf.to_container(node, resolve=True), "dataset")


def fill(place: Path, count: int, shade: int = 50, ending: str = ".png", blue: int = 0) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        solid("RGB", (shade, number, blue)).save(place / f"{number}{ending}")


def plant(root: Path, classes: Sequence[str] = ("a", "b")) -> Path:
    for shade, name in enumerate(classes):
        fill(root / "train" / name, 3, shade)
        fill(root / "test" / name, 2, shade, blue=1)
    return root


def complaint(data: Dataset, cache: Path) -> str:
    with pytest.raises(DataError) as caught:
        data.load(cache)
    return str(caught.value)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was said since it was last asked."""
    caplog.set_level(logging.INFO, "backdoorbench")

    def since() -> list[str]:
        messages = [record.message for record in caplog.records if record.name.startswith("backdoorbench.data")]
        caplog.clear()
        return messages

    return since


def test_plain_images_are_worth_no_word(tmp_path: Path, cache: Path, said: Callable[[], list[str]]) -> None:
    splits = folder(plant(tmp_path / "raw")).load(cache)
    assert splits.facts == {}
    assert said() == []


def test_conversions_are_counted_said_and_kept(tmp_path: Path, cache: Path, said: Callable[[], list[str]]) -> None:
    root = plant(tmp_path / "raw")
    (root / "train" / "a" / "deep.png").write_bytes(png(0, 16, [4000]))
    (root / "test" / "b" / "deep.png").write_bytes(png(0, 16, [8000]))
    solid("RGBA", (0, 0, 100, 51)).save(root / "train" / "b" / "alpha.png")
    converted = {"16-bit grey": 2, "transparent, on white": 1}
    for _ in range(2):  # decoded, then opened
        splits = folder(root).load(cache)
        assert splits.facts == {"converted": converted}
        assert said() == ["folder: images converted to 8-bit RGB: 2 16-bit grey, 1 transparent, on white"]
    assert splits.train.images[3].unique().tolist() == [16]
    assert folder(root, train_size=2).load(cache).facts == splits.facts
    meta = json.loads(next((cache / "data").glob("folder-*/meta.json")).read_text())
    assert meta["converted"] == converted


def test_refusals_are_counted_by_reason(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw")
    names = [root / "train" / "a" / f"float{number}.tif" for number in range(5)]
    for path in names:
        path.write_bytes(tiff(flat(4.5, "<f4")))
    broken = root / "test" / "b" / "broken.png"
    broken.write_bytes(b"")
    assert complaint(folder(root), cache) == (
        f"5 of 16 images of folder are of floats (such as 4.5 to 4.5), whose white is not known; expected none beyond 0 to 1: "
        f"{names[0]}; {names[1]}; {names[2]}; …. Divide them by the value of white, or save them as 8-bit or 16-bit images. "
        f"1 of 16 images of folder cannot be decoded: {broken} (cannot identify image file). Copy them again from the "
        f"original, or remove them."
    )


def test_too_large_a_picture(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "raw")
    large = root / "train" / "a" / "large.png"
    solid("RGB", 0).resize((30, 30)).save(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert complaint(folder(root), cache) == (
        f"1 of 11 images of folder have more than the 800 pixels that Pillow opens, which guards memory so: {large} (900 pixels). "
        f"Scale them down beforehand (with ImageMagick: mogrify -resize 2048x2048 FILE), to a side still above dataset.size, to which "
        f"they are resized anyway."
    )


def test_background_acts_on_images_and_digest_only(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw")
    plain = folder(root).load(cache)
    assert folder(root, background="black").load(cache).digest == plain.digest
    solid("RGBA", (0, 0, 100, 51)).save(root / "train" / "b" / "alpha.png")
    white, black = folder(root).load(cache), folder(root, background="black").load(cache)
    assert white.digest != black.digest
    assert black.train.images[-1, :, 0, 0].tolist() == [0, 0, 20]
    assert complaint(folder(root, background="refuse"), cache) == (
        f"1 of 11 images of folder have transparent pixels, and dataset.background is refuse: {root / 'train/b/alpha.png'}. "
        f"Set dataset.background=white or dataset.background=black, whichever shall lie behind them."
    )


def test_a_store_of_other_rules_is_not_read(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A white image that an earlier version made of 16-bit grey stays where it is."""
    root = plant(tmp_path / "raw")
    monkeypatch.setattr(store, "FORMAT", 1)
    folder(root).load(cache)
    monkeypatch.undo()
    folder(root).load(cache)
    assert len(list((cache / "data").glob("*/meta.json"))) == 2


def test_neither_setting_is_part_of_a_key_and_both_tell_rows_apart(tmp_path: Path) -> None:
    given = [compose(["dataset=folder", f"dataset.root={tmp_path}", *more]) for more in ([], ["dataset.order=text"])]
    given.append(compose(["dataset=folder", f"dataset.root={tmp_path}", "dataset.background=black"]))
    keys = [plan.run_settings(each, "digest") for each in given]
    assert keys[0] == keys[1] == keys[2]
    later = ("order", "background", "layout", "class_names", "test_share")
    old = {**given[0], "dataset": {k: v for k, v in given[0]["dataset"].items() if k not in later}}
    assert rows.identity(old) == rows.identity(given[0])
    assert len({rows.identity(each) for each in given}) == 3


# -- what lies there --------------------------------------------------------------------------------------------------


def test_images_that_stand_where_they_should_not_are_counted(
    tmp_path: Path, cache: Path, said: Callable[[], list[str]]
) -> None:
    root = plant(tmp_path / "raw")
    fill(root / "test" / "b", 1, 0)  # an image of the training split, of another class
    solid("RGB", (1, 1, 0)).save(root / "train" / "a" / "twice.png")
    for size in ({}, {"train_size": 4}):
        found = folder(root, **size).load(cache)
        assert found.facts == {"repeated": {"in_both_splits": 1, "under_two_labels": 1}}
        assert said() == [
            "folder: 1 of 4 test images are training images too, byte for byte: what a network knows of them by heart counts as "
            "accuracy",
            "folder: training images that lie in several classes, byte for byte: 1",
        ]


def test_what_is_left_out_is_counted_in_a_line(tmp_path: Path, cache: Path, said: Callable[[], list[str]]) -> None:
    root = plant(tmp_path / "raw")
    for name in ("x.tga", "y.tga", "z.TGA", "notes.txt", "LICENSE", ".hidden.png", "._0.png", ".DS_Store"):
        (root / "train" / "a" / name).write_bytes(b"")
    (root / "test" / "b" / "notes.txt").touch()
    fill(root / "val" / "a", 1)
    fill(root / "train", 2)
    fill(root, 1)
    (root / "README.md").touch()
    left_out = {"val/": 1, "images in no class folder": 3, ".tga": 3, ".txt": 2, "hidden": 2, "without an ending": 1}
    for _ in range(2):
        assert folder(root).load(cache).facts == {"left_out": left_out}
        assert said() == [
            f"folder: left out of {root}: 3 .tga, 3 images in no class folder, 2 .txt, 2 hidden, val/, 1 without an ending"
        ]


def test_gif_and_other_endings_are_read(tmp_path: Path, cache: Path, said: Callable[[], list[str]]) -> None:
    root = plant(tmp_path / "raw")
    for number in range(15):
        palette([9, 2, number] * 2).save(root / "train" / "a" / f"more{number}.gif")
    solid("L", 9).save(root / "train" / "b" / "x.BMP")
    solid("L", 9).save(root / "train" / "b" / "y.jfif", "JPEG")
    splits = folder(root).load(cache)
    assert splits.train.counts().tolist() == [18, 5]
    assert said() == ["folder: images converted to 8-bit RGB: 15 palette"]


def test_sub_folders_are_walked_and_said(tmp_path: Path, cache: Path, said: Callable[[], list[str]]) -> None:
    root = plant(tmp_path / "raw")
    fill(root / "train" / "a" / "more" / "deeper", 4, 7)
    fill(root / "train" / "a" / "also", 1, 8)
    fill(root / "train" / "a" / ".thumbnails", 1)
    fill(root / "train" / "a" / "__MACOSX", 1)
    splits = folder(root).load(cache)
    assert splits.train.images[:, 0, 0, 0].tolist() == [0, 0, 0, 8, 7, 7, 7, 7, 1, 1, 1]
    assert splits.train.labels.tolist() == [0] * 8 + [1] * 3
    assert splits.facts == {"sub_folders": 5}
    assert said() == ["folder: images in sub-folders of a class folder, which count for that class: 5"]


def test_loose_images_beside_images_are_read(tmp_path: Path, cache: Path) -> None:
    """As Tiny ImageNet has it, images/ below a class, hid what lay beside it."""
    root = plant(tmp_path / "raw")
    fill(root / "train" / "a" / "images", 4, 7)
    splits = folder(root).load(cache)
    assert splits.train.counts().tolist() == [7, 3]


def test_links(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw")
    fill(tmp_path / "elsewhere", 2, 9)
    os.symlink(tmp_path / "elsewhere", root / "train" / "a" / "more")
    os.symlink(root / "train" / "a", root / "train" / "a" / "again")
    os.symlink(tmp_path / "elsewhere" / "0.png", root / "train" / "b" / "link.png")
    os.symlink(root, root / "train" / "b" / "all")
    splits = folder(root).load(cache)
    assert splits.train.counts().tolist() == [5, 4]
    assert splits.facts["left_out"] == {"links to a folder above": 2}
    link = root / "train" / "b" / "lost.png"
    os.symlink(tmp_path / "nowhere.png", link)
    assert complaint(folder(root), cache) == (
        f"{link} is a link to {tmp_path / 'nowhere.png'}, which does not exist. Restore that file, or remove the link."
    )


def test_a_link_to_a_folder_whose_name_begins_its_own_is_followed(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw")
    fill(root / "train" / "cat", 2, 1)
    fill(root / "test" / "cat", 1, 1)
    fill(root / "train" / "cats" / "more", 2, 2)
    os.symlink(root / "train" / "cat", root / "train" / "cats" / "more" / "cat")
    fill(root / "test" / "cats", 1, 2)
    splits = folder(root).load(cache)
    assert splits.train.classes == ("a", "b", "cat", "cats") and splits.train.counts().tolist()[2:] == [2, 4]
    assert "left_out" not in splits.facts


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw")
    fill(tmp_path / "one", 2, 8)
    fill(tmp_path / "two", 1, 9)
    os.symlink(tmp_path / "two", tmp_path / "one" / "next")
    os.symlink(tmp_path / "one", tmp_path / "two" / "back")
    os.symlink(tmp_path / "one", root / "train" / "a" / "more")
    splits = folder(root).load(cache)
    assert splits.train.counts().tolist() == [6, 3]
    assert splits.facts["left_out"] == {"links to a folder above": 1}


def test_what_is_no_file_is_not_opened(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw")
    os.mkfifo(root / "train" / "a" / "pipe.png")  # would wait for ever
    fill(root / "train" / "b" / "folder.png", 2)
    splits = folder(root).load(cache)
    assert splits.train.counts().tolist() == [3, 5]
    assert splits.facts == {"left_out": {".png": 1}, "sub_folders": 2}


def test_a_class_of_other_files_says_what_it_holds(tmp_path: Path, cache: Path) -> None:
    root = plant(tmp_path / "raw")
    (root / "train" / "c").mkdir()
    for number in range(15):
        (root / "train" / "c" / f"{number}.tga").touch()
    assert complaint(folder(root), cache).endswith(
        "Add some, or leave that class out altogether. What lies there: 15 .tga."
    )


def test_holdouts_are_read_alike(tmp_path: Path, said: Callable[[], list[str]]) -> None:
    root = tmp_path / "clean"
    fill(root / "b", 2)
    (root / "a" / "deeper").mkdir(parents=True)
    (root / "a" / "deeper" / "deep.png").write_bytes(png(0, 16, [4000]))
    (root / "a" / "notes.txt").touch()
    images, facts = store.read_class_folders(root, ("a", "b"), SIDE)
    assert images.images[0].unique().tolist() == [16]
    assert facts == {"converted": {"16-bit grey": 1}, "left_out": {".txt": 1}, "sub_folders": 1}
    assert said() == [
        f"clean: left out of {root}: 1 .txt",
        "clean: images in sub-folders of a class folder, which count for that class: 1",
        "clean: images converted to 8-bit RGB: 1 16-bit grey",
    ]


def divided(root: Path, clean: Path, outputs: Path, *words: str) -> plan.Plan:
    """A plan whose holdout is a folder of its own, of one image a class."""
    given = [
        f"dataset.root={root}",
        "dataset=folder",
        "model=demo",
        "train=demo",
        "dataset.size=16",
        "runtime.device=cpu",
    ]
    given += ["holdout.kind=foreign", f"holdout.root={clean}", f"runtime.outputs={outputs}", "attack=none"]
    return plan.plan(compose([*given, *words]))


def clear_ink(place: Path) -> None:
    """A grey stroke on transparent pixels."""
    place.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    picture.paste((200, 200, 200, 255), (4, 0, 8, 16))
    picture.save(place)


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0)])
def test_a_holdout_of_its_own_is_laid_on_the_data_sets_background(
    background: str, value: int, tmp_path: Path, said: Callable[[], list[str]]
) -> None:
    root, clean = plant(tmp_path / "raw"), tmp_path / "clean"
    for name in "ab":
        clear_ink(clean / name / "0.png")
    (clean / "a" / "notes.txt").touch()
    made = divided(root, clean, tmp_path / "out", f"dataset.background={background}")
    assert made.parts.holdout is not None and made.parts.holdout.images.unique().tolist() == sorted([value, 200])
    assert said() == [
        f"clean: left out of {clean}: 1 .txt",
        f"clean: images converted to 8-bit RGB: 2 transparent, on {background}",
    ]
    found = {"converted": {f"transparent, on {background}": 2}, "left_out": {".txt": 1}}
    assert made.parts.facts == found and environment.environment(made)["data"]["holdout"] == found


def test_a_transparent_holdout_is_refused_where_the_data_set_refuses(tmp_path: Path) -> None:
    root, clean = plant(tmp_path / "raw"), tmp_path / "clean"
    for name in "ab":
        clear_ink(clean / name / "0.png")
    with pytest.raises(DataError, match="dataset.background"):
        divided(root, clean, tmp_path / "out", "dataset.background=refuse")


def test_a_holdout_of_its_own_comes_to_its_size_as_the_data_set_does(tmp_path: Path) -> None:
    """The middle of a wide picture, where the data set keeps the middle; else the whole."""
    place = tmp_path / "clean" / "a" / "wide.png"
    place.parent.mkdir(parents=True)
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 200
    Image.fromarray(wide).save(place)
    train = store.ImageSet(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ("a",))
    read = build({**compose([])["holdout"], "kind": "foreign", "root": str(tmp_path / "clean")}, "holdout").read
    assert read(train, Reading(store.centre, "white"))[0].images.unique().tolist() == [200]
    assert 0 in read(train, Reading(store.stretch, "white"))[0].images and 0 in read(train, None)[0].images


def test_how_a_holdout_of_its_own_is_read_is_part_of_its_key(tmp_path: Path) -> None:
    """The data set's digest covers neither, and its background is part of no key. Keys from before stand."""
    root, clean = plant(tmp_path / "raw"), tmp_path / "clean"
    for name in "ab":
        fill(clean / name, 1, 90)
    keys = {
        name: divided(root, clean, tmp_path / "out", f"dataset.background={name}").key for name in ("white", "black")
    }
    assert keys["white"] != keys["black"]
    given = compose(["dataset=folder", f"dataset.root={root}", "holdout.kind=foreign", f"holdout.root={clean}"])
    before = plan.run_settings(given, "digest")
    assert plan.run_settings(given, "digest", Reading(store.stretch, "white")) == before
    assert plan.run_settings(given, "digest", Reading(store.centre, "white"))["holdout"]["fit"] == "centre"
    reading = Reading(store.stretch, "white")
    assert plan.run_settings(given, "digest", reading, ("a", "b")) == before
    assert plan.run_settings(given, "digest", reading, ("9", "10")) == before  # an order by value
    assert plan.run_settings(given, "digest", reading, ("b", "a"))["holdout"]["classes"] == ["b", "a"]
    withheld = compose(["dataset=folder", f"dataset.root={root}"])
    assert plan.run_settings(withheld, "digest", reading, ("b", "a")) == plan.run_settings(withheld, "digest")
    assert plan.run_settings(withheld, "digest", Reading(store.centre, "black")) == plan.run_settings(
        withheld, "digest"
    )


# -- the order of classes ---------------------------------------------------------------------------------------------


def test_class_order_is_a_setting(tmp_path: Path, cache: Path, said: Callable[[], list[str]]) -> None:
    numbers = [str(number) for number in range(12)]
    root = plant(tmp_path / "raw", numbers)
    numeric = folder(root).load(cache)
    assert list(numeric.train.classes) == numbers
    assert said() == [
        "the class folders are numbers without leading zeros; labels follow their value (2 before 10), where loaders that "
        "sort them as text would put 10 before 2 (dataset=folder does with dataset.order=text)"
    ]
    text = folder(root, order="text").load(cache)
    assert list(text.train.classes) == sorted(numbers) == ["0", "1", "10", "11", *"23456789"]
    assert said() == []
    backwards = folder(root, order=numbers[::-1]).load(cache)
    assert list(backwards.train.classes) == numbers[::-1]
    assert backwards.train.images[0, 0, 0, 0] == 11
    assert len({numeric.digest, text.digest, backwards.digest}) == 3


def test_torchvision_orders_as_text(tmp_path: Path, cache: Path) -> None:
    from torchvision.datasets import ImageFolder

    root = plant(tmp_path / "raw", ["Zebra", "ant", "10", "9", "ähre", "_x"])
    theirs = ImageFolder(str(root / "train"))
    ours = folder(root, order="text").load(cache).train
    assert list(ours.classes) == theirs.classes
    assert ours.labels.tolist() == theirs.targets


@pytest.mark.parametrize(
    ("order", "found"),
    [
        (["a", "c"], "names 2 classes, but train/ has 2 class folders, and 'b' and 'c' are not once in both"),
        (["a"], "names 1 class, but train/ has 2 class folders, and 'b' is not once in both"),
        (["a", "b", "a"], "names 3 classes, but train/ has 2 class folders, and 'a' is not once in both"),
    ],
)
def test_an_order_that_is_none(order: list[str], found: str, tmp_path: Path, cache: Path) -> None:
    assert complaint(folder(plant(tmp_path / "raw"), order=order), cache) == (
        f"dataset.order {found}. Name each class folder once, or give numeric or text."
    )


# -- the record -------------------------------------------------------------------------------------------------------


def test_the_record_says_what_was_read(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    for shade, name in enumerate(("a", "b")):
        fill(root / "train" / name, 24, 200 * shade)
        fill(root / "test" / name, 4, 200 * shade, blue=1)
        (root / "train" / name / "deep.png").write_bytes(png(0, 16, [4000 + 40000 * shade]))
    (root / "test" / "a" / "notes.txt").touch()
    run = api.run(
        "dataset=folder", f"dataset.root='{root}'", "dataset.size=16", "attack=none", "defense=none", "model=demo", "train=demo",
        "train.epochs=1", "curve.every=0", "control=off", "force=true", f"runtime.outputs='{tmp_path / 'outputs'}'",
    )  # fmt: skip
    assert run.environment["data"] == {
        "classes": ["a", "b"],
        "converted": {"16-bit grey": 2},
        "left_out": {".txt": 1},
    }
