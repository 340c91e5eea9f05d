"""Tiny ImageNet (Stanford CS231n, 2015): 100,000 + 10,000 photographs of 64x64, 200 classes.

Read as published (train/<WordNet id>/images/, val/images/ with val_annotations.txt) or with val/ sorted into a folder a
class. The published test/ has no labels and stays unread: val/ is the test split, as in the literature. Labels count
the sorted WordNet ids.
"""

from dataclasses import dataclass
from pathlib import Path

from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.raw import (
    Census,
    File,
    Raw,
    find_root,
    find_splits,
    folders,
    from_files,
    image_files,
    is_tree,
    labelled,
    read_table,
    tree,
)
from backdoorbench.data.store import load, stretch
from backdoorbench.errors import DataError

CENSUS = Census(classes=200, train=100_000, test=10_000)
ANNOTATIONS = "val/val_annotations.txt"
LAYOUT = f"train/ with a folder of images a class, and val/ with images/ and {Path(ANNOTATIONS).name} or such folders"


@dataclass(frozen=True)
class TinyImagenet(Dataset):
    def load(self, cache: Path) -> Splits:
        root = find_root(self, LAYOUT, is_tree)
        published = (root / ANNOTATIONS).is_file() and bool(image_files(root, root / "val" / "images").files)
        raw = as_published(self, root) if published else tree(self, root, ("val",), census=CENSUS)
        return load(self, cache, root, raw, stretch)


def as_published(dataset: Dataset, root: Path) -> Raw:
    """The labels of val/ from its table, the classes from train/."""
    find_splits(dataset, root, ("val",))
    classes = folders(root / "train")
    train = labelled(root, "train", classes).rows
    images = {Path(file.path).name: file for file in image_files(root, root / "val" / "images").files}
    label = {name: number for number, name in enumerate(classes)}
    test: list[tuple[File, int]] = []
    for row in read_table(root / ANNOTATIONS, "\t", ("file", "class")):
        if row["file"] not in images or row["class"] not in label:
            raise DataError(
                f"{root / ANNOTATIONS} says that {row['file']} shows {row['class']}, but val/images/ or train/ lacks "
                f"it. Unpack the archive again."
            )
        test.append((images[row["file"]], label[row["class"]]))
    CENSUS.compare(dataset, root, Census(len(classes), len(train), len(test)))
    return from_files(classes, train, test)
