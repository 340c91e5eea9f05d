"""Mean ranks of defenses on a line, bars over those that do not differ: Demšar's critical-difference diagram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backdoorbench.errors import DataError
from backdoorbench.reporting.contrasts import TUNING, probability
from backdoorbench.reporting.plots import ink
from backdoorbench.reporting.plots.panels import largest
from backdoorbench.reporting.rows import RISES, TITLES
from backdoorbench.reporting.significance import LEAST, LEVEL, alike

if TYPE_CHECKING:
    from backdoorbench.reporting.contrasts import Standing

LINE, BAR = 0.2, 0.09  # inches between two names, and between two bars
WIDTH = 6.5
SIDE = 0.32  # of the axis' length, for names on either side


@style.context(ink.STYLE)
def ranks(standings: Sequence[Standing], most: int | None = None) -> Figure:
    """A diagram a figure and block: mean ranks over infections, 1 the best, Nemenyi's critical difference as a ruler. DataError
    where nothing is ranked."""
    ranked = [standing for standing in standings if standing.ranking]
    if not ranked:
        raise DataError(
            f"there are no ranks to draw; expected 3 defenses at least on the same {LEAST} infections or more. Run another on "
            f"the same attacks and seeds: bdx -m attack=badnets,blended,sig seed=0,1 defense=ft,fst,fp."
        )
    kept = largest(ranked, [len(standing.ranked) for standing in ranked], most)
    heights = [_height(standing) for standing in kept]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.4 * len(kept) + 0.4), layout="constrained")
    places = figure.subplots(len(kept), 1, squeeze=False, height_ratios=heights)[:, 0]
    for standing, axes, height in zip(kept, places, heights, strict=True):
        _draw(axes, standing, height)
    counts = {standing.ranking.n for standing in kept if standing.ranking}
    said = [
        f"Mean ranks over n = {ink.span(counts)} infections, 1 is best; those under one bar are not apart (Nemenyi, {LEVEL:g}).",
        *ink.missing(len(ranked) - len(kept), "diagram"),
        *dict.fromkeys(
            f"{note[0].upper()}{note[1:]}." for standing in kept for note in standing.notes if TUNING in note
        ),
    ]
    ink.say(figure, said)
    return figure


def _height(standing: Standing) -> float:
    """Inches that a diagram needs."""
    return 0.45 + BAR * len(_bars(standing)) + LINE * ((len(standing.ranked) + 1) // 2)


def _bars(standing: Standing) -> list[tuple[int, int]]:
    found = standing.ranking
    assert found is not None
    return alike(found.means, found.distance) if found.p < LEVEL else [(0, len(found.means) - 1)]


def _draw(axes: Axes, standing: Standing, height: float) -> None:
    found, names = standing.ranking, standing.ranked
    assert found is not None
    first, last = 1.0, float(len(names))
    length = last - first
    axes.set_axis_off()
    axes.set_xlim(first - SIDE * length, last + SIDE * length)
    axes.set_ylim(height, 0)  # inches from the top
    top = 0.35
    axes.plot([first, last], [top, top], color="#000000", linewidth=1)
    for rank in range(1, len(names) + 1):
        axes.plot([rank, rank], [top, top - 0.05], color="#000000", linewidth=1)
        axes.text(rank, top - 0.07, str(rank), ha="center", va="bottom")
    _ruler(axes, first, min(found.distance, length), found.distance)
    bars = _bars(standing)
    for place, (start, end) in enumerate(bars):
        y = top + BAR * (place + 1)
        axes.plot(
            [found.means[start] - 0.01 * length, found.means[end] + 0.01 * length],
            [y, y],
            color=ink.COLOURS[0],
            linewidth=3,
        )
    half = (len(names) + 1) // 2
    for place, (name, mean) in enumerate(zip(names, found.means, strict=True)):
        is_left = place < half
        row = place if is_left else len(names) - 1 - place
        y = top + BAR * len(bars) + LINE * (row + 0.75)
        edge, align = (first - 0.02 * length, "right") if is_left else (last + 0.02 * length, "left")
        axes.plot([mean, mean, edge], [top, y, y], color="#000000", linewidth=0.8)
        label = f"{name}  {mean:.2f}" if is_left else f"{mean:.2f}  {name}"
        axes.text(edge + (-0.01 if is_left else 0.01) * length, y, label, ha=align, va="center")
    better = "higher" if RISES[standing.figure] else "lower"
    parts = (standing.title, f"{TITLES[standing.figure]}, {better} is better", f"Friedman p {probability(found.p)}")
    axes.set_title(" · ".join(filter(None, parts)), loc="left")


def _ruler(axes: Axes, start: float, length: float, distance: float) -> None:
    """The critical difference, above the axis; where it is longer than the axis, as long as that."""
    axes.plot([start, start + length], [0.06, 0.06], color="#666666", linewidth=1, marker="|")
    axes.text(start + length, 0.06, f"  critical difference {distance:.2f}", ha="left", va="center", color="#444444")
