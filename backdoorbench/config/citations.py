"""What to cite for a method: entries of conf/citations.bib, found by what its docstring says of its paper."""

import re

from backdoorbench.config.catalog import Option
from backdoorbench.config.compose import conf_dir

FILE = "citations.bib"
ARXIV = re.compile(r"(?<!\d)\d{4}\.\d{4,5}(?!\d)")


def entries() -> dict[str, str]:
    """Every entry of the file as it stands there, by its key."""
    text = (conf_dir() / FILE).read_text(encoding="utf-8")
    return {match[1]: match[0] for match in re.finditer(r"^@\w+\{([^,]+),\n.*?^\}$", text, re.MULTILINE | re.DOTALL)}


def field(entry: str, name: str) -> str:
    """A field of an entry, without braces; empty where it has none."""
    match = re.search(rf"^ +{name} += \{{(.*)\}},$", entry, re.MULTILINE)
    return match[1].replace("{", "").replace("}", "").replace("\\", "") if match else ""


def papers(option: Option) -> str:
    """What an option's docstring and its yaml's header say of its paper."""
    return f"{option.method.get('Paper', '')} {option.summary}"


def of(option: Option) -> dict[str, str]:
    """The entries that an option's paper is among, by key, in the order in which it names them."""
    said = papers(option)
    found: dict[int, tuple[str, str]] = {}
    for key, entry in entries().items():
        for mark in (field(entry, "eprint"), field(entry, "title")):
            if mark and mark.lower() in said.lower():
                found.setdefault(said.lower().index(mark.lower()), (key, entry))
    return dict(found[place] for place in sorted(found))
