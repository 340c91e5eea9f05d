"""Settings that their siblings switch off. A class says in a line when each of them acts; one that was given in vain is refused.

    acts: ClassVar[Acts] = {"patch_size": Only("pattern", "random", "image"), "decay": Unless("milestones", [])}

What is not mentioned always acts. A subclass adds to what its bases say; `()` takes it back.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backdoorbench.config.build import is_beside, settings
from backdoorbench.config.catalog import REFINED
from backdoorbench.config.compose import Plain, conf_dir, flat, rounded
from backdoorbench.errors import IdleError, join_words

EMPTY: tuple[Any, ...] = (None, [], {})  # what nobody gives to make something act


class Condition:
    """When a setting acts, as a question to its siblings."""

    sibling = ""  # the one to change where it does not

    def holds(self, siblings: Mapping[str, Any]) -> bool:
        """Whether the setting acts beside these."""
        raise NotImplementedError

    def told(self, where: str) -> str:
        """When it acts, in words. where: the place of the siblings."""
        raise NotImplementedError


class Only(Condition):
    """A setting acts while a sibling has one of these values."""

    def __init__(self, sibling: str, *values: Any) -> None:
        self.sibling, self.values = sibling, values

    def holds(self, siblings: Mapping[str, Any]) -> bool:
        return siblings.get(self.sibling) in self.values

    def told(self, where: str) -> str:
        return f"only with {where}.{self.sibling}={self._choices()}"

    def _choices(self) -> str:
        return join_words([typed(value) for value in self.values], "or")


class Unless(Only):
    """A setting acts while a sibling has none of these values."""

    def holds(self, siblings: Mapping[str, Any]) -> bool:
        return not super().holds(siblings)

    def told(self, where: str) -> str:
        return f"only where {where}.{self.sibling} is not {self._choices()}"


class Either(Condition):
    """A setting acts while one of some conditions holds."""

    def __init__(self, *conditions: Condition) -> None:
        self.conditions, self.sibling = conditions, conditions[0].sibling

    def holds(self, siblings: Mapping[str, Any]) -> bool:
        return any(condition.holds(siblings) for condition in self.conditions)

    def told(self, where: str) -> str:
        return ", or ".join(condition.told(where) for condition in self.conditions)


class Never(Condition):
    """A setting that a base class brings acts on nothing in this one."""

    def __init__(self, because: str) -> None:
        self.because = because

    def holds(self, siblings: Mapping[str, Any]) -> bool:
        return False

    def told(self, where: str) -> str:
        return f"nowhere in this method, since {self.because}"


Acts = Mapping[str, Condition | tuple[Condition, ...]]  # setting -> under which conditions it acts: all of them hold


@dataclass(frozen=True)
class Idle:
    """A setting that acts on nothing beside its siblings.

    key        dotted, and what it is
    condition  that does not hold; found: what its sibling is
    where      the place of the siblings"""

    key: str
    value: Any
    condition: Condition
    where: str
    found: Any

    def __str__(self) -> str:
        said, sibling = f"{self.key} is {typed(self.value)}, and nothing reads it", self.condition.sibling
        if not sibling:
            return f"{said}: it acts {self.condition.told(self.where)}. Leave {self.key} out."
        place = f"{self.where}.{sibling}"
        return (
            f"{said} beside {place}={typed(self.found)}: it acts {self.condition.told(self.where)}. Leave {self.key} out, or "
            f"change {place}."
        )


def idle(kind: type, node: Mapping[str, Any], where: str) -> Iterator[Idle]:
    """The settings of `node`, which describes a `kind`, that act on nothing; those of nested settings with them.

    where  the node's place in the configuration"""
    switched_off = set()
    for name, conditions in declared(kind).items():
        unmet = next((condition for condition in conditions if not condition.holds(node)), None)
        if unmet is not None and name in node:
            switched_off.add(name)
            for key, value in flat({name: node[name]}).items():
                yield Idle(f"{where}.{key}", value, unmet, where, node.get(unmet.sibling))
    for name, hint in settings(kind).items():
        for part in (hint, *typing.get_args(hint)):
            inner = node.get(name)
            if dataclasses.is_dataclass(part) and isinstance(inner, Mapping) and name not in switched_off:
                yield from idle(typing.cast(type, part), inner, f"{where}.{name}")


