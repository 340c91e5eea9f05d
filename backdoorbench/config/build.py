"""From settings to objects: the class that a `_target_` names, its fields compared with the keys, its types with the values."""

import dataclasses
import functools
import importlib
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from backdoorbench.config.groups import LATER
from backdoorbench.config.plugins import OWN_PACKAGE, REMEDY, blamed, files, note_imported, trusted
from backdoorbench.errors import ConfigError, did_you_mean, first_line, join_words, shown

NOT_FIELDS = ("_target_", "version")  # keys that choose the class and its meaning, not its knobs
File = Annotated[str, "file"]  # a setting that is the path of a file: a key holds the file's content, whatever its name
Folder = Annotated[str, "folder"]  # likewise of a folder
Place = Annotated[str, "place"]  # a path that no key holds, neither it nor what lies there
Function = Annotated[str, "function"]  # package.module:function of a plugin: a key holds the plugin's source
PATHS = ("file", "folder", "place")
LONGEST_PART = 255  # bytes, of a name between two slashes, as file systems have it

LARGEST = 2**63 - 1  # a whole number that tensors and files hold

BESIDE = "beside"  # of a field that is a dataclass, `Annotated[Tuning, BESIDE]`: its keys stand beside the others in the yaml


def build(node: Mapping[str, Any], where: str, plugins: Sequence[str] = ()) -> Any:
    """The object that `node` describes: its `_target_` called with the other keys, after names and types are checked.

    where    the node's place in the configuration ("defense"), for messages
    plugins  packages beside this one whose classes a `_target_` may name
    """
    kind = target(node, where, plugins)
    if "version" in node:
        convert(node["version"], int, f"{where}.version")
    for key, what in paths(kind, node).items():
        if what == "function":
            check_function(at(node, key), f"{where}.{key}", plugins)
    later = {
        key: value for key, value in LATER.get(where, {}).items() if key in settings(kind)
    }  # absent from older files
    return construct(kind, {**later, **node}, where)


def target(node: Mapping[str, Any], where: str, plugins: Sequence[str] = ()) -> type:
    """The class that `node` names. Only this package and `plugins` are followed: a stranger's yaml must not run code."""
    if not isinstance(node, Mapping):
        raise ConfigError(
            f"{where} is {shown(node)}; expected a group of settings, which an option of the group brings. Choose one, as "
            f"{where}=OPTION; bdx list {where} shows them."
        )
    path = node.get("_target_")
    if not isinstance(path, str) or "." not in path.strip("."):
        found = "has no `_target_`" if path is None else f"has the `_target_` {shown(path)}, which names no class"
        raise ConfigError(
            f"{where} {found}, so nothing says what to build. Name the class in that option's yaml file, or choose "
            f"another option; bdx list {where} shows them."
        )
    module, _, name = path.rpartition(".")
    allowed = list(dict.fromkeys([OWN_PACKAGE, *plugins, *trusted()]))
    if not any(module == package or module.startswith(package + ".") for package in allowed):
        raise ConfigError(
            f"{where}._target_ is '{path}', outside {join_words(allowed)}; only classes of these packages are built. "
            f"{_trust(path.split('.')[0])}"
        )
    kind: Any = getattr(_module(module, path, f"{where}._target_"), name, None)
    if kind is None:
        raise ConfigError(
            f"{where}._target_ is '{path}', and {module} has no '{name}'. Correct the yaml file that says so."
        )
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and not _unfielded(kind)):
        raise ConfigError(
            f"{where}._target_ is '{path}', which is no dataclass; methods here are frozen dataclasses. Write "
            f"@dataclass(frozen=True) above the class."
        )
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise ConfigError(
            f"{where}._target_ is '{path}', which does not say how to {join_words(lacking)}; expected a class that defines all "
            f"that its base leaves open. Write it, or name a class that extends this one."
        )
    return kind


def _unfielded(kind: type) -> bool:
    """Whether a class annotates settings that are no fields, since `@dataclass` stands above what it extends alone."""
    annotated = [name for name, hint in vars(kind).get("__annotations__", {}).items() if "ClassVar" not in str(hint)]
    return "__dataclass_fields__" not in vars(kind) and bool(annotated)


def _trust(package: str) -> str:
    """What to do where the code of a package is not run."""
    return f"If you trust that code, add {REMEDY}; a run takes plugins=[{package}] too."


