"""A csv or tsv table of paths and labels, or one a split: train.csv and test.csv, or one in train/ and one in test/.

Paths are those below the table's folder, below a folder there or, where each split has its table, below theirs, perhaps
without the images' endings, as identifiers are. Where no column says the split of an image, train/ and test/ at the start of
all paths do.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from backdoorbench.data.base import Dataset
from backdoorbench.data.pictures import IMAGES
from backdoorbench.data.raw import File, Order, Raw, folders, from_files, in_order, some, split_of, stamp
from backdoorbench.errors import DataError, first_line, join_words, quantity

SAYS = "a .csv or .tsv table of paths and labels"
ENDINGS = (".csv", ".tsv")
DELIMITERS = ",;\t|"
PATHS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "img_path",
    "name",
    "id",
    "image_id",
    "id_code",
)
LABELS = ("label", "labels", "class", "class_name", "classid", "class_id", "target", "category", "y")
SPLITS = ("split", "set", "subset", "partition", "fold")


class Row(NamedTuple):
    """A line of a table. split: as it is written, in lower case; empty where no column says one."""

    path: str
    label: str
    split: str


def fits(root: Path) -> bool:
    return bool(find(root))


def find(root: Path) -> list[Path]:
    """The tables to read: `root` itself, the only one in it, those called train and test, or those in folders so called."""
    if root.is_file():
        return [root] if root.suffix.lower() in ENDINGS else []
    inside = tables_in(root)
    if len(inside) == 1:
        return inside
    by_split = {split: path for path in inside if (split := split_of(path.stem))}
    if not inside:
        below = {split: tables_in(root / name) for name in folders(root) if (split := split_of(name))}
        by_split = {split: tables[0] for split, tables in below.items() if len(tables) == 1}
    if "train" not in by_split:
        return []
    return [by_split["train"], *([test] if (test := by_split.get("test") or by_split.get("val")) else [])]


def tables_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith("."))


def read(dataset: Dataset, root: Path, order: Order) -> Raw:
    tables = find(root)
    if not tables:
        raise DataError(f"{root} has no {' or '.join(ENDINGS)} table, or several. Set dataset.root to the one to read.")
    folder = root if root.is_dir() else root.parent
    lines = [rows(path) for path in tables]
    if len(tables) == 2:
        parts = [
            [row._replace(split=split) for row in found] for split, found in zip(("train", "test"), lines, strict=True)
        ]
        lines = [[*parts[0], *parts[1]]]
    train, test, left_out = divided(lines[0], tables[0])
    found = [files(folder, part, table) for part, table in ((train, tables[0]), (test, tables[-1]))]
    refuse_twice([*train, *test], [*found[0], *found[1]], tables[0])
    trained = {row.label for row in train}
    if unknown := sorted({row.label for row in test} - trained):
        raise DataError(
            f"{tables[-1]} has test images of {some(unknown)}, of which there is none to train on: a class to be tested must be "
            f"trained. Remove them, or correct their labels."
        )
    classes = in_order(sorted(trained), order, str(tables[0]), "label")
    label_of = {name: label for label, name in enumerate(classes)}
    located = [
        [(file, label_of[row.label]) for row, file in zip(part, those, strict=True)]
        for part, those in zip((train, test), found, strict=True)
    ]
    raw = from_files(classes, located[0], located[1], left_out, is_whole=not test)
    return replace(raw, stamps=[*raw.stamps, f"classes {json.dumps(classes)}"])  # which no path of an image says


def rows(table: Path) -> list[Row]:
    """The lines of a table, whose delimiter and columns are found."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            delimiter = max(DELIMITERS, key=file.readline().count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
            lines = list(reader)
            columns = [name for name in reader.fieldnames or () if name]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table} cannot be read as a table ({first_line(error)}). Save it as UTF-8 text, one image a line."
        ) from None
    path, label = (column(columns, names, table, lines, what) for names, what in ((PATHS, "paths"), (LABELS, "labels")))
    split = next((name for name in columns if name.strip().lower() in SPLITS), None)
    found = [
        Row(
            (line[path] or "").strip(),
            (line[label] or "").strip(),
            ((line[split] or "") if split else "").strip().lower(),
        )
        for line in lines
    ]
    if bad := [number for number, row in enumerate(found, 2) if not (row.path and row.label)]:
        raise DataError(
            f"{table} has {quantity(len(bad), 'line')} without a path or a label, such as line {bad[0]}. "
            "Complete them, or leave them out."
        )
    if not found:
        raise DataError(f"{table} has no lines below its header. Expected one for each image.")
    return found


