"""Any images: train/ and test/ (or val/) with a folder of images a class, resized to a square, their aspect given up.

Labels count the folder names, by default sorted; names that are numbers are sorted by value.
"""

from dataclasses import dataclass
from pathlib import Path

from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.pictures import Background
from backdoorbench.data.raw import Order, find_root, is_tree, tree
from backdoorbench.data.store import load, stretch


@dataclass(frozen=True)
class Folder(Dataset):
    """Both act on images and labels, of which the data set's digest is made: a key needs neither.

    order       of the classes: numeric (by value where all names are numbers, else as text), text, or a list of all names
    background  what transparent pixels are laid on; refuse: an image that has some is an error
    """

    order: Order
    background: Background

    def load(self, cache: Path) -> Splits:
        root = find_root(self, "train/ and test/ with a folder of images a class", is_tree)
        return load(
            self, cache, root, tree(self, root, ("test", "val"), order=self.order), stretch, background=self.background
        )
