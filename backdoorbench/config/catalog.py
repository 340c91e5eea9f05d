"""What there is to choose from: groups, options, and every knob with its default and its comment, read from the yaml files.

Nothing here imports a method, so that `bdx list` and `bdx show` answer at once; docstrings are read from the source.
"""

import ast
import functools
import os
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoorbench.config import plugins
from backdoorbench.config.compose import choices, conf_dir, places
from backdoorbench.config.groups import NAMES
from backdoorbench.config.walk import files_below
from backdoorbench.errors import ConfigError, did_you_mean, first_line, join_words, shown

HEADINGS = ("Idea", "Paper", "Follows", "Departs", "Cost")
REFINED = {"on": "dataset", "in": "experiment", "at": "scale"}  # folder of overlays -> the group whose option it is for
TARGET = re.compile(r"^_target_: ([\w.]+)", flags=re.MULTILINE)
VERSION = re.compile(r"^version: (\d+)", flags=re.MULTILINE)
NOT_KNOBS = ("_target_", "version", "name")


@dataclass(frozen=True)
class Knob:
    """One key of an option's yaml: its name (dotted inside a mapping), default as a run has it, and comment."""

    name: str
    default: str
    comment: str


@dataclass(frozen=True)
class Overlay:
    """What differs from an option's own values where another option is chosen: `dataset=gtsrb`, the file that says so."""

    where: str
    file: str
    knobs: tuple[Knob, ...]


@dataclass(frozen=True)
class Option:
    """One choice of a group.

    command  the first line of its yaml: a command that uses it
    summary  the rest of the yaml's header, in one line
    title    the first line of its module's docstring, where it names a class
    module   that module below the package, such as `defenses/fst`; empty where it names none
    method   Idea, Paper, Follows, Departs and Cost from that docstring, as far as it has them
    chooses  options of other groups that it brings along: `model=resnet18`
    knobs    what can be set: settings of this option; of one that sets others' (an experiment, a scale), their full names
    sweeps   setting -> values that it sweeps
    plugin   that brings it, by its name; empty of ours and of a folder's
    """

    group: str
    name: str
    command: str
    summary: str
    knobs: tuple[Knob, ...]
    title: str
    module: str
    method: dict[str, str]
    chooses: tuple[str, ...]
    sweeps: dict[str, str]
    overlays: tuple[Overlay, ...]
    plugin: str = ""

    def full(self, knob: Knob) -> str:
        """The knob's name as it is typed."""
        return knob.name if self.is_global else f"{self.group}.{knob.name}"

    @property
    def is_global(self) -> bool:
        """Whether its keys are other groups' settings."""
        return self.group in ("experiment", "scale")


def refuse_hidden() -> None:
    """Raises ConfigError where a known plugin has a yaml file of a name that ours, or another plugin, has: it would never be
    read, and whoever chose it would get something else."""
    for plugin in plugins.known():
        for conf in plugin.confs:
            for file in files_below(conf, ".yaml"):
                name = file.relative_to(conf)
                first = next(place / name for place in places() if (place / name).is_file())
                if first.resolve() != file.resolve():
                    whose = f"the plugin {other}" if (other := plugins.owner(first)) else "bdx itself"
                    raise ConfigError(
                        f"the plugin {plugin.name} has {name}, and so has {whose}, whose file is read instead. Rename that of "
                        f"{plugin.name}, and its `name:`, or leave that plugin out."
                    )


def refuse_unread(folder: Path) -> None:
    """Raises ConfigError where a folder of the user's has a yaml file of a name that ours, or a plugin's, has, and other content:
    it would never be read, and whoever chose it would get something else. A copy of ours is none the worse."""
    for file in yaml_files(folder):
        name = file.relative_to(folder)
        ours = next((place / name for place in places() if (place / name).is_file()), None)
        if ours is not None and ours.read_bytes() != file.read_bytes():
            whose = f"the plugin {other}" if (other := plugins.owner(ours)) else "bdx itself"
            raise ConfigError(
                f"{file} has the name of a file of {whose}, which is read instead of yours. Rename yours, and its `name:`, or "
                f"move it away."
            )


def yaml_files(folder: Path) -> list[Path]:
    """The yaml files of a folder that is laid out as conf/ is: in the folders of groups, and beside them. Whatever else the
    folder holds, such as the outputs of a checkout, is not walked."""
    inside = [file for name in (*NAMES, *REFINED, "hydra") for file in files_below(folder / name, ".yaml")]
    return sorted([*folder.glob("*.yaml"), *inside])


