"""An .npz archive of numpy arrays: images and labels, x_train to y_test, or MedMNIST's train_images to test_labels.

Images are (N, H, W), (N, H, W, C) or (N, C, H, W), grey or RGB: bytes, unsigned 16-bit integers, or floats in [0, 1].
"""

import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from backdoorbench.data.base import Dataset
from backdoorbench.data.layouts.parts import code, label_values
from backdoorbench.data.pictures import TOP8, TOP16, Picture
from backdoorbench.data.raw import Order, Pixels, Raw, Split, some, stamp
from backdoorbench.errors import DataError, first_line

SAYS = "an .npz archive of images and labels"
IMAGES = ("images", "imgs", "image", "data", "x", "X")
LABELS = ("labels", "label", "targets", "y", "Y")
NAMED = (  # (images, labels) of the training and of the test split; MedMNIST's validation split stays unread
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("X_train", "y_train"), ("X_test", "y_test")),
    (("train_images", "train_labels"), ("test_images", "test_labels")),
    (("train_x", "train_y"), ("test_x", "test_y")),
)

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Names(NamedTuple):
    """What the arrays of an archive are called."""

    train: tuple[str, str]
    test: tuple[str, str] | None


def fits(root: Path) -> bool:
    return find(root) is not None


def find(root: Path) -> Path | None:
    """The archive: `root` itself, or the only one in it."""
    if root.is_file():
        return root if root.suffix.lower() == ".npz" else None
    inside = sorted(root.glob("*.npz"))
    return inside[0] if len(inside) == 1 else None


def read(dataset: Dataset, root: Path, order: Order) -> Raw:
    file = find(root)
    if file is None:
        raise DataError(f"{root} has no .npz archive, or several. Set dataset.root to the one to read.")
    with opened(file) as archive:
        keys = list(archive.files)
    names = recognised(keys, file)

    def splits() -> tuple[Sequence[str], Split, Split]:
        with opened(file) as archive:
            arrays = {key: array(archive, key, file) for key in [*names.train, *(names.test or ())]}
        labels = [None if pair is None else label_values(arrays[pair[1]], f"{file}: {pair[1]}") for pair in names]
        assert labels[0] is not None
        coded = code(labels[0], labels[1], order, str(file))
        train = split(f"{file}: {names.train[0]}", arrays[names.train[0]], coded.train)
        test = (
            train.take([])
            if names.test is None
            else split(f"{file}: {names.test[0]}", arrays[names.test[0]], coded.test)
        )
        return coded.classes, train, test

    left_out = {f"array {key}": 1 for key in keys if key not in (*names.train, *(names.test or ()))}
    stamps = [stamp(file.name, os.stat(file)), f"order {order}"]
    return Raw(stamps, splits, left_out, is_whole=names.test is None)


def recognised(keys: Sequence[str], file: Path) -> Names:
    for train, test in NAMED:
        if set(train) <= set(keys):
            return Names(train, test if set(test) <= set(keys) else None)
    images = [key for key in IMAGES if key in keys]
    labels = [key for key in LABELS if key in keys]
    if len(images) == len(labels) == 1:
        return Names((images[0], labels[0]), None)
    raise DataError(
        f"{file} holds the arrays {some(sorted(keys), 6)}; expected images and labels, x_train, y_train, x_test and y_test, or "
        f"train_images, train_labels, test_images and test_labels. Save it again under such names."
    )


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    try:
        with file.open("rb") as content, np.load(content, allow_pickle=False) as archive:
            yield archive
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:  # a TypeError over a lone .npy
        raise DataError(
            f"{file} is no .npz archive ({first_line(error)}). Save it with numpy.savez, or copy it again."
        ) from None


def array(archive: Any, key: str, file: Path) -> Array:
    try:
        return np.asarray(archive[key])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.error) as error:
        raise DataError(
            f"{file} has an array {key} that cannot be read ({first_line(error)}); arrays of Python objects are never opened. "
            f"Save it again as numbers, or copy the file again."
        ) from None


# -- images in memory -------------------------------------------------------------------------------------------------


def split(where: str, images: Array, labels: Sequence[int], poisoned: Sequence[int] = ()) -> Split:
    """A split whose images lie in memory. where: what has them, for messages"""
    if len(images) != len(labels):
        raise DataError(
            f"{where} has {len(images):,} images and {len(labels):,} labels; expected as many. Correct one of the two."
        )
    to_bytes, kind = converter(images, where)
    pixels = channels_last(images, where)

    def block(rows: Sequence[int]) -> Pixels:
        found = to_bytes(pixels[list(rows)])
        return found if found.shape[3] == 3 else found.repeat(3, 3)

    names = [f"image {row} of {where}" for row in range(len(labels))]
    kinds = (kind,) if kind else ()
    return Split(names, labels, lambda row, _: Picture(Image.fromarray(block([row])[0]), kinds), block, poisoned, kinds)


def channels_last(images: Array, where: str) -> Array:
    """(N, H, W, 1 or 3), of whichever order they lie in."""
    if images.ndim == 3:
        return images[..., None]
    last, first = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (3, 1))
    if last == first:
        raise DataError(
            f"{where} has the shape {images.shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, and "
            f"nothing that is two of these. Save it again in such a shape."
        )
    return images if last else images.transpose(0, 2, 3, 1)


def converter(images: Array, where: str) -> tuple[Callable[[Array], Pixels], str]:
    """How values become bytes, and what they were where they are none."""
    if images.dtype == np.uint8:
        return lambda values: values, ""
    if not images.size:
        raise DataError(f"{where} has no images. Expected some, each with its label.")
    if images.dtype.kind not in "biuf":
        raise DataError(f"{where} has values of kind {images.dtype}; expected numbers. Save it again as bytes.")
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return lambda values: np.rint(np.asarray(values, np.float64) * TOP8).astype(np.uint8), "floats"
    if images.dtype == np.uint16 and high > TOP8:
        return lambda values: ((values.astype(np.int64) * TOP8 + TOP16 // 2) // TOP16).astype(np.uint8), "16-bit"
    if images.dtype.kind in "iu" and images.dtype.itemsize > 2 and low >= 0 and 1 < high <= TOP8:
        return lambda values: values.astype(np.uint8), f"integers of {8 * images.dtype.itemsize} bits"
    raise DataError(
        f"{where} has values of {low:.4g} to {high:.4g} ({images.dtype}), whose white is not known; expected bytes, unsigned "
        f"16-bit integers above {TOP8}, or floats in [0, 1]. Undo a normalisation, or scale the values to one of these."
    )
