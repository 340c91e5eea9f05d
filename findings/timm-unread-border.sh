#!/usr/bin/env bash
# One would guess that a network of timm which accepts images of 32 px reads all 32 rows and columns; its vision
# transformers do refuse images that differ from their declared size.
# A side that the patch does not divide is cut off at the right and at the bottom, without a word. ConvMixer and Sequencer
# (patch 7) as they come read 28 of 32 pixels, EVA-02 (patch 14) told img_size=32 as well; DINOv2's ViT (patch 14) told
# img_size=64 reads 56 of 64. The logits with a white 3x3 patch in the lower right corner are bit for bit those without it.
# It matters because that corner is where BadNets puts its trigger: the attack cannot succeed, the attack success rate stays
# at chance, and a defense that did nothing looks perfect.
# Versions: timm 1.0.31, torch 2.15.0, torchvision 0.29.2. Source: the strided patch convolutions of
# timm.layers.PatchEmbed, whose dynamic_img_pad is off, and of timm.models.convmixer.
# Seen 2026-11-29:
#   convmixer_768_32 32 px         rows and columns 28-31 unread, corner patch changes nothing
#   sequencer2d_s 32 px            rows and columns 28-31 unread, corner patch changes nothing
#   eva02_tiny_patch14_224 32 px   rows and columns 28-31 unread, corner patch changes nothing
#   vit_small_patch14_dinov2 64 px rows and columns 56-63 unread, corner patch changes nothing
#   convnext_atto 32 px            all read, corner patch changes the logits
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment timm==1.0.31 torch==2.15.0 torchvision==0.29.2 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import timm
import torch
import torchvision

print("timm", timm.__version__, "torch", torch.__version__, "torchvision", torchvision.__version__)
EXPECTED = [  # name, side of the images, what timm is told, rows and columns from here on are not read
    ("convmixer_768_32", 32, {}, 28),
    ("sequencer2d_s", 32, {}, 28),
    ("eva02_tiny_patch14_224", 32, {"img_size": 32}, 28),
    ("vit_small_patch14_dinov2", 64, {"img_size": 64}, 56),
    ("convnext_atto", 32, {}, 32),
]


def whitened(images, rows, columns):
    changed = images.clone()
    changed[..., rows, columns] = 1
    return changed


for name, size, options, end in EXPECTED:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, **options).eval()
    with torch.no_grad():  # as after training: no weight is left at the zero that it may start from
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    images = torch.rand(2, 3, size, size, requires_grad=True)
    slope = torch.autograd.grad((network(images) * torch.randn(2, 10)).sum(), images)[0].abs().amax((0, 1))
    unread = [place for place in range(size) if not slope[place].any()]
    also = [place for place in range(size) if not slope[:, place].any()]
    with torch.no_grad():
        plain = network(images)
        blind = torch.equal(network(whitened(images, slice(-3, None), slice(-3, None))), plain)
        sees_start = not torch.equal(network(whitened(images, slice(3), slice(3))), plain)
    print(f"{name} at {size} px: rows unread {unread}, columns {also}; logits bit-equal with a 3x3 patch")
    print(f"  in the lower right corner: {blind}, in the upper left one: {not sees_start}")
    assert unread == also == list(range(end, size)) and blind == (end < size) and sees_start
PY