@functools.cache
def declared(kind: type) -> Mapping[str, tuple[Condition, ...]]:
    """Setting -> its conditions, as the class and its bases say, and those of its fields whose settings stand beside its own."""
    found: dict[str, tuple[Condition, ...]] = {}
    for hint in typing.get_type_hints(kind, include_extras=True).values():
        if is_beside(hint):
            found |= declared(typing.get_args(hint)[0])
    for base in reversed(kind.__mro__):
        for name, conditions in vars(base).get("acts", {}).items():
            found[name] = conditions if isinstance(conditions, tuple) else (conditions,)
    return {name: conditions for name, conditions in found.items() if conditions}


def refuse_idle(group: str, settings: Iterable[Idle], resolved: Plain) -> None:
    """Raises IdleError where one of the settings of a group that act on nothing is something else than our files have there. Of a
    class that is not ours no file of ours says what is usual.

    resolved  the whole configuration, which defaults may refer to"""
    for found in settings:
        if found.value not in EMPTY:
            usual = list(_defaults(group, found.key, resolved))
            if usual and found.value not in usual:
                raise IdleError(str(found))


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(typed, value))}]" if isinstance(value, list | tuple) else str(value)


def _defaults(group: str, key: str, resolved: Plain) -> Iterator[Any]:
    """What our files say of a setting, for the class that the configuration names there; nothing for a class of others."""
    node = resolved[group]
    for said in _shipped(group, node.get("_target_", ""), str(node.get("name"))):
        parts = key.split(".")
        places = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        place = next((place for place in places if place in said), key)  # a setting may refer to a group of them
        value = said.get(place)
        found = _resolved(value, resolved) if isinstance(value, str) and "${" in value else value
        yield flat({place: found}).get(key)


def _resolved(value: str, resolved: Plain) -> Any:
    """What a default that refers to other settings is in this configuration; itself where those are not there."""
    whole = OmegaConf.create({**resolved, "asked": value})
    try:
        return rounded(whole.asked)
    except OmegaConfBaseException:
        return value


@functools.cache
def _shipped(group: str, target: str, name: str) -> list[Plain]:
    """The settings of a group, by full dotted key, of each of our files that has some for the option: its own, and what others
    set for it, experiments on a data set among them. Of one that is not ours, with a class of ours, those of all our options of
    that class. Without a class the group is one of settings, which config.yaml has and scales and experiments set."""
    conf = conf_dir()
    if not target:
        files = [conf / "config.yaml", *sorted(conf.glob("scale/*.yaml")), *sorted(conf.glob("experiment/*.yaml"))]
        return [_read(file) for file in files]
    alike = [
        file
        for file in sorted((conf / group).glob("*.yaml"))
        if f"_target_: {target}\n" in file.read_text(encoding="utf-8")
    ]
    own = [file for file in alike if file.stem == name]
    refined = [conf / kind / group / file.stem for file in own or alike for kind in REFINED]
    overlays = [path for folder in refined for path in sorted(folder.glob("*.yaml"))]
    pinned = [file for kind in REFINED for file in sorted(conf.glob(f"{kind}/experiment/*/*.yaml"))] if alike else []
    return [_read(file, group) for file in [*(own or alike), *overlays]] + [_read(file) for file in pinned]


def _read(file: Path, group: str = "") -> Plain:
    """A file's settings by full dotted key, as they are written; group: where the file's own keys lie."""
    node = typing.cast(Plain, OmegaConf.to_container(OmegaConf.load(file), resolve=False))
    return typing.cast(Plain, rounded(flat(node, f"{group}." if group else "")))
