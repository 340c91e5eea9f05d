"""GTSRB, the German traffic sign recognition benchmark (Stallkamp et al. 2012): 43 classes, 15 to 250 pixels a side.

Two training sets go by this name and share 12,630 test images: the final release (39,209 images; what the backdoor
literature counts) and the earlier competition archive (26,640; what torchvision fetches). `variant` says which; the
other one is refused, never read in its place. Images are resized to a square, their aspect given up: whole, as the literature
does, or the sign's region of interest alone, as some projects do, whose networks lose 20 points of CA on whole images.
Test labels come from GT-final_test.csv, regions from there and from the GT-*.csv of the training folders.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.pictures import Background, Picture, UnfitError
from backdoorbench.data.raw import (
    Census,
    File,
    Raw,
    Split,
    find_root,
    folders,
    from_files,
    image_files,
    in_order,
    labelled,
    read_table,
    some,
)
from backdoorbench.data.store import Fit, load, stretch
from backdoorbench.errors import DataError, check_range

Box: TypeAlias = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

CLASSES = 43
GRID = 32  # pixels a side, of which `roi` counts some
CENSUS = {"final_release": Census(CLASSES, 39_209, 12_630), "torchvision": Census(CLASSES, 26_640, 12_630)}
TRAINING = {"final_release": "Final_Training/Images", "torchvision": "Training"}
TEST = "Final_Test/Images"
ANSWERS = "GT-final_test.csv"  # beside it lies GT-final_test.test.csv, which has no labels
BASES = ("GTSRB", "gtsrb/GTSRB", ".")  # where below a root the folders of both archives may lie
LAYOUT = f"GTSRB/{TRAINING['final_release']}/<5 digits>/*.ppm, GTSRB/{TEST}/*.ppm and {ANSWERS}"


@dataclass(frozen=True)
class Gtsrb(Dataset):
    """What is read.

    variant  which training set, the final release or the one that torchvision fetches
    roi      whole: the image as it is; crop: the sign's region, as the tables of the archive say; or so many of 32 pixels cut
             away from each side, which comes near that where a table is missing
    """

    variant: Literal["final_release", "torchvision"]
    roi: int | Literal["whole", "crop"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.roi, int):
            check_range("dataset.roi", self.roi, 1, GRID // 2 - 1)

    def load(self, cache: Path) -> Splits:
        root = find_root(self, LAYOUT, lambda folder: any(base_of(folder, variant) for variant in TRAINING))
        base = base_of(root, self.variant)
        if base is None:
            other = next(variant for variant in TRAINING if variant != self.variant)
            raise DataError(
                f"{root} holds the {other} variant of GTSRB ({CENSUS[other].train:,} training images), but "
                f"dataset.variant is {self.variant} ({CENSUS[self.variant].train:,}). Figures over the two do not "
                f"compare. Set dataset.variant={other}, or dataset.root to a folder with the other archive."
            )
        training = base / TRAINING[self.variant]
        classes = in_order([name for name in folders(training) if name.isdecimal() and int(name) < CLASSES])
        train = labelled(base, TRAINING[self.variant], classes).rows
        test = tested(root, base)
        found = Census(len(classes), len(train), len(test))
        if found != CENSUS[self.variant]:
            raise DataError(
                f"{root} holds {found}; the {self.variant} variant of GTSRB has {CENSUS[self.variant]}. The copy is "
                f"incomplete, or of another release: unpack the archives again."
            )
        raw = from_files([f"{int(name):02}" for name in classes], train, test)
        if self.roi == "crop":
            raw = cropped(raw, [regions_of(train, None), regions_of(test, answers_of(root, base))])
        return load(self, cache, root, raw, inset(self.roi) if isinstance(self.roi, int) else stretch, self.variant)


def base_of(root: Path, variant: str) -> Path | None:
    """The folder below `root` in which `variant` has its training images."""
    return next((root / base for base in BASES if (root / base / TRAINING[variant]).is_dir()), None)


def answers_of(root: Path, base: Path) -> Path | None:
    """The table of the test images, wherever it lies."""
    places = [base / TEST, base / "Final_Test", base, base.parent, root]
    return next((place / ANSWERS for place in places if (place / ANSWERS).is_file()), None)


def tested(root: Path, base: Path) -> list[tuple[File, int]]:
    """The test images with the labels of GT-final_test.csv, in its order."""
    images = {Path(file.path).name: file for file in image_files(base, base / TEST).files}
    answers = answers_of(root, base)
    if not images or answers is None:
        lacking = f"no images in {base / TEST}" if not images else f"no {ANSWERS} (the labels of the test images)"
        raise DataError(
            f"{root} has the training images of GTSRB but {lacking}. Unpack GTSRB_Final_Test_Images.zip and "
            f"GTSRB_Final_Test_GT.zip there too."
        )
    try:
        labels = {row["Filename"]: range(CLASSES)[int(row["ClassId"])] for row in read_table(answers, ";")}
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(
            f"{answers} is no table of Filename and ClassId, 0 … {CLASSES - 1}, separated by semicolons. Unpack "
            f"GTSRB_Final_Test_GT.zip again."
        ) from None
    if missing := sorted(labels.keys() ^ images.keys()):
        raise DataError(
            f"{answers} and the images in {base / TEST} do not match: {some(missing)} occur in one of them only. "
            f"Unpack GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip again."
        )
    return [(images[name], label) for name, label in labels.items()]


# -- regions of interest ----------------------------------------------------------------------------------------------


def inset(margin: int) -> Fit:
    """A fit that leaves `margin` of 32 pixels out on each side, whatever the image's own size."""

    def fit(image: Image.Image, size: int) -> Image.Image:
        width, height = image.size
        left, top = width * margin / GRID, height * margin / GRID
        return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, width - left, height - top))

    fit.__name__ = f"inset{margin}"  # a store's key has it
    return fit


