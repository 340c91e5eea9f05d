"""What becomes of purified models after attacks on them: against the setting that was swept, and trial by trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib import style
from matplotlib.figure import Figure

from backdoorbench.config.compose import flat
from backdoorbench.config.groups import AFTER, PURIFY
from backdoorbench.errors import DataError, quantity
from backdoorbench.reporting.comebacks import CONTROLS
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.plots.panels import Panel
from backdoorbench.reporting.rows import after_figures, chosen, latest

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

PANELS = ("dataset", "model", "attack", "rate")
BESIDE: dict[str, dict[str, Any]] = {  # a control -> how its line looks
    "clean": {"color": "#666666", "marker": "p", "linestyle": "--"},
    "exact": {"color": "#666666", "marker": "h", "linestyle": ":"},
}
CALLED = {"clean": "clean model", "exact": "exact purification"}
Points = Callable[[Any, str], Iterable[tuple[float, float | None]]]  # of a run and a figure


@style.context(ink.STYLE)
def against_setting(runs: Iterable[Run], most: int | None = None) -> Figure:
    """ASR after an after-attack, against the one number among its settings in which runs differ: a panel an attack, a line a
    defense, the controls dashed. DataError where no setting, or several, were swept."""
    drawn, left_out = panels.sound(run for run in runs if chosen(run.config, AFTER.group))
    setting = swept([run.config[AFTER.group] for run in drawn])
    title, shown, missing = panels.arrange(drawn, PANELS, most, lambda members: _once(members, setting))

    def x(run: Run) -> float:
        return float(flat(run.config[AFTER.group])[setting])

    figure = _drawn(title, shown, lambda run, name: [(x(run), after_figures(run).get(name))], [*missing, *left_out])
    for axes in figure.axes:
        axes.set_xlabel(f"{AFTER.group}.{setting}")
    return figure


@style.context(ink.STYLE)
def by_trial(runs: Iterable[Run], most: int | None = None) -> Figure:
    """ASR of each trial of an after-attack, in their order: variations of the trigger, points of a line of weights. DataError
    where no run has several, or where runs have others."""
    drawn, left_out = panels.sound(run for run in runs if len(_trials(run)) > 1)
    labels = {tuple(trial["label"] for trial in _trials(run)) for run in drawn}
    if len(labels) != 1:
        raise DataError(
            f"{len(drawn)} runs have after-attacks of several trials, of {len(labels)} kinds; expected one kind. Run one, such "
            f"as: bdx attack=badnets defense=ft after=variations; or name only folders of one."
        )
    (names,) = labels
    title, shown, missing = panels.arrange(drawn, PANELS, most)

    def points(run: Run, name: str) -> list[tuple[float, float | None]]:
        model = name.removeprefix("asr_after_") if name != "asr_after" else PURIFY.model
        return [(place, trial["asr"]) for place, trial in enumerate(_trials(run, model))]

    figure = _drawn(title, shown, points, [*missing, *left_out])
    figure.set_size_inches(figure.get_figwidth() + 0.08 * len(names), figure.get_figheight() + 0.5)
    for axes in figure.axes:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    return figure


def swept(settings: Sequence[Mapping[str, Any]]) -> str:
    """The one setting in which after-attacks of one name differ, a number; DataError where there is none, or where there are
    several."""
    names = {str(each["name"]) for each in settings}
    told = [flat(each) for each in settings]
    every = dict.fromkeys(key for each in told for key in each)
    keys = [key for key in every if len({str(each.get(key)) for each in told}) > 1]
    if len(names) == 1 and len(keys) == 1 and all(type(each.get(keys[0])) in (int, float) for each in told):
        return keys[0]
    found = f"{quantity(len(settings), 'run')} with after-attacks ({', '.join(sorted(names)) or 'none'})"
    differ = f", which differ in {', '.join(keys)}" if keys and len(names) == 1 else ""
    raise DataError(
        f"{found}{differ}; expected those of one after-attack, which differ in one number among its settings. Run some: bdx -m "
        f"attack=badnets defense=fst after=retune after.samples=1,5,20."
    )


def _drawn(
    title: str,
    shown: Sequence[Panel],
    points: Points,
    said: Sequence[str],
) -> Figure:
    """A line a defense, and one a control, whose points of all defenses' runs are the same."""
    looks = panels.looks(shown)
    figure, grid = ink.panels(title, [panel.title for panel in shown], 1)
    met: dict[str, dict[str, Any]] = {}
    for axes, panel in zip(grid[0], shown, strict=True):
        everyone = [run for members in panel.lines.values() for run in members]
        for control in CONTROLS:
            cells = panels.cells(point for run in everyone for point in points(run, f"asr_after_{control}"))
            if cells:
                met[CALLED[control]] = BESIDE[control]
                ink.draw_line(axes, cells, BESIDE[control], set())
        for label, members in panel.lines.items():
            cells = panels.cells(point for run in members for point in points(run, "asr_after"))
            doubtful = {x for run in members if panels.is_doubtful(run) for x, _ in points(run, "asr_after")}
            ink.draw_line(axes, cells, looks[label], doubtful)
    ink.name_rows(grid, ("asr",))
    seeds = {len({run.config["seed"] for run in members}) for panel in shown for members in panel.lines.values()}
    ink.finish(figure, {**met, **looks}, [f"Means over seeds, n = {ink.span(seeds)}.", *said])
    return figure


def _once(runs: Iterable[Run], setting: str) -> list[Run]:
    """One run a value of the setting and seed, the latest."""
    return list(latest(runs, lambda run: (flat(run.config[AFTER.group])[setting], run.config["seed"])).values())


def _trials(run: Run, model: str = PURIFY.model) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.after.details.get("trials", {}).get(model, [])
    return found
