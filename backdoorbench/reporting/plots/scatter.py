"""What defenses cost and bring: CA against ASR."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.figure import Figure

from backdoorbench.config.groups import INFECT, PURIFY, Stage
from backdoorbench.errors import DataError
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.plots.panels import figure_of, is_doubtful

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run


@style.context(ink.STYLE)
def scatter(runs: Iterable[Run], most: int | None = None) -> Figure:
    """What a defense costs and brings: an arrow from the infected model's CA and ASR to those of the model that it leaves, means
    over seeds, a panel a setting. The lower right corner is what a defender wants. DataError where no finished run holds an
    ASR."""
    runs = list(runs)
    drawn, left_out = panels.sound(
        run for run in runs if None not in (figure_of(run, INFECT, "asr"), figure_of(run, PURIFY, "asr"))
    )
    if not drawn:
        raise DataError(
            f"{panels.finished(runs)}, none with an ASR; expected one at least. Run one: bdx attack=badnets defense=fst."
        )
    title, shown, missing = panels.arrange(drawn, ("dataset", "model", "attack", "rate"), most)
    looks = panels.looks(shown)
    figure, grid = ink.panels(title, [panel.title for panel in shown], 1)
    lowest = 100.0
    for panel, axes in zip(shown, grid[0], strict=True):
        for label, members in panel.lines.items():
            start, end = (_mean_scores(members, stage) for stage in (INFECT, PURIFY))
            lowest = min(lowest, start[0], end[0])
            look, arrow = looks[label], {"arrowstyle": "-", "color": looks[label]["color"], "alpha": 0.6}
            axes.annotate("", end, start, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0}, annotation_clip=False)
            hollow = {"markerfacecolor": "white"} if any(map(is_doubtful, members)) else {}
            axes.plot(*start, **ink.DASHED | {"linestyle": "none"}, clip_on=False, zorder=3)
            axes.plot(*end, **look | {"linestyle": "none", "markersize": 6} | hollow, clip_on=False, zorder=4)
        axes.set_xlabel("CA, %")
    for axes in grid[0]:
        axes.set_xlim(min(90.0, 10 * (lowest // 10)), 100)
    ink.name_rows(grid, ("asr",))
    counts = {len(members) for panel in shown for members in panel.lines.values()}
    said = [("Means over seeds, " if max(counts) > 1 else "") + f"n = {ink.span(counts)}.", *missing, *left_out]
    named = {INFECT.model: ink.DASHED | {"linestyle": "none"}, **looks}
    ink.finish(figure, named, [*said, *panels.doubts(drawn)])
    return figure


def _mean_scores(runs: Iterable[Run], stage: Stage) -> list[float]:
    """CA and ASR after a stage, in percent."""
    runs = list(runs)
    cells = (panels.cells((0, figure_of(run, stage, name)) for run in runs) for name in ("ca", "asr"))
    return [100 * (cell[0].mean or 0.0) for cell in cells]  # each run has both
