#!/usr/bin/env bash
# One would guess that timm's data set of a folder of classes, create_dataset("", root=DIR, split="train") as its train.py makes it, labels
# images by the folders in DIR/train, in the order of torchvision's ImageFolder.
# It labels them by the folder that they lie in: the training images of Tiny ImageNet (train/n01443537/images/*.JPEG) are all of one
# class, called images, and those of red/ in two classes are one. Labels count names regardless of capitals and numbers by value,
# so that from Cat, Dog, apple, bus, and from numbers without leading zeros, they are others than ImageFolder's. Nothing is said.
# It matters because a training on labels that are all 0 ends at once at 100 % in training and in evaluation, as CA and as ASR; and
# target 2 is another class for an attack on one loader and a defense on the other.
# Versions: timm 1.0.31, torch 2.15.0, torchvision 0.29.2, pillow 13.0.0, numpy 2.4.6.
# Source: find_images_and_targets (timm/data/readers/reader_image_folder.py), with leaf_name_only=True and natural_key.
# Seen 2026-11-30 (classes in the order of their labels, of timm; of ImageFolder):
#   n0144, n0162, n0164, each with images/    images; n0144 n0162 n0164
#   a with red and green, b with red          green red; a b
#   Cat, Dog, apple, bus                      apple bus Cat Dog; Cat Dog apple bus
#   0 to 11                                   0 1 2 3 ...; 0 1 10 11 2 ...
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment timm==1.0.31 torch==2.15.0 torchvision==0.29.2 pillow==13.0.0 numpy==2.4.6

"$work/venv/bin/python" - "$work" <<'PY'
import sys
import warnings
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_dataset

warnings.simplefilter("error", UserWarning)
print("timm", timm.__version__, "torch", torch.__version__, "torchvision", torchvision.__version__, "pillow", PIL.__version__)
NUMBERS = [str(number) for number in range(12)]
SETS = {  # folders with images -> the classes of timm, of ImageFolder
    "tiny": (["n0144/images", "n0162/images", "n0164/images"], ["images"], ["n0144", "n0162", "n0164"]),
    "nested": (["a/red", "a/green", "b/red"], ["green", "red"], ["a", "b"]),
    "capitals": (["Cat", "Dog", "apple", "bus"], ["apple", "bus", "Cat", "Dog"], ["Cat", "Dog", "apple", "bus"]),
    "numbers": (NUMBERS, NUMBERS, sorted(NUMBERS)),
}
for name, (folders, expected, usual) in SETS.items():
    root = Path(sys.argv[1]) / name
    for folder in folders:
        (root / "train" / folder).mkdir(parents=True)
        for row in range(2):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "train" / folder / f"{row}.png")
    found = create_dataset("", root=str(root), split="train")
    labels = found.reader.class_to_idx
    own = sorted(labels, key=labels.get)
    theirs = torchvision.datasets.ImageFolder(root / "train").classes
    counts = np.bincount([found[row][1] for row in range(len(found))]).tolist()
    print(f"{name}: timm {' '.join(own)}, {counts} images; ImageFolder {' '.join(theirs)}")
    assert own == expected and theirs == usual
    assert sum(counts) == 2 * len(folders) and len(counts) == len(expected)
PY
