"""Triggers as the runs drew them, and as their detectors reversed them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.image import imread

from backdoorbench.config.groups import DETECT, INFECT
from backdoorbench.errors import DataError
from backdoorbench.reporting import picture
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.rows import TOLD_OF_ALL, compared, label, tell_apart

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

TRIGGERED = "triggered.png"  # in a run's folder
RATES = ("poison_rate", "cover_rate")  # settings of an attack that do not change what its trigger looks like


@style.context(ink.STYLE)
def gallery(found: Mapping[Path, Run], most: int | None = None) -> Figure:
    """Triggers as the runs drew them: clean, triggered, and the difference enlarged. DataError where no folder holds any."""
    pictures = list(galleries(found).items())
    if not pictures:
        raise DataError(
            f"{panels.finished(list(found.values()))}, none with a {TRIGGERED} in its folder; expected one at least. Run an "
            f"attack anew, with rerun=true, or draw a trigger without training: bdx preview attack=badnets."
        )
    kept = [(title, imread(file)) for title, file in pictures[:most]]
    return labelled(kept, ink.missing(len(pictures) - len(kept), "trigger"))


@style.context(ink.STYLE)
def labelled(kept: Sequence[tuple[str, Any]], missing: Sequence[str] = ()) -> Figure:
    """Pictures (H, W, 3) of `picture.gallery` below each other under their titles, and what they show.

    missing  sentences on those that are not there"""
    figure = Figure(figsize=(6.5, 2.75 * len(kept) + 0.3), layout="constrained")
    for axes, (title, pixels) in zip(figure.subplots(len(kept), 1, squeeze=False)[:, 0], kept, strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, loc="left")
        axes.set_axis_off()
    ink.say(figure, [picture.SAID, *missing])
    return figure


def galleries(found: Mapping[Path, Run]) -> dict[str, Path]:
    """Title -> picture of each trigger in the runs' folders; rates, networks and defenses do not change what it looks like."""
    drawn = {folder: run for folder, run in found.items() if run.status == "done" and (folder / TRIGGERED).is_file()}
    columns = ("dataset", INFECT.group)
    titled = ((panels.title(names, columns), folder / TRIGGERED) for names, folder in _named(drawn, columns, _trigger))
    return dict(sorted(titled, key=lambda pair: pair[0]))


def reversed_triggers(found: Mapping[Path, Run]) -> dict[str, Path]:
    """Title -> picture of each trigger that a detector reversed: `digits · badnets: reversed by nc`; one run a setting."""
    asked = {folder: run for folder, run in found.items() if run.status == "done" and run.detection.name}
    pictures = {folder: files for folder in asked if (files := _pictures(folder))}
    columns = ("dataset", INFECT.group, DETECT.group)
    titled = {}
    for names, folder in _named({folder: asked[folder] for folder in pictures}, columns, _inspection):
        of_detector = {name: value for name, value in names.items() if name.partition(".")[0] == DETECT.group}
        shown = panels.title({name: value for name, value in names.items() if name not in of_detector}, columns)
        for file in pictures[folder]:
            more = f", {file.stem}" if len(pictures[folder]) > 1 else ""
            titled[f"{shown}: reversed by {label(of_detector, DETECT.group)}{more}"] = file
    return dict(sorted(titled.items()))


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.png") if file.name != TRIGGERED)


def _named(
    found: Mapping[Path, Run], columns: Sequence[str], settings: Callable[[Run], dict[str, Any]]
) -> list[tuple[dict[str, str], Path]]:
    """Of equal settings the first folder, under the names of `columns` and what tells it from those called alike."""
    firsts: dict[str, tuple[Path, dict[str, Any]]] = {}
    for folder, run in found.items():
        told = compared(settings(run), TOLD_OF_ALL)
        firsts.setdefault(json.dumps(told, sort_keys=True), (folder, told))
    said = [{column: found[folder].config[column]["name"] for column in columns} for folder, _ in firsts.values()]
    names = tell_apart(said, [told for _, told in firsts.values()])
    return [(name, folder) for name, (folder, _) in zip(names, firsts.values(), strict=True)]


def _trigger(run: Run) -> dict[str, Any]:
    """What a trigger's looks depend on."""
    attack = {name: value for name, value in run.config[INFECT.group].items() if name not in RATES}
    return {"dataset": {"name": run.config["dataset"]["name"]}, INFECT.group: attack}


def _inspection(run: Run) -> dict[str, Any]:
    """The same of a reversed trigger, poison rates and networks apart."""
    return _trigger(run) | {DETECT.group: run.config[DETECT.group]}
