#!/usr/bin/env bash
# One would guess that a DataLoader's workers draw an image's augmentation anew, each its own, and in each epoch, as they do with
# torchvision's transforms. A pipeline of Albumentations has a generator of its own, which each worker begins with a copy of: two workers
# make the same draws one after the other, and workers that are started anew for the next epoch make those of the epoch before again. With
# two workers 256 images of three epochs have 128 augmentations, the same ones in every epoch; with eight workers 32. Compose(seed=...)
# makes them the same in each run, too, and without it no seed of torch, numpy or random reaches them. The loader's own process
# (num_workers=0) draws 768 of 768; persistent_workers=True draws anew in each epoch, and the workers still repeat each other.
# It matters because a network, a purified one above all, which has few images and many passes, is trained on fewer augmentations than the
# record says, and on none that it has not seen in its first epoch; a random trigger drawn by such a pipeline repeats likewise.
# set_random_seed in a worker_init_fn, with the seed that torch gives each worker, gives what one meant.
# Versions: albumentations 2.0.8, torch 2.15.0, torchvision 0.29.2, numpy 2.4.6.
# Source: Compose.set_random_seed (albumentations/core/composition.py), which numpy.random.default_rng follows; torch seeds torch, numpy's
# and Python's own generators in a worker (torch/utils/data/_utils/worker.py).
# Seen 2026-12-01 (values that 768 draws, of 256 images in three epochs, have; draws of the third epoch that were the first's):
#   torchvision, 2 workers                           768; 0
#   albumentations, no workers                       768; 0
#   albumentations, 2 workers                        128; 256
#   albumentations, 8 workers                        32; 256
#   albumentations, 2 workers, Compose(seed=7)       128; 256
#   albumentations, 2 workers that stay              384; 0
#   albumentations, 2 workers, seeded by hand        768; 0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment albumentations==2.0.8 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
cd "$work"

cat > loading.py <<'PY'
import os
import random
from importlib.metadata import version

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import ColorJitter

IMAGE = np.full((2, 2, 3), 0.5, np.float32)


class Images(Dataset):
    def __init__(self, seed=None, by_torchvision=False):
        bright = albumentations.RandomBrightnessContrast(brightness_limit=0.4, contrast_limit=0, p=1)
        self.augment = albumentations.Compose([bright], seed=seed)
        self.jitter = ColorJitter(brightness=0.4) if by_torchvision else None

    def __len__(self):
        return 256

    def __getitem__(self, index):
        if self.jitter is not None:
            return float(self.jitter(torch.from_numpy(IMAGE).permute(2, 0, 1))[0, 0, 0])
        return float(self.augment(image=IMAGE)["image"][0, 0, 0])


def seed_worker(_):
    info = get_worker_info()
    info.dataset.augment.set_random_seed(info.seed % 2**32)


def epochs(images, **options):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    loader = DataLoader(images, batch_size=1, **options)
    return [[float(batch) for batch in loader] for _ in range(3)]


def main():
    print(*(f"{name} {version(name)}" for name in ("albumentations", "torch", "torchvision", "numpy")))
    seeded = {"num_workers": 2, "worker_init_fn": seed_worker}
    for name, images, options, expected in (
        ("torchvision, 2 workers", Images(by_torchvision=True), {"num_workers": 2}, (768, 0)),
        ("albumentations, no workers", Images(), {}, (768, 0)),
        ("albumentations, 2 workers", Images(), {"num_workers": 2}, (128, 256)),
        ("albumentations, 8 workers", Images(), {"num_workers": 8}, (32, 256)),
        ("albumentations, 2 workers, Compose(seed=7)", Images(7), {"num_workers": 2}, (128, 256)),
        ("albumentations, 2 workers that stay", Images(), {"num_workers": 2, "persistent_workers": True}, (384, 0)),
        ("albumentations, 2 workers, seeded by hand", Images(), seeded, (768, 0)),
    ):
        first, second, third = epochs(images, **options)
        values, again = len({*first, *second, *third}), sum(a == b for a, b in zip(first, third))
        print(f"{name}: {values} values of 768 draws; {again} of the third epoch's are the first's")
        assert abs(values - expected[0]) <= expected[0] * 0.01 and abs(again - expected[1]) <= 2  # float32 may coincide
    one, other = Images()[0], Images()[0]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    one = Images()[0]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    assert one != Images()[0]
    print("after the same seeds of torch, numpy and random two pipelines draw otherwise")


if __name__ == "__main__":
    main()
PY
OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore loading.py
