"""Documentation that cannot drift: METHODS.md is generated, commands compose, examples run."""

import doctest
import importlib
import re
import runpy
from pathlib import Path

import pytest

from backdoorbench.config import catalog
from backdoorbench.config.compose import compose
from backdoorbench.config.groups import NAMES

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ["backdoorbench.streams", "backdoorbench.metrics", "backdoorbench.data.images", "backdoorbench.data.store"]


def test_methods_md_is_what_would_be_generated() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "methods_page.py"))["page"]
    assert (ROOT / "METHODS.md").read_text(encoding="utf-8") == page(), "run `make docs`"


def commands() -> list[str]:
    """Every `bdx KEY=VALUE ...` of the README and of the yaml headers."""
    texts = [(ROOT / "README.md").read_text(encoding="utf-8")]
    options = [catalog.describe(group, name) for group in NAMES for name in catalog.names(group)]
    found = [option.command for option in options if option.command]
    found += re.findall(r"^(?:  )?`?(bdx (?:-m )?\w+=[^#\n`]*)", "\n".join(texts), re.MULTILINE)
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_every_printed_command_composes(command: str) -> None:
    words = command.split()[1:]
    if words[0] == "reproduce":
        words = [f"experiment={words[1]}"]
    if words[0] == "-m":  # one job of the sweep
        words = [word.split(",")[0] for word in words[1:]]
    assert compose(words)["seed"] == 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted and not results.failed


def test_every_module_says_what_it_is() -> None:
    for file in sorted((ROOT / "backdoorbench").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert not text or text.startswith('"""'), file


def test_the_makefile_helps() -> None:
    targets = re.findall(r"^([a-z-]+):.*?## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"setup", "demo", "test", "check", "docs", "wheel"} <= set(targets)