def refuse_borrowed_name(group: str, node: Mapping[str, Any]) -> None:
    """Raises ConfigError where an option of another class, ours or a known plugin's, is called as the one that `node` holds calls
    itself: records, tables and keys would take the one for the other. What follows another setting is that setting's name."""
    name = str(node.get("name"))
    file = find(group, name)
    said = re.search(TARGET, read_text(file)) if file is not None else None
    if said is None or said[1] == node["_target_"] or name in (value for key, value in node.items() if key != "name"):
        return
    raise ConfigError(
        f"{group}.name is '{name}', which {group}={name} is called, and the class here is another: {node['_target_']}. Records "
        f"and tables would take the one for the other. Choose {group}={name}, or give another name: {group}.name=NAME, or "
        f"`name:` in your yaml file."
    )


def version_of(group: str, node: Mapping[str, Any]) -> int | None:
    """The version of the class that `node` names, as our files say it; None where it is not ours."""
    return _versions(group).get(str(node["_target_"]))


def refuse_other_version(group: str, node: Mapping[str, Any]) -> None:
    """Raises ConfigError where `node` says another version of a class of ours than our files do: keys, records and tables would
    take what the code here does for what another code did."""
    version = version_of(group, node)
    claimed = node.get("version", version)
    if version is None or claimed == version:
        return
    raise ConfigError(
        f"{group}.version is {shown(claimed)}, and {node.get('name')} is of version {version} here. A version names the code "
        f"that runs, so no setting changes it. Leave {group}.version out, or `version:` in your yaml file."
    )


@functools.cache
def _versions(group: str) -> dict[str, int]:
    """Class -> version, of the classes that our own files of a group name."""
    texts = [file.read_text(encoding="utf-8") for file in (conf_dir() / group).glob("*.yaml")]
    said = [(re.search(TARGET, text), re.search(VERSION, text)) for text in texts]
    return {kind[1]: int(version[1]) for kind, version in said if kind and version}


def names(group: str, folders: Sequence[str] = ()) -> list[str]:
    """The options of a group, sorted.

    folders  of the user's own yaml files"""
    return sorted({file.stem for place in places(folders) for file in (place / group).glob("*.yaml") if file.is_file()})


def find(group: str, name: str, folders: Sequence[str] = ()) -> Path | None:
    """The yaml file of an option; the first of several, as Hydra has it."""
    if name not in names(group, folders):
        return None
    files = (place / group / f"{name}.yaml" for place in places(folders))
    return next((file for file in files if file.is_file()), None)


def describe(group: str, name: str, folders: Sequence[str] = ()) -> Option:
    """Everything known about an option; ConfigError, with the nearest names, where there is none."""
    if group not in NAMES:
        raise ConfigError(
            f"group '{group}' is unknown.{did_you_mean(group, NAMES)} The groups are {join_words(list(NAMES))}."
        )
    file = find(group, name, folders)
    if file is None:
        raise ConfigError(unknown_option(group, name, names(group, folders)))
    text = read_text(file)
    header = [line.lstrip("# ").rstrip() for line in _leading_comments(text)]
    command = next((line for line in header if line.startswith("bdx ")), "")
    summary = " ".join(line for line in header if line and not line.startswith(("bdx ", "@package")))
    title, module, method = _docstring(text)
    knobs = _knobs(text)
    prefix = "hydra.sweeper.params."
    sweeps = {knob.name.removeprefix(prefix): knob.default for knob in knobs if knob.name.startswith(prefix)}
    kept = tuple(knob for knob in knobs if not knob.name.startswith("hydra."))
    overlays = tuple(_overlays(group, name, folders))
    chosen = tuple(_choices(text))
    return Option(
        group, name, command, summary, kept, title, module, method, chosen, sweeps, overlays, plugins.owner(file)
    )


