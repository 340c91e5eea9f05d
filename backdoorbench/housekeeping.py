"""`bdx runs` and `bdx cache`: what lies in an outputs folder, and what of it can go."""

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from backdoorbench import cache, stock
from backdoorbench.console import clock, make_console
from backdoorbench.errors import ConfigError, DataError, did_you_mean, join_words
from backdoorbench.reporting import ledger, table
from backdoorbench.reporting.ledger import STATUSES, Entry
from backdoorbench.stock import Stored

WIDE = 100  # columns from which on there is room for the time a run started, as its folder's name has it
UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}  # seconds
SIZES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # bytes
YOUNG = "1d"  # what was used since then is not pruned unless --older-than says so
STYLES = {"running": "cyan", "failed": "red", "interrupted": "yellow", "damaged": "red"}

Parser = Callable[[str, str], argparse.ArgumentParser]  # (verb, what it does)


# ---- bdx runs -------------------------------------------------------------------------------------------------------


def runs(words: Sequence[str], parser: argparse.ArgumentParser) -> int:
    """Lists the runs below a folder. Exit code."""
    parser.add_argument("folder", nargs="?", default="outputs", metavar="DIR", help="outputs by default")
    parser.add_argument("--status", metavar="LIST", help=f"only these, separated by commas: {', '.join(STATUSES)}")
    parser.add_argument("--last", metavar="N", type=int, help="only the N of them that started last")
    chosen = parser.parse_args(words)
    wanted = chosen.status.split(",") if chosen.status is not None else list(STATUSES)
    for status in wanted:
        if status not in STATUSES:
            raise ConfigError(
                f"--status is '{status}'; expected {join_words(list(STATUSES), 'or')}.{did_you_mean(status, STATUSES)}"
            )
    if chosen.last is not None and chosen.last < 1:
        raise ConfigError(f"--last is {chosen.last}; expected how many runs to list, at least 1.")
    found = ledger.entries(_outputs(chosen.folder))
    if not found:
        raise DataError(
            f"no record.json lies below {chosen.folder}; expected at least one run. "
            f"Run something first: bdx attack=badnets defense=fst."
        )
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
    shown = _table(title, ["status", "key", "settings"], [*(name.upper() for name in table.FIGURES), "time"])
    if wide := console.width >= WIDE:
        shown.add_column("started", no_wrap=True)
    for entry in told:
        said = [next(described)] if entry.content else ["record.json cannot be read"]
        said += [entry.content["error"]] if entry.status == "failed" else []
        seconds = entry.seconds(now)
        cells = [
            Text(entry.status, style=STYLES.get(entry.status, "")),
            Text(entry.key),
            Text("\n".join(_short(text) for text in said)),
            *(Text(table.percent(entry.scores.get(name))) for name in table.FIGURES),
            Text(table.DASH if seconds is None else clock(seconds)),
        ]
        shown.add_row(*cells, *([Text(entry.folder.name.partition("_")[0])] if wide else []))
    if told:
        console.print(shown)
    counts = Counter(entry.status for entry in found)
    states = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    summary = Text(f"  {_count(len(found), 'run')}: {states}; figures of the purified models, percent")
    console.print(summary, style="dim", soft_wrap=True)
    for place in dict.fromkeys(entry.folder.parent for entry in told):
        console.print(Text(f"  folders: {place / ('STARTED_*_KEY' if wide else '*_KEY')}"), style="dim", soft_wrap=True)


# ---- bdx cache ------------------------------------------------------------------------------------------------------


def cached(words: Sequence[str], parser: Parser) -> int:
    """Lists, compares or prunes the infections in the cache. Exit code."""
    actions = {"list": _list, "why": _why, "prune": _prune}
    bare = not words or words[0].startswith("-")
    name, rest = ("list", words) if bare else (words[0], words[1:])
    if name not in actions:
        raise ConfigError(
            f"bdx cache cannot '{name}'.{did_you_mean(name, actions)} It can list, why KEY KEY, and prune; "
            f"bdx cache prune --help says more."
        )
    return actions[name](rest, parser)


def _list(words: Sequence[str], make: Parser) -> int:
    chosen, found, _ = _stored(
        words, make("cache list", "Infected models in the cache, and what it holds beside them.")
    )
    place = Path(chosen.outputs) / "cache"
    beside = {
        name: stock.size_of(place / folder) for name, folder in (("data sets", "data"), ("snapshots", "snapshots"))
    }
    print_infections(make_console(), found, time.time())
    total = sum(stored.size for stored in found)
    others = "".join(f"; {name} {decimal(size)}" for name, size in beside.items() if size)
    print(f"  {_count(len(found), 'infection')}, {decimal(total)}{others}")
    return 0


def _why(words: Sequence[str], make: Parser) -> int:
    parser = make("cache why", "The settings in which two infections differ, and for which both are there.")
    parser.add_argument("keys", nargs=2, metavar="KEY", help="as bdx cache lists them, or their first digits")
    chosen, found, _ = _stored(words, parser)
    one, other = (stock.pick(found, key) for key in chosen.keys)
    if one is other:
        raise ConfigError(f"both keys are {one.key}, one infection; expected two. bdx cache lists their keys.")
    shown = _table("", ["setting", one.key, other.key], [])
    for cells in stock.differences(one, other):
        shown.add_row(*(Text(cell) for cell in cells))
    make_console().print(shown)
    return 0


