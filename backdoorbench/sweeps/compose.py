"""The configurations of a sweep's jobs, fast: Hydra takes a tenth of a second to compose one from all yaml files."""

import copy
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

from backdoorbench.config import plugins
from backdoorbench.config.compose import Plain, plain


@dataclass(frozen=True)
class Chosen:
    """What a choice of options makes, before any value is set.

    config     as Hydra composes it, without its own settings; not to be changed, nor is `resolved`
    mentioned  names that its interpolations refer to
    """

    config: DictConfig
    resolved: Plain
    mentioned: frozenset[str]

    def takes(self, override: Override) -> bool:
        """Whether the override just sets one plain value that nothing else is computed from."""
        if override.is_delete() or override.is_add() or override.is_force_add() or override.package is not None:
            return False
        value = override.value()
        if not (value is None or isinstance(value, int | float | str)) or "${" in str(value):
            return False
        name = override.key_or_group
        if any(
            name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in self.mentioned
        ):
            return False
        *parents, key = name.split(".")
        node: Any = self.resolved
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        return isinstance(node, dict) and key in node and not isinstance(node[key], dict | list)


class Composer:
    """Composes the jobs of a sweep: each choice of options once from the yaml files, values put in afterwards, which is what
    Hydra does in this order too."""

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        assert isinstance(loader, ConfigLoaderImpl)
        self.loader, self.master = loader, master
        self.is_group = functools.cache(loader.repository.group_exists)
        parser = OverridesParser.create()
        self.parse = functools.cache(lambda text: parser.parse_overrides([text])[0])
        self.known: dict[tuple[str, ...], Chosen] = {}

    def __call__(self, overrides: Sequence[str]) -> Plain:
        """The resolved configuration of the job with these settings."""
        choices: list[str] = []
        values: list[Override] = []
        for text in overrides:
            override = self.parse(text)
            if self.is_choice(override):
                choices.append(text)
            else:
                values.append(override)
        chosen = self.chosen(tuple(choices))
        if not all(chosen.takes(override) for override in values):
            made = copy.deepcopy(chosen.config)
            ConfigLoaderImpl._apply_overrides_to_config(values, made)
            return plain(made)
        resolved = copy.deepcopy(chosen.resolved)
        for override in values:
            *parents, key = override.key_or_group.split(".")
            node: Any = functools.reduce(lambda at, part: at[part], parents, resolved)
            node[key] = override.value()
        return plugins.with_used(resolved)

    def is_choice(self, override: Override) -> bool:
        """Whether it picks an option of a group, rather than a value."""
        return not isinstance(override.value(), dict) and self.is_group(override.key_or_group)

    def chosen(self, choices: tuple[str, ...]) -> Chosen:
        if choices not in self.known:
            made = self.loader.load_sweep_config(self.master, list(choices))
            with open_dict(made):
                del made["hydra"]
            named = re.findall(r"\$\{([\w.]+)\}", " ".join(texts(OmegaConf.to_container(made, resolve=False))))
            self.known[choices] = Chosen(made, plain(made), frozenset(named))
        return self.known[choices]


def texts(value: Any) -> Iterator[str]:
    """Every text in nested containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def varying(jobs: Sequence[Sequence[str]]) -> list[list[str]]:
    """Of each job's settings those that are not the same in all jobs; all, where there is only one job."""
    if len(jobs) < 2:
        return [list(job) for job in jobs]
    common = set(jobs[0]).intersection(*map(set, jobs[1:]))
    return [[setting for setting in job if setting not in common] for job in jobs]
