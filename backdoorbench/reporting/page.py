"""One HTML page of a report: tables that sort, plots, triggers, and every run with its settings. A single file, nothing fetched.

The page holds of each run its figures, notes and settings, equal settings once; what is long (learning curves, per-class
scores, the history of training) stays in the `record.json` that it links. So 10,000 runs make a page of some megabytes, which
draws a hundred runs at a time. Plots show the settings with most runs, and say how many they leave out.
"""

from __future__ import annotations

import base64
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from backdoorbench.errors import DataError
from backdoorbench.reporting import plot, published, table
from backdoorbench.reporting.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from backdoorbench.recorded import Run

PANELS, FEWER, MANY = 8, 4, 200  # panels of a plot; where there are many settings; how many are many
TRIGGERS = 12
LONGEST = 2000  # characters of an error or of a run's notes; the rest is in its folder
SHARED = ("dataset", "model", "train", "holdout", "attack", "defense")  # settings that are held once


def render(
    report: Report, folders: Sequence[str], file: Path, figures: Sequence[str], features: Sequence[Figure]
) -> str:
    """The page that is going to lie at `file`, from where its links start.

    folders   what the command line named, to print commands that draw a plot in full
    features  t-SNE figures"""
    runs = list(report.found.values())
    loader = jinja2.PackageLoader("backdoorbench", "reporting")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return made.get_template("page.html").render(
        folders=" ".join(folders),
        span=_span(runs),
        counts=_counts(report),
        grids=[{"grid": grid, "groups": _groups(grid)} for grid in report.grids],
        notes=report.notes,
        published=published.as_grid(list(report.beside.values())) if report.beside else None,
        remarks=report.remarks,
        plots=_plots(report, " ".join(folders), figures, features),
        triggers=_triggers(report),
        failures=[
            {"failure": failure, "link": _link(failure.log, os.path.realpath(file.parent))}
            for failure in report.failures
        ],
        data=Markup(_embedded(_data(report, file))),
        rises=table.RISES,
    )


def _span(runs: Sequence[Run]) -> str:
    days = sorted({run.started[:10] for run in runs if run.started})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def _counts(report: Report) -> list[tuple[str, str]]:
    """What the head of the page says: how many runs, and of what."""
    runs = list(report.found.values())
    states = Counter(run.status for run in runs)
    collapsed = sum(len(row.collapsed) for row in report.rows)
    said = [("runs", len(runs)), ("finished", states["done"]), ("failed", states["failed"])]
    said += [("without an end", report.unended), ("collapsed", collapsed), ("settings", len(report.rows))]
    for group in ("dataset", "attack", "defense"):
        count = len({run.config[group]["name"] for run in runs} - {"none"})
        said.append(({"dataset": "data set"}.get(group, group) + "s" * (count != 1), count))
    return [(name, f"{count:,}") for name, count in said if count or name in ("runs", "finished", "failed")]


def _groups(grid: table.Grid) -> list[tuple[str, int]]:
    """The upper header line: what stands above how many columns; nothing where it would be empty."""
    found: list[tuple[str, int]] = []
    for column in grid.columns:
        if found and found[-1][0] == column.group:
            found[-1] = (column.group, found[-1][1] + 1)
        else:
            found.append((column.group, 1))
    return found if any(name for name, _ in found) else []


