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
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from backdoorbench.config.groups import AFTER, DETECT, INFECT, JUDGED, PURIFY, STAGES
from backdoorbench.errors import DataError
from backdoorbench.metrics import printed
from backdoorbench.reporting import picture
from backdoorbench.reporting.display import TYPED, Names
from backdoorbench.reporting.grids import CLEAN, Grid
from backdoorbench.reporting.plots import ink
from backdoorbench.reporting.plots.after import against_setting, by_trial
from backdoorbench.reporting.plots.curves import curves
from backdoorbench.reporting.plots.gallery import galleries, reversed_triggers
from backdoorbench.reporting.plots.heatmap import heatmap
from backdoorbench.reporting.plots.ink import as_svg
from backdoorbench.reporting.plots.ranks import ranks
from backdoorbench.reporting.plots.rates import against_rate
from backdoorbench.reporting.plots.scatter import scatter
from backdoorbench.reporting.report import OF_AFTER, OF_DETECTORS, Report, Section, costs, sections
from backdoorbench.reporting.rows import (
    ANSWERS,
    CHOICES,
    COSTS,
    FIGURES,
    RISES,
    SILENT,
    TITLES,
    Cell,
    called,
    chosen,
    collapse,
    effectiveness,
    identity,
    rises,
    show,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from backdoorbench.metrics import Scores
    from backdoorbench.storage.record import Finding, Run

PANELS, FEWER, MANY = 8, 4, 200  # panels of a plot; where there are many settings; how many are many
TRIGGERS = 12
LEGIBLE = 0.75  # of its size that a plot is shrunk to; a wider one scrolls
MODELS = {stage.name: stage.model for stage in STAGES}
PARTS = {  # sections -> their heads on the page
    "tables": "Tables", "verdicts": "Verdicts", "statistics": "Statistics", "published": "Published beside ours",
    "costs": "What defenses cost",
}  # fmt: skip
LONGEST = 2000  # characters of an error or of a run's notes; the rest is in its folder


def render(
    report: Report,
    folders: Sequence[str],
    file: Path,
    figures: Sequence[str],
    features: Sequence[Figure],
    named: Names = TYPED,
    chosen_by: Sequence[str] = (),
) -> str:
    """The page that is going to lie at `file`, from where its links start.

    folders    what the command line named, to print commands that draw a plot in full
    features   t-SNE figures
    named      what options are called; the list of runs has what is typed
    chosen_by  the words of the command line that a plot of these runs needs too, such as `--where`"""
    runs = list(report.found.values())
    loader = jinja2.PackageLoader("backdoorbench", "reporting")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return made.get_template("page.html").render(
        folders=" ".join(folders),
        span=_span(runs),
        counts=_counts(report),
        parts=_parts([*sections(report, named), *filter(None, [costs(report, named)])]),
        plots=_plots(report, shlex.join([*folders, *chosen_by]), figures, features, named),
        triggers=_triggers(report),
        failures=[
            {"failure": failure, "link": _link(failure.log, os.path.realpath(file.parent))}
            for failure in report.failures
        ],
        data=Markup(_embedded(_data(report, file))),
        rises={TITLES[figure]: more for figure, more in RISES.items()} | _rising(report.grids),
    )


def _rising(grids: Sequence[Grid]) -> dict[str, bool]:
    """Title of a column -> whether more is better, of figures that have no title of their own."""
    columns = [column for grid in grids for column in grid.columns if column.figure and column.figure not in TITLES]
    return {column.name: more for column in columns if (more := rises(column.figure)) is not None}


def _span(runs: Sequence[Run]) -> str:
    days = sorted({run.started[:10] for run in runs if run.started})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def _counts(report: Report) -> list[tuple[str, str]]:
    """What the head of the page says: how many runs, and of what."""
    runs = list(report.found.values())
    states = Counter(run.status for run in runs)
    collapsed = sum(len(row.collapsed) for row in report.rows)
    said = [("runs", len(runs)), ("finished", states["done"]), ("failed", states["failed"])]
    said += [
        ("interrupted", report.interrupted),
        ("without an end", report.unended),
        ("collapsed", collapsed),
        ("settings", len(report.rows)),
    ]
    for group in ("dataset", *(stage.group for stage in STAGES)):
        count = len({run.config[group]["name"] for run in runs} - {"none"})
        called_so = {"dataset": "data set", AFTER.group: "after-attack"}.get(group, group)
        said.append((called_so + "s" * (count != 1), count))
    return [(name, f"{count:,}") for name, count in said if count or name in ("runs", "finished", "failed")]


def _parts(found: Sequence[Section]) -> list[dict[str, Any]]:
    """The page's parts in order, those of one name together."""
    made: dict[str, list[dict[str, Any]]] = {}
    for section in found:
        grids = [{"grid": grid, "groups": _groups(grid)} for grid, _ in section.tables]
        made.setdefault(section.name, []).append({"grids": grids, "notes": section.notes})
    return [{"name": name, "title": PARTS[name], "sections": parts} for name, parts in made.items()]


def _groups(grid: Grid) -> list[tuple[str, int]]:
    """The upper header line: what stands above how many columns; nothing where it would be empty."""
    found: list[tuple[str, int]] = []
    for column in grid.columns:
        if found and found[-1][0] == column.group:
            found[-1] = (column.group, found[-1][1] + 1)
        else:
            found.append((column.group, 1))
    return found if any(name for name, _ in found) else []


def _plots(
    report: Report, words: str, figures: Sequence[str], features: Sequence[Figure], named: Names
) -> list[dict[str, Any]]:
    """Name, element and the command that draws it in full, of each plot that the runs allow.

    words  of that command, which name its runs"""
    runs = list(report.found.values())
    unfit = (*OF_DETECTORS, *OF_AFTER, *COSTS)  # which are no shares of a defense
    metric = next((name for name in ("asr", *figures) if name in figures and name not in unfit), "asr")
    settings: dict[str, set[str]] = {}
    for row in report.rows:
        kept = {**row.config, INFECT.group: {**row.config[INFECT.group], "poison_rate": None}}
        settings.setdefault(identity(kept), set()).add(row.names["rate"])
    several = any(len(rates) > 1 for rates in settings.values())
    most = PANELS if len(report.rows) <= MANY else FEWER
    draw: dict[str, tuple[str, Callable[[], Figure]]] = {
        f"heatmap {metric}": (
            f"{titled(metric)}, attacks by defenses",
            lambda: heatmap(report.rows, metric, most),
        ),
        "scatter": ("What a defense costs and brings", lambda: scatter(runs, most)),
        "after": ("After an attack on the purified model", lambda: against_setting(runs, most)),
        "trials": ("Trials of an after-attack", lambda: by_trial(runs, most)),
        "rates": ("Against the poison rate", lambda: against_rate(runs, ("asr", "ca"), most)),
        "ranks": ("Mean ranks over attacks and seeds", lambda: ranks(report.standings, most)),
        "curves": ("Learning curves", lambda: curves(runs, most)),
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
        shown = {"heatmap": [metric], "ranks": [standing.figure for standing in report.standings]}.get(kind, [])
        option = f" --metric {','.join(dict.fromkeys(shown))}" if shown else ""
        ink.rename(figure, named)
        found.append(_plot(title, figure, f"bdx plot {kind} {words}{option} --output {kind}.svg"))
    return found + [_plot("Features before and after", figure, "") for figure in features]


def _plot(title: str, figure: Figure, command: str) -> dict[str, Any]:
    least = round(LEGIBLE * 72 * figure.get_figwidth())
    return {"title": title, "svg": Markup(as_svg(figure)), "command": command, "least": least}


def _triggers(report: Report) -> dict[str, Any]:
    """Pictures of triggers as data addresses, and how many are left out."""
    triggers, found = list(galleries(report.found).items()), list(reversed_triggers(report.found).items())
    shown = [
        {"title": title, "data": f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"}
        for title, file in (*triggers[:TRIGGERS], *found[:TRIGGERS])
    ]
    return {
        "said": picture.SAID,
        "shown": shown,
        "reversed": bool(found),
        "more": len(triggers) + len(found) - len(shown),
    }


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
    """What the page's script reads: each run, with places in lists of names, settings, infections and environments.

    groups  whose settings are held once, those apart that no run chooses anything of
    lists   what a run's places are places in, in their order
    models  the models of a run that have scores"""
    found = report.found.items()
    groups = [group for group in CHOICES if group not in SILENT or any(chosen(run.config, group) for _, run in found)]
    held = {name: _Held() for name in (*groups, "name", "other", "infection", "environment")}
    runs, here = [], os.path.realpath(file.parent)
    way = functools.cache(lambda parent: _link(parent, here))  # thousands of runs lie in few folders
    for folder, run in found:
        config = run.config
        other = {name: value for name, value in config.items() if name not in (*CHOICES, "seed")}
        places = [held[group].share(config[group]) for group in groups]
        places += [held["name"].place(called(config)), held["other"].place(other)]
        places += [held["infection"].place(_infection(run.infection)), held["environment"].share(run.environment)]
        runs.append(_run(run, f"{way(folder.parent)}/{quote(folder.name)}", places))
    lists = {name: box.values for name, box in held.items()}
    return {"runs": runs, "groups": groups, "lists": list(lists), "models": [stage.model for stage in JUDGED]} | lists


def _run(run: Run, folder: str, places: list[int]) -> dict[str, Any]:
    """What the page says of a run."""
    found = {stage: run.of(stage.name) for stage in JUDGED}
    purification = found[PURIFY]
    detection = run.detection if chosen(run.config, DETECT.group) else None
    return {
        "id": run.id,
        "status": run.status,
        "collapsed": collapse(run) if run.status == "done" else "",
        "seed": run.config["seed"],
        "places": places,
        **{stage.model: _scores(finding.scores) for stage, finding in found.items()},
        "der": _rounded(effectiveness(run)),
        "notes": _brief(purification.notes),
        **({"detector": _detector(detection)} if detection is not None and detection.name else {}),
        **({"after": _afterwards(run.after)} if run.after.name else {}),
        "seconds": _seconds(run),
        "started": run.started,
        "error": (run.error or "")[:LONGEST],
        "epochs": len(purification.curve),
        "folder": folder,
    }


def _brief(notes: dict[str, Any]) -> dict[str, Any] | str:
    """Notes of a method, unless they are too long for a page."""
    length = len(json.dumps(notes))
    return notes if length <= LONGEST else f"{length:,} characters, in record.json"


def _detector(finding: Finding) -> dict[str, Any]:
    """What a detector said of the infected model and of the clean one, as the run's tables call it."""

    def told(name: str, value: float | None) -> Any:
        if name in ANSWERS and value is not None:
            return "yes" if value else "no"
        return show(Cell(() if value is None else (value,)), name) if name in TITLES else value

    said = {
        model: {TITLES.get(name, name): told(name, value) for name, value in figures.items()}
        for model, figures in ((INFECT.model, finding.figures), (CLEAN, finding.beside))
    }
    return {"name": finding.name, **said, "notes": _brief(finding.notes)}


def _afterwards(finding: Finding) -> dict[str, Any]:
    """What became of the purified model after an attack on it, and of the controls; its trials, where there are several."""
    figures = {
        titled(name): show(Cell(() if value is None else (value,)), name) for name, value in finding.figures.items()
    }
    trials = finding.details.get("trials", {}).get(PURIFY.model, [])
    several = {trial["label"]: show(Cell((trial["asr"],)), "asr") for trial in trials} if len(trials) > 1 else {}
    return {"name": finding.name, **figures, **several, "notes": _brief(finding.notes)}


def _infection(finding: Finding) -> dict[str, Any]:
    """What a run's infection is, and what it cost."""
    facts = {name: value for name, value in finding.notes.items() if name != "target"}
    return {
        "key": finding.key,
        "cached": finding.cached,
        "seconds": finding.cost,
        "status": finding.status,
        "reasons": finding.reasons,
        "facts": facts,
        "target": finding.notes.get("target"),
    }


def _seconds(run: Run) -> dict[str, float]:
    """Wall time by part; of a part that several stages have, with the model that it is about, or the stage."""
    found: dict[str, float] = {}
    for finding in run.stages:
        for part, seconds in finding.seconds.items():
            name = f"{part}_{MODELS[finding.kind]}" if part == "evaluate" else part
            found[name if name not in found else f"{finding.kind}_{part}"] = seconds
    return found


def _scores(scores: Scores | None) -> list[float | None]:
    return [_rounded(getattr(scores, name)) if scores else None for name in FIGURES]


def _rounded(value: float | None) -> float | None:
    """A share as far as tables print it, so that the page's script rounds nothing a second time."""
    return None if value is None else round(printed(value) / 100, 4)


def _embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
