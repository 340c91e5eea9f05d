"""What a sweep knows of its jobs: which were planned, where each leaves word, and what became of it, whatever the launcher.

A word is a small file, `job.json`, in a folder a job, by number. The jobs are told that place in Hydra's own configuration,
which every launcher hands to them; neither the folder that Hydra makes for a job nor the outputs of its run matter.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from backdoorbench.errors import BdxError, check_range
from backdoorbench.storage import store
from backdoorbench.storage.store import read_json
from backdoorbench.sweeps.compose import varying

if TYPE_CHECKING:
    from backdoorbench.sweeps.forecast import Ahead

WORD = "job.json"
ENVIRONMENT = "environment.txt"  # every installed package, driver and system, as the sweep began
PLACE = "BDX_SWEEP"  # in hydra.job.env_set: the folder that the jobs leave their words in
LOST = "ended without a word: it was killed, or ran out of memory"
DAMAGED = "its job.json cannot be read: what became of it is not known"
SAID = ("begun", "done", "failed", "interrupted")  # by a job itself; what is beyond, the sweep finds out
MOST_COMMANDS = 20  # printed one by one
OURS = "hydra_plugins.backdoorbench."  # sweepers that look their runs over before the sweep begins


class SweepStopped(BaseException):
    """The end of a sweep before its last job. Hydra catches every Exception of a job and goes on, so this is none."""


class Sweep:
    """The sweep that this process launches: what the sweeper, the launcher and the command line know of it together.

    Hydra makes its sweepers, launchers and callbacks itself and hands them nothing, so they find it by `Sweep.current()`.

    flags    Hydra's own flags on the command line, part of any command that repeats a job
    folder   of the sweep, absolute; None before it begins
    place    where its jobs leave their words: that folder, or one of its own in it where an earlier sweep was there before
    runs     its runs, looked over, by number; None where a search chooses them as it goes
    words    Hydra's own settings, such as its launcher
    is_stopped  whether it was ended before its last job, and those that ran with it
    """

    _current: ClassVar[ContextVar[Sweep | None]] = ContextVar("sweep", default=None)

    def __init__(self, flags: Sequence[str] = ()) -> None:
        self.flags = list(flags)
        self.folder: Path | None = None
        self.place = Path()
        self.runs: Sequence[Ahead] | None = None
        self.words: list[str] = []
        self.is_stopped = False

    @classmethod
    def current(cls) -> Sweep:
        """The sweep of this process; one that nobody asks about where none was entered."""
        return cls._current.get() or cls()

    def __enter__(self) -> Sweep:
        self._token = self._current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._current.reset(self._token)

    def begin(self, config: DictConfig, folder: str, runs: Sequence[Ahead] | None = None) -> None:
        """Claims the sweep's folder, writes down what the sweep consists of, and makes sure that its jobs leave word there.

        config  the sweep's, with Hydra's settings: launchers compose every job from it
        runs    of the sweep, looked over, by number; None where a search chooses them"""
        from backdoorbench.pipeline.environment import everything  # torch is imported only when work starts

        self.runs = runs
        said_to_hydra: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
        self.words = [word for word in said_to_hydra if not word.startswith("hydra.mode=")]
        self.folder = Path(folder).expanduser().absolute()
        self.place = _claimed(self.folder)
        jobs = None if runs is None else [list(run.overrides) for run in runs]
        said = {"jobs": jobs, "hydra": [*self.flags, *self.words], "words": str(self.place.relative_to(self.folder))}
        store.write_json(self.folder / "sweep.json", said)
        store.write_text(self.place / ENVIRONMENT, everything())
        _pin(config, self.folder, self.place)

    def jobs(self) -> dict[int, Left]:
        """What became of every job by now, by number: of those that were planned, or that a search has begun. One that began
        and left nothing more was killed, unless its run still goes on or the sweep was stopped."""
        if self.folder is None:
            return {}
        said = {int(file.parent.name): Left.read(file) for file in self.place.glob(f"*/{WORD}") if _is_number(file)}
        planned = {run.number: run for run in self.runs or ()}
        found: dict[int, Left] = {}
        for number in sorted(said if self.runs is None else planned):
            run = planned.get(number)
            left = said.get(number, Left((), "unstarted"))
            if run is not None:
                left = replace(left, overrides=run.overrides)
            if left.status == "begun":
                goes_on = run is not None and run.error is None and store.is_held(run.outputs.lock(run.key))
                status = "running" if goes_on else "interrupted" if self.is_stopped else "failed"
                left = replace(left, status=status, error=LOST if status == "failed" else VERBS[status][0])
            found[number] = left
        return found

    def has_started(self) -> bool:
        """Whether any of its jobs has begun."""
        return any(left.status != "unstarted" for left in self.jobs().values())

    def rerun_commands(self, jobs: Sequence[Left]) -> list[str]:
        """The command that repeats just these jobs: one sweep where they are every combination of some values, else one command
        each; none where those would be too many: the whole sweep's skips what is done."""
        is_search = self.runs is None
        words = [
            word for word in self.words if not (is_search and word.startswith(("hydra/sweeper=", "hydra.sweeper.")))
        ]
        start = ["bdx", "-m", *self.flags, *words]
        whole = joined([left.overrides for left in jobs])
        if whole is not None:
            return [shlex.join([*start, *whole])]
        if len(jobs) > MOST_COMMANDS:
            return []
        return [shlex.join([*start, *left.overrides]) for left in jobs]


