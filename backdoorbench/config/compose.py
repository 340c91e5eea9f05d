"""From yaml files to one resolved configuration. The only module below the sweeps and the command line that knows Hydra."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from backdoorbench.config import plugins
from backdoorbench.errors import ConfigError

Plain = dict[str, Any]  # a resolved configuration: dicts, lists, strings, numbers, booleans, None

DIGITS = 12  # significant ones of a float setting: enough for any that a person types, too few for what a sum of steps leaves
BRINGS = "model"  # the group whose options bring others along as if they were typed
NEUTRAL = "folder"  # the data set without facts of its own
ASK_THE_DATA_SET = (
    "attack",
    "defense",
    "detector",
    "after",
    "train",
)  # groups whose options refer to it, and to nothing else

OmegaConf.register_new_resolver("either", lambda own, else_: else_ if own is None else own, replace=True)


@cache
def conf_dir() -> Path:
    """The folder of the yaml files: the wheel's copy inside the package, else `conf/` beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if (inside / "config.yaml").is_file() else package.parent / "conf"


def places(folders: Sequence[str] = ()) -> list[Path]:
    """The folders of yaml files, in the order in which an option is looked for: ours, those of known plugins, the user's."""
    return [conf_dir(), *plugins.conf_dirs(), *(Path(folder) for folder in folders)]


def compose(overrides: Sequence[str] = (), folders: Sequence[str] = ()) -> Plain:
    """The resolved configuration that `bdx <overrides>` would run.

    folders  of the user's own yaml files (`--config-dir`), looked through after ours"""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        return plain(hydra_compose("config", overrides=[*search_path(folders), *with_brought(overrides, folders)]))


def with_brought(words: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """The words, and after them the choices that a network brings along: its recipe, unless one was chosen.

    A data set brings network and recipe along by Hydra's own means. Those of a network that was chosen beside it would lose there
    to the data set's, so they are said as if typed. A sweep over networks says them job by job."""
    chosen = next((word.partition("=")[2] for word in reversed(words) if word.startswith(f"{BRINGS}=")), "")
    is_name = re.fullmatch(r"[\w. -]{1,100}", chosen)
    files = [folder / BRINGS / f"{chosen}.yaml" for folder in places(folders) if is_name]
    text = next((file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file()), "")
    made = {word.lstrip("+").partition("=")[0].partition("@")[0] for word in words}
    return [*words, *(f"{group}={option}" for group, option in choices(text) if group not in made)]


def choices(text: str) -> list[tuple[str, str]]:
    """(group, option) of each `override /train@_global_.train: fast` in the defaults list of a yaml file's text."""
    return re.findall(r"^ +- override /(\w+)(?:@\S+)?: (\S+)", text, flags=re.MULTILINE)


def search_path(folders: Sequence[str]) -> list[str]:
    """The override that makes Hydra look through `folders` too."""
    places = ",".join(f"file://{Path(folder).absolute()}" for folder in folders)
    return [f"hydra.searchpath=[{places}]"] if folders else []


def searched(words: Sequence[str]) -> list[str]:
    """The folders of the `search_path` among words."""
    found = (word.removeprefix("hydra.searchpath=[") for word in words if word.startswith("hydra.searchpath=[file://"))
    return [place.removeprefix("file://") for text in found for place in text.removesuffix("]").split(",")]


def plain(config: DictConfig) -> Plain:
    """The configuration as plain resolved containers: OmegaConf's attribute access is too slow and too lenient for loops.

    Floats are rounded to 12 significant digits here, once, so that 0.06 and a sweep's 0.060000000000000005 are one setting.
    Known plugins that an option comes from are listed. ConfigError where a value refers to what is not there."""
    try:
        made = typing.cast(Plain, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
        return plugins.with_used(typing.cast(Plain, rounded(made)))
    except OmegaConfBaseException as error:
        raise ConfigError(unresolved(error)) from None


def unresolved(error: OmegaConfBaseException) -> str:
    """The message for a value that cannot be resolved: a reference to nothing, to itself, or a value still to be given."""
    key = error.full_key or "a setting"
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is '???', which stands for a value that is still to be given. Give one: {key}=VALUE."
    reason = str(error).splitlines()[0].rstrip(".")
    return (
        f"{key} refers to what cannot be resolved ({reason}). Give a value, or a reference to another setting by its full name, "
        f"such as ${{dataset.target}}; bdx --cfg job prints every setting."
    )


def rounded(value: Any) -> Any:
    """`value` with the floats in it at 12 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def option(group: str, name: str) -> Plain:
    """One option's own keys, as on a data set without facts of its own: `option("attack", "none")`."""
    conf = conf_dir()
    node = typing.cast(DictConfig, OmegaConf.load(conf / group / f"{name}.yaml"))
    node.pop("defaults", None)  # what it chooses of others
    whole = OmegaConf.create({"dataset": OmegaConf.load(conf / "dataset" / f"{NEUTRAL}.yaml"), group: node})
    return typing.cast(Plain, OmegaConf.to_container(whole[group], resolve=group in ASK_THE_DATA_SET))


def flat(config: Mapping[str, Any], prefix: str = "") -> Plain:
    """Nested settings by dotted keys."""
    found: Plain = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value  # a mapping that was typed may have numbers for names
    return found
