"""The configurations of a sweep's jobs, and what tells them apart."""

import functools
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict

from backdoorbench.config.compose import Composer


def composer(loader: ConfigLoader, master: DictConfig) -> Composer:
    """Composes the jobs of the sweep that `master` configures; their options lie where `loader` looks."""
    assert isinstance(loader, ConfigLoaderImpl)

    def load(choices: Sequence[str]) -> DictConfig:
        made = loader.load_sweep_config(master, list(choices))
        with open_dict(made):
            del made["hydra"]
        return made

    return Composer(load, functools.cache(loader.repository.group_exists))


def varying(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job's settings those that are not the same in all jobs; all, where there is only one job."""
    if len(jobs) < 2:
        return [list(job) for job in jobs]
    common = set(jobs[0]).intersection(*map(set, jobs[1:]))
    return [[setting for setting in job if setting not in common] for job in jobs]
