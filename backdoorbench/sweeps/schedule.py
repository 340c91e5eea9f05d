"""Which job a pool starts next, and where. No processes here."""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from backdoorbench.errors import ConfigError

MOST_WORKERS = 8  # without a GPU, unless said otherwise: each takes half a gigabyte before it starts


@dataclass(frozen=True)
class Slot:
    """A place for one job at a time: on a GPU, or on the CPU where `gpu` is None."""

    name: str
    gpu: str | None


@dataclass(frozen=True)
class Waiting:
    """A job not yet started.

    key     of its run: the same run twice in a sweep is done once and found once
    trains  folders of the cached models that it needs, and trains where they are missing
    """

    number: int
    key: str
    trains: tuple[Path, ...]


def next_job(
    waiting: Sequence[Waiting], running: Collection[Waiting], is_ready: Callable[[Path], bool]
) -> Waiting | None:
    """The first job that would not wait for a model that a running one is training; None where all would.

    is_ready  whether a model lies in the cache by now"""
    training = {folder for job in running for folder in job.trains if not is_ready(folder)}
    keys = {job.key for job in running}
    for job in waiting:
        if job.key not in keys and training.isdisjoint(job.trains):
            return job
    return None


def make_slots(gpus: Sequence[str], jobs_per_gpu: int, workers: int | None, cores: int) -> list[Slot]:
    """The places of a pool: `jobs_per_gpu` on each GPU, or, without one, `workers` on the CPU (None: one a core, within
    reason)."""
    if gpus:
        return [Slot(f"gpu {gpu}", gpu) for _ in range(jobs_per_gpu) for gpu in gpus]
    count = min(cores, MOST_WORKERS) if workers is None else workers
    return [Slot(f"worker {index}", None) for index in range(count)]


def threads_each(cores: int, slots: int) -> int:
    """CPU threads of a job where `slots` run at once."""
    return max(1, cores // slots)


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_gpus(wanted: object, device: str, visible: Sequence[str]) -> list[str]:
    """The GPUs of a pool, as CUDA_VISIBLE_DEVICES names them.

    wanted   hydra.launcher.gpus: auto, or a list
    device   runtime.device of the jobs
    visible  those this process sees"""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"runtime.device is {device}, but a pool hands each job its own device. Leave it at auto, and choose GPUs with "
            f"hydra.launcher.gpus=[{device.partition(':')[2] or '0'}]."
        )
    if wanted == "auto":
        return list(visible) if device != "cpu" else []
    if not isinstance(wanted, Sequence) or isinstance(wanted, str):
        raise ConfigError(f"hydra.launcher.gpus is {wanted!r}; expected auto or a list such as [0,1].")
    chosen = [str(gpu) for gpu in wanted]
    if missing := [gpu for gpu in chosen if gpu not in visible]:
        seen = ", ".join(visible) if visible else "none"
        raise ConfigError(
            f"hydra.launcher.gpus names {missing[0]}, but this process sees {seen}. Name those, or leave auto."
        )
    return chosen if device != "cpu" else []