def _module(name: str, path: str, where: str) -> types.ModuleType:
    """The module of a class at `path`; ConfigError where there is none, or where it is a plugin's and raises.

    where  the setting that names it"""
    package = name.split(".")[0]
    is_there = name in sys.modules
    try:
        module = importlib.import_module(name)
        if not is_there and package != OWN_PACKAGE:
            note_imported(package)
        return module
    except (Exception, SystemExit) as error:  # whatever a stranger's code brings
        if package != OWN_PACKAGE and not files(package):
            raise ConfigError(
                f"{where} is '{path}', of a package that Python does not find. Install it, or add {REMEDY}."
            ) from None
        is_absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        if is_absent or isinstance(error, ValueError):  # over a NUL or an empty part
            raise ConfigError(
                f"{where} is '{path}', which does not exist ({error}). Correct the yaml file that says so."
            ) from None
        if package == OWN_PACKAGE:
            raise
        place = blamed(error, [package])
        said = error.msg if isinstance(error, SyntaxError) else first_line(error)
        raise ConfigError(
            f"{where} is '{path}', whose module cannot be imported ({type(error).__name__}: {said}"
            f"{place and f'; {place}'}). Correct it."
        ) from error


def at(node: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(lambda inner, name: inner[name], key.split("."), node)


def check_function(path: str, where: str, plugins: Sequence[str]) -> None:
    """Raises ConfigError unless `path` is package.module:function of one of `plugins`: code that the user trusts."""
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise ConfigError(
            f"{where} is {shown(path)}; expected package.module:function, as mypackage.triggers:stamp. Change {where}."
        )
    if not any(module == package or module.startswith(f"{package}.") for package in [*plugins, *trusted()]):
        raise ConfigError(
            f"{where} is '{path}', outside {join_words([*plugins, *trusted()]) or 'any plugin'}; only code of plugins is run. "
            f"{_trust(module.split('.')[0])}"
        )


def dotted(function: str) -> str:
    """`package.module:function` with dots alone, as a class is named."""
    return function.replace(":", ".")


def imported(function: str, where: str, expected: str) -> Callable[..., Any]:
    """What `package.module:function` names; ConfigError where it is nothing that can be called. That its package is trusted was
    asked before (`check_function`).

    where  the setting that names it; expected: what the setting is for, as a message says it"""
    module, _, name = dotted(function).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # whatever importing a stranger's code brings
        raise ConfigError(
            f"{where} is '{function}', which cannot be imported ({type(error).__name__}: {first_line(error)}); expected "
            f"{expected}, in a module that Python finds. Correct it, or add {REMEDY}."
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{where} is '{function}', an object of type {type(found).__name__}; expected {expected}. Name one."
        )
    return found  # type: ignore[no-any-return]


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
        raise ConfigError(
            f"{where} lacks '{missing[0]}'; add it to the yaml file that describes {kind.__name__}. A `~{where}.{missing[0]}` "
            f"deletes it: leave that out."
        )
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
        if arguments[1] in PATHS:
            check_path(value, where)
        return convert(value, arguments[0], where)
    if origin is Literal:
        if value in arguments:
            return value
        close = did_you_mean(str(value), [str(argument) for argument in arguments])
        raise ConfigError(
            f"{where} is {shown(value)}; expected {join_words([str(a) for a in arguments], 'or')}.{close}"
        )
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
    if hint in (int, float, str) and isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{where} is {shown(value, 24)}; expected a number below {LARGEST:.0e}. Change {where}.")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; expected a finite number. Change {where}.")
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise ConfigError(f"{where} is {shown(value)}; expected {describe(hint)}.")


def check_path(value: Any, where: str) -> None:
    """Raises ConfigError unless `value` can be the path of something; whether anything lies there is not asked."""
    reason = ""
    if not isinstance(value, str):
        reason = "expected a path as a text" + (f": \"{where}='{value}'\"" if isinstance(value, int | float) else "")
    elif not value or not value.isprintable():
        reason = "expected a path of printable characters"
    elif any(len(os.fsencode(part)) > LONGEST_PART for part in Path(value).parts):
        reason = f"expected a path whose parts have at most {LONGEST_PART} bytes"
    elif value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            reason = "expected a path, and nobody of that name has a home here"
    if reason:
        raise ConfigError(f"{where} is {shown(value)}; {reason}. Change {where}.")


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
    """Dotted key -> `file`, `folder` or `function` of the settings in `node` that name one, as the fields of `kind` declare."""
    found: dict[str, str] = {}
    for key, hint in settings(kind).items():
        value = node.get(key)
        for part in (hint, *typing.get_args(hint)):
            if typing.get_origin(part) is Annotated and isinstance(value, str) and part != Place:
                found[key] = typing.get_args(part)[1]
            elif dataclasses.is_dataclass(part) and isinstance(value, Mapping):
                found |= {f"{key}.{inner}": what for inner, what in paths(typing.cast(type, part), value).items()}
    return found
