"""Learning curves of defenses: CA, ASR and RA against the epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from backdoorbench.config.groups import INFECT
from backdoorbench.errors import DataError, quantity
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.plots.panels import figure_of, is_doubtful
from backdoorbench.reporting.rows import FIGURES, Cell, collapse

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

UNLIKE = 8  # times as many epochs: from here on a linear axis squeezes the shorter defense


@style.context(ink.STYLE)
def curves(runs: Iterable[Run], most: int | None = None) -> Figure:
    """CA, ASR and RA against the defense's epoch: a column a setting, a row a figure, a line the mean over seeds in a band
    from the smallest to the largest. DataError where no finished run holds a learning curve.

    most  panels, at most, here and below: those with most runs; the figure says how many are missing"""
    runs = list(runs)
    drawn = [run for run in runs if run.status == "done" and run.purification.curve]
    if not drawn:
        raise DataError(
            f"{panels.finished(runs)}, none with a learning curve; expected one at least. Run a defense that trains, with "
            f"curve.every=1: bdx attack=badnets defense=fst."
        )
    title, shown, missing = panels.arrange(drawn, ("dataset", "model", "attack", "rate"), most)
    looks = panels.looks(shown)
    figure, grid = ink.panels(title, [panel.title for panel in shown], len(FIGURES))
    for axes in grid[:-1].flat:
        axes.tick_params(labelbottom=False)
    for column, panel in enumerate(shown):
        for name, axes in zip(FIGURES, grid[:, column], strict=True):
            for label, members in panel.lines.items():
                cells = by_epoch(members, name)
                _draw_band(axes, cells, looks[label]["color"])
                ink.draw_line(axes, cells, looks[label], hollow=cells if any(map(is_doubtful, members)) else ())
            if not axes.lines:
                axes.text(0.5, 0.5, "no trigger", transform=axes.transAxes, ha="center", color="#666666")
        _set_epochs(grid[-1, column], list(panel.lines.values()))
    ink.name_rows(grid, FIGURES)
    images = {point["n"] for run in drawn for point in run.purification.curve}
    said = [panels.seeds(shown, "band from the smallest to the largest"), *missing]
    count = sum(bool(collapse(run)) for run in drawn)
    said += [f"{quantity(count, 'collapsed run')} among them."] if count else []
    if any(map(starts_infected, drawn)):
        said.append(f"Epoch 0: the {INFECT.model} model, on the whole test set; then {ink.span(images)} test images.")
    ink.finish(figure, looks, [*said, *panels.doubts(drawn)])
    return figure


def starts_infected(run: Run) -> bool:
    """Whether the defense starts from the infected model, which then is epoch 0 of its curve. A record that does not say so is
    taken to mean it."""
    return bool(run.purification.details.get("starts_from", INFECT.model) == INFECT.model)


def by_epoch(runs: Iterable[Run], name: str) -> dict[float, Cell]:
    """Epoch -> a figure over seeds, from the infected model on where the defense starts there."""
    runs = list(runs)
    start = [(0, figure_of(run, INFECT, name)) for run in runs if starts_infected(run)]
    return panels.cells([*start, *((point["epoch"], point[name]) for run in runs for point in run.purification.curve)])


def _draw_band(axes: Axes, cells: Mapping[float, Cell], colour: str) -> None:
    """From the smallest to the largest value, where there are several."""
    if any(len(cell.values) > 1 for cell in cells.values()):
        low, high = ([100 * pick(cell.values) for cell in cells.values()] for pick in (min, max))
        axes.fill_between(list(cells), low, high, color=colour, alpha=0.15, linewidth=0)


def _set_epochs(axes: Axes, lines: Sequence[Sequence[Run]]) -> None:
    """An axis from epoch 0 on, logarithmic beyond 1 where one defense takes many times the epochs of another."""
    lengths = [max(point["epoch"] for run in members for point in run.purification.curve) for members in lines]
    if max(lengths) > UNLIKE * min(lengths):
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlim(0, max(lengths))
    axes.set_xlabel("epoch of the defense")
