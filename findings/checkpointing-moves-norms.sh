#!/usr/bin/env bash
# One would guess that gradient checkpointing (timm's set_grad_checkpointing, torch.utils.checkpoint) costs time, saves memory and
# changes nothing of what is trained.
# The forward pass of each block runs twice in a step, and its batch norms take the batch in twice: with a momentum of 0.1 as with
# 0.19. Losses, gradients and weights stay equal to the bit; the running statistics, which evaluation uses, are others. Norms outside
# of the blocks (the stem's) move once, so the network lies between two settings that nobody chose.
# It matters because fine-tuning as a defense is some ten steps, and a network's CA and ASR are judged with these statistics: the same
# seed, data and weights call half of the images otherwise, whatever the losses said.
# Versions: timm 1.0.31, torch 2.15.0, torchvision 0.29.2, numpy 2.4.6. Source: timm/models/_manipulate.py (checkpoint_seq) and
# torch/utils/checkpoint.py, which restores random numbers for the second pass, and no buffer.
# Seen 2026-11-30 (ten steps, with and without; largest difference of weights, of logits, images called alike, how many batches norms counted):
#   resnet18               0, 0.56 of 0.96, 39 of 64, 10 and 20
#   mobilenetv3_small_050  0, 43.7 of 1.11, 33 of 64, 10 and 20
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import timm
import torch
import torchvision
from torch.nn import functional as F

print("timm", timm.__version__, "torch", torch.__version__, "torchvision", torchvision.__version__)
torch.set_num_threads(1)


def trained(name, checkpointing):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10).train()
    network.set_grad_checkpointing(checkpointing)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    draws = torch.Generator().manual_seed(1)
    for _ in range(10):
        images = torch.randn(16, 3, 32, 32, generator=draws) * 2 + 1
        labels = torch.randint(10, (16,), generator=draws)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 + 1
for name in ("resnet18", "mobilenetv3_small_050"):
    plain, checkpointed = (trained(name, checkpointing) for checkpointing in (False, True))
    with torch.no_grad():
        pairs = zip(plain.parameters(), checkpointed.parameters(), strict=True)
        weights = max(float((one - other).abs().max()) for one, other in pairs)
        before, after = plain(images), checkpointed(images)
    off, alike = float((before - after).abs().max()), int((before.argmax(1) == after.argmax(1)).sum())
    counted = [
        sorted({int(value) for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")})
        for network in (plain, checkpointed)
    ]
    print(f"{name}: weights differ by {weights:g}, logits by {off:.2f} of {float(before.abs().max()):.2f};", end=" ")
    print(f"{alike} of 64 images are called alike; batches counted: {counted[0]}, with checkpointing {counted[1]}")
    assert weights < 1e-6 and off > 0.1 and alike < 60
    assert counted == [[10], [10, 20]]
PY
