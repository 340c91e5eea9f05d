"""torch's optimisers without torch.compile: their methods as torch wrote them, before it wrapped them for its compiler.

The wrappers import the compiler at the first call, whether anything is compiled or not, which costs a process 150 MiB and a
second (scripts/bench_purify.py). No step here is ever compiled, so nothing is lost; every number is the same.
"""

import inspect
from typing import TypeVar

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)


def uncompiled(kind: type[Kind]) -> type[Kind]:
    """The class of optimisers `kind`, with its own name and methods, each free of the compiler's wrapper."""
    plain = {
        name: inspect.unwrap(getattr(kind, name))
        for name in ("state_dict", "load_state_dict", "zero_grad", "add_param_group")
    }
    step = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**plain, "step": step, "__module__": __name__, "__doc__": kind.__doc__})


SGD = uncompiled(torch.optim.SGD)
Adam = uncompiled(torch.optim.Adam)
AdamW = uncompiled(torch.optim.AdamW)
