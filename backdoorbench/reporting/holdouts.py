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
    return f"{100 * holdout.get('rate', 0):g}" if is_share else None


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
    held = [row.config["holdout"] for row in rows if row.config[row.stage.group]["name"] != "none"]
    said = dict.fromkeys(_described(holdout) for holdout in held if "kind" in holdout)
    return [f"holdout: {'; '.join(said)}"] if said else []


def _described(holdout: Mapping[str, Any]) -> str:
    kind = str(holdout["kind"])
    return f"{', '.join(filter(None, (size(holdout), kind)))} ({KINDS.get(kind, kind)})"
