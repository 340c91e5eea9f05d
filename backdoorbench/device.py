"""Where the work is done: choosing the device, counting threads, and saying what ran out of memory."""

import ctypes
import logging
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch

from backdoorbench.errors import DeviceError, join_words, shown

try:
    import resource
except ModuleNotFoundError:  # on Windows
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

THREADS = "OMP_NUM_THREADS"  # the variable that says how many threads share an operation
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = 2**31 - 1  # bytes


def choose(name: str, setting: str = "runtime.device") -> torch.device:
    """The device called `name`; `auto` is CUDA, else Apple's MPS, else the CPU. DeviceError where it is absent.

    setting  as a message calls it"""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    present = [
        "cpu",
        *(["cuda"] if torch.cuda.is_available() else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
    present += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if name not in present:
        raise DeviceError(
            f"{setting} is '{name}', but this machine offers {', '.join(present)}. Set {setting} to one of them, or to auto."
        )
    return torch.device(name)


def prepare(device: torch.device, threads: int | None) -> None:
    """Switches on what makes the device fast (TF32, convolution autotuning, memory that is kept) and fixes the number of CPU
    threads. DeviceError where a variable of the environment names none that there can be."""
    if threads is not None:
        torch.set_num_threads(threads)
    elif (said := os.environ.get(THREADS)) is not None and not re.fullmatch(r"\s*0*[1-9]\d*\s*(,.*)?", said):
        raise DeviceError(
            f"{THREADS} is {shown(said)}, which says no number of threads, so that all cores would be taken; expected a whole "
            f"number above 0. Correct it, unset it, or set runtime.threads."
        )
    if device.type == "cpu":
        keep_memory()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def keep_memory() -> None:
    """Lets memory that is freed stay with the process, where its C library is glibc. Each step of a training frees the very
    tensors that the next one asks for, and pages that went back to the kernel in between are cleared anew, which takes up to a
    sixth of a step (scripts/bench_airbench.py). The process holds what it once needed until `return_memory`."""
    if (library := glibc()) is not None:
        library.mallopt(M_MMAP_MAX, 0)  # no block is a mapping of its own, which dies with it
        library.mallopt(M_TRIM_THRESHOLD, NEVER)


def return_memory(device: torch.device) -> None:
    """Hands the kernel what `keep_memory` has kept, where work of other tensors begins: a judge's do not always fit where a
    training's lay, and would be held beside them."""
    if device.type == "cpu" and (library := glibc()) is not None:
        library.malloc_trim(0)


@cache
def glibc() -> ctypes.CDLL | None:
    """The process's C library, where it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


class Crowding:
    """Says once a process that other work keeps the threads of a training waiting for each other: of two threads beside one
    busy process a training of small batches keeps a hundredth of its speed, and one thread nearly all.

    AFTER      seconds of training after which that is judged
    GOT        share of the processor time wanted by its threads, below which they were kept waiting
    SWITCHES   times a second, at least, that the kernel took a core away; below, the threads wait for something else"""

    AFTER, GOT, SWITCHES = 5.0, 0.75, 100
    is_told = False

    def __init__(self, device: torch.device) -> None:
        self.threads = torch.get_num_threads() if device.type == "cpu" and resource is not None else 1
        self.is_over = self.threads < 2
        self.before = (0.0, 0.0, 0.0) if self.is_over else self._spent()

    def look(self) -> None:
        """Called at each step; judges the first seconds alone."""
        if self.is_over or Crowding.is_told or time.monotonic() - self.before[0] < self.AFTER:
            return
        self.is_over = True
        seconds, busy, switches = (now - then for now, then in zip(self._spent(), self.before, strict=True))
        if busy < self.GOT * self.threads * seconds and switches > self.SWITCHES * seconds:
            Crowding.is_told = True
            got = busy / seconds
            log.warning(
                f"other work keeps the cores busy: of {self.threads} threads' time this training got {got:.1f}, and threads that "
                f"wait for each other can be many times slower than fewer; runtime.threads={max(1, int(got))} is faster meanwhile"
            )

    def _spent(self) -> tuple[float, float, float]:
        """Seconds on the clock and of the processor, and involuntary switches, of this process until now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return time.monotonic(), used.ru_utime + used.ru_stime, used.ru_nivcsw


def describe(device: torch.device) -> str:
    """`NVIDIA H200`, or the processor's name with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="ignore") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads"


@contextmanager
def memory_errors(stage: str, settings: Mapping[str, int]) -> Iterator[None]:
    """Turns "out of memory" during `stage` into a DeviceError that names the `settings` to lower, with their values."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        spent = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text
        if not spent:
            raise
        lower = join_words([f"{name} (now {value})" for name, value in settings.items()], "or")
        raise DeviceError(
            f"memory ran out during '{stage}' ({text.partition(chr(10))[0]}). Lower {lower}, or "
            f"choose a narrower model; what was finished before is kept."
        ) from None
