"""The defender's small clean set: how it is drawn, and what it may never touch.

One draw per (data set, size, seed), shared by every defense of a table. Its size is so many images a class, or a share of
the training set, also where it is drawn elsewhere. Its kind bears on every figure: purifiers swing by whether its images were
reserved, seen in training, or foreign (arXiv 2502.07231).
"""

import dataclasses
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
from backdoorbench.errors import DataError, check_range, quantity
from backdoorbench.shapes import Labels, Mask, Rows
from backdoorbench.streams import Stream


@dataclass(frozen=True)
class Parts:
    """A data set divided.

    train      what the attacker and the victim get
    holdout    what the defender gets; None where the share is 0
    test_rows  (M,) rows of the test split that are evaluated (all of them, unless the holdout was drawn there)
    validation what the defense does not get of the defender's images: its settings are chosen by them; None where it gets all
    facts      of a holdout of files of its own, as those of a data set
    poisoned   (N,) bool over `train`, of a data set that says which rows somebody poisoned; None where it does not
    """

    train: ImageSet
    holdout: ImageSet | None
    test_rows: Rows
    facts: Mapping[str, Any] = field(default_factory=dict)
    poisoned: Mask | None = None
    validation: ImageSet | None = None

    def describe(self) -> dict[str, int]:
        """How many images the defense gets, of all classes, of the class with fewest and of that with most."""
        if self.holdout is None:
            return {"images": 0}
        counts = self.holdout.labels.cpu().bincount(minlength=len(self.holdout.classes))
        kept = {} if self.validation is None else {"validation": len(self.validation)}
        return {"images": len(self.holdout), "fewest": int(counts.min()), "most": int(counts.max())} | kept