def _prune(words: Sequence[str], make: Parser) -> int:
    parser = make(
        "cache prune",
        "Deletes infections that nobody uses; what they were trained with is in the records, and a later run trains them "
        "anew. Without --yes it only says what would go.",
    )
    parser.add_argument(
        "--older-than", metavar="AGE", help=f"not used for so long: 45m, 12h, 30d, 4w; {YOUNG} by default"
    )
    parser.add_argument("--unreferenced", action="store_true", help="that no record needs")
    parser.add_argument(
        "--max-size", metavar="SIZE", help="longest unused first, until all together take so much: 500MB, 20GB"
    )
    parser.add_argument("--yes", action="store_true", help="delete them")
    chosen, found, entries = _stored(words, parser)
    if chosen.older_than is None and chosen.max_size is None and not chosen.unreferenced:
        raise ConfigError(
            "bdx cache prune does not know what to prune. Say at least one of --older-than AGE, --unreferenced and "
            "--max-size SIZE; nothing is deleted without --yes."
        )
    age = chosen.older_than or YOUNG
    before = time.time() - _amount("--older-than", age, UNITS, "an age such as 45m, 12h, 30d or 4w")
    size = "a size such as 500MB or 20GB"
    most = int(_amount("--max-size", chosen.max_size, SIZES, size)) if chosen.max_size is not None else None
    going, staying = stock.sort_out(found, stock.in_use(found, entries), before, chosen.unreferenced, most)
    if chosen.yes:
        gone = [stored for stored in going if cache.discard(stored.folder, before)]
        staying += [(stored, "in use") for stored in going if stored not in gone]
        going = gone
    if going:
        print_infections(make_console(), going, time.time())
    freed = decimal(sum(stored.size for stored in going))
    print(f"  {'deleted' if chosen.yes else 'would delete'} {_count(len(going), 'infection')}, {freed}")
    reasons = Counter(f"{why} than {age}" if why == "younger" else why for _, why in staying)
    if staying:
        print(f"  kept {len(staying)}: {', '.join(f'{count} {why}' for why, count in reasons.items())}")
    if going and not chosen.yes:
        print("  nothing is deleted yet; --yes does it")
    return 0


def print_infections(console: Console, found: Sequence[Stored], now: float) -> None:
    """Infections: key, settings that differ, size, time since they were used, cost of the training, runs that name them."""
    title, settings = ledger.told_apart([stored.config for stored in found])
    shown = _table(title, ["key", "settings"], ["size", "unused", "training", "runs"])
    for stored, text in zip(found, settings, strict=True):
        figures = [decimal(stored.size), age(now - stored.used), clock(stored.cost), str(stored.runs)]
        shown.add_row(*(Text(cell) for cell in (stored.key, text, *figures)))
    console.print(shown)


def age(seconds: float) -> str:
    """`45 m`, `12 h`, `30 d`: whole units of the largest that fits, days at most."""
    unit = next((unit for unit in "dh" if seconds >= UNITS[unit]), "m")
    return f"{max(0, int(seconds // UNITS[unit]))} {unit}"


# ---- both -----------------------------------------------------------------------------------------------------------


def _stored(
    words: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[argparse.Namespace, list[Stored], list[Entry]]:
    """The arguments, the infections of the outputs they name, and the runs there."""
    parser.add_argument("--outputs", default="outputs", metavar="DIR", help="outputs by default")
    chosen = parser.parse_args(words)
    outputs = _outputs(chosen.outputs)
    entries = ledger.entries(outputs)
    found = stock.infections(outputs, entries)
    if not found:
        raise DataError(
            f"no infection lies in {outputs / 'cache' / 'infection'}; expected at least one. Name another outputs folder "
            f"with --outputs DIR, or run something first: bdx attack=badnets defense=none."
        )
    return chosen, found, entries


def _outputs(folder: str) -> Path:
    if not Path(folder).is_dir():
        raise DataError(f"'{folder}' is no folder; expected one that holds runs, such as outputs/. Name another.")
    return Path(folder)


def _amount(option: str, text: str, units: dict[str, int], expected: str) -> float:
    """`30d` in seconds, `20GB` in bytes."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(units)})", text)
    if match is None:
        raise ConfigError(f"{option} is '{text}'; expected {expected}. Correct it.")
    return float(match[1]) * units[match[2]]


def _table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    shown = Table(
        box=None, padding=(0, 1), show_edge=False, title=Text(f" {title}") if title else None, title_justify="left"
    )
    for name in names:
        shown.add_column(name, no_wrap=name in ("status", "key"), overflow="fold")
    for name in figures:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def _short(text: str) -> str:
    """The first line of an error, cut at a length that a list bears."""
    first = text.splitlines()[0] if text else ""
    return first if len(first) <= 160 else first[:159] + "…"
