#!/usr/bin/env bash
# One would guess that a LoRA adapter is all that its training changed, since everything else is frozen: that the network it was saved from
# and the base with the adapter loaded give the same logits.
# Parameters are frozen, running statistics of batch norms are not. In train mode they move with the images that are tuned on; peft
# counts them to the base and does not save them. The network in memory has the new ones, merge_and_unload keeps them, and what
# PeftModel.from_pretrained makes of the same adapter has the old: it is neither the base nor what was judged.
# It matters because a backdoor is planted, or purified, by LoRA and judged in memory; the adapter that is handed on is another
# network. In eval mode for norms during tuning, or with modules_to_save naming them, both are one.
# Versions: peft 0.21.2, timm 1.0.31, torch 2.15.0, torchvision 0.29.2, transformers 5.24.0, accelerate 1.15.0, numpy 2.4.6. Source:
# get_peft_model_state_dict (peft/utils/save_and_load.py), which takes names with lora_ and modules_to_save.
# Seen 2026-11-30 (resnet18, five steps; largest difference of logits from the network in memory, of how large, images called alike):
#   norms in train mode    merged in memory 3e-07; loaded 0.32 of 0.31, 25 of 64
#   norms in eval mode     merged in memory 2e-07; loaded 0 of 0.25, 64 of 64
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment peft==0.21.2 timm==1.0.31 torch==2.15.0 torchvision==0.29.2 transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6

HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - "$work" <<'PY'
import copy
import sys

import peft
import timm
import torch
from torch.nn import functional as F

print("peft", peft.__version__, "timm", timm.__version__, "torch", torch.__version__)
torch.set_num_threads(1)
torch.manual_seed(0)
base = timm.create_model("resnet18", num_classes=10)
images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 + 1


def logits(network):
    with torch.no_grad():
        return network.eval()(images)


def tuned(config, norms):
    """A base with an adapter, tuned for five steps, its batch norms in train mode or in eval mode."""
    torch.manual_seed(1)
    network = peft.get_peft_model(copy.deepcopy(base), config).train()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.train(norms == "train")
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(network(torch.randn(16, 3, 32, 32) * 2 + 1), torch.randint(10, (16,))).backward()
        optimizer.step()
    return network


for norms, expected in (("train", False), ("eval", True)):
    config = peft.LoraConfig(r=4, target_modules=r".*conv\d", modules_to_save=["fc"])
    network = tuned(config, norms)
    memory = logits(network)
    network.save_pretrained(folder := f"{sys.argv[1]}/{norms}")
    loaded = logits(peft.PeftModel.from_pretrained(copy.deepcopy(base), folder))
    merged = logits(network.merge_and_unload())
    off, kept = float((loaded - memory).abs().max()), float((merged - memory).abs().max())
    alike = int((loaded.argmax(1) == memory.argmax(1)).sum())
    print(f"norms in {norms} mode: merged in memory off by {kept:.1g}, loaded by {off:.2g} of {float(memory.abs().max()):.2f};", end=" ")
    print(f"{alike} of 64 images are called alike")
    assert kept < 1e-3 * float(memory.abs().max())
    assert (off < 1e-4) == expected and (alike == 64) == expected
PY
