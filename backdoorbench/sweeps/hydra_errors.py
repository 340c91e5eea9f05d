"""Mistakes on the command line, as Hydra meets them, told in one paragraph each."""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from backdoorbench.config import catalog, plugins
from backdoorbench.config.compose import Plain, compose
from backdoorbench.config.groups import NAMES, RENAMED, SETTING_NAMES
from backdoorbench.errors import BdxError, ConfigError, did_you_mean, first_line, join_words, shown

PLUGINS = {
    "submitit": "slurm",
    "joblib": "joblib",
    "ray": "ray",
    "optuna": "optuna",
}  # of Hydra: the extra that brings it
COMPOSERS = ("hydra", "omegaconf", "yaml", "antlr4")  # packages that read settings, and raise what they like over them
OURS = "backdoorbench"
VERBS_ADD = ("hydra.searchpath=[file://", "hydra/sweeper=listing")  # settings that nobody typed
NO_OPTION = re.compile(
    r"|null|true|false|[-+.\d]+|\[.*\]?|\$\{.*\}?", re.IGNORECASE | re.DOTALL
)  # what no file is called


def refuse_no_options(words: Sequence[str]) -> None:
    """Raises ConfigError where a group is set to nothing or deleted, which Hydra meets with a traceback."""
    for word in words:
        if word.startswith("~") and (deleted := word[1:].partition("=")[0].partition("@")[0]) in NAMES:
            raise ConfigError(
                f"'{word}' deletes the group {deleted}, of which every run has an option: "
                f"{', '.join(catalog.names(deleted))}. Say {deleted}=none for nothing, where that is one of them."
            )
        group, mark, value = word.partition("=")
        if mark and group in NAMES and NO_OPTION.fullmatch(value):
            raise ConfigError(
                f"{group} is {shown(value)}; expected one of its options: {', '.join(catalog.names(group))}. Say "
                f"{group}=none for nothing, where that is one of them."
            )


def composed(settings: Sequence[str], folders: Sequence[str] = ()) -> Plain:
    """The configuration of a run; mistakes in it as those of a run are told.

    folders  of the user's own yaml files"""
    refuse_no_options(settings)
    try:
        return compose(settings, folders)
    except BdxError:
        raise
    except Exception as error:
        raise explained(error, settings, folders) from None


