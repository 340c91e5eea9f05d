"""Lists of what lies in an outputs folder, as `bdx runs` and `bdx cache` print them."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text


def plain_table(title: str, names: Sequence[str], figures: Sequence[str]) -> Table:
    shown = Table(
        box=None, padding=(0, 1), show_edge=False, title=Text(f" {title}") if title else None, title_justify="left"
    )
    for name in names:
        shown.add_column(name, no_wrap=name in ("status", "key"), overflow="fold")
    for name in figures:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")
