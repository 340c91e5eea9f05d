"""Parquet files as the Hugging Face hub writes them: a column of images, {bytes, path} or bytes alone, and one of labels."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdoorbench.data.base import Dataset
from backdoorbench.data.layouts.parts import code, label_values
from backdoorbench.data.pictures import UnfitError, open_image
from backdoorbench.data.raw import SPLITS, Order, Raw, Split, folders, some, split_of, stamp
from backdoorbench.errors import DataError, first_line, quantity

SAYS = "parquet files with a column of images and one of labels"
IMAGES = ("image", "img", "images", "picture", "pixel_values", "jpg", "png")
PATHS = (  # what is wrong with such images, and what to do
    "are paths, without the images themselves, as to_parquet of datasets writes them of image files",
    "Put the images into the file: DATASET.save_to_disk(FOLDER), then datasets.load_from_disk(FOLDER).to_parquet(FILE); or write "
    "the paths and labels as a .csv table, which is read.",
)
NUMBERS = (
    "are lists of numbers, not image files",
    "Store them as image files (in datasets: the feature Image()), or as arrays, by numpy.savez.",
)
LABELS = ("label", "labels", "class", "target", "fine_label", "cls")


def fits(root: Path) -> bool:
    return bool(find(root))


def find(root: Path) -> list[Path]:
    """The files: `root` itself, those in it, or those in the folders there."""
    if root.is_file():
        return [root] if root.suffix.lower() == ".parquet" else []
    return sorted(root.glob("*.parquet")) or sorted(
        file for name in folders(root) for file in (root / name).glob("*.parquet")
    )


def read(dataset: Dataset, root: Path, order: Order) -> Raw:
    found = find(root)
    by_split = divided(found, root)
    train, test = by_split["train"], by_split["test"] or by_split["val"]
    if not train:
        raise DataError(
            f"{root} has parquet files of the test split alone ({some([file.name for file in found])}). Add train-*.parquet."
        )
    pyarrow()

    def splits() -> tuple[Sequence[str], Split, Split]:
        tables = [loaded(files) if files else None for files in (train, test)]
        labels = [None if table is None else label_values(table.labels, table.where) for table in tables]
        first, second = tables
        assert first is not None and labels[0] is not None
        coded = code(labels[0], labels[1], order, first.where, first.names)
        trained = first.split(coded.train)
        return coded.classes, trained, trained.take([]) if second is None else second.split(coded.test)

    left_out = {
        f"parquet files of {what}": len(files)
        for what, files in (("val", by_split["val"] if by_split["test"] else []), ("no split", by_split[""]))
        if files
    }
    stamps = [*(stamp(str(file.relative_to(root.parent)), os.stat(file)) for file in found), f"order {order}"]
    return Raw(stamps, splits, left_out, is_whole=not test)


def divided(found: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """The files of each split, as their names or those of their folders say: all of them to train on where none says so, else the
    rest apart, such as the further images of SVHN. DataError where they are of several data sets."""
    sets = sorted({file.parent.name for file in found if file.parent != root and not split_of(file.parent.name)})
    if len(sets) > 1:
        raise DataError(
            f"{root} has parquet files of several data sets, in {some(sets, 6)}; expected one. Say which: "
            f"dataset.root={root / sets[0]}, or another of these."
        )
    by_split: dict[str, list[Path]] = {split: [] for split in ("", *SPLITS)}
    for file in found:
        words = [*re.split(r"[-_.]", file.stem), file.parent.name]
        by_split[next(filter(None, map(split_of, words)), "")].append(file)
    if not any(by_split[split] for split in SPLITS):
        by_split["train"], by_split[""] = by_split[""], []
    return by_split


def pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "reading parquet files needs pyarrow, which is not installed. Install bdx with its extra `parquet`: pip install "
            "'bdx[parquet]', or pip install pyarrow."
        ) from None
    return pyarrow


class Table:
    """The two columns of a split's files.

    names  of the classes, in the order of their numbers; empty where the files do not tell"""

    def __init__(self, files: Sequence[Path], images: Any, labels: Any, names: Sequence[str]) -> None:
        self.where, self.images, self.labels, self.names = str(files[0]), images, labels, names

    def split(self, labels: Sequence[int]) -> Split:
        def content(row: int) -> bytes:
            value = self.images[row].as_py()
            found = value.get("bytes") if isinstance(value, dict) else value
            if isinstance(value, str) or (isinstance(value, dict) and not found and value.get("path")):
                raise UnfitError(*PATHS)
            if isinstance(found, list):
                raise UnfitError(*NUMBERS)
            if not found:
                raise ValueError("it is empty")
            return bytes(found)

        names = [f"image {row} of {self.where}" for row in range(len(labels))]
        return Split(names, labels, lambda row, background: open_image(content(row), background))


def loaded(files: Sequence[Path]) -> Table:
    """The columns of images and labels, of all files one after another."""
    arrow = pyarrow()
    try:
        schema = arrow.parquet.read_schema(files[0])
        features = told(schema)
        image = chosen(schema.names, IMAGES, "image", features, files[0], "images")
        label = chosen(schema.names, LABELS, "classlabel", features, files[0], "labels")
        parts = [arrow.parquet.read_table(file, columns=[image, label]) for file in files]
        whole = arrow.concat_tables(parts)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(
            f"{files[0]} and its like cannot be read as parquet ({first_line(error)}). Copy them again."
        ) from None
    labels = whole.column(label)
    if labels.null_count:
        raise DataError(f"{files[0]} has {quantity(labels.null_count, 'image')} without a label. Leave them out.")
    names = features.get(label, {}).get("names", [])
    return Table(files, whole.column(image), labels.to_pylist(), names if isinstance(names, list) else [])


def told(schema: Any) -> dict[str, Any]:
    """What the hub's writer says of the columns, by name; nothing where another wrote the file."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in said.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def chosen(
    columns: Sequence[str], names: Sequence[str], kind: str, features: dict[str, Any], file: Path, what: str
) -> str:
    """The column of a kind that the hub's writer knows, or that is called so; DataError where none is, or two may be."""
    typed = [name for name in columns if str(features.get(name, {}).get("_type", "")).lower() == kind]
    called = [name for name in names if name in columns]
    found = typed if len(typed) == 1 else [name for name in called if name in (typed or called)][:1]
    if not found:
        raise DataError(
            f"{file} has the columns {some(list(columns), 6)}, of which none is of {what}; expected one called "
            f"{', '.join(names[:3])} or the like. Rename it."
        )
    return found[0]