@dataclass(frozen=True)
class Holdout:
    """The draw.

    kind       reserved: images that the infected model never sees, one of each class at least being left; seen: of those that
               it is trained on too, in the training set's clean version, so that the clean original of a poisoned row may be
               among them (BackdoorBench, FST, FMP); foreign: images from elsewhere, all below `root`
    split      of reserved images: the split that they are taken out of, train or test
    rate       images, as a share of the training set
    per_class  images of each class, in place of a share
    draw       of a share: stratified: class shares as in the split; balanced: equal counts a class; uniform: over all images
    root       of foreign images: a folder with one sub-folder for each class
    validate   of all these images the share that the defense does not get, class shares kept: its settings are chosen by them
    """

    acts: ClassVar[Acts] = {
        "split": Only("kind", "reserved"),
        "rate": (Unless("kind", "foreign"), Only("per_class", None)),
        "per_class": Unless("kind", "foreign"),
        "draw": (Unless("kind", "foreign"), Only("per_class", None)),
        "root": Only("kind", "foreign"),
    }

    name: str
    kind: Literal["reserved", "seen", "foreign"]
    split: Literal["train", "test"]
    rate: float
    per_class: int | None
    draw: Literal["stratified", "balanced", "uniform"]
    root: Folder | None
    validate: float

    def __post_init__(self) -> None:
        check_range("holdout.rate", self.rate, 0, 1)
        check_range("holdout.validate", self.validate, 0, 1)
        if self.per_class is not None:
            check_range("holdout.per_class", self.per_class, 1)

    @property
    def changes_training(self) -> bool:
        """Whether the victim's training set depends on this draw."""
        return self.kind == "reserved" and self.split == "train"

    @property
    def is_empty(self) -> bool:
        """Whether the defender gets no image."""
        return self.kind != "foreign" and self.per_class is None and self.rate == 0

    def divide(
        self,
        train: ImageSet,
        test: ImageSet,
        stream: Stream,
        reading: Reading | None = None,
        poisoned: Mask | None = None,
    ) -> Parts:
        """The parts, as `draw_parts` makes them, and of the defender's images those that the defense does not get."""
        parts = self.draw_parts(train, test, stream, reading, poisoned)
        if parts.holdout is None or not self.validate:
            return parts
        holdout, validation = self.keep_back(parts.holdout, stream.child("validate"))
        return dataclasses.replace(parts, holdout=holdout, validation=validation)

    def keep_back(self, images: ImageSet, stream: Stream) -> tuple[ImageSet, ImageSet]:
        """What the defense gets of the defender's images, and what is kept for validation; DataError where one is too small."""
        classes, count = len(images.classes), round(self.validate * len(images))
        if count < 1 or len(images) - count < classes:
            raise DataError(
                f"holdout.validate={self.validate:g} keeps {count:,} of {quantity(len(images), 'holdout image')} from the "
                f"defense; expected one at least, and one for each of the {classes} classes left to it. "
                f"Change holdout.validate, or give a larger holdout with holdout.rate or holdout.per_class."
            )
        rows = stratified(images.labels.cpu(), len(images) - count, stream)
        kept = torch.ones(len(images), dtype=torch.bool)
        kept[rows] = False
        return images.subset(rows), images.subset(kept.nonzero()[:, 0])

    def draw_parts(
        self, train: ImageSet, test: ImageSet, stream: Stream, reading: Reading | None, poisoned: Mask | None
    ) -> Parts:
        """The three parts, validation apart. Raises DataError where the holdout would hold less than one image a class, or would
        overlap with the images that are evaluated.

        reading   how the data set's files were read: the holdout's own are read alike
        poisoned  (N,) bool: training rows that are known to be poisoned, none of which is drawn: a holdout is clean"""
        everything = torch.arange(len(test))
        if self.kind == "foreign":
            holdout, facts = self.read(train, reading)
            refuse_overlap(holdout, train, test)
            return Parts(train, holdout, everything, facts, poisoned)
        if self.is_empty:
            return Parts(train, None, everything, poisoned=poisoned)
        is_of_test = self.kind == "reserved" and self.split == "test"
        source = test if is_of_test else train
        if poisoned is None or is_of_test:
            rows = self.choose(source, len(train), "test" if is_of_test else "training", stream)
        else:
            clean = (~poisoned).nonzero()[:, 0]
            rows = clean[self.choose(clean_part(train, clean), len(train), "clean training", stream)]
        if self.kind == "seen":
            return Parts(train, train.subset(rows), everything, poisoned=poisoned)
        kept = torch.ones(len(source), dtype=torch.bool)
        kept[rows] = False
        rest = kept.nonzero()[:, 0]
        self.refuse_emptied(source, rest, "test" if is_of_test else "training")
        if is_of_test:
            return Parts(train, test.subset(rows), rest, poisoned=poisoned)
        left = None if poisoned is None else poisoned[rest]
        return Parts(train.subset(rest), train.subset(rows), everything, poisoned=left)

    def choose(self, source: ImageSet, whole: int, called: str, stream: Stream) -> Rows:
        """The rows of `source` that the defender gets, in ascending order; DataError where it has too few.

        whole  images of the training set, of which the rate is a share; called: the split that `source` is"""
        labels, classes = source.labels.cpu(), len(source.classes)
        if self.per_class is not None:
            self.refuse_small_classes(source, called)
            return pick(labels, self.per_class * classes, classes, "balanced", stream)
        count, most = round(self.rate * whole), len(source) - (self.kind == "reserved")
        if not classes <= count <= most:
            bound = "fewer than" if self.kind == "reserved" else "at most"
            raise DataError(
                f"holdout.rate={self.rate:g} of {whole:,} training images is {count}; expected at least one image for "
                f"each of the {classes} classes and {bound} the {len(source):,} images they are drawn from. "
                f"{fitting(classes, most, whole)}"
            )
        return pick(labels, count, classes, self.draw, stream)

    def refuse_emptied(self, source: ImageSet, rest: Rows, called: str) -> None:
        """Raises DataError where a class of `source` has no image among the `rest` (M,) that the draw leaves: the victim would
        not learn it, or no figure would count it."""
        before = source.labels.cpu().bincount(minlength=len(source.classes))
        emptied = (before > 0) & (source.labels.cpu()[rest].bincount(minlength=len(source.classes)) == 0)
        if emptied.any():
            label, others = int(emptied.int().argmax()), int(emptied.sum()) - 1
            images = int(before[label])
            taken = f"the only {called} image" if images == 1 else f"all {images:,} {called} images"
            more = f", and all of {quantity(others, 'other class', 'other classes')}" if others else ""
            instead = "holdout.split=train" if called == "test" else "holdout.kind=seen, which takes nothing away"
            raise DataError(
                f"holdout.rate={self.rate:g} takes {taken} of class {label} ('{source.classes[label]}'){more}; expected one of "
                f"each class at least to be left. {'Lower holdout.rate, g' if images > 1 else 'G'}ive that class more images, or "
                f"take {instead}."
            )

    def refuse_small_classes(self, source: ImageSet, called: str) -> None:
        """Raises DataError where a class has too few images for `per_class`: reserved ones must leave one at least."""
        assert self.per_class is not None
        left = int(self.kind == "reserved")
        counts = source.labels.cpu().bincount(minlength=len(source.classes))
        least = int(counts.min())
        if least < self.per_class + left:
            label = int(counts.argmin())
            few = int((counts < self.per_class + left).sum())
            more = f", the fewest of {few} such classes" if few > 1 else ""
            rest = ", of which one at least must be left" if left else ""
            most = least - left
            remedy = f"Set holdout.per_class={most} or less" if most >= 1 else "Leave holdout.per_class out"
            raise DataError(
                f"holdout.per_class={self.per_class} asks for {quantity(self.per_class, 'image')} of each class, but class "
                f"{label} ('{source.classes[label]}') has {least:,} {called} images{rest}{more}. {remedy}, say how many with "
                f"holdout.rate, a share of all images, or give more images, with "
                f"dataset.{'test' if called == 'test' else 'train'}_size."
            )

    def read(self, train: ImageSet, reading: Reading | None) -> tuple[ImageSet, Mapping[str, Any]]:
        """The images below `root`, a folder for each class of the data set, named as its classes are; and their facts."""
        if self.root is None:
            raise DataError(
                "holdout.kind is foreign, but holdout.root is null; expected a folder with one sub-folder of clean images "
                "for each class. Set holdout.root=DIR."
            )
        alike = reading._asdict() if reading is not None else {}
        return read_class_folders(Path(self.root).expanduser(), train.classes, train.size, **alike)


