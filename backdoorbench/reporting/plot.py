"""Plots out of records: pure functions from runs to figures. A line is a defense; what else differs is a panel.

Needs the extra `plots` (matplotlib). No pyplot, hence no global state, and equal runs make equal bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from backdoorbench import cache
from backdoorbench.errors import ConfigError, DataError
from backdoorbench.reporting.table import DASH, FIGURES, Cell, base_names, differing, identity, look_up

if TYPE_CHECKING:  # a view of records needs no torch
    from backdoorbench.pipeline import Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, no yellow
MARKERS = "osD^vPX*"  # 7 colours and 8 markers: 56 pairs before one comes again
DASHED: dict[str, Any] = {"color": "#666666", "marker": "p", "linestyle": "--"}  # the infected model
STYLE: list[Any] = [
    "default",
    {
        "svg.hashsalt": "bdx", "savefig.dpi": 200, "font.size": 8, "axes.titlesize": 8, "figure.titlesize": 9,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e5e5e5",
        "grid.linewidth": 0.6, "axes.axisbelow": True, "lines.linewidth": 1.3, "lines.markersize": 4,
    },
]  # fmt: skip
UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
WIDTH, HEIGHT, LEGEND = 2.6, 2.0, 1.8  # inches of a panel, and of the legend beside them
LETTERS = 15  # an inch holds
MARKED = 8  # points of a line, at most
BESIDE, SIDE = 3, 14  # points (1/72 inch) between lines at the same rate, and between the first and the last at most
UNLIKE = 8  # times as many epochs: from here on a linear axis squeezes the shorter defense


@dataclass(frozen=True)
class Panel:
    """Runs that differ in nothing but the defense, the seed and, where it is the x axis, the poison rate.

    title  what tells the panel from others
    lines  a defense, with the settings that tell it from its like -> its runs, one a rate and seed
    """

    title: str
    lines: dict[str, list[Run]]


@style.context(STYLE)
def curves(runs: Iterable[Run]) -> Figure:
    """CA, ASR and RA against the defense's epoch: a column a setting, a row a figure, a line the mean over seeds in a band
    from the smallest to the largest. DataError where no finished run holds a learning curve."""
    runs = list(runs)
    drawn = [run for run in runs if run.status == "done" and run.curve]
    if not drawn:
        raise DataError(
            f"{_found(runs)}, none with a learning curve; expected one at least. Run a defense that trains, with "
            f"curve.every=1: bdx attack=badnets defense=fst."
        )
    title, panels = _arrange(drawn, ("dataset", "model", "attack", "rate"))
    looks = _looks(panels)
    figure, grid = _figure(title, [panel.title for panel in panels], len(FIGURES))
    for column, panel in enumerate(panels):
        for name, axes in zip(FIGURES, grid[:, column], strict=True):
            for label, members in panel.lines.items():
                cells = _by_epoch(members, name)
                _draw_band(axes, cells, looks[label]["color"])
                _draw_line(axes, cells, looks[label], hollow=cells if any(map(is_doubtful, members)) else ())
            if not axes.lines:
                axes.text(0.5, 0.5, "no trigger", transform=axes.transAxes, ha="center", color="#666666")
        _set_epochs(grid[-1, column], list(panel.lines.values()))
    for name, axes in zip(FIGURES, grid[:, 0], strict=True):
        axes.set_ylabel(f"{name.upper()}, %")
    images = {point["n"] for run in drawn for point in run.curve}
    said = [f"{_seeds(panels, curve=True)}."]
    if any(map(starts_infected, drawn)):
        said.append(f"Epoch 0: the infected model, on the whole test set; then {_span(images)} test images.")
    _finish(figure, looks, said, drawn)
    return figure


@style.context(STYLE)
def against_rate(runs: Iterable[Run], metric: str = "asr") -> Figure:
    """A figure of the purified model against the poison rate: a panel an attack, the infected model dashed, error bars the
    sample standard deviation; lines side by side, so that none hides another. DataError where no finished run holds the
    figure at a rate above 0 (the axis is logarithmic)."""
    runs = list(runs)
    drawn = [run for run in runs if run.status == "done" and _rate(run) > 0 and _purified(run, metric) is not None]
    if not drawn:
        raise DataError(
            f"{_found(runs)}, none with {metric.upper()} at a poison rate above 0; expected one at least. Run some: "
            f"bdx -m attack=badnets attack.poison_rate=0.01,0.1 defense=fst."
        )
    title, panels = _arrange(drawn, ("dataset", "model", "attack"))
    looks = _looks(panels)
    figure, grid = _figure(title, [panel.title for panel in panels], 1)
    for panel, axes in zip(panels, grid[0], strict=True):
        victims = _once(run for members in panel.lines.values() for run in members)
        infected = _cells((_rate(run), _infected(run, metric)) for run in victims)
        _draw_line(axes, infected, DASHED, {_rate(run) for run in victims if is_doubtful(run)})
        for place, (label, members) in enumerate(panel.lines.items()):
            cells = _cells((_rate(run), _purified(run, metric)) for run in members)
            look = looks[label] | {"transform": _beside(figure, axes, place, len(panel.lines))}
            _draw_spread(axes, cells, look)
            _draw_line(axes, cells, look, {_rate(run) for run in members if is_doubtful(run)})
        _set_rates(axes, list(infected))
    grid[0, 0].set_ylabel(f"{metric.upper()}, %")
    _finish(figure, {"infected": DASHED, **looks}, [f"{_seeds(panels, curve=False)}."], drawn)
    return figure


@style.context(STYLE)
def write(figure: Figure, file: Path) -> None:
    """The figure as SVG, PDF or PNG, as the suffix says, without a date. ConfigError for any other suffix."""
    if file.suffix.lower() not in UNDATED:
        raise ConfigError(f"'{file}' is no name for a plot; expected one in .svg, .pdf or .png. Rename it.")
    with cache.storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata=UNDATED[file.suffix.lower()])


# ---- what the records say -------------------------------------------------------------------------------------------


def starts_infected(run: Run) -> bool:
    """Whether the defense starts from the infected model, which then is epoch 0 of its curve.

    Trap-and-Replace with its trap trains from scratch; nothing in the record says so but its setting `trap`, which is
    false where it cuts the infected model instead."""
    return run.config["defense"].get("trap") is not True


def is_doubtful(run: Run) -> bool:
    """Whether the infection is weak or broken, so that a defense's figures mean little."""
    return run.infection.get("status") in ("weak", "broken")


