"""Yaml files as Hydra reads them, each once."""

import copy
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult

from backdoorbench.errors import ConfigError

OURS = ("main", "hydra", "schema")  # who brings the files that need no look: ours, and Hydra's own
UNLIKE = re.compile(
    r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)"
)  # in base 8, or 60: numbers of YAML 1.1 that say another


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
            found = super().load_config(config_path)
            if found is not None and found.provider not in OURS and (place := urlsplit(found.path)).scheme == "file":
                file = Path(place.netloc + place.path) / f"{config_path.removesuffix('.yaml')}.yaml"
                refuse_unlike(file.read_text(encoding="utf-8"), file)
            self.read[config_path] = found
        kept = self.read[config_path]
        if kept is None:
            return None
        made = copy.copy(kept)
        made.config = copy.deepcopy(kept.config)
        return made


class Misread(ConfigError):
    """A yaml file that anyone else would read as it stands, and YAML otherwise."""


def refuse_unlike(text: str, file: Path) -> None:
    """Raises Misread for a number that YAML reads as another than it shows, as 12 where `00014` stands, the name of a class
    of GTSRB; on the command line, where Hydra reads it, the same is a text."""
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and UNLIKE.fullmatch(event.value):
            read, shown = yaml.safe_load(event.value), re.sub(r"^([-+]?)0+(?=\d)", r"\1", event.value.replace("_", ""))
            if isinstance(read, int | float) and shown.lstrip("+") != str(read):
                plain = "the number itself" if ":" in shown else shown
                raise Misread(
                    f"{file} has {event.value} in line {event.start_mark.line + 1}, which YAML reads as {read}; expected a "
                    f"number that is what it shows. Write {plain}, or quote it where it is a name: '{event.value}'."
                )