def clean_part(train: ImageSet, clean: Rows) -> ImageSet:
    """The images at `clean` (M,), which are those that nobody poisoned; DataError where a class has none."""
    part = train.subset(clean)
    if (bare := part.counts().cpu() == 0).any():
        name = train.classes[int(bare.int().argmax())]
        raise DataError(
            f"all training images of '{name}' are poisoned, as the data set says; a holdout is clean and has one image of each "
            f"class at least. Take holdout.kind=foreign or holdout.split=test."
        )
    return part


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


def refuse_overlap(holdout: ImageSet, train: ImageSet, test: ImageSet) -> None:
    """Raises DataError where an image of a foreign holdout is, byte for byte, one that is evaluated or trained on."""
    if shared := common(holdout, test):
        raise DataError(
            f"{shared} of the {len(holdout)} holdout images are also test images; a defense must not see what it is judged "
            f"by. Remove them from holdout.root, or take holdout.kind=reserved holdout.split=test, whose images leave the test "
            f"set."
        )
    if shared := common(holdout, train):
        raise DataError(
            f"{shared} of the {len(holdout)} holdout images are also training images, so that holdout.kind=foreign would be "
            f"said of images that the infected model is trained on. Remove them from holdout.root, or take holdout.kind=seen, "
            f"which draws from the training set."
        )


def common(holdout: ImageSet, other: ImageSet) -> int:
    """How many of the holdout's images are, byte for byte, among those of another set."""
    held = [image.numpy().tobytes() for image in holdout.images.cpu()]
    wanted = set(held)
    met = {data for image in other.images.cpu() if (data := image.numpy().tobytes()) in wanted}
    return sum(data in met for data in held)


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
