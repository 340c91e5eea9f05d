"""Which runs share a line, and which lines a panel: the selection that curves, rates and scatter have in common.

A line is a defense; what else differs is a panel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backdoorbench.config.groups import INFECT, PURIFY, Stage
from backdoorbench.config.implied import beyond
from backdoorbench.errors import join_words, quantity
from backdoorbench.reporting.plots import ink
from backdoorbench.reporting.rows import (
    DASH,
    Cell,
    base_names,
    collapse,
    compared,
    identifier,
    label,
    latest,
    look_up,
    rate_of,
    tell_apart,
)

if TYPE_CHECKING:  # a view of records needs no torch
    from backdoorbench.storage.record import Run


@dataclass(frozen=True)
class Panel:
    """Runs that differ in nothing but the defense, the seed and, where it is the x axis, the poison rate.

    title  what tells the panel from others
    lines  a defense, with the settings that tell it from its like -> its runs, one a rate and seed
    """

    title: str
    lines: dict[str, list[Run]]


# ---- what the records say -------------------------------------------------------------------------------------------


def figure_of(run: Run, stage: Stage, name: str) -> float | None:
    """CA, ASR, RA or the holdout's CA of the model that a stage left; None where that was not measured."""
    if name == "holdout_ca":
        measured: float | None = run.of(stage.name).details.get(name)
        return measured
    scores = run.of(stage.name).scores
    return getattr(scores, name) if scores else None


def is_doubtful(run: Run) -> bool:
    """Whether the infection is weak or broken, so that a defense's figures mean little."""
    return run.infection.status in ("weak", "broken")


def doubts(runs: Iterable[Run]) -> list[str]:
    """What hollow points mean, where there are any."""
    return ["Hollow: the infection is weak or broken."] if any(map(is_doubtful, runs)) else []


def poison_rate(run: Run) -> float:
    """0 where the attack has none."""
    return rate_of(run.config)


def cells(points: Iterable[tuple[float, float | None]]) -> dict[float, Cell]:
    """x -> the values there, x ascending; what was not measured is left out."""
    found: dict[float, tuple[float, ...]] = {}
    for x, value in points:
        if value is not None:
            found[x] = (*found.get(x, ()), value)
    return {x: Cell(found[x]) for x in sorted(found)}


def once(runs: Iterable[Run]) -> list[Run]:
    """One run a rate and seed, the latest."""
    return list(latest(runs, lambda run: (poison_rate(run), run.config["seed"])).values())


def finished(runs: Sequence[Run]) -> str:
    """`2 of 3 runs finished`."""
    return f"{sum(run.status == 'done' for run in runs)} of {quantity(len(runs), 'run')} finished"