def read_text(file: Path) -> str:
    """The text of a yaml file; ConfigError where it is none."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is no UTF-8"
    except OSError as error:
        reason = error.strerror or first_line(error)
    raise ConfigError(
        f"{file} cannot be read as a yaml file ({reason}). Save it as UTF-8 text that you may read, or remove it."
    )


def unknown_option(group: str, name: str, options: list[str]) -> str:
    """The message for an option that does not exist; whoever has named no plugin may have forgotten to."""
    own = "" if plugins.known() else f" One of your own: add {plugins.FLAG} DIR."
    return (
        f"{group} '{name}' is unknown.{did_you_mean(name, options)} All of them: {', '.join(options)}; "
        f"bdx list {group} describes them.{own}"
    )


def _overlays(group: str, name: str, folders: Sequence[str]) -> list[Overlay]:
    """The files `on|in|at/<group>/<name>/<option>.yaml`, by folder and name."""
    found = []
    for place in places(folders):
        for kind, other in REFINED.items():
            for file in sorted((place / kind / group / name).glob("*.yaml")):
                knobs = tuple(knob for knob in _knobs(read_text(file)))
                found.append(Overlay(f"{other}={file.stem}", file.relative_to(place).as_posix(), knobs))
    return found


def _leading_comments(text: str) -> list[str]:
    lines = text.splitlines()
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:count]


def _choices(text: str) -> list[str]:
    """`model=resnet18` of each `override /model@_global_.model: resnet18` in the defaults list."""
    return [f"{group}={option}" for group, option in choices(text)]


def _knobs(text: str) -> list[Knob]:
    """The keys of a yaml file of ours, with defaults and comments: one key a line, mappings indented by two."""
    found: list[Knob] = []
    parents: list[str] = []
    skipping = False
    for line in text.splitlines():
        match = re.match(r"^( *)([\w.]+):(?: +(.*))?$", line)
        if line.startswith("defaults:"):
            skipping = True
        elif line and not line.startswith((" ", "#")):
            skipping = False
        if not match or skipping:
            continue
        indent, name, rest = len(match[1]) // 2, match[2], match[3] or ""
        value, comment = _split_comment(rest)
        parents = parents[:indent]
        if name in NOT_KNOBS and not parents:
            continue
        if not value:
            parents.append(name)
        else:
            found.append(Knob(".".join([*parents, name]), plainly(value), comment))
    return found


def plainly(value: str) -> str:
    """A default as a person reads it: of `${either:${dataset.tuning.epochs},10}` the 10 that holds unless the data set says
    otherwise."""
    if match := re.fullmatch(r"\$\{either:\$\{([\w.]+)\},([^}]+)\}", value):
        return f"{match[2]}, or {match[1]}"
    match = re.fullmatch(r"\$\{([a-z][\w.]+)\}", value)
    return match[1] if match else value


def _split_comment(rest: str) -> tuple[str, str]:
    value, mark, comment = rest.partition(" #") if not rest.startswith("#") else ("", "#", rest[1:])
    return value.strip(), comment.strip() if mark else ""


@functools.cache
def facts(group: str, fact: str) -> list[Any]:
    """What the class of each option of a group declares, as far as it does."""
    texts = (read_text(file) for name in names(group) if (file := find(group, name)) is not None)
    targets = [match[1] for text in texts if (match := re.search(TARGET, text))]
    return [said for target in targets if (said := declared(target, fact)) is not None]


@functools.cache
def declared(target: str, fact: str) -> Any:
    """What the class that a `_target_` names says of itself in a line such as `plain: ClassVar[bool] = True`. It is not imported.
    None where it says nothing, or is none of ours."""
    module, _, name = target.rpartition(".")
    file = _source(module)
    if file is None:
        return None
    lines = [
        line
        for kind in _parsed(_code(file)).body
        if isinstance(kind, ast.ClassDef) and kind.name == name
        for line in kind.body
    ]
    for line in lines:
        if (
            isinstance(line, ast.AnnAssign)
            and ast.unparse(line.target) == fact
            and isinstance(line.value, ast.Constant)
        ):
            return line.value.value
    return None


def _code(file: Path) -> str:
    """The text of a module, in the encoding that it declares; nothing where it cannot be read, which importing it tells."""
    try:
        with tokenize.open(file) as opened:
            return opened.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ""


def _parsed(code: str) -> ast.Module:
    """What Python makes of it; an empty module where that is nothing."""
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _source(module: str) -> Path | None:
    """The file of a module of this package or of a known plugin; None where there is none."""
    package, *inner = module.split(".")
    if not all(part.isidentifier() for part in inner):
        return None
    if package != plugins.OWN_PACKAGE:
        found = plugins.files(package) if package in {name.partition(".")[0] for name in plugins.trusted()} else {}
        place = "/".join([package, *inner])
        return found.get(f"{place}.py") or found.get(f"{place}/__init__.py")
    file = Path(__file__).resolve().parents[1].joinpath(*inner).with_suffix(".py")
    return file if inner and os.path.isfile(file) else None


def _docstring(text: str) -> tuple[str, str, dict[str, str]]:
    """Title, name and headed paragraphs of the module that a yaml's `_target_` names, without importing it."""
    match = re.search(r"^_target_: ([\w.]+)\.\w+", text, flags=re.MULTILINE)
    file = _source(match[1]) if match else None
    if match is None or file is None:
        return "", "", {}
    module = match[1].partition(".")[2].replace(".", "/")
    source = _code(file)
    opening = source[: source.find('"""', 3) + 3]  # the rest of the module mostly need not be parsed
    said = ast.get_docstring(_parsed(opening)) or ast.get_docstring(_parsed(source)) or ""
    sections: dict[str, str] = {}
    current = ""
    for line in said.splitlines()[1:]:
        head, _, rest = line.partition(" ")
        if head in HEADINGS:
            current = head
            sections[current] = rest.strip()
        elif current and line.startswith(" "):
            piece = line.strip()
            next_item = f"{sections[current].count(chr(10)) + 2}. "  # "256." may open a line too
            joint = "\n" if piece.startswith(next_item) else " "
            sections[current] += joint + piece
        else:
            current = ""
    return said.splitlines()[0] if said else "", module, sections
