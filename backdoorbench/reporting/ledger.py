"""What was run, at a glance: each record as its JSON, and how the run stands now. Answers without torch."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from backdoorbench import cache
from backdoorbench.config import Plain, flat, read_json
from backdoorbench.reporting import table
from backdoorbench.reporting.record import find

PARTS = ("dataset", "model", "methods", "seed", "train", "holdout")  # that every configuration has
USUAL = 0.8  # what more of the configurations than this share is said once, above the list
STATUSES = ("running", "interrupted", "failed", "done", "damaged")


@dataclass(frozen=True)
class Entry:
    """One run as it is known now.

    status   the record's; `interrupted` where that says running and no process does; `damaged` where it cannot be read
    content  of record.json; empty where damaged
    """

    folder: Path
    status: str
    content: Plain

    @property
    def key(self) -> str:
        return str(self.content.get("id", self.folder.name.rpartition("_")[2]))

    @property
    def scores(self) -> Mapping[str, float | None]:
        """CA, ASR and RA of the purified model as fractions; empty before there is one."""
        return self.content.get("purified") or {}

    def seconds(self, now: float) -> float | None:
        """Wall time: of all stages, or of a running one since its start; None where none was timed."""
        if self.status == "running":
            return now - datetime.fromisoformat(self.content["started"]).timestamp()
        timed: Mapping[str, float] = self.content.get("seconds", {})
        return sum(timed.values()) if timed else None


def entries(where: Path) -> list[Entry]:
    """Every run at or below `where`, in the order they started."""
    found = sorted((_read(folder) for folder in find(where)), key=lambda entry: entry.folder.name)
    latest = {(entry.folder.parent, entry.key): entry for entry in found if entry.status == "running"}
    return [_as_it_stands(entry, latest.get((entry.folder.parent, entry.key)) is entry) for entry in found]


def _read(folder: Path) -> Entry:
    try:
        content = read_json(folder / "record.json")
        return Entry(folder, content["status"], content)
    except (OSError, ValueError, KeyError, TypeError):
        return Entry(folder, "damaged", {})


def _as_it_stands(entry: Entry, latest: bool) -> Entry:
    """A process holds the lock of the run it carries out, which of runs with one key can only be the latest."""
    if entry.status != "running":
        return entry
    lock = entry.folder.parent.parent / "cache" / "locks" / f"{entry.key}.lock"
    return entry if latest and cache.is_held(lock) else replace(entry, status="interrupted")


def told_apart(configs: Sequence[Plain]) -> tuple[str, list[str]]:
    """What most configurations share, in a line, and of each what it has of its own: `badnets 10 % → fst · seed 1`."""
    parts = [_parts(config) | extra for config, extra in zip(configs, _extras(configs), strict=True)]
    usual: dict[str, str] = {}
    for name in PARTS:
        value, count = Counter(part[name] for part in parts).most_common(1)[0] if parts else ("", 0)
        if name != "methods" and count > USUAL * len(parts):
            usual[name] = value
    own = [[text for name, text in part.items() if text != usual.get(name)] for part in parts]
    unless = (
        ""
        if all(part[name] == value for part in parts for name, value in usual.items())
        else "where not said otherwise: "
    )
    return unless + " · ".join(usual.values()) if usual else "", [" · ".join(texts) for texts in own]


def _parts(config: Plain) -> dict[str, str]:
    names = table.base_names(config)
    attack = names["attack"] if names["rate"] == table.DASH else f"{names['attack']} {names['rate']}"
    methods = f"{attack} → {names['defense']}" if names["defense"] else attack
    given = (names["dataset"], names["model"], methods, f"seed {config['seed']}")
    chosen = (f"{group}={config[group]['name']}" for group in ("train", "holdout"))
    return dict(zip(PARTS, (*given, *chosen), strict=True))


def _extras(configs: Sequence[Plain]) -> list[dict[str, str]]:
    """Of each configuration the settings in which it differs from others that have them, with its data set and option."""
    settings = [flat({k: v for k, v in config.items() if k not in table.NOT_COMPARED}) for config in configs]
    found: list[dict[str, str]] = [{} for _ in configs]
    for key in dict.fromkeys(key for one in settings for key in one if not key.endswith((".name", ".poison_rate"))):
        values: dict[tuple[str, str], dict[int, str]] = {}
        for place, (config, one) in enumerate(zip(configs, settings, strict=True)):
            if key in one:
                group = config[key.partition(".")[0]]
                option = group.get("name", "") if isinstance(group, dict) else ""
                where = values.setdefault((config["dataset"]["name"], option), {})
                where[place] = json.dumps(cache.canonical(one[key]))
        for alike in values.values():
            if len(set(alike.values())) > 1:
                for place in alike:
                    found[place][key] = f"{key}={shown(settings[place][key])}"
    return found


def shown(value: Any) -> str:
    """A setting as a list prints it: of a digest, its start."""
    text = "null" if value is None else str(value)
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[: cache.KEY_LENGTH] if is_digest else text
