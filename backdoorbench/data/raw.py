"""What lies below a root: splits, class folders and image files, listed but not decoded; and what is said of any other root."""

import csv
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from backdoorbench.data.base import Dataset
from backdoorbench.data.pictures import IMAGES, Background, Picture, open_image
from backdoorbench.errors import AbsentData, DataError, first_line, join_words, quantity

log = logging.getLogger(__name__)

UNPACK = "Unpack the data there, or correct dataset.root."
SPLITS = {  # what people call them
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
}
Order: TypeAlias = tuple[str, ...] | Literal["numeric", "text"]  # of class folders: named, or by this rule
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]


class File(NamedTuple):
    """An image file; `stamp` is its name below the root, its size and when it changed."""

    path: str
    stamp: str


class Listing(NamedTuple):
    """The images of a folder.

    files     right there first, then those of each sub-folder, by name
    left_out  what lies there and is no image, counted by ending
    nested    how many of them lie in sub-folders
    """

    files: list[File]
    left_out: Counter[str]
    nested: int


class Labelled(NamedTuple):
    """The images of a split with their labels; the rest as in a Listing."""

    rows: list[tuple[File, int]]
    left_out: Counter[str]
    nested: int


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

    names     what a message calls each image
    labels    in the order of the images
    image     the picture at a row, on a background where it is transparent; raises where it cannot be decoded
    block     the pixels at rows (M,), (M, H, W, 3) uint8, where all images are of one size and lie in memory
    poisoned  rows that somebody poisoned, as he says
    kinds     what is done to each image of a block
    """

    names: Sequence[str]
    labels: Sequence[int]
    image: Callable[[int, Background], Picture]
    block: Callable[[Sequence[int]], Pixels] | None = None
    poisoned: Sequence[int] = ()
    kinds: tuple[str, ...] = ()

    def take(self, rows: Sequence[int]) -> "Split":
        """The images at `rows`, each at most once, in that order."""
        block, place = self.block, {row: number for number, row in enumerate(rows)}
        return Split(
            [self.names[row] for row in rows],
            [self.labels[row] for row in rows],
            lambda row, background: self.image(rows[row], background),
            None if block is None else lambda chosen: block([rows[row] for row in chosen]),
            sorted(place[row] for row in self.poisoned if row in place),
            self.kinds,
        )


@dataclass(frozen=True)
class Raw:
    """A data set as it lies below its root.

    stamps    a line for each raw file: other stamps, other store
    read      class names in label order, training split, test split; called only where they must be decoded
    left_out  what lies there and is not read, counted by ending or named
    nested    how many images lie in sub-folders of their class folder
    is_whole  whether it has no test split of its own: the one that `read` returns is empty
    facts     what else the record should say of it
    """

    stamps: Sequence[str]
    read: Callable[[], tuple[Sequence[str], Split, Split]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    nested: int = 0
    is_whole: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


def find_root(
    dataset: Dataset,
    layout: str,
    holds: Callable[[Path], bool],
    remedy: str | Callable[[Path], str] = UNPACK,
    may_be_file: bool = False,
    is_part: Callable[[Path], bool] = lambda root: True,
) -> Path:
    """The resolved root of `dataset`, for which `holds` is true, or a DataError that says what lies there instead.

    remedy   what to do, or what says it of the root, where it says anything
    is_part  whether a root that holds nothing may be a part of what lies one level up"""
    needs = f"{dataset.name} needs there {layout}."
    if dataset.root is None:
        raise AbsentData(f"dataset.root is null. {dataset.name} needs a folder with {layout}. Add dataset.root=FOLDER.")
    root = resolve(dataset.root)
    if not isinstance(remedy, str):
        remedy = remedy(root) or UNPACK
    if may_be_file and root.is_file():
        if not holds(root):
            raise AbsentData(f"dataset.root is {root}, a file of no kind that is read. {needs} {remedy}")
        return root
    if not root.is_dir():
        what = "a file, not a folder" if root.exists() else "which does not exist"
        raise AbsentData(f"dataset.root is {root}, {what}. {needs} {remedy}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"dataset.root is {root}, which you may not read. Change its permissions, or dataset.root.")
    if not (found := visible(root)):
        raise AbsentData(f"dataset.root is {root}, an empty folder. {needs} {remedy}")
    if not holds(root):
        message = f"dataset.root is {root}, which holds {some(found)}. {needs} "
        ways = [*((root / name, "down") for name in folders(root)), *([(root.parent, "up")] if is_part(root) else [])]
        for near, way in ways:
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
    order: Order = "numeric",
) -> Raw:
    """The images of `root`: a folder a split, in it a folder a class. Labels count the class folders in `order`.

    tests   splits that may be the test split; the first that has classes is read
    chosen  picks classes among the folders of train/; the others are then left out of both splits
    census  what should be there
    """
    own, test = find_splits(dataset, root, tests)
    classes = in_order(folders(root / own), order, f"{own}/")
    if chosen is not None:
        classes = chosen(classes)
    train = labelled(root, own, classes)
    if chosen is None and (unknown := [name for name in folders(root / test) if name not in classes]):
        raise DataError(
            f"{root / test} has {some(unknown)}, which {root / own} has not: a class to be tested must be trained. "
            f"Name the class folders of both splits alike."
        )
    tested = labelled(root, test, classes)
    if census is not None:
        census.compare(dataset, root, Census(len(classes), len(train.rows), len(tested.rows)))
    left_out = train.left_out + tested.left_out + beside(root, (own, test))
    return from_files(classes, train.rows, tested.rows, left_out, train.nested + tested.nested)


def beside(root: Path, splits: Sequence[str]) -> Counter[str]:
    """What lies below `root` and in no class folder: images, counted as such, and folders that are no split, by name."""
    loose = sum(
        name.lower().endswith(IMAGES) and (folder / name).is_file()
        for folder in (root, *(root / split for split in splits))
        for name in visible(folder)
    )
    others = Counter(f"{name}/" for name in folders(root) if name not in splits)
    return others + Counter({"images in no class folder": loose})


def is_tree(root: Path) -> bool:
    """Whether a folder looks like the root of a `tree`: by the name of one split, or by other names of two that have classes."""
    return any((root / name).is_dir() for name in SPLITS) or is_divided(root)


def is_divided(root: Path) -> bool:
    """Whether a training and a test split lie below `root`, by whichever names, each with folders in it."""
    train, *tests = (split_folder(root, split) for split in SPLITS)
    return has_folders(root, train) and any(has_folders(root, test) for test in tests)


def has_folders(root: Path, name: str | None) -> bool:
    return name is not None and bool(folders(root / name))


def split_of(word: str) -> str:
    """train, test or val, for whichever way to say it; empty for any other word."""
    return next((split for split, words in SPLITS.items() if word.lower() in words), "")


def split_folder(root: Path, split: str) -> str | None:
    """The name of a split's folder below `root`: its own, else another that people give it, in whichever case."""
    inside = visible(root) if root.is_dir() else []
    found = [name for name in inside if split_of(name) == split and (root / name).is_dir()]
    return min(found, key=lambda name: (name != split, SPLITS[split].index(name.lower())), default=None)


