"""What was run, at a glance: each record as its JSON, and how the run stands now. Answers without torch."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from backdoorbench.config.compose import Plain, flat
from backdoorbench.config.groups import INFECT, OPTIONAL, PURIFY, SETTINGS, TELLING
from backdoorbench.errors import DataError
from backdoorbench.reporting.rows import DASH, NAMED, PLACES, base_names, chosen, methods
from backdoorbench.storage import record
from backdoorbench.storage.outputs import outputs_of
from backdoorbench.storage.store import KEY_LENGTH, canonical, is_held

METHODS = "methods"  # the part of a configuration that is never said once for all
USUAL = 0.8  # what more of the configurations than this share is said once, above the list
STATUSES = ("running", "interrupted", "failed", "done", "damaged")


@dataclass(frozen=True)
class Entry:
    """One run as it is known now.

    status   the record's; `interrupted` too where that says running and no process does; `damaged` where it cannot be read
    content  of record.json, in the shape of today; empty where damaged, of which wrong says why
    """

    folder: Path
    status: str
    content: Plain
    wrong: DataError | None = None

    @property
    def key(self) -> str:
        return str(self.content.get("id", self.folder.name.rpartition("_")[2]))

    @property
    def scores(self) -> Mapping[str, float | None]:
        """CA, ASR and RA of the model that the defense left, as fractions; empty before there is one."""
        return self.of(PURIFY.name).get("scores") or {}

    def of(self, kind: str) -> Mapping[str, Any]:
        """What the stage of this kind found, as the record has it; empty where there was none."""
        return next((stage for stage in self.content.get("stages", []) if stage["kind"] == kind), {})

    def seconds(self, now: float) -> float | None:
        """Wall time: of all stages, or of a running one since its start; None where none was timed."""
        if self.status == "running":
            return now - datetime.fromisoformat(self.content["started"]).timestamp()
        timed = [seconds for stage in self.content.get("stages", []) for seconds in stage.get("seconds", {}).values()]
        return sum(timed) if timed else None


def entries(where: Path) -> list[Entry]:
    """Every run at or below `where`, in the order they started; those that cannot be read are counted in a line, too."""
    found = sorted((_read(folder) for folder in record.find(where)), key=lambda entry: entry.folder.name)
    record.tell_left_out([entry.wrong for entry in found if entry.wrong])
    latest = {(entry.folder.parent, entry.key): entry for entry in found if entry.status == "running"}
    return [_as_it_stands(entry, latest.get((entry.folder.parent, entry.key)) is entry) for entry in found]


def _read(folder: Path) -> Entry:
    try:
        content = record.read_plain(folder)
        return Entry(folder, content["status"], content)
    except DataError as error:
        return Entry(folder, "damaged", {}, error)


def _as_it_stands(entry: Entry, latest: bool) -> Entry:
    """A process holds the lock of the run it carries out, which of runs with one key can only be the latest."""
    if entry.status != "running":
        return entry
    lock = outputs_of(entry.folder).lock(entry.key)
    return entry if latest and is_held(lock) else replace(entry, status="interrupted")


def told_apart(configs: Sequence[Plain]) -> tuple[str, list[str]]:
    """What most configurations share, in a line, and of each what it has of its own: `badnets 10 % → fst · seed 1`."""
    parts = [_parts(config) | extra for config, extra in zip(configs, _extras(configs), strict=True)]
    usual: dict[str, str] = {}
    for name in _parts(configs[0]) if configs else ():
        value, count = Counter(part[name] for part in parts).most_common(1)[0]
        if name != METHODS and count > USUAL * len(parts):
            usual[name] = value
    own = [[text for name, text in part.items() if text != usual.get(name)] for part in parts]
    unless = (
        ""
        if all(part[name] == value for part in parts for name, value in usual.items())
        else "where not said otherwise: "
    )
    return unless + " · ".join(usual.values()) if usual else "", [" · ".join(texts) for texts in own]


def _parts(config: Plain) -> dict[str, str]:
    """What every configuration has to say: where its methods meet, the methods, the seed, and what else was chosen."""
    names = base_names(config)
    attack = names[INFECT.group] if names["rate"] == DASH else f"{names[INFECT.group]} {names['rate']}"
    said = {group: names[group] for group in NAMED}
    said |= {METHODS: methods(config, attack), "seed": f"seed {config['seed']}"}
    return said | {group: f"{group}={config[group]['name']}" for group in PLACES if group not in NAMED}


def _extras(configs: Sequence[Plain]) -> list[dict[str, str]]:
    """Of each configuration the settings in which it differs from others that have them, with its data set and option."""
    settings = [flat({name: value for name, value in config.items() if _is_told(config, name)}) for config in configs]
    found: list[dict[str, str]] = [{} for _ in configs]
    for key in dict.fromkeys(key for one in settings for key in one if not key.endswith((".name", ".poison_rate"))):
        values: dict[tuple[str, str], dict[int, str]] = {}
        for place, (config, one) in enumerate(zip(configs, settings, strict=True)):
            if key in one:
                group = config[key.partition(".")[0]]
                option = group.get("name", "") if isinstance(group, dict) else ""
                where = values.setdefault((config["dataset"]["name"], option), {})
                where[place] = json.dumps(canonical(one[key]))
        for alike in values.values():
            if len(set(alike.values())) > 1:
                for place in alike:
                    found[place][key] = f"{key}={shown(settings[place][key])}"
    return found


def _is_told(config: Plain, name: str) -> bool:
    """Whether a part of a configuration bears on figures, of the methods that it chooses."""
    setting = next((setting for setting in SETTINGS if setting.name == name), None)
    if setting is not None:
        return setting.tells or bool(setting.part_of and chosen(config, setting.part_of))
    return name in TELLING and (name not in OPTIONAL or bool(chosen(config, name)))


def shown(value: Any) -> str:
    """A setting as a list prints it: of a digest, its start."""
    text = "null" if value is None else str(value)
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:KEY_LENGTH] if is_digest else text
