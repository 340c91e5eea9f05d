"""bdx runs [DIR] [--status LIST] [--last N] [--where CHOICE]"""

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from backdoorbench.cli.arguments import Parser, add_where, outputs_folder, say
from backdoorbench.cli.listing import count, plain_table
from backdoorbench.errors import ConfigError, DataError, did_you_mean, join_words
from backdoorbench.reporting import choosing, ledger, rows
from backdoorbench.reporting.ledger import STATUSES, Entry
from backdoorbench.screen import clock, make_console

WIDE = 100  # columns from which on there is room for the time a run started, as its folder's name has it
STYLES = {"running": "cyan", "failed": "red", "interrupted": "yellow", "damaged": "red"}


def carry_out(words: Sequence[str]) -> int:
    """Lists the runs below a folder. Exit code."""
    parser = Parser("runs", "What was run: state, settings that differ, figures.")
    parser.add_argument("folder", nargs="?", default="outputs", metavar="DIR", help="outputs by default")
    parser.add_argument("--status", metavar="LIST", help=f"only these, separated by commas: {', '.join(STATUSES)}")
    parser.add_argument("--last", metavar="N", type=int, help="only the N of them that started last")
    add_where(parser)
    chosen = parser.parse_args(words)
    wanted = chosen.status.split(",") if chosen.status is not None else list(STATUSES)
    for status in wanted:
        if status not in STATUSES:
            raise ConfigError(
                f"--status is '{status}'; expected {join_words(list(STATUSES), 'or')}.{did_you_mean(status, STATUSES)}"
            )
    if chosen.last is not None and chosen.last < 1:
        raise ConfigError(f"--last is {chosen.last}; expected how many runs to list, at least 1.")
    found = ledger.entries(outputs_folder(chosen.folder))
    if not found:
        raise DataError(
            f"no record.json lies below {chosen.folder}; expected at least one run. "
            f"Run something first: bdx attack=badnets defense=fst."
        )
    found, said = choosing.choose(
        [(entry, entry.content.get("config", {})) for entry in found], choosing.parsed(chosen.where)
    )
    say(said)
    print_runs(make_console(), found, wanted, time.time(), chosen.last)
    return 0


def print_runs(
    console: Console, found: Sequence[Entry], wanted: Sequence[str], now: float, last: int | None = None
) -> None:
    """The `last` runs in one of the `wanted` states: state, key, settings that differ, figures, time, folder."""
    told = [entry for entry in found if entry.status in wanted]
    told = told if last is None else told[-last:]
    title, settings = ledger.told_apart([entry.content["config"] for entry in told if entry.content])
    described = iter(settings)
    shown = plain_table(title, ["status", "key", "settings"], [*(name.upper() for name in rows.FIGURES), "time"])
    if wide := console.width >= WIDE:
        shown.add_column("started", no_wrap=True)
    for entry in told:
        said = [next(described)] if entry.content else ["record.json cannot be read"]
        said += [entry.content.get("error") or ""] if entry.status == "failed" else []
        seconds = entry.seconds(now)
        cells = [
            Text(entry.status, style=STYLES.get(entry.status, "")),
            Text(entry.key),
            Text("\n".join(_short(text) for text in said)),
            *(Text(rows.percent(entry.scores.get(name))) for name in rows.FIGURES),
            Text(rows.DASH if seconds is None else clock(seconds)),
        ]
        shown.add_row(*cells, *([Text(entry.folder.name.partition("_")[0])] if wide else []))
    if told:
        console.print(shown)
    counts = Counter(entry.status for entry in found)
    states = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    summary = Text(f"  {count(len(found), 'run')}: {states}; figures of the purified models, percent")
    console.print(summary, style="dim", soft_wrap=True)
    for place in dict.fromkeys(entry.folder.parent for entry in told):
        console.print(Text(f"  folders: {place / ('STARTED_*_KEY' if wide else '*_KEY')}"), style="dim", soft_wrap=True)


def _short(text: str) -> str:
    """The first line of an error, cut at a length that a list bears."""
    first = text.splitlines()[0] if text else ""
    return first if len(first) <= 160 else first[:159] + "…"
