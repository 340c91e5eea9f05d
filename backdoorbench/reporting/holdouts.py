"""What a defender had, in words: how many clean images, and whether the infected model knew them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backdoorbench.reporting.rows import Row

KINDS = {
    "reserved": "the infected model never saw it",
    "seen": "the infected model was trained on it too",
    "foreign": "images from elsewhere",
}


def share(holdout: Mapping[str, Any]) -> str | None:
    """A holdout's size in percent of the training set, `5`; None where it is no share."""
    is_share = holdout.get("kind") != "foreign" and holdout.get("per_class") is None
    return f"{100 * (holdout.get('rate') or 0):g}" if is_share else None


def size(holdout: Mapping[str, Any]) -> str:
    """`5 %`, or `10 a class`; empty for foreign images, which are as many as there are."""
    percent = share(holdout)
    if percent is not None:
        return f"{percent} %"
    return "" if holdout.get("kind") == "foreign" else f"{holdout['per_class']} a class"


def short(holdout: Mapping[str, Any]) -> str:
    """`holdout 5 %`, `holdout 10 a class, seen` or `holdout foreign`; reserved is the usual kind, and not said."""
    kind = holdout.get("kind", "reserved")
    parts = [size(holdout), "" if kind == "reserved" else str(kind)]
    return f"holdout {', '.join(filter(None, parts))}"


def note(rows: Sequence[Row]) -> list[str]:
    """A sentence on the holdouts of a table's methods, where they had any."""
    held = [row for row in rows if row.config[row.stage.group]["name"] != "none"]
    said = dict.fromkeys(_described(row) for row in held if "kind" in row.config["holdout"])
    return [f"holdout: {'; '.join(said)}"] if said else []


def kept(rows: Sequence[Row]) -> list[int]:
    """How many of the defender's images were kept from the defenses of these rows, each number once, ascending."""
    return sorted({count for row in rows for count in counted(row, "validation")})


def counted(row: Row, part: str) -> list[int]:
    """How many images a row's runs had, each number once: `images` of the defense, `validation` kept from it."""
    held = (run.purification.details.get("holdout", {}) for run in row.runs)
    return sorted({int(found[part]) for found in held if part in found})


def _described(row: Row) -> str:
    holdout = row.config["holdout"]
    kind = str(holdout["kind"])
    said = f"{', '.join(filter(None, (size(holdout), kind)))} ({KINDS.get(kind, kind)})"
    if not holdout.get("validate"):
        return said
    counts = [" or ".join(map(str, counted(row, part))) for part in ("validation", "images")]
    parts = f": {counts[0]} images, and {counts[1]} were left for it" if all(counts) else ""
    return f"{said}, {100 * holdout['validate']:g} % of it kept from the defense{parts}"
