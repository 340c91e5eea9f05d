"""Which files of a package the code of one of its modules consists of: told from the imports, nothing is run.

Static imports are followed, inside functions and behind `TYPE_CHECKING` too, and so are dotted paths in texts. A module that
chooses at run time what it imports, or that cannot be read, may use anything: then it is the whole package. Text that names a
file beside the module names something that it reads.
"""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

SUFFIXES = (*EXTENSION_SUFFIXES, ".py")  # of modules; longer ones first
CALLED = {"__import__", "exec", "eval", "__path__"}  # names that import, or may
ASKED = {  # of importlib, runpy and pkgutil
    "import_module", "module_from_spec", "spec_from_file_location", "exec_module", "load_module", "find_spec", "run_path",
    "run_module", "iter_modules", "walk_packages",
}  # fmt: skip
OF_SYS = {"modules", "path", "meta_path", "path_hooks"}
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+(:[A-Za-z_]\w*)?")
LONGEST_NAME = 255  # characters, of what a file may be called


@dataclass(frozen=True)
class Facts:
    """What the text of a module says of what it uses.

    chooses  whether it may import what stands in none of its import statements
    imports  of each `from` statement its dots, its module and its names; a plain import has its names alone
    texts    all that stand in it
    """

    chooses: bool
    imports: tuple[tuple[int, str, tuple[str, ...]], ...]
    texts: frozenset[str]


def on_disk(name: str, file: Path) -> bytes:
    """The bytes of a file as they are now."""
    return file.read_bytes()


Read = Callable[[str, Path], bytes]  # (path of a module as `files` has it, its file) -> its text


def reached(module: str, files: Mapping[str, Path], read: Read = on_disk) -> dict[str, Path]:
    """Those of `files` that importing the module runs, and the files beside them that their texts name; all of `files` where that
    cannot be told.

    files  modules by their path below the folder that is on Python's path, as `mine/pull.py`"""
    names = {module_name(path): path for path in files}
    found: dict[str, Path] = {}
    waiting, seen = [module], set()
    while waiting:
        for name in _with_parents(waiting.pop()):
            if name in seen or name not in names:
                continue
            seen.add(name)
            path = names[name]
            facts = _read(path, files[path], read)
            if facts is None or facts.chooses:
                return _whole(files, read)
            found[path] = files[path]
            found |= _beside(facts, path, files[path])
            waiting += _imports(facts, name if path.endswith("/__init__.py") else name.rpartition(".")[0], names)
    return found if seen else _whole(files, read)


def _whole(files: Mapping[str, Path], read: Read) -> dict[str, Path]:
    found = dict(files)
    for path, file in files.items():
        if (facts := _read(path, file, read)) is not None:
            found |= _beside(facts, path, file)
    return found


def is_module(path: str) -> bool:
    """Whether a file is one that Python imports."""
    return path.endswith(SUFFIXES)


def module_name(path: str) -> str:
    """`mine.pull` of `mine/pull.py`, `mine` of `mine/__init__.py`."""
    suffix = next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")
    return path.removesuffix(suffix).removesuffix("/__init__").replace("/", ".")


def _with_parents(name: str) -> Iterator[str]:
    """Importing a.b runs a too."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _read(path: str, file: Path, read: Read) -> Facts | None:
    try:
        return _facts(read(path, file))
    except OSError:
        return None


@functools.lru_cache(maxsize=1024)
def _facts(text: bytes) -> Facts | None:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):  # a compiled module is none that can be parsed, either
        return None
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    texts: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.append((0, "", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return Facts(_chooses(tree), tuple(imports), frozenset(texts))


def _chooses(tree: ast.Module) -> bool:
    """Whether the module may import what stands in none of its import statements."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) if name in CALLED | ASKED:
                return True
            case ast.Attribute(value=ast.Name(id="sys"), attr=name) if name in OF_SYS:
                return True
            case ast.Attribute(attr=name) if name in ASKED | {"__path__"}:
                return True
            case ast.ImportFrom(module="sys", names=aliases) if any(alias.name in OF_SYS for alias in aliases):
                return True
            case ast.ImportFrom(names=aliases) if any(alias.name in ASKED for alias in aliases):
                return True
    return False


def _imports(facts: Facts, package: str, names: Mapping[str, str]) -> Iterator[str]:
    """Dotted names that the module imports, or may: each a module, or something in one.

    package  what a relative import starts from; names: of all modules"""
    for level, module, imported in facts.imports:
        parts = package.split(".")
        above = ".".join(parts[: len(parts) - level + 1]) if level else ""
        origin = ".".join(part for part in (above, module) if part)
        yield from (f"{origin}.{name}" if origin else name for name in imported if name != "*")
        if "*" in imported:  # `__all__` may name any module of a package
            yield from (name for name in names if f"{name}.".startswith(f"{origin}."))
    yield from (text.replace(":", ".") for text in facts.texts if DOTTED.fullmatch(text))


def _beside(facts: Facts, path: str, file: Path) -> dict[str, Path]:
    """The files, no modules, that a text of this module names from its own folder or from that of its package."""
    folders = path.split("/")[:-1]
    root = file.parents[len(folders)]
    found = {}
    for text in facts.texts:
        if not (0 < len(text) <= LONGEST_NAME and text.isprintable()):
            continue
        for above in {"/".join(folders), "/".join(folders[:1])}:
            name = os.path.normpath(os.path.join(above, text))
            top = name.split("/")[0]
            is_inside = top == folders[0] if folders else top not in ("", "..")
            if is_inside and not is_module(name) and (root / name).is_file():
                found[name] = root / name
    return found
