"""Figures against the poison rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.errors import DataError, join_words
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.plots.panels import figure_of, is_doubtful, poison_rate
from backdoorbench.reporting.rows import TITLES

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

BESIDE, SIDE = 3, 14  # points (1/72 inch) between lines at the same rate, and between the first and the last at most


@style.context(ink.STYLE)
def against_rate(runs: Iterable[Run], figures: Sequence[str] = ("asr", "ca"), most: int | None = None) -> Figure:
    """Figures after the defense against the poison rate: a row a figure, a column an attack, the infected model dashed, error
    bars the sample standard deviation; lines side by side, so that none hides another. DataError where no finished run holds
    such a figure at a rate above 0 (the axis is logarithmic)."""
    runs = list(runs)
    drawn, left_out = panels.sound(
        run
        for run in runs
        if poison_rate(run) > 0 and any(figure_of(run, PURIFY, name) is not None for name in figures)
    )
    if not drawn:
        raise DataError(
            f"{panels.finished(runs)}, none with {join_words([TITLES[name] for name in figures], 'or')} at a poison rate above "
            f"0; expected one at least. Run some: bdx -m attack=badnets attack.poison_rate=0.01,0.1 defense=fst."
        )
    title, shown, missing = panels.arrange(drawn, ("dataset", "model", "attack"), most)
    looks = panels.looks(shown)
    figure, grid = ink.panels(title, [panel.title for panel in shown], len(figures))
    for column, panel in enumerate(shown):
        victims = panels.once(run for members in panel.lines.values() for run in members)
        for name, axes in zip(figures, grid[:, column], strict=True):
            infected = panels.cells((poison_rate(run), figure_of(run, INFECT, name)) for run in victims)
            ink.draw_line(axes, infected, ink.DASHED, _doubtful(victims))
            for place, (label, members) in enumerate(panel.lines.items()):
                cells = panels.cells((poison_rate(run), figure_of(run, PURIFY, name)) for run in members)
                look = looks[label] | {"transform": _beside(figure, axes, place, len(panel.lines))}
                ink.draw_spread(axes, cells, look)
                ink.draw_line(axes, cells, look, _doubtful(members))
            _set_rates(axes, sorted({poison_rate(run) for run in victims}))
        for axes in grid[:-1, column]:
            axes.set_xlabel("")
    ink.name_rows(grid, figures)
    if set(figures) == {"holdout_ca"}:
        ink.zoom(grid)
    said = [panels.seeds(shown, "bars of one sample standard deviation"), *missing, *left_out, *panels.doubts(drawn)]
    ink.finish(figure, ink.with_infected(figures, looks), said)
    return figure


def _doubtful(runs: Iterable[Run]) -> set[float]:
    return {poison_rate(run) for run in runs if is_doubtful(run)}


def _beside(figure: Figure, axes: Axes, place: int, places: int) -> Transform:
    """Puts one of so many lines a little to the left or right; its data stay what they are."""
    points = (place - (places - 1) / 2) * min(BESIDE, SIDE / places)
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _set_rates(axes: Axes, rates: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each rate."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}")
    axes.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
    axes.set_xlabel("poison rate, %")