def _plots(report: Report, folders: str, figures: Sequence[str], features: Sequence[Figure]) -> list[dict[str, Any]]:
    """Name, element and the command that draws it in full, of each plot that the runs allow."""
    runs = list(report.found.values())
    metric = "asr" if "asr" in figures else figures[0]
    settings: dict[str, set[str]] = {}
    for row in report.rows:
        kept = {**row.config, "attack": {**row.config["attack"], "poison_rate": None}}
        settings.setdefault(table.identity(kept), set()).add(row.names["rate"])
    several = any(len(rates) > 1 for rates in settings.values())
    most = PANELS if len(report.rows) <= MANY else FEWER
    draw: dict[str, tuple[str, Callable[[], Figure]]] = {
        f"heatmap {metric}": (
            f"{metric.upper()}, attacks by defenses",
            lambda: plot.heatmap(report.rows, metric, most),
        ),
        "scatter": ("What a defense costs and brings", lambda: plot.scatter(runs, most)),
        "rates": ("Against the poison rate", lambda: plot.against_rate(runs, ("asr", "ca"), most)),
        "curves": ("Learning curves", lambda: plot.curves(runs, most)),
    }
    found = []
    for name, (title, make) in draw.items():
        kind = name.split()[0]
        if kind == "rates" and not several:
            continue
        try:
            figure = make()
        except DataError:  # nothing to draw
            continue
        option = f" --metric {metric}" if kind == "heatmap" else ""
        found.append(_plot(title, figure, f"bdx plot {kind} {folders}{option} --output {kind}.svg"))
    return found + [_plot("Features before and after", figure, "") for figure in features]


def _plot(title: str, figure: Figure, command: str) -> dict[str, Any]:
    return {"title": title, "svg": Markup(plot.as_svg(figure)), "command": command}


def _triggers(report: Report) -> dict[str, Any]:
    """Pictures of triggers as data addresses, and how many are left out."""
    pictures = list(plot.galleries(report.found).items())
    shown = [
        {"title": title, "data": f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"}
        for title, file in pictures[:TRIGGERS]
    ]
    return {"shown": shown, "more": len(pictures) - len(shown)}


def _link(target: Path, here: str) -> str:
    """The way from the page's folder to a file, as an address."""
    return quote(os.path.relpath(os.path.realpath(target), here).replace(os.sep, "/"))


# ---- the runs -------------------------------------------------------------------------------------------------------


class _Held:
    """Values held once; a run keeps their places. `share` is for parts of runs, which outlive this and are often the same object
    (`record.collect`), so that few must be compared by their text."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}
        self.values: list[Any] = []
        self.known: dict[int, int] = {}

    def place(self, value: Any) -> int:
        place = self.places.setdefault(json.dumps(value), len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place

    def share(self, part: Any) -> int:
        if id(part) not in self.known:
            self.known[id(part)] = self.place(part)
        return self.known[id(part)]


def _data(report: Report, file: Path) -> dict[str, Any]:
    """What the page's script reads: each run, with places in lists of settings, infections and environments."""
    held = {name: _Held() for name in (*SHARED, "other", "infection", "environment")}
    runs, here = [], os.path.realpath(file.parent)
    way = functools.cache(lambda parent: _link(parent, here))  # thousands of runs lie in few folders
    for folder, run in report.found.items():
        config = run.config
        other = {name: value for name, value in config.items() if name not in (*SHARED, "seed")}
        places = [held[group].share(config[group]) for group in SHARED] + [held["other"].place(other)]
        places += [held["infection"].share(run.infection), held["environment"].share(run.environment)]
        notes = json.dumps(run.notes)
        runs.append(
            {
                "id": run.id,
                "status": run.status,
                "collapsed": table.collapse(run) if run.status == "done" else "",
                "seed": config["seed"],
                "places": places,
                "infected": _scores(run, "infected"),
                "purified": _scores(run, "purified"),
                "der": _rounded(table.effectiveness(run)),
                "notes": run.notes if len(notes) <= LONGEST else f"{len(notes):,} characters, in record.json",
                "seconds": run.seconds,
                "started": run.started,
                "error": (run.error or "")[:LONGEST],
                "epochs": len(run.curve),
                "folder": f"{way(folder.parent)}/{quote(folder.name)}",
            }
        )
    return {"runs": runs} | {name: box.values for name, box in held.items()}


def _scores(run: Run, when: str) -> list[float | None]:
    scores = getattr(run, when)
    return [_rounded(getattr(scores, name)) if scores else None for name in table.FIGURES]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
