"""Where each value of a configuration comes from: the last of the files and words that set it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from backdoorbench.config.compose import composer, conf_dir, flat, plain, search_path, with_brought

TYPED = "the command line"


@dataclass(frozen=True)
class Traced:
    """A composed configuration that knows where its values come from.

    values   dotted key -> resolved value
    files    dotted key -> the yaml file that sets it, or TYPED
    written  dotted key -> what stands there, before it is resolved
    """

    values: dict[str, Any]
    files: dict[str, str]
    written: dict[str, Any]

    def origin(self, key: str) -> str:
        """Where the value of a key comes from: of one that refers to another setting, where that one's does, and its name."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            whole = ".".join(parts[:length])
            if whole in self.files:
                rest = key.removeprefix(whole)
                said = str(self.written[whole])
                for other in re.findall(r"\$\{([\w.]+)\}", said):
                    meant = other + rest
                    is_it = self.values.get(meant) is not None and self.values[meant] == self.values.get(key)
                    if is_it or said == f"${{{other}}}":  # a choice of two, or just the other
                        return f"{self.origin(meant)}, by {meant}"
                return self.files[whole]
        return ""


def trace(overrides: Sequence[str], folders: Sequence[str] = ()) -> Traced:
    """The configuration of `bdx <overrides>`, traced. folders: of the user's own yaml files."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import CachingConfigRepository
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    words = [*search_path(folders), *with_brought(overrides, folders)]
    words += composer(words).chosen_by(words).brought
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        values = flat(plain(compose("config", overrides=words)))
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        listed = loader.compute_defaults_list("config", words, RunMode.RUN)
        repository = CachingConfigRepository(loader.repository)
        loader._process_config_searchpath("config", OverridesParser.create().parse_overrides(words), repository)
        files: dict[str, str] = {}
        written: dict[str, Any] = {}
        for default in listed.defaults:
            if default.config_path is None or default.config_path.startswith("hydra"):
                continue
            loaded = loader._load_single_config(default, repository)
            content = OmegaConf.to_container(loaded.config, resolve=False)
            assert isinstance(content, dict)
            keys = flat({str(key): value for key, value in content.items()})
            root = Path(str(loaded.path).removeprefix("file://"))
            file = f"{default.config_path}.yaml"
            files |= dict.fromkeys(keys, file if root == conf_dir() else str(root / file))
            written |= keys
        for override in listed.config_overrides:
            key = override.key_or_group
            named = [other for other in files if other == key or other.startswith(f"{key}.")] or [key]
            files |= dict.fromkeys(named, TYPED)
            written |= dict.fromkeys(named, "")
    return Traced(values, files, written)
