"""Wall time of a piece of work; beside the benchmarks that use it."""

import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], where: torch.device) -> float:
    """Of one call, with all that it leaves to a GPU."""
    if where.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if where.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
