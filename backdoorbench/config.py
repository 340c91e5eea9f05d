"""From yaml to objects: compose a configuration, check it, build what it names.

The only module besides the command line and the launchers that knows Hydra.
"""

import dataclasses
import importlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from omegaconf import DictConfig, OmegaConf

from backdoorbench.errors import ConfigError, did_you_mean, join_words

Plain = dict[str, Any]  # a resolved configuration: dicts, lists, strings, numbers, booleans, None

NOT_FIELDS = ("_target_", "version")  # keys that choose the class and its meaning, not its knobs
OWN_PACKAGE = "backdoorbench"


def conf_dir() -> Path:
    """The folder of the yaml files: the wheel's copy inside the package, else `conf/` beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if (inside / "config.yaml").is_file() else package.parent / "conf"


def compose(overrides: Sequence[str] = ()) -> Plain:
    """The resolved configuration that `bdx <overrides>` would run."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return plain(hydra_compose("config", overrides=list(overrides)))


def plain(config: DictConfig) -> Plain:
    """The configuration as plain resolved containers: OmegaConf's attribute access is too slow and too lenient for loops."""
    return typing.cast(Plain, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def option(group: str, name: str) -> Plain:
    """One option's own keys, as its yaml file has them: `option("attack", "none")`."""
    node = OmegaConf.load(conf_dir() / group / f"{name}.yaml")
    return typing.cast(Plain, OmegaConf.to_container(node, resolve=False))


def flat(config: Mapping[str, Any], prefix: str = "") -> Plain:
    """Nested settings by dotted keys."""
    found: Plain = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


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
    fields = {field.name for field in dataclasses.fields(kind)}
    given = {key for key in node if key not in NOT_FIELDS}
    if unknown := sorted(given - fields):
        raise ConfigError(
            f"{where} has no setting '{unknown[0]}'.{did_you_mean(unknown[0], fields)} "
            f"It knows {join_words(sorted(fields))}."
        )
    if missing := sorted(fields - given):
        raise ConfigError(f"{where} lacks '{missing[0]}'; add it to the yaml file that describes {kind.__name__}.")
    hints = typing.get_type_hints(kind)
    return kind(**{key: convert(node[key], hints[key], f"{where}.{key}") for key in sorted(given)})


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or a ConfigError that names `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
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
    if origin in (Union, types.UnionType):
        return join_words([describe(argument) for argument in arguments], "or")
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each item {describe(arguments[0])}"
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    return "a group of settings"
