"""METHODS.md and docs/methods/ out of docstrings and yaml files, so that they cannot drift.

python scripts/methods_page.py            writes them, and removes the pages of methods that are gone
python scripts/methods_page.py --check    fails where a file is not what would be written
"""

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from backdoorbench.config import catalog, compose
from backdoorbench.config.build import build
from backdoorbench.config.catalog import Knob, Option
from backdoorbench.errors import join_words

ROOT = Path(__file__).resolve().parents[1]
INDEX, PAGES = Path("METHODS.md"), Path("docs/methods")
METHODS = {"attack": "Attacks", "defense": "Defenses", "detector": "Detectors", "after": "After-attacks"}
OTHERS = {"dataset": "Data sets", "model": "Networks", "train": "Recipes", "holdout": "Holdouts"}
HEAD = """# Methods

A page for each method file: what the method is, its paper, where it departs, every setting, and what differs from data set to
data set. `make docs` writes them from the docstrings and yaml files; edit those. `bdx show GROUP=OPTION` prints the same.
"""
HANDED = {
    "model": "the model",
    "infected": "the infected model",
    "clean": "a clean model of the same recipe",
    "trigger": "the trigger and its target",
    "holdout": "the clean holdout",
    "train": "the training set",  # of an after-attack as it was before the poisoning
    "inputs": "the images that arrive",
}
JUDGES = {
    "model": "each class, as a backdoor's target",
    "rows": "each training row",
    "inputs": "each image that arrives",
}
ASKS = ", or dataset."  # in the default of a setting that lets the data set decide

Row = tuple[str, str, str]  # a choice, what it sets, the yaml file that says so


def written() -> dict[Path, str]:
    """Every file that this script owns, by its path below the repository, with its text."""
    chosen = {group: [catalog.describe(group, name) for name in catalog.names(group)] for group in (*METHODS, *OTHERS)}
    modules: dict[str, list[Option]] = defaultdict(list)
    for option in (option for group in METHODS for option in chosen[group]):
        modules[option.module].append(option)
    pages: dict[Path, list[str]] = defaultdict(list)
    for module, options in modules.items():
        is_shared = sum(page_of(other) == page_of(module) for other in modules) > 1
        options.sort(
            key=lambda option: (option.name != Path(module).name, option.name)
        )  # what the file is called after
        pages[page_of(module)].append(section(module, options, is_shared))
    return {INDEX: index(chosen)} | {path: "\n".join(parts) for path, parts in pages.items()}


def page_of(module: str) -> Path:
    """The page of `defenses/fst`: docs/methods/fst.md. Two modules of one name share it."""
    return PAGES / f"{Path(module).name}.md"


# --- METHODS.md ------------------------------------------------------------------------------------------------------


def index(chosen: dict[str, list[Option]]) -> str:
    """METHODS.md: a line a method with a link to its page, a line for each of the other choices."""
    parts = [HEAD]
    for group, title in (METHODS | OTHERS).items():
        lines = [f"| {name(option)} | {cell(option.summary)} |" for option in chosen[group]]
        parts.append("\n".join([f"## {title}\n", "| | |", "| --- | --- |", *lines, ""]))
    return "\n".join(parts)


def name(option: Option) -> str:
    """What is typed to choose it; of a method, with a link to its part of its page."""
    typed = f"{option.group}={option.name}"
    if option.group not in METHODS:
        return f"`{typed}`"
    return f"[`{typed}`]({page_of(option.module)}#{typed.replace('=', '')})"


# --- a method's page -------------------------------------------------------------------------------------------------


def section(module: str, options: Sequence[Option], is_shared: bool) -> str:
    """A module's part of its page: the method, what its options share, then each option.

    is_shared  whether another module has the same page, so that the title must tell them apart"""
    first = options[0]
    title, _, rest = first.title.rstrip(".").partition(": ")
    file = f"backdoorbench/{module}.py"
    lines = [f"# {title} ({first.group})" if is_shared else f"# {title}", ""]
    lines += [f"{rest[:1].upper()}{prose(rest[1:])}.", ""] if rest else []
    lines += [f"Written by `make docs` from [{file}](../../{file}) and conf/{first.group}/; edit those.", ""]
    for heading, text in first.method.items():
        steps = prose(text).splitlines() if text.startswith("1. ") else []
        if text != "-":  # which says that there is nothing to say
            lines.append(f"- **{heading}**" if steps else f"- **{heading}** {prose(' '.join(text.splitlines()))}")
            lines += [f"  {step}" for step in steps]
    lines.append("")
    shared = [knob for knob in first.knobs if all(knob in option.knobs for option in options[1:])]
    differs = [row for row in elsewhere(first) if all(row in elsewhere(option) for option in options[1:])]
    if len(options) == 1:
        shared, differs = [], []
    elif shared:
        lines += ["## Settings that they share", "", *knob_table(first, shared), *row_table(differs)]
    for option in options:
        own = [knob for knob in option.knobs if knob not in shared]
        lines += [f"## `{option.group}={option.name}`", "", prose(option.summary), "", f"    {option.command}", ""]
        lines += [f"{line}\n" for line in part_played(option)]
        lines += knob_table(option, own) + row_table([row for row in elsewhere(option) if row not in differs])
    return "\n".join(lines).rstrip() + "\n"


