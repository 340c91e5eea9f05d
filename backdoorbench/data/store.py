"""Raw images, decoded once into a uint8 store that is mapped into memory afterwards.

A store is the folder `<cache>/data/<name>-<key>/`, which appears whole or not at all. Its key covers the root, the
resolution, and the names, sizes and times of all raw files: raw data that change are decoded anew. Every data set below
a root goes the same way: `raw.find_root`, a listing (`raw.tree`, an `Archive`, or its own), `load`.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from backdoorbench import progress
from backdoorbench.data.base import Dataset, Reading, Splits
from backdoorbench.data.images import ImageSet
from backdoorbench.data.pictures import Background, UnfitError
from backdoorbench.data.raw import Pixels, Raw, Split, counted, folders, from_files, labelled, some
from backdoorbench.data.spread import shared, spread
from backdoorbench.errors import DataError, StorageError, quantity
from backdoorbench.shapes import Labels, Mask, Rows
from backdoorbench.storage.store import key as make_key
from backdoorbench.storage.store import obtain, reading, storage_errors, write_json
from backdoorbench.streams import Stream

log = logging.getLogger(__name__)

FORMAT = 2  # rises when the same raw data would be decoded to other bytes
SPLITS = ("train", "test")
POISONED = "poisoned.npy"  # beside the images: rows that somebody poisoned, as he says
CHUNK = 64  # images decoded at a time
SEEN = 0.001  # share of the test images above which repeated ones are warned of
DAMAGED = ("cannot be decoded", "Copy them again from the original, or remove them.")

Fit: TypeAlias = Callable[[Image.Image, int], Image.Image]
Trouble: TypeAlias = dict[tuple[str, str], list[str]]  # why images cannot be read, and what to do -> which


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


def load(
    dataset: Dataset,
    cache: Path,
    root: Path,
    raw: Raw,
    fit: Fit,
    variant: str = "",
    background: Background = "white",
) -> Splits:
    """The splits of `raw`, memory-mapped from their store below `cache`; decoded there first where there is none.

    fit         how an image comes to `dataset.size`: `stretch` or `centre`
    variant     which of several archives of the same name this is
    background  what transparent pixels are laid on
    """
    settings = {
        "format": FORMAT,
        "name": dataset.name,
        "variant": variant,
        "root": str(root),
        "size": dataset.size,
        "fit": fit.__name__,
        "background": background,
        "files": hashlib.sha256(os.fsencode("\n".join(raw.stamps))).hexdigest(),  # names need not be unicode
    }
    name = re.sub(r"[^\w.-]+", "_", f"{dataset.name}-{variant}" if variant else dataset.name)
    folder = cache / "data" / f"{name}-{make_key('data', settings)}"
    splits, _ = obtain(
        folder,
        lambda part: write_store(part, dataset, raw, fit, settings),
        open_store,
        waiting=f"{dataset.name} is being decoded by another process; waiting for it",
    )
    listed = {
        "left_out": {what: count for what, count in raw.left_out.items() if count},
        "sub_folders": raw.nested,
        **raw.facts,
    }
    if splits.poisoned is not None:
        listed["poisoned"] = int(splits.poisoned.sum())
    facts = {**splits.facts, **{name: value for name, value in listed.items() if value}}
    splits = replace(splits, facts=facts, reading=Reading(fit, background))
    tell(dataset.name, root, splits.facts)
    tell_repeated(dataset.name, splits)
    return finish(dataset, splits)


def tell(name: str, root: Path, facts: Mapping[str, Any]) -> None:
    """Says what was not read, and what was not read as it is, a line each; nothing of plain images alone."""
    if "left_out" in facts:
        log.info(f"{name}: left out of {root}: {counted(facts['left_out'])}")
    if "sub_folders" in facts:
        log.info(
            f"{name}: images in sub-folders of a class folder, which count for that class: {facts['sub_folders']:,}"
        )
    if "poisoned" in facts:
        log.info(f"{name}: training images that its files call poisoned, for the record alone: {facts['poisoned']:,}")
    if "converted" in facts:
        log.info(f"{name}: images converted to 8-bit RGB: {counted(facts['converted'])}")


def tell_repeated(name: str, splits: Splits) -> None:
    """Says which images stand where they should not; as a warning where they are many enough to be seen in a figure."""
    found = splits.facts.get("repeated", {})
    if both := found.get("in_both_splits"):
        level = logging.WARNING if both > SEEN * len(splits.test) else logging.INFO
        said = f"{both:,} of {len(splits.test):,} test images are training images too, byte for byte"
        log.log(level, f"{name}: {said}: what a network knows of them by heart counts as accuracy")
    if two := found.get("under_two_labels"):
        log.warning(f"{name}: training images that lie in several classes, byte for byte: {two:,}")


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
    trouble: Trouble = {}
    converted: Counter[str] = Counter()
    with storage_errors(folder.parent), progress.task(f"decode {dataset.name}", count, "image") as work:
        for name, split in zip(SPLITS, splits, strict=True):
            (folder / name).mkdir()
            shape = (len(split.labels), 3, dataset.size, dataset.size)
            images = np.lib.format.open_memmap(folder / name / "images.npy", "w+", np.uint8, shape)
            converted += decode(split, images, fit, settings["background"], work, trouble)
            images.flush()
            np.save(folder / name / "labels.npy", np.asarray(split.labels, np.int64))
            if split.poisoned:
                np.save(folder / name / POISONED, np.asarray(split.poisoned, np.int64))
    refuse(trouble, count, dataset.name)
    train, test = (map_split(folder / name, classes) for name in SPLITS)
    counts = {name: part.counts().tolist() for name, part in zip(SPLITS, (train, test), strict=True)}
    told = digest(train, test, poisoned_of(folder, len(train)))
    meta = {"classes": list(classes), "counts": counts, "digest": told, "source": settings}
    meta |= {"converted": dict(converted.most_common()), "repeated": repeated(train, test)}
    write_json(folder / "meta.json", meta)


def decode(
    split: Split,
    images: Pixels,
    fit: Fit,
    background: Background,
    work: progress.Task,
    trouble: Trouble,
) -> Counter[str]:
    """Fills `images`, (N, 3, size, size), from all cores; returns how many were converted, by what they were.

    images   of `shared` or mapped from a file, so that other processes fill it too
    trouble  gets the images that cannot be read, and why

    Where `images` is a mapped file, memory stays at a few images a core.
    """
    count, size = len(images), images.shape[-1]

    def rows(start: int) -> tuple[Counter[str], list[tuple[tuple[str, str], str]]]:
        converted, failed = Counter[str](), []
        for row in range(start, min(start + CHUNK, count)):
            try:
                image, kinds = split.image(row, background)
                images[row] = np.asarray(fit(image, size)).transpose(2, 0, 1)
                if kinds:
                    converted.update(kinds)
            except UnfitError as error:
                name = f"{split.names[row]} ({error.detail})" if error.detail else split.names[row]
                failed.append(((error.what, error.remedy), name))
            except Exception as error:  # Pillow raises a dozen kinds over broken files
                reason = str(error).partition(" '")[0]  # without the path, which some messages repeat
                failed.append((DAMAGED, f"{split.names[row]} ({reason})"))
        return converted, failed

    def copied(start: int) -> tuple[Counter[str], list[tuple[tuple[str, str], str]]]:
        assert split.block is not None
        part = range(start, min(start + CHUNK, count))
        images[start : part.stop] = split.block(part).transpose(0, 3, 1, 2)
        return Counter(dict.fromkeys(split.kinds, len(part))), []

    starts = range(0, count, CHUNK)
    is_ready = count and split.block is not None and fit is stretch and split.block([0]).shape[1:3] == (size, size)
    done = (
        ((number, copied(starts[number])) for number in range(len(starts)))
        if is_ready
        else spread(rows, starts, threads())
    )
    converted: Counter[str] = Counter()
    reasons = {}
    for number, (kinds, failed) in done:
        converted += kinds
        reasons[number] = failed
        work.advance(min(CHUNK, count - starts[number]))
    for number in sorted(reasons):
        for why, name in reasons[number]:
            trouble.setdefault(why, []).append(name)
    return converted


def refuse(trouble: Trouble, count: int, what: str) -> None:
    """Raises a DataError where images could not be read."""
    if trouble:
        said = (
            f"{len(names):,} of {quantity(count, 'image')} of {what} {why}: {'; '.join(names[:3])}"
            f"{'; …' if len(names) > 3 else ''}. {remedy}"
            for (why, remedy), names in trouble.items()
        )
        raise DataError(" ".join(said))


def read_class_folders(
    root: Path, classes: Sequence[str], size: int, fit: Fit = stretch, background: Background = "white"
) -> tuple[ImageSet, dict[str, Any]]:
    """The images of a folder a class, `root`/<class>/*, decoded into memory: for small sets that need no store. And their facts,
    as `Splits` has them."""
    root = root.resolve()
    if not root.is_dir():
        raise DataError(f"{root} does not exist. Expected a folder with a folder of images for each class.")
    if unknown := [name for name in folders(root) if name not in classes]:
        raise DataError(f"{root} has {some(unknown)}, no class of the data set. Name its folders as {some(classes)}.")
    files, left_out, nested = labelled(root, "", classes)
    raw = from_files(classes, files, [])
    trouble: Trouble = {}
    _, split, _ = raw.read()
    images = shared((len(files), 3, size, size))
    with progress.task(f"decode {root.name}", len(files), "image") as work:
        converted = decode(split, images, fit, background, work, trouble)
    refuse(trouble, len(files), str(root))
    listed = {
        "converted": dict(converted.most_common()),
        "left_out": dict(left_out),
        "sub_folders": nested,
    }
    facts = {name: value for name, value in listed.items() if value}
    tell(root.name, root, facts)
    return ImageSet(torch.from_numpy(images), torch.tensor(split.labels), tuple(classes)), facts


def threads() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- the store, opened ------------------------------------------------------------------------------------------------


def open_store(folder: Path) -> Splits:
    """The two splits in `folder`, mapped. Damaged where they are not what was stored: all bytes are compared once a day, and
    whenever a file was touched."""
    with reading(folder, once_a_day=True):
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        train, test = (map_split(folder / name, meta["classes"]) for name in SPLITS)
        if [train.counts().tolist(), test.counts().tolist()] != [meta["counts"][name] for name in SPLITS]:
            raise ValueError("the labels are not those that were stored")
        kept = {name: meta.get(name) for name in ("converted", "repeated")}  # older stores do not count the latter
        facts = {name: value for name, value in kept.items() if value}
        return Splits(train, test, meta["digest"], facts, poisoned=poisoned_of(folder, len(train)))


def repeated(train: ImageSet, test: ImageSet) -> dict[str, int]:
    """How many images stand where they should not, byte for byte: in the test split of those of the training split, and in the
    training split under two labels. What there is none of is left out."""
    labels: dict[bytes, set[int]] = {}
    for content, label in zip(_contents(train), train.labels.tolist(), strict=True):
        labels.setdefault(content, set()).add(label)
    found = {
        "in_both_splits": sum(content in labels for content in _contents(test)),
        "under_two_labels": sum(len(under) > 1 for under in labels.values()),
    }
    return {name: count for name, count in found.items() if count}


def _contents(part: ImageSet) -> Iterator[bytes]:
    """A digest of each image."""
    return (hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part.images.numpy())


def map_split(folder: Path, classes: Iterable[str]) -> ImageSet:
    """Copy on write: a tensor over it may be written to, and the file stays as it is."""
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
    return ImageSet(images, torch.from_numpy(np.load(folder / "labels.npy")), tuple(classes))


def poisoned_of(folder: Path, count: int) -> Mask | None:
    """(count,) bool: the rows of the training split in `folder` that somebody poisoned; None where nobody says so."""
    file = folder / SPLITS[0] / POISONED
    if not file.exists():
        return None
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.from_numpy(np.load(file))] = True
    return mask


def digest(train: ImageSet, test: ImageSet, poisoned: Mask | None = None) -> str:
    """SHA-256 over shape and bytes of images and labels, training split first, and of which rows are known to be poisoned: on
    them depends which images are clean enough for a defender."""
    total = hashlib.sha256()
    if poisoned is not None:
        total.update(poisoned.numpy().tobytes())
    for part in (train, test):
        for tensor in (part.images, part.labels):
            total.update(f"{tuple(tensor.shape)}".encode())
            total.update(tensor.contiguous().numpy().reshape(-1).data)
    return total.hexdigest()


# -- subsets ----------------------------------------------------------------------------------------------------------


def finish(dataset: Dataset, splits: Splits) -> Splits:
    """`splits` cut to the data set's `train_size` and `test_size`, and the digest of what remains."""
    train, poisoned = splits.train, splits.poisoned
    rows = subset(dataset, "train", train, dataset.train_size)
    if rows is not None:
        train, poisoned = train.subset(rows), None if poisoned is None else poisoned[rows]
    tested = subset(dataset, "test", splits.test, dataset.test_size)
    if rows is None and tested is None:
        return splits
    test = splits.test if tested is None else splits.test.subset(tested)
    return replace(splits, train=train, test=test, digest=digest(train, test, poisoned), poisoned=poisoned)


def subset(dataset: Dataset, split: str, images: ImageSet, size: int | None) -> Rows | None:
    """The rows of `size` images, stratified: the same ones whatever the run's seed, so that seeds compare like with like. None:
    all of them."""
    if size is None or size == len(images):
        return None
    if size > len(images):
        raise DataError(
            f"dataset.{split}_size is {size:,}, but the {split} split of {dataset.name} holds {quantity(len(images), 'image')}. "
            f"Give at most that many, or null for all."
        )
    if size < len(images.classes):
        raise DataError(
            f"dataset.{split}_size is {size:,}, but {dataset.name} has {len(images.classes):,} classes, and each keeps "
            f"at least one image. Give at least that many, or null for all."
        )
    return stratified(images.labels, size, Stream(0).child("subset").child(split))


def stratified(labels: Labels, size: int, stream: Stream) -> Rows:
    """(size,) rows, ascending, in which each class keeps its share: largest remainder, at least one image of each class that has
    some.

    Expects `size` between the number of classes and that of labels. The draw of a class does not depend on `size`, so of two
    sizes the larger draw holds the smaller, but for rounding.

    >>> stratified(torch.tensor([0] * 8 + [1] * 2), 5, Stream(0)).shape
    torch.Size([5])
    """
    counts = np.bincount(labels.numpy())
    share = counts * size  # in units of 1 / len(labels) image
    taken = np.maximum(share // len(labels), np.minimum(counts, 1))
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
