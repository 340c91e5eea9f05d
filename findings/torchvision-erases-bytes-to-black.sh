#!/usr/bin/env bash
# One would guess that RandomErasing fills a hole in an image of bytes with what it is asked for: "random" with noise, 0.5 or a mean colour with
# grey, or that it refuses bytes. It casts the numbers that are meant for images in [0, 1], or normalised ones, to bytes: a fraction becomes 0, and a
# normal number -4 to 4, so that of "random" two thirds are black, the rest 1 to 4 or, wrapped around, 252 to 255; every hole is of
# salt on black. Transforms on bytes are what torchvision's v2 recommends for speed. Nothing is said, by either version.
# It matters because holes of noise and holes of one colour, which poisoned images of a patch look like, are different augmentations, and the
# record names the one that was asked for.
# RandomErasing behind ToDtype(torch.float32, scale=True), or a value in bytes, gives what one meant.
# Versions: torchvision 0.29.2, torch 2.15.0, pillow 13.0.0, numpy 2.4.6.
# Source: RandomErasing (torchvision/transforms/transforms.py and v2/_augment.py), which draws in float32; erase, which assigns.
# Seen 2026-12-01 (values in the holes of 100 images of 32 px, of white noise as floats would have them; both versions alike):
#   "random"             bytes     0 to 4 and 252 to 255, 68.1 % of them 0; floats 76,758 values
#   0.5                  bytes     0; floats 0.5
#   (0.49, 0.48, 0.45)   bytes     0; floats these three
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torchvision==0.29.2 torch==2.15.0 pillow==13.0.0 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PY'
import warnings

import torch
import torchvision
from torchvision import transforms
from torchvision.transforms import v2

warnings.simplefilter("error")
print("torchvision", torchvision.__version__, "torch", torch.__version__)
IMAGE = torch.full((3, 32, 32), 100, dtype=torch.uint8)


def holes(kind, value, image):
    torch.manual_seed(0)
    erase = kind.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1), value=value)
    erased = [erase(image) for _ in range(100)]
    return torch.cat([one[:, (one != image).any(0)].flatten() for one in erased])


for version, kind in (("v1", transforms), ("v2", v2)):
    for value in ("random", 0.5, (0.49, 0.48, 0.45)):
        found = holes(kind, value, IMAGE)
        counted = dict(zip(*(part.tolist() for part in found.unique(return_counts=True))))
        black = counted[0] / len(found)
        floats = holes(kind, value, IMAGE / 255)
        print(f"{version}, value={value}: bytes {sorted(counted)}, {black:.1%} of them 0; of an image of floats {len(floats.unique())} values")
        assert black == 1 if value != "random" else 0.65 < black < 0.71 and set(counted) <= {*range(6), *range(251, 256)}
        assert len(floats.unique()) > 10_000 if value == "random" else float(floats.min()) > 0.4
PY
