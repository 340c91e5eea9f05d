"""Everything a report says of the runs it was given, without a format: tables of models and of detectors, published figures
beside them, failures, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from backdoorbench.config.groups import AFTER, DETECT, PURIFY
from backdoorbench.errors import DataError, join_words, paragraph
from backdoorbench.metrics import LIMITS, Limits
from backdoorbench.reporting import (
    classes,
    comebacks,
    contrasts,
    formats,
    fragile,
    frame,
    grids,
    notes,
    published,
    rows,
    verdicts,
)
from backdoorbench.reporting.contrasts import Standing
from backdoorbench.reporting.display import TYPED, Names
from backdoorbench.reporting.grids import Grid, Told
from backdoorbench.reporting.published import Asked, Comparison
from backdoorbench.reporting.rows import Row, heading
from backdoorbench.reporting.verdicts import Ranking

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run


WHAT = {DETECT.group: "a detector", AFTER.group: "an after-attack"}
OF_DETECTORS = (*grids.OF_IMAGES[0], *grids.OF_MODELS[0])
OF_AFTER = tuple(figure for _, figure, _, _ in grids.AFTERWARDS if figure not in rows.FIGURES)
METRICS = (
    *rows.FIGURES,
    "der",
    "holdout_ca",
    *rows.COSTS,
    *OF_DETECTORS,
    *OF_AFTER,
)  # what tables can be asked for, beside `comebacks.figures`


@dataclass(frozen=True)
class Failure:
    """A run that ended in an error: `digits · demo · badnets → fst · seed 0`, the error, and where its log lies."""

    heading: str
    error: str
    log: Path


@dataclass(frozen=True)
class Report:
    """What there is to say of runs.

    rows      as in `rows.aggregate`; detections: as in `rows.detections`; after: as in `rows.afters`; grids: all laid out
    beside    (place of a row, name of its model) -> what was published for it
    notes     what must be said below the tables; remarks: of the sources of published figures; otherwise: of what we did in
              another way than they
    interrupted  how many runs that were ended from outside; unended: those without any end: killed, or still going
    rankings  of defenses, where they are asked for; standings: statistics of their differences, likewise
    is_inline   whether published figures stand in the tables of models
    """

    found: Mapping[Path, Run]
    rows: list[Row]
    detections: list[Row]
    after: list[Row]
    grids: list[Grid]
    beside: dict[tuple[int, str], Comparison]
    notes: list[str]
    remarks: list[str]
    otherwise: list[str]
    failures: list[Failure]
    interrupted: int
    unended: int
    rankings: list[Ranking] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    is_inline: bool = False


def make(
    found: Mapping[Path, Run],
    figures: Sequence[str],
    lines: Sequence[str],
    columns: Sequence[str],
    limits: Limits = LIMITS,
    is_ranked: bool = False,
    against: str | None = None,
    asked: Asked | None = None,
    keeps_tuning: bool = False,
) -> Report:
    """The report of runs by the folder of their record.

    figures         of METRICS, in the order of the tables; tables of detectors and of after-attacks show all of theirs, unless
                    they are laid out by some that are named here
    lines, columns  what to lay the tables out by; both empty: a line a setting
    limits          within which a defense has done its work, plain fine-tuning included
    is_ranked       whether to rank the defenses, too
    against         the defense that statistics compare all others with; empty: each with each; None: no statistics
    asked           published figures that stand in the tables themselves; None: what is known of a row in a table apart
    keeps_tuning    whether statistics compare runs that chose settings, too"""
    runs = list(found.values())
    detectors, after = rows.detections(runs), rows.afters(runs)
    models = comebacks.mark(fragile.mark(rows.aggregate(runs), limits), after, limits)
    beside = published.beside(models, asked)
    told = published.told(beside, models) if asked else {}
    of_models = [name for name in figures if name not in (*OF_DETECTORS, *OF_AFTER)]
    laid_out = _of_models(models, lines, columns, of_models, told) if of_models else []
    absent: list[str] = []
    for found_rows, known, listed, group in (
        (detectors, OF_DETECTORS, grids.detection_grids, DETECT.group),
        (after, OF_AFTER, grids.after_grids, AFTER.group),
    ):
        wanted = [name for name in figures if name in known]
        if wanted and not of_models and not found_rows:
            raise DataError(
                f"{sum(run.status == 'done' for run in runs)} of {len(runs)} runs finished, none with {WHAT[group]}; expected "
                f"one at least. bdx list {group} shows what there is to ask."
            )
        absent += [f"no finished run has {WHAT[group]}, so none shows {join_words(wanted)}"] * bool(
            wanted and not found_rows
        )
        if found_rows and wanted and (lines or columns):
            laid_out += grids.pivot_grids(found_rows, lines, columns, wanted)
        elif found_rows:
            laid_out += listed(found_rows)
    said = notes.below(models if of_models else [], [*detectors, *after], runs, laid_out, figures, limits)
    interrupted, unended = (sum(run.status == status for run in runs) for status in ("interrupted", "running"))
    said += [*absent, *_without_end(interrupted, unended)]
    said += published.explained(beside.values()) if asked else []
    compared = [name for name in figures if name in contrasts.COMPARED]
    return Report(
        found,
        models,
        detectors,
        after,
        laid_out,
        beside,
        said,
        published.notes(beside.values()),
        published.otherwise(beside, models, asked),
        _failures(found),
        interrupted,
        unended,
        verdicts.rank(models, limits) if is_ranked else [],
        contrasts.standings(models, compared, against, keeps_tuning) if against is not None else [],
        asked is not None,
    )


def _of_models(
    models: Sequence[Row], lines: Sequence[str], columns: Sequence[str], figures: Sequence[str], told: Told
) -> list[Grid]:
    if lines or columns:
        return grids.pivot_grids(models, lines, columns, figures, told)
    return grids.list_grids(models, figures, told)


def _without_end(interrupted: int, unended: int) -> list[str]:
    """What is said of runs that were ended from outside, and of those without any end."""
    said = [f"{interrupted} run{'s' * (interrupted > 1)} interrupted: the same command goes on where it stopped"]
    lost = [f"{unended} run{'s' * (unended > 1)} without an end: killed, or still going"]
    return said * bool(interrupted) + lost * bool(unended)


def _failures(found: Mapping[Path, Run]) -> list[Failure]:
    """The failed runs, those of one heading with the settings in which they differ."""
    failed = {folder: run for folder, run in found.items() if run.status == "failed"}
    named = [{"run": heading(run), "rate": rows.base_names(run.config)["rate"]} for run in failed.values()]
    told = rows.tell_apart(named, [rows.compared(run.config, rows.TOLD_OF_ALL) for run in failed.values()])
    rates = {(each["run"], each["rate"]) for each in named}
    called = []
    for each in told:
        is_alone = sum(name == each["run"] for name, _ in rates) == 1
        more = (f"{key} {value}" for key, value in each.items() if key != "run" and not (key == "rate" and is_alone))
        called.append(" · ".join([each["run"], *more]))
    return [
        Failure(name, run.error or "", folder / "log.txt")
        for name, (folder, run) in zip(called, failed.items(), strict=True)
    ]


# ---- as text --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """Tables that belong together, in the words of a format.

    tables  each with what its caption must say, where a format has captions
    notes   what must stand below them
    """

    name: str
    tables: list[tuple[Grid, list[str]]]
    notes: list[str]


def sections(report: Report, named: Names = TYPED) -> list[Section]:
    """All tables of a report with what must be said of them, in order.

    named  what options are called"""
    first, further = report.notes[:1], report.notes[1:]
    made = [
        Section("tables", [(grid, [*first, *notes.footnotes(grid, further)]) for grid in report.grids], report.notes)
    ]
    for ranking in report.rankings:
        said = verdicts.said(ranking)
        made.append(Section("verdicts", [(verdicts.as_grid(ranking), [said[0].rstrip(".")])], said))
    captioned = [
        pair
        for standing in report.standings
        for pair in zip(contrasts.as_grids(standing), contrasts.captions(standing), strict=True)
    ]
    made.append(Section("statistics", captioned, contrasts.said(report.standings)))
    printed = [_in_print(section, named) for section in made if section.tables or section.notes]
    if report.beside:
        found = published.as_grid(list(report.beside.values()))
        apart: list[tuple[Grid, list[str]]] = [] if report.is_inline else [(named.grid(found), [])]
        said = [*([] if report.is_inline else [published.RULE]), *report.remarks, *report.otherwise]
        printed.append(Section("published", apart, said))  # of settings, as they are typed
    return printed


def costs(report: Report, named: Names = TYPED) -> Section | None:
    """What defenses cost, as far as records tell; None where none does."""
    known = [name for name in rows.COSTS if any(row.figures.get(name, rows.Cell(())).values for row in report.rows)]
    if not known:
        return None
    said = [*notes.of_costs(known), *notes.company(report.rows)]
    tables = [(grid, said) for grid in grids.list_grids(report.rows, known)]
    return _in_print(Section("costs", tables, said), named)


def _in_print(section: Section, named: Names) -> Section:
    tables = [(named.grid(grid), [named(text) for text in caption]) for grid, caption in section.tables]
    return Section(section.name, tables, [named(text) for text in section.notes])


def markdown(report: Report, named: Names = TYPED) -> str:
    """Tables, notes and failures as Markdown."""
    parts = []
    for section in sections(report, named):
        parts += [formats.markdown(grid) for grid, _ in section.tables]
        parts.append("".join(f"- {formats.plain(note)}\n" for note in section.notes))
    if report.failures:
        parts.append(
            f"failed: {len(report.failures)}\n\n"
            + "".join(f"- {formats.plain(say(failure))}\n" for failure in report.failures)
        )
    return "\n".join(filter(None, parts))


def latex(report: Report, named: Names = TYPED) -> str:
    """A table environment for each grid, whose caption explains its marks and figures, with a label of its own; what else must be
    said is a comment."""
    parts, brief = [], []
    labels: dict[str, int] = {}
    for section in sections(report, named):
        for grid, caption in section.tables:
            label = formats.latex_label(grid.title)
            labels[label] = labels.get(label, 0) + 1
            parts.append(formats.latex_table(grid, caption, label + (f"-{labels[label]}" if labels[label] > 1 else "")))
        told = {text for _, caption in section.tables for text in caption}
        told |= {f"best: {notes.BEST}"} if notes.BOLD in told else set()
        brief += [note for note in section.notes if note not in told and note.rstrip(".") not in told]
    said = [*brief, *(f"failed: {say(failure)}" for failure in report.failures)]
    return (
        formats.preamble(parts)
        + "\n".join(parts)
        + "".join(f"% {line}\n" for note in said for line in note.splitlines())
    )


def csv(report: Report, figures: Sequence[str] = ()) -> str:
    """A line a setting; of rankings a line a defense instead, of statistics a line a pair of defenses.

    figures  of models, that lines of settings have in any case"""
    if report.standings:
        return contrasts.as_csv(report.standings)
    if report.rankings:
        return verdicts.as_csv(report.rankings)
    beside = {place: item for (place, model), item in report.beside.items() if model == PURIFY.model}
    return formats.as_csv(report.rows, beside, figures)


def runs_csv(report: Report) -> str:
    """A line a run."""
    return frame.as_csv(report.found)


def classes_csv(report: Report) -> str:
    """A line a class of a run."""
    return classes.as_csv(report.found)


def say(failure: Failure) -> str:
    """A failure in one line, its error cut after 300 characters."""
    error = paragraph(" ".join(failure.error.split()))
    return f"{failure.heading}: {error if len(error) <= 300 else error[:299] + '…'} ({failure.log})"
