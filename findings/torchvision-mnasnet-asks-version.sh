#!/usr/bin/env bash
# One would guess that a network loads its own weights from any mapping of names to tensors, as all other classifiers of
# torchvision do: a plain dict, what safetensors reads, a checkpoint stripped of DataParallel's "module.".
# MNASNet asks for the version number that torch keeps as an attribute beside the dict, and refuses weights that have lost it, even
# with strict=False. Every copy loses it that makes a new mapping: a comprehension, OrderedDict(...), state.copy(), safetensors'
# load_file, an average of weights. copy.copy and deepcopy keep it, so does torch.save.
# It matters because purified weights are handed on as safetensors, and foreign checkpoints are read by stripping prefixes: for
# this one family that works with the attribute carried along only, or with {"": {"version": 2}} put in its place; with 1, which the
# message offers too, the network makes itself another first layer before it reads.
# Versions: torchvision 0.29.2, torch 2.15.0, safetensors 0.8.0, numpy 2.4.6.
# Source: torchvision/models/mnasnet.py, MNASNet._load_from_state_dict; torch/nn/modules/module.py, state_dict.
# Seen 2026-11-30:
#   resnet18: loads from all of them
#   mnasnet0_5: loads from state_dict(), copy.copy, copy.deepcopy, torch.save
#   mnasnet0_5: version should be set to 1 or 2 instead of None: .copy(), OrderedDict, comprehension, stripped prefix, safetensors
#   with 2 put back: loads; with 1: refused, and its first layer has 32 maps instead of 16
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torchvision==0.29.2 torch==2.15.0 safetensors==0.8.0 numpy==2.4.6

"$work/venv/bin/python" - "$work" <<'PY'
import copy
import sys
from collections import OrderedDict

import torch
import torchvision
from safetensors.torch import load_file, save_file

print("torchvision", torchvision.__version__, "torch", torch.__version__)
work = sys.argv[1]


def through_torch(state):
    torch.save(state, f"{work}/weights.pt")
    return torch.load(f"{work}/weights.pt", weights_only=True)


def through_safetensors(state):
    save_file(dict(state), f"{work}/weights.safetensors")
    return load_file(f"{work}/weights.safetensors")


def stripped(state):
    wrapped = {f"module.{name}": value for name, value in state.items()}
    return {name.removeprefix("module."): value for name, value in wrapped.items()}


WAYS = {
    "state_dict()": lambda state: state,
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "torch.save": through_torch,
    ".copy()": lambda state: state.copy(),
    "OrderedDict": OrderedDict,
    "comprehension": lambda state: {name: value for name, value in state.items()},
    "stripped prefix": stripped,
    "safetensors": through_safetensors,
}


def answers(name, strict=True):
    """What a network says to its own weights, by the way in which they were copied."""
    network = torchvision.models.get_model(name, weights=None)
    said = {}
    for way, copied in WAYS.items():
        try:
            network.load_state_dict(copied(network.state_dict()), strict=strict)
            said[way] = "loads"
        except ValueError as error:
            said[way] = str(error)
    return said


usual, odd, lax = answers("resnet18"), answers("mnasnet0_5"), answers("mnasnet0_5", strict=False)
for answer in dict.fromkeys([*usual.values(), *odd.values()]):
    for name, said in {"resnet18": usual, "mnasnet0_5": odd}.items():
        if ways := [way for way in WAYS if said[way] == answer]:
            print(f"{name}: {answer}:", ", ".join(ways))

refusal = "version should be set to 1 or 2 instead of None"
assert set(usual.values()) == {"loads"}
assert [way for way in WAYS if odd[way] == "loads"] == ["state_dict()", "copy.copy", "copy.deepcopy", "torch.save"]
assert set(odd.values()) == {"loads", refusal} and lax == odd

network = torchvision.models.mnasnet0_5(weights=None)
state, maps = OrderedDict(network.state_dict()), {}
for number in (2, 1):
    state._metadata = {"": {"version": number}}
    try:
        network.load_state_dict(state)
        maps[number] = network.layers[0].out_channels
    except RuntimeError:
        maps[number] = network.layers[0].out_channels
        print("refused, of another size:", end=" ")
    print(f"mnasnet0_5 with {number} put back: a first layer of {maps[number]} maps")
assert maps == {2: 16, 1: 32}
PY
