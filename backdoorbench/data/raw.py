"""What lies below a root: splits, class folders and image files, listed but not decoded; and what is said of any other root."""

import csv
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from backdoorbench.data.base import Dataset
from backdoorbench.errors import DataError, join_words

log = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".webp", ".tif", ".tiff")


class File(NamedTuple):
    """An image file; `stamp` is its name below the root, its size and when it changed."""

    path: str
    stamp: str


class Census(NamedTuple):
    """What a published data set consists of."""

    classes: int
    train: int
    test: int

    def compare(self, dataset: Dataset, root: Path, found: "Census") -> None:
        """Refuses another number of classes; warns of another number of images."""
        if found.classes != self.classes:
            raise DataError(
                f"{root} has {found.classes:,} classes; {dataset.name} has {self.classes:,}. Correct dataset.root, or "
                f"read this folder with dataset=folder."
            )
        if found != self:
            log.warning(f"{root} holds {found}; {dataset.name} has {self}. Is the copy complete?")

    def __str__(self) -> str:
        return f"{self.train:,} training and {self.test:,} test images in {self.classes:,} classes"


@dataclass(frozen=True)
class Split:
    """One split, listed but not decoded.

    names   what a message calls each image
    labels  in the order of the images
    image   the RGB image at a row; raises where it cannot be decoded
    """

    names: Sequence[str]
    labels: Sequence[int]
    image: Callable[[int], Image.Image]


@dataclass(frozen=True)
class Raw:
    """A data set as it lies below its root.

    stamps  a line for each raw file: other stamps, other store
    read    class names in label order, training split, test split; called only where they must be decoded
    """

    stamps: Sequence[str]
    read: Callable[[], tuple[Sequence[str], Split, Split]]


