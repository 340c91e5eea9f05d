#!/usr/bin/env bash
# One would guess that an attack gives a network back in the modes in which it took it. torchattacks asks the network alone whether it
# trains, and calls train() on all of it afterwards: batch norms that were fixed in eval mode, and dropout that was off, train from the
# first attack on. ART sets all of it to eval mode and leaves it there: a training that calls train() once an epoch goes on without
# dropout, by statistics that stand still. Neither says anything.
# It matters because adversarial training and defenses that tune beside adversarial examples fix the statistics on purpose: few clean
# images are to move the weights, not the norms. With the same images and steps, and the modes put back after each attack, 5 of 397
# test images are called otherwise.
# Versions: torchattacks 3.5.1, adversarial-robustness-toolbox 1.20.1, torch 2.15.0, scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6.
# Source: _recover_model_mode (torchattacks/attack.py); loss_gradient and predict (art/estimators/classification/pytorch.py).
# Seen 2026-11-30 (modules that train before, and after one attack; after 50 steps, the largest move of a running mean of
# the norm that was fixed, and the share of test images that is called otherwise than with modes put back after each attack):
#   torchattacks   Dropout; BatchNorm2d, Dropout; 0.029; 0.0126
#   ART            Dropout; none; 0; 0.0025
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1 torch==2.15.0 torchvision==0.29.2 \
  scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

print(*(f"{name} {version(name)}" for name in ("torchattacks", "adversarial-robustness-toolbox", "torch")))
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
clean, test = slice(1300, 1320), slice(1400, None)
torch.manual_seed(0)
trained = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(1024, 10)
)
optimizer = torch.optim.Adam(trained.parameters(), 0.003)
for _ in range(5):
    for rows in torch.randperm(1300).split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(images[rows]), labels[rows]).backward()
        optimizer.step()


def by_torchattacks(network, pixels, truth):
    return torchattacks.PGD(network, eps=0.2, alpha=0.05, steps=5)(pixels, truth)


def by_art(network, pixels, truth):
    network = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    attack = ProjectedGradientDescentPyTorch(network, eps=0.2, eps_step=0.05, max_iter=5, verbose=False)
    return torch.tensor(attack.generate(pixels.numpy(), truth.numpy()))


def training(network):
    return [type(module).__name__ for module in network if module.training and type(module) in (nn.BatchNorm2d, nn.Dropout)]


def fixed(network):
    network.train()
    network[1].eval()
    return network


def tuned(attack, put_back):
    network = fixed(copy.deepcopy(trained))
    optimizer = torch.optim.SGD(network.parameters(), 0.001)
    torch.manual_seed(1)
    for _ in range(50):
        adversarial = attack(network, images[clean], labels[clean])
        if put_back:
            fixed(network)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(adversarial), labels[clean]).backward()
        optimizer.step()
    return network.eval()


WAYS = {
    "torchattacks": (by_torchattacks, ["BatchNorm2d", "Dropout"]),
    "ART": (by_art, []),
}
for name, (attack, expected) in WAYS.items():
    network = fixed(copy.deepcopy(trained))
    before = training(network)
    attack(network, images[clean], labels[clean])
    after = training(network)
    left, put_back = tuned(attack, False), tuned(attack, True)
    moved, still = (float((found[1].running_mean - trained[1].running_mean).abs().max()) for found in (left, put_back))
    with torch.no_grad():
        other = float((left(images[test]).argmax(1) != put_back(images[test]).argmax(1)).float().mean())
    print(f"{name}: {before} train before, {after} after; a running mean moves by {moved:.3f}, {still:g} with modes put back;"
          f" {other:.4f} of test images called otherwise")
    assert before == ["Dropout"] and after == expected and still == 0
    assert (moved > 0.01) == (name == "torchattacks")
PY
