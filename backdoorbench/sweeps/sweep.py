"""What the jobs of a sweep tell the process that launched them: a small file each, so that any launcher will do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from backdoorbench.storage import store
from backdoorbench.storage.store import read_json

if TYPE_CHECKING:
    from backdoorbench.sweeps.forecast import Ahead

LOST = "ended without a word: it was killed, or ran out of memory"
DAMAGED = "its job.json cannot be read: what became of it is not known"
MOST_COMMANDS = 20  # printed one by one


class SweepStopped(BaseException):
    """fail_fast: Hydra catches every Exception of a job and goes on, so the end of a sweep is none."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class Sweep:
    """The sweep that this process launches: what the sweeper, the launcher and the command line know of it together.

    Hydra makes its sweepers, launchers and callbacks itself and hands them nothing, so they find it by `Sweep.current()`.

    flags    Hydra's own flags on the command line, part of any command that repeats a job
    folder   where its jobs leave their words; None before it begins
    runs     its runs, looked over, by number; none where a search chooses them as it goes
    """

    _current: ClassVar[ContextVar[Sweep | None]] = ContextVar("sweep", default=None)

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self.flags = list(flags)
        self.folder: Path | None = None
        self.runs: Sequence[Ahead] = ()
        self.has_ended = False

    @classmethod
    def current(cls) -> Sweep:
        """The sweep of this process; one that nobody asks about where none was entered."""
        return cls._current.get() or cls()

    def __enter__(self) -> Sweep:
        self._token = self._current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._current.reset(self._token)

    def begin(self, folder: Path, runs: Sequence[Ahead], words: Sequence[str]) -> None:
        """Writes down what the sweep consists of.

        runs   of it, looked over, by number
        words  Hydra's own settings, such as its launcher"""
        self.folder, self.runs = folder, runs
        with store.storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        jobs = [list(run.overrides) for run in runs]
        store.write_json(folder / "sweep.json", {"jobs": jobs, "hydra": [*self.flags, *words]})


class SweepCallback(Callback):
    """Tells the sweep that it has ended, whichever sweeper carried it out."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        sweep = Sweep.current()
        sweep.folder, sweep.has_ended = Path(config.hydra.sweep.dir), True


@dataclass(frozen=True)
class Left:
    """What a job of a sweep left.

    overrides  the settings that make it
    record     its record's folder; None where it failed
    error      of a failed job, in a paragraph; mistake: whether that was the user's
    objective  what a search over settings is to make large: the purified model's accuracy on the holdout
    """

    overrides: tuple[str, ...]
    record: str | None
    error: str | None
    mistake: bool
    objective: float | None

    @staticmethod
    def read(file: Path) -> Left:
        """What `leave` wrote; a failed job's where the file holds something else."""
        try:
            content = read_json(file)
            return Left(**{**content, "overrides": tuple(content["overrides"])})
        except (OSError, ValueError, KeyError, TypeError):
            return Left((), None, DAMAGED, False, None)


def leave(
    place: Path,
    overrides: Sequence[str],
    *,
    record: str | None = None,
    error: str | None = None,
    mistake: bool = False,
    objective: float | None = None,
) -> None:
    """A job's own result, in its place among the sweep's folders."""
    with store.storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    content = {"overrides": list(overrides), "record": record, "error": error}
    store.write_json(place / "job.json", content | {"mistake": mistake, "objective": objective})


def collect(folder: Path) -> dict[int, Left]:
    """What every job of a sweep left, by job number. One that began and left nothing was killed; one that never began is
    not among them."""
    files = {int(file.parent.name): file for file in folder.glob("*/job.json") if file.parent.name.isdecimal()}
    found = {number: Left.read(file) for number, file in files.items()}
    for number, overrides in enumerate(planned(folder)):
        if number not in found and (folder / str(number)).is_dir():
            found[number] = Left(tuple(overrides), None, LOST, False, None)
        elif number in found and found[number].error == DAMAGED:
            found[number] = Left(tuple(overrides), None, DAMAGED, False, None)
    return dict(sorted(found.items()))


def planned(folder: Path) -> list[list[str]]:
    """The settings of each job of a sweep; none where a search chooses them as it goes."""
    return _begun(folder, "jobs")


def _begun(folder: Path, name: str) -> list[Any]:
    """A part of what `Sweep.begin` wrote; empty where there is nothing of the kind to read."""
    try:
        return list(read_json(folder / "sweep.json")[name])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def rerun_commands(folder: Path, failed: Sequence[Left]) -> list[str]:
    """The command that repeats just the failed jobs: one sweep where they are every combination of some values, else one
    command each; the whole sweep's, which skips what is done, where those would be too many."""
    words = _begun(folder, "hydra")
    start = ["bdx", "-m", *words]
    whole = joined([left.overrides for left in failed])
    if whole is not None:
        return [shlex.join([*start, *whole])]
    if len(failed) > MOST_COMMANDS:
        return []
    return [shlex.join([*start, *left.overrides]) for left in failed]


def joined(jobs: Sequence[Sequence[str]]) -> list[str] | None:
    """One sweep's settings for just these jobs, or None where they are not every combination of their values."""
    values: dict[str, list[str]] = {}
    for overrides in jobs:
        for setting in overrides:
            key, _, value = setting.partition("=")
            if value not in values.setdefault(key, []):
                values[key].append(value)
    if any(len(job) != len(values) for job in jobs) or prod(map(len, values.values())) != len(set(map(tuple, jobs))):
        return None
    return [f"{key}={','.join(found)}" for key, found in values.items()]


def varying(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job's settings those that are not the same in all jobs; all, where there is only one job."""
    if len(jobs) < 2:
        return [list(job) for job in jobs]
    common = set(jobs[0]).intersection(*map(set, jobs[1:]))
    return [[setting for setting in job if setting not in common] for job in jobs]
