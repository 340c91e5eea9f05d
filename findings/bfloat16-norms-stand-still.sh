#!/usr/bin/env bash
# One would guess that a network trained in pure bfloat16, model.to(torch.bfloat16), has running statistics that are right to a percent,
# as its weights are: eight bits, and their noise averages out.
# A batch norm adds momentum times what it lacks to each statistic, and bfloat16 rounds away what is less than 1/512 to 1/256 of it. With
# a momentum of 0.1, as ResNets have, that is 2 to 4 %. With 0.01, which EfficientNets of torchvision (b5 to b7) and of TensorFlow in timm
# have, means stop at 70 % of the way; with 0.001 at a third of it, and variances at eight times what they should be. Training never
# uses them, so the loss is that of float32; evaluation does.
# It matters because CA and ASR are of evaluation: two networks of one training, one judged right and one by statistics that stopped
# on the way. autocast, which leaves buffers in float32, has nothing of it.
# Versions: torch 2.15.0, numpy 2.4.6, on the CPU. Source: batch_norm, whose running statistics have the dtype of the module.
# Seen 2026-11-30 (over float32's after the same batches, median of 16 channels, mean and variance; with autocast all are 1.00):
#   momentum 0.1, 200 steps       0.98, 0.99
#   momentum 0.01, 1,000 steps    0.69, 1.01
#   momentum 0.001, 4,000 steps   0.35, 8.00
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import torch
from torch import nn

print("torch", torch.__version__)
torch.set_num_threads(1)


def statistics(dtype, momentum, steps, autocast=False):
    """What a norm has measured of the same maps after so many steps."""
    draws = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16, momentum=momentum)).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for _ in range(steps):
            network((torch.randn(16, 3, 8, 8, generator=draws) * 0.5 + 1).to(dtype))
    return network[1].running_mean.float(), network[1].running_var.float()


found = {}
for momentum, steps in ((0.1, 200), (0.01, 1000), (0.001, 4000)):
    whole = statistics(torch.float32, momentum, steps)
    ways = {"bfloat16": statistics(torch.bfloat16, momentum, steps), "autocast": statistics(torch.float32, momentum, steps, True)}
    for way, own in ways.items():
        found[momentum, way] = [float((one / other).median()) for one, other in zip(own, whole, strict=True)]
        print(f"momentum {momentum:g}, {way}: {found[momentum, way][0]:.2f} of the mean, {found[momentum, way][1]:.2f} of the variance")
for (momentum, way), (mean, variance) in found.items():
    if way == "autocast" or momentum == 0.1:
        assert abs(mean - 1) < 0.05 and abs(variance - 1) < 0.05
    else:
        assert mean < 0.85
assert found[0.001, "bfloat16"][0] < 0.6 and found[0.001, "bfloat16"][1] > 2
PY