def part_played(option: Option) -> list[str]:
    """What a detector judges, what it, a defense or an after-attack is handed, what an attack leaves to be handed."""
    made = build(compose.option(option.group, option.name), option.group)
    if option.group == "attack":
        rebuilds = "; with `reconstruct=true` those who read one get a set rebuilt with the finished trigger"
        without = f"The attacker drives the training and leaves no training set{rebuilds if made.can_rebuild else ''}."
        return [] if made.leaves_train else [without]
    handed = [words for need, words in HANDED.items() if need in made.needs]
    judged = f"It judges {JUDGES[made.judges]}. " if option.group == "detector" else ""
    return [f"{judged}It is handed {join_words(handed)}."] if handed else []


def knob_table(option: Option, knobs: Sequence[Knob]) -> list[str]:
    """Settings with defaults and meanings."""
    rows = [f"| `{option.full(knob)}` | `{default(knob)}` | {cell(knob.comment)} |" for knob in knobs]
    return ["| setting | default | meaning |", "| --- | --- | --- |", *rows, ""] if rows else []


def row_table(rows: Sequence[Row]) -> list[str]:
    """What other choices set."""
    lines = [f"| `{where}` | {sets} | [{file}](../../{file}) |" for where, sets, file in rows]
    return ["| with | is set to | said in |", "| --- | --- | --- |", *lines, ""] if lines else []


def elsewhere(option: Option) -> list[Row]:
    """What a data set, an experiment or a scale makes of the option's settings: by the facts that the option asks the data set
    for, and by files of its own."""
    asked = {knob.default.partition(ASKS)[2]: knob.name for knob in option.knobs if ASKS in knob.default}
    rows = []
    for group in ("dataset", "scale"):
        for other in [catalog.describe(group, one) for one in catalog.names(group)] if asked else []:
            named = {knob: other.full(knob).removeprefix("dataset.") for knob in other.knobs if knob.default != "null"}
            sets = [(asked[key], knob) for knob, key in named.items() if key in asked]
            if sets:
                rows.append((f"{group}={other.name}", said(sets), f"conf/{group}/{other.name}.yaml"))
    own = [
        (overlay.where, said([(k.name, k) for k in overlay.knobs]), f"conf/{overlay.file}")
        for overlay in option.overlays
    ]
    return rows + own


def said(sets: Sequence[tuple[str, Knob]]) -> str:
    """`epochs` 15, `lr` 0.001."""
    return ", ".join(f"`{key}` {default(knob)}" for key, knob in sets)


def default(knob: Knob) -> str:
    """A default as a person reads it: of ${dataset.target} the name."""
    return re.sub(r"^\$\{([\w.]+)\}$", r"\1", knob.default)


def prose(text: str) -> str:
    """Text in which nothing between pointed brackets, such as <name>, is taken for HTML."""
    return re.sub(r"<(?=/?[A-Za-z][\w-]*[\s/>])", r"\\<", text)


def cell(text: str) -> str:
    """Prose for a table."""
    return prose(text).replace("|", "\\|")


def stale(files: dict[Path, str]) -> list[str]:
    """The files that differ from `files` or are missing, and pages that should be gone."""
    found = [
        path
        for path, text in files.items()
        if not (ROOT / path).is_file() or (ROOT / path).read_text(encoding="utf-8") != text
    ]
    return sorted(map(str, found + leftover(files)))


def leftover(files: dict[Path, str]) -> list[Path]:
    """Pages of methods that are gone."""
    return [path for file in (ROOT / PAGES).glob("*.md") if (path := file.relative_to(ROOT)) not in files]


if __name__ == "__main__":
    wanted = written()
    if sys.argv[1:] == ["--check"]:
        if wrong := stale(wanted):
            sys.exit(f"{', '.join(wrong)}: not what the docstrings and yaml files say; run `make docs`")
    else:
        for path in leftover(wanted):
            (ROOT / path).unlink()
        for path, text in wanted.items():
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(text, encoding="utf-8")
