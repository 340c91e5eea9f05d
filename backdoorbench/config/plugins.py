"""Packages of others whose classes a `_target_` may name: which are known, where their source lies, and a digest of it.

A result depends on a plugin's code as it does on a setting, so the source of a class's module, and what that imports from its own
package, is part of its key. Ours is not: `version` is.

A plugin is known by an entry point of an installed distribution, or by `--plugin DIR`: its yaml files are options like ours, and
its classes are trusted, since whoever installs a package, or names its folder, lets its code run. `plugins=[PACKAGE]` trusts one
for a run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backdoorbench.config.reached import SUFFIXES, is_module, module_name, reached
from backdoorbench.config.walk import files_below
from backdoorbench.errors import ConfigError

OWN_PACKAGE = "backdoorbench"
FLAG = "--plugin"
VARIABLE = "BDX_PLUGINS"  # folders of --plugin, absolute, parted as in PATH: processes that are started know them too
ENTRY_POINTS = "bdx.plugins"  # the group by which an installed package announces itself: NAME = PACKAGE
CONF = "conf"  # a package's folder of yaml files
REMEDY = (
    f'{FLAG} DIR, the folder that holds it (in Python, backdoorbench.plugin("DIR"))'  # as the end of a message says it
)
NO_METHODS = ("tests", "test", "conftest", "setup", "docs")  # beside a package in its project, no part of a plugin


@dataclass(frozen=True)
class Plugin:
    """Code of somebody else's that brings options.

    name      as lists call it
    place     its folder, as `--plugin` takes it; empty of an installed one
    path      what has to be on Python's path; None where its packages are found anyway
    packages  and modules, by their names; they are trusted
    confs     folders of yaml files, laid out as conf/ is
    """

    name: str
    place: str
    path: Path | None
    packages: tuple[str, ...]
    confs: tuple[Path, ...]


def known() -> tuple[Plugin, ...]:
    """The plugins that need no word in a configuration: those of `--plugin`, in this process or the one that started it, then
    those that are installed."""
    named = os.environ.get(VARIABLE, "")
    found = tuple(at(folder, VARIABLE) for folder in named.split(os.pathsep)) if named else ()
    return (*found, *installed())


def conf_dirs() -> list[Path]:
    """The folders of their yaml files."""
    return list(dict.fromkeys(folder for plugin in known() for folder in plugin.confs))


def trusted() -> list[str]:
    """The packages and modules of theirs."""
    return list(dict.fromkeys(package for plugin in known() for package in plugin.packages))


def owner(file: Path) -> str:
    """The name of the plugin that a yaml file is of; empty where it is of none."""
    return next((plugin.name for plugin in known() if any(file.is_relative_to(conf) for conf in plugin.confs)), "")


def flags() -> list[str]:
    """`--plugin DIR` of each plugin that was named so: part of any command that repeats a run."""
    return [word for plugin in known() if plugin.place for word in (FLAG, plugin.place)]


def use(folders: Sequence[str]) -> None:
    """Makes the plugins in these folders known from now on, here and to processes that are started from here."""
    before = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*before, *(at(folder).place for folder in folders)]))


@contextmanager
def using(folders: Sequence[str]) -> Iterator[None]:
    """The same for as long as it lasts."""
    before, path = os.environ.get(VARIABLE), list(sys.path)
    try:
        if folders:
            use(folders)
        yield
    finally:
        if folders:
            sys.path[:] = path
            os.environ.pop(VARIABLE, None)
            os.environ.update({VARIABLE: before} if before is not None else {})


def at(folder: str, named_by: str = FLAG) -> Plugin:
    """The plugin in a folder: a package with its conf/ inside, or a project that holds such packages, in src/ or beside its own
    conf/; or code without options, which settings name. What its packages need is on Python's path afterwards. ConfigError where
    there is none.

    named_by  what names the folder, as a message says it"""
    place = Path(folder).expanduser().absolute()
    if not place.is_dir() or os.pathsep in str(place):
        expected = f"a path without '{os.pathsep}'" if place.is_dir() else "the folder of a plugin"
        raise ConfigError(
            f"{named_by} is '{folder}', which is no {'good name' if place.is_dir() else 'folder'}; expected {expected}. Name "
            f"another."
        )
    found = look(place)
    if not (found.confs or found.packages):
        raise ConfigError(
            f"{named_by} is '{folder}', in which neither code nor a yaml file of an option lies; expected a package with "
            f"{CONF}/GROUP/NAME.yaml inside, or a project that holds one, such as bdx new defense NAME --to DIR writes."
        )
    if found.path is not None and str(found.path) not in sys.path:
        sys.path.append(str(found.path))  # behind what is installed, none of which it shall hide
        importlib.invalidate_caches()
        files.cache_clear()
    for package in found.packages:
        if found.path is not None and not any(
            file.resolve().is_relative_to(found.path.resolve()) for file in files(package).values()
        ):
            raise ConfigError(
                f"{named_by} is '{folder}', whose package '{package}' has the name of another one that Python finds first. "
                f"Rename it."
            )
    return found


@functools.cache
def look(place: Path) -> Plugin:
    """What a folder holds, as a plugin; Python's path stays as it is."""
    if (place / "__init__.py").is_file():
        path, packages = place.parent, [place.name]
    else:
        path = place / "src" if (place / "src").is_dir() else place
        packages = [
            entry.stem for entry in sorted(path.iterdir()) if (entry / "__init__.py").is_file() or entry.suffix == ".py"
        ]
        packages = [
            name for name in packages if name.isidentifier() and name not in NO_METHODS and not name.startswith("test_")
        ]
    confs = [place / CONF, *(path / package / CONF for package in packages)]
    confs = [conf for conf in dict.fromkeys(confs) if files_below(conf, ".yaml")]
    return Plugin(place.name, str(place), path if packages else None, tuple(packages), tuple(confs))


