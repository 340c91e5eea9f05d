"""A figure, attacks by defenses, as colours with their numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.errors import DataError, quantity
from backdoorbench.reporting.grids import LEFT_OUT, WEAK, Grid, pivot_grids
from backdoorbench.reporting.plots import ink
from backdoorbench.reporting.plots.panels import largest
from backdoorbench.reporting.rows import DASH, Cell, titled

if TYPE_CHECKING:
    from backdoorbench.reporting.rows import Row

CELL_WIDTH, CELL_HEIGHT = 0.62, 0.24  # inches of a cell
TITLE_LINE = 0.14  # inches of a further line of a title
LEAST_TITLE = 12  # letters of its line, at least


@style.context(ink.STYLE)
def heatmap(rows: Sequence[Row], metric: str = "asr", most: int | None = None) -> Figure:
    """A figure after the defense, attacks by defenses, means over seeds; a map a data set, network and rate. The figures stand
    in the cells; what was not run is hatched. DataError where no row holds the figure."""
    count = len(rows)
    rows = [row for row in rows if row.collapsed or row.figures.get(metric, Cell(())).values]
    grids = pivot_grids(rows, (INFECT.group, "rate"), (PURIFY.group,), (metric,)) if rows else []
    if not grids:
        raise DataError(
            f"{quantity(count, 'setting')} finished, none with {titled(metric)}; expected one at least. Run some: "
            f"bdx -m attack=badnets,blended defense=ft,fst."
        )
    kept = largest(grids, [len(grid.lines) * len(grid.columns) for grid in grids], most)
    widest = max(len(grid.columns) - grid.names for grid in kept)
    heights = [len(grid.lines) * CELL_HEIGHT for grid in kept]
    width = widest * CELL_WIDTH + 2
    room = max(round(width * ink.LETTERS) - max(len(name) for grid in kept for name in _names(grid)), LEAST_TITLE)
    titles = [textwrap.fill(grid.title.rpartition(" · ")[0], room) for grid in kept]
    more = TITLE_LINE * sum(title.count("\n") for title in titles)
    figure = Figure(figsize=(width, sum(heights) + 1.1 * len(kept) + 0.3 + more), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    maps = figure.subplots(len(kept), 1, squeeze=False, height_ratios=heights)[:, 0]
    for grid, axes, title in zip(kept, maps, titles, strict=True):
        _draw_map(axes, grid)
        axes.set_title(title, loc="left")
        axes.set_xlim(-0.5, widest - 0.5)  # cells of one size
    said = [f"{titled(metric)} of the {PURIFY.model} model, %; mean over seeds."]
    said += ink.missing(len(grids) - len(kept), "map")
    marks = {mark for grid in kept for line in grid.lines for item in line for mark in item.text}
    said += [f"{LEFT_OUT} collapsed runs left out."] * (LEFT_OUT in marks)
    said += [f"{WEAK} weak or broken infection."] * (WEAK in marks)
    ink.say(figure, said)
    return figure


def _names(grid: Grid) -> list[str]:
    """What its lines are called, at their left."""
    return [" · ".join(item.text for item in line[: grid.names] if item.text != DASH) for line in grid.lines]


def _draw_map(axes: Axes, grid: Grid) -> None:
    """The figures of a grid as coloured cells with their text."""
    values = [[item.value for item in line[grid.names :]] for line in grid.lines]
    shown = [[float("nan") if value is None else 100 * value for value in line] for line in values]
    axes.imshow(shown, cmap="cividis", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    for y, line in enumerate(grid.lines):
        for x, item in enumerate(line[grid.names :]):
            if item.value is None:
                axes.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#cccccc", linewidth=0)
                )
            dark = item.value is not None and item.value < 0.55
            marks = "".join(mark for mark in item.text if mark in (LEFT_OUT, WEAK))
            text = item.text.split(" ")[0] + marks
            colour = "#ffffff" if dark else "#010101"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour, in_layout=False)
    heads = [textwrap.fill(column.flat, 18, break_long_words=False) for column in grid.columns[grid.names :]]
    axes.set_xticks(range(len(heads)), heads, rotation=35, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(grid.lines)), _names(grid))
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)
