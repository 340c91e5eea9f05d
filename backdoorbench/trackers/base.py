"""What a tracker is: a place beside the record where a run's figures go. It watches; it can change no result.

A tracker is a choice with settings, `tracker=wandb tracker.project=mine`; what it starts for a run is a journal.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from backdoorbench.config.compose import Plain
from backdoorbench.config.groups import DETECT, INFECT, JUDGED, PURIFY
from backdoorbench.errors import BdxError, ConfigError

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

log = logging.getLogger(__name__)

EPOCHS = ("infection", "defense")  # prefixes of the values that come once an epoch
FINAL = tuple(f"{stage.model}/{name}" for stage in JUDGED for name in ("ca", "asr", "ra"))


class Journal(ABC):
    """One run as a tracker sees it."""

    @abstractmethod
    def log(self, epoch: int | None, values: Mapping[str, float]) -> None:
        """`values` by name ("defense/ca"), all of one prefix, after an epoch (counted from 1), or of the run as a whole."""

    @abstractmethod
    def finish(self, done: bool) -> None:
        """The run has ended, well or not. Called exactly once, whatever happened."""


@dataclass(frozen=True)
class Tracker(ABC):
    """package: what it imports, which comes with the extra of the tracker's name"""

    package: ClassVar[str]

    name: str

    def check(self) -> None:
        """Raises ConfigError where the package is missing: before anything is trained."""
        if find_spec(self.package) is None:
            raise ConfigError(
                f"tracker={self.name} needs {self.package}, which is not installed. Add it: pip install 'bdx[{self.name}]'."
            )

    @abstractmethod
    def start(self, name: str, config: Plain, folder: Path) -> Journal:
        """A journal for the run `name`, which has this resolved configuration and leaves its files in `folder`."""


@contextmanager
def tracked(tracker: Tracker, run: Run, folder: Path) -> Iterator[Callable[[str], None]]:
    """Keeps a journal of `run` while it is carried out: tell it the stages (infect, detect, curve, purify, after) as they end.

    A tracker that does not start is a ConfigError, as nothing is lost yet; one that fails later costs a warning, never
    the run."""
    try:
        journal = tracker.start(folder.name, run.config, folder)
    except BdxError:
        raise
    except Exception as error:
        raise ConfigError(
            f"tracker={tracker.name} does not start ({type(error).__name__}: {error}). Correct its settings (bdx show "
            f"tracker={tracker.name}), or run without it: tracker=none."
        ) from error
    works = True

    def attempt(write: Callable[[], None]) -> None:
        nonlocal works
        try:
            if works:
                write()
        except Exception as error:
            works = False
            log.warning(f"tracker={tracker.name} failed ({type(error).__name__}: {error}); the run goes on without it")

    def tell(stage: str) -> None:
        for epoch, values in news(run, stage):
            attempt(lambda epoch=epoch, values=values: journal.log(epoch, values))  # type: ignore[misc]

    done = False
    try:
        yield tell
        done = True
    finally:
        attempt(lambda: journal.finish(done))


def news(run: Run, stage: str) -> Iterator[tuple[int | None, dict[str, float]]]:
    """What a stage's end has added to a run: (epoch or None, values by name)."""
    found = run.of(stage)
    if stage == INFECT.name:
        for epoch, figures in enumerate(found.history, 1):
            yield epoch, {f"infection/{name}": value for name, value in figures.items()}
    for point in _points(run, stage):
        yield (
            point["epoch"],
            {f"defense/{name}": point[name] for name in ("ca", "asr", "ra") if point[name] is not None},
        )
    judged = {each.model: found.scores for each in JUDGED if each.name == stage}
    for when, scores in {"control": found.control, **judged}.items():
        if scores is not None:
            figures = {f"{when}/{name}": getattr(scores, name) for name in ("ca", "asr", "ra")}
            yield None, {name: value for name, value in figures.items() if value is not None}
    kind = {DETECT.name: "detection"}.get(stage, stage)
    if known := {f"{kind}/{name}": value for name, value in found.figures.items() if value is not None}:
        yield None, known


def _points(run: Run, stage: str) -> list[dict[str, Any]]:
    """The points of the learning curve that are new: the latest, or all of a purified model that was found."""
    if stage == "curve":
        return run.purification.curve[-1:]
    return run.purification.curve if stage == PURIFY.name and run.purification.cached else []
