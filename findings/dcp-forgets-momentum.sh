#!/usr/bin/env bash
# One would guess that torch.distributed.checkpoint, asked for {"model": model.state_dict(), "optimizer": optimizer.state_dict()} of a
# fresh start, fills in what the checkpoint holds of them, or says what it left out. It fills in what the dict already has. A fresh
# optimiser has no state, so its momentum, Adam's averages and its count of steps stay in the file; the learning rate and all other
# settings, the scheduler and the epoch are taken, and weights are to the bit those that were saved. All that is said, in both ways, is
# that no process group is there. get_state_dict of torch.distributed.checkpoint.state_dict steps the optimiser once with a rate of 0
# first, and is resumed as one means.
# It matters because a training that was killed then goes on as another: Adam's first steps are as long as at its very beginning, at
# weights that were near their end, and no figure of the record tells it from one that was never killed.
# Versions: torch 2.15.0, scikit-learn 1.9.1, numpy 2.4.6.
# Source: create_default_local_load_plan (torch/distributed/checkpoint/default_planner.py), which asks for the keys of the state dict.
# Seen 2026-11-30 (a training of 10 epochs that is killed after 8; resumed by: tensors of the optimiser, largest difference
# of a weight from the training that was not killed):
#   Adam, state_dict()       0 of 12; 0.022
#   Adam, get_state_dict()   12 of 12; 0
#   SGD, state_dict()        0 of 4; 0.0064
#   SGD, get_state_dict()    4 of 4; 0
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 scikit-learn==1.9.1 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - "$work" <<'PY'
import logging
import sys
import warnings

import sklearn
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

print("torch", torch.__version__, "scikit-learn", sklearn.__version__)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
train, EPOCHS, KILLED = 1400, 10, 8
said = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)


def start(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(network.parameters(), 0.02, **options)
    return network, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)


def train_on(network, optimizer, scheduler, epochs):
    for epoch in epochs:
        for rows in torch.randperm(train, generator=torch.Generator().manual_seed(epoch)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
        scheduler.step()


def tensors(state):
    return sum(torch.is_tensor(value) for kept in state["state"].values() for value in kept.values())


def plain(folder, network, optimizer, scheduler):
    held = {
        "model": network.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "epoch": 0
    }
    checkpoint.load(held, checkpoint_id=folder)
    network.load_state_dict(held["model"])
    optimizer.load_state_dict(held["optimizer"])
    scheduler.load_state_dict(held["scheduler"])
    return held["epoch"]


def by_get_state_dict(folder, network, optimizer, scheduler):
    model, state = get_state_dict(network, optimizer)
    held = {"model": model, "optimizer": state, "scheduler": scheduler.state_dict(), "epoch": 0}
    checkpoint.load(held, checkpoint_id=folder)
    set_state_dict(network, optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
    scheduler.load_state_dict(held["scheduler"])
    return held["epoch"]


def saved_plain(network, optimizer):
    return {"model": network.state_dict(), "optimizer": optimizer.state_dict()}


def saved_by_get_state_dict(network, optimizer):
    return dict(zip(("model", "optimizer"), get_state_dict(network, optimizer)))


for kind in (torch.optim.Adam, torch.optim.SGD):
    whole, *rest = start(kind)
    train_on(whole, *rest, range(EPOCHS))
    for name, save, resume in (
        ("state_dict()", saved_plain, plain), ("get_state_dict()", saved_by_get_state_dict, by_get_state_dict)
    ):
        network, optimizer, scheduler = start(kind)
        train_on(network, optimizer, scheduler, range(KILLED))
        folder = f"{sys.argv[1]}/{kind.__name__}-{name[:3]}"
        held = {**save(network, optimizer), "scheduler": scheduler.state_dict(), "epoch": KILLED}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            checkpoint.save(held, checkpoint_id=folder)
            before = len(warned), len(said)
            again = start(kind)
            epoch = resume(folder, *again)
        equal = all(torch.equal(a, b) for a, b in zip(network.parameters(), again[0].parameters()))
        rate = again[1].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        count, had = tensors(again[1].state_dict()), tensors(optimizer.state_dict())
        train_on(*again, range(epoch, EPOCHS))
        off = max(float((a - b).detach().abs().max()) for a, b in zip(whole.parameters(), again[0].parameters()))
        told = [str(warning.message)[:60] for warning in warned[before[0] :]] + said[before[1] :]
        print(f"{kind.__name__}, {name}: epoch {epoch}, same weights {equal}, same rate {rate}, {count} of {had} tensors of the optimiser;",
              f"in the end a weight is off by {off:.3g}; said by load:", told)
        assert epoch == KILLED and equal and rate and all(text.startswith("torch.distributed is disabled") for text in told)
        assert (count == 0 and off > 0.005) if name == "state_dict()" else (count == had and off < 1e-6)
PY