def _rate(run: Run) -> float:
    return float(run.config["attack"].get("poison_rate") or 0)


def _infected(run: Run, name: str) -> float | None:
    return getattr(run.infected, name) if run.infected else None


def _purified(run: Run, name: str) -> float | None:
    return getattr(run.purified, name) if run.purified else None


def _by_epoch(runs: Iterable[Run], name: str) -> dict[float, Cell]:
    """Epoch -> a figure over seeds, from the infected model on where the defense starts there."""
    start = [(0, _infected(run, name)) for run in runs if starts_infected(run)]
    return _cells([*start, *((point["epoch"], point[name]) for run in runs for point in run.curve)])


def _cells(points: Iterable[tuple[float, float | None]]) -> dict[float, Cell]:
    """x -> the values there, x ascending; what was not measured is left out."""
    found: dict[float, tuple[float, ...]] = {}
    for x, value in points:
        if value is not None:
            found[x] = (*found.get(x, ()), value)
    return {x: Cell(found[x]) for x in sorted(found)}


def _once(runs: Iterable[Run]) -> list[Run]:
    """One run a rate and seed, the latest."""
    return list({(_rate(run), run.config["seed"]): run for run in runs}.values())


def _found(runs: Sequence[Run]) -> str:
    return f"{sum(run.status == 'done' for run in runs)} of {len(runs)} runs finished"


# ---- what goes where ------------------------------------------------------------------------------------------------


def _arrange(runs: Iterable[Run], columns: Sequence[str]) -> tuple[str, list[Panel]]:
    """What all panels share, as the figure's title, and the panels; in an order that does not depend on when runs were done.

    columns  the base names that tell panels apart; without `rate`, runs at all poison rates share a line"""

    def compared(run: Run) -> dict[str, Any]:
        if "rate" in columns:
            return run.config
        attack = {name: value for name, value in run.config["attack"].items() if name != "poison_rate"}
        return {**run.config, "attack": attack}

    def order(run: Run) -> tuple[Any, ...]:
        names = base_names(run.config)
        return *(names[column] for column in ("dataset", "model", "attack")), _rate(run), names["defense"]

    groups: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: (*order(run), identity(run.config))):
        config = compared(run)
        lines = groups.setdefault(identity(_without_defense(config)), {})
        lines.setdefault(identity(config), []).append(run)
    firsts = [[members[0] for members in lines.values()] for lines in groups.values()]
    names = _names([_without_defense(compared(members[0])) for members in firsts], columns)
    shared = {column for column in columns if len({name[column] for name in names}) == 1} - {"attack"}
    panels = []
    for name, members, lines in zip(names, firsts, groups.values(), strict=True):
        labels = [_label(found) for found in _names([compared(run) for run in members], ("defense",))]
        title = _title({column: value for column, value in name.items() if column not in shared}, columns)
        panels.append(Panel(title, dict(zip(labels, map(_once, lines.values()), strict=True))))
    return _title({column: names[0][column] for column in columns if column in shared}, columns), panels


def _without_defense(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "defense": {"name": ""}}


def _names(configs: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, str]]:
    """What each configuration is called: the base `columns`, and the settings that tell it from those called alike."""
    bases = [{column: base_names(config)[column] for column in columns} for config in configs]
    names = []
    for config, base in zip(configs, bases, strict=True):
        alike = [other for other, called in zip(configs, bases, strict=True) if called == base]
        names.append(base | {key: look_up(config, key) for key in differing(alike)})
    return names


