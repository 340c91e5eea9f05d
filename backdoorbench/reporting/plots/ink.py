"""What plots share in looks: style, colours, panels laid out, lines, the legend and the small print; and figures as files.

Readable without telling colours apart: every line has a marker of its own. No pyplot, hence no global state, and equal runs
make equal bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, MaxNLocator

from backdoorbench.config.groups import INFECT
from backdoorbench.errors import ConfigError, quantity
from backdoorbench.reporting.rows import Cell, titled
from backdoorbench.storage.store import storage_errors

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, no yellow
MARKERS = "osD^vPX*"  # 7 colours and 8 markers: 56 pairs before one comes again
DASHED: dict[str, Any] = {"color": "#666666", "marker": "p", "linestyle": "--"}  # the infected model
SIZE, TITLE_SIZE = 8, 9  # points of text, and of a figure's title
STYLE: list[Any] = [
    "default",
    {
        "svg.hashsalt": "bdx", "pdf.fonttype": 42, "ps.fonttype": 42, "text.parse_math": False,
        "savefig.dpi": 200, "font.size": SIZE, "axes.titlesize": SIZE, "figure.titlesize": TITLE_SIZE,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e5e5e5",
        "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.3, "lines.markersize": 4,
    },
]  # fmt: skip
UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
WIDTH, HEIGHT, LEGEND = 2.6, 2.0, 1.8  # inches of a panel, and of the legend beside them
LETTERS = 15  # of text an inch holds
MARKED = 8  # points of a line, at most
ABREAST = 4  # panels side by side; more go below


def panels(title: str, titles: Sequence[str], rows: int) -> tuple[Figure, Any]:
    """A figure with room for a legend, and its (rows, panels) axes in percent, titled at the top; after four panels the next
    ones go below."""
    bands, columns = -(-len(titles) // ABREAST), min(len(titles), ABREAST)
    size = (WIDTH * columns + LEGEND, (HEIGHT * rows + 0.3) * bands + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    whole = figure.subplots(rows * bands, columns, sharey=True, squeeze=False)
    grid = whole.reshape(bands, rows, columns).swapaxes(0, 1).reshape(rows, bands * columns)
    for axes in grid[:, len(titles) :].flat:
        axes.remove()
    grid = grid[:, : len(titles)]
    for column in grid.T:
        for axes in column[1:]:
            axes.sharex(column[0])
    head(figure, title, columns)
    for axes, said in zip(grid[0], titles, strict=True):
        axes.set_title(textwrap.fill(said, round(WIDTH * LETTERS)), loc="left")
    grid[0, 0].set_ylim(0, 100)
    grid[0, 0].set_yticks(range(0, 101, 25))
    return figure, grid


def head(figure: Figure, title: str, columns: int) -> None:
    """The title of a figure above so many panels side by side, in as many lines as it needs not to reach the legend."""
    letters = round(WIDTH * columns * LETTERS * SIZE / TITLE_SIZE)
    figure.suptitle(textwrap.fill(title, letters), x=0.01, ha="left")


def zoom(grid: Any) -> None:
    """Lets the axis begin below the lowest value, where figures lie too close to 100 to be told apart."""
    lowest = min((float(min(line.get_ydata())) for axes in grid.flat for line in axes.lines), default=0.0)
    bottom = max(0.0, 100 - 1.25 * (100 - lowest)) if lowest < 100 else 99.0
    grid[0, 0].set_ylim(bottom, 100)
    grid[0, 0].yaxis.set_major_locator(MaxNLocator(5))


def draw_spread(axes: Axes, cells: Mapping[float, Cell], look: Mapping[str, Any]) -> None:
    """Error bars: the sample standard deviation, where there is one."""
    bars = [
        (x, 100 * cell.mean, 100 * cell.spread)
        for x, cell in cells.items()
        if cell.mean is not None and cell.spread is not None
    ]
    if bars:
        x, y, spread = zip(*bars, strict=True)
        place = {"transform": look["transform"]} if "transform" in look else {}
        axes.errorbar(x, y, spread, fmt="none", ecolor=look["color"], capsize=2, **place)


def name_rows(grid: Any, figures: Sequence[str]) -> None:
    """What is measured, at the left of each row of panels."""
    for name, row in zip(figures, grid, strict=True):
        for axes in row[::ABREAST]:
            axes.set_ylabel(f"{titled(name)}, %")


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each line's name."""
    return {
        name: {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        for index, name in enumerate(sorted(set(names)))
    }


def draw_line(axes: Axes, cells: Mapping[float, Cell], look: dict[str, Any], hollow: Collection[float]) -> None:
    """Means in percent; of the points, some are marked, those whose x is in `hollow` without a filling."""
    if not cells:
        return
    x, y = list(cells), [100 * (cell.mean or 0.0) for cell in cells.values()]
    step = 1 if look.get("linestyle") == "none" else -(-len(x) // MARKED)
    marked = range(0, len(x), step)
    axes.plot(x, y, **look, markevery=[index for index in marked if x[index] not in hollow], clip_on=False)
    if empty := [index for index in marked if x[index] in hollow]:
        axes.plot(
            x, y, **look | {"linestyle": "none"}, markevery=empty, markerfacecolor="white", clip_on=False, zorder=3
        )


def with_infected(figures: Iterable[str], looks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The looks of lines, the infected model's before them, where a figure is one that it has."""
    return {**({INFECT.model: DASHED} if set(figures) - {"holdout_ca"} else {}), **looks}


def finish(figure: Figure, names: Mapping[str, dict[str, Any]], said: Iterable[str]) -> None:
    """The legend beside the panels, and below them what a reader must know.

    names  of lines -> how they look"""
    handles = [Line2D([], [], label=textwrap.fill(label, 22), **look) for label, look in names.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, handlelength=3)
    say(figure, said)


def say(figure: Figure, said: Iterable[str]) -> None:
    """What a reader must know, in small print below."""
    text = textwrap.fill(" ".join(said), round(figure.get_figwidth() * LETTERS))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color="#444444")


def missing(count: int, what: str) -> list[str]:
    """A sentence on what is left out, where there is any; what: one of them."""
    return [f"{quantity(count, f'more {what}')} {'is' if count == 1 else 'are'} not drawn."] if count else []


def span(counts: Collection[int]) -> str:
    """`1,000`, or `120 to 1,000`."""
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def rename(figure: Figure, named: Callable[[str], str]) -> None:
    """Puts other words into all that is written on a figure: what print calls options."""
    for artist in figure.findobj(Text):
        assert isinstance(artist, Text)
        if artist.get_text():
            artist.set_text(named(artist.get_text()))
    for axes in figure.axes:  # whose labels are made when they are drawn
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_locator(), FixedLocator):
                shown = axis.get_major_formatter().format_ticks(list(axis.get_majorticklocs()))
                if (renamed := [named(text) for text in shown]) != shown:
                    axis.set_ticklabels(renamed)


# ---- files ----------------------------------------------------------------------------------------------------------


def check_name(file: Path) -> None:
    """ConfigError unless the suffix says SVG, PDF or PNG."""
    if file.suffix.lower() not in UNDATED:
        raise ConfigError(f"'{file}' is no name for a plot; expected one in .svg, .pdf or .png. Rename it.")


@style.context(STYLE)
def write(figure: Figure, file: Path) -> None:
    """The figure as SVG, PDF or PNG, as the suffix says, without a date. ConfigError for any other suffix."""
    check_name(file)
    with storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata=UNDATED[file.suffix.lower()])


@style.context([*STYLE, {"svg.fonttype": "none"}])
def as_svg(figure: Figure) -> str:
    """The figure as an element to put into a page: text stays text, and no two elements of a page get the same name.

    Printed by its canvas: `savefig` draws a figure twice, the first time for its layout alone."""
    buffer = io.StringIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_facecolor("none")
    FigureCanvasSVG(figure).print_svg(buffer, metadata=UNDATED[".svg"])  # type: ignore[no-untyped-call]
    text = buffer.getvalue()
    return re.sub(r' id="[A-Za-z0-9]+_\d+"', "", text[text.index("<svg") :])
