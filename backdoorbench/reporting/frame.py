"""One row a run, as plain values: what a data frame or a flat CSV holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.reporting.table import CHOICES, FIGURES, collapse, differing, effectiveness, look_up

if TYPE_CHECKING:
    from backdoorbench.recorded import Run


def rows(found: Mapping[Path, Run]) -> list[dict[str, Any]]:
    """Of each run what names it, its figures as fractions, what became of it and what it cost (seconds); None where there is
    nothing. Dotted columns are the settings that differ between runs."""
    extra = differing([run.config for run in found.values()])
    return [_row(folder, run) | {key: look_up(run.config, key) for key in extra} for folder, run in found.items()]


def _row(folder: Path, run: Run) -> dict[str, Any]:
    config, done = run.config, run.status == "done"
    row: dict[str, Any] = {"id": run.id, "status": run.status}
    row |= {group: config[group]["name"] for group in CHOICES}
    row |= {"poison_rate": config["attack"].get("poison_rate"), "seed": config["seed"]}
    for when, scores in (("infected", run.infected), ("purified", run.purified)):
        row |= {f"{when}_{name}": getattr(scores, name) if scores else None for name in FIGURES}
    row |= {"der": effectiveness(run), "n_clean": run.infected.n_clean if run.infected else None}
    row |= {"n_triggered": run.infected.n_triggered if run.infected else None}
    row |= {"infection": run.infection.get("status"), "collapsed": (collapse(run) if done else "") or None}
    row |= {f"seconds_{stage}": run.seconds.get(stage) for stage in ("infect", "purify")}
    row |= {name: run.environment.get(name) for name in ("device", "commit")}
    error = " ".join(run.error.split()) if run.error else None  # a line a run, whatever reads it
    return row | {"started": run.started, "error": error, "folder": str(folder)}


def as_csv(found: Mapping[Path, Run]) -> str:
    """The rows as CSV, empty where there is nothing: `pandas.read_csv(file)`."""
    made = rows(found)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(made[0]) if made else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)
    return buffer.getvalue()
