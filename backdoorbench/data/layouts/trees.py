"""train/ and test/ (or val/) with a folder of images a class."""

from pathlib import Path

from backdoorbench.data.base import Dataset
from backdoorbench.data.raw import Order, Raw, is_tree, tree
from backdoorbench.errors import DataError

SAYS = "train/ and test/ (or val/) with a folder of images a class"
TESTS = ("test", "val")


def fits(root: Path) -> bool:
    return root.is_dir() and is_tree(root)


def read(dataset: Dataset, root: Path, order: Order) -> Raw:
    if (root / "train").is_dir() and not any((root / name).is_dir() for name in TESTS):
        raise DataError(
            f"{root} has train/ but no test/ or val/. {dataset.name} needs a training and a test split, each with a folder of "
            f"images a class. Add the missing one, or set dataset.root={root / 'train'}, of whose images dataset.test_share are "
            f"then drawn for testing."
        )
    return tree(dataset, root, TESTS, order=order)
