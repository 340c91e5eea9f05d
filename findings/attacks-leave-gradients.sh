#!/usr/bin/env bash
# One would guess that a library that makes adversarial examples reads gradients by pixels and leaves the network's own alone, so that
# `optimizer.zero_grad(); images = attack(...); loss(...).backward(); optimizer.step()` steps along the loss of the adversarial images.
# PGD of Foolbox, and CW and FAB of torchattacks, call backward() of their own loss, which adds to the gradients of all weights that want
# one: the step goes along the sum of what every iteration of the attack left there, hundreds of times as long, and with CW and FAB in
# another direction. ART empties the weights' gradients at each of its iterations, those of a batch that was being accumulated with them,
# and leaves its last. PGD and APGD of torchattacks ask for the gradient by pixels alone. Nothing is said.
# It matters because adversarial training, and defenses that train beside adversarial examples, then move along the attack's steps.
# Calling zero_grad() after the attack, or freezing the weights while it runs, gives what one meant.
# Versions: foolbox 3.3.4, eagerpy 0.30.0, torchattacks 3.5.1, adversarial-robustness-toolbox 1.20.1, torch 2.15.0, scikit-learn 1.9.1,
# scipy 1.17.1, numpy 2.4.6.
# Source: _value_and_grad_fn (eagerpy/tensor/pytorch.py); cw.py, fab.py (torchattacks/attacks); loss_gradient
# (art/estimators/classification/pytorch.py).
# Seen 2026-11-30 (length of the gradient that is stepped along, of the loss's own; cosine between the two):
#   torchattacks PGD    1; 1.00
#   torchattacks APGD   1; 1.00
#   Foolbox PGD         275; 0.99
#   torchattacks CW     6510; -0.29
#   torchattacks FAB    16300; -0.01
#   ART PGD             2; 1.00
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment foolbox==3.3.4 eagerpy==0.30.0 torchattacks==3.5.1 adversarial-robustness-toolbox==1.20.1 torch==2.15.0 \
  torchvision==0.29.2 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import foolbox
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

print(*(f"{name} {version(name)}" for name in ("foolbox", "torchattacks", "adversarial-robustness-toolbox", "torch")))
digits = load_digits()
images = torch.tensor(digits.images[:32], dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target[:32])
torch.manual_seed(0)
trained = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)).eval()
optimizer = torch.optim.SGD(trained.parameters(), 0.05)
for _ in range(100):
    optimizer.zero_grad()
    nn.functional.cross_entropy(trained(images), labels).backward()
    optimizer.step()


def by_foolbox(network):
    attack = foolbox.attacks.LinfPGD(steps=10)
    return attack(foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu"), images, labels, epsilons=0.1)[1]


def by_art(network):
    network = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    attack = ProjectedGradientDescentPyTorch(network, eps=0.1, eps_step=0.02, max_iter=10, verbose=False)
    return torch.tensor(attack.generate(images.numpy(), labels.numpy()))


def by_torchattacks(kind, **options):
    return lambda network: kind(network, **options)(images, labels)


def gradient(network):
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in network.parameters()])


WAYS = {
    "torchattacks PGD": by_torchattacks(torchattacks.PGD, eps=0.1, alpha=0.02, steps=10),
    "torchattacks APGD": by_torchattacks(torchattacks.APGD, eps=0.1, steps=10),
    "Foolbox PGD": by_foolbox,
    "torchattacks CW": by_torchattacks(torchattacks.CW, steps=10),
    "torchattacks FAB": by_torchattacks(torchattacks.FAB, eps=0.1, steps=3, n_classes=10),
    "ART PGD": by_art,
}
for name, attack in WAYS.items():
    network = copy.deepcopy(trained)
    torch.manual_seed(1)
    adversarial = attack(network).detach()
    nn.functional.cross_entropy(network(adversarial), labels).backward()
    stepped = gradient(network)
    network.zero_grad()
    nn.functional.cross_entropy(network(adversarial), labels).backward()
    meant = gradient(network)
    times = float(stepped.norm() / meant.norm())
    cosine = float(nn.functional.cosine_similarity(stepped, meant, dim=0))
    network.zero_grad()
    nn.functional.cross_entropy(network(images), labels).backward()
    before = gradient(network)
    attack(network)
    kept = bool(torch.equal(gradient(network), before))
    print(f"{name}: {times:.3g} times as long, cosine {cosine:.2f}; a gradient that was there before stays: {kept}")
    assert kept == (times == 1) == (name in ("torchattacks PGD", "torchattacks APGD"))
    assert kept or times > 1.2
PY
