"""Raw images, decoded once: list what lies below a root, decode it into a uint8 store, map that into memory afterwards.

A store is the folder `<cache>/data/<name>-<key>/`, which appears whole or not at all. Its key covers the root, the
resolution, and the names, sizes and times of all raw files: raw data that change are decoded anew. Every data set below
a root goes the same way: `find_root`, a listing (`tree`, an `Archive`, or its own), `load`.
"""

import csv
import hashlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from backdoorbench import progress
from backdoorbench.cache import key as make_key
from backdoorbench.cache import obtain, storage_errors, write_json
from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import DataError, StorageError, join_words
from backdoorbench.shapes import Labels, Rows
from backdoorbench.streams import Stream

log = logging.getLogger(__name__)

FORMAT = 1  # rises when the same raw data would be decoded to other bytes
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".webp", ".tif", ".tiff")
SPLITS = ("train", "test")
CHUNK = 256  # images a thread decodes at a time

Fit: TypeAlias = Callable[[Image.Image, int], Image.Image]


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


# -- listing ----------------------------------------------------------------------------------------------------------


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
    if not (found := visible(root)):
        raise DataError(f"dataset.root is {root}, an empty folder. {needs} {remedy}")
    if not holds(root):
        message = f"dataset.root is {root}, which holds {some(found)}. {needs} "
        for near, way in [*((root / name, "down") for name in folders(root)), (root.parent, "up")]:
            if holds(near):
                raise DataError(f"{message}That lies one level {way}: set dataset.root={near}")
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


