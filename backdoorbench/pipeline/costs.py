"""What a stage costs beside its time: peak memory of the process and of the device, energy, images a second of its training."""

import ctypes
import itertools
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from backdoorbench.storage.record import AT_ONCE, Finding
from backdoorbench.training import fit
from backdoorbench.training.fit import Epoch

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
NVML = "libnvidia-ml.so.1"
RUNS = itertools.count()  # of this process


@contextmanager
def metered(finding: Finding, device: torch.device) -> Iterator[None]:
    """Writes what the inside costs into the finding's `spent`, as far as the system and the device tell it.

    memory             bytes that the process held at most, libraries included
    device_memory      bytes that it had allocated on the device at most
    joules             that the device drew, all processes on it together
    images_per_second  of all trainings inside, augmentation included"""
    reset_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    drawn, images, seconds = energy(device), fit.PACE.images, fit.PACE.seconds
    try:
        yield
    finally:
        spent: dict[str, float | None] = {"memory": peak()}
        if device.type == "cuda":
            spent["device_memory"] = torch.cuda.max_memory_allocated(device)
        now = energy(device) if drawn is not None else None
        if drawn is not None and now is not None:
            spent["joules"] = round(now - drawn, 3)
        if fit.PACE.seconds > seconds:
            spent["images_per_second"] = round((fit.PACE.images - images) / (fit.PACE.seconds - seconds), 1)
        finding.spent |= {name: value for name, value in spent.items() if value is not None}


@contextmanager
def timed(finding: Finding, part: str) -> Iterator[None]:
    """Adds the wall time inside to the finding's `seconds[part]`, and that of the epochs which a killed process had trained: its
    snapshot brings them, and what they made cost them too."""
    before = fit.PACE.earlier
    with finding.timed(part):
        yield
    finding.seconds[part] = round(finding.seconds[part] + fit.PACE.earlier - before, 3)


def company() -> dict[str, Any]:
    """What a run, the next of this process, shares: how many jobs its launcher runs `at_once`, and whether the process is
    `fresh`. Beside others stages take longer, and after others the process holds what those left."""
    return {"at_once": int(os.environ.get(AT_ONCE, 1)), "fresh": next(RUNS) == 0}


def pace(history: Sequence[Epoch]) -> float | None:
    """Images a second over the epochs of a training; None of none."""
    seconds = sum(epoch.seconds for epoch in history)
    if not seconds:
        return None
    return round(sum(epoch.images_per_second * epoch.seconds for epoch in history) / seconds, 1)


def reset_peak() -> None:
    """Makes `peak` start anew, where the system can (Linux); elsewhere it is that of the whole process so far."""
    try:
        PEAK.write_text("5")
    except OSError:
        return


def peak() -> int:
    """Bytes of memory that this process held at most."""
    try:
        lines = STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def energy(device: torch.device) -> float | None:
    """Joules that an NVIDIA GPU has drawn since its driver was loaded; None where nothing tells it."""
    if device.type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL(NVML)
        handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        called = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
        calls = (
            nvml.nvmlInit_v2(),
            nvml.nvmlDeviceGetHandleByUUID(called, ctypes.byref(handle)),
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)),
        )
    except (OSError, AttributeError, RuntimeError):
        return None
    return millijoules.value / 1000 if not any(calls) else None
