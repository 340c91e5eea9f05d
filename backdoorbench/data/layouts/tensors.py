"""Tensors as backdoor-toolbox saves them: the files imgs, labels and poison_indices, of torch.save, without an ending.

imgs is (N, 3, H, W) in [0, 1]; in its place may stand data/ with 0.png to N-1.png, and clean_labels in that of labels. A folder
holds one such set, to train on, or train/ and test/ do. Rows that poison_indices names carry a trigger: the record compares them
with what a method says, and no method sees them. cover_indices stays unread: its rows keep their labels.
"""

import os
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backdoorbench.config.walk import files_below
from backdoorbench.data.base import Dataset
from backdoorbench.data.layouts import arrays
from backdoorbench.data.layouts.parts import code, label_values
from backdoorbench.data.pictures import open_image
from backdoorbench.data.raw import Order, Raw, Split, stamp
from backdoorbench.errors import DataError, first_line

SAYS = "files of torch.save called imgs and labels, and perhaps poison_indices"
LABELS = ("labels", "clean_labels")
TESTS = ("test", "test_split", "val")


def fits(root: Path) -> bool:
    return is_set(root) or is_set(root / "train")


def is_set(folder: Path) -> bool:
    """Whether a folder has images and labels so."""
    has_images = (folder / "imgs").is_file() or (folder / "data" / "0.png").is_file()
    return has_images and any((folder / name).is_file() for name in LABELS)


def read(dataset: Dataset, root: Path, order: Order) -> Raw:
    if not fits(root):
        raise DataError(
            f"{root} has no files imgs and labels, and no train/ that has. Set dataset.root to the folder that does."
        )
    folder = root if is_set(root) else root / "train"
    test = None if folder == root else next((root / name for name in TESTS if is_set(root / name)), None)

    def splits() -> tuple[Sequence[str], Split, Split]:
        values = [
            None if place is None else label_values(loaded(labels_of(place)), str(labels_of(place)))
            for place in (folder, test)
        ]
        assert values[0] is not None
        coded = code(values[0], values[1], order, str(labels_of(folder)))
        train = split(folder, coded.train, poisoned_rows(folder, len(coded.train)))
        return coded.classes, train, train.take([]) if test is None else split(test, coded.test)

    places = [folder] if test is None else [folder, test]
    stamps = [stamp(str(file.relative_to(root)), os.stat(file)) for place in places for file in files_below(place)]
    return Raw([*stamps, f"order {order}"], splits, is_whole=test is None)


def labels_of(folder: Path) -> Path:
    return next(folder / name for name in LABELS if (folder / name).is_file())


def split(folder: Path, labels: Sequence[int], poisoned: Sequence[int] = ()) -> Split:
    if (folder / "imgs").is_file():
        images = loaded(folder / "imgs")
        return arrays.split(str(folder / "imgs"), np.asarray(images), labels, poisoned)
    if (beyond := folder / "data" / f"{len(labels)}.png").exists():
        raise DataError(
            f"{folder / 'data'} has {beyond.name}, but {labels_of(folder)} has {len(labels):,} labels, of 0.png to "
            f"{len(labels) - 1}.png; expected as many labels as images. Correct one of the two."
        )
    paths = [str(folder / "data" / f"{row}.png") for row in range(len(labels))]
    return Split(paths, labels, lambda row, background: open_image(paths[row], background), poisoned=poisoned)


def poisoned_rows(folder: Path, count: int) -> list[int]:
    """The rows that poison_indices names, ascending; none where there is no such file."""
    file = folder / "poison_indices"
    if not file.is_file():
        return []
    rows = np.asarray(loaded(file)).reshape(-1)
    if not len(rows):
        return []
    if rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= count or len(np.unique(rows)) < len(rows):
        raise DataError(
            f"{file} has {len(rows):,} entries of {rows.min()} to {rows.max()}; expected rows of {count:,} images, 0 to "
            f"{count - 1:,}, each once. Copy it from where the images come from, or remove it."
        )
    return sorted(int(row) for row in rows)


def loaded(file: Path) -> Any:
    """What torch.save wrote, of tensors and plain values; anything else is never built."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, over pickles that it then refuses
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{file} is no file of torch.save that holds tensors and plain values alone ({first_line(error)}); nothing else "
            f"in it is built. Save a tensor there, or copy it again."
        ) from None
    if isinstance(found, torch.Tensor):
        return (found.float() if found.is_floating_point() else found).numpy()
    if isinstance(found, list) and found and isinstance(found[0], torch.Tensor):
        return torch.stack(found).numpy() if len({each.shape for each in found}) == 1 else np.asarray(0)
    if not isinstance(found, list | tuple):
        raise DataError(
            f"{file} holds a {type(found).__name__}; expected a tensor or a list of numbers. Save one there."
        )
    return found
