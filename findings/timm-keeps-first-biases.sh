#!/usr/bin/env bash
# One would guess that a network in eval mode computes with the weights that it holds: that after load_state_dict it gives the
# logits of the network that the weights are from.
# LeViT, TinyViT, EfficientFormer and EfficientFormerV2 of timm keep the attention biases of the first pass in eval mode, until
# somebody calls train() or moves the network. Weights that are loaded in between are mixed with the biases of the former ones,
# without a word: the logits belong to neither network. Perturbed weights (torch.func.functional_call) meet the same.
# It matters because one network is judged with infected and with purified weights in turn: the second figure is of a mixture.
# Versions: timm 1.0.31, torch 2.15.0, torchvision 0.29.2. Source: `attention_bias_cache` of timm.models.levit, tiny_vit,
# efficientformer and efficientformer_v2, which train() and _apply() empty and load_state_dict does not.
# Seen 2026-11-29 (largest difference of the logits, and their size):
#   levit_128s            0.085 of 8.8 after loading, 0 after train() and eval()
#   tiny_vit_5m_224       0.032 of 4.3, 0
#   efficientformer_l1    0.0003 of 2.5, 0
#   efficientformerv2_s0  0.8 of 377, 0
#   swin_tiny_patch4_window7_224   0, 0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import timm
import torch
import torchvision

print("timm", timm.__version__, "torch", torch.__version__, "torchvision", torchvision.__version__)
KEEPS = ["levit_128s", "tiny_vit_5m_224", "efficientformer_l1", "efficientformerv2_s0"]

for name in [*KEEPS, "swin_tiny_patch4_window7_224"]:
    draws = torch.Generator().manual_seed(3)
    networks = [timm.create_model(name, num_classes=10).eval() for _ in range(2)]
    with torch.no_grad():  # as after two trainings: no bias is left at the zero that it starts from
        for network in networks:
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
        first, second = networks
        images = torch.randn(2, 3, 224, 224, generator=draws)
        expected = second(images)
        first(images)
        first.load_state_dict(second.state_dict())
        mixed = first(images)
        first.train()
        first.eval()
        own = first(images)
    off = float((mixed - expected).abs().max())
    print(f"{name}: off by {off:.4f} of {float(expected.abs().max()):.1f} after loading, {float((own - expected).abs().max()):g} later")
    assert torch.equal(own, expected)
    assert (off > 1e-4) == (name in KEEPS)
PY
