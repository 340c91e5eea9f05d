"""CA and ASR by true class, before and after a defense."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from backdoorbench.config.groups import INFECT, PURIFY, Stage
from backdoorbench.errors import DataError
from backdoorbench.reporting.classes import class_names, nothing, per_class
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.rows import Cell

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

NAMED = 20  # classes, at most, whose names stand at the axis
SIDE = 0.6  # of the room between two classes that the defenses take


@style.context(ink.STYLE)
def by_class(runs: Iterable[Run], figures: Sequence[str] = ("ca", "asr"), most: int | None = None) -> Figure:
    """Means over seeds for each true class: a row a figure, a column a setting, a mark a defense, the infected model behind them.
    DataError where no finished run has figures by class."""
    runs = list(runs)
    drawn, left_out = panels.sound(run for run in runs if class_names(run))
    if not drawn:
        raise DataError(f"{nothing(runs)}; expected one at least. Run one: bdx attack=badnets defense=fst.")
    title, shown, missing = panels.arrange(drawn, ("dataset", "model", "attack", "rate"), most)
    looks = panels.looks(shown)
    figure, grid = ink.panels(title, [panel.title for panel in shown], len(figures))
    for column, panel in enumerate(shown):
        victims = panels.once(run for members in panel.lines.values() for run in members)
        lines = [
            (ink.DASHED, victims, INFECT),
            *((looks[name], members, PURIFY) for name, members in panel.lines.items()),
        ]
        for name, axes in zip(figures, grid[:, column], strict=True):
            for place, (look, members, stage) in enumerate(lines):
                beside = SIDE * ((place + 0.5) / len(lines) - 0.5)
                cells = {at + beside: cell for at, cell in over_seeds(members, stage, name).items()}
                ink.draw_line(axes, cells, look | {"linestyle": "none"}, ())
        _name_classes(grid[-1, column], class_names(victims[0]))
    ink.name_rows(grid, figures)
    said = [panels.seeds(shown, "by the images' true class"), *missing, *left_out, *panels.doubts(drawn)]
    named = {name: look | {"linestyle": "none"} for name, look in {INFECT.model: ink.DASHED, **looks}.items()}
    ink.finish(figure, named, said)
    return figure


def over_seeds(runs: Iterable[Run], stage: Stage, figure: str) -> dict[float, Cell]:
    """Class -> its values over seeds; a class that no run counts is left out."""
    return panels.cells((at, value) for run in runs for at, value in enumerate(per_class(run, stage, figure)))


def _name_classes(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel("true class")
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
