"""What print calls an option: `BadNets` for badnets, `FST` for fst. Settings and lists keep the words that are typed."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.config import catalog
from backdoorbench.config.groups import STAGES
from backdoorbench.errors import ConfigError, did_you_mean, join_words
from backdoorbench.reporting.grids import Grid, Item

if TYPE_CHECKING:
    from backdoorbench.config.catalog import Option
    from backdoorbench.storage.record import Run

METHODS = tuple(stage.group for stage in STAGES)
NAMED = (*METHODS, "dataset", "model")  # groups whose options have a name in print
SILENT = "none"  # which says what it is


@dataclass(frozen=True)
class Names:
    """Option -> what print calls it.

    Only whole words are replaced: `ft` in `ft, lr 0.1`, not in `ft_sam`, `defense=ft,fst` or `runs/ft`."""

    known: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, text: str) -> str:
        if not self.known:
            return text
        options = "|".join(map(re.escape, sorted(self.known, key=len, reverse=True)))
        return re.sub(rf"(?<![\w=./,-])({options})(?![\w=/-]|[.,]\w)", lambda found: self.known[found[1]], text)

    def grid(self, grid: Grid) -> Grid:
        """The table with its title, heads and names in print; figures stay."""
        columns = tuple(
            dataclasses.replace(column, name=self(column.name), flat=self(column.flat), group=self(column.group))
            for column in grid.columns
        )
        lines = [[self._item(item) for item in line] for line in grid.lines]
        return dataclasses.replace(grid, title=self(grid.title), columns=columns, lines=lines)

    def _item(self, item: Item) -> Item:
        return dataclasses.replace(item, text=self(item.text))


TYPED = Names()  # what is typed


def names(found: Mapping[Path, Run], own: Mapping[str, str] | None = None) -> Names:
    """Of the options that these runs, by their folders, chose.

    own  of the user, which come first"""
    chosen = {
        (group, run.config[group]["name"]): (folder, str(run.config[group].get("_target_", "")))
        for folder, run in found.items()
        for group in NAMED
        if group in run.config
    }
    ours = {
        name: called(group, name) if catalog.find(group, name) else _of_plugin(name, *where)
        for (group, name), where in sorted(chosen.items())
    }
    known = ours | dict(own or {})
    return Names({name: said for name, said in known.items() if said != name and name != SILENT})


def chosen(found: Mapping[Path, Run], asked: str | None, is_print: bool) -> Names:
    """The names of what runs, by their folders, chose, as `--names` asks: of a file, ours beside them; none for `ids`; where
    nothing is asked, ours in print."""
    if asked is None and not is_print or asked == "ids":
        return TYPED
    return names(found, read_names(Path(asked)) if asked is not None else None)


def unknown(runs: Iterable[Run], asked: str | None) -> list[str]:
    """A sentence on the names of `--names` that no option has, neither of these runs nor of ours."""
    if asked is None or asked == "ids":
        return []
    options = {run.config[group]["name"] for run in runs for group in NAMED if group in run.config}
    known = sorted(options.union(*(catalog.names(group) for group in NAMED)))
    own = read_names(Path(asked))
    strange = [f"{name}.{did_you_mean(name, known)}" for name in own if name not in known]
    return [f"{asked}: {len(strange)} of {len(own)} names stand for no option: {' '.join(strange)}"] if strange else []


def confused(runs: Iterable[Run], named: Names) -> list[str]:
    """A sentence on options of one group that these runs chose and that have one name, so that tables tell them apart no more."""
    alike: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for group in (group for group in NAMED if group in run.config):
            option = run.config[group]["name"]
            alike.setdefault((group, named.known.get(option, option)), set()).add(option)
    said = [f"{join_words(sorted(options))} ({name})" for (_, name), options in alike.items() if len(options) > 1]
    return [f"tables do not tell apart what has one name: {'; '.join(said)}"] if said else []


def called(group: str, name: str) -> str:
    """What the docstring of an option's module calls it, or the head of its yaml; its own name where neither does."""
    if catalog.find(group, name) is None:
        return name  # of a plugin
    option = catalog.describe(group, name)
    return _said(option) or " ".join(_part(group, part) for part in name.split("_"))


def _said(option: Option) -> str:
    """`FE-tuning` of the title `FST: ... LP, FE-tuning, FT-init: its parts.`; empty where title and summary do not say it."""
    head, colon, _ = option.title.partition(":")
    phrases = [part.strip() for text in (head, option.summary) for part in re.split(r"[,(:]", text)]
    is_namesake = option.group in METHODS and colon and option.module.endswith(f"/{option.name}") and "," not in head
    words = [] if is_namesake else re.findall(r"[A-Za-z0-9][\w-]*", option.title)
    found = (text for text in (*phrases, *words) if _plain(text) == _plain(option.name))
    return next(found, head if is_namesake else "")


def _of_plugin(name: str, folder: Path, target: str) -> str:
    """What the docstring of a plugin's module calls its option, by the source that the run kept; the option's name else."""
    module = target.rpartition(".")[0]
    file = (folder / "plugins").joinpath(*module.split(".")).with_suffix(".py")
    try:
        title = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    except (OSError, ValueError, SyntaxError):
        return name
    head, colon, _ = title.partition("\n")[0].partition(":")
    is_namesake = colon and "," not in head and _plain(name) in (_plain(file.stem), _plain(head))
    return head.strip() if is_namesake else name


def _part(group: str, part: str) -> str:
    """`BadNets` of the first part of badnets_bypass."""
    if catalog.find(group, part) is None:
        return part
    return _said(catalog.describe(group, part)) or part


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text).lower()


def read_names(file: Path) -> dict[str, str]:
    """A user's own names: a yaml file of OPTION: NAME; ConfigError where it is something else."""
    import yaml

    try:
        found: Any = yaml.safe_load(catalog.read_text(file))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{file} is no yaml file ({' '.join(str(error).split())}); expected lines such as `fst: FST`. Mend it."
        ) from None
    if not isinstance(found, dict) or not all(isinstance(part, str) for pair in found.items() for part in pair):
        raise ConfigError(
            f"{file} holds no names; expected a line an option, its name in print behind it, such as `fst: FST` (a number in "
            f"quotes). Mend it."
        )
    return found
