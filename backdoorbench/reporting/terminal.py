"""Reports on the console, and as the same text for a file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from backdoorbench.reporting import report
from backdoorbench.reporting.content import tell_apart_by_content
from backdoorbench.reporting.display import TYPED, Names
from backdoorbench.reporting.formats import shared_out
from backdoorbench.reporting.grids import Grid, Item
from backdoorbench.reporting.report import Report
from backdoorbench.reporting.rows import FIGURES
from backdoorbench.screen import PIPED_WIDTH

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

NAME_WIDTH = 30  # of a column of names that is laid out beside figures; longer ones wrap
PADDING, FEWEST = 2, 5  # of a column; of a column of names, padding included, on however narrow a console


def print_report(console: Console, runs: Sequence[Run]) -> None:
    """The aggregated table of finished runs, as at the end of a sweep."""
    found = tell_apart_by_content({Path(run.id): run for run in runs})
    print_tables(console, report.make(found, FIGURES, (), ()))


def print_tables(console: Console, made: Report, named: Names = TYPED) -> None:
    """A report: its tables, the best in bold and starred, what must be said below them, failures with their logs.

    named  what options are called"""
    for section in report.sections(made, named):
        for grid, _ in section.tables:
            print_grid(console, grid)
        _print_notes(console, section.notes)
    for failure in made.failures:
        console.print(Text(f"  failed: {report.say(failure)}"), style="red", soft_wrap=True)


def as_text(made: Report, named: Names = TYPED) -> str:
    """What `print_tables` prints, for a file."""
    buffer = io.StringIO()
    print_tables(Console(file=buffer, width=PIPED_WIDTH, highlight=False), made, named)
    return buffer.getvalue()


def print_grid(console: Console, grid: Grid) -> None:
    """One table; nothing is ever cut, names wrap, and columns beyond the console's width go below, beside the names again.
    A star says best where bold does not show."""
    console.print()
    if grid.head:
        console.print(Text(f" {grid.head}", style="italic"))
    least = _least(grid, console.width)
    names = sum(least[: grid.names])
    pieces: list[list[int]] = [[]]
    for place in range(grid.names, len(grid.columns)):
        if pieces[-1] and names + sum(least[other] for other in pieces[-1]) + least[place] > console.width:
            pieces.append([])
        pieces[-1].append(place)
    for piece in pieces:
        console.print(_piece(grid, [*range(grid.names), *piece], least, console.width))


def _least(grid: Grid, room: int) -> list[int]:
    """How wide each column is at least, padding included: figures whole, names up to NAME_WIDTH, or narrower where the widest
    figure would find no room beside them."""
    wanted = [_width(grid, place) + PADDING for place in range(len(grid.columns))]
    names = [min(width, NAME_WIDTH + PADDING) for width in wanted[: grid.names]]
    left = max(room - max(wanted[grid.names :], default=0), FEWEST * len(names))
    return [*map(int, shared_out(names, left)), *wanted[grid.names :]]


def _piece(grid: Grid, places: Sequence[int], least: Sequence[int], room: int) -> Table:
    """The table of some of the columns. What room they leave goes to names first, then to heads."""
    shown = Table(box=None, padding=(0, 1), show_edge=False)
    starred = [any(line[place].best for line in grid.lines) for place in range(len(grid.columns))]
    left = max(0, room - sum(least[place] for place in places))
    for place in places:
        column = grid.columns[place]
        more = min(left, max(_width(grid, place), len(column.flat) + starred[place]) + PADDING - least[place])
        left -= more
        is_name = place < grid.names or column.name in ("verdict", "how sure")
        shown.add_column(
            Text(column.flat + " " * starred[place]),
            justify="left" if is_name else "right",
            width=least[place] + more - PADDING,
            overflow="fold",
        )
    for line in grid.lines:
        shown.add_row(*(_printed(line[place], starred[place]) for place in places))
    return shown


def _width(grid: Grid, place: int) -> int:
    """Of a column: its longest cell, or the longest word of its header; a star's room included."""
    cells = [line[place].text for line in grid.lines]
    return max(map(cell_len, cells + grid.columns[place].flat.split())) + any(line[place].best for line in grid.lines)


def _printed(item: Item, starred: bool) -> Text:
    return Text(f"{item.text}{'*' if item.best else ' ' * starred}", style="bold" if item.best else "")


def _print_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(Padding(Text(note, style="dim"), (0, 0, 0, 2)))
