"""bdx cache [list] | why KEY KEY | prune [--older-than AGE] [--unreferenced] [--max-size SIZE] [--yes]"""

import argparse
import re
import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from backdoorbench.cli.arguments import Parser, outputs_folder
from backdoorbench.cli.listing import count, plain_table
from backdoorbench.errors import ConfigError, DataError, did_you_mean
from backdoorbench.reporting import cached, ledger
from backdoorbench.reporting.cached import Derived, Stored
from backdoorbench.reporting.ledger import Entry
from backdoorbench.screen import clock, make_console
from backdoorbench.storage import store
from backdoorbench.storage.outputs import Outputs

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}  # seconds
SIZES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # bytes
YOUNG = "1d"  # what was used since then is not pruned unless --older-than says so


def carry_out(words: Sequence[str]) -> int:
    """Lists, compares or prunes the infections in the cache. Exit code."""
    actions = {"list": _list, "why": _why, "prune": _prune}
    if words and words[0] in ("-h", "--help"):
        parser = Parser(
            "cache",
            "Infected models in the cache, and what it holds beside them: list (the default) shows them, why KEY KEY says in "
            "which settings two differ, prune deletes those that nobody uses. Each has a --help of its own.",
        )
        parser.add_argument("action", nargs="?", choices=actions, help="bdx cache ACTION --help says more")
        parser.parse_args(words)
    bare = not words or words[0].startswith("-")
    name, rest = ("list", words) if bare else (words[0], words[1:])
    if name not in actions:
        raise ConfigError(
            f"bdx cache cannot '{name}'.{did_you_mean(name, actions)} It can list, why KEY KEY, and prune; "
            f"bdx cache prune --help says more."
        )
    return actions[name](rest)


def _list(words: Sequence[str]) -> int:
    chosen, found, _ = _stored(
        words, Parser("cache list", "Infected models in the cache, and what it holds beside them.")
    )
    outputs = Outputs(Path(chosen.outputs))
    beside = {
        "data sets": cached.size_of(outputs.data),
        "snapshots": cached.size_of(outputs.snapshots),
        **{kind: cached.size_of(place) for kind, place in outputs.derived.items()},
    }
    if found:
        print_infections(make_console(), found, time.time())
    total = sum(stored.size for stored in found)
    others = "".join(f"; {name} {decimal(size)}" for name, size in beside.items() if size)
    print(f"  {count(len(found), 'infection')}, {decimal(total)}{others}")
    if aside := outputs.set_aside():
        size = decimal(sum(map(cached.size_of, aside)))
        print(
            f"  set aside as damaged: {len(aside)}, {size}, the first {aside[0]}; nothing reads them, and bdx cache prune "
            f"deletes them"
        )
    return 0


def _why(words: Sequence[str]) -> int:
    parser = Parser("cache why", "The settings in which two infections differ, and for which both are there.")
    parser.add_argument("keys", nargs=2, metavar="KEY", help="as bdx cache lists them, or their first digits")
    chosen, found, _ = _stored(words, parser)
    one, other = (cached.pick(found, key) for key in chosen.keys)
    if one is other:
        raise ConfigError(f"both keys are {one.key}, one infection; expected two. bdx cache lists their keys.")
    shown = plain_table("", ["setting", one.key, other.key], [])
    for cells in cached.differences(one, other):
        shown.add_row(*(Text(cell) for cell in cells))
    make_console().print(shown)
    return 0


def _prune(words: Sequence[str]) -> int:
    parser = Parser(
        "cache prune",
        "Deletes infections that nobody uses, and purified models, verdicts and networks of triggers beside them; what they were "
        "made with is in the records, and a later run makes them anew. What was set aside as damaged goes too, once it is as "
        "old. Without --yes it only says what would go.",
    )
    parser.add_argument(
        "--older-than", metavar="AGE", help=f"not used for so long: 45m, 12h, 30d, 4w; {YOUNG} by default"
    )
    parser.add_argument("--unreferenced", action="store_true", help="that no record needs")
    parser.add_argument(
        "--max-size",
        metavar="SIZE",
        help="longest unused first, until all together, data sets aside, take so much: 500MB, 20GB",
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
    all_of_it: list[Stored | Derived] = [*found, *cached.derived(Outputs(Path(chosen.outputs)))]
    going, staying = cached.sort_out(all_of_it, cached.in_use(all_of_it, entries), before, chosen.unreferenced, most)
    if chosen.yes:
        gone = [stored for stored in going if store.discard(stored.folder, before)]
        staying += [(stored, "in use") for stored in going if stored not in gone]
        going = gone
    if infections := [stored for stored in going if isinstance(stored, Stored)]:
        print_infections(make_console(), infections, time.time())
    did = "deleted" if chosen.yes else "would delete"
    print(f"  {did} {count(len(infections), 'infection')}, {decimal(sum(stored.size for stored in infections))}")
    beside = [stored for stored in going if isinstance(stored, Derived)]
    for kind, part in groupby(sorted(beside, key=lambda stored: stored.kind), key=lambda stored: stored.kind):
        sizes = [stored.size for stored in part]
        print(f"  {did} {kind}: {len(sizes)}, {decimal(sum(sizes))}")
    clear(Outputs(Path(chosen.outputs)), before, chosen.yes)
    reasons = Counter(f"{why} than {age}" if why == "younger" else why for _, why in staying)
    if staying:
        print(f"  kept {len(staying)}: {', '.join(f'{count} {why}' for why, count in reasons.items())}")
    if (going or cached.aside(Outputs(Path(chosen.outputs)), before)) and not chosen.yes:
        print("  nothing is deleted yet; --yes does it")
    return 0


def clear(outputs: Outputs, before: float, delete: bool) -> None:
    """Lists what was set aside as damaged before that time (seconds since the epoch), whichever part of the cache it is of, and
    deletes it if asked."""
    found = cached.aside(outputs, before)
    if not found:
        return
    for place, size in found:
        print(f"  {place}  {decimal(size)}")
        if delete:
            store.remove(place)
    freed = decimal(sum(size for _, size in found))
    print(f"  {'deleted' if delete else 'would delete'} {len(found)} set aside as damaged, {freed}")


def print_infections(console: Console, found: Sequence[Stored], now: float) -> None:
    """Infections: key, settings that differ, size, time since they were used, cost of the training, runs that name them."""
    title, settings = ledger.told_apart([stored.config for stored in found])
    shown = plain_table(title, ["key", "settings"], ["size", "unused", "training", "runs"])
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
    outputs = outputs_folder(chosen.outputs)
    entries = ledger.entries(outputs)
    found = cached.infections(outputs, entries)
    if not found and not Outputs(outputs).set_aside() and not cached.derived(Outputs(outputs)):
        raise DataError(
            f"no infection lies in {Outputs(outputs).infections}; expected at least one. Name another outputs folder "
            f"with --outputs DIR, or run something first: bdx attack=badnets defense=none."
        )
    return chosen, found, entries


def _amount(option: str, text: str, units: dict[str, int], expected: str) -> float:
    """`30d` in seconds, `20GB` in bytes."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(units)})", text)
    if match is None:
        raise ConfigError(f"{option} is '{text}'; expected {expected}. Correct it.")
    return float(match[1]) * units[match[2]]