def regions_of(rows: Sequence[tuple[File, int]], table: Path | None) -> list[Box]:
    """The region of each image, as `table` has it, or else the one beside the image, which is called after its folder."""
    places = [Path(file.path) for file, _ in rows]
    read = functools.cache(regions)
    found = []
    for place in places:
        own = table or place.parent / f"GT-{place.parent.name}.csv"
        if (box := read(own).get(place.name)) is None:
            raise DataError(
                f"{own} has no region for {place.name}, which dataset.roi=crop cuts out. Unpack the archives again, or set "
                f"dataset.roi=whole, or a number of pixels."
            )
        found.append(box)
    return found


def regions(table: Path) -> Mapping[str, Box]:
    """By file name, left, top, right and bottom: the last two lie just beyond the region."""
    try:
        columns = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")
        found = {row["Filename"]: tuple(int(row[column]) for column in columns) for row in read_table(table, ";")}
    except (OSError, KeyError, TypeError, ValueError):
        raise DataError(
            f"{table} is no table of Filename, Roi.X1, Roi.Y1, Roi.X2 and Roi.Y2, which dataset.roi=crop cuts out. Unpack the "
            f"archives again, or set dataset.roi=whole, or a number of pixels."
        ) from None
    return found  # type: ignore[return-value]


def cropped(raw: Raw, boxes: Sequence[Sequence[Box]]) -> Raw:
    """`raw` with each image cut to its box. boxes: of the training and of the test split"""

    def cut(split: Split, own: Sequence[Box]) -> Split:
        def image(row: int, background: Background) -> Picture:
            picture = split.image(row, background)
            left, top, right, bottom = own[row]
            if not (0 <= left < right <= picture.image.width and 0 <= top < bottom <= picture.image.height):
                raise UnfitError(
                    "have a region of interest that is not within the image",
                    "Unpack the archives again, or set dataset.roi=whole.",
                )
            return picture._replace(image=picture.image.crop(own[row]))

        return replace(split, image=image)

    def read() -> tuple[Sequence[str], Split, Split]:
        classes, *splits = raw.read()
        train, test = (cut(split, own) for split, own in zip(splits, boxes, strict=True))
        return classes, train, test

    return replace(raw, stamps=[*raw.stamps, *(str(box) for own in boxes for box in own)], read=read)
