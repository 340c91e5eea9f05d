"""What a person sees: one console, progress bars, and runs and tables as text. The same on a terminal and in a file, minus
colour and motion."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as BarTask
from rich.table import Table
from rich.text import Text

from backdoorbench import progress
from backdoorbench.reporting import published, report, table
from backdoorbench.reporting.report import Report
from backdoorbench.reporting.table import Grid, Item
from backdoorbench.reporting.table import heading as heading

if TYPE_CHECKING:  # the console itself answers without torch
    from backdoorbench.launchers.outlook import Ahead, Forecast
    from backdoorbench.recorded import Run

NAME_WIDTH = 30  # of a column of names that is laid out beside figures; longer ones wrap
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


def stage_line(run: Run, stage: str) -> str:
    """What a stage did, and what it cost."""
    if stage == "infect":
        attack = run.config["attack"]
        said = "clean training" if attack["name"] == "none" else "every batch twice"  # LIRA, Blind: clean and triggered
        if "poison_rate" in attack:
            said = f"poison rate {100 * attack['poison_rate']:g} %"
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
    if "rebuilt_train" in run.notes:
        said = "the attacker left no training set; the defense was given one rebuilt with his trigger"
        console.print(Text(f"  {said}"), style="yellow")
    if run.infected is not None:
        counts = f"{run.infected.n_clean:,} clean"
        if run.infected.n_triggered:
            counts += f" and {run.infected.n_triggered:,} triggered"
        console.print(Text(f"  percent of {counts} test images"), style="dim")
    console.print(Text(f"  record     {folder / 'record.json'}"), style="dim", soft_wrap=True)


def print_report(console: Console, runs: Sequence[Run]) -> None:
    """The aggregated table of finished runs, as at the end of a sweep."""
    print_tables(console, report.make({Path(run.id): run for run in runs}, table.FIGURES, (), ()))


def print_tables(console: Console, made: Report) -> None:
    """A report: its tables, the best in bold and starred, published figures beside ours, failures with their logs."""
    for grid in made.grids:
        print_grid(console, grid)
    _print_notes(console, made.notes)
    if made.beside:
        print_grid(console, published.as_grid(list(made.beside.values())))
        _print_notes(console, made.remarks)
    for failure in made.failures:
        console.print(Text(f"  failed: {report.say(failure)}"), style="red", soft_wrap=True)


def as_text(made: Report) -> str:
    """What `print_tables` prints, for a file."""
    buffer = io.StringIO()
    print_tables(Console(file=buffer, width=PIPED_WIDTH, highlight=False), made)
    return buffer.getvalue()


def print_grid(console: Console, grid: Grid) -> None:
    """One table; figures are never cut, names wrap, and columns beyond the console's width go below, beside the names again.
    A star says best where bold does not show."""
    console.print()
    if grid.title:
        console.print(Text(f" {grid.title}", style="italic"))
    widths = [_least_width(grid, place) + 2 for place in range(len(grid.columns))]
    names = sum(min(width, NAME_WIDTH) for width in widths[: grid.names])
    pieces: list[list[int]] = [[]]
    for place in range(grid.names, len(grid.columns)):
        if pieces[-1] and names + sum(widths[other] for other in pieces[-1]) + widths[place] > console.width:
            pieces.append([])
        pieces[-1].append(place)
    for piece in pieces:
        console.print(_piece(grid, [*range(grid.names), *piece]))


def _piece(grid: Grid, places: Sequence[int]) -> Table:
    """The table of some of the columns."""
    shown = Table(box=None, padding=(0, 1), show_edge=False)
    starred = [any(line[place].best for line in grid.lines) for place in range(len(grid.columns))]
    for place in places:
        column = grid.columns[place]
        is_name = place < grid.names or column.name in ("verdict", "how sure")
        shown.add_column(
            Text(column.flat + " " * starred[place]),
            justify="left" if is_name else "right",
            min_width=None if is_name else _least_width(grid, place),
        )
    for line in grid.lines:
        shown.add_row(*(_printed(line[place], starred[place]) for place in places))
    return shown


def _least_width(grid: Grid, place: int) -> int:
    """Of a column: its longest cell, or the longest word of its header; a star's room included."""
    cells = [line[place].text for line in grid.lines]
    return max(map(len, cells + grid.columns[place].flat.split())) + any(line[place].best for line in grid.lines)


def _printed(item: Item, starred: bool) -> Text:
    return Text(f"{item.text}{'*' if item.best else ' ' * starred}", style="bold" if item.best else "")


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))


def print_plan(console: Console, runs: Sequence[Ahead], forecast: Forecast) -> None:
    """The runs of a sweep, one a line, and what is left to do."""
    width = max(len(run.name) for run in runs)
    console.print()
    for run, state in zip(runs, forecast.states, strict=True):
        cost = clock(sum(run.seconds.values())) if run.seconds and state != "done" else ""
        line = f"  {run.number:>4}  {run.key:<12}  {run.name:<{width}}  {state:<24} {cost}".rstrip()
        console.print(Text(line), soft_wrap=True, style="dim" if state == "done" else "")
        if run.error is not None:
            console.print(Text(f"        {run.error}"), soft_wrap=True, style="yellow")
    done = forecast.states.count("done")
    impossible = forecast.states.count("cannot be")
    said = f"{len(runs):,} runs: {done:,} done, {len(runs) - done - impossible:,} to do"
    said += f", {impossible:,} that cannot be" if impossible else ""
    console.print(Text(f"\n  {said}"), style="bold")
    console.print(Text(f"  models to train first: {forecast.trained:,}; found in the cache: {forecast.cached:,}"))
    if forecast.unknown < len(runs) - done - impossible:
        guess = f"  about {clock(forecast.seconds)} one after another, by {forecast.records:,} past records"
        guess += f"; {forecast.unknown:,} runs are unlike any of them and not counted" if forecast.unknown else ""
    else:
        guess = "  no past record tells how long it takes"
    if forecast.seconds or forecast.unknown:
        console.print(Text(guess))


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
