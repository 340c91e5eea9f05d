"""One row a run and class: what the models before and after a defense do with the images of each true class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.config.groups import INFECT, JUDGED, PURIFY
from backdoorbench.errors import DataError, quantity
from backdoorbench.reporting import separated
from backdoorbench.reporting.rows import FIGURES, base_names, collapse, compared, differing, look_up

if TYPE_CHECKING:
    from backdoorbench.config.groups import Stage
    from backdoorbench.storage.record import Run

DETAILS = tuple(f"{name}_per_class" for name in FIGURES)  # as records call them


def per_class(run: Run, stage: Stage, figure: str) -> list[float | None]:
    """A figure of the model that a stage left, by true class; None for a class that it does not count, such as the target's in
    ASR."""
    found: list[float | None] = run.of(stage.name).details.get(f"{figure}_per_class", [])
    return found


def class_names(run: Run) -> list[str]:
    """The names of the classes; their numbers where the record has none."""
    said = run.environment.get("data", {}).get("classes", [])
    count = len(per_class(run, PURIFY, "ca") or per_class(run, INFECT, "ca"))
    return [str(name) for name in said] if len(said) == count else [str(place) for place in range(count)]


def rows(found: Mapping[Path, Run]) -> list[dict[str, Any]]:
    """Fractions, empty where a class is not counted; dotted columns are settings that differ between runs."""
    judged = {folder: run for folder, run in found.items() if run.status == "done" and class_names(run)}
    extra = differing([compared(run.config) for run in judged.values()])
    made = []
    for folder, run in judged.items():
        named = {"id": run.id, **base_names(run.config), "seed": run.config["seed"]}
        named |= {"status": run.infection.status, "collapsed": collapse(run)}
        named |= {key: look_up(run.config, key) for key in extra}
        figures = {f"{stage.model}_{name}": per_class(run, stage, name) for stage in JUDGED for name in FIGURES}
        for place, name in enumerate(class_names(run)):
            shown = {key: values[place] if place < len(values) else None for key, values in figures.items()}
            made.append(named | {"class": place, "class_name": name} | shown | {"folder": str(folder)})
    return made


def as_csv(found: Mapping[Path, Run]) -> str:
    """The rows as CSV; DataError where no finished run has per-class figures."""
    made = rows(found)
    if not made:
        raise DataError(f"{nothing(found.values())}; expected one at least. Run one: bdx attack=badnets defense=fst.")
    return separated.as_csv(list(made[0]), (list(line.values()) for line in made))


def nothing(runs: Iterable[Run]) -> str:
    states = [run.status for run in runs]
    return f"{states.count('done')} of {quantity(len(states), 'run')} finished, none with figures by class"
