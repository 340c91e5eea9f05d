"""Fragile infections: plain fine-tuning alone ends their backdoor, so that a defense which ends it, too, proves nothing."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backdoorbench.config import catalog
from backdoorbench.config.groups import PURIFY
from backdoorbench.reporting.rows import Outcome, Row, by_infection, is_weak, outcome

if TYPE_CHECKING:
    from backdoorbench.metrics import Limits
    from backdoorbench.storage.record import Run


def mark(rows: Sequence[Row], limits: Limits) -> list[Row]:
    """The rows with their `fragile`: whether plain fine-tuning of the same infections, in any of its settings, ends the backdoor
    within the limits, by its means over seeds."""
    told: dict[int, bool] = {}
    for members in by_infection(rows):
        ended = [found for row in members if is_plain(row) and (found := _ends(row, limits)) is not None]
        if ended:
            told |= {id(row): any(ended) for row in members}
    return [dataclasses.replace(row, fragile=told.get(id(row))) for row in rows]


def is_plain(row: Row) -> bool:
    """Whether a row's defense is plain fine-tuning: as its record says, or, of records that do not, its class."""
    return any(map(_is_plain, row.runs))


def _is_plain(run: Run) -> bool:
    said = run.purification.details.get("plain")
    return bool(catalog.declared(str(run.config[PURIFY.group].get("_target_")), "plain") if said is None else said)


def is_open(row: Row) -> bool:
    """Whether a row's defense was judged on infections that took, but no plain fine-tuning beside it."""
    is_defense = row.names[PURIFY.group] != "none" and not is_plain(row)
    return row.fragile is None and is_defense and bool(_outcomes(row))


def _ends(row: Row, limits: Limits) -> bool | None:
    """Whether its means meet the limits; None where no run tells."""
    kept = [found for found in _outcomes(row) if not found.collapsed]
    if not kept:
        return None
    return limits.met(statistics.fmean(run.ca_loss for run in kept), statistics.fmean(run.asr for run in kept))


def _outcomes(row: Row) -> list[Outcome]:
    """Of its runs on infections that took."""
    return [found for run in row.runs if not is_weak(run) and (found := outcome(run)) is not None]
