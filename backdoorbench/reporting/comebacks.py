"""Backdoors that come back: what after-attacks make of purified models, beside the defenses' own figures; and the mark of those
whose work was superficial.

A purification is superficial where it brought the ASR below the limit, and some attack on the purified model then has an ASR that
lies MARGIN or more above what the same attack has on every control of the same run: a clean model of the same recipe, and exact
purification. One seed of several is enough, since a mean would hide it behind one that stays gone. Where there is no control
nobody knows. A diagnosis along a line of weights is no attack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from backdoorbench.config import catalog
from backdoorbench.config.groups import AFTER, PURIFY
from backdoorbench.metrics import printed
from backdoorbench.reporting.rows import Row, after_figures, identifier

if TYPE_CHECKING:
    from backdoorbench.metrics import Limits

MARGIN = 0.2  # of ASR above every control
CONTROLS = ("clean", "exact")
DIAGNOSIS = "mean"  # how the ASR of several trials becomes one where they are no attack


def figures() -> tuple[str, ...]:
    """What tables can be asked for: the ASR after each after-attack that there is, and after the same on a control."""
    own = [figure for figure in catalog.facts(AFTER.group, "figure") if figure]
    return tuple(f"asr_{figure}{end}" for figure in own for end in ("", *(f"_{control}" for control in CONTROLS)))


def mark(rows: Sequence[Row], after: Sequence[Row], limits: Limits) -> list[Row]:
    """The rows of defenses with what after-attacks on the same purified models found, and whether their work is superficial.

    after  as `rows.afters` makes them. Of an after-attack in several settings that one counts which its name implies; where none
           does, none is shown"""
    identify = identifier()
    found: dict[str, dict[str, list[Row]]] = {}
    for row in after:
        own = found.setdefault(identify(row.config), {})
        own.setdefault(row.names[AFTER.group], []).append(row)
    return [_with(row, found.get(identify(row.config), {}), limits) for row in rows]


def _with(row: Row, found: Mapping[str, Sequence[Row]], limits: Limits) -> Row:
    chosen = [one for alike in found.values() if (one := _usual(alike)) is not None]
    cells = {
        name: cell for one in chosen for name, cell in one.figures.items() if name.startswith("asr_") and _is_own(name)
    }
    told = [above for one in chosen for above in _above(one, limits)] if row.names[PURIFY.group] != "none" else []
    superficial = printed(max(told)) >= printed(MARGIN) if told else None
    return dataclasses.replace(row, figures=row.figures | cells, superficial=superficial)


def _usual(rows: Sequence[Row]) -> Row | None:
    """Of an after-attack's settings the only one, or the one that its name implies."""
    if len(rows) == 1:
        return rows[0]
    plain = [row for row in rows if not any(key.startswith(f"{AFTER.group}.") for key in row.beyond)]
    return plain[0] if len(plain) == 1 else None


def _is_own(name: str) -> bool:
    return "_after" not in name and name not in {f"asr_{control}" for control in CONTROLS}


def _above(row: Row, limits: Limits) -> Iterator[float]:
    """How far the ASR lies above that of every control, of each seed whose backdoor was ended and that has a control; of a
    diagnosis nothing."""
    for run in row.runs:
        figures = after_figures(run)
        asr, others = figures.get("asr_after"), [figures.get(f"asr_after_{control}") for control in CONTROLS]
        known = [other for other in others if other is not None]
        if (
            run.after.details.get("counts") == DIAGNOSIS
            or run.config["seed"] in row.collapsed
            or asr is None
            or not known
        ):
            continue
        if run.purified is not None and run.purified.asr is not None and limits.is_ended(run.purified.asr):
            yield asr - max(known)