def find_splits(dataset: Dataset, root: Path, tests: Sequence[str]) -> tuple[str, str]:
    """The folders of the training split, and of the first of `tests` that has class folders; a DataError where all of them, or
    train/, are missing."""
    train = split_folder(root, "train")
    present = [name for split in tests if (name := split_folder(root, split)) is not None]
    if train is not None and present:
        return train, next((name for name in present if has_folders(root, name)), present[0])
    here = [name for split in SPLITS if (name := split_folder(root, split)) is not None]
    held = join_words([f"{name}/" for name in here]) if here else "no split"
    lacking = join_words([f"{name}/" for name in tests], "or") if train is not None else "train/"
    raise DataError(
        f"{root} has {held} but no {lacking}. {dataset.name} needs a training and a test split, each with a folder of "
        f"images a class. Add the missing one, or correct dataset.root."
    )


def labelled(root: Path, split: str, classes: Sequence[str]) -> Labelled:
    """The images of each class folder with their labels; a DataError names the classes that have none."""
    found, empty, left_out, nested = [], [], Counter[str](), 0
    for label, name in enumerate(classes):
        listing = image_files(root, root / split / name)
        found += [(file, label) for file in listing.files]
        left_out += listing.left_out
        if not (root / split / name / "images").is_dir():  # as tiny-imagenet-200 has it: worth no word
            nested += listing.nested
        if not listing.files:
            empty.append(name)
    there = f" What lies there: {counted(left_out)}." if left_out else ""
    if not classes or len(empty) == len(classes):
        raise DataError(
            f"{root / split} has no class folders with images (files that end in {', '.join(IMAGES)}). "
            f"Put each class in a folder of its own there, or correct dataset.root.{there}"
        )
    if empty:
        raise DataError(
            f"{root / split} holds no images of {some(empty)} (files that end in {', '.join(IMAGES)}). "
            f"Add some, or leave that class out altogether.{there}"
        )
    return Labelled(found, left_out, nested)


