"""The configurations of a sweep's jobs, and what tells them apart."""

import copy
import functools
import typing
from collections.abc import Sequence
from contextlib import AbstractContextManager

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import env_override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig

from backdoorbench.config import catalog
from backdoorbench.config.compose import Composer, as_read, option_name, parsed, search_path
from backdoorbench.config.compose import composer as composer_of
from backdoorbench.config.kept import KeptFiles
from backdoorbench.errors import ConfigError


def composer(loader: ConfigLoader, master: DictConfig) -> Composer:
    """Composes the jobs of the sweep that `master` configures; their options lie where `loader` looks."""
    assert isinstance(loader, ConfigLoaderImpl)
    reader = copy.copy(loader)
    reader.repository = KeptFiles(loader.config_search_path)

    def load(choices: Sequence[str]) -> DictConfig:
        return reader.load_sweep_config(master, list(choices))

    sources = master.hydra.runtime.config_sources
    folders = [source.path for source in sources if source.schema == "file"]
    return Composer(
        lambda: load, functools.cache(loader.repository.group_exists), folders, master.hydra.job.config_name
    )


def job_environment(master: DictConfig) -> AbstractContextManager[None]:
    """The environment variables that Hydra sets while a job runs (`hydra.job.env_set`): what refers to them is resolved in it."""
    return typing.cast("AbstractContextManager[None]", env_override(dict(master.hydra.job.env_set)))


def varying(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job's settings those that are not the same in all jobs; all, where there is only one job."""
    if len(jobs) < 2:
        return [list(job) for job in jobs]
    common = set(jobs[0]).intersection(*map(set, jobs[1:]))
    return [[setting for setting in job if setting not in common] for job in jobs]


def left_to_jobs(words: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """The words of a sweep, where those that set one value in a group whose options are swept are sweeps over that value:
    `defense=ft,fst defense.epochs=choice(5)`. Hydra would otherwise look for it in the usual option, before there are jobs.

    folders  of the user's own yaml files"""
    swept = _swept(words, folders)
    return [_as_choice(word) if "." in word and word.lstrip("+").partition(".")[0] in swept else word for word in words]


def refuse_sweep(words: Sequence[str], folders: Sequence[str] = (), groups: Sequence[str] = ()) -> None:
    """Raises ConfigError where an experiment among the words is a sweep over settings that they leave open, which on the command
    line is many runs: a single one would take the usual option of each.

    groups  of settings that count; all, where none is named"""
    read = [override for word in words if (override := as_read(word)) is not None]
    said = {override.key_or_group: override.value() for override in read}
    name = option_name(str(said.get("experiment", "none")))
    if said.get("hydra.mode") == "RUN" or name not in catalog.names("experiment", folders):
        return
    swept = {} if _is_single(name, folders) else catalog.describe("experiment", name, folders).sweeps
    left = {key: values for key, values in swept.items() if key not in said}
    if left := {key: values for key, values in left.items() if not groups or key.partition(".")[0] in groups}:
        listed = "; ".join(f"{key}={values}" for key, values in left.items())
        raise ConfigError(
            f"experiment={name} is a sweep over {listed}; expected one value of each. Say it, or hydra.mode=RUN, which takes the "
            f"usual ones; bdx -m runs them all."
        )


def _is_single(experiment: str, folders: Sequence[str]) -> bool:
    """Whether it is one run where nobody asks for a sweep."""
    chosen = composer_of(folders=folders).chosen_by([*search_path(folders), f"experiment={experiment}"])
    return chosen.mode != "MULTIRUN"


def _swept(words: Sequence[str], folders: Sequence[str]) -> set[str]:
    """What is swept, by the words or by the experiment that they choose."""
    found: set[str] = set()
    for word in words:
        name, _, value = word.partition("=")
        if name == "experiment" and option_name(value) in catalog.names(name, folders):
            found |= catalog.describe(name, option_name(value), folders).sweeps.keys()
        try:
            override = parsed(word)
        except OverrideParseException:  # Hydra tells it
            continue
        if override.is_sweep_override():
            found.add(override.key_or_group)
    return found


def _as_choice(word: str) -> str:
    """`KEY=VALUE` as `KEY=choice(VALUE)`; itself where it is something else, or no word."""
    key, _, value = word.partition("=")
    try:
        parsed(made := f"{key}=choice({value})")
        return word if parsed(word).is_sweep_override() or parsed(word).is_delete() else made
    except OverrideParseException:
        return word
