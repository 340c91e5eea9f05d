#!/usr/bin/env bash
# One would guess that update_bn of torch.optim.swa_utils, which passes over a loader to set the statistics of batch norms, sets them to
# those of its images. It sets them to the mean over batches, whatever their sizes: each image of a smaller last batch weighs as much
# as many of the others, and a last batch of one image as much as a full one. A loader leaves such a batch unless drop_last is set.
# It matters because purification averages weights and measures batch norms anew on few clean images: with 129 images in batches of
# 128, one image is half of every mean, and one test image of twelve is called otherwise than with 128.
# Versions: torch 2.15.0, scikit-learn 1.9.1, numpy 2.4.6.
# Source: update_bn (torch/optim/swa_utils.py), which sets momentum to None; a batch norm then averages over the batches it has seen.
# Seen 2026-11-30 (digits, a small network; images, batch size: share of 397 test images that it calls otherwise than with statistics
# of the same images in one batch; the weight of the last image in the mean, in images):
#   128, 128    0.0000; 1
#   129, 128    0.0831; 64.5
#   132, 128    0.0277; 16.5
#   513, 256    0.0806; 171
#   1281, 128   0.0151; 116.5
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 scikit-learn==1.9.1 numpy==2.4.6

OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PY'
import copy

import sklearn
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import update_bn

print("torch", torch.__version__, "scikit-learn", sklearn.__version__)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
train = 1400
torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
)
optimizer = torch.optim.Adam(network.parameters(), 0.01)
for _ in range(15):
    for rows in torch.randperm(train).split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()


def measured(count, size):
    """The network with statistics of so many images, in batches of a size."""
    found = copy.deepcopy(network)
    update_bn(torch.utils.data.DataLoader(images[:count], batch_size=size), found)
    return found.eval()


def weight_of_last(count, size):
    """By how many images' share the mean of a batch norm moves with the last image."""
    norm = nn.Sequential(nn.BatchNorm2d(1))
    pixels = torch.zeros(count, 1, 2, 2)
    pixels[-1] = 1
    update_bn(torch.utils.data.DataLoader(pixels, batch_size=size), norm)
    return float(norm[0].running_mean) * count


with torch.no_grad():
    for count, size in ((128, 128), (129, 128), (132, 128), (513, 256), (1281, 128)):
        calls, whole = (model(images[train:]).argmax(1) for model in (measured(count, size), measured(count, count)))
        other = float((calls != whole).float().mean())
        last, batches = count % size or size, -(-count // size)
        weight = weight_of_last(count, size)
        print(f"{count} images in batches of {size}: {other:.4f} called otherwise; the last image weighs {weight:.1f} images")
        assert abs(weight - count / batches / last) < 1e-3
        assert (other == 0) if last == size else (other > 0.005)
PY
