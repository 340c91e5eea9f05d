"""From settings to objects: the class that a `_target_` names, its fields compared with the keys, its types with the values."""

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from backdoorbench.config.plugins import OWN_PACKAGE
from backdoorbench.errors import ConfigError, did_you_mean, join_words

NOT_FIELDS = ("_target_", "version")  # keys that choose the class and its meaning, not its knobs
File = Annotated[str, "file"]  # a setting that is the path of a file: a key holds the file's content, whatever its name
Folder = Annotated[str, "folder"]  # likewise of a folder

BESIDE = "beside"  # of a field that is a dataclass, `Annotated[Tuning, BESIDE]`: its keys stand beside the others in the yaml


def build(node: Mapping[str, Any], where: str, plugins: Sequence[str] = ()) -> Any:
    """The object that `node` describes: its `_target_` called with the other keys, after names and types are checked.

    where    the node's place in the configuration ("defense"), for messages
    plugins  packages beside this one whose classes a `_target_` may name
    """
    return construct(target(node, where, plugins), node, where)


def target(node: Mapping[str, Any], where: str, plugins: Sequence[str] = ()) -> type:
    """The class that `node` names. Only this package and `plugins` are followed: a stranger's yaml must not run code."""
    path = node.get("_target_")
    if not isinstance(path, str) or "." not in path:
        raise ConfigError(
            f"{where} has no `_target_`, so nothing says what to build. Choose an option of the group on the command "
            f"line, such as {where}=none; bdx list shows them."
        )
    module, _, name = path.rpartition(".")
    allowed = [OWN_PACKAGE, *plugins]
    if not any(module == package or module.startswith(package + ".") for package in allowed):
        raise ConfigError(
            f"{where}._target_ is '{path}', outside {join_words(allowed)}; only classes of these packages are built. "
            f"If you trust that code, add plugins=[{path.split('.')[0]}]."
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(
            f"{where}._target_ is '{path}', which does not exist ({error}). Correct the yaml file that says so."
        ) from None
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"{where}._target_ is '{path}', which is no dataclass; methods here are frozen dataclasses.")
    return found


def construct(kind: type, node: Mapping[str, Any], where: str) -> Any:
    """`kind(**node)` for a dataclass, its keys compared with the fields and its values with their types."""
    hints = settings(kind)
    given = {key for key in node if key not in NOT_FIELDS}
    if unknown := sorted(given - hints.keys()):
        raise ConfigError(
            f"{where} has no setting '{unknown[0]}'.{did_you_mean(unknown[0], hints)} "
            f"It knows {join_words(sorted(hints))}."
        )
    if missing := sorted(hints.keys() - given):
        raise ConfigError(f"{where} lacks '{missing[0]}'; add it to the yaml file that describes {kind.__name__}.")
    return _assembled(kind, {key: convert(node[key], hints[key], f"{where}.{key}") for key in sorted(given)})


def settings(kind: type) -> dict[str, Any]:
    """Key -> type of the settings of a dataclass, as its yaml has them: those of fields that stand BESIDE it among them."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name in {field.name for field in dataclasses.fields(kind)}:
            found |= settings(typing.get_args(hint)[0]) if is_beside(hint) else {name: hint}
    return found


def _assembled(kind: type, values: Mapping[str, Any]) -> Any:
    fields = {}
    for field in dataclasses.fields(kind):
        hint = typing.get_type_hints(kind, include_extras=True)[field.name]
        fields[field.name] = _assembled(typing.get_args(hint)[0], values) if is_beside(hint) else values[field.name]
    return kind(**fields)


def is_beside(hint: Any) -> bool:
    """Whether the settings of a field of this type stand among those of the class that has it."""
    return typing.get_origin(hint) is Annotated and BESIDE in typing.get_args(hint)[1:]


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or a ConfigError that names `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return convert(value, arguments[0], where)
    if origin is Literal:
        if value in arguments:
            return value
        close = did_you_mean(str(value), [str(argument) for argument in arguments])
        raise ConfigError(f"{where} is {value!r}; expected {join_words([str(a) for a in arguments], 'or')}.{close}")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for argument in arguments:
            if argument is not type(None):
                try:
                    return convert(value, argument, where)
                except ConfigError as error:
                    failure = error
        raise failure
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        if arguments[-1] is Ellipsis:
            return tuple(convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) == len(arguments):
            return tuple(convert(item, hint, where) for item, hint in zip(value, arguments, strict=True))
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return construct(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; expected a finite number. Change {where}.")
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where} is {value!r}; expected {describe(hint)}.")


def describe(hint: Any) -> str:
    """A type as a person would say it."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in words:
        return words[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return describe(arguments[0])
    if origin in (Union, types.UnionType):
        return join_words([describe(argument) for argument in arguments], "or")
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each item {describe(arguments[0])}"
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    return "a group of settings"


def paths(kind: type, node: Mapping[str, Any]) -> dict[str, str]:
    """Dotted key -> `file` or `folder` of the settings in `node` that are paths, as the fields of `kind` declare them."""
    found: dict[str, str] = {}
    for key, hint in settings(kind).items():
        value = node.get(key)
        for part in (hint, *typing.get_args(hint)):
            if typing.get_origin(part) is Annotated and isinstance(value, str):
                found[key] = typing.get_args(part)[1]
            elif dataclasses.is_dataclass(part) and isinstance(value, Mapping):
                found |= {f"{key}.{inner}": what for inner, what in paths(typing.cast(type, part), value).items()}
    return found