def in_order(
    names: list[str], order: Order = "numeric", where: str = "train/", called: str = "class folder"
) -> list[str]:
    """Class folders, or other names of classes, in label order.

    order  text: as torchvision sorts them; numeric: likewise, but by value where all are numbers (with a warning where that
           is not their order as text); or every name, in that order
    where, called  what has the names, and what each is the name of
    """
    if order == "text":
        return sorted(names)
    if order != "numeric":
        if sorted(order) != sorted(names):
            unlike = sorted(set(order) ^ set(names)) or sorted({name for name in order if order.count(name) > 1})
            raise DataError(
                f"dataset.order names {quantity(len(order), 'class', 'classes')}, but {where} has {len(names):,} {called}s, "
                f"and {some(unlike)} {'is' if len(unlike) == 1 else 'are'} not once in both. Name each {called} once, "
                f"or give numeric or text."
            )
        return list(order)
    if not names or not all(name.isdecimal() for name in names):
        return sorted(names)
    ordered = sorted(names, key=int)
    if ordered != sorted(names):
        log.warning(
            f"the {called}s are numbers without leading zeros; labels follow their value (2 before 10), "
            "where loaders that sort them as text would put 10 before 2 (dataset=folder does with dataset.order=text)"
        )
    return ordered


def from_files(
    classes: Sequence[str],
    train: list[tuple[File, int]],
    test: list[tuple[File, int]],
    left_out: Mapping[str, int] | None = None,
    nested: int = 0,
    is_whole: bool = False,
) -> Raw:
    """Image files with their labels, in the order they will be stored. left_out, nested, is_whole: as in a Raw."""

    def split(rows: list[tuple[File, int]]) -> Split:
        paths = [file.path for file, _ in rows]
        return Split(paths, [label for _, label in rows], lambda row, background: open_image(paths[row], background))

    stamps = [f"{file.stamp} {label}" for file, label in train + test]
    return Raw(stamps, lambda: (classes, split(train), split(test)), left_out or {}, nested, is_whole)


def image_files(root: Path, folder: Path, above: tuple[Path, ...] = ()) -> Listing:
    """The images in `folder` and its sub-folders; none where there is no such folder. A link to a folder that holds one of those
    on the way to it is not followed.

    above  the folders on the way, links resolved"""
    listing = Listing([], Counter(), 0)
    if not folder.is_dir():
        return listing
    start = len(str(root)) + 1
    inner: list[str] = []
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            name = entry.name
            is_image = name.lower().endswith(IMAGES)
            if name.startswith((".", "__MACOSX")):
                listing.left_out.update(["hidden"] if is_image else [])
            elif is_image and entry.is_file():
                listing.files.append(File(entry.path, stamp(entry.path[start:], entry.stat())))
            elif entry.is_dir():
                inner.append(entry.path)
            elif is_image and entry.is_symlink():
                raise DataError(
                    f"{entry.path} is a link to {os.readlink(entry.path)}, which does not exist. Restore that file, or "
                    f"remove the link."
                )
            else:
                listing.left_out[os.path.splitext(name)[1].lower() or "without an ending"] += 1
    except PermissionError as error:
        raise DataError(f"{error.filename} may not be read. Change its permissions, or dataset.root.") from None
    way = (*above, folder.resolve()) if inner else above
    for path in inner:
        if os.path.islink(path) and any(each.is_relative_to(os.path.realpath(path)) for each in way):
            listing.left_out["links to a folder above"] += 1
            continue
        deeper = image_files(root, Path(path), way)
        listing.files.extend(deeper.files)
        listing.left_out.update(deeper.left_out)
        listing = listing._replace(nested=listing.nested + len(deeper.files))
    return listing


def stamp(name: str, status: os.stat_result) -> str:
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def folders(folder: Path) -> list[str]:
    """The names of the folders in `folder`, sorted, without hidden ones."""
    return [name for name in visible(folder) if (folder / name).is_dir()]


def visible(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith((".", "__MACOSX")))


def counted(counts: Mapping[str, int]) -> str:
    """`15 .txt, 3 hidden, extra/`, the most first; folders go by their name."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(what if what.endswith("/") else f"{count:,} {what}" for what, count in ranked)


def some(names: Sequence[str], most: int = 3) -> str:
    """`'a', 'b', 'c' and 7 more`."""
    shown = [f"'{name}'" for name in names[:most]]
    return join_words([*shown, f"{len(names) - most:,} more"] if len(names) > most else shown)


def read_table(path: Path, delimiter: str, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The rows of a text table; `columns` where it has no header. DataError where it is none."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [dict(row) for row in csv.DictReader(file, columns, delimiter=delimiter)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a table ({first_line(error)}). Take it from the data set's archive again, or save it as "
            f"UTF-8 text."
        ) from None
