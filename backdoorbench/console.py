"""What a person sees: one console, progress bars, and runs and tables as text. The same on a terminal and in a file, minus
colour and motion."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as BarTask
from rich.table import Table
from rich.text import Text

from backdoorbench import progress
from backdoorbench.reporting import table

if TYPE_CHECKING:  # the console itself answers without torch
    from backdoorbench.pipeline import Run

PIPED_WIDTH = 140  # a pipe has no width of its own


def make_console() -> Console:
    """The console on standard output; wide where nobody's window limits it."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


class ConsoleHandler(logging.Handler):
    """Log lines through the console, so that they do not tear a live bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, entry: logging.LogRecord) -> None:
        mark = "" if entry.levelno < logging.WARNING else f"{entry.levelname.lower()}: "
        self.console.print(Text(f"  {mark}{entry.getMessage()}"), style="dim" if not mark else "yellow")


class BarReporter:
    """Tasks as bars, with time left and the latest figures; a bar leaves when its task ends."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def open(self, name: str, total: int, unit: str, steps: int) -> progress.Task:
        return Bar(self.console, name, total, unit, steps)


class Bar:
    def __init__(self, console: Console, name: str, total: int, unit: str, steps: int) -> None:
        self.steps, self.total, self.unit = steps, total, unit
        columns: list[ProgressColumn] = [
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            _Count(self),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        ]
        self.progress = Progress(*columns, console=console, transient=True)
        self.task = self.progress.add_task(name, total=total * steps, figures="")
        self.progress.start()

    def advance(self, steps: int = 1, **figures: float) -> None:
        if figures:
            shown = ", ".join(progress.describe(key, value) for key, value in figures.items())
            self.progress.update(self.task, advance=steps, figures=shown)
        else:
            self.progress.update(self.task, advance=steps)

    def close(self) -> None:
        self.progress.stop()


class _Count(ProgressColumn):
    """`epoch 3/20`."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: BarTask) -> Text:
        return Text(f"{self.bar.unit} {int(task.completed) // self.bar.steps}/{self.bar.total}")


class Silent:
    """Tasks that nobody watches."""

    def open(self, name: str, total: int, unit: str, steps: int) -> progress.Task:
        return self

    def advance(self, steps: int = 1, **figures: float) -> None:
        return

    def close(self) -> None:
        return


def install(console: Console, style: str) -> None:
    """Shows progress as `style` says: auto (bars on a terminal, lines elsewhere), lines, off."""
    if style == "off":
        progress.install(Silent())
    elif style == "auto" and console.is_terminal:
        progress.install(BarReporter(console))
    else:
        progress.install(progress.LogReporter())


def clock(seconds: float) -> str:
    """`0:07`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def heading(run: Run) -> str:
    """`digits · demo · badnets → fst · seed 0`."""
    config = run.config
    names = [config[group]["name"] for group in ("dataset", "model")]
    return " · ".join([*names, f"{config['attack']['name']} → {config['defense']['name']}", f"seed {config['seed']}"])


def stage_line(run: Run, stage: str) -> str:
    """What a stage did, and what it cost."""
    if stage == "infect":
        attack = run.config["attack"]
        said = f"poison rate {100 * attack['poison_rate']:g} %" if "poison_rate" in attack else "clean training"
        if run.infection["target"]:
            said += f", {run.infection['target']}"
        found = f"cached {run.infection['key']}" if run.infection["cached"] else clock(run.seconds["infect"])
        return f"  infect     {said:<36} {found}"
    holdout = run.config["holdout"]
    said = f"{run.config['defense']['name']}, holdout {100 * holdout['rate']:g} %"
    return f"  purify     {said:<36} {clock(run.seconds['purify'])}"


def scores_table(run: Run) -> Table:
    """CA, ASR and RA before and after, in percent."""
    shown = Table(box=None, padding=(0, 1), show_edge=False)
    shown.add_column("         ")
    for name in ("CA", "ASR", "RA"):
        shown.add_column(name, justify="right", min_width=7)
    rows = [("infected", run.infected), ("purified", run.purified)]
    if run.control is not None:
        rows.insert(0, ("control", run.control))
    for name, scores in rows:
        figures = [table.percent(getattr(scores, figure) if scores else None) for figure in table.FIGURES]
        shown.add_row(f"  {name}", *figures)
    return shown


def print_outcome(console: Console, run: Run, folder: Path, repeated: bool) -> None:
    """The end of a run: its table, whatever must be said about it, and where the record lies."""
    if repeated:
        console.print(Text(f"\n  {heading(run)}"), style="bold")
        console.print(Text("  done before; rerun=true repeats it"), style="dim")
    console.print(scores_table(run))
    reasons = run.infection.get("reasons") or []
    if run.infection.get("status") in ("weak", "broken"):
        console.print(Text(f"  {run.infection['status']} infection: {'; '.join(reasons)}"), style="yellow")
    if run.infected is not None:
        counts = f"{run.infected.n_clean:,} clean"
        if run.infected.n_triggered:
            counts += f" and {run.infected.n_triggered:,} triggered"
        console.print(Text(f"  percent of {counts} test images"), style="dim")
    console.print(Text(f"  record     {folder / 'record.json'}"), style="dim", soft_wrap=True)


def print_report(console: Console, runs: Sequence[Run]) -> None:
    """The aggregated table of finished runs, and the failed ones by name."""
    rows = table.aggregate(runs)
    if rows:
        title, header, cells = table.grid(rows)
        shown = Table(
            box=None, padding=(0, 1), show_edge=False, title=Text(title) if title else None, title_justify="left"
        )
        for column in header:
            names = header.index(column) < header.index("n")
            shown.add_column(column, justify="left" if names else "right", no_wrap=not names)
        for line in cells:
            shown.add_row(*(Text(cell) for cell in line))
        console.print()
        console.print(shown)
        console.print(Text(f"  {table.footer(rows, runs)}"), style="dim")
    for run in runs:
        if run.status == "failed":
            console.print(Text(f"  failed: {heading(run)}: {run.error}"), style="red")


def print_comparison(
    console: Console, title: str, header: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]
) -> None:
    """Published figures beside ours, and what must be said below them."""
    shown = Table(box=None, padding=(0, 1), show_edge=False, title=Text(title), title_justify="left")
    for place, column in enumerate(header):
        figures = header.index("n") <= place < header.index("verdict")
        shown.add_column(column, justify="right" if figures else "left", no_wrap=figures)
    for line in cells:
        shown.add_row(*(Text(cell) for cell in line))
    console.print()
    console.print(shown)
    for note in notes:
        console.print(Text(f"  {note}"), style="dim")


def print_options(console: Console, rows: Sequence[tuple[str, str]], title: str) -> None:
    """Two columns: a name and what it is."""
    shown = Table(box=None, padding=(0, 2), show_edge=False, show_header=False)
    for name, text in rows:
        shown.add_row(Text(f"  {name}"), Text(text))
    console.print(Text(title), style="bold")
    console.print(shown)


def print_knobs(console: Console, rows: Sequence[tuple[str, str, str]]) -> None:
    """Three columns: a knob, its default, its comment."""
    shown = Table(box=None, padding=(0, 2), show_edge=False)
    for column in ("  setting", "default", "meaning"):
        shown.add_column(column)
    for name, default, comment in rows:
        shown.add_row(Text(f"  {name}"), Text(default), Text(comment))
    console.print(shown)
