"""Everything a report says of the runs it was given, without a format: tables, published figures beside them, failures, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backdoorbench import metrics
from backdoorbench.reporting import formats, frame, published, table
from backdoorbench.reporting.published import Comparison
from backdoorbench.reporting.table import LEFT_OUT, WEAK, Grid, Row

if TYPE_CHECKING:
    from backdoorbench.recorded import Run


@dataclass(frozen=True)
class Failure:
    """A run that ended in an error: `digits · demo · badnets → fst · seed 0`, the error, and where its log lies."""

    heading: str
    error: str
    log: Path


@dataclass(frozen=True)
class Report:
    """What there is to say of runs.

    rows      as in `table.aggregate`; grids: the same laid out
    beside    (place of a row, infected or purified) -> what was published for it
    notes     what must be said below the tables; remarks: below the published figures
    unended   runs that neither finished nor failed: killed, or still going
    """

    found: Mapping[Path, Run]
    rows: list[Row]
    grids: list[Grid]
    beside: dict[tuple[int, str], Comparison]
    notes: list[str]
    remarks: list[str]
    failures: list[Failure]
    unended: int


def make(found: Mapping[Path, Run], figures: Sequence[str], lines: Sequence[str], columns: Sequence[str]) -> Report:
    """The report of runs by the folder of their record.

    figures         of ca, asr, ra, der, in the order of the tables
    lines, columns  what to lay the tables out by; both empty: a line a setting"""
    runs = list(found.values())
    rows = table.aggregate(runs)
    pivot = lines or columns
    grids = table.pivot_grids(rows, lines, columns, figures) if pivot else table.list_grids(rows, figures)
    beside = published.beside(rows)
    failures = [
        Failure(table.heading(run), run.error or "", folder / "log.txt")
        for folder, run in found.items()
        if run.status == "failed"
    ]
    unended = sum(run.status not in ("done", "failed") for run in runs)
    notes = [*_notes(rows, runs, grids, figures), *([_unended(unended)] if unended else [])]
    remarks = published.remarks(beside, rows) if beside else []
    return Report(found, rows, grids, beside, notes, remarks, failures, unended)


def _notes(rows: Sequence[Row], runs: Sequence[Run], grids: Sequence[Grid], figures: Sequence[str]) -> list[str]:
    items = [item for grid in grids for line in grid.lines for item in line]
    said = [table.footer(rows, runs)] if rows else []
    if any(item.best for item in items):
        said.append(
            "best: of the defenses that finished every seed of a setting, none collapsed, on infections that took"
        )
    if count := sum(len(row.collapsed) for row in rows):
        mark = f"{LEFT_OUT} " if any(LEFT_OUT in item.text for item in items) else ""
        which = table.join_few([_collapsed(row) for row in rows if row.collapsed])
        said.append(f"{mark}collapsed and left out of the means: {count} run{'s' * (count > 1)}: {which}")
    said += table.rebuilt(runs)
    if various := table.varying(rows):
        said.append(f"settings that differ between attacks: {table.join_few(various)}")
    if any(WEAK in item.text for item in items):
        said.append(f"{WEAK} the infection is weak or broken: the figures of a defense mean little")
    if rows:
        said.append(metrics.DEFINITIONS + (f" {metrics.DER_DEFINITION}" if "der" in figures else ""))
    return said


def _collapsed(row: Row) -> str:
    """`fst on badnets (constant predictor, seeds 1, 2)`."""
    reasons: dict[str, list[int]] = {}
    for seed, reason in row.collapsed.items():
        reasons.setdefault(reason, []).append(seed)
    said = (f"{reason}, seed{'s' * (len(seeds) > 1)} {table.ranges(seeds)}" for reason, seeds in reasons.items())
    return f"{row.names['defense']} on {row.names['attack']} ({'; '.join(said)})"


def _unended(count: int) -> str:
    return f"{count} run{'s' * (count > 1)} without an end: killed, or still going"


# ---- as text --------------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """Tables, notes, published figures and failures as Markdown."""
    parts = [formats.markdown(grid) for grid in report.grids]
    parts.append("".join(f"- {note}\n" for note in report.notes))
    if report.beside:
        parts.append(formats.markdown(published.as_grid(list(report.beside.values()))))
        parts.append("".join(f"- {remark}\n" for remark in report.remarks))
    if report.failures:
        parts.append(
            f"failed: {len(report.failures)}\n\n" + "".join(f"- {say(failure)}\n" for failure in report.failures)
        )
    return "\n".join(filter(None, parts))


def latex(report: Report) -> str:
    """A table environment for each grid; what a caption cannot hold is a comment."""
    brief = [note for note in report.notes if note not in report.notes[:1]]
    parts = ["% \\usepackage{booktabs}\n"]
    parts += [formats.latex_table(grid, report.notes[:1]) for grid in report.grids]
    if report.beside:
        parts.append(formats.latex_table(published.as_grid(list(report.beside.values()))))
    said = [*brief, *report.remarks, *(f"failed: {say(failure)}" for failure in report.failures)]
    return "\n".join(parts) + "".join(f"% {line}\n" for note in said for line in note.splitlines())


def csv(report: Report) -> str:
    """A line a setting."""
    purified = {place: item for (place, state), item in report.beside.items() if state == "purified"}
    return formats.as_csv(report.rows, purified)


def runs_csv(report: Report) -> str:
    """A line a run."""
    return frame.as_csv(report.found)


def say(failure: Failure) -> str:
    """A failure in one line, its error cut after 300 characters."""
    error = " ".join(failure.error.split())
    return f"{failure.heading}: {error if len(error) <= 300 else error[:299] + '…'} ({failure.log})"
