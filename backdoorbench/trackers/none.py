"""None: the record alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from backdoorbench.config.compose import Plain
from backdoorbench.trackers.base import Journal, Tracker


@dataclass(frozen=True)
class NoTracker(Tracker):
    """Needs nothing, writes nothing."""

    package: ClassVar[str] = "backdoorbench"

    def start(self, name: str, config: Plain, folder: Path) -> Journal:
        return Unwritten()


class Unwritten(Journal):
    def log(self, epoch: int | None, values: Mapping[str, float]) -> None:
        pass

    def finish(self, done: bool) -> None:
        pass
