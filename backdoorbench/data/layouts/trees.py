"""train/ and test/ (or val/) with a folder of images a class."""

from pathlib import Path

from backdoorbench.data.base import Dataset
from backdoorbench.data.layouts.others import remedy
from backdoorbench.data.pictures import IMAGES
from backdoorbench.data.raw import Order, Raw, folders, is_tree, tree
from backdoorbench.errors import DataError, few

SAYS = "train/ and test/ (or val/) with a folder of images a class"
TESTS = ("test", "val")


def fits(root: Path) -> bool:
    return root.is_dir() and is_tree(root)


def has_classes(root: Path) -> bool:
    """Whether a split there has a folder in it; one that has none may belong to a table, or hold other files."""
    return any(folders(root / name) for name in ("train", *TESTS) if (root / name).is_dir())


def read(dataset: Dataset, root: Path, order: Order) -> Raw:
    if has_classes(root) and (root / "train").is_dir() and not any((root / name).is_dir() for name in TESTS):
        raise DataError(
            f"{root} has train/ but no test/ or val/. {dataset.name} needs a training and a test split, each with a folder of "
            f"images a class. Add the missing one, or set dataset.root={root / 'train'}, of whose images dataset.test_share are "
            f"then drawn for testing."
        )
    if (root / "train").is_dir() and not has_classes(root):
        beside = [name for name in folders(root) if name not in ("train", *TESTS)]
        class_too = f" If train is a class like {few(beside)}, set dataset.layout=classes." if beside else ""
        raise DataError(
            f"{root / 'train'} has no class folders with images (files that end in {', '.join(IMAGES)}). "
            f"{remedy(root) or 'Put each class in a folder of its own there, or correct dataset.root.'}"
            f"{class_too}"
        )
    return tree(dataset, root, TESTS, order=order)
