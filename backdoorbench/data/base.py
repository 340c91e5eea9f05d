"""What every data set is to the rest: `load(cache) -> Splits`, two uint8 image sets and a digest of their bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backdoorbench.config.build import Place
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.shapes import Mask
from backdoorbench.tensors.augment import Augment

if TYPE_CHECKING:
    from PIL import Image

    from backdoorbench.data.pictures import Background


class Reading(NamedTuple):
    """How image files became the images of a data set.

    fit         an image and the side in pixels that it comes to -> the square
    background  what transparent pixels are laid on"""

    fit: Callable[[Image.Image, int], Image.Image]
    background: Background


LARGEST_SIDE = 4096  # pixels: of what networks read, with some to spare


@dataclass(frozen=True)
class Splits:
    """A data set, read.

    digest  hexadecimal, of every image and label in both splits: two roots that hold the same data share it, and a
            result's key contains it in place of the root
    facts   for the record, of the raw data as a whole, where there is something to say: how many images were `converted`,
            by what they were; how many are `repeated` where they should not be; what was `left_out`, by ending; how many lay in
            `sub_folders` of a class folder; the `layout` and the `test_share` that was drawn; how many training rows are known
            to be `poisoned`
    reading how its files were read, so that other files are read alike; None: it has none
    poisoned  (N,) bool over `train`: rows that somebody poisoned, as the data set says; None: it says nothing. For the record
            alone: no defense and no detector is told
    """

    train: ImageSet
    test: ImageSet
    digest: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    reading: Reading | None = None
    poisoned: Mask | None = None


@dataclass(frozen=True)
class HoldoutTuning:
    """What the size of a data set's holdout, or a paper's column for it, asks of fine-tuning; None: as the method says.

    The settings act through the defenses whose yaml refers to them, and through nothing else."""

    epochs: int | None
    batch_size: int | None
    lr: float | None


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
    target      the class that attacks aim at, unless an attack says otherwise
    tuning      how plain fine-tuning on the holdout goes, where the data set asks for something else than the method
    augment     what training does to an image of this set, unless a recipe says otherwise
    """

    name: str
    root: Place | None
    size: int
    crop: int | None
    train_size: int | None
    test_size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    target: int
    tuning: HoldoutTuning
    augment: Augment

    def __post_init__(self) -> None:
        check_range("dataset.size", self.size, 1, LARGEST_SIDE)
        if self.crop is not None and not 1 <= self.crop <= self.size:
            raise ConfigError(
                f"dataset.crop is {self.crop} with dataset.size={self.size}; the crop is cut out of the stored image, so it has "
                f"1 to {self.size} pixels a side. Change dataset.crop, or raise dataset.size."
            )
        for channel, (mean, deviation) in enumerate(zip(self.mean, self.std, strict=True)):
            check_range(f"dataset.mean[{channel}]", mean, 0, 1)
            check_range(f"dataset.std[{channel}]", deviation, 0.001, 10)  # pixels are divided by it

    @abstractmethod
    def load(self, cache: Path) -> Splits:
        """Both splits on the CPU, memory-mapped from `cache` (decoded there first where they are not yet).

        Raises DataError, naming what is missing, empty or corrupt and what to do."""

    def sizes(self, most: int) -> list[tuple[int, int]]:
        """Width and height of at most so many of the raw pictures, where they may be of any size; none of a published data set,
        whose pictures have the size that it is known for."""
        return []
