#!/usr/bin/env bash
# One would guess that memory_format=torch.channels_last is a matter of speed: the same network, the same seed, the same
# result up to rounding. In evaluation it is so.
# Random numbers are written in the order of memory, so that with channels-last tensors each falls on another element:
# dropout of a channels-last map drops other values (half of the masks differ, as by another seed), rand_like and randn_like
# give other noise, and a convolution initialised after the move starts from other weights. Dropout2d, a mask a channel,
# stays the same.
# It matters because toolkits switch channels-last on where it is faster, on one machine and not on another: with the same
# seed the infected model, the noise of a trigger and a redrawn layer are others, and the difference is taken for the
# method's.
# Versions: torch 2.15.0. Source: the in-place samplers behind torch.nn.init, torch.nn.functional.dropout and
# torch.rand_like, which keep the layout of their argument.
# Seen 2026-11-29, share of elements that are the same in both layouts under one seed:
#   dropout 0.499, dropout2d 1.000, rand_like 0.002, randn_like 0.000, kaiming_normal_ 0.000; evaluation differs by 0.0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6

cd "$work"
venv/bin/python - <<'PY'
import torch
from torch import nn
from torch.nn import functional as F

print("torch", torch.__version__)
maps = torch.ones(16, 8, 12, 12)


def under_seed(draw, layout):
    torch.manual_seed(0)
    return draw(layout)


def initialised(layout):
    layer = nn.Conv2d(8, 16, 3).to(memory_format=layout)
    torch.manual_seed(1)
    return nn.init.kaiming_normal_(layer.weight.detach())


DRAWS = {
    "dropout": lambda layout: F.dropout(maps.to(memory_format=layout), 0.5),
    "dropout2d": lambda layout: F.dropout2d(maps.to(memory_format=layout), 0.5),
    "rand_like": lambda layout: torch.rand_like(maps.to(memory_format=layout)),
    "randn_like": lambda layout: torch.randn_like(maps.to(memory_format=layout)),
    "kaiming_normal_": initialised,
}
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()
with torch.no_grad():
    noise = torch.rand(16, 8, 12, 12)
    plain = network(noise)
    other = network.to(memory_format=torch.channels_last)(noise.to(memory_format=torch.channels_last))
print("evaluation differs by at most", float((plain - other).abs().max()))
assert torch.allclose(plain, other, atol=1e-5)
same = {}
for name, draw in DRAWS.items():
    contiguous, channels_last = (under_seed(draw, layout) for layout in (torch.contiguous_format, torch.channels_last))
    same[name] = float((contiguous == channels_last).float().mean())
    print(f"{name:16} same seed, same elements in both layouts: {same[name]:.3f}")
assert 0.45 < same["dropout"] < 0.55 and same["dropout2d"] == 1
assert max(same["rand_like"], same["randn_like"], same["kaiming_normal_"]) < 0.01
PY
