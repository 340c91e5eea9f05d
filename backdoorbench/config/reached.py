"""Which files of a package the code of one of its modules consists of: told from the imports, nothing is run.

Static imports are followed, inside functions and behind `TYPE_CHECKING` too, and so are dotted paths in texts. A module that
chooses at run time what it imports, or that cannot be read, may use anything: then it is the whole package. Text that names a
file beside the module names something that it reads.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping
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


def reached(module: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """Those of `files` that importing the module runs, and the files beside them that their texts name; all of `files` where that
    cannot be told.

    files  modules by their path below the folder that is on Python's path, as `mine/pull.py`"""
    names = {_module(path): path for path in files}
    found: dict[str, Path] = {}
    waiting, seen = [module], set()
    while waiting:
        for name in _with_parents(waiting.pop()):
            if name in seen or name not in names:
                continue
            seen.add(name)
            path = names[name]
            tree = _parsed(files[path])
            if tree is None or _chooses(tree):
                return _whole(files)
            found[path] = files[path]
            found |= _beside(tree, path, files[path])
            waiting += _imports(tree, name if path.endswith("/__init__.py") else name.rpartition(".")[0], names)
    return found if seen else _whole(files)


def _whole(files: Mapping[str, Path]) -> dict[str, Path]:
    found = dict(files)
    for path, file in files.items():
        if (tree := _parsed(file)) is not None:
            found |= _beside(tree, path, file)
    return found


def is_module(path: str) -> bool:
    """Whether a file is one that Python imports."""
    return path.endswith(SUFFIXES)


def _module(path: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")
    return path.removesuffix(suffix).removesuffix("/__init__").replace("/", ".")


def _with_parents(name: str) -> Iterator[str]:
    """Importing a.b runs a too."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _parsed(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):  # a compiled module is none that can be parsed, either
        return None


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


def _imports(tree: ast.Module, package: str, names: Mapping[str, str]) -> Iterator[str]:
    """Dotted names that the module imports, or may: each a module, or something in one.

    package  what a relative import starts from; names: of all modules"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (above, node.module or "") if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names if alias.name != "*")
            if any(alias.name == "*" for alias in node.names):  # `__all__` may name any module of a package
                yield from (name for name in names if f"{name}.".startswith(f"{origin}."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
            yield node.value.replace(":", ".")


def _beside(tree: ast.Module, path: str, file: Path) -> dict[str, Path]:
    """The files, no modules, that a text of this module names from its own folder or from that of its package."""
    folders = path.split("/")[:-1]
    root = file.parents[len(folders)]
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = {}
    for text in texts:
        if not (0 < len(text) <= LONGEST_NAME and text.isprintable()):
            continue
        for above in {"/".join(folders), "/".join(folders[:1])}:
            name = os.path.normpath(os.path.join(above, text))
            top = name.split("/")[0]
            is_inside = top == folders[0] if folders else top not in ("", "..")
            if is_inside and not is_module(name) and (root / name).is_file():
                found[name] = root / name
    return found
