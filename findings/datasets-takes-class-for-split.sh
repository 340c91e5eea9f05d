#!/usr/bin/env bash
# One would guess that load_dataset("imagefolder", data_dir=DIR) of a DIR with train/ and test/, each with a folder of images a class,
# gives the images of train/ for training and those of test/ for testing, whatever the classes are called.
# CIFAR-100 has a class called train. Its test images, in test/train/, are in both splits: any folder or word on the path below DIR that
# is called as a split puts an image into it. Of a class steam_train the training images are there twice, beside its test images; a
# class called test puts its training images into the test split, and one called dev makes a validation split of its own. Of class
# folders without splits, the class called train alone is read, with no labels. No warning says so.
# It matters because CA is then measured on images that were trained on, and a poisoned set has rows that nobody poisoned: of
# CIFAR-100, 100 test images are trained on.
# Versions: datasets 5.2.0, pillow 13.0.0, numpy 2.4.6. Source: KEYWORDS_IN_PATH_NAME_BASE_PATTERNS (datasets/data_files.py).
# Seen 2026-11-30 (10 images a class in train/, 4 in test/; what load_dataset gives):
#   apple, bus, tank           train 10 10 10; test 4 4 4
#   apple, bus, train          train 10 10 14; test 4 4 4
#   apple, bus, steam_train    train 10 10 24; test 4 4 4
#   apple, bus, test           train 10 10 10; test 4 4 14
#   apple, bus, dev            train 10 10 10; validation 0 0 14; test 4 4 4
#   apple, bus, train, without splits    train: 10 images, of train, without labels
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment datasets==5.2.0 pillow==13.0.0 numpy==2.4.6

HF_HOME="$work/home" HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W error::UserWarning - "$work" <<'PY'
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL
from PIL import Image

print("datasets", datasets.__version__, "pillow", PIL.__version__, "numpy", np.__version__)
datasets.disable_progress_bars()
work = Path(sys.argv[1])
COUNTS = {"train": 10, "test": 4}


def write(folder, count):
    folder.mkdir(parents=True)
    for row in range(count):
        Image.fromarray(np.full((8, 8, 3), row, np.uint8)).save(folder / f"{row:04}.png")


def loaded(root):
    return datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(work / "cache"))


def seen(third):
    """The number of images of each class in each split, of three classes of which one is called so."""
    root = work / "split" / third
    classes = ["apple", "bus", third]
    for split, count in COUNTS.items():
        for name in classes:
            write(root / split / name, count)
    found = {}
    for split, rows in loaded(root).items():
        names = rows.features["label"].names
        labels = [names[label] for label in rows["label"]]
        found[split] = [labels.count(name) for name in classes]
    print(f"{', '.join(classes)}: {found}")
    return found


assert seen("tank") == {"train": [10, 10, 10], "test": [4, 4, 4]}
assert seen("train") == {"train": [10, 10, 14], "test": [4, 4, 4]}
assert seen("steam_train") == {"train": [10, 10, 24], "test": [4, 4, 4]}
assert seen("test") == {"train": [10, 10, 10], "test": [4, 4, 14]}
assert seen("dev") == {"train": [10, 10, 10], "validation": [0, 0, 14], "test": [4, 4, 4]}
for name in ("apple", "bus", "train"):
    write(work / "plain" / name, 10)
found = loaded(work / "plain")
print("apple, bus, train without splits:", {split: (len(rows), *rows.features) for split, rows in found.items()})
assert {split: (len(rows), *rows.features) for split, rows in found.items()} == {"train": (10, "image")}
PY
