"""What there is to choose from: groups, options, and every knob with its default and its comment, read from the yaml files.

Nothing here imports a method, so that `bdx list` and `bdx show` answer at once; docstrings are read from the source.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from backdoorbench.config import conf_dir, option
from backdoorbench.errors import ConfigError, did_you_mean, join_words

GROUPS = ("attack", "defense", "dataset", "model", "train", "holdout", "experiment", "scale", "runtime", "tracker")
HEADINGS = ("Idea", "Paper", "Follows", "Departs", "Cost")


@dataclass(frozen=True)
class Knob:
    """One key of an option's yaml: its name (dotted inside a mapping), default as written, and comment."""

    name: str
    default: str
    comment: str


@dataclass(frozen=True)
class Option:
    """One choice of a group.

    command  the first line of its yaml: a command that uses it
    summary  the rest of the yaml's header, in one line
    title    the first line of its module's docstring, where it names a class
    method   Idea, Paper, Follows, Departs and Cost from that docstring, as far as it has them
    overlays data set -> the knobs that differ on it
    """

    group: str
    name: str
    command: str
    summary: str
    knobs: tuple[Knob, ...]
    title: str
    method: dict[str, str]
    overlays: dict[str, tuple[Knob, ...]]


def names(group: str) -> list[str]:
    """The options of a group, sorted."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def describe(group: str, name: str) -> Option:
    """Everything known about an option; ConfigError, with the nearest names, where there is none."""
    if group not in GROUPS:
        raise ConfigError(
            f"group '{group}' is unknown.{did_you_mean(group, GROUPS)} The groups are {join_words(list(GROUPS))}."
        )
    if name not in names(group):
        raise ConfigError(unknown_option(group, name, names(group)))
    text = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")
    header = [line.lstrip("# ").rstrip() for line in _leading_comments(text)]
    command = next((line for line in header if line.startswith("bdx ")), "")
    summary = " ".join(line for line in header if line and not line.startswith(("bdx ", "@package")))
    title, method = _docstring(option(group, name).get("_target_") if group != "experiment" else None)
    return Option(group, name, command, summary, tuple(_knobs(text)), title, method, _overlays(group, name))


def unknown_option(group: str, name: str, options: list[str]) -> str:
    """The message for an option that does not exist."""
    return (
        f"{group} '{name}' is unknown.{did_you_mean(name, options)} All of them: {', '.join(options)}; "
        f"bdx list {group} describes them."
    )


def _overlays(group: str, name: str) -> dict[str, tuple[Knob, ...]]:
    """What `<group>_on/<name>_<data set>.yaml` files change, by data set."""
    folder = conf_dir() / f"{group}_on"
    files = {dataset: folder / f"{name}_{dataset}.yaml" for dataset in names("dataset")}
    return {d: tuple(_knobs(file.read_text(encoding="utf-8"))) for d, file in files.items() if file.is_file()}


def _leading_comments(text: str) -> list[str]:
    lines = text.splitlines()
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:count]


def _knobs(text: str) -> list[Knob]:
    """The keys of a yaml file of ours, with defaults and comments: one key a line, mappings indented by two."""
    found: list[Knob] = []
    parents: list[str] = []
    skipping = False
    for line in text.splitlines():
        match = re.match(r"^( *)([\w]+):(?: +(.*))?$", line)
        if line.startswith("defaults:"):
            skipping = True
        elif line and not line.startswith((" ", "#")):
            skipping = False
        if not match or skipping:
            continue
        indent, name, rest = len(match[1]) // 2, match[2], match[3] or ""
        value, comment = _split_comment(rest)
        parents = parents[:indent]
        if name in ("_target_", "version", "name") and not parents:
            continue
        if not value:
            parents.append(name)
        else:
            found.append(Knob(".".join([*parents, name]), value, comment))
    return found


def _split_comment(rest: str) -> tuple[str, str]:
    value, mark, comment = rest.partition(" #") if not rest.startswith("#") else ("", "#", rest[1:])
    return value.strip(), comment.strip() if mark else ""


def _docstring(target: object) -> tuple[str, dict[str, str]]:
    """Title and headed paragraphs of the module that a `_target_` names, without importing it."""
    if not isinstance(target, str) or not target.startswith("backdoorbench."):
        return "", {}
    parts = target.split(".")[1:-1]
    file = Path(__file__).resolve().parent.joinpath(*parts).with_suffix(".py")
    if not file.is_file():
        return "", {}
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    sections: dict[str, str] = {}
    current = ""
    for line in text.splitlines()[1:]:
        head, _, rest = line.partition(" ")
        if head in HEADINGS:
            current = head
            sections[current] = rest.strip()
        elif current and line.startswith(" "):
            piece = line.strip()
            joint = "\n" if re.match(r"\d+\. ", piece) else " "
            sections[current] += joint + piece
        else:
            current = ""
    return text.splitlines()[0] if text else "", sections
