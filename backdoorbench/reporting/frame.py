"""One row a run, as plain values: what a data frame or a flat CSV holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.config.groups import AFTER, DETECT, INFECT, JUDGED, PURIFY
from backdoorbench.reporting import separated
from backdoorbench.reporting.rows import (
    CHOICES,
    FIGURES,
    SILENT,
    TOLD,
    TOLD_OF_AFTER,
    TOLD_OF_DETECTORS,
    chosen,
    collapse,
    compared,
    cost,
    differing,
    effectiveness,
    look_up,
)

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

OF_DETECTORS = {  # column -> a detector's figure
    "auroc": "auroc", "tpr_1": "tpr_1", "tpr_5": "tpr_5", "tpr_10": "tpr_10", "detector_tpr": "tpr", "detector_fpr": "fpr",
    "precision": "precision", "anomaly_index": "anomaly_index", "target_flagged": "target_flagged",
}  # fmt: skip


def rows(found: Mapping[Path, Run]) -> list[dict[str, Any]]:
    """Of each run what names it, its figures as fractions, what became of it and its cost (seconds, MiB, J); None where there is
    nothing. Columns of a detector and of after-attacks are there where some run has one; dotted columns are the settings that
    differ between runs."""
    runs = list(found.values())
    asked = {group for group in SILENT if any(chosen(run.config, group) for run in runs)}
    told = {
        *TOLD,
        *(TOLD_OF_DETECTORS if DETECT.group in asked else ()),
        *(TOLD_OF_AFTER if AFTER.group in asked else ()),
    }
    extra = differing([compared(run.config, told) for run in runs])
    after = sorted({name for run in runs for name in run.after.figures})
    return [
        _row(folder, run, asked, after) | {key: look_up(run.config, key) for key in extra}
        for folder, run in found.items()
    ]


def _row(folder: Path, run: Run, asked: Collection[str], after: Sequence[str]) -> dict[str, Any]:
    config, found = run.config, {stage: run.of(stage.name) for stage in JUDGED}
    infection = found[INFECT]
    row: dict[str, Any] = {"id": run.id, "status": run.status}
    row |= {group: config[group]["name"] for group in CHOICES if group in asked or group not in SILENT}
    row |= {"poison_rate": config[INFECT.group].get("poison_rate"), "seed": config["seed"]}
    for stage, finding in found.items():
        row |= {f"{stage.model}_{name}": getattr(finding.scores, name, None) for name in FIGURES}
    row |= {"der": effectiveness(run), "holdout_ca": found[PURIFY].details.get("holdout_ca")}
    row |= {"n_clean": infection.scores.n_clean if infection.scores else None}
    row |= {"n_triggered": infection.scores.n_triggered if infection.scores else None}
    if DETECT.group in asked:
        figures = run.detection.figures
        row |= {column: figures.get(name) for column, name in OF_DETECTORS.items()}
    row |= {name: run.after.figures.get(name) for name in after}
    row |= {"infection": infection.status or None}
    row |= {"collapsed": (collapse(run) if run.status == "done" else "") or None}
    stages = (INFECT, *([DETECT] if DETECT.group in asked else []), PURIFY, *([AFTER] if AFTER.group in asked else []))
    row |= {f"{name}_{stage.name}": value for stage in stages for name, value in cost(run, stage).items()}
    row |= {name: run.environment.get(name) for name in ("device", "commit")}
    error = " ".join(run.error.split()) if run.error else None  # a line a run, whatever reads it
    return row | {"started": run.started, "error": error, "folder": str(folder)}


def as_csv(found: Mapping[Path, Run]) -> str:
    """The rows as CSV, empty where there is nothing: `pandas.read_csv(file)`."""
    made = rows(found)
    return separated.as_csv(list(made[0]) if made else [], (list(line.values()) for line in made))