def sound(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """The finished runs that did not collapse, and a sentence on those that did."""
    done = [run for run in runs if run.status == "done"]
    kept = [run for run in done if not collapse(run)]
    count = len(done) - len(kept)
    return kept, [f"{quantity(count, 'collapsed run')} left out."] if count else []


# ---- what goes where ------------------------------------------------------------------------------------------------


def arrange(
    runs: Iterable[Run],
    columns: Sequence[str],
    most: int | None = None,
    each: Callable[[Iterable[Run]], list[Run]] = once,
) -> tuple[str, list[Panel], list[str]]:
    """What all panels share, as the figure's title; the panels, in an order that does not depend on when runs were done; and
    sentences on those beyond `most`, and on lines that are called alike in several panels and are of other settings.

    columns  the base names that tell panels apart; without `rate`, runs at all poison rates share a line
    each     which runs of a line are drawn"""
    groups = _grouped(runs, columns)
    total = len(groups)
    sizes = []
    for lines in groups:
        members = [run for runs in lines for run in runs]
        sizes.append((1 if "rate" in columns else len(set(map(poison_rate, members))), len(members)))
    groups = largest(groups, sizes, most)
    firsts = [[_told(members[0], columns) for members in lines] for lines in groups]
    names = _names([_without_defense(configs[0]) for configs in firsts], columns)
    shared = {column for column in columns if len({name[column] for name in names}) == 1} - {INFECT.group}
    panels = []
    for name, configs, lines in zip(names, firsts, groups, strict=True):
        called = [label(found, PURIFY.group) for found in _names(configs, (PURIFY.group,))]
        said = title({column: value for column, value in name.items() if column not in shared}, columns)
        panels.append(Panel(said, dict(zip(called, map(each, lines), strict=True))))
    heading = title({column: names[0][column] for column in columns if column in shared}, columns)
    left_out = ink.missing(total - len(panels), "setting")
    return heading, panels, [*left_out, *_unlike(zip(panels, firsts, strict=True))]


def _unlike(panels: Iterable[tuple[Panel, Sequence[dict[str, Any]]]]) -> list[str]:
    """`Not the same in all panels: fst (epochs 1, 2).`: the legend has one name for both.

    panels  each with a configuration of each of its lines; what a method's name implies on its data set is not told"""
    called: dict[str, list[dict[str, Any]]] = {}
    for panel, configs in panels:
        for name, config in zip(panel.lines, configs, strict=True):
            called.setdefault(name, []).append(config)
    found = []
    for name, configs in called.items():
        own = [{key: value for key, value in beyond(each).items() if _is_of_defense(key)} for each in configs]
        keys = dict.fromkeys(key for each in own for key in each if any(each[key] != other.get(key) for other in own))
        values = (
            f"{key.partition('.')[2]} {', '.join(dict.fromkeys(look_up(c, key) for c in configs))}" for key in keys
        )
        found += [f"{name} ({'; '.join(values)})"] if keys else []
    return [f"Not the same in all panels: {join_words(found)}."] if found else []


def _is_of_defense(key: str) -> bool:
    return key.startswith(f"{PURIFY.group}.")


def _grouped(runs: Iterable[Run], columns: Sequence[str]) -> list[list[list[Run]]]:
    """The runs of each line of each panel, in order."""

    def order(run: Run) -> tuple[Any, ...]:
        names = base_names(run.config)
        return *(names[column] for column in ("dataset", "model", "attack")), poison_rate(run), names[PURIFY.group]

    identify = identifier()
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(identify(run.config), []).append(run)
    groups: dict[str, dict[str, list[Run]]] = {}
    for _, members in sorted(alike.items(), key=lambda item: (*order(item[1][0]), item[0])):
        config = _told(members[0], columns)
        lines = groups.setdefault(identify(_without_defense(config)), {})
        lines.setdefault(identify(config), []).extend(members)
    return [list(lines.values()) for lines in groups.values()]


def _told(run: Run, columns: Sequence[str]) -> dict[str, Any]:
    """The settings that tell lines and panels apart: not the poison rate, where it is the x axis."""
    if "rate" in columns:
        return run.config
    attack = {name: value for name, value in run.config[INFECT.group].items() if name != "poison_rate"}
    return {**run.config, INFECT.group: attack}


def largest(items: Sequence[Any], sizes: Sequence[Any], most: int | None) -> list[Any]:
    """The `most` largest items, in the order they had."""
    places = sorted(range(len(items)), key=lambda place: sizes[place], reverse=True)[:most]
    return [items[place] for place in sorted(places)]


def _without_defense(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, PURIFY.group: {"name": ""}}


def _names(configs: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, str]]:
    """What each configuration is called: the base `columns`, and the settings that tell it from those called alike."""
    bases = [{column: base_names(config)[column] for column in columns} for config in configs]
    return tell_apart(bases, [compared(config) for config in configs])


def title(names: Mapping[str, str], columns: Sequence[str]) -> str:
    """`badnets · 10 % · attack.target 1`."""
    shown = (value if column in columns else f"{column} {value}" for column, value in names.items() if value != DASH)
    return " · ".join(shown)


def looks(panels: Iterable[Panel]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each line's name, the same in every panel."""
    return ink.looks(name for panel in panels for name in panel.lines)


def seeds(panels: Iterable[Panel], spread: str) -> str:
    """`Mean over seeds, band from the smallest to the largest, n = 1 to 3.`

    spread  what shows it"""
    lines = [members for panel in panels for members in panel.lines.values()]
    counts = {count for members in lines for count in Counter(map(poison_rate, members)).values()}
    return (f"Mean over seeds, {spread}, " if max(counts) > 1 else "") + f"n = {ink.span(counts)}."
