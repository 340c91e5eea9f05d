"""All jobs of a pool at a glance: a live table on a terminal, a line for each change elsewhere."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from backdoorbench.reporting.rows import percent
from backdoorbench.screen import clock

State = Literal["waiting", "running", "done", "found", "failed", "interrupted"]
ORDER: dict[State, int] = {"running": 0, "failed": 1, "interrupted": 2, "done": 3, "found": 4, "waiting": 5}
REFRESH = 4  # times a second
CHROME = 6  # lines of the terminal that are no job's


@dataclass
class Row:
    """What is known of a job.

    stage   start, infect, purify; part: the piece of it under way (`ft epoch 3/10`)
    left    seconds that piece has left
    scores  the latest ca, asr, ra
    """

    number: int
    name: str
    state: State = "waiting"
    stage: str = ""
    part: str = ""
    left: float | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    begun: float = 0.0
    seconds: float = 0.0
    error: str = ""

    def hear(self, message: dict[str, Any]) -> str | None:
        """Takes in what the job said; the line it deserves in a file, if any."""
        if "stage" in message:
            self.stage, self.part, self.left = message["stage"], "", None
        self.part, self.left = message.get("part", self.part), message.get("left", self.left)
        if message.get("scores"):
            self.scores = message["scores"]
        return f"{self.stage}{self.figures()}" if "stage" in message else None

    def start(self) -> None:
        self.state, self.stage, self.begun = "running", "start", time.monotonic()

    def end(self, state: State, error: str = "") -> None:
        self.state, self.error, self.part, self.left = state, error, "", None
        self.seconds = time.monotonic() - self.begun if self.begun else 0.0

    def figures(self) -> str:
        """`, CA 97.31 ASR 2.04 RA 95.11`, or nothing."""
        known = [f"{name.upper()} {percent(value)}" for name, value in self.scores.items() if value is not None]
        return ", " + " ".join(known) if known else ""

    def cells(self) -> list[str]:
        said = {"running": f"{self.stage} {self.part}".strip(), "found": "done before"}.get(self.state, self.state)
        left = clock(self.left) if self.left is not None else clock(self.seconds) if self.seconds else ""
        figures = [percent(self.scores.get(name)) if self.scores else "" for name in ("ca", "asr", "ra")]
        return [str(self.number), self.name, said, left, *figures]


class Board:
    """Shows the jobs while it is open.

    style  runtime.progress: auto (a table on a terminal, lines elsewhere), lines, off"""

    def __init__(self, console: Console, rows: Sequence[Row], style: str) -> None:
        self.console, self.rows, self.style = console, rows, style
        self.began = time.monotonic()
        self.live: Live | None = None

    def __enter__(self) -> "Board":
        if self.style == "auto" and self.console.is_terminal:
            self.live = Live(
                console=self.console, get_renderable=self.render, refresh_per_second=REFRESH, transient=True
            )
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, row: Row, what: str) -> None:
        """A line on one job, where no table shows it."""
        if self.live is None and self.style != "off":
            ended = sum(each.state not in ("waiting", "running") for each in self.rows)
            text = f"  {ended}/{len(self.rows)}  run {row.number}  {row.name}: {what}"
            self.console.print(Text(text), soft_wrap=True)

    def render(self) -> Table:
        """The table: running jobs first, then failed, then those that ended last; as many as the window holds."""
        shown = Table(box=None, padding=(0, 1), show_edge=False, title=Text(self.summary()), title_justify="left")
        for column in ("run", "settings", "stage", "left", "CA", "ASR", "RA"):
            shown.add_column(column, justify="left" if column in ("settings", "stage") else "right", no_wrap=True)
        room = max(3, self.console.height - CHROME)
        ordered = sorted(self.rows, key=lambda row: (ORDER[row.state], -row.begun if row.state == "done" else 0))
        for row in ordered[:room]:
            style = {"failed": "red", "interrupted": "yellow", "waiting": "dim", "found": "dim"}.get(row.state, "")
            shown.add_row(*(Text(cell) for cell in row.cells()), style=style)
        if len(ordered) > room:
            shown.add_row("", Text(f"… and {len(ordered) - room} more"), style="dim")
        return shown

    def summary(self) -> str:
        """`5 of 24 done, 1 failed, 2 running, 0:04:10`."""
        return f"{counts(self.rows)}, {clock(time.monotonic() - self.began)}"


def counts(rows: Iterable[Row]) -> str:
    """How many jobs are where."""
    states = [row.state for row in rows]
    done = sum(state in ("done", "found") for state in states)
    parts = [f"{done} of {len(states)} done"]
    parts += [f"{states.count(state)} {state}" for state in ("failed", "interrupted", "running") if states.count(state)]
    return ", ".join(parts)
