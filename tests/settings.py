"""What else a setting could be: other values of its type, and what some values ask for beside them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from backdoorbench.config.build import settings
from backdoorbench.config.compose import Plain


def leaves(kind: type, node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, type, value) of every setting of `node`, which describes a `kind`; of nested settings each for itself."""
    for name, hint in settings(kind).items():
        inner = next((part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)), None)
        if inner is not None and isinstance(node[name], Mapping):
            yield from leaves(typing.cast(type, inner), node[name], f"{prefix}{name}.")
        elif name != "name":
            yield f"{prefix}{name}", hint, node[name]


def others(hint: Any, value: Any, file: Path) -> list[Any]:
    """Values that a setting of this type might have instead of `value`, those that change most first.

    file  an image, for a setting that is a path"""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return [str(file)] if arguments[1] == "file" else [str(file.parent)]
    if origin in (Union, types.UnionType):
        inner = [each for argument in arguments if argument is not type(None) for each in others(argument, value, file)]
        return inner + ([None] if value is not None and type(None) in arguments else [])
    if origin is Literal:
        return [choice for choice in arguments if choice != value]
    if hint is bool:
        return [not value]
    if hint is int:
        guesses = [2 * value, value + 1, value + 2, value // 2, 1, 0] if isinstance(value, int) else [1, 2, 4, 24]
        return [guess for guess in guesses if guess != value]
    if hint is float:
        base = value if isinstance(value, int | float) else 0.25
        return [guess for guess in (base / 2, base * 3, base + 0.1, 0.5, 1.0, 0.0) if guess != value]
    if origin is tuple:
        value = None if isinstance(value, str) else value  # a word in place of the numbers
        shorter = [list(value[:-1])] if value and arguments[-1] is Ellipsis else []
        if value:
            return [[first, *value[1:]] for first in others(arguments[0], value[0], file)[:4]] + shorter
        return [[1]] if arguments[-1] is Ellipsis else [[others(each, None, file)[0] for each in arguments]]
    return []


def chooses(hint: Any) -> bool:
    """Whether a setting is a choice among a few values, each of which must matter."""
    return typing.get_origin(hint) is Literal or hint is bool


def companions(key: str, value: Any, file: Path) -> Plain:
    """What a value asks for beside it: of which settings of the same option it makes no sense without."""
    asked: dict[tuple[str, Any], Plain] = {
        ("mapping", "source_specific"): {"sources": [3]},
        ("pattern", "image"): {"patch_file": str(file)},
        ("picture", "image"): {"picture_file": str(file)},
        ("patch_file", str(file)): {"pattern": "image"},
        ("picture_file", str(file)): {"picture": "image"},
        ("source_folder", str(file.parent)): {"source": "folder"},
        ("source", "folder"): {"source_folder": str(file.parent)},
    }
    try:
        return asked.get((key, value), {})
    except TypeError:  # a list
        return {}


def changed(config: Plain, group: str, changes: Mapping[str, Any]) -> Plain:
    """The configuration with some settings of a group, by dotted key inside it, changed."""
    made = copy.deepcopy(config)
    for key, value in changes.items():
        *parents, last = key.split(".")
        functools.reduce(lambda at, name: at[name], parents, made[group])[last] = value
    return made
