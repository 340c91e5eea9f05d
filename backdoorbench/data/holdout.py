"""The defender's small clean set: how it is drawn, and what it may never touch.

One draw per (data set, size, seed), shared by every defense of a table. Its size is a share of the training set,
also where it is drawn elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from backdoorbench.config.acts import Acts, Only, Unless
from backdoorbench.config.build import Folder
from backdoorbench.data.base import Reading
from backdoorbench.data.images import ImageSet
from backdoorbench.data.store import read_class_folders, stratified
from backdoorbench.errors import DataError, check_range
from backdoorbench.shapes import Labels, Rows
from backdoorbench.streams import Stream


@dataclass(frozen=True)
class Parts:
    """A data set divided.

    train      what the attacker and the victim get
    holdout    what the defender gets; None where the share is 0
    test_rows  (M,) rows of the test split that are evaluated (all of them, unless the holdout was drawn there)
    facts      of a holdout of files of its own, as those of a data set
    """

    train: ImageSet
    holdout: ImageSet | None
    test_rows: Rows
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Holdout:
    """The draw.

    rate    images, as a share of the training set
    source  withheld: from the training set, and removed from it; train_overlap: from the training set, which keeps them
            (BackdoorBench, FST, FMP); test: from the test set, which loses them; folder: `root`, one folder a class
    draw    stratified: class shares as in the source; balanced: equal counts a class; uniform: over all images
    """

    acts: ClassVar[Acts] = {
        "rate": Unless("source", "folder"),
        "draw": Unless("source", "folder"),
        "root": Only("source", "folder"),
    }

    name: str
    rate: float
    source: Literal["withheld", "train_overlap", "test", "folder"]
    draw: Literal["stratified", "balanced", "uniform"]
    root: Folder | None

    def __post_init__(self) -> None:
        check_range("holdout.rate", self.rate, 0, 1)

    @property
    def changes_training(self) -> bool:
        """Whether the victim's training set depends on this draw."""
        return self.source == "withheld"

    def divide(self, train: ImageSet, test: ImageSet, stream: Stream, reading: Reading | None = None) -> Parts:
        """The three parts. Raises DataError where the holdout would hold less than one image a class, or would overlap with the
        images that are evaluated.

        reading  how the data set's files were read: the holdout's own are read alike"""
        everything = torch.arange(len(test))
        if self.source == "folder":
            holdout, facts = self.read(train, reading)
            refuse_overlap(holdout, test)
            return Parts(train, holdout, everything, facts)
        source = test if self.source == "test" else train
        if self.rate == 0:
            return Parts(train, None, everything)
        count = round(self.rate * len(train))
        classes = len(train.classes)
        if count < classes or count >= len(source):
            raise DataError(
                f"holdout.rate={self.rate:g} of {len(train):,} training images is {count}; expected at least one image for "
                f"each of the {classes} classes and fewer than the {len(source):,} images they are drawn from. "
                f"{fitting(classes, len(source) - 1, len(train))}"
            )
        rows = pick(source.labels.cpu(), count, classes, self.draw, stream)
        kept = torch.ones(len(source), dtype=torch.bool)
        kept[rows] = False
        rest = kept.nonzero()[:, 0]
        if self.source == "withheld":
            return Parts(train.subset(rest), train.subset(rows), everything)
        if self.source == "train_overlap":
            return Parts(train, train.subset(rows), everything)
        return Parts(train, test.subset(rows), rest)

    def read(self, train: ImageSet, reading: Reading | None) -> tuple[ImageSet, Mapping[str, Any]]:
        """The images below `root`, a folder for each class of the data set, named as its classes are; and their facts."""
        if self.root is None:
            raise DataError(
                "holdout.source is folder, but holdout.root is null; expected a folder with one sub-folder of clean images "
                "for each class. Set holdout.root=DIR."
            )
        alike = reading._asdict() if reading is not None else {}
        return read_class_folders(Path(self.root).expanduser(), train.classes, train.size, **alike)


def pick(labels: Labels, count: int, classes: int, draw: str, stream: Stream) -> Rows:
    """`count` rows of (N,) labels, in ascending order.

    stratified keeps class shares; balanced takes count // classes of each class, or all it has; uniform ignores classes."""
    if draw == "stratified":
        return stratified(labels, count, stream)
    order = stream.permutation(len(labels))
    if draw == "uniform":
        return order[:count].sort().values
    shuffled = labels[order]
    rows = [order[(shuffled == label).nonzero()[: count // classes, 0]] for label in range(classes)]
    return torch.cat(rows).sort().values


def refuse_overlap(holdout: ImageSet, test: ImageSet) -> None:
    """Raises DataError where an image of the holdout is, byte for byte, an image of the test set."""
    seen = {image.numpy().tobytes() for image in test.images.cpu()}
    shared = sum(image.numpy().tobytes() in seen for image in holdout.images.cpu())
    if shared:
        raise DataError(
            f"{shared} of the {len(holdout)} holdout images are also test images; a defense must not see what it is judged "
            f"by. Remove them from holdout.root, or take holdout.source=test, which removes them from the test set."
        )


def fitting(least: int, most: int, whole: int) -> str:
    """What to do for a holdout of `least` to `most` images, given as a share of `whole`."""
    low, high = ceil4(least / whole), floor4(most / whole)
    if least > most:
        return "No holdout.rate does: give more images, with dataset.train_size or dataset.test_size."
    if low >= high:
        return f"Set holdout.rate={low}, or give more images, with dataset.train_size or dataset.test_size."
    return f"Set holdout.rate between {low} and {high}."


def ceil4(value: float) -> float:
    """Rounded up to four digits after the point, to be typed."""
    return -(-value * 1e4 // 1) / 1e4


def floor4(value: float) -> float:
    """Rounded down to four digits after the point."""
    return value * 1e4 // 1 / 1e4
