#!/usr/bin/env bash
# One would guess that safetensors.torch.load_file returns tensors in memory that have nothing more to do with the file, as
# torch.load and safetensors.numpy.load_file do.
# They are views of the file: after `cp other.safetensors loaded.safetensors` the tensors loaded before hold the other
# file's numbers, even those that have been changed in place since, as by training. load_state_dict copies, but
# load_state_dict(assign=True) and any code that keeps the dict follow the file.
# It matters because `best.safetensors` is overwritten so, and "infected against purified" then compares a file with itself:
# a distance of zero, and no error. A file put in place by a rename (os.replace, save_file) does no harm.
# Versions: safetensors 0.8.0, torch 2.15.0, numpy 2.4.6, on Linux. Source: safetensors.torch.load_file.
# Seen 2026-11-29, zeros loaded, then ones copied over the file; the loaded tensors hold:
#   safetensors.torch 1.0, changed in place to fives before 1.0, assign=True 1.0, load_state_dict 0.0,
#   safetensors.numpy 0.0, torch.load 0.0, safetensors.torch after a rename or save_file in place of cp 0.0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment safetensors==0.8.0 torch==2.15.0 numpy==2.4.6

cd "$work"
venv/bin/python - <<'PY'
import os
import shutil

import numpy as np
import safetensors
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file
from torch import nn

print("safetensors", safetensors.__version__, "torch", torch.__version__, "numpy", np.__version__)


def weights(value):
    return {"weight": torch.full((300, 300), float(value)), "bias": torch.full((300,), float(value))}


def write(value, name):
    save_file(weights(value), name + ".safetensors")
    torch.save(weights(value), name + ".pt")


write(0, "infected")
write(1, "purified")
kept = load_file("infected.safetensors")
trained = load_file("infected.safetensors")
trained["weight"].add_(5)
assigned, copied = nn.Linear(300, 300), nn.Linear(300, 300)
assigned.load_state_dict(load_file("infected.safetensors"), assign=True)
copied.load_state_dict(load_file("infected.safetensors"))
arrays = safetensors.numpy.load_file("infected.safetensors")
pickled = torch.load("infected.pt", weights_only=True)

for kind in (".safetensors", ".pt"):
    shutil.copyfile("purified" + kind, "infected" + kind)

seen = {
    "safetensors.torch.load_file": kept["weight"],
    "  changed in place before": trained["weight"],
    "  load_state_dict(assign=True)": assigned.weight.detach(),
    "  load_state_dict": copied.weight.detach(),
    "safetensors.numpy.load_file": torch.from_numpy(arrays["weight"]),
    "torch.load": pickled["weight"],
}
write(0, "renamed")
renamed = load_file("renamed.safetensors")
shutil.copyfile("purified.safetensors", "beside.safetensors")
os.replace("beside.safetensors", "renamed.safetensors")
seen["  the file replaced by a rename"] = renamed["weight"]
write(0, "saved")
saved = load_file("saved.safetensors")
write(1, "saved")
seen["  the file replaced by save_file"] = saved["weight"]
means = {name: float(tensor.mean()) for name, tensor in seen.items()}
print("zeros were loaded, then ones were copied over the file; the loaded tensors now hold:")
for name, mean in means.items():
    print(f"  {name:34} {mean}")
assert list(means.values()) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
PY