def _claimed(folder: Path) -> Path:
    """The folder itself for the first sweep in it, a new one in it for every other: no sweep meets another's words."""
    with store.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            (folder / "sweep.json").open("x").close()
        except FileExistsError:
            pass
        else:
            if not any(_is_number(file) for file in folder.glob(f"*/{WORD}")):
                return folder
        place = folder / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        place.mkdir()
        return place


def _is_number(word: Path) -> bool:
    return word.parent.name.isdecimal()


def _pin(config: DictConfig, folder: Path, place: Path) -> None:
    """One folder for all jobs of a sweep, though each composes its own configuration anew, where `hydra.sweep.dir` may follow
    from settings that differ."""
    hydra = config.hydra
    with read_write(hydra), open_dict(hydra):
        hydra.sweep.dir, hydra.job.env_set[PLACE] = str(folder), str(place)
        for key, value in {"hydra.sweep.dir": folder, f"++hydra.job.env_set.{PLACE}": place}.items():
            hydra.overrides.hydra.append(f"{key}={QuotedString(str(value), Quote.single).with_quotes()}")


def place_of(hydra: Any) -> Path:
    """Where jobs with this configuration of Hydra leave their words."""
    return Path(hydra.job.env_set.get(PLACE) or hydra.sweep.dir)


class SweepCallback(Callback):
    """Begins the sweep for sweepers that know nothing of it: Hydra's own, and searches."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if str(config.hydra.sweeper._target_).startswith(OURS):
            return
        try:
            check_range("hydra.sweeper.n_trials", config.hydra.sweeper.get("n_trials", 1), 1)
            Sweep.current().begin(config, config.hydra.sweep.dir)
        except BdxError as error:  # Hydra would make a warning of it
            raise SweepStopped from error


# ---- what jobs leave ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Left:
    """What a job of a sweep left.

    overrides  the settings that make it
    status     one of SAID, which it said itself; else running (it goes on though the sweep has ended) or unstarted
    record     its record's folder; None where there is none that is done
    error      of a failed job, in a paragraph; mistake: whether that was the user's
    objective  what a search over settings is to make large: the purified model's accuracy on the holdout
    """

    overrides: tuple[str, ...]
    status: str
    record: str | None = None
    error: str | None = None
    mistake: bool = False
    objective: float | None = None

    @staticmethod
    def read(file: Path) -> Left:
        """What `leave` wrote; a failed job's where the file holds something else."""
        try:
            content = read_json(file)
            left = Left(**{**content, "overrides": tuple(content["overrides"])})
        except (OSError, ValueError, KeyError, TypeError):
            return Left((), "failed", error=DAMAGED)
        return left if left.status in SAID else Left(left.overrides, "failed", error=DAMAGED)


def leave(
    place: Path,
    overrides: Sequence[str],
    status: str,
    *,
    record: Path | None = None,
    error: str | None = None,
    mistake: bool = False,
    objective: float | None = None,
) -> None:
    """A job's own word, in its folder among the sweep's."""
    with store.storage_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    content = {"overrides": list(overrides), "status": status, "record": record and str(record.absolute())}
    store.write_json(place / WORD, content | {"error": error, "mistake": mistake, "objective": objective})


def has_ended(place: Path) -> bool:
    """Whether the job whose folder this is has said its last word."""
    return (place / WORD).is_file() and Left.read(place / WORD).status != "begun"


# ---- settings of jobs -----------------------------------------------------------------------------------------------


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


# ---- what is said of jobs -------------------------------------------------------------------------------------------

VERBS = {
    "failed": ("failed", "failed"),
    "interrupted": ("was interrupted", "were interrupted"),
    "running": ("still runs", "still run"),
    "unstarted": ("never started", "never started"),
}  # of a job that is not done, and of several


def summary(jobs: Mapping[int, Left]) -> str:
    """`2 of 12 jobs failed, 1 was interrupted`: those that are not done."""
    statuses = [left.status for left in jobs.values()]
    said = [(count, verbs[count > 1]) for status, verbs in VERBS.items() if (count := statuses.count(status))]
    return ", ".join(
        f"{count}{'' if place else f' of {len(jobs):,} jobs'} {verb}" for place, (count, verb) in enumerate(said)
    )


def told(jobs: Mapping[int, Left], ended: str) -> list[str]:
    """A line on each job that is not done; one on all that never started, where the sweep ended before their turn.

    ended  why it did; empty where it did not"""
    apart = varying([left.overrides for left in jobs.values()])
    lines: list[str] = []
    for (number, left), settings in zip(jobs.items(), apart, strict=True):
        name = f"job {number} ({' '.join(settings)})" if settings else f"job {number}"
        if left.status != "done" and not (ended and left.status == "unstarted"):
            lines.append(f"{name}: {left.error or VERBS[left.status][0]}")
    unstarted = [number for number, left in jobs.items() if left.status == "unstarted"]
    if ended and unstarted:
        lines.append(f"never started, as {ended}: job{'s' * (len(unstarted) > 1)} {spans(unstarted)}")
    return lines


def spans(numbers: Sequence[int]) -> str:
    """`3, 5 to 9`, of ascending numbers."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1].append(number)
        else:
            found.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in found)
