"""Mistakes on the command line, as Hydra meets them, told in one paragraph each."""

import os
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backdoorbench.config import catalog, plugins
from backdoorbench.config.compose import Plain, as_read, compose, option_name, searched, unresolved
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
VERBS_ADD = ("hydra.searchpath=['file://", "hydra/sweeper=listing")  # settings that nobody typed
NO_OPTION = re.compile(
    r"|.*/|null|true|false|[-+.\d]+|\[.*\]?|\$\{.*\}?", re.IGNORECASE | re.DOTALL
)  # what no file is called


def refuse_no_options(words: Sequence[str]) -> None:
    """Raises ConfigError where a group is set to nothing, deleted or added to, which Hydra meets with a traceback, or with advice
    for files."""
    for word in words:
        if word.startswith("~") and (deleted := word[1:].partition("=")[0].partition("@")[0]) in NAMES:
            raise ConfigError(
                f"'{word}' deletes the group {deleted}, of which every run has an option: "
                f"{', '.join(catalog.names(deleted))}. Say {deleted}=none for nothing, where that is one of them."
            )
        group, mark, value = word.partition("=")
        if word.startswith("+") and (added := group.lstrip("+")) in NAMES and not value.startswith("{"):
            raise ConfigError(
                f"{shown(word)} adds an option of the group {added}, of which every run has one already. Say {added}={value}, "
                f"which takes its place."
            )
        if mark and group in NAMES and NO_OPTION.fullmatch(value):
            raise ConfigError(
                f"{group} is {shown(value)}; expected one of its options: {', '.join(catalog.names(group))}. Say "
                f"{group}=none for nothing, where that is one of them."
            )


def refuse_no_words(settings: Sequence[str]) -> None:
    """Raises ConfigError where a program gives something else than words."""
    if not isinstance(settings, list | tuple) or not all(isinstance(word, str) for word in settings):
        raise ConfigError(
            f"the settings are {shown(settings)}; expected words, each a text such as 'attack=badnets'. Correct them."
        )


def composed(settings: Sequence[str], folders: Sequence[str] = ()) -> Plain:
    """The configuration of a run; mistakes in it as those of a run are told.

    folders  of the user's own yaml files"""
    refuse_no_words(settings)
    refuse_no_options(settings)
    for folder in filter(os.path.isdir, searched(settings)):
        catalog.refuse_unread(Path(folder))
    try:
        return compose(settings, folders)
    except BdxError:
        raise
    except Exception as error:
        raise explained(error, settings, folders) from None


@dataclass(frozen=True)
class Met:
    """An error as Hydra raised it, and what it was raised over.

    cause    what Hydra wrapped, or the error itself
    said     its first line
    folders  of the user's own yaml files, where the mistake may lie too"""

    error: Exception
    words: Sequence[str]
    folders: Sequence[str]

    @property
    def cause(self) -> BaseException:
        return self.error.__cause__ or self.error

    @property
    def said(self) -> str:
        return next(iter(str(self.error).splitlines()), "")


def explained(error: Exception, words: Sequence[str], folders: Sequence[str] = ()) -> Exception:
    """A mistake in the settings as one paragraph; whatever else it is, itself.

    folders  of the user's own yaml files, where the mistake may lie too"""
    met = Met(error, words, folders)
    told = next((told for tell in TOLD if (told := tell(met)) is not None), None)
    if told is not None or not _raised_by_hydra(error):
        return told or error
    return _broken_file(folders, words, of_any_name=True) or _of_hydra(error, words)


def _of_ours(met: Met) -> Exception | None:
    """One of a launcher's settings, wrapped by Hydra."""
    return met.cause if isinstance(met.cause, BdxError) else None


def _unknown_option(met: Met) -> Exception | None:
    from hydra.errors import MissingConfigException

    error = met.error
    if not isinstance(error, MissingConfigException) or not error.missing_cfg_file or error.options is None:
        return None
    group, _, name = error.missing_cfg_file.rpartition("/")
    if not group.startswith("hydra/"):
        return ConfigError(catalog.unknown_option(group, name, sorted(error.options)))
    return _missing_plugin(name, f"{group}={name}") or ConfigError(
        f"{group}={name} is not there. Those here: {', '.join(sorted(error.options))}."
    )


def _unreadable_word(met: Met) -> Exception | None:
    from hydra.errors import OverrideParseException

    if not isinstance(met.error, OverrideParseException):
        return None
    said = f"{shown(met.error.override)} cannot be read as a setting ({first_line(met.error)})"
    key, _, value = str(met.error.override).partition("=")
    if value.startswith("{") or not key.isascii():
        return ConfigError(
            f'{said}. Write KEY=VALUE, or "KEY={{NAME: VALUE, …}}". A name stands without quotes: letters of ASCII, digits, '
            f"blanks between them and any of -_./+$%*@?|, or one of ()[]{{}}:=, behind a backslash; a text with anything else "
            f"is quoted: {{NAME: 'é'}}. Put another name into a yaml file, and add --config-dir DIR."
        )
    return ConfigError(
        f"{said}. Write KEY=VALUE, and quote values with blanks, commas or brackets twice: \"key='a b'\"."
    )


