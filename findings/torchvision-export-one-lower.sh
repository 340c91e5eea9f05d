#!/usr/bin/env bash
# One would guess that torchvision's ways to turn a float image back into bytes agree, at least on values that came from
# bytes: ToTensor and ToPILImage invert each other exactly.
# Once the image has been through Normalize and its inverse, to_pil_image, which cuts off fractions, gives a third of the
# byte values one too low; save_image, which rounds, and v2's to_dtype give all of them back. On arbitrary floats
# to_pil_image and save_image disagree in half of all values.
# It matters because poisoned sets are exported from the normalised tensors that attacks compute in: clean rows come out
# altered too, darker by a fraction of a level, and a trigger of one level may vanish, which a detector, or a check that
# only poisoned rows have changed, will see.
# Versions: torchvision 0.29.2, torch 2.15.0, pillow 13.0.0. Source: torchvision.transforms.functional.to_pil_image,
# torchvision.utils.save_image, torchvision.transforms.v2.functional.to_dtype.
# Seen 2026-11-29, of 768 byte values (256 in each channel, CIFAR-10's mean and deviation), wrong after Normalize and back:
#   to_pil_image 250 (all one level too low), save_image 0, to_dtype 0; without Normalize 0 0 0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torchvision==0.29.2 torch==2.15.0 pillow==13.0.0 numpy==2.4.6

cd "$work"
venv/bin/python - <<'PY'
import io

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional as old
from torchvision.transforms.v2 import functional as new
from torchvision.utils import save_image

print("torchvision", torchvision.__version__, "torch", torch.__version__, "pillow", PIL.__version__)
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def pixels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).int()


def by_save_image(image):
    file = io.BytesIO()
    save_image(image, file, format="png")
    return pixels(Image.open(file))


WRITERS = {
    "to_pil_image": lambda image: pixels(old.to_pil_image(image)),
    "save_image": by_save_image,
    "v2 to_dtype": lambda image: new.to_dtype(image, torch.uint8, scale=True).int(),
}
levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(3, 1, 1)
direct = old.to_tensor(old.to_pil_image(levels))
inverse = [-mean / std for mean, std in zip(MEAN, STD, strict=True)], [1 / std for std in STD]
through = old.normalize(old.normalize(direct, MEAN, STD), *inverse).clamp(0, 1)
print("Normalize and its inverse move a value by at most", float((through - direct).abs().max()) * 255, "levels")
wrong = {}
for name, write in WRITERS.items():
    straight, after = (write(image) - levels.int() for image in (direct, through))
    wrong[name] = int((after != 0).sum())
    off = sorted(set(after[after != 0].tolist()))
    print(f"{name:13} wrong bytes of 768: {int((straight != 0).sum())} straight, {wrong[name]} after both, by {off}")
    assert not straight.any() and after.abs().max() <= 1 and after.max() <= 0
torch.manual_seed(0)
noise = torch.rand(3, 64, 64)
disagree = float((WRITERS["to_pil_image"](noise) != WRITERS["save_image"](noise)).float().mean())
print(f"on uniform noise to_pil_image and save_image disagree in {disagree:.0%} of the values")
assert wrong["save_image"] == wrong["v2 to_dtype"] == 0 and wrong["to_pil_image"] > 100
assert 0.45 < disagree < 0.55
PY
