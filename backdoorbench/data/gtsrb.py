"""GTSRB, the German traffic sign recognition benchmark (Stallkamp et al. 2012): 43 classes, 15 to 250 pixels a side.

Two training sets go by this name and share 12,630 test images: the final release (39,209 images; what the backdoor
literature counts) and the earlier competition archive (26,640; what torchvision fetches). `variant` says which; the
other one is refused, never read in its place. Images are resized to a square, their aspect given up, region of
interest unused: as the literature does. Test labels come from GT-final_test.csv.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.raw import (
    Census,
    File,
    find_root,
    folders,
    from_files,
    image_files,
    in_order,
    labelled,
    read_table,
    some,
)
from backdoorbench.data.store import load, stretch
from backdoorbench.errors import DataError

CLASSES = 43
CENSUS = {"final_release": Census(CLASSES, 39_209, 12_630), "torchvision": Census(CLASSES, 26_640, 12_630)}
TRAINING = {"final_release": "Final_Training/Images", "torchvision": "Training"}
TEST = "Final_Test/Images"
ANSWERS = "GT-final_test.csv"  # beside it lies GT-final_test.test.csv, which has no labels
BASES = ("GTSRB", "gtsrb/GTSRB", ".")  # where below a root the folders of both archives may lie
LAYOUT = f"GTSRB/{TRAINING['final_release']}/<5 digits>/*.ppm, GTSRB/{TEST}/*.ppm and {ANSWERS}"


@dataclass(frozen=True)
class Gtsrb(Dataset):
    """variant: which training set, the final release or the one that torchvision fetches."""

    variant: Literal["final_release", "torchvision"]

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
        return load(self, cache, root, raw, stretch, self.variant)


def base_of(root: Path, variant: str) -> Path | None:
    """The folder below `root` in which `variant` has its training images."""
    return next((root / base for base in BASES if (root / base / TRAINING[variant]).is_dir()), None)


def tested(root: Path, base: Path) -> list[tuple[File, int]]:
    """The test images with the labels of GT-final_test.csv, in its order."""
    images = {Path(file.path).name: file for file in image_files(base, base / TEST).files}
    places = [base / TEST, base / "Final_Test", base, base.parent, root]
    answers = next((place / ANSWERS for place in places if (place / ANSWERS).is_file()), None)
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
