"""The infected models in the cache, and what was made of them: what they are, what they take, which two differ in what, and what
can go.

Answers without torch."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from backdoorbench.config.compose import Plain, flat, option
from backdoorbench.config.groups import GROUPS, INFECT, PURIFY, as_called_now
from backdoorbench.errors import ConfigError, join_words
from backdoorbench.reporting.ledger import Entry, shown
from backdoorbench.reporting.rows import DASH
from backdoorbench.storage import record, store
from backdoorbench.storage.outputs import Outputs, key_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """One infection.

    size     bytes of its folder; cost: seconds its training took
    used     when it was made or last wanted, seconds since the epoch
    runs     how many records name it; needed: whether one does, or an infection that one names has it for its clean control
    """

    folder: Path
    settings: Plain
    size: int
    cost: float
    used: float
    runs: int
    needed: bool

    @property
    def key(self) -> str:
        return key_of(self.folder)

    @property
    def config(self) -> Plain:
        """Its settings in the shape of a run's, for tables."""
        named = {"holdout": self.settings["holdout"] or {"name": "any"}, PURIFY.group: {"name": ""}}
        return as_called_now(self.settings | named)


@dataclass(frozen=True)
class Derived:
    """What was made of an infected model, or for it, and is made again where it is missing: no record needs it.

    kind  as it is called, of several; size and used: as an infection's"""

    kind: str
    folder: Path
    size: int
    used: float
    needed: ClassVar[bool] = False

    @property
    def key(self) -> str:
        return f"{self.kind} {self.folder.name}"


def derived(outputs: Outputs) -> list[Derived]:
    """All that lies beside the infections in the cache, but for data sets and snapshots."""
    return [
        Derived(kind, folder, size_of(folder), folder.stat().st_mtime)
        for kind, place in outputs.derived.items()
        for folder in _folders(place)
    ]


def infections(outputs: Path, runs: Sequence[Entry]) -> list[Stored]:
    """Every infection in the cache of `outputs`, by attack, data set and key. Those that say nothing readable of themselves are
    left out, and counted in a line.

    runs  all there are, to know who needs which"""
    named = Counter(entry.of(INFECT.name).get("key") for entry in runs)
    described, wrong = _described(folder for folder in _folders(Outputs(outputs).infections))
    if wrong:
        said = "an infection is left out" if len(wrong) == 1 else f"{len(wrong)} infections are left out; the first"
        log.warning(f"{said}: {wrong[0]}; a run that needs it sets it aside and trains it again")
    keys = {folder: key_of(folder) for folder in described}
    controls = {control_key(described[folder]["settings"]) for folder, key in keys.items() if named[key]}
    return [
        Stored(
            folder,
            content["settings"],
            size_of(folder),
            content["seconds"].get("infect", 0.0),
            folder.stat().st_mtime,
            named[keys[folder]],
            bool(named[keys[folder]]) or keys[folder] in controls,
        )
        for folder, content in described.items()
    ]


def _folders(infections: Path) -> list[Path]:
    return [folder for folder in sorted(infections.glob("[!.]*")) if folder.is_dir() and store.ASIDE not in folder.name]


def _described(folders: Iterable[Path]) -> tuple[dict[Path, dict[str, Any]], list[str]]:
    """What infections say of themselves, by folder; of those that say nothing readable, where and why."""
    found, wrong = {}, []
    for folder in folders:
        try:
            content = store.read_json(folder / "infection.json")
            record.check_config(content["settings"], NEEDED)
            if {type(value) for value in content["seconds"].values()} <= {int, float}:
                content["settings"]["holdout"]  # noqa: B018  # None is one
                found[folder] = content
                continue
            wrong.append(f"{folder} (its seconds are no numbers)")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            wrong.append(f"{folder} ({type(error).__name__}: {error})")
    return found, wrong


NEEDED = tuple(group.name for group in GROUPS if group.infection)  # groups that an infection's settings have


def control_key(settings: Plain) -> str:
    """The key of the clean model of the same recipe: an infection's control, and what some attacks craft on."""
    return store.key("infection", settings | {"attack": option("attack", "none")})


def size_of(place: Path) -> int:
    """Bytes of all files at or below `place`; 0 where there is none."""
    if place.is_file():
        return place.stat().st_size
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def aside(outputs: Outputs, before: float) -> list[tuple[Path, int]]:
    """What was set aside as damaged before that time (seconds since the epoch), with its bytes."""
    return [(place, size_of(place)) for place in outputs.set_aside() if store.aside_since(place) <= before]


def pick(found: Sequence[Stored], start: str) -> Stored:
    """The infection whose key begins with `start`; ConfigError where none or several do."""
    close = [stored for stored in found if stored.key.startswith(start)]
    if len(close) != 1:
        said = f"is the start of {join_words([stored.key for stored in close])}" if close else "is no infection's key"
        raise ConfigError(f"'{start}' {said}; expected one infection. bdx cache lists their keys.")
    return close[0]


def differences(one: Stored, other: Stored) -> list[tuple[str, str, str]]:
    """Settings in which two infections differ: dotted key, the value of each, a dash where it has no such setting."""
    ours, theirs = flat(one.settings), flat(other.settings)
    groups = list(one.settings)
    names = sorted(dict.fromkeys([*ours, *theirs]), key=lambda name: groups.index(name.partition(".")[0]))
    return [
        (name, shown(ours.get(name, DASH)), shown(theirs.get(name, DASH)))
        for name in names
        if store.canonical(ours.get(name, DASH)) != store.canonical(theirs.get(name, DASH))
        and not name.endswith("._target_")  # the name says it
    ]


def in_use(found: Iterable[Stored | Derived], runs: Sequence[Entry]) -> set[str]:
    """Keys of what a live process may want: infections of a running run's data set, with its attack or with none; beside them
    anything, while one runs; and what is locked."""
    live = [entry.content["config"] for entry in runs if entry.status == "running"]
    wanted = {(c["dataset"]["name"], attack) for c in live for attack in (c["attack"]["name"], "none")}

    def is_wanted(one: Stored | Derived) -> bool:
        if isinstance(one, Derived):
            return bool(live)
        return (one.settings["dataset"]["name"], one.settings["attack"]["name"]) in wanted

    return {one.key for one in found if is_wanted(one) or store.is_held(store.lock_of(one.folder))}


def sort_out(
    found: Sequence[Stored | Derived], used: Collection[str], before: float, unreferenced: bool, most: int | None
) -> tuple[list[Stored | Derived], list[tuple[Stored | Derived, str]]]:
    """What can go, longest unused first, and what stays, with the reason.

    used          keys of those in use; before: those used later stay
    unreferenced  those that a record needs stay
    most          bytes: no more go than it takes to come down to it; None: all that can"""
    left = sum(stored.size for stored in found)
    going: list[Stored | Derived] = []
    staying: list[tuple[Stored | Derived, str]] = []
    for stored in sorted(found, key=lambda stored: stored.used):
        if stored.key in used:
            staying.append((stored, "in use"))
        elif stored.used > before:
            staying.append((stored, "younger"))
        elif unreferenced and stored.needed:
            staying.append((stored, "needed by a record"))
        elif most is not None and left <= most:
            staying.append((stored, "within the size"))
        else:
            going.append(stored)
            left -= stored.size
    return going, staying
