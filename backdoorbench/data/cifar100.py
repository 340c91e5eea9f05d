"""CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 photographs of 32x32, 100 classes (the fine labels).

Read from the official archive's Python version (checksums compared; fetched where dataset.root is empty), or from
train/ and test/ with a folder of images a class: the class names in alphabetical order are the official labels.
"""

from dataclasses import dataclass
from pathlib import Path

from backdoorbench.data.archive import Archive
from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.raw import Census

ARCHIVE = Archive(
    kind="CIFAR100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    census=Census(classes=100, train=50_000, test=10_000),
)


@dataclass(frozen=True)
class Cifar100(Dataset):
    """download: fetch the archive (169 MB) where dataset.root is missing or empty."""

    download: bool

    def load(self, cache: Path) -> Splits:
        return ARCHIVE.load(self, cache, self.download)
