"""What the names of a configuration's options imply: the settings that they have on its data set, as our yaml files say.

What a configuration has beyond that must be said wherever its figures stand under those names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from backdoorbench.config import yamls
from backdoorbench.config.compose import BRINGS, Plain, flat, places, rounded
from backdoorbench.config.groups import GROUPS, SETTINGS, STAGES, UNKEYED

NO_SETTINGS = ("_target_", "version", "name")
CHOOSER = "dataset"  # the group whose options choose those of others
UNNAMED = {group.name for group in GROUPS if group.tells and not group.absorbs} - {
    stage.group for stage in STAGES
}  # by tables


def beyond(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, by dotted key, in which a configuration differs from what the names of its options imply, among those that
    tell rows of a table apart. Of an option that is neither ours nor a known plugin's nothing is known, nor of a setting that it
    does not have now."""
    on = str(config[CHOOSER].get("name"))
    brings = f"{BRINGS}/{config[BRINGS].get('name')}.yaml"
    chosen = {**_written("config.yaml")[1], **_written(f"{CHOOSER}/{on}.yaml")[1], **_written(brings)[1]}
    found: dict[str, Any] = {}
    for group in GROUPS:
        if not group.tells or group.name not in config:
            continue
        node, name = config[group.name], str(config[group.name].get("name"))
        if group.name in UNNAMED and name != chosen.get(group.name, name):
            found[f"{group.name}.name"] = name
        usual = _usual(group.name, name, on, config)
        unsaid = (*NO_SETTINGS, *(UNKEYED if group.name == CHOOSER else ()))
        for key, value in flat(node).items():
            differs = usual[key] not in (value, "auto") if key in usual else any(k.startswith(f"{key}.") for k in usual)
            if differs and key.split(".")[0] not in unsaid:
                found[f"{group.name}.{key}"] = value
    for setting in (setting.name for setting in SETTINGS if setting.tells and setting.name in config):
        usual = _written("config.yaml")[0]
        found |= {
            key: value for key, value in flat({setting: config[setting]}).items() if usual.get(key, value) != value
        }
    return found


def _usual(group: str, name: str, on: str, config: Mapping[str, Any]) -> Plain:
    """The settings of an option on a data set, by dotted key, as far as they can be told."""
    said = _written(f"{group}/{name}.yaml")[0] | _written(f"on/{group}/{name}/{on}.yaml")[0]
    found: Plain = {}
    for key, value in said.items():
        if isinstance(value, str) and "${" in value:
            if (other := re.fullmatch(r"\$\{([\w.]+)\}", value)) is not None:
                found |= flat({key: _look_up(config, other[1])})
            elif (either := re.fullmatch(r"\$\{either:\$\{([\w.]+)\},(.+)\}", value)) is not None:
                first = _look_up(config, either[1])
                found[key] = _literal(either[2]) if first is None else first
        else:
            found[key] = value
    return found


@functools.cache
def _literal(text: str) -> Any:
    """What a value is that is written in a yaml file."""
    return OmegaConf.select(OmegaConf.create(f"value: {text}"), "value")


def _look_up(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _written(file: str) -> tuple[Plain, dict[str, str]]:
    """What a file of conf/, or of a known plugin's, holds, by dotted key and as it is written, and what options its defaults list
    chooses by group; nothing where there is none."""
    found = (place / file for place in places())
    path = next((path for path in found if path.is_file()), None)
    return _read(path) if path is not None else ({}, {})


@functools.cache
def _read(path: Path) -> tuple[Plain, dict[str, str]]:
    node = yamls.read(path)
    listed = [entry for entry in node.pop("defaults", []) if isinstance(entry, dict)]
    pairs = [(str(place), str(option)) for entry in listed for place, option in entry.items() if "$" not in str(option)]
    return rounded(flat(node)), {re.sub(r"^override /|@.*$", "", place): option for place, option in pairs}
