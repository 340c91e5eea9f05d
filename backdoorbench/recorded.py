"""Everything a run found out, as `record.json` holds it. Needs no torch, so that reports of many runs start at once."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from backdoorbench.config import Plain
from backdoorbench.metrics import Scores


@dataclass
class Run:
    """Everything a run found out; `record.json` is this as JSON.

    status     running, done or failed
    infection  key, status (clean, took, weak, broken), its reasons, whether it was cached, what it cost, facts, history
    curve      one point an epoch of the defense: epoch, ca, asr, ra, over `n` test images
    notes      figures the defense left
    seconds    wall time a stage
    """

    id: str
    status: str
    label: str
    config: Plain
    infected: Scores | None = None
    purified: Scores | None = None
    infection: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    control: Scores | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    error: str | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the wall time inside to `seconds[stage]`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.monotonic() - start, 3)
