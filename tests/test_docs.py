"""Documentation that cannot drift: pages are generated, commands compose, links lead somewhere, examples run."""

import doctest
import importlib
import re
import runpy
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backdoorbench.cli.main import VERBS
from backdoorbench.config import catalog
from backdoorbench.config.compose import compose
from backdoorbench.config.groups import NAMES
from backdoorbench.reporting import choosing

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("findings/*.md")])
EXAMPLES = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in sorted((ROOT / "backdoorbench").rglob("*.py"))
    if file.name != "__init__.py" and ">>> " in file.read_text(encoding="utf-8")
]


# ---- generated pages ------------------------------------------------------------------------------------------------


@pytest.fixture
def writer() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "methods_page.py"))


@pytest.mark.wide
def test_methods_are_described_as_the_code_describes_them(writer: dict[str, Any]) -> None:
    assert not writer["stale"](writer["written"]()), "run `make docs`"


def test_a_stale_a_missing_and_a_leftover_page_are_told(writer: dict[str, Any], tmp_path: Path) -> None:
    writer["stale"].__globals__["ROOT"] = tmp_path
    folder = tmp_path / "docs" / "methods"
    folder.mkdir(parents=True)
    for name, text in (("fst.md", "as it is"), ("ft.md", "as it was"), ("gone.md", "left over")):
        (folder / name).write_text(text)
    files = {Path("docs/methods") / name: "as it is" for name in ("fst.md", "ft.md", "new.md")}
    assert writer["stale"](files) == ["docs/methods/ft.md", "docs/methods/gone.md", "docs/methods/new.md"]


@pytest.mark.wide
def test_a_page_says_what_its_options_share_once_and_all_of_them(writer: dict[str, Any]) -> None:
    written = writer["written"]()
    for group in ("attack", "defense", "detector"):
        for name in catalog.names(group):
            option = catalog.describe(group, name)
            text = written[writer["page_of"](option.module)]
            assert f"## `{group}={name}`\n" in text and option.command in text
            assert all(f"| `{group}.{knob.name}` | " in text for knob in option.knobs), name
            assert all(f"](../../conf/{overlay.file})" in text for overlay in option.overlays), name
    siblings = written[Path("docs/methods/fst.md")]
    assert (
        siblings.count("| `defense.momentum` | ") == siblings.count("| `dataset=gtsrb` | `epochs` 15 | ") == 1
    )  # of four


# ---- links ----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), link
            assert not anchor or anchor in anchors(place), link


def test_the_index_names_every_page() -> None:
    index, methods = ROOT / "docs" / "README.md", ROOT / "docs" / "methods"
    links = re.findall(r"\]\(([^)\s]+)\)", index.read_text(encoding="utf-8"))
    named = {(index.parent / link).resolve() for link in links}
    assert methods in named
    own = [page for page in PAGES if page.is_relative_to(index.parent) and page.parent != methods]
    assert [page for page in own if page not in named] == [index]


# ---- commands -------------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every `bdx ...` of the pages and of the yaml headers, without its comment."""
    options = [catalog.describe(group, name) for group in NAMES for name in catalog.names(group)]
    found = [option.command for option in options if option.command]
    for page in PAGES:
        if page.parent.name != "methods":  # these have the headers' own
            text = page.read_text(encoding="utf-8")
            fenced = re.findall(r"^```\w*$(.*?)^```$", text, re.MULTILINE | re.DOTALL)
            found += [line.partition("  #")[0].strip() for part in fenced for line in part.splitlines()]
            found += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    return sorted({command for command in found if command.startswith("bdx ") and "yours" not in command})


def settings(words: list[str]) -> list[str]:
    """The KEY=VALUE among the words; of several values the first, of a placeholder one that exists."""
    found = []
    for word in words:
        key, mark, value = word.partition("=")
        if mark and re.fullmatch(r"[a-z][\w./]*", key) and not key.startswith("hydra"):  # launchers are extras
            first = re.split(r",(?![^\[(]*[\])])", value)[0]  # not inside brackets
            named = {"NAME": "badnets"}.get(first, first)
            found.append(f"{key}={'1' if named.startswith('tag(') else named}")
    return found


def chosen_by(words: list[str]) -> list[str]:
    """What every `--where` among the words names, as settings of a run: `defense.fst.alpha=0.2` is FST's alpha."""
    conditions = choosing.parsed([word for before, word in pairwise(words) if before == "--where"])
    found = []
    for key, (value, *_) in conditions.items():
        group, *inner = key.split(".")
        if len(inner) > 1 and inner[0] in catalog.names(group):
            assert compose([f"{group}={inner[0]}", f"{group}.{'.'.join(inner[1:])}={value}"])
        else:
            found.append(f"{key}={value}")
    return found


@pytest.mark.wide
@pytest.mark.parametrize("command", commands())
def test_every_printed_command_composes(command: str) -> None:
    verb, *words = shlex.split(command)[1:]
    if verb == "reproduce":
        words[0] = f"experiment={words[0].replace('PAPER', 'fst')}"
    elif verb == "list":
        assert all(word in NAMES or word.removesuffix("s") in NAMES for word in words)
    elif "=" in verb:
        words.insert(0, verb)
    else:
        assert verb in VERBS or verb in ("-m", "--cfg", "--help"), verb
    if "--where" in words:
        words = [word for before, word in pairwise(["", *words]) if before != "--where"] + chosen_by(words)
    if found := settings(words):
        assert isinstance(compose([*found, "hydra.mode=RUN"])["seed"], int)


# ---- code -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted and not results.failed


@pytest.mark.wide
@pytest.mark.parametrize("page", ["python.md", "networks.md"])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, one after another, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    assert blocks
    names: dict[str, Any] = {"__name__": page}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number + 1}", "exec"), names)


def test_every_module_says_what_it_is() -> None:
    for file in sorted((ROOT / "backdoorbench").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert not text or text.startswith('"""'), file


def test_the_makefile_helps() -> None:
    targets = re.findall(r"^([a-z-]+):.*?## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"setup", "demo", "test", "check", "docs", "picture", "wheel"} <= set(targets)


# ---- container and citation -----------------------------------------------------------------------------------------


def test_the_dockerfile_names_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:RUN |bdx )make ([a-z-]+)", text) + re.findall(r'"make", "([a-z-]+)"', text)
    assert {"setup", "test", "demo"} == set(named) and set(named) <= targets
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources), line
    base = re.search(r"^FROM python:(\d+\.\d+)-slim$", text, re.MULTILINE)
    asked = re.search(r'requires-python = ">=(\d+)\.(\d+),<(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert base and asked
    low, high = (tuple(map(int, asked.groups()[place : place + 2])) for place in (0, 2))
    assert low <= tuple(map(int, base[1].split("."))) < high
    build = re.search(r"^COPY (pyproject.toml .+) \./$", text, re.MULTILINE)
    assert build and {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "LICENSE"} <= set(
        build[1].split()
    )  # what setup reads


def test_what_the_image_leaves_out_is_no_source() -> None:
    left_out = (ROOT / ".dockerignore").read_text().split()
    assert {"outputs", ".venv"} <= set(left_out) and not {"backdoorbench", "conf", "tests", "docs"} & set(left_out)


def test_the_citation_file_says_what_the_project_does() -> None:
    import yaml

    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{said["version"]}"' in project and f'license = "{said["license"]}"' in project
    assert {"cff-version", "message", "title", "type", "authors"} <= said.keys()
