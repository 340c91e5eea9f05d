#!/usr/bin/env bash
# One would guess that create_model(name, pretrained=True, num_classes=10, pretrained_cfg_overlay={"file": FILE}), timm's way to take pretrained
# weights from a local file, gives the network that the file holds, where the file is of a network for 10 classes of that very kind.
# All but its classifier: that is left as it was drawn. timm compares num_classes=10 with the 1000 of the network's own configuration,
# never with the file, and takes the head out before it looks whether it fits. The file's tensors all have the right names and
# shapes, and no line says that one is not used. With num_classes=10 in the overlay, too, or by checkpoint_path=FILE, it is read.
# It matters because a defense that tunes then starts from an infected body and a head that never was: its CA and ASR are not those
# of the model that was to be cleaned. Detectors that read features alone do not notice at all.
# Versions: timm 1.0.31, torch 2.15.0, torchvision 0.29.2, safetensors 0.8.0, numpy 2.4.6. Source: load_pretrained
# (timm/models/_builder.py), where `num_classes != pretrained_cfg['num_classes']`.
# Seen 2026-11-30 (largest difference of features, of logits, from the network that was saved):
#   pretrained_cfg_overlay={"file": FILE}                     0; 1.39 (resnet18), 2.15 (vit_tiny_patch16_224), 0.81 (mobilenetv3_small_050)
#   pretrained_cfg_overlay={"file": FILE, "num_classes": 10}     0; 0
#   checkpoint_path=FILE                                         0; 0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment timm==1.0.31 torch==2.15.0 torchvision==0.29.2 safetensors==0.8.0 numpy==2.4.6

"$work/venv/bin/python" - "$work" <<'PY'
import logging
import sys

import timm
import torch
import torchvision
from safetensors.torch import save_file

print("timm", timm.__version__, "torch", torch.__version__, "torchvision", torchvision.__version__)
said = []
handler = logging.Handler(logging.DEBUG)
handler.emit = lambda record: said.append(record)
logging.getLogger("timm").addHandler(handler)

images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
for name in ("resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"):
    more = {"img_size": 64} if name.startswith("vit") else {}
    torch.manual_seed(0)
    saved = timm.create_model(name, num_classes=10, **more).eval()
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    file = f"{sys.argv[1]}/{name}.safetensors"
    save_file(saved.state_dict(), file)
    WAYS = {
        "overlay of the file": {"pretrained": True, "pretrained_cfg_overlay": {"file": file}},
        "overlay of the file and num_classes": {"pretrained": True, "pretrained_cfg_overlay": {"file": file, "num_classes": 10}},
        "checkpoint_path": {"checkpoint_path": file},
    }
    for way, options in WAYS.items():
        said.clear()
        network = timm.create_model(name, num_classes=10, **more, **options).eval()
        with torch.no_grad():
            body = float((network.forward_features(images) - saved.forward_features(images)).abs().max())
            off = float((network(images) - saved(images)).abs().max())
        warned = [record.getMessage() for record in said if record.levelno >= logging.WARNING]
        print(f"{name}, {way}: features off by {body:g}, logits by {off:.3g}, warnings: {warned}")
        assert body < 1e-6 and not warned
        assert off > 0.1 if way == "overlay of the file" else off < 1e-5
PY
