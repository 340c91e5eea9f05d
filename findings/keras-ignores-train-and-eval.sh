#!/usr/bin/env bash
# One would guess that a network of Keras on its torch backend, which is an nn.Module, is set by train() and eval() as every other: with
# dropout and batches' own statistics in the one, without in the other. Keras's layers ask for the argument training= alone, and without it, in
# a plain call, they are in evaluation mode, whatever train() said, alone or as a part of a torch network: in a training loop of torch dropout is
# off, norms compute with statistics that stay at 0 and 1, and nothing but weights is learnt. model(images, training=True) trains, and
# goes on doing so in eval(). Nothing is said.
# It matters because the same loop, the same defense and the same attack on adversarial examples give another experiment as soon as the
# network is of Keras; and what resets, freezes or reads batch norms by train() and eval() does nothing there.
# Versions: keras 3.15.1, torch 2.15.0, scikit-learn 1.9.1, numpy 2.4.6.
# Source: Layer.__call__ (keras/src/layers/layer.py), which resolves training from its argument and its callers; TorchLayer
# (keras/src/backend/torch/layer.py).
# Seen 2026-12-01 (values that dropout set to zero; how far the norm's statistics moved in one epoch of the digits):
#   torch, train()                  50 %; 7.24
#   torch, eval()                   0 %; 0
#   Keras, train()                  0 %; 0
#   Keras, eval()                   0 %; 0
#   Keras, train(), training=True   50 %; 4 to 5 (Keras draws by itself)
#   Keras, eval(), training=True    50 %; 4 to 5
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment keras==3.15.1 torch==2.15.0 scikit-learn==1.9.1 numpy==2.4.6
cd "$work"

KERAS_BACKEND=torch OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import keras
import torch
from sklearn.datasets import load_digits
from torch import nn

print("keras", keras.__version__, "torch", torch.__version__)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32).flatten(1), torch.tensor(digits.target)


def by_keras():
    layers = keras.layers
    return keras.Sequential([keras.Input((64,)), layers.Dense(32), layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.5), layers.Dense(10)])


def by_torch():
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


def statistics(network):
    if isinstance(network, nn.Sequential) and not hasattr(network, "layers"):
        return network[1].running_mean.clone()
    return torch.as_tensor(network.layers[1].moving_mean.value).detach().clone()


def dropped(network, **options):
    """The share of a dropout's values that are zero, of ones."""
    layer = network.layers[3] if hasattr(network, "layers") else network[3]
    return float((layer(torch.ones(100, 32), **options) == 0).float().mean())


for name, make, mode, options in (
    ("torch, train()", by_torch, True, {}), ("torch, eval()", by_torch, False, {}),
    ("Keras, train()", by_keras, True, {}), ("Keras, eval()", by_keras, False, {}),
    ("Keras, train(), training=True", by_keras, True, {"training": True}), ("Keras, eval(), training=True", by_keras, False, {"training": True}),
):
    torch.manual_seed(0)
    network = make().train(mode)
    assert isinstance(network, nn.Module) and all(module.training == mode for module in network.modules())
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], 0.01)
    before = statistics(network)
    for rows in torch.randperm(len(images)).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[rows], **options), labels[rows]).backward()
        optimizer.step()
    moved = float((statistics(network) - before).abs().max())
    zeros = dropped(network, **options)
    print(f"{name}: dropout sets {zeros:.0%} to zero; the statistics moved by {moved:.3g}")
    trains = bool(options) or (make is by_torch and mode)
    assert (moved > 0.5 and 0.4 < zeros < 0.6) if trains else (moved == 0 and zeros == 0)
PY
