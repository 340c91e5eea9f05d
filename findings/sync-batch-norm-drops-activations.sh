#!/usr/bin/env bash
# One would guess that torch's convert_sync_batchnorm, or Lightning's sync_batchnorm=True, which calls it, gives the same network with norms
# that see the batches of all processes. Most networks of timm have norms that carry the activation behind them (BatchNormAct2d), a subclass
# of torch's: each becomes a plain SyncBatchNorm, without it. EfficientNet, MobileNetV3, ReXNet, RegNet, DenseNet, CSPNet and VovNet are then nearly
# linear and train, or go on from weights that were trained otherwise; ResNet, which has its activations beside, is the same to the bit.
# Names and shapes of the weights are those of the network that one wanted, so its files are read there without a word, where they
# compute something else. Nothing is said by either library. timm's own convert_sync_batchnorm keeps the activations.
# It matters because a network so trained is judged, purified and exchanged as an EfficientNet, in which it knows nothing: its CA there is
# chance.
# Versions: timm 1.0.31, torch 2.15.0, torchvision 0.29.2, lightning 2.6.6, scikit-learn 1.9.1, numpy 2.4.6.
# Source: SyncBatchNorm.convert_sync_batchnorm (torch/nn/modules/batchnorm.py), which asks isinstance(module, _BatchNorm);
# TorchSyncBatchNorm.apply (lightning/pytorch/plugins/layer_sync.py).
# Seen 2026-12-01 (the same logits; activations of the norms that run, before and after, while a print shows them in both):
#   resnet18                by torch yes, Lightning yes, timm's own yes; 0, 0
#   efficientnet_b0         no, no, yes; 33, 0
#   mobilenetv3_small_100   no, no, yes; 23, 0
#   densenet121             no, no, yes; 121, 0
#   test_efficientnet trained so: 91.7 % of the digits, and its weights in timm's test_efficientnet 10.3 %
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment timm==1.0.31 torch==2.15.0 torchvision==0.29.2 lightning==2.6.6 scikit-learn==1.9.1 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import timm
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from sklearn.datasets import load_digits
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

print(*(f"{name} {version(name)}" for name in ("timm", "torch", "lightning")))
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
images, labels = nn.functional.interpolate(images, size=32).expand(-1, 3, -1, -1), torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)


def moved(network):
    """The network with the statistics of these images in its norms, as a trained one has those of its own."""
    with torch.no_grad():
        for _ in range(20):
            network.train()(images[:64])
    return network.eval()


@torch.no_grad()
def difference(network, other):
    logits = network(images[:64])
    return float((other(images[:64]) - logits).abs().max() / logits.abs().max())


@torch.no_grad()
def called(network):
    """How many activations inside norms run, of how many a printed network shows."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    shown = [norm.act for norm in norms if not isinstance(getattr(norm, "act", nn.Identity()), nn.Identity)]
    ran = []
    hooks = [module.register_forward_hook(lambda *_: ran.append(1)) for module in shown]
    network(images[:2])
    for hook in hooks:
        hook.remove()
    return len(ran), len(shown)


@torch.no_grad()
def accuracy(network):
    return float((network.eval()(images[test]).argmax(1) == labels[test]).float().mean()) * 100


names = ("resnet18", "efficientnet_b0", "mobilenetv3_small_100", "densenet121")
for name in names:
    torch.manual_seed(0)
    network = moved(timm.create_model(name, num_classes=10))
    by_torch = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    by_lightning = TorchSyncBatchNorm().apply(copy.deepcopy(network))
    by_timm = convert_sync_batchnorm(copy.deepcopy(network))
    off = [difference(network, other) for other in (by_torch, by_lightning, by_timm)]
    (before, _), (after, shown) = called(network), called(by_torch)
    same_names = list(by_torch.state_dict()) == list(network.state_dict())
    same = [value == 0 for value in off]
    print(f"{name}: same logits by torch {same[0]}, Lightning {same[1]}, timm {same[2]}; of its norms' activations {before} run, then "
          f"{after} of {shown} that a print shows; same names {same_names}")
    assert same_names and off[2] == 0 and off[0] == off[1] and after == 0
    assert (off[0] == 0) if name == "resnet18" else (off[0] > 0.1 and before > 20)

torch.manual_seed(0)
network = nn.SyncBatchNorm.convert_sync_batchnorm(timm.create_model("test_efficientnet", num_classes=10))
optimizer = torch.optim.AdamW(network.parameters(), 0.003)
for epoch in range(8):
    network.train()
    for rows in torch.randperm(1400).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[train][rows]), labels[train][rows]).backward()
        optimizer.step()
read = timm.create_model("test_efficientnet", num_classes=10)
print(read.load_state_dict(network.state_dict()))
there, here = accuracy(network), accuracy(read)
print(f"trained so, test_efficientnet knows {there:.1f} % of the digits; its weights in timm's test_efficientnet {here:.1f} %")
assert there > 80 and here < 40
PY
