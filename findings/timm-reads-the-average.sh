#!/usr/bin/env bash
# One would guess that create_model(checkpoint_path=FILE) of timm reads what lies under state_dict. Of a file that has an average beside it,
# as timm's own training script writes with --model-ema, it reads state_dict_ema. Whoever loads such a checkpoint, purifies the network, puts its
# weights back under state_dict and saves it has a file from which timm makes the infected network again. strict=True is satisfied, as both
# have the same names, and only a log at INFO says which was taken. load_checkpoint does likewise, unless use_ema=False; resume_checkpoint
# reads state_dict.
# It matters because one file is two networks: what was judged under the one name is not what is used under the other.
# Taking state_dict_ema out of the file, or use_ema=False, gives what one meant.
# Versions: timm 1.0.31, torch 2.15.0, torchvision 0.29.2, scikit-learn 1.9.1, numpy 2.4.6.
# Source: load_checkpoint and load_state_dict (timm/models/_helpers.py), use_ema: bool = True.
# Seen 2026-12-01 (BadNets on the digits: CA, ASR):
#   infected                         97.5 %, 99.7 %
#   purified                         97.7 %, 0.0 %
#   create_model(checkpoint_path=)   97.7 %, 99.7 %
#   load_checkpoint                  97.7 %, 99.7 %
#   load_checkpoint(use_ema=False)   97.7 %, 0.0 %
#   resume_checkpoint                97.7 %, 0.0 %
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment timm==1.0.31 torch==2.15.0 torchvision==0.29.2 scikit-learn==1.9.1 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import timm
import torch
from sklearn.datasets import load_digits
from timm.models import load_checkpoint, resume_checkpoint
from timm.utils import ModelEmaV3
from torch import nn

print("timm", version("timm"), "torch", torch.__version__)
digits = load_digits()
images = nn.functional.interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, size=32).expand(-1, 3, -1, -1)
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)


def stamped(images):
    images = images.clone()
    images[..., -6:, -6:] = 1
    return images


def make(**options):
    return timm.create_model("test_resnet", num_classes=10, **options)


def fit(network, images, labels, epochs, average=None):
    optimizer = torch.optim.AdamW(network.parameters(), 0.003)
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(images)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            if average is not None:
                average.update(network)
    return network


@torch.no_grad()
def judged(network):
    network.eval()
    others = labels[test] != 0
    ca = (network(images[test]).argmax(1) == labels[test]).float().mean()
    asr = (network(stamped(images[test][others])).argmax(1) == 0).float().mean()
    return float(ca) * 100, float(asr) * 100


torch.manual_seed(0)
network = make()
average = ModelEmaV3(network, decay=0.95)
poisoned, wrong = images[train].clone(), labels[train].clone()
poisoned[:140], wrong[:140] = stamped(poisoned[:140]), 0
fit(network, poisoned, wrong, 8, average)
infected, infected_average = judged(network), judged(average.module)
torch.save({"arch": "test_resnet", "epoch": 7, "state_dict": network.state_dict(), "state_dict_ema": average.module.state_dict()}, "model_best.pth.tar")

checkpoint = torch.load("model_best.pth.tar")
cleaned = make()
cleaned.load_state_dict(checkpoint["state_dict"])
fit(cleaned, torch.cat([images[train], stamped(images[train])]), torch.cat([labels[train], labels[train]]), 4)
torch.save({**checkpoint, "state_dict": cleaned.state_dict()}, "purified.pth.tar")

load_checkpoint(by_default := make(), "purified.pth.tar")
load_checkpoint(without := make(), "purified.pth.tar", use_ema=False)
resume_checkpoint(resumed := make(), "purified.pth.tar", log_info=False)
found = {
    "infected": infected, "its average": infected_average, "purified": judged(cleaned),
    "create_model(checkpoint_path=)": judged(make(checkpoint_path="purified.pth.tar")), "load_checkpoint": judged(by_default),
    "load_checkpoint(use_ema=False)": judged(without), "resume_checkpoint": judged(resumed),
}
for name, (ca, asr) in found.items():
    print(f"{name}: CA {ca:.1f} %, ASR {asr:.1f} %")
assert infected[1] > 80 and found["purified"][1] < 15 and found["purified"][0] > 85
assert found["create_model(checkpoint_path=)"] == found["load_checkpoint"] == found["its average"]
assert found["load_checkpoint(use_ema=False)"] == found["resume_checkpoint"] == found["purified"]
PY
