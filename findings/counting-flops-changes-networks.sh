#!/usr/bin/env bash
# One would guess that a tool that prints a network's layers, or counts its operations, leaves the network as it was. Of a network in train
# mode, as any is that was just built and loaded, torchsummary, fvcore and torch's own FlopCounterMode take the images that they make up, or
# are given, into the batch norms' statistics; ptflops and calflops leave it in eval mode, where a loop that calls train() once trains without
# dropout and with norms that stand still; torchinfo and thop set batch norms free that were fixed in eval mode. thop leaves two tensors
# (total_ops, total_params) in the state dict, which load_state_dict then refuses. Nothing is said. In eval mode all leave it as it is, but for
# thop's tensors.
# It matters because the number of weights and FLOPs stands in every table, and is asked for between loading and judging or training.
# network.eval() before the tool, or a copy for it, gives what one meant.
# Versions: torchinfo 1.8.0, torchsummary 1.5.1, thop 0.1.1.post2209072238, ptflops 0.7.5, fvcore 0.1.5.post20221221, calflops 0.3.2,
# transformers 5.24.0, torch 2.15.0, torchvision 0.29.2, scikit-learn 1.9.1, numpy 2.4.6.
# Source: the functions that the script calls.
# Seen 2026-12-01 (accuracy on the digits of a network that had 95.0 %, loaded, shown to the tool ten times, and judged in eval mode; of 22
# modules in train mode those in eval mode after it; of 6 fixed batch norms those that are free):
#   torchsummary      93.2 %; 0; 0
#   fvcore            92.9 %; 0; 0
#   FlopCounterMode   92.9 %; 0; 0
#   ptflops           95.0 %; 22; 0
#   calflops          95.0 %; 22; 0
#   torchinfo         95.0 %; 0; 6
#   thop              95.0 %; 0; 6, and two tensors more in the state dict
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torchinfo==1.8.0 torchsummary==1.5.1 thop==0.1.1.post2209072238 ptflops==0.7.5 fvcore==0.1.5.post20221221 calflops==0.3.2 \
  transformers==5.24.0 torch==2.15.0 torchvision==0.29.2 scikit-learn==1.9.1 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - 2>/dev/null <<'PY'
import contextlib
import copy
import io
from importlib.metadata import version

import ptflops
import thop
import torch
import torchinfo
import torchsummary
from calflops import calculate_flops
from fvcore.nn import FlopCountAnalysis
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

print(*(f"{name} {version(name)}" for name in ("torchinfo", "torchsummary", "thop", "ptflops", "fvcore", "calflops", "torch")))
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
torch.manual_seed(0)
def block(of, to):
    return nn.Conv2d(of, to, 3, padding=1), nn.BatchNorm2d(to), nn.ReLU()


trained = nn.Sequential(
    *block(1, 16), *block(16, 16), *block(16, 32), *block(32, 32), *block(32, 32), *block(32, 32), nn.Flatten(), nn.Dropout(0.2),
    nn.Linear(2048, 10),
)
optimizer = torch.optim.SGD(trained.parameters(), 0.05, momentum=0.9)
for _ in range(8):
    for rows in torch.randperm(1400).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(images[rows]), labels[rows]).backward()
        optimizer.step()


def by_counter_mode(network):
    with FlopCounterMode(display=False):
        network(torch.rand(1, 1, 8, 8))


TOOLS = {
    "torchsummary": lambda network: torchsummary.summary(network, (1, 8, 8), device="cpu"),
    "fvcore": lambda network: FlopCountAnalysis(network, torch.rand(1, 1, 8, 8)).total(),
    "FlopCounterMode": by_counter_mode,
    "ptflops": lambda network: ptflops.get_model_complexity_info(network, (1, 8, 8), print_per_layer_stat=False, backend="pytorch"),
    "calflops": lambda network: calculate_flops(network, input_shape=(1, 1, 8, 8), print_results=False, print_detailed=False),
    "torchinfo": lambda network: torchinfo.summary(network, (1, 1, 8, 8), verbose=0),
    "thop": lambda network: thop.profile(network, (torch.rand(1, 1, 8, 8),), verbose=False),
}
EXPECTED = {  # loses accuracy; is in another mode; its fixed norms are free; has other names
    "torchsummary": (True, False, False, False), "fvcore": (True, False, False, False), "FlopCounterMode": (True, False, False, False),
    "ptflops": (False, True, False, False), "calflops": (False, True, False, False), "torchinfo": (False, False, True, False),
    "thop": (False, False, True, True),
}


@torch.no_grad()
def accuracy(network):
    return float((network.eval()(images[1400:]).argmax(1) == labels[1400:]).float().mean()) * 100


def loaded():
    network = copy.deepcopy(trained).train()
    network.load_state_dict(trained.state_dict())
    return network


def asked(tool, network, times=1):
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(times):
            tool(network)
    return network


start = accuracy(loaded())
print(f"before: {start:.1f} %")
for name, tool in TOOLS.items():
    torch.manual_seed(1)
    once, often = accuracy(asked(tool, loaded())), accuracy(asked(tool, loaded(), 10))
    network = asked(tool, loaded())
    modes = sum(not module.training for module in network.modules())
    extra = sorted(network.state_dict().keys() - trained.state_dict().keys())
    fixed = loaded()
    norms = [module.eval() for module in fixed.modules() if isinstance(module, nn.BatchNorm2d)]
    free = sum(norm.training for norm in [asked(tool, fixed), norms][1])
    calm = loaded().eval()
    asked(tool, calm)
    kept = all(torch.equal(calm.state_dict()[key], value) for key, value in trained.state_dict().items()) and not calm.training
    print(f"{name}: {once:.1f} %, after ten times {often:.1f} %; {modes} of 22 modules in eval mode; {free} of 6 fixed norms free; "
          f"new in the state dict: {extra}; in eval mode it leaves the network as it is: {kept}")
    assert kept and (often < start - 1, modes > 0, free > 0, bool(extra)) == EXPECTED[name]
PY
