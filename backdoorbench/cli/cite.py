"""bdx cite GROUP=OPTION,OPTION ..."""

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from backdoorbench.cli.arguments import Parser
from backdoorbench.config import catalog, citations
from backdoorbench.errors import ConfigError, shown

YEAR = 2026  # of the version


def carry_out(words: Sequence[str]) -> int:
    """Prints the BibTeX of what was chosen, and of bdx. Exit code."""
    parser = Parser("cite", "BibTeX of the papers behind methods, networks and data sets, and of bdx itself.")
    parser.add_argument("options", nargs="+", metavar="GROUP=OPTIONS", help="such as attack=badnets,sig defense=fst")
    chosen = parser.parse_args(words)
    found: dict[str, str] = {}
    for word in chosen.options:
        group, mark, names = word.partition("=")
        if not mark or not names:
            raise ConfigError(
                f"{shown(word)} names nothing to cite; expected GROUP=OPTION, such as defense=fst. Correct it."
            )
        for name in names.split(","):
            option = catalog.describe(group, name, chosen.config_dirs)
            own = citations.of(option)
            found |= own
            if not own and name != "none":
                said = option.method.get("Paper", "")
                print(
                    f"bdx: no entry for {group}={name}" + (f"; its source says: {said}" if said else ""),
                    file=sys.stderr,
                )
    print("\n\n".join([*found.values(), software()]))
    return 0


def software() -> str:
    """The entry of bdx, as CITATION.cff has it, of a kind that every BibTeX style knows."""
    try:
        number = version("bdx")
    except PackageNotFoundError:  # a checkout
        number = "unknown"
    return (
        "@misc{bdx,\n  author  = {{The bdx authors}},\n  title   = {{bdx: tells whether a backdoor defense works}},\n"
        f"  year    = {{{YEAR}}},\n  note    = {{Version {number}}},\n}}"
    )
