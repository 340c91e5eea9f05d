"""Yaml files as Hydra reads them, each once."""

import copy
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult


class KeptFiles(ConfigRepository):
    """Hydra's own, which reads all files of a configuration anew for every one that it composes, over a quarter of what composing
    costs. What was edited since is not seen: whoever keeps one of these looks after that (`compose.stamps`)."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        self.read: dict[str, ConfigResult | None] = {}
        super().__init__(config_search_path)

    def __deepcopy__(self, memo: dict[int, Any]) -> "KeptFiles":
        """Hydra copies its own before it adds the folders of `hydra.searchpath`, which are the same for all that one of these
        composes."""
        return self

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A copy of what was read, since Hydra puts values into it."""
        if config_path not in self.read:
            self.read[config_path] = super().load_config(config_path)
        kept = self.read[config_path]
        if kept is None:
            return None
        made = copy.copy(kept)
        made.config = copy.deepcopy(kept.config)
        return made