def find_root(
    dataset: Dataset,
    layout: str,
    holds: Callable[[Path], bool],
    remedy: str = "Unpack the data there, or correct dataset.root.",
) -> Path:
    """The resolved root of `dataset`, for which `holds` is true, or a DataError that says what lies there instead."""
    needs = f"{dataset.name} needs there {layout}."
    if dataset.root is None:
        raise DataError(f"dataset.root is null. {dataset.name} needs a folder with {layout}. Add dataset.root=FOLDER.")
    root = resolve(dataset.root)
    if not root.is_dir():
        what = "a file, not a folder" if root.exists() else "which does not exist"
        raise DataError(f"dataset.root is {root}, {what}. {needs} {remedy}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"dataset.root is {root}, which you may not read. Change its permissions, or dataset.root.")
    if not (found := visible(root)):
        raise DataError(f"dataset.root is {root}, an empty folder. {needs} {remedy}")
    if not holds(root):
        message = f"dataset.root is {root}, which holds {some(found)}. {needs} "
        for near, way in [*((root / name, "down") for name in folders(root)), (root.parent, "up")]:
            if os.access(near, os.X_OK) and holds(near):
                raise DataError(f"{message}That lies one level {way}: set dataset.root={near} instead.")
        raise DataError(message + remedy)
    return root


def resolve(root: str) -> Path:
    """The folder that a `dataset.root` means: `~` expanded, links followed, absolute."""
    return Path(root).expanduser().resolve()


def tree(
    dataset: Dataset,
    root: Path,
    tests: Sequence[str],
    chosen: Callable[[list[str]], list[str]] | None = None,
    census: Census | None = None,
) -> Raw:
    """The images of `root`: a folder a split, in it a folder a class. Labels count the sorted class folders.

    tests   names the test split may have; the first that exists is read
    chosen  picks classes among the folders of train/; the others are then left out of both splits
    census  what should be there
    """
    test = find_test(dataset, root, tests)
    classes = in_order(folders(root / "train"))
    if chosen is not None:
        classes = chosen(classes)
    train = labelled(root, "train", classes)
    if chosen is None and (unknown := [name for name in folders(root / test) if name not in classes]):
        raise DataError(
            f"{root / test} has {some(unknown)}, which {root / 'train'} has not: a class to be tested must be trained. "
            f"Name the class folders of both splits alike."
        )
    tested = labelled(root, test, classes)
    if census is not None:
        census.compare(dataset, root, Census(len(classes), len(train), len(tested)))
    return from_files(classes, train, tested)


def is_tree(root: Path) -> bool:
    """Whether a folder looks like the root of a `tree`."""
    return any((root / name).is_dir() for name in ("train", "test", "val"))


def find_test(dataset: Dataset, root: Path, tests: Sequence[str]) -> str:
    """The first of `tests` below `root`; a DataError where all of them, or train/, are missing."""
    here = [name for name in ("train", "test", "val") if (root / name).is_dir()]
    present = [name for name in tests if name in here]
    if "train" in here and present:
        return present[0]
    held = join_words([f"{name}/" for name in here]) if here else "no split"
    lacking = join_words([f"{name}/" for name in tests], "or") if "train" in here else "train/"
    raise DataError(
        f"{root} has {held} but no {lacking}. {dataset.name} needs a training and a test split, each with a folder of "
        f"images a class. Add the missing one, or correct dataset.root."
    )


def labelled(root: Path, split: str, classes: Sequence[str]) -> list[tuple[File, int]]:
    """The images of each class folder with their labels; a DataError names the classes that have none."""
    found, empty = [], []
    for label, name in enumerate(classes):
        folder = root / split / name
        inner = folder / "images"  # as tiny-imagenet-200 has it
        files = image_files(root, inner if inner.is_dir() else folder)
        found += [(file, label) for file in files]
        if not files:
            empty.append(name)
    if not classes or len(empty) == len(classes):
        raise DataError(
            f"{root / split} has no class folders with images (files that end in {', '.join(IMAGES)}). "
            f"Put each class in a folder of its own there, or correct dataset.root."
        )
    if empty:
        raise DataError(
            f"{root / split} holds no images of {some(empty)} (files that end in {', '.join(IMAGES)}). "
            f"Add some, or leave that class out altogether."
        )
    return found


def in_order(names: list[str]) -> list[str]:
    """Class folders in label order: sorted, numbers by value (with a warning where that is not their order as text)."""
    if not names or not all(name.isdecimal() for name in names):
        return sorted(names)
    ordered = sorted(names, key=int)
    if ordered != sorted(names):
        log.warning(
            "the class folders are numbers without leading zeros; labels follow their value (2 before 10), "
            "where loaders that sort them as text would put 10 before 2"
        )
    return ordered


def from_files(classes: Sequence[str], train: list[tuple[File, int]], test: list[tuple[File, int]]) -> Raw:
    """Image files with their labels, in the order they will be stored."""

    def split(rows: list[tuple[File, int]]) -> Split:
        paths = [file.path for file, _ in rows]
        return Split(paths, [label for _, label in rows], lambda row: open_image(paths[row]))

    return Raw([f"{file.stamp} {label}" for file, label in train + test], lambda: (classes, split(train), split(test)))


def open_image(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def image_files(root: Path, folder: Path) -> list[File]:
    """The image files right below `folder`, by name; none where there is no such folder."""
    if not folder.is_dir():
        return []
    start = len(str(root)) + 1
    with os.scandir(folder) as entries:
        files = [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower().endswith(IMAGES)]
        files.sort(key=lambda entry: entry.name)
        return [File(entry.path, stamp(entry.path[start:], entry.stat())) for entry in files]


def stamp(name: str, status: os.stat_result) -> str:
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    return [name for name in visible(folder) if (folder / name).is_dir()]


def visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith((".", "__MACOSX")))


def some(names: Sequence[str], most: int = 3) -> str:
    """`'a', 'b', 'c' and 7 more`."""
    shown = [f"'{name}'" for name in names[:most]]
    return join_words([*shown, f"{len(names) - most:,} more"] if len(names) > most else shown)


def read_table(path: Path, delimiter: str, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The rows of a text table; `columns` where it has no header."""
    with open(path, newline="", encoding="utf-8") as file:
        return [dict(row) for row in csv.DictReader(file, columns, delimiter=delimiter)]
