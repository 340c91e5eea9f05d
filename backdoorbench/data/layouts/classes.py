"""One folder with a folder of images a class and no splits."""

import os
from collections import Counter
from pathlib import Path

from backdoorbench.data.base import Dataset
from backdoorbench.data.pictures import IMAGES
from backdoorbench.data.raw import (
    Order,
    Raw,
    beside,
    folders,
    from_files,
    in_order,
    is_divided,
    is_tree,
    labelled,
    split_of,
)

SAYS = "a folder of images a class, without splits"


def fits(root: Path) -> bool:
    """Whether two folders at least hold images, and `root` is not itself a split, whose folders would look the same, nor has
    splits for folders, in whichever case they are written."""
    if not root.is_dir() or is_tree(root) or (split_of(root.name) and is_divided(root.parent)):
        return False
    if len({split for name in folders(root) if (split := split_of(name))}) > 1:
        return False
    return sum(holds_images(root / name) for name in folders(root)) > 1


def holds_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(IMAGES) and not entry.name.startswith(".") for entry in entries)
    except PermissionError:
        return False


def read(dataset: Dataset, root: Path, order: Order) -> Raw:
    names = in_order(folders(root), order, str(root))
    found = labelled(root, "", names)
    loose = "images in no class folder"
    left_out = found.left_out + Counter({loose: beside(root, ())[loose]})
    return from_files(names, found.rows, [], left_out, found.nested, is_whole=True)