@functools.cache
def installed() -> tuple[Plugin, ...]:
    """The plugins that announce themselves by an entry point. One whose package is gone is none."""
    found = []
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            spec = find_spec(point.module)
        except (ImportError, ValueError):
            spec = None
        if spec is not None:
            folders = tuple(Path(root) / CONF for root in spec.submodule_search_locations or ())
            confs = tuple(folder for folder in folders if folder.is_dir())
            found.append(Plugin(point.name, "", None, (point.module,), confs))
    return tuple(found)


def with_used(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that lists, among its `plugins`, those known ones that a `_target_` or a function of it comes from: keys
    hold their source, and records say so."""
    listed, packages = resolved.get("plugins"), trusted()
    if not packages or not isinstance(listed, list):
        return {**resolved}
    code = [*_code(resolved)]
    used = [package for package in packages if any(re.match(rf"{re.escape(package)}[.:]", path) for path in code)]
    return {**resolved, "plugins": [*listed, *(package for package in used if package not in listed)]}


def _code(node: Any, name: str = "") -> Iterator[str]:
    """Every dotted path of a class, and every `package.module:function`, in nested settings."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _code(value, str(key))
    elif isinstance(node, str) and (name == "_target_" or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", node)):
        yield node


def of(target: str, plugins: Sequence[str]) -> str:
    """The plugin that a class comes from, by its dotted path; empty where it is one of ours, or of none."""
    inside = [package for package in plugins if target.startswith(f"{package}.")]
    return "" if target.startswith(f"{OWN_PACKAGE}.") else max(inside, key=len, default="")


def check(package: str) -> None:
    """Raises ConfigError where Python finds no package of this name."""
    if not files(package):
        raise ConfigError(
            f"plugins names '{package}', which cannot be imported; expected the name of a package that Python finds. Install it, "
            f"or add {REMEDY}."
        )


def blamed(error: BaseException, packages: Sequence[str]) -> str:
    """`FILE, line N` where the code of these packages raised an error, or cannot be parsed; empty where another's did."""
    theirs = {str(file) for package in packages for file in files(package).values()}
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((str(error.filename), error.lineno or 0))
    return next((f"{file}, line {line}" for file, line in reversed(places) if file in theirs), "")


@functools.cache
def files(package: str) -> dict[str, Path]:
    """The source files of a package or module as they were when somebody first asked."""
    return files_now(package)


def files_now(package: str) -> dict[str, Path]:
    """The source files of a package or module, by their path below the folder that is on Python's path; none where there is no
    such package."""
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
        f"{above}/{file.relative_to(root).as_posix()}": file
        for root in roots
        for file in files_below(root)
        if file.name.endswith(SUFFIXES)
    }


def source(path: str, package: str) -> dict[str, Path]:
    """The files that a class or function of a package depends on, by their path as `files` has it: its module, and what that
    imports from the package or from others of the same plugin.

    path  dotted, of the class or function"""
    beside = next((plugin.packages for plugin in known() if package in plugin.packages), ())
    there = {name: file for each in (package, *beside) for name, file in files_now(each).items()}
    return reached(path.rpartition(".")[0], there, content)


def content(name: str, file: Path) -> bytes:
    """What a plugin's file holds, as far as this process is concerned: a module that it imported stays as it was then, whatever
    becomes of its file; every other file is as it is now. ConfigError where a module was edited, and nothing tells whether it was
    imported before that or after.

    name  as `files` has it"""
    module = sys.modules.get(module_name(name)) if is_module(name) else None
    spec = getattr(module, "__spec__", None)
    before, held = _held.get(file, (None, None))
    if held is not None and spec is not None and before is spec:
        return held
    now = file.read_bytes() if file.is_file() else b""
    if held not in (None, now) and before is None and spec is not None:
        raise ConfigError(
            f"{file} was edited while this process went on, which imported it before or after that; expected the code of a "
            f"plugin to stay as it is, since it is part of a run's key. Start the command again."
        )
    if is_module(name):
        _held[file] = spec, now
    return now


def note_imported(package: str) -> None:
    """Takes note of what the modules of a package hold that have just been imported."""
    for name, file in files_now(package).items():
        if module_name(name) in sys.modules:
            content(name, file)


_held = dict[
    Path, tuple[Any, bytes]
]()  # of plugins' modules: the spec that Python imported it by, if it had, and its text


def digest(path: str, package: str) -> str:
    """SHA-256 over the names and the content of the files that a class or function of a package depends on, hexadecimal."""
    total = hashlib.sha256()
    for name, file in sorted(source(path, package).items()):
        total.update(f"{name}\0{hashlib.sha256(content(name, file)).hexdigest()}\n".encode())
    return total.hexdigest()
