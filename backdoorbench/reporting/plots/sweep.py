"""Figures against a setting that was swept, such as a defense's strength."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from backdoorbench.config.compose import flat
from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.errors import ConfigError, DataError, did_you_mean, few
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.plots.panels import figure_of, is_doubtful
from backdoorbench.reporting.rows import TITLES, compared, differing, latest

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

FAR = 20  # times as large: from here on the axis is logarithmic


@style.context(ink.STYLE)
def against_setting(runs: Iterable[Run], key: str, figures: Sequence[str] = ("ca", "asr", "ra")) -> Figure:
    """Means over seeds against the numbers that a setting took: a row a figure, a column what else differs, a line a defense, the
    infected model dashed. ConfigError for a setting that no run has, DataError where it took fewer than two numbers."""
    if key == "seed":
        raise ConfigError("--x is 'seed', over which figures are averaged. Name a setting, such as defense.alpha.")
    runs = list(runs)
    drawn, left_out = panels.sound(run for run in runs if figure_of(run, PURIFY, "ca") is not None)
    at = {run.id: value for run in drawn if (value := number_of(run.config, key)) is not None}
    if not at and drawn:
        _refuse(key, drawn)
    if (count := len(set(at.values()))) < 2:
        raise DataError(
            f"{panels.finished(runs)}, with {count} number{'s' * (count != 1)} of {key}; expected "
            f"two at least. Sweep it: bdx -m defense=fst {key}=0.1,0.2,0.4."
        )
    stripped = [dataclasses.replace(run, config=_without(run.config, key.split("."))) for run in drawn if run.id in at]

    def once(members: Iterable[Run]) -> list[Run]:
        return list(latest(members, lambda run: (at[run.id], run.config["seed"])).values())

    title, shown, missing = panels.arrange(stripped, ("dataset", "model", "attack", "rate"), each=once)
    lines = [members for panel in shown for members in panel.lines.values()]
    if all(len({at[run.id] for run in members}) < 2 for members in lines):
        _refuse_points(key, stripped)
    looks = panels.looks(shown)
    figure, grid = ink.panels(title, [panel.title for panel in shown], len(figures))
    for column, panel in enumerate(shown):
        victims = once(run for members in panel.lines.values() for run in members)
        for name, axes in zip(figures, grid[:, column], strict=True):
            infected = panels.cells((at[run.id], figure_of(run, INFECT, name)) for run in victims)
            ink.draw_line(axes, infected, ink.DASHED, ())
            for label, members in panel.lines.items():
                cells = panels.cells((at[run.id], figure_of(run, PURIFY, name)) for run in members)
                ink.draw_line(axes, cells, looks[label], {at[run.id] for run in members if is_doubtful(run)})
                ink.draw_spread(axes, cells, looks[label])
        _set_numbers(grid[-1, column], key, [at[run.id] for run in victims])
    ink.name_rows(grid, figures)
    if set(figures) == {"holdout_ca"}:
        ink.zoom(grid)
    counts = {count for members in lines for count in Counter(at[run.id] for run in members).values()}
    said = (
        [f"Means over seeds, bars of one sample standard deviation, n = {ink.span(counts)}."]
        if max(counts) > 1
        else ["One seed."]
    )
    if set(figures) - {"holdout_ca"}:
        said.append("Test figures: a setting is chosen by holdout_ca, never by these.")
    if "holdout_ca" in figures:
        said.append(f"{TITLES['holdout_ca']}: of the defender's own images.{_kept(drawn)}")
    ink.finish(figure, ink.with_infected(figures, looks), [*said, *missing, *left_out, *panels.doubts(drawn)])
    return figure


def _kept(runs: Iterable[Run]) -> str:
    """How many images were kept for the figure, where some were."""
    held = (run.purification.details.get("holdout", {}) for run in runs)
    counts = {int(found["validation"]) for found in held if "validation" in found}
    return f" {ink.span(counts)} were kept from the defense: one is {100 / min(counts):.2f} points." if counts else ""


def number_of(config: Mapping[str, Any], key: str) -> float | None:
    """The number of a dotted setting; None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _refuse(key: str, runs: Sequence[Run]) -> None:
    known = sorted({name for run in runs for name in flat(run.config) if number_of(run.config, name) is not None})
    raise ConfigError(
        f"--x is '{key}', of which no run has a number.{did_you_mean(key, known)} Name a setting as it is typed, such as "
        f"defense.alpha."
    )


def _refuse_points(key: str, runs: Sequence[Run]) -> None:
    """runs  without the setting"""
    others = differing([compared(run.config) for run in runs])
    also = few(others, 5) or "data set, network, attack, rate or defense"
    raise DataError(
        f"of {len(runs)} runs no two differ in {key} alone: {also} is another, too; expected two at least that share the "
        f"rest. Give --x what follows {key}, as attack.target follows dataset.target, or choose runs by --where."
    )


def _without(config: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The configuration without a setting, so that what differs in it alone is one line."""
    if len(path) == 1:
        return {name: value for name, value in config.items() if name != path[0]}
    inner = config.get(path[0])
    return {**config, path[0]: _without(inner, path[1:])} if isinstance(inner, Mapping) else {**config}


def _set_numbers(axes: Axes, key: str, numbers: Sequence[float]) -> None:
    if min(numbers) > 0 and max(numbers) >= FAR * min(numbers):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(key)
