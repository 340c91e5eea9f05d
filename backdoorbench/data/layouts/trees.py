"""train/ and test/ (or val/), or whatever else people call these, with a folder of images a class."""

from pathlib import Path

from backdoorbench.data.base import Dataset
from backdoorbench.data.layouts.others import remedy
from backdoorbench.data.pictures import IMAGES
from backdoorbench.data.raw import SPLITS, Order, Raw, folders, has_folders, is_tree, split_folder, split_of, tree
from backdoorbench.errors import DataError, few, join_words

SAYS = "train/ and test/ (or val/) with a folder of images a class"
TESTS = ("test", "val")


def fits(root: Path) -> bool:
    return root.is_dir() and is_tree(root)


def has_classes(root: Path) -> bool:
    """Whether a split there has a folder in it; one that has none may belong to a table, or hold other files."""
    return any(has_folders(root, split_folder(root, split)) for split in SPLITS)


def read(dataset: Dataset, root: Path, order: Order) -> Raw:
    train = split_folder(root, "train")
    tests = [name for split in TESTS if (name := split_folder(root, split)) is not None]
    if train is not None and has_folders(root, train) and not any(has_folders(root, test) for test in tests):
        needs = f"{dataset.name} needs a training and a test split, each with a folder of images a class."
        drawn = f"set dataset.root={root / train}, of whose images dataset.test_share are then drawn for testing."
        if tests:
            there = (
                remedy(root)
                or f"Put each class of {join_words([f'{name}/' for name in tests])} in a folder of its own."
            )
            raise DataError(
                f"{root} has class folders in {train}/, but none in {join_words([f'{name}/' for name in tests], 'or')}. {needs} "
                f"{there} Else {drawn}"
            )
        raise DataError(f"{root} has {train}/ but no test/ or val/. {needs} Add the missing one, or {drawn}")
    if (root / "train").is_dir() and not has_classes(root):
        beside = [name for name in folders(root) if not split_of(name)]
        class_too = f" If train is a class like {few(beside)}, set dataset.layout=classes." if beside else ""
        raise DataError(
            f"{root / 'train'} has no class folders with images (files that end in {', '.join(IMAGES)}). "
            f"{remedy(root) or 'Put each class in a folder of its own there, or correct dataset.root.'}"
            f"{class_too}"
        )
    return tree(dataset, root, TESTS, order=order)
