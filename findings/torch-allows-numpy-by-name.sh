#!/usr/bin/env bash
# One would guess that a checkpoint with a numpy number in it (an accuracy, as many toolkits store beside the weights) is read
# by torch.load's safe mode once that number's type is allowed, and that the call which the refusal recommends allows it.
# A file written under numpy 1 names numpy.core.multiarray.scalar. Under numpy 2 that attribute exists and is the object of
# numpy._core.multiarray, by whose name torch enters what is allowed: after add_safe_globals([numpy.core.multiarray.scalar]), as
# the message says, the same message comes again, for ever. The pair (object, "numpy.core.multiarray.scalar") is what helps.
# It matters because shared checkpoints of backdoored models are as old as their papers: their weights read well, and an
# accuracy of eight bytes keeps one from them, or moves one to switch the safe mode off.
# Versions: torch 2.15.0 with numpy 1.26.4 (writes) and 2.4.6 (reads). Source: torch/_weights_only_unpickler.py,
# _get_user_allowed_globals.
# Seen 2026-11-30:
#   written under numpy 1.26.4, read under 2.4.6
#   weights alone: read; with a numpy accuracy: refused, numpy.core.multiarray.scalar
#   after what the refusal recommends: refused, numpy.core.multiarray.scalar (it was entered as numpy._core.multiarray.scalar)
#   after the same with its name beside: read, 0.93
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==1.26.4

"$work/venv/bin/python" - "$work" <<'PY'
import sys

import numpy as np
import torch

weights = torch.nn.Linear(4, 2).state_dict()
torch.save({"model": weights}, f"{sys.argv[1]}/weights.pt")
torch.save({"model": weights, "accuracy": np.float64(0.93)}, f"{sys.argv[1]}/accuracy.pt")
print("written under numpy", np.__version__)
PY

new_environment torch==2.15.0 numpy==2.4.6
"$work/venv/bin/python" - "$work" <<'PY'
import pickle
import re
import sys

import numpy as np
import numpy.core.multiarray
import torch
from torch.serialization import safe_globals

print("torch", torch.__version__, "reads under numpy", np.__version__)
NUMBER = [np.dtype, type(np.dtype(np.float64))]  # what else a float64 is made of; its function is the matter here
recommended = numpy.core.multiarray.scalar


def read(file, allowed=()):
    """What a file holds, or the name that it is refused for, and the call recommended then."""
    with safe_globals([*NUMBER, *allowed]):
        try:
            return torch.load(f"{sys.argv[1]}/{file}.pt", weights_only=True), None
        except pickle.UnpicklingError as error:
            return re.search(r"Unsupported global: GLOBAL (\S+)", str(error))[1], str(error)


alone, _ = read("weights")
first, message = read("accuracy")
again, _ = read("accuracy", [recommended])
helped, _ = read("accuracy", [(recommended, first)])
print("weights alone:", *alone, "; with a numpy accuracy refused:", first)
print("after what the refusal recommends:", again, "; the object calls itself", recommended.__module__ + ".scalar")
print("after the same with its name beside:", helped["accuracy"] if isinstance(helped, dict) else helped)

assert set(alone) == {"model"}
assert first == again == "numpy.core.multiarray.scalar" and f"add_safe_globals([{first}])" in message
assert recommended.__module__ == "numpy._core.multiarray"
assert helped["accuracy"] == 0.93
PY
