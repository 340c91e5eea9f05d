"""Plots out of records: pure functions from runs to figures. A line is a defense; what else differs is a panel.

Readable without telling colours apart: every line has a marker of its own, every cell of a heat map its figure. Needs the
extra `plots` (matplotlib). No pyplot, hence no global state, and equal runs make equal bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from backdoorbench import cache
from backdoorbench.errors import ConfigError, DataError, join_words
from backdoorbench.reporting import table
from backdoorbench.reporting.table import DASH, FIGURES, Cell, base_names, identity, tell_apart

if TYPE_CHECKING:  # a view of records needs no torch
    from backdoorbench.recorded import Run
    from backdoorbench.reporting.features import Embedding
    from backdoorbench.reporting.table import Row

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
ABREAST = 4  # panels side by side; more go below
CELL_WIDTH, CELL_HEIGHT = 0.62, 0.24  # inches of a cell of a heat map
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
def curves(runs: Iterable[Run], most: int | None = None) -> Figure:
    """CA, ASR and RA against the defense's epoch: a column a setting, a row a figure, a line the mean over seeds in a band
    from the smallest to the largest. DataError where no finished run holds a learning curve.

    most  panels, at most, here and below: those with most runs; the figure says how many are missing"""
    runs = list(runs)
    drawn = [run for run in runs if run.status == "done" and run.curve]
    if not drawn:
        raise DataError(
            f"{_found(runs)}, none with a learning curve; expected one at least. Run a defense that trains, with "
            f"curve.every=1: bdx attack=badnets defense=fst."
        )
    title, panels, missing = _arrange(drawn, ("dataset", "model", "attack", "rate"), most)
    looks = _looks(panels)
    figure, grid = _figure(title, [panel.title for panel in panels], len(FIGURES))
    for axes in grid[:-1].flat:
        axes.tick_params(labelbottom=False)
    for column, panel in enumerate(panels):
        for name, axes in zip(FIGURES, grid[:, column], strict=True):
            for label, members in panel.lines.items():
                cells = _by_epoch(members, name)
                _draw_band(axes, cells, looks[label]["color"])
                _draw_line(axes, cells, looks[label], hollow=cells if any(map(is_doubtful, members)) else ())
            if not axes.lines:
                axes.text(0.5, 0.5, "no trigger", transform=axes.transAxes, ha="center", color="#666666")
        _set_epochs(grid[-1, column], list(panel.lines.values()))
    _name_rows(grid, FIGURES)
    images = {point["n"] for run in drawn for point in run.curve}
    said = [f"{_seeds(panels, curve=True)}.", *missing]
    if any(map(starts_infected, drawn)):
        said.append(f"Epoch 0: the infected model, on the whole test set; then {_span(images)} test images.")
    _finish(figure, looks, said, drawn)
    return figure


@style.context(STYLE)
def against_rate(runs: Iterable[Run], figures: Sequence[str] = ("asr", "ca"), most: int | None = None) -> Figure:
    """Figures of the purified model against the poison rate: a row a figure, a column an attack, the infected model dashed,
    error bars the sample standard deviation; lines side by side, so that none hides another. DataError where no finished run
    holds such a figure at a rate above 0 (the axis is logarithmic)."""
    runs = list(runs)
    drawn, left_out = _sound(
        run for run in runs if _rate(run) > 0 and any(_purified(run, name) is not None for name in figures)
    )
    if not drawn:
        raise DataError(
            f"{_found(runs)}, none with {join_words([name.upper() for name in figures], 'or')} at a poison rate above 0; "
            f"expected one at least. Run some: bdx -m attack=badnets attack.poison_rate=0.01,0.1 defense=fst."
        )
    title, panels, missing = _arrange(drawn, ("dataset", "model", "attack"), most)
    looks = _looks(panels)
    figure, grid = _figure(title, [panel.title for panel in panels], len(figures))
    for column, panel in enumerate(panels):
        victims = _once(run for members in panel.lines.values() for run in members)
        rates = sorted({_rate(run) for run in victims})
        for name, axes in zip(figures, grid[:, column], strict=True):
            infected = _cells((_rate(run), _infected(run, name)) for run in victims)
            _draw_line(axes, infected, DASHED, {_rate(run) for run in victims if is_doubtful(run)})
            for place, (label, members) in enumerate(panel.lines.items()):
                cells = _cells((_rate(run), _purified(run, name)) for run in members)
                look = looks[label] | {"transform": _beside(figure, axes, place, len(panel.lines))}
                _draw_spread(axes, cells, look)
                _draw_line(axes, cells, look, {_rate(run) for run in members if is_doubtful(run)})
            _set_rates(axes, rates)
        for axes in grid[:-1, column]:
            axes.set_xlabel("")
    _name_rows(grid, figures)
    _finish(figure, {"infected": DASHED, **looks}, [f"{_seeds(panels, curve=False)}.", *missing, *left_out], drawn)
    return figure


@style.context(STYLE)
def scatter(runs: Iterable[Run], most: int | None = None) -> Figure:
    """What a defense costs and brings: an arrow from the infected model's CA and ASR to the purified one's, means over seeds, a
    panel a setting. The lower right corner is what a defender wants. DataError where no finished run holds an ASR."""
    runs = list(runs)
    drawn, left_out = _sound(run for run in runs if _purified(run, "asr") is not None)
    if not drawn:
        raise DataError(
            f"{_found(runs)}, none with an ASR; expected one at least. Run one: bdx attack=badnets defense=fst."
        )
    title, panels, missing = _arrange(drawn, ("dataset", "model", "attack", "rate"), most)
    looks = _looks(panels)
    figure, grid = _figure(title, [panel.title for panel in panels], 1)
    lowest = 100.0
    for panel, axes in zip(panels, grid[0], strict=True):
        for label, members in panel.lines.items():
            start, end = (
                [100 * (_cells((0, pick(run, name)) for run in members)[0].mean or 0.0) for name in ("ca", "asr")]
                for pick in (_infected, _purified)
            )
            lowest = min(lowest, start[0], end[0])
            look, arrow = looks[label], {"arrowstyle": "-", "color": looks[label]["color"], "alpha": 0.6}
            axes.annotate("", end, start, arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0}, annotation_clip=False)
            hollow = {"markerfacecolor": "white"} if any(map(is_doubtful, members)) else {}
            axes.plot(*start, **DASHED | {"linestyle": "none"}, clip_on=False, zorder=3)
            axes.plot(*end, **look | {"linestyle": "none", "markersize": 6} | hollow, clip_on=False, zorder=4)
        axes.set_xlabel("CA, %")
    for axes in grid[0]:
        axes.set_xlim(10 * (lowest // 10), 100)
    _name_rows(grid, ("asr",))
    counts = {len(members) for panel in panels for members in panel.lines.values()}
    said = [("Means over seeds, " if max(counts) > 1 else "") + f"n = {_span(counts)}.", *missing, *left_out]
    _finish(figure, {"infected": DASHED | {"linestyle": "none"}, **looks}, said, drawn)
    return figure


@style.context(STYLE)
def heatmap(rows: Sequence[Row], metric: str = "asr", most: int | None = None) -> Figure:
    """A figure of the purified model, attacks by defenses, means over seeds; a map a data set, network and rate. The figures
    stand in the cells; what was not run is hatched. DataError where no row holds the figure."""
    count = len(rows)
    rows = [row for row in rows if row.collapsed or row.after[metric].values]
    grids = table.pivot_grids(rows, ("attack", "rate"), ("defense",), (metric,)) if rows else []
    if not grids:
        raise DataError(
            f"{count} settings finished, none with {metric.upper()}; expected one at least. Run some: "
            f"bdx -m attack=badnets,blended defense=ft,fst."
        )
    kept = _largest(grids, [len(grid.lines) * len(grid.columns) for grid in grids], most)
    widest = max(len(grid.columns) - grid.names for grid in kept)
    heights = [len(grid.lines) * CELL_HEIGHT for grid in kept]
    figure = Figure(figsize=(widest * CELL_WIDTH + 2, sum(heights) + 1.1 * len(kept) + 0.3), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    maps = figure.subplots(len(kept), 1, squeeze=False, height_ratios=heights)[:, 0]
    for grid, axes in zip(kept, maps, strict=True):
        _draw_map(axes, grid)
        axes.set_xlim(-0.5, widest - 0.5)  # cells of one size
    said = [f"{metric.upper()} of the purified model, %; mean over seeds.", *_missing(len(grids) - len(kept), "maps")]
    marks = {mark for grid in kept for line in grid.lines for item in line for mark in item.text}
    said += [f"{table.LEFT_OUT} collapsed runs left out."] * (table.LEFT_OUT in marks)
    said += [f"{table.WEAK} weak or broken infection."] * (table.WEAK in marks)
    figure.supxlabel(_wrapped(figure, said), x=0.01, ha="left", fontsize=7, color="#444444")
    return figure


@style.context(STYLE)
def gallery(found: Mapping[Path, Run], most: int | None = None) -> Figure:
    """Triggers as the runs drew them: clean, triggered, and ten times the difference. DataError where no folder holds any."""
    pictures = list(galleries(found).items())
    if not pictures:
        raise DataError(
            f"{_found(list(found.values()))}, none with a triggered.png in its folder; expected one at least. Run an attack "
            f"anew, with rerun=true, or draw a trigger without training: bdx preview attack=badnets."
        )
    kept = pictures[:most]
    figure = Figure(figsize=(6.5, 2.75 * len(kept) + 0.3), layout="constrained")
    for axes, (title, file) in zip(figure.subplots(len(kept), 1, squeeze=False)[:, 0], kept, strict=True):
        axes.imshow(imread(file), interpolation="nearest")
        axes.set_title(title, loc="left")
        axes.set_axis_off()
    said = [
        "Clean, triggered, and grey plus ten times the difference.",
        *_missing(len(pictures) - len(kept), "triggers"),
    ]
    figure.supxlabel(_wrapped(figure, said), x=0.01, ha="left", fontsize=7, color="#444444")
    return figure


def galleries(found: Mapping[Path, Run]) -> dict[str, Path]:
    """Title -> picture of each trigger in the runs' folders; rates, networks and defenses do not change what it looks like."""
    firsts: dict[str, tuple[Path, Run]] = {}
    for folder, run in found.items():
        if run.status == "done" and (folder / "triggered.png").is_file():
            firsts.setdefault(identity(_trigger_settings(run)), (folder / "triggered.png", run))
    runs = [run for _, run in firsts.values()]
    bases = [{name: base_names(run.config)[name] for name in ("dataset", "attack")} for run in runs]
    names = tell_apart(bases, [_trigger_settings(run) for run in runs])
    titled = zip((_title(name, ("dataset", "attack")) for name in names), firsts.values(), strict=True)
    return {title: file for title, (file, _) in sorted(titled, key=lambda pair: pair[0])}