def explained(error: Exception, words: Sequence[str], folders: Sequence[str] = ()) -> Exception:
    """A mistake in the settings as one paragraph; whatever else it is, itself.

    folders  of the user's own yaml files, where the mistake may lie too"""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        InterpolationResolutionError,
        OmegaConfBaseException,
    )

    from backdoorbench.config.compose import unresolved

    cause = error.__cause__ or error
    if isinstance(cause, BdxError):  # of a launcher's settings, wrapped by Hydra
        return cause
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group.startswith("hydra/"):
            return _missing_plugin(name, f"{group}={name}") or ConfigError(
                f"{group}={name} is not there. Those here: {', '.join(sorted(error.options))}."
            )
        return ConfigError(catalog.unknown_option(group, name, sorted(error.options)))
    if isinstance(error, OverrideParseException):
        said = first_line(error)
        return ConfigError(
            f"{shown(error.override)} cannot be read as a setting ({said}). Write KEY=VALUE, and quote values with "
            "blanks, commas or brackets twice: \"key='a b'\"."
        )
    if (broken := _broken_file(folders, words, of_any_name=False)) is not None:
        return broken
    if isinstance(cause, InterpolationResolutionError):
        return ConfigError(unresolved(cause))
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        parent = cause.parent_node
        known = [str(key) for key in parent] if parent is not None else []
        where, _, key = str(cause.full_key).rpartition(".")
        if where.endswith(".augment") and not known:  # it is ${dataset.augment}
            source = "dataset.augment"
            return ConfigError(
                f"{where} is {source} as a whole, so '{key}' cannot be set in it alone. Set {source}.{key}, which it follows, or "
                f"give {where} whole, as '{where}={{{key}: …, …}}'; bdx --cfg job prints what it holds."
            )
        place = where or "the configuration"
        if (now := RENAMED.get(str(cause.full_key))) is not None:
            return ConfigError(f"{cause.full_key} is now called {now}. Say so.")
        inside = f"; it knows {join_words(sorted(known))}" if where and known else ""
        inside = inside if where else "; bdx --cfg job prints the whole configuration"
        return ConfigError(f"{place} has no setting '{key}'.{did_you_mean(key, known)} Correct the name{inside}.")
    text = str(error).splitlines()
    if text and "does not support sweep type" in text[0]:
        from backdoorbench.sweeps.grid import not_listed

        return ConfigError(not_listed(next(word for word in words if "interval(" in word)))
    is_plugin = bool(text) and ("plugin class" in text[0] or "Could not load 'hydra/" in text[0])
    if is_plugin and (missing := _missing_plugin(text[0], "the sweep")):
        return missing
    if isinstance(error, ConfigCompositionException) and text and text[0].startswith("Could not override"):
        key = text[0].split("'")[1]
        from_groups = [*NAMES, *SETTING_NAMES]
        return ConfigError(
            f"'{key}' is no group or setting.{did_you_mean(key, from_groups)} The groups are {join_words(list(NAMES))}; "
            f"bdx --cfg job prints every setting."
        )
    if isinstance(error, ConfigCompositionException) and "Ambiguous value" in str(error):
        word = next((word for word in words if "," in word), "")
        return ConfigError(
            f"'{word}' holds several values, and this is no sweep. Give one value, or add -m to run them all."
        )
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return ConfigError(
            f"the configuration cannot be composed: {first_line(cause)}. bdx --cfg job with fewer settings shows what is there."
        )
    if isinstance(error, ValueError) and "override" in str(error).lower():
        return ConfigError(f"the settings cannot be read: {first_line(error)}. Write KEY=VALUE for each.")
    if not _raised_by_hydra(error):
        return error
    return _broken_file(folders, words, of_any_name=True) or _of_hydra(error, words)


def _of_hydra(error: Exception, words: Sequence[str]) -> ConfigError:
    """Whatever else Hydra stumbles over before a run begins: nothing but settings is there to stumble over."""
    typed = [word for word in words if not word.startswith(VERBS_ADD)]
    own = [shown(word) for word in typed if word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    remedy = f"Correct or leave out {join_words(own)}" if own else "Correct them, or leave some out"
    return ConfigError(
        f"Hydra cannot begin with these settings ({type(error).__name__}: {shown(first_line(error), 200)}). "
        f"{remedy}; bdx --cfg job with fewer settings shows what is there."
    )


def _raised_by_hydra(error: Exception) -> bool:
    """Whether the code that raised it, or called what raised it, is of Hydra or of what reads its files, and not ours."""
    names = [
        str(frame.f_globals.get("__name__", "")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    known = [name for name in names if name in (*COMPOSERS, OURS)]
    return bool(known) and known[-1] in COMPOSERS


def _broken_file(folders: Sequence[str], words: Sequence[str], of_any_name: bool) -> ConfigError | None:
    """What is wrong with a yaml file in the user's folders or of a plugin, if one cannot be read: one that the words
    choose, or any."""
    from backdoorbench.config import yamls

    chosen = {word.rpartition("=")[2] for word in words}
    places = [*plugins.conf_dirs(), *map(Path, folders)]
    files = sorted(file for place in places for file in place.rglob("*.yaml"))
    for file in files if of_any_name else [file for file in files if file.stem in chosen]:
        try:
            yamls.read(file)
        except ConfigError as error:
            return error
    return None


def _missing_plugin(said: str, what: str) -> ConfigError | None:
    """Hydra's word for a launcher or sweeper of another package that is not there, with the extra that brings it."""
    for plugin, extra in PLUGINS.items():
        if plugin in said:
            return ConfigError(
                f"{what} needs Hydra's {plugin} plugin, which is not installed. Add it: pip install 'bdx[{extra}]'; or take "
                f"hydra/launcher=pool, which needs nothing more."
            )
    return None
