"""Mistakes on the command line, as Hydra meets them, told in one paragraph each."""

from collections.abc import Sequence

from backdoorbench.config import catalog
from backdoorbench.config.groups import NAMES, SETTING_NAMES
from backdoorbench.errors import BdxError, ConfigError, did_you_mean, join_words

PLUGINS = {
    "submitit": "slurm",
    "joblib": "joblib",
    "ray": "ray",
    "optuna": "optuna",
}  # of Hydra: the extra that brings it


def refuse_null_groups(words: Sequence[str]) -> None:
    """Raises ConfigError where a group is set to nothing or deleted, which Hydra meets with a traceback."""
    for word in words:
        if word.startswith("~") and (deleted := word[1:].partition("=")[0].partition("@")[0]) in NAMES:
            raise ConfigError(
                f"'{word}' deletes the group {deleted}, of which every run has an option: "
                f"{', '.join(catalog.names(deleted))}. Say {deleted}=none for nothing, where that is one of them."
            )
        group, mark, value = word.partition("=")
        if mark and group in NAMES and value in ("", "null"):
            raise ConfigError(
                f"{group} is '{value}'; expected one of its options: {', '.join(catalog.names(group))}. Say {group}=none for "
                f"nothing, where that is one of them."
            )


def explained(error: Exception, words: Sequence[str]) -> Exception:
    """A mistake in the overrides as one paragraph; whatever else it is, itself."""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

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
        said = str(error).splitlines()[0]
        return ConfigError(
            f"'{error.override}' cannot be read as a setting ({said}). Write KEY=VALUE, and quote values with blanks, commas or "
            f"brackets twice: \"key='a b'\"."
        )
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
        inside = (
            "; bdx --cfg job prints the whole configuration" if not where else f"; it knows {join_words(sorted(known))}"
        )
        return ConfigError(f"{place} has no setting '{key}'.{did_you_mean(key, known)} Correct the name{inside}.")
    text = str(error).splitlines()
    if text and "does not support sweep type" in text[0]:
        from backdoorbench.sweeps.grid import not_listed

        return ConfigError(not_listed(next(word for word in words if "interval(" in word)))
    if text and "plugin class" in text[0] and (missing := _missing_plugin(text[0], "the sweep")):
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
        reason = str(cause).splitlines()[0]
        return ConfigError(
            f"the configuration cannot be composed: {reason}. bdx --cfg job with fewer settings shows what is there."
        )
    if isinstance(error, ValueError) and "override" in str(error).lower():
        return ConfigError(f"the settings cannot be read: {error}. Write KEY=VALUE for each.")
    return error


def _missing_plugin(said: str, what: str) -> ConfigError | None:
    """Hydra's word for a launcher or sweeper of another package that is not there, with the extra that brings it."""
    for plugin, extra in PLUGINS.items():
        if plugin in said:
            return ConfigError(
                f"{what} needs Hydra's {plugin} plugin, which is not installed. Add it: pip install 'bdx[{extra}]'; or take "
                f"hydra/launcher=pool, which needs nothing more."
            )
    return None
