#!/usr/bin/env bash
# One would guess that the file which save_pretrained writes has the names of the network's state dict, so that load_file and
# load_state_dict give the network back: ResNet and ConvNeXt of transformers do that, and torchvision's and timm's networks.
# ViT, DeiT, Swin and DINOv2 have other names in the file than in the network (vit.encoder.layer.0 there, vit.layers.0 here; query,
# key and value for q_proj, k_proj and v_proj). from_pretrained translates and loads either. What reads the file otherwise is
# refused, or with strict=False leaves most weights as they were drawn: of a ViT it reads the embeddings, the last norm and the
# head, so that shapes and the number of classes look right.
# It matters because purified weights are handed on as safetensors, and defenses compare, average or prune layers of two files
# by name: of one ViT what torch.save and what save_pretrained writes have a fifth of their names in common.
# Versions: transformers 5.24.0, torch 2.15.0, safetensors 0.8.0, numpy 2.4.6.
# Source: transformers/conversion_mapping.py, which save_pretrained applies backwards (modeling_utils.py) unless it is told
# save_original_format=False.
# Seen 2026-11-30 (names of the network in its own file; logits after load_state_dict with strict=False; after from_pretrained, of
# that file and of one under the network's own names):
#   ViT       8 of 40, off by 0.75; 0, 0
#   DeiT      9 of 41, off by 1.40; 0, 0
#   DINOv2   29 of 45, off by 1.07; 0, 0
#   Swin     19 of 45, off by 0.76; 0, 0
#   ResNet   38 of 38, 0; 0, 0
#   ConvNeXt 30 of 30, 0; 0, 0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment transformers==5.24.0 torch==2.15.0 safetensors==0.8.0 numpy==2.4.6

"$work/venv/bin/python" - "$work" <<'PY'
import os
import shutil
import sys

import torch
import transformers
from safetensors import __version__ as safetensors_version
from safetensors.torch import load_file, save_file
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

print("transformers", transformers.__version__, "torch", torch.__version__, "safetensors", safetensors_version)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
work = sys.argv[1]
small = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
NETWORKS = {
    "ViT": (ViTForImageClassification, ViTConfig(**small, intermediate_size=64, num_labels=10)),
    "DeiT": (DeiTForImageClassification, DeiTConfig(**small, intermediate_size=64, num_labels=10)),
    "DINOv2": (Dinov2ForImageClassification, Dinov2Config(**small, num_labels=10)),
    "Swin": (
        SwinForImageClassification,
        SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=10),
    ),
    "ResNet": (
        ResNetForImageClassification,
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10),
    ),
    "ConvNeXt": (
        ConvNextForImageClassification,
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=10),
    ),
}
images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(network):
    with torch.no_grad():
        return network.eval()(images).logits


for name, (kind, config) in NETWORKS.items():
    torch.manual_seed(0)
    saved = kind(config)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    saved.save_pretrained(folder := f"{work}/{name}")
    file = load_file(f"{folder}/model.safetensors")
    fresh = kind(config)
    left = fresh.load_state_dict(file, strict=False)
    own = saved.state_dict()
    os.makedirs(other := f"{work}/{name}-own")
    shutil.copy(f"{folder}/config.json", other)
    save_file({key: value.contiguous() for key, value in own.items()}, f"{other}/model.safetensors", {"format": "pt"})
    found = [fresh, kind.from_pretrained(folder), kind.from_pretrained(other)]
    off = [float((logits(network) - logits(saved)).abs().max()) for network in found]
    common = len(file.keys() & own.keys())
    saved.save_pretrained(told := f"{work}/{name}-told", save_original_format=False)
    assert load_file(f"{told}/model.safetensors").keys() == own.keys()
    print(f"{name}: {common} of {len(own)} names are in the file; with strict=False logits are off by {off[0]:.2f};", end=" ")
    print(f"from_pretrained of it, and of a file with the network's names: {off[1]:g}, {off[2]:g}")
    assert len(left.missing_keys) == len(left.unexpected_keys) == len(own) - common
    assert off[1] == off[2] == 0
    if name in ("ResNet", "ConvNeXt"):
        assert common == len(own) and off[0] == 0
    else:
        print("   such as", min(file.keys() - own.keys()), "for", min(own.keys() - file.keys()))
        assert common < 0.7 * len(own) and off[0] > 0.1
PY
