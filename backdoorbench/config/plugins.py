"""Packages of others whose classes a `_target_` may name: where their source lies, and a digest of it.

A result depends on a plugin's code as it does on a setting, so the source is part of its key. Ours is not: `version` is.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from backdoorbench.errors import ConfigError

OWN_PACKAGE = "backdoorbench"


def of(target: str, plugins: Sequence[str]) -> str:
    """The plugin that a class comes from, by its dotted path; empty where it is one of ours, or of none."""
    inside = [package for package in plugins if target.startswith(f"{package}.")]
    return "" if target.startswith(f"{OWN_PACKAGE}.") else max(inside, key=len, default="")


def check(package: str) -> None:
    """Raises ConfigError where Python finds no package of this name."""
    if not files(package):
        raise ConfigError(
            f"plugins names '{package}', which cannot be imported; expected the name of a package that Python finds. Install it, "
            f"or put the folder that holds it on PYTHONPATH."
        )


@functools.cache
def files(package: str) -> dict[str, Path]:
    """The source files of a package or module, by their path below the folder that is on Python's path; none where there is no
    such package. Remembered, since what a process has imported stays as it was."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return {}
    if spec is None:
        return {}
    above = package.replace(".", "/")
    if spec.submodule_search_locations is None:
        return {f"{above}.py": Path(spec.origin)} if spec.origin and spec.has_location else {above: Path()}
    roots = [Path(root) for root in spec.submodule_search_locations]
    return {
        f"{above}/{file.relative_to(root).as_posix()}": file for root in roots for file in sorted(root.rglob("*.py"))
    }


@functools.cache
def digest(package: str) -> str:
    """SHA-256 over the names and the content of its source files, hexadecimal."""
    total = hashlib.sha256()
    for name, file in sorted(files(package).items()):
        content = file.read_bytes() if file.is_file() else b""
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()
