#!/usr/bin/env bash
# One would guess that vector_to_parameters copies a vector's numbers into a network, as load_state_dict does, so that a vector that was
# kept of the infected weights starts one defense after the other. It makes the network's weights views of the vector: training the first
# network trains the vector, and every other network that was given it, step for step. The second defense starts from what the first left,
# the infected network that was kept for comparison is the purified one, and an average of the kept vectors is of the same vector twice.
# load_state_dict copies. Nothing is said, and parameters_to_vector, its counterpart, does copy.
# It matters where weights are points: mode connectivity, soups and averages, sharpness, perturbations, restarts. A copy of the vector for each
# network (vector.clone()) gives what one meant; running statistics are in no such vector.
# Versions: torch 2.15.0, scikit-learn 1.9.1, numpy 2.4.6.
# Source: vector_to_parameters (torch/nn/utils/convert_parameters.py), which sets param.data to a view of the vector.
# Seen 2026-12-01 (accuracy on the digits of a network that nobody trained further, after another, given the same weights, was taught the
# labels plus one; largest change of a kept weight):
#   vector_to_parameters   0.4 %; 1.9
#   with a clone each      97.1 %; 0
#   load_state_dict        97.1 %; 0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 scikit-learn==1.9.1 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import sklearn
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

print("torch", torch.__version__, "scikit-learn", sklearn.__version__)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(digits.target)


def fresh(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train(network, labels):
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network


def by_vector(network, kept):
    vector_to_parameters(kept, network.parameters())
    return network


def by_copies(network, kept):
    vector_to_parameters(kept.clone(), network.parameters())
    return network


def by_state_dict(network, kept):
    holder = by_copies(fresh(3), kept)
    network.load_state_dict(holder.state_dict())
    return network


@torch.no_grad()
def accuracy(network):
    return float((network(images).argmax(1) == labels).float().mean()) * 100


trained = train(fresh(0), labels)
for way, restore in (("vector_to_parameters", by_vector), ("with a clone each", by_copies), ("load_state_dict", by_state_dict)):
    kept = parameters_to_vector(trained.parameters()).detach()
    before = kept.clone()
    first, second = restore(fresh(1), kept), restore(fresh(2), kept)
    assert accuracy(first) == accuracy(second) == accuracy(trained)
    train(first, (labels + 1) % 10)
    untouched, change = accuracy(second), float((kept - before).abs().max())
    print(f"{way}: the network that nobody trained {accuracy(trained):.1f} %, then {untouched:.1f} %; a kept weight moved by {change:.2g}; "
          f"the one that the vector was taken from {accuracy(trained):.1f} %")
    assert (untouched < 5 and change > 0.1) if way == "vector_to_parameters" else (untouched > 95 and change == 0)
PY