def _title(names: Mapping[str, str], columns: Sequence[str]) -> str:
    """`badnets · 10 % · attack.target 1`."""
    shown = (value if column in columns else f"{column} {value}" for column, value in names.items() if value != DASH)
    return " · ".join(shown)


def _label(names: Mapping[str, str]) -> str:
    """`fst`, or `fst, alpha 0.2` beside another fst."""
    more = (f"{key.removeprefix('defense.')} {value}" for key, value in names.items() if key != "defense")
    return ", ".join([names["defense"], *more])


def _looks(panels: Iterable[Panel]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each line's name, the same in every panel."""
    labels = sorted({label for panel in panels for label in panel.lines})
    return {
        label: {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        for index, label in enumerate(labels)
    }


# ---- ink ------------------------------------------------------------------------------------------------------------


def _figure(title: str, titles: Sequence[str], rows: int) -> tuple[Figure, Any]:
    """A figure with room for a legend, and its (rows, columns) grid of axes in percent, titled at the top."""
    figure = Figure(figsize=(WIDTH * len(titles) + LEGEND, HEIGHT * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, len(titles), sharex="col", sharey=True, squeeze=False)
    figure.suptitle(title, x=0.01, ha="left")
    for axes, said in zip(grid[0], titles, strict=True):
        axes.set_title(textwrap.fill(said, round(WIDTH * LETTERS)), loc="left")
    grid[0, 0].set_ylim(0, 100)
    grid[0, 0].set_yticks(range(0, 101, 25))
    return figure, grid


def _draw_line(axes: Axes, cells: Mapping[float, Cell], look: dict[str, Any], hollow: Collection[float]) -> None:
    """Means in percent; of the points, some are marked, those whose x is in `hollow` without a filling."""
    if not cells:
        return
    x, y = list(cells), [100 * (cell.mean or 0.0) for cell in cells.values()]
    marked = range(0, len(x), -(-len(x) // MARKED))
    axes.plot(x, y, **look, markevery=[index for index in marked if x[index] not in hollow], clip_on=False)
    if empty := [index for index in marked if x[index] in hollow]:
        axes.plot(
            x, y, **look | {"linestyle": "none"}, markevery=empty, markerfacecolor="white", clip_on=False, zorder=3
        )


def _draw_band(axes: Axes, cells: Mapping[float, Cell], colour: str) -> None:
    """From the smallest to the largest value, where there are several."""
    if any(len(cell.values) > 1 for cell in cells.values()):
        low, high = ([100 * pick(cell.values) for cell in cells.values()] for pick in (min, max))
        axes.fill_between(list(cells), low, high, color=colour, alpha=0.15, linewidth=0)


def _beside(figure: Figure, axes: Axes, place: int, places: int) -> Transform:
    """Puts one of so many lines a little to the left or right; its data stay what they are."""
    points = (place - (places - 1) / 2) * min(BESIDE, SIDE / places)
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _draw_spread(axes: Axes, cells: Mapping[float, Cell], look: Mapping[str, Any]) -> None:
    """Error bars: the sample standard deviation, where there is one."""
    for x, cell in cells.items():
        if cell.mean is not None and cell.spread is not None:
            bar = {"fmt": "none", "ecolor": look["color"], "capsize": 2, "transform": look["transform"]}
            axes.errorbar(x, 100 * cell.mean, 100 * cell.spread, **bar)


def _set_epochs(axes: Axes, lines: Sequence[Sequence[Run]]) -> None:
    """An axis from epoch 0 on, logarithmic beyond 1 where one defense takes many times the epochs of another."""
    lengths = [max(point["epoch"] for run in members for point in run.curve) for members in lines]
    if max(lengths) > UNLIKE * min(lengths):
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlim(0, max(lengths))
    axes.set_xlabel("epoch of the defense")


def _set_rates(axes: Axes, rates: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each rate."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(rates))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}")
    axes.set_xlim(min(rates) / 1.3, max(rates) * 1.3)
    axes.set_xlabel("poison rate, %")


def _finish(figure: Figure, looks: Mapping[str, dict[str, Any]], said: list[str], runs: Iterable[Run]) -> None:
    """The legend beside the panels, and below them what a reader must know."""
    handles = [Line2D([], [], label=textwrap.fill(label, 22), **look) for label, look in looks.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, handlelength=3)
    if any(map(is_doubtful, runs)):
        said = [*said, "Hollow: the infection is weak or broken."]
    text = textwrap.fill(" ".join(said), round(figure.get_figwidth() * LETTERS))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color="#444444")


def _seeds(panels: Iterable[Panel], curve: bool) -> str:
    """`Mean over seeds, band from smallest to largest, n = 1 to 3`."""
    counts = {
        sum(_rate(run) == rate for run in members)
        for panel in panels
        for members in panel.lines.values()
        for rate in map(_rate, members)
    }
    spread = "band from the smallest to the largest" if curve else "bars of one sample standard deviation"
    return (f"Mean over seeds, {spread}, " if max(counts) > 1 else "") + f"n = {_span(counts)}"


def _span(counts: Collection[int]) -> str:
    """`1,000`, or `120 to 1,000`."""
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
