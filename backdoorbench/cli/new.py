"""bdx new KIND NAME --to DIR"""

import keyword
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from backdoorbench.cli.arguments import Parser
from backdoorbench.config import catalog, plugins
from backdoorbench.errors import ConfigError, StorageError, shown
from backdoorbench.storage import store

KINDS = {
    "defense": "defense",
    "attack": "attack",
    "detector": "detector",
    "network": "model",
    "dataset": "dataset",
}  # -> group
NUMPY = "import numpy as np\n"


def carry_out(words: Sequence[str]) -> int:
    """Writes a method that works, with its yaml and its test, into a folder outside of bdx. Exit code."""
    parser = Parser(
        "new",
        "A method of your own, or a network or data set, in a folder of yours: module, yaml and test, which work as they are.",
    )
    parser.add_argument("kind", choices=KINDS, help="what it is")
    parser.add_argument("name", metavar="NAME", help="as it is chosen: KIND=NAME; small letters, digits and _")
    parser.add_argument(
        "--to", metavar="DIR", required=True, help="a new folder, or one that bdx new has written to before"
    )
    chosen = parser.parse_args(words)
    group, place = KINDS[chosen.kind], Path(chosen.to).expanduser()
    with plugins.using([str(place)] if _is_plugin(place) else []):
        check_name(chosen.name, group, chosen.config_dirs)
        written = write(chosen.kind, chosen.name, place)
    for file in written:
        print(f"wrote {place / file}")
    print(
        f"next: pytest {place}; bdx show {group}={chosen.name} --plugin {place}; pip install -e {place} makes --plugin needless"
    )
    return 0


def check_name(name: str, group: str, folders: Sequence[str]) -> None:
    """Raises ConfigError where no module and no option can be called so."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name) or keyword.iskeyword(name) or name == plugins.CONF:
        raise ConfigError(
            f"NAME is {shown(name)}; expected small letters, digits and _, a letter first, no word of Python's: it names a "
            f"module and a yaml file. Choose another."
        )
    if name in catalog.names(group, folders):
        raise ConfigError(f"{group}={name} is there already; bdx list {group} shows what is. Choose another name.")


def write(kind: str, name: str, place: Path) -> list[str]:
    """Writes what `bdx new` promises into the folder `place`; the paths of the files in it."""
    package = _package(place)
    made = {
        f"{package}/{name}.py": _text(kind, "method.py"),
        f"{package}/{plugins.CONF}/{KINDS[kind]}/{name}.yaml": _text(kind, "option.yaml"),
        f"tests/test_{name}.py": _test(kind),
    }
    if there := [file for file in made if (place / file).exists()]:
        raise StorageError(
            f"'{place / there[0]}' is there already; nothing was written. Choose another NAME, or remove it."
        )
    project = {"pyproject.toml": "pyproject.toml", "README.md": "README.md", f"{package}/__init__.py": "init.py"}
    made = {file: _text("project", source) for file, source in project.items() if not (place / file).exists()} | made
    words = {"PACKAGE": package, "NAME": name, "GROUP": KINDS[kind], "CLASS": _class_name(name)}
    for file, text in made.items():
        with store.storage_errors(place):
            (place / file).parent.mkdir(parents=True, exist_ok=True)
        store.write_text(place / file, _filled(text, words))
    usage = f"    bdx show {KINDS[kind]}={name} --plugin .".ljust(45) + f"# the {kind}; {package}/{name}.py\n"
    readme = place / "README.md"
    with store.storage_errors(place), readme.open("ab") as opened:  # whatever else is in it, and however encoded
        opened.write(usage.encode())
    return list(made)


def _is_plugin(place: Path) -> bool:
    return (place / "pyproject.toml").is_file()


def _package(place: Path) -> str:
    """The package that methods in this folder go into: the one that is there, else one that is called after the folder."""
    if _is_plugin(place):
        found = [package for package in plugins.at(str(place)).packages if (place / package / plugins.CONF).is_dir()]
        if len(found) != 1:
            raise ConfigError(
                f"'{place}' holds a pyproject.toml and {len(found)} packages with {plugins.CONF}/ beside it; expected one, as "
                f"bdx new writes it. Name a new folder."
            )
        return found[0]
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise StorageError(f"'{place}' is not empty; expected a new folder, or one of bdx new's. Name another.")
    name = re.sub(r"\W", "_", place.absolute().name.lower())
    if not name.isidentifier() or keyword.iskeyword(name) or name in plugins.NO_METHODS or find_spec(name) is not None:
        raise ConfigError(
            f"'{place}' would make a package called '{name}', which is no name for one or that of another package that is "
            f"installed. Call the folder otherwise."
        )
    return name


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _text(folder: str, name: str) -> str:
    return (files("backdoorbench.cli") / "skeletons" / folder / f"{name}.txt").read_text(encoding="utf-8")


def _test(kind: str) -> str:
    """The test of any method, and what one of this kind is asked."""
    own = _text(kind, "test.py")
    shared = _text("project", "test.py")
    return (shared.replace("import pytest\n", f"{NUMPY}import pytest\n") if "np." in own else shared) + own


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda match: words[match[1]], text)