def column(
    columns: Sequence[str], names: Sequence[str], table: Path, lines: Sequence[Mapping[str, str]], what: str
) -> str:
    """The column that is called by the first of `names` that is there."""
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    if (found := next((by_name[name] for name in names if name in by_name), None)) is None:
        raise DataError(
            f"{table} has the columns {some(list(columns), 6) or 'of an empty file'}, of which none is of {what}; "
            f"expected one called {', '.join(names[:4])} or the like. Name the columns in its first line, such as path,label."
        )
    return found


def divided(lines: Sequence[Row], table: Path) -> tuple[list[Row], list[Row], Counter[str]]:
    """Training and test rows, and how many are left out: of val where there is a test split."""
    if not any(row.split for row in lines):
        first = [split_of(os.path.normpath(row.path).partition(os.sep)[0]) for row in lines]
        if not all(first) or len(set(first)) == 1 or "train" not in first:
            return list(lines), [], Counter()
        lines = [row._replace(split=split) for row, split in zip(lines, first, strict=True)]
    parts: dict[str, list[Row]] = {"train": [], "test": [], "val": []}
    for row in lines:
        if not (split := split_of(row.split)):
            raise DataError(
                f"{table} has a line of the split '{row.split}' ({row.path}); expected train, test or val. Correct it, or remove "
                f"that column to have a test split drawn."
            )
        parts[split].append(row)
    if not parts["train"]:
        raise DataError(f"{table} has no line of the split train. Expected some to train on.")
    test = parts["test"] or parts["val"]
    return parts["train"], test, Counter({"rows of val": len(parts["val"]) if parts["test"] else 0})


def refuse_twice(lines: Sequence[Row], found: Sequence[File], table: Path) -> None:
    """Raises DataError where an image is named twice: with two labels, or to train on and to test with.

    found  of each row its file: images of two splits may be called the same in their folders"""
    first: dict[str, Row] = {}
    named = [(os.path.normpath(file.path), row) for file, row in zip(found, lines, strict=True)]
    if twice := [(place, row) for place, row in named if first.setdefault(place, row) is not row]:
        place, row = twice[0]
        how = f" as '{first[place].label}' and as '{row.label}'" if first[place].label != row.label else ""
        raise DataError(
            f"{table} names {quantity(len(twice), 'image')} twice, such as {row.path}{how}. Leave one of each two out."
        )


def located(folder: Path, lines: Sequence[Row], table: Path) -> tuple[Path, str]:
    """What the paths of a split are below, the table's folder, one in it, or one of `folder` where the table lies deeper; and the
    ending that they lack.

    Where folders of several splits have images of that name, the split that the rows or the table's name say counts."""
    path, own = lines[0].path, table.parent
    places = dict.fromkeys(each for near in (own, folder) for each in (near, *(near / name for name in folders(near))))
    found = [(place, end) for end in ("", *IMAGES) for place in places if (place / f"{path}{end}").is_file()]
    if not found or found[0] == (own, ""):
        return own, ""
    said = split_of(lines[0].split) or table.stem.lower()
    meant = [each for each in found if (split := split_of(each[0].name)) and said.startswith(split)]
    if len(found) > 1 and len(meant) != 1:
        places_of = join_words([f"'{(place / f'{path}{end}').relative_to(folder)}'" for place, end in found[:3]], "or")
        raise DataError(
            f"{table} names '{path}', which may be {places_of}. Write the paths of its images with their folders and endings."
        )
    return (meant if len(found) > 1 else found)[0]


def files(folder: Path, lines: Sequence[Row], table: Path) -> list[File]:
    found, missing = [], []
    base, end = located(folder, lines, table) if lines else (folder, "")
    others = [other for other in IMAGES if end and other != end]  # of identifiers, whose images may end in several ways
    for row in lines:
        likely = (base / f"{row.path}{end}", table.parent / row.path, *(base / f"{row.path}{each}" for each in others))
        place = next((place for place in likely if place.is_file()), None)
        if place is None:
            missing.append(row.path)
        else:
            found.append(File(str(place), stamp(os.path.relpath(place, folder), os.stat(place))))
    if missing:
        raise DataError(
            f"{table} names {len(missing):,} of {quantity(len(lines), 'image')} that are not there: {some(missing)}. "
            f"Paths are those below {table.parent}, or absolute. Correct them, or put the images there."
        )
    if unlike := [file.path for file in found if not file.path.lower().endswith(IMAGES)]:
        raise DataError(
            f"{table} names {quantity(len(unlike), 'file')} without an image's ending, such as '{unlike[0]}'. Leave them out."
        )
    return found
