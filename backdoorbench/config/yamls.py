"""One yaml file of a user's, as Hydra would read it: its content, or a paragraph that names file, line and fault."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from backdoorbench.config.catalog import read_text
from backdoorbench.config.compose import Plain
from backdoorbench.config.kept import refuse_unlike
from backdoorbench.errors import ConfigError, first_line, shown

PACKAGE = re.compile(r"^#+\s*@(.*)$")  # a line of the header that says where the keys land


def read(file: Path) -> Plain:
    """The mapping in a yaml file, references unresolved. ConfigError where it holds none, or cannot be read."""
    text = read_text(file)
    package_of(text, file)
    try:
        found = yaml.safe_load(text)
        refuse_unlike(text, file)
        if found is not None and not isinstance(found, dict):
            raise ConfigError(
                f"{file} holds {shown(found)}; expected settings, each as `name: value` on a line. Correct it."
            )
        content: Any = OmegaConf.to_container(OmegaConf.create(text if found else "{}"), resolve=False)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no readable yaml ({where(error)}). Correct it there.") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{file} cannot be read as settings ({first_line(error)}). Correct it.") from None
    except RecursionError:
        raise ConfigError(
            f"{file} refers to itself (an anchor `&` within what it names). Write the values out."
        ) from None
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"{file} has the key {shown(key)}; expected names. Quote it, if that is one.")
    if "defaults" in content and not isinstance(content["defaults"], list):
        raise ConfigError(
            f"{file} has `defaults: {shown(content['defaults'])}`; expected a list of options, each after a dash. Correct it."
        )
    return {str(key): value for key, value in content.items()}


def package_of(text: str, file: Path) -> str | None:
    """What the header's `# @package NAME` says; None without one."""
    for line in filter(None, map(str.strip, text.splitlines())):
        if not line.startswith("#"):
            return None
        if match := PACKAGE.match(line):
            words = match[1].split()
            if len(words) != 2:
                raise ConfigError(
                    f"{file} has the line '{line}'; expected `# @package NAME`, such as `# @package _global_`."
                )
            if words[0] == "package":
                return words[1]
    return None


def where(error: yaml.YAMLError) -> str:
    """`line 2, column 1: found duplicate key name`."""
    mark: Any = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    said = getattr(error, "problem", None) or first_line(error)
    return f"{place}{said}{', a tab: indent with blanks' if 'token' in said and repr(chr(9)) in said else ''}"
