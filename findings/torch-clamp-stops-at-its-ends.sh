#!/usr/bin/env bash
# One would guess that clamp(0, 1) cuts what lies outside and leaves 0 and 1 themselves, and their gradient, alone: so it was from 2018
# to torch 2.13, on purpose, and searches are written upon it.
# From 2.14 on a value at an end gets no gradient, even where it would move inwards. clamp_min, clamp_max and clip do the same; with
# tensors for ends half of it passes. A perturbation that starts from none and is added and clamped never moves a pixel that is black
# or white: on handwritten digits PGD leaves 73 % of the images right where it left 24 %. Masks that start at 1 under clamp(mask, 0, 1)
# stay at 1 whatever the loss says. Nothing fails, and the attack or the pruning only looks weaker.
# It matters because code of papers, run anew under today's torch, gives other figures: an after-attack finds no comeback, a pruning
# defense prunes nothing. masked_fill(x < 0, 0).masked_fill(x > 1, 1) has the old gradient in every version.
# Versions: torch 2.15.0, scikit-learn 1.9.1, numpy 2.4.6; 2.13 by github.com/pytorch/pytorch/issues/195931, not run here. Source:
# clamp_backward (torch/csrc/autograd/FunctionsManual.cpp), which has min < x < max in place of min <= x <= max.
# Seen 2026-11-30:
#   gradient of clamp(0, 1) at -0.1, 0, 0.5, 1, 1.1     0 0 1 0 0; with tensors for ends 0 0.5 1 0.5 0
#   digits, ten steps of 0.02 up to 0.1 from none       by clamp 26.7 of 64 values moved, 73.0 % right; by masked_fill 45.2, 24.4 %
#   a mask of ones, ten steps downhill                  by clamp 1; by masked_fill 0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 scikit-learn==1.9.1 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import sklearn
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

print("torch", torch.__version__, "scikit-learn", sklearn.__version__)


def by_clamp(values):
    return values.clamp(0, 1)


def by_tensors(values):
    return values.clamp(torch.zeros(()), torch.ones(()))


def by_masks(values):
    return values.masked_fill(values < 0, 0).masked_fill(values > 1, 1)


slopes = {}
for cut in (by_clamp, by_tensors, by_masks):
    values = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1], requires_grad=True)
    cut(values).sum().backward()
    slopes[cut] = values.grad.tolist()
    print(f"gradient at -0.1, 0, 0.5, 1, 1.1, {cut.__name__}:", *slopes[cut])
assert slopes[by_clamp] == [0, 0, 1, 0, 0] and slopes[by_tensors] == [0, 0.5, 1, 0.5, 0] and slopes[by_masks] == [0, 1, 1, 1, 0]

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data / 16).float(), torch.tensor(digits.target)
network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(200):
    optimizer.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()


def attacked(cut):
    """Signed steps up the loss, from none; how many values an image has that moved, and the share that is still called right."""
    change = torch.zeros_like(images)
    for _ in range(10):
        change.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(network(cut(images + change)), labels), change)
        change = (change.detach() + 0.02 * slope.sign()).clamp(-0.1, 0.1)
    shown = (images + change).clamp(0, 1)
    return float((shown != images).float().sum(1).mean()), float((network(shown).argmax(1) == labels).float().mean())


clean = float((network(images).argmax(1) == labels).float().mean())
found = {cut: attacked(cut) for cut in (by_clamp, by_masks)}
print(f"digits: {clean:.3f} are called right;", end=" ")
print("; ".join(f"{cut.__name__}: {moved:.1f} of 64 values moved, {right:.3f} right" for cut, (moved, right) in found.items()))
assert found[by_clamp][0] < 0.75 * found[by_masks][0] and found[by_clamp][1] > found[by_masks][1] + 0.05

for cut, expected in ((by_clamp, 1.0), (by_masks, 0.0)):
    mask = torch.ones(4, requires_grad=True)
    for _ in range(10):
        (slope,) = torch.autograd.grad(cut(mask).sum(), mask)
        mask = (mask - 0.1 * slope).detach().requires_grad_()
    print(f"a mask of ones after ten steps, {cut.__name__}: {abs(float(mask.detach().mean())):.1f}")
    assert torch.allclose(mask, torch.full((4,), expected), atol=1e-5)
PY
