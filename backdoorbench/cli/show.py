"""bdx show GROUP=OPTION [KEY=VALUE ...]"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backdoorbench import screen
from backdoorbench.cli.arguments import Parser
from backdoorbench.config import catalog
from backdoorbench.config.catalog import Option
from backdoorbench.errors import BdxError, ConfigError
from backdoorbench.sweeps.hydra_errors import explained, refuse_no_options


def carry_out(words: Sequence[str]) -> int:
    """Explains an option: the method, every setting with its default, and what differs elsewhere. Given more choices, prints the
    values that hold with them, and the file that each comes from. Exit code."""
    parser = Parser("show", "One option, explained: the method and every setting with its default.")
    parser.add_argument("option", help="such as defense=fst")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for a run: the values that hold there, and where they come from",
    )
    chosen = parser.parse_intermixed_args(words)
    group, _, name = chosen.option.partition("=")
    option = catalog.describe(group, name, chosen.config_dirs)
    if others := [word for word in chosen.settings if word.startswith(f"{group}=")]:
        raise ConfigError(
            f"bdx show was given {chosen.option} and {others[0]}; expected one option to explain, beside settings of a run. Drop "
            f"one."
        )
    out = screen.make_console()
    print_method(out, option)
    if chosen.settings:
        print_values(out, option, [chosen.option, *chosen.settings], chosen.config_dirs)
        return 0
    if option.chooses:
        out.print(Text(f"  Chooses  {', '.join(option.chooses)}"))
    for key, values in option.sweeps.items():
        out.print(Text(f"  Sweeps   {key}={values}"))
    if option.knobs:
        out.print()
        rows = [(option.full(knob), knob.default, knob.comment) for knob in option.knobs]
        print_knobs(out, ("  setting", "default", "meaning"), rows)
    for overlay in option.overlays:
        values = ", ".join(
            f"{knob.name.removeprefix('hydra.sweeper.params.')} {knob.default}" for knob in overlay.knobs
        )
        out.print(Text(f"  with {overlay.where}: {values}  ({overlay.file})"), style="dim")
    return 0


def print_method(console: Console, option: Option) -> None:
    """What the option is, and the headed paragraphs of its method."""
    console.print(Text(option.title or f"{option.group}={option.name}"), style="bold")
    console.print(Text(f"  {option.summary}"))
    for heading, text in option.method.items():
        lines = text.splitlines() or [""]
        console.print(Text(f"  {heading:<9}{lines[0]}"))
        for line in lines[1:]:
            console.print(Text(f"           {line}"))
    if option.plugin:
        console.print(Text(f"  Plugin   {option.plugin}"))
    if option.command:
        console.print(Text(f"  Command  {option.command}"))


def print_values(console: Console, option: Option, overrides: Sequence[str], folders: Sequence[str]) -> None:
    """The option's settings as they hold in a run of `overrides`, and the file that each comes from."""
    from backdoorbench.config.origins import trace

    refuse_no_options(overrides)
    try:
        found = trace([*overrides, "hydra.mode=RUN"], folders)
    except BdxError:
        raise
    except Exception as error:
        raise explained(error, overrides, folders) from None
    if option.is_global:
        shown = [key for key in (option.full(knob) for knob in option.knobs) if key in found.values]
    else:
        hidden = tuple(f"{option.group}.{name}" for name in catalog.NOT_KNOBS)
        shown = [key for key in found.values if key.startswith(f"{option.group}.") and key not in hidden]
    rows = [(key, _said(found.values[key]), found.origin(key)) for key in shown]
    console.print()
    print_knobs(console, ("  setting", "value", "from"), rows)


def _said(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def print_knobs(console: Console, header: Sequence[str], rows: Sequence[tuple[str, str, str]]) -> None:
    """Three columns, the first a setting."""
    shown = Table(box=None, padding=(0, 2), show_edge=False)
    for column in header:
        shown.add_column(column)
    for name, value, said in rows:
        shown.add_row(Text(f"  {name}"), Text(value), Text(said))
    console.print(shown)