# -- CIFAR's pickled archives -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archive:
    """An archive that torchvision knows how to fetch, check and read.

    kind    torchvision's class ("CIFAR10")
    folder  where its files lie below the root
    url     where it comes from
    census  what it holds
    """

    kind: str
    folder: str
    url: str
    census: Census

    def load(self, dataset: Dataset, cache: Path, download: bool) -> Splits:
        """The splits of the archive below the root of `dataset`, or of a `tree` there.

        download  whether to fetch the archive where the root is missing or empty
        """
        if download and dataset.root is not None:
            self.fetch(resolve(dataset.root))
        root = find_root(
            dataset,
            f"{self.folder}/, or train/ and test/ with a folder of images a class",
            lambda folder: self.is_below(folder) or is_tree(folder),
            f"Unpack {self.url} there, or correct dataset.root, or let dataset.download=true fetch it into an empty "
            f"folder.",
        )
        raw = self.raw(root) if self.is_below(root) else tree(dataset, root, ("test", "val"), census=self.census)
        return load(dataset, cache, root, raw, stretch)

    def is_below(self, root: Path) -> bool:
        return (root / self.folder).is_dir()

    def fetch(self, root: Path) -> None:
        """Downloads into `root` unless something is there already: beside first, then renamed, under a lock."""
        if root.exists() and (not root.is_dir() or visible(root)):
            return
        part = root / ".download"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / ".download.lock"):
                if not self.is_below(root):
                    log.info(f"fetching {self.url} into {root}")
                    try:
                        self.torchvision()(str(part), download=True)
                        os.replace(part / self.folder, root / self.folder)
                    finally:
                        shutil.rmtree(part, ignore_errors=True)
        except (OSError, RuntimeError, EOFError, HTTPException, TarError) as error:
            raise DataError(
                f"{root} is empty, and fetching {self.url} failed ({error}). Connect to the network, or unpack that "
                f"archive there by hand, or set dataset.root to a folder that holds it."
            ) from None

    def raw(self, root: Path) -> Raw:
        folder = root / self.folder
        with os.scandir(folder) as entries:
            stamps = sorted(stamp(entry.name, entry.stat()) for entry in entries)
        return Raw(stamps, lambda: self.read(root))

    def read(self, root: Path) -> tuple[Sequence[str], Split, Split]:
        """The archive's contents, once its checksums match: pickles from elsewhere are never opened."""
        from torchvision.datasets.utils import check_integrity

        kind, folder = self.torchvision(), root / self.folder
        parts = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        if bad := [name for name, md5 in parts if not check_integrity(str(folder / name), md5)]:
            raise DataError(
                f"{folder} is incomplete: {len(bad)} of its {len(parts)} files are missing or do not match their "
                f"checksum ({some(bad)}). Remove that folder, then unpack {self.url} again, or leave dataset.root "
                f"empty and let dataset.download=true fetch it."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, over how it wrote pickles when the archive was made
            train, test = (kind(str(root), train=train) for train in (True, False))
        return train.classes, self.split(train), self.split(test)

    def split(self, part: Any) -> Split:
        names = [f"image {row} of {self.folder}" for row in range(len(part.data))]
        return Split(names, part.targets, lambda row: Image.fromarray(part.data[row]))

    def torchvision(self) -> Any:
        import torchvision.datasets  # takes a second or more: only where something must be fetched or decoded

        return getattr(torchvision.datasets, self.kind)


# -- decoding ---------------------------------------------------------------------------------------------------------


def stretch(image: Image.Image, size: int) -> Image.Image:
    """The whole image at `size` x `size`, its aspect given up; bilinear, antialiased."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BILINEAR)


def centre(image: Image.Image, size: int) -> Image.Image:
    """The centred square at `size` x `size`: shorter side to `size`, then a centre crop; bilinear, antialiased."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def load(dataset: Dataset, cache: Path, root: Path, raw: Raw, fit: Fit, variant: str = "") -> Splits:
    """The splits of `raw`, memory-mapped from their store below `cache`; decoded there first where there is none.

    fit      how an image comes to `dataset.size`: `stretch` or `centre`
    variant  which of several archives of the same name this is
    """
    settings = {
        "format": FORMAT,
        "name": dataset.name,
        "variant": variant,
        "root": str(root),
        "size": dataset.size,
        "fit": fit.__name__,
        "files": hashlib.sha256(os.fsencode("\n".join(raw.stamps))).hexdigest(),  # names need not be unicode
    }
    name = re.sub(r"[^\w.-]+", "_", f"{dataset.name}-{variant}" if variant else dataset.name)
    folder = cache / "data" / f"{name}-{make_key('data', settings)}"
    obtain(
        folder,
        lambda part: write_store(part, dataset, raw, fit, settings),
        waiting=f"{dataset.name} is being decoded by another process; waiting for it",
    )
    return finish(dataset, open_store(folder))


def write_store(folder: Path, dataset: Dataset, raw: Raw, fit: Fit, settings: Mapping[str, Any]) -> None:
    """Decodes `raw` into the empty folder."""
    classes, *splits = raw.read()
    count = sum(len(split.labels) for split in splits)
    needed, free = count * 3 * dataset.size**2, shutil.disk_usage(folder).free
    if needed > free:  # writing to a mapped file beyond it would end the process without a word
        raise StorageError(
            f"{folder.parent} has {free / 1e6:,.0f} MB left; {dataset.name} decoded to {dataset.size} pixels takes "
            f"{needed / 1e6:,.0f} MB. Free some space, or give another folder with runtime.outputs=FOLDER."
        )
    corrupt: list[str] = []
    with storage_errors(folder.parent), progress.task(f"decode {dataset.name}", count, "image") as work:
        for name, split in zip(SPLITS, splits, strict=True):
            (folder / name).mkdir()
            shape = (len(split.labels), 3, dataset.size, dataset.size)
            images = np.lib.format.open_memmap(folder / name / "images.npy", "w+", np.uint8, shape)
            corrupt += decode(split, images, fit, work)
            images.flush()
            np.save(folder / name / "labels.npy", np.asarray(split.labels, np.int64))
    refuse(corrupt, count, dataset.name)
    train, test = (map_split(folder / name, classes) for name in SPLITS)
    counts = {name: part.counts().tolist() for name, part in zip(SPLITS, (train, test), strict=True)}
    meta = {"classes": list(classes), "counts": counts, "digest": digest(train, test), "source": settings}
    write_json(folder / "meta.json", meta)


def decode(split: Split, images: "np.ndarray[Any, np.dtype[np.uint8]]", fit: Fit, work: progress.Task) -> list[str]:
    """Fills `images`, (N, 3, size, size), from all cores; returns the images that cannot be read, and why.

    Where `images` is a mapped file, memory stays at a few images a thread. Pillow lets other threads run as it decodes.
    """
    count, size = len(images), images.shape[-1]

    def rows(start: int) -> list[str]:
        corrupt = []
        for row in range(start, min(start + CHUNK, count)):
            try:
                images[row] = np.asarray(fit(split.image(row), size)).transpose(2, 0, 1)
            except Exception as error:  # Pillow raises a dozen kinds over broken files
                reason = str(error).partition(" '")[0]  # without the path, which some messages repeat
                corrupt.append(f"{split.names[row]} ({reason})")
        return corrupt

    corrupt: list[str] = []
    starts = range(0, count, CHUNK)
    with ThreadPoolExecutor(threads()) as pool:
        try:
            for start, unreadable in zip(starts, pool.map(rows, starts), strict=True):
                corrupt += unreadable
                work.advance(min(CHUNK, count - start))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a stop must not wait for the rest
            raise
    return corrupt


def refuse(corrupt: list[str], count: int, what: str) -> None:
    """Raises a DataError where images could not be read."""
    if corrupt:
        raise DataError(
            f"{len(corrupt):,} of {count:,} images of {what} cannot be decoded: {'; '.join(corrupt[:3])}"
            f"{'; …' if len(corrupt) > 3 else ''}. Copy them again from the original, or remove them."
        )


def read_class_folders(root: Path, classes: Sequence[str], size: int, fit: Fit = stretch) -> ImageSet:
    """The images of a folder a class, `root`/<class>/*, decoded into memory: for small sets that need no store."""
    root = root.resolve()
    if not root.is_dir():
        raise DataError(f"{root} does not exist. Expected a folder with a folder of images for each class.")
    if unknown := [name for name in folders(root) if name not in classes]:
        raise DataError(f"{root} has {some(unknown)}, no class of the data set. Name its folders as {some(classes)}.")
    files = labelled(root, "", classes)
    raw = from_files(classes, files, [])
    _, split, _ = raw.read()
    images = np.empty((len(files), 3, size, size), np.uint8)
    with progress.task(f"decode {root.name}", len(files), "image") as work:
        refuse(decode(split, images, fit, work), len(files), str(root))
    return ImageSet(torch.from_numpy(images), torch.tensor(split.labels), tuple(classes))


def threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- the store, opened ------------------------------------------------------------------------------------------------


def open_store(folder: Path) -> Splits:
    """The two splits in `folder`, mapped."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        train, test = (map_split(folder / name, meta["classes"]) for name in SPLITS)
        if [train.counts().tolist(), test.counts().tolist()] != [meta["counts"][name] for name in SPLITS]:
            raise ValueError("the labels are not those that were stored")
        return Splits(train, test, meta["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{folder} is damaged ({error}). Remove it and repeat the command: the images are decoded anew."
        ) from None


def map_split(folder: Path, classes: Iterable[str]) -> ImageSet:
    """Copy on write: a tensor over it may be written to, and the file stays as it is."""
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
    return ImageSet(images, torch.from_numpy(np.load(folder / "labels.npy")), tuple(classes))


def digest(train: ImageSet, test: ImageSet) -> str:
    """SHA-256 over shape and bytes of images and labels, training split first."""
    total = hashlib.sha256()
    for part in (train, test):
        for tensor in (part.images, part.labels):
            total.update(f"{tuple(tensor.shape)}".encode())
            total.update(tensor.contiguous().numpy().reshape(-1).data)
    return total.hexdigest()


# -- subsets ----------------------------------------------------------------------------------------------------------


def finish(dataset: Dataset, splits: Splits) -> Splits:
    """`splits` cut to the data set's `train_size` and `test_size`, and the digest of what remains."""
    train = subset(dataset, "train", splits.train, dataset.train_size)
    test = subset(dataset, "test", splits.test, dataset.test_size)
    whole = train is splits.train and test is splits.test
    return splits if whole else Splits(train, test, digest(train, test))


def subset(dataset: Dataset, split: str, images: ImageSet, size: int | None) -> ImageSet:
    """`size` images, stratified: the same ones whatever the run's seed, so that seeds compare like with like."""
    if size is None or size == len(images):
        return images
    if size > len(images):
        raise DataError(
            f"dataset.{split}_size is {size:,}, but the {split} split of {dataset.name} holds {len(images):,} images. "
            f"Give at most that many, or null for all."
        )
    if size < len(images.classes):
        raise DataError(
            f"dataset.{split}_size is {size:,}, but {dataset.name} has {len(images.classes):,} classes, and each keeps "
            f"at least one image. Give at least that many, or null for all."
        )
    return images.subset(stratified(images.labels, size, Stream(0).child("subset").child(split)))


def stratified(labels: Labels, size: int, stream: Stream) -> Rows:
    """(size,) rows, ascending, in which each class keeps its share: largest remainder, at least one image a class.

    Expects `size` between the number of classes and that of labels, and labels 0 … K-1 that all occur. The draw of a
    class does not depend on `size`, so of two sizes the larger draw holds the smaller, but for rounding.

    >>> stratified(torch.tensor([0] * 8 + [1] * 2), 5, Stream(0)).shape
    torch.Size([5])
    """
    counts = np.bincount(labels.numpy())
    share = counts * size  # in units of 1 / len(labels) image
    taken = np.maximum(share // len(labels), 1)
    while short := size - int(taken.sum()):
        lack = share - taken * len(labels)
        if short > 0:
            taken[lack.argmax()] += 1
        else:
            taken[np.where(taken > 1, lack, lack.max() + 1).argmin()] -= 1
    drawn = []
    for label, count in enumerate(taken):
        rows = (labels == label).nonzero()[:, 0]
        drawn.append(rows[stream.child(str(label)).permutation(len(rows))[: int(count)]])
    return torch.cat(drawn).sort().values
