"""What every data set is to the rest: `load(cache) -> Splits`, two uint8 image sets and a digest of their bytes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from backdoorbench.data.images import ImageSet
from backdoorbench.tensors.augment import Augment


@dataclass(frozen=True)
class Splits:
    """A data set, read.

    digest  hexadecimal, of every image and label in both splits: two roots that hold the same data share it, and a
            result's key contains it in place of the root
    """

    train: ImageSet
    test: ImageSet
    digest: str


@dataclass(frozen=True)
class Dataset(ABC):
    """The knobs every data set has; each file beside this one adds its own.

    name        as tables and keys print it
    root        folder of the raw data; null where they come with a package
    size        side in pixels of the stored images
    crop        side in pixels of what the network sees (a centre crop at test time); null: `size`
    train_size  images to draw from the training split, stratified; null: all
    test_size   the same of the test split
    mean, std   per channel, of images in [0, 1]; the network's first layer normalises with them
    augment     what training does to an image of this set, unless a recipe says otherwise
    """

    name: str
    root: str | None
    size: int
    crop: int | None
    train_size: int | None
    test_size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augment: Augment

    @abstractmethod
    def load(self, cache: Path) -> Splits:
        """Both splits on the CPU, memory-mapped from `cache` (decoded there first where they are not yet).

        Raises DataError, naming what is missing, empty or corrupt and what to do."""
