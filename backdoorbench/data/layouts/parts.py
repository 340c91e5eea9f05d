"""What layouts share: labels made to count from 0, a test split drawn where there is none, names of classes from a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from backdoorbench.data.raw import Order, Raw, Split, in_order, some
from backdoorbench.data.store import stratified
from backdoorbench.errors import DataError, first_line, quantity
from backdoorbench.streams import Stream

Values: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # (N,) labels as they were written: integers or texts


class Coded(NamedTuple):
    """Class names in label order, and labels that count them."""

    classes: list[str]
    train: list[int]
    test: list[int]


# -- labels -----------------------------------------------------------------------------------------------------------


def label_values(raw: Any, where: str) -> Values:
    """(N,) integers or texts, of labels written as (N,), (N, 1) or one-hot (N, K)."""
    values = np.asarray(raw)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.dtype.kind in "biuf" and len(values):
        if not (((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()):
            raise DataError(
                f"{where} has labels of shape {values.shape}, several for an image; expected one of {values.shape[1]} classes "
                f"for each. Give one label for each image, or leave out the images that have several."
            )
        values = values.argmax(1)
    if values.ndim != 1:
        raise DataError(f"{where} has labels of shape {values.shape}; expected one for each image. Correct the labels.")
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            raise DataError(
                f"{where} has labels that are no whole numbers, such as {values.flat[0]}. Correct the labels."
            )
        values = values.astype(np.int64)
    if values.dtype.kind not in "biuUS":
        raise DataError(
            f"{where} has labels of kind {values.dtype}; expected whole numbers or texts. Correct the labels."
        )
    return values.astype(np.str_) if values.dtype.kind in "US" else values.astype(np.int64)


def code(train: Values, test: Values | None, order: Order, where: str, names: Sequence[str] = ()) -> Coded:
    """Labels as numbers that count the classes of the training split. names: of labels that are numbers, where they are told."""
    tested = train[:0] if test is None else test
    if tested.dtype.kind != train.dtype.kind and len(tested):
        raise DataError(f"{where} has numbers as labels of one split and texts of the other. Write both alike.")
    if train.dtype.kind == "U":
        classes = in_order(sorted(set(train.tolist())), order, where, "label")
        own: dict[Any, str] = {name: name for name in classes}
    else:
        numbered = list(names) or [str(label) for label in range(count_classes(train, where))]
        classes = numbered if order == "numeric" else in_order(numbered, order, where, "label")
        own = dict(enumerate(numbered))
        if lacking := [name for label, name in own.items() if not (train == label).any()]:
            raise DataError(
                f"{where} has no training image of {some(lacking)}, of {len(own):,} classes; a class to be told must be trained. "
                f"Add some, or number the labels of the others from 0."
            )
    label_of = {name: label for label, name in enumerate(classes)}
    if len(label_of) < len(classes):
        raise DataError(f"{where} names two classes alike, of {some(classes)}. Rename one of them.")
    if unknown := sorted({str(value) for value in tested.tolist() if value not in own}):
        unsaid = "Labels of -1 stand for none: take that split away, so that one called val is read, or one is drawn."
        raise DataError(
            f"{where} has test images of {some(unknown)}, of which there is none to train on: a class to be tested must be "
            f"trained. {unsaid if '-1' in unknown else 'Remove them.'}"
        )
    return Coded(classes, *([label_of[own[value]] for value in values.tolist()] for values in (train, tested)))


def count_classes(labels: Values, where: str) -> int:
    """K of labels 0 to K - 1; a DataError where they start elsewhere or leave numbers out."""
    if not len(labels):
        raise DataError(f"{where} has no images. Expected some, each with its label.")
    low, high = int(labels.min()), int(labels.max())
    found = np.unique(labels)
    if low != 0 or len(found) != high + 1:
        left = next((number for number in range(high) if number not in found), 0)
        what = f"from {low:,} to {high:,}" if low else f"up to {high:,} without {left:,}"
        remedy = f"Subtract {low:,} of each" if low > 0 and len(found) == high - low + 1 else "Number them anew"
        raise DataError(
            f"{where} has labels {what}; expected 0 to K-1 for K classes, each at least once in training. {remedy}, since a "
            f"network's outputs count from 0."
        )
    return high + 1


# -- a test split -----------------------------------------------------------------------------------------------------


def drawn(raw: Raw, share: float, name: str) -> Raw:
    """`raw` with a share of its images, stratified and the same for every seed of a run, as the test split that it lacks. Rows
    that somebody poisoned stay in training: a test image is clean."""

    def read() -> tuple[Sequence[str], Split, Split]:
        classes, whole, _ = raw.read()
        labels, poisoned = torch.tensor(whole.labels), set(whole.poisoned)
        clean = torch.tensor([row for row in range(len(labels)) if row not in poisoned])
        counts = labels[clean].bincount(minlength=len(classes)) if len(clean) else torch.zeros(len(classes))
        size = round(share * len(labels))
        few = [label for label, count in zip(classes, counts.tolist(), strict=True) if count < 2]
        if few or not len(classes) <= size <= len(clean) - len(classes):
            found = f"{some(few)} has fewer than 2 clean images" if few else f"that is {size:,} images"
            raise DataError(
                f"{name} has no test split, and dataset.test_share={share:g} of {len(labels):,} images cannot be drawn: {found}; "
                f"expected one of each of the {len(classes):,} classes at least, to train on and to test with. Add images, "
                f"change dataset.test_share, or give a test split."
            )
        rows = clean[stratified(labels[clean], size, Stream(0).child("test_share"))].tolist()
        tested = set(rows)
        return classes, whole.take([row for row in range(len(labels)) if row not in tested]), whole.take(rows)

    return replace(
        raw,
        stamps=[*raw.stamps, f"test_share {share}"],
        read=read,
        is_whole=False,
        facts={**raw.facts, "test_share": share},
    )


# -- names of classes -------------------------------------------------------------------------------------------------


def read_names(file: Path) -> list[str]:
    """The names of classes in label order: one a line, or JSON, a list or an object from number to name or name to number."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        said = json.loads(text) if file.suffix == ".json" or text.lstrip()[:1] in ("[", "{") else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"dataset.class_names is {file}, which cannot be read as text or JSON ({first_line(error)}). Write one name a line."
        ) from None
    if isinstance(said, Mapping):
        said = in_numbers(said, file)
    if not isinstance(said, list) or not all(isinstance(name, str | int) for name in said):
        raise DataError(
            f"dataset.class_names is {file}, whose JSON is neither a list of names nor an object of names and numbers. Write one "
            f"name a line."
        )
    names = [name for each in said if (name := str(each).strip())]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(
            f"dataset.class_names is {file}, which has {some(twice)} twice. Give each class a name of its own."
        )
    return names


def in_numbers(said: Mapping[str, Any], file: Path) -> list[Any]:
    """The names of an object, whose keys or values are the labels 0 to K - 1."""
    pairs = said.items() if all(key.isdecimal() for key in said) else [(value, key) for key, value in said.items()]
    try:
        by_label = {int(label): name for label, name in pairs}
    except (TypeError, ValueError):
        by_label = {}
    if sorted(by_label) != list(range(len(said))):
        raise DataError(
            f"dataset.class_names is {file}, an object of {len(said):,} entries that do not number their names 0 to "
            f"{len(said) - 1:,}. Give each label from 0 on one name."
        )
    return [by_label[label] for label in range(len(by_label))]


def named(raw: Raw, names: Sequence[str], file: Path) -> Raw:
    """`raw` with its classes called as, and in the order that, `names` says: the same names in that order, or names for what only
    has numbers."""

    def read() -> tuple[Sequence[str], Split, Split]:
        classes, *splits = raw.read()
        if len(names) != len(classes):
            raise DataError(
                f"dataset.class_names is {file}, which names {quantity(len(names), 'class', 'classes')}, but the data have "
                f"{len(classes):,}: {some(classes)}. Name as many."
            )
        if sorted(names) == sorted(classes):
            place = [names.index(name) for name in classes]
        elif all(name.isdecimal() for name in classes):
            place = list(range(len(classes)))
        else:
            unlike = sorted(set(classes) - set(names))
            raise DataError(
                f"dataset.class_names is {file}, which lacks {some(unlike)}, a class of the data. Spell the names as the data "
                f"do, or leave dataset.class_names out."
            )
        train, test = (replace(split, labels=[place[label] for label in split.labels]) for split in splits)
        return list(names), train, test

    return replace(raw, stamps=[*raw.stamps, f"class_names {json.dumps(list(names))}"], read=read)
