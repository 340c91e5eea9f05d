"""Where each value of a configuration comes from: the last of the files and words that set it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from backdoorbench.config.compose import conf_dir, flat, plain, search_path

TYPED = "the command line"


def traced(overrides: Sequence[str], folders: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved configuration of `bdx <overrides>`, and of each dotted key the yaml file that sets it, or TYPED.

    folders  of the user's own yaml files. A value that refers to another setting comes from the file that refers to it."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    words = [*search_path(folders), *overrides]
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        resolved = plain(compose("config", overrides=words))
        loader = GlobalHydra.instance().config_loader()
        assert isinstance(loader, ConfigLoaderImpl)
        listed = loader.compute_defaults_list("config", words, RunMode.RUN)
        found: dict[str, str] = {}
        for default in listed.defaults:
            if default.config_path is None or default.config_path.startswith("hydra"):
                continue
            loaded = loader._load_single_config(default, loader.repository)
            content = OmegaConf.to_container(loaded.config, resolve=False)
            assert isinstance(content, dict)
            place = str(loaded.path).removeprefix("file://")
            name = Path(place).relative_to(conf_dir()) if place.startswith(str(conf_dir())) else Path(place)
            found |= dict.fromkeys(flat({str(key): value for key, value in content.items()}), str(name))
        for override in listed.config_overrides:
            key = override.key_or_group
            found |= dict.fromkeys(
                [other for other in found if other == key or other.startswith(f"{key}.")] or [key], TYPED
            )
    return resolved, found
