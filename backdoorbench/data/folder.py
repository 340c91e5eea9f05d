"""Any images: train/ and test/ (or val/) with a folder of images a class, resized to a square, their aspect given up.

Labels count the sorted folder names; names that are numbers are sorted by value.
"""

from dataclasses import dataclass
from pathlib import Path

from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.raw import find_root, is_tree, tree
from backdoorbench.data.store import load, stretch


@dataclass(frozen=True)
class Folder(Dataset):
    def load(self, cache: Path) -> Splits:
        root = find_root(self, "train/ and test/ with a folder of images a class", is_tree)
        return load(self, cache, root, tree(self, root, ("test", "val")), stretch)