def _trigger_settings(run: Run) -> dict[str, Any]:
    attack = {name: value for name, value in run.config["attack"].items() if name not in ("poison_rate", "cover_rate")}
    return {"dataset": {"name": run.config["dataset"]["name"]}, "attack": attack}


@style.context(STYLE)
def tsne(run: Run, embedding: Embedding) -> Figure:
    """What the classifier reads, in two dimensions, before and after purification: clean images, those of the target's class
    apart, and triggered ones. Distances between groups mean nothing; whether triggered images lie among the target's does."""
    figure = Figure(figsize=(WIDTH * 2 + LEGEND, WIDTH + 0.7), layout="constrained")
    figure.suptitle(table.heading(run), x=0.01, ha="left")
    looks: dict[str, dict[str, Any]] = {
        "clean, other classes": {"color": "#999999", "marker": ".", "markersize": 4},
        "clean, target class": {"color": COLOURS[0], "marker": "s", "markersize": 3.5},
        "triggered": {"color": COLOURS[1], "marker": "x", "markersize": 4.5},
    }
    places = (("infected", embedding.before, run.infected), ("purified", embedding.after, run.purified))
    for axes, (model, points, scores) in zip(figure.subplots(1, 2), places, strict=True):
        for kind, look in enumerate(looks.values()):
            chosen = points[embedding.kinds == kind]
            axes.plot(chosen[:, 0], chosen[:, 1], linestyle="none", **look)
        figures = f": CA {table.percent(scores.ca)}, ASR {table.percent(scores.asr)}" if scores else ""
        axes.set_title(model + figures, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
    counts = [int((embedding.kinds == kind).sum()) for kind in range(3)]
    kept = {f"{name} ({count})": look for (name, look), count in zip(looks.items(), counts, strict=True) if count}
    said = [
        "t-SNE of what the classifier reads, each model by itself; test images.",
        "Distances between groups mean nothing.",
    ]
    _finish(figure, {name: look | {"linestyle": "none"} for name, look in kept.items()}, said, [run])
    return figure


def check_name(file: Path) -> None:
    """ConfigError unless the suffix says SVG, PDF or PNG."""
    if file.suffix.lower() not in UNDATED:
        raise ConfigError(f"'{file}' is no name for a plot; expected one in .svg, .pdf or .png. Rename it.")


@style.context(STYLE)
def write(figure: Figure, file: Path) -> None:
    """The figure as SVG, PDF or PNG, as the suffix says, without a date. ConfigError for any other suffix."""
    check_name(file)
    with cache.storage_errors(file.parent):
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


def _arrange(
    runs: Iterable[Run], columns: Sequence[str], most: int | None = None
) -> tuple[str, list[Panel], list[str]]:
    """What all panels share, as the figure's title; the panels, in an order that does not depend on when runs were done; and a
    sentence on those beyond `most`.

    columns  the base names that tell panels apart; without `rate`, runs at all poison rates share a line"""

    def compared(run: Run) -> dict[str, Any]:
        if "rate" in columns:
            return run.config
        attack = {name: value for name, value in run.config["attack"].items() if name != "poison_rate"}
        return {**run.config, "attack": attack}

    def order(run: Run) -> tuple[Any, ...]:
        names = base_names(run.config)
        return *(names[column] for column in ("dataset", "model", "attack")), _rate(run), names["defense"]

    identify = table.identifier()
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(identify(run.config), []).append(run)
    groups: dict[str, dict[str, list[Run]]] = {}
    for _, members in sorted(alike.items(), key=lambda item: (*order(item[1][0]), item[0])):
        config = compared(members[0])
        lines = groups.setdefault(identify(_without_defense(config)), {})
        lines.setdefault(identify(config), []).extend(members)
    total = len(groups)
    sizes = []
    for lines in groups.values():
        members = [run for runs in lines.values() for run in runs]
        sizes.append((1 if "rate" in columns else len(set(map(_rate, members))), len(members)))
    groups = dict(_largest(list(groups.items()), sizes, most))
    firsts = [[members[0] for members in lines.values()] for lines in groups.values()]
    names = _names([_without_defense(compared(members[0])) for members in firsts], columns)
    shared = {column for column in columns if len({name[column] for name in names}) == 1} - {"attack"}
    panels = []
    for name, members, lines in zip(names, firsts, groups.values(), strict=True):
        called = [table.label(found, "defense") for found in _names([compared(run) for run in members], ("defense",))]
        title = _title({column: value for column, value in name.items() if column not in shared}, columns)
        panels.append(Panel(title, dict(zip(called, map(_once, lines.values()), strict=True))))
    title = _title({column: names[0][column] for column in columns if column in shared}, columns)
    return title, panels, _missing(total - len(panels), "settings")


def _largest(items: Sequence[Any], sizes: Sequence[Any], most: int | None) -> list[Any]:
    """The `most` largest items, in the order they had."""
    places = sorted(range(len(items)), key=lambda place: sizes[place], reverse=True)[:most]
    return [items[place] for place in sorted(places)]


def _missing(count: int, what: str) -> list[str]:
    return [f"{count:,} more {what} are not drawn."] if count else []


def _sound(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """The finished runs that did not collapse, and a sentence on those that did."""
    done = [run for run in runs if run.status == "done"]
    sound = [run for run in done if not table.collapse(run)]
    count = len(done) - len(sound)
    return sound, [f"{count} collapsed run{'s' * (count > 1)} left out."] if count else []


def _without_defense(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "defense": {"name": ""}}


def _names(configs: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, str]]:
    """What each configuration is called: the base `columns`, and the settings that tell it from those called alike."""
    return tell_apart([{column: base_names(config)[column] for column in columns} for config in configs], configs)


def _title(names: Mapping[str, str], columns: Sequence[str]) -> str:
    """`badnets · 10 % · attack.target 1`."""
    shown = (value if column in columns else f"{column} {value}" for column, value in names.items() if value != DASH)
    return " · ".join(shown)


def _looks(panels: Iterable[Panel]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each line's name, the same in every panel."""
    labels = sorted({label for panel in panels for label in panel.lines})
    return {
        label: {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        for index, label in enumerate(labels)
    }


# ---- ink ------------------------------------------------------------------------------------------------------------


def _figure(title: str, titles: Sequence[str], rows: int) -> tuple[Figure, Any]:
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
    figure.suptitle(title, x=0.01, ha="left")
    for axes, said in zip(grid[0], titles, strict=True):
        axes.set_title(textwrap.fill(said, round(WIDTH * LETTERS)), loc="left")
    grid[0, 0].set_ylim(0, 100)
    grid[0, 0].set_yticks(range(0, 101, 25))
    return figure, grid


def _name_rows(grid: Any, figures: Sequence[str]) -> None:
    """What is measured, at the left of each row of panels."""
    for name, row in zip(figures, grid, strict=True):
        for axes in row[::ABREAST]:
            axes.set_ylabel(f"{name.upper()}, %")


def _draw_map(axes: Axes, grid: table.Grid) -> None:
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
            marks = "".join(mark for mark in item.text if mark in (table.LEFT_OUT, table.WEAK))
            text = item.text.split(" ")[0] + marks
            colour = "#ffffff" if dark else "#010101"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour, in_layout=False)
    heads = [textwrap.fill(column.flat, 18, break_long_words=False) for column in grid.columns[grid.names :]]
    axes.set_xticks(range(len(heads)), heads, rotation=35, ha="left", rotation_mode="anchor")
    names = [" · ".join(item.text for item in line[: grid.names] if item.text != DASH) for line in grid.lines]
    axes.set_yticks(range(len(grid.lines)), names)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.set_title(grid.title.rpartition(" · ")[0], loc="left")


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
    bars = [
        (x, 100 * cell.mean, 100 * cell.spread)
        for x, cell in cells.items()
        if cell.mean is not None and cell.spread is not None
    ]
    if bars:
        x, y, spread = zip(*bars, strict=True)
        axes.errorbar(x, y, spread, fmt="none", ecolor=look["color"], capsize=2, transform=look["transform"])


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
    figure.supxlabel(_wrapped(figure, said), x=0.01, ha="left", fontsize=7, color="#444444")


def _wrapped(figure: Figure, said: Iterable[str]) -> str:
    return textwrap.fill(" ".join(said), round(figure.get_figwidth() * LETTERS))


def _seeds(panels: Iterable[Panel], curve: bool) -> str:
    """`Mean over seeds, band from smallest to largest, n = 1 to 3`."""
    lines = [members for panel in panels for members in panel.lines.values()]
    counts = {count for members in lines for count in Counter(map(_rate, members)).values()}
    spread = "band from the smallest to the largest" if curve else "bars of one sample standard deviation"
    return (f"Mean over seeds, {spread}, " if max(counts) > 1 else "") + f"n = {_span(counts)}"


def _span(counts: Collection[int]) -> str:
    """`1,000`, or `120 to 1,000`."""
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
