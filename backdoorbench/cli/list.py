"""bdx list [GROUP]"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backdoorbench import screen
from backdoorbench.cli.arguments import Parser
from backdoorbench.config import catalog
from backdoorbench.config.catalog import Option
from backdoorbench.config.groups import NAMES
from backdoorbench.errors import ConfigError, did_you_mean, join_words


def carry_out(words: Sequence[str]) -> int:
    """Lists the options of a group, or of all. Exit code."""
    parser = Parser("list", "What there is to choose from, and what each choice is.")
    parser.add_argument("group", nargs="?", help=f"one of {', '.join(NAMES)}; all by default")
    chosen = parser.parse_args(words)
    wanted, folders = chosen.group, chosen.config_dirs
    out = screen.make_console()
    if wanted is not None:
        wanted = wanted.removesuffix("s") if wanted.removesuffix("s") in NAMES else wanted
        if wanted not in NAMES:
            raise ConfigError(
                f"group '{wanted}' is unknown.{did_you_mean(wanted, NAMES)} The groups are {join_words(list(NAMES))}."
            )
    for group in [wanted] if wanted else NAMES:
        options = [catalog.describe(group, name, folders) for name in catalog.names(group, folders)]
        print_options(out, [(option.name, _told(option)) for option in options], group)
    out.print("  bdx show GROUP=OPTION explains one, with every setting", style="dim")
    return 0


def _told(option: Option) -> str:
    """What an option is, and the plugin that brings it."""
    return f"{option.summary} (plugin {option.plugin})" if option.plugin else option.summary


def print_options(console: Console, rows: Sequence[tuple[str, str]], title: str) -> None:
    """Two columns: a name and what it is."""
    shown = Table(box=None, padding=(0, 2), show_edge=False, show_header=False)
    for name, text in rows:
        shown.add_row(Text(f"  {name}"), Text(text))
    console.print(Text(title), style="bold")
    console.print(shown)