def _broken_choice(met: Met) -> Exception | None:
    return _broken_file(met.folders, met.words, of_any_name=False)


def _unresolved(met: Met) -> Exception | None:
    from omegaconf.errors import InterpolationResolutionError

    return ConfigError(unresolved(met.cause)) if isinstance(met.cause, InterpolationResolutionError) else None


def _unknown_setting(met: Met) -> Exception | None:
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    cause = met.cause
    if not isinstance(cause, ConfigAttributeError | ConfigKeyError) or not cause.full_key:
        return None
    if (now := RENAMED.get(str(cause.full_key))) is not None:
        return ConfigError(f"{cause.full_key} is now called {now}. Say so.")
    known = [str(key) for key in cause.parent_node] if cause.parent_node is not None else []
    where, _, key = str(cause.full_key).rpartition(".")
    if where.endswith(".augment") and not known:  # it is ${dataset.augment}
        source = "dataset.augment"
        return ConfigError(
            f"{where} is {source} as a whole, so '{key}' cannot be set in it alone. Set {source}.{key}, which it follows, or "
            f"give {where} whole, as '{where}={{{key}: …, …}}'; bdx --cfg job prints what it holds."
        )
    if (sweep := _swept_by_experiment(str(cause.full_key), met)) is not None:
        return ConfigError(
            f"{sweep}, and an option of {where} in this sweep has no setting '{key}'; it knows {join_words(sorted(known))}. "
            f"Leave out what lacks it, or run that alone, once: hydra.mode=RUN instead of -m."
        )
    inside = f"; it knows {join_words(sorted(known))}" if known else ""
    inside = inside if where else "; bdx --cfg job prints the whole configuration"
    return ConfigError(
        f"{where or 'the configuration'} has no setting '{key}'.{did_you_mean(key, known)} Correct the name{inside}."
    )


def _swept_by_experiment(setting: str, met: Met) -> str | None:
    """`experiment=tnr sweeps over defense.trap=true,false`, where no word sets it; None where the experiment does not."""
    said = {override.key_or_group: override.value() for word in met.words if (override := as_read(word)) is not None}
    name = option_name(str(said.get("experiment", "none")))
    if setting in said or name not in catalog.names("experiment", met.folders):
        return None
    values = catalog.describe("experiment", name, met.folders).sweeps.get(setting)
    return None if values is None else f"experiment={name} sweeps over {setting}={values}"


def _interval(met: Met) -> Exception | None:
    if "does not support sweep type" not in met.said:
        return None
    from backdoorbench.sweeps.grid import not_listed

    return ConfigError(not_listed(next(word for word in met.words if "interval(" in word)))


def _without_plugin(met: Met) -> Exception | None:
    is_plugin = "plugin class" in met.said or "Could not load 'hydra/" in met.said
    return _missing_plugin(met.said, "the sweep") if is_plugin else None


def _no_group(met: Met) -> Exception | None:
    from hydra.errors import ConfigCompositionException

    if not isinstance(met.error, ConfigCompositionException) or not met.said.startswith("Could not override"):
        return None
    key = met.said.split("'")[1]
    return ConfigError(
        f"'{key}' is no group or setting.{did_you_mean(key, [*NAMES, *SETTING_NAMES])} The groups are "
        f"{join_words(list(NAMES))}; bdx --cfg job prints every setting."
    )


def _several_values(met: Met) -> Exception | None:
    from hydra.errors import ConfigCompositionException

    if not isinstance(met.error, ConfigCompositionException) or "Ambiguous value" not in str(met.error):
        return None
    word = next((word for word in met.words if "," in word), "")
    return ConfigError(
        f"'{word}' holds several values, and this is no sweep. Give one value, or add -m to run them all."
    )


def _not_composed(met: Met) -> Exception | None:
    from hydra.errors import ConfigCompositionException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(met.error, ConfigCompositionException | OmegaConfBaseException):
        return ConfigError(
            f"the configuration cannot be composed: {first_line(met.cause)}. bdx --cfg job with fewer settings shows what is "
            "there."
        )
    if isinstance(met.error, ValueError) and "override" in str(met.error).lower():
        return ConfigError(f"the settings cannot be read: {first_line(met.error)}. Write KEY=VALUE for each.")
    return None


TOLD = (
    _of_ours, _unknown_option, _unreadable_word, _broken_choice, _unresolved, _unknown_setting, _interval, _without_plugin,
    _no_group, _several_values, _not_composed,
)  # the first that knows an error tells it  # fmt: skip


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
    files = [file for place in places for file in catalog.yaml_files(place)]
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
