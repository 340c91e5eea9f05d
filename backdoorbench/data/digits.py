"""Digits: the 1,797 handwritten digits that come with scikit-learn (UCI, Alpaydin and Kaynak 1998). No download.

8x8 images in 17 grey levels, each pixel repeated into a square of `size` / 8, so that they look and weigh like 32x32
RGB photographs: integer arithmetic, the same bytes everywhere. 1,437 are for training, 360 for testing: a fixed,
stratified split, since the original one by writer is not in the package.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.images import ImageSet
from backdoorbench.data.store import digest, finish, stratified
from backdoorbench.errors import ConfigError, shown
from backdoorbench.streams import Stream

SIDE = 8  # pixels
LEVELS = 16  # the brightest value
TESTED = 360  # images, a fifth
LARGEST = 256  # pixels a side, at which they take a third of a gigabyte


@dataclass(frozen=True)
class Digits(Dataset):
    def load(self, cache: Path) -> Splits:
        if self.root is not None:
            raise ConfigError(
                f"dataset.root is {shown(self.root)}, and digits reads no folder: its images come with scikit-learn. Choose the "
                f"data set that lies there, such as dataset=cifar10 or dataset=folder, or leave dataset.root out."
            )
        if self.size < SIDE or self.size % SIDE:
            raise ConfigError(
                f"dataset.size is {self.size}, but digits repeats each pixel of an {SIDE}x{SIDE} image a whole number "
                f"of times. Give a multiple of {SIDE}, such as 32."
            )
        if self.size > LARGEST:
            raise ConfigError(
                f"dataset.size is {self.size}, but digits holds all its images in memory, {len(self.mean)} bytes a pixel, and "
                f"shows nothing more at that size. Give at most {LARGEST}."
            )
        table = read_table()
        grey = (table[:, :-1].reshape(-1, SIDE, SIDE) * 255 + LEVELS // 2) // LEVELS  # (1797, 8, 8), 0 … 255
        repeats = self.size // SIDE
        pixels = torch.from_numpy(grey.astype(np.uint8).repeat(repeats, 1).repeat(repeats, 2))
        images = pixels[:, None].repeat(1, 3, 1, 1)  # (1797, 3, size, size)
        labels = torch.from_numpy(table[:, -1].copy())
        every = ImageSet(images, labels, tuple(str(digit) for digit in range(10)))
        tested = torch.zeros(len(every), dtype=torch.bool)
        tested[stratified(labels, TESTED, Stream(0).child("digits"))] = True
        train, test = every.subset((~tested).nonzero()[:, 0]), every.subset(tested.nonzero()[:, 0])
        return finish(self, Splits(train, test, digest(train, test)))


def read_table() -> "np.ndarray[Any, np.dtype[np.int64]]":
    """(1797, 65): 64 pixels, 0 … 16, and the digit."""
    package = find_spec("sklearn")
    for folder in package.submodule_search_locations or [] if package else []:
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():  # without scikit-learn's import, which takes two seconds
            return np.loadtxt(path, np.int64, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target]).astype(np.int64)
