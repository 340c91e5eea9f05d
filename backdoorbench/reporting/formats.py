"""Grids as text: Markdown, LaTeX, CSV. Pure functions; the console and the page have their own."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

from backdoorbench.config.groups import JUDGED
from backdoorbench.reporting import separated, typeset
from backdoorbench.reporting.grids import Column, Grid, Item
from backdoorbench.reporting.published import Comparison
from backdoorbench.reporting.rows import COSTS, FIGURES, Cell, Row, rises, titled

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "–": "--", "—": "---", "·": r"$\cdot$", "→": r"$\rightarrow$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"\S{}", "−": r"$-$", "≤": r"$\leq$",
} | {mark: "\\" + mark for mark in "&%_#${}"}  # fmt: skip
HEAD = 16  # letters of a column's name, where it wraps
LEAST_NAMES, MOST_NAMES = 0.35, 0.5  # shares of a line that names have, where they need more
CELL = 130.0  # points of any other cell, where it wraps
GAP = 8.0  # points between columns
ARROW, THIN = " ↑", "\u2009"  # as wide as any arrow; a thin space
PAGE, LONG = 45, r"\begin{longtable}"  # lines of a table on a page; how one begins that has more
LATIN = 0x17F  # the last letter that LaTeX's standard fonts are sure to have


# ---- Markdown -------------------------------------------------------------------------------------------------------


def markdown(grid: Grid) -> str:
    """A pipe table under its title; names to the left, figures to the right, the best in bold."""
    texts = [[plain(item.text) for item in line] for line in grid.lines]
    cells = [
        [f"**{text}**" if item.best else text for text, item in zip(told, line, strict=True)]
        for told, line in zip(texts, grid.lines, strict=True)
    ]
    body = _piped([plain(column.flat) for column in grid.columns], cells, grid.names)
    return f"{plain(grid.head)}\n\n{body}" if grid.head else body


def plain(text: str) -> str:
    """Text that Markdown shows as it is: nothing of a name becomes emphasis, an element, or another cell."""
    return re.sub(r"([\\`*|]|<(?=[A-Za-z/!?])|(?<!\w)_|_(?!\w))", r"\\\1", text)


def pipes(header: Sequence[str], cells: Sequence[Sequence[str]], names: int) -> str:
    """Header and cells as a Markdown table, its first `names` columns to the left."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (header, *cells)]
    return _piped(lines[0], lines[1:], names)


def _piped(header: Sequence[str], cells: Sequence[Sequence[str]], names: int) -> str:
    lines = [header, ["---"] * names + ["---:"] * (len(header) - names), *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


# ---- LaTeX ----------------------------------------------------------------------------------------------------------


def preamble(tables: Sequence[str]) -> str:
    """What a document must load for these tables, as a comment."""
    packages = ["booktabs", *(["longtable"] if any(LONG in table for table in tables) else [])]
    return f"% \\usepackage{{{','.join(packages)}}}\n"


def latex_label(title: str) -> str:
    """`tab:dataset-digits-rate-10` of what stands above a table."""
    return "tab:" + (
        "-".join(re.findall(r"[a-z0-9]+(?:\.[0-9]+)?", title.lower().partition(" · ranked by")[0])) or "results"
    )


def latex_table(grid: Grid, said: Sequence[str] = (), label: str = "") -> str:
    """A booktabs table that compiles as it is, after what `preamble` says: arrows say which way is better, the best is bold, an n
    that all lines share is in the caption, and so is what must be `said`. It is one tabular, no wider than a line of `article`:
    columns that a line has no room for stand below in the same columns, beside the names again. One with more lines than a page
    has breaks over pages."""
    counts = {
        line[place].text for place, column in enumerate(grid.columns) if column.name == "n" for line in grid.lines
    }
    kept = [place for place, column in enumerate(grid.columns) if not (column.name == "n" and len(counts) == 1)]
    shared = counts.pop() if len(counts) == 1 else str(grid.n or "")
    head = ", ".join(filter(None, (grid.title, f"n = {shared}" if shared else "")))
    sentences = (_sentence(text.rstrip(".")) for text in (head, *said) if text)
    caption = rf"\caption{{{latex('. '.join(sentences))}.}}" + (rf"\label{{{label}}}" if label else "")
    sheet = _Sheet(grid)
    bands = [[*kept[: grid.names], *piece] for piece in sheet.pieces(kept)]
    form = "l" * grid.names + "r" * (max(map(len, bands)) - grid.names)
    heads, bodies = [sheet.head(band) for band in bands], [sheet.body(band) for band in bands]
    if len(grid.lines) * len(bands) > PAGE:
        return _long(form, caption, heads, bodies)
    inside: list[str] = []
    for place, (upper, lower) in enumerate(zip(heads, bodies, strict=True)):
        inside += [r"\midrule" if place else r"\toprule", *upper, r"\midrule", *lower]
    lines = [
        r"\begin{table}[t]",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        caption,
        rf"\begin{{tabular}}{{{form}}}",
        *inside,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    """The text with a capital; a term that it explains stays as the table has it."""
    return text if re.match(r"(?!bold|holdout)\w+: ", text) else text[0].upper() + text[1:]


def _long(form: str, caption: str, heads: Sequence[Sequence[str]], bodies: Sequence[Sequence[str]]) -> str:
    """The same over pages. The first band's head stands on every page where there is no other."""
    again = [*heads[0], r"\midrule"] if len(heads) == 1 else []
    inside: list[str] = []
    for place, (upper, lower) in enumerate(zip(heads, bodies, strict=True)):
        inside += [*([r"\midrule", *upper, r"\midrule"] if place else []), *lower]
    lines = [
        r"{\small\setlength{\tabcolsep}{4pt}\setlength{\LTcapwidth}{\textwidth}",
        rf"{LONG}{{{form}}}",
        caption + r"\\",
        *(r"\toprule", *heads[0], r"\midrule", r"\endfirsthead"),
        *(r"\toprule", *again, r"\endhead"),
        *(r"\bottomrule", r"\endfoot"),
        *inside,
        r"\end{longtable}}",
    ]
    return "\n".join(lines) + "\n"


class _Sheet:
    """A grid as cells of LaTeX, each in lines, with the widths that its columns will have."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.rooms = [CELL] * len(grid.columns)
        figures = range(grid.names, len(grid.columns))
        self.widths = [0.0] * grid.names + [self._width(place) for place in figures]
        widest = max((sum(self._widths_of(unit)) + GAP * len(unit) for unit in self._units(figures)), default=0.0)
        room = max(LEAST_NAMES * typeset.TEXT, min(MOST_NAMES * typeset.TEXT, typeset.TEXT - widest - GAP * grid.names))
        self.rooms[: grid.names] = shared_out([self._natural(place) for place in range(grid.names)], room)
        self.widths[: grid.names] = [self._width(place) for place in range(grid.names)]

    def _units(self, places: Iterable[int]) -> list[list[int]]:
        """The columns below each group, and each of the others by itself."""
        return [list(found) for _, found in groupby(places, lambda place: self.grid.columns[place].group or str(place))]

    def _natural(self, place: int) -> float:
        return max(typeset.width(text) for text in (self.grid.columns[place].name, *self._texts(place)))

    def _texts(self, place: int) -> list[str]:
        return [line[place].text for line in self.grid.lines]

    def _lines(self, item: Item, place: int) -> list[str]:
        """A cell's text in lines; a figure with its spread is one."""
        return [item.text] if " ± " in item.text else typeset.wrapped(item.text, self.rooms[place])

    def _width(self, place: int) -> float:
        column = self.grid.columns[place]
        arrow = typeset.width(ARROW) if _arrow(column) else 0.0
        cells = (_cell_width(item, self._lines(item, place)) for item in (line[place] for line in self.grid.lines))
        return max([max(map(typeset.width, _head(column).split("\n"))) + arrow, *cells])

    # ---- what fits ----

    def pieces(self, kept: Sequence[int]) -> list[list[int]]:
        """Columns beside the names, as many as a line has room for; groups stay together where they can."""
        whole = self._units(kept[self.grid.names :])
        for units in (whole, [[place] for unit in whole for place in unit]):
            room = typeset.TEXT
            while True:
                pieces = self._packed(units, room)
                if self._stacked(pieces) <= typeset.TEXT:
                    return pieces
                if len(pieces) == len(units):
                    break
                room = (
                    max(self._stacked([piece]) for piece in pieces) - 1
                )  # columns share their widths with those below
        return pieces

    def _packed(self, units: Sequence[list[int]], room: float) -> list[list[int]]:
        pieces: list[list[int]] = [[]]
        for unit in units:
            if pieces[-1] and self._stacked([[*pieces[-1], *unit]]) > room:
                pieces.append([])
            pieces[-1] += unit
        return pieces

    def _stacked(self, pieces: Sequence[Sequence[int]]) -> float:
        """The width of a tabular in which these columns stand below each other."""
        names = sum(width + GAP for width in self.widths[: self.grid.names])
        bands = [self._widths_of(piece) for piece in pieces]
        return names + sum(max(found) + GAP for found in zip_longest(*bands, fillvalue=0.0))

    def _widths_of(self, piece: Sequence[int]) -> list[float]:
        """Of a band's columns; what stands above several widens the last of them."""
        found: list[float] = []
        for group, members in groupby(piece, lambda place: self.grid.columns[place].group):
            widths = [self.widths[place] for place in members]
            inner = sum(widths) + GAP * (len(widths) - 1)
            widths[-1] += max(0.0, max(map(typeset.width, self._group_lines(group, inner))) - inner)
            found += widths
        return found

    def _group_lines(self, group: str, inner: float) -> list[str]:
        return typeset.wrapped(group, max(inner, typeset.longest_word(group)))

    # ---- what is printed ----

    def head(self, places: Sequence[int]) -> list[str]:
        """The heads of some columns."""
        columns = [self.grid.columns[place] for place in places]
        return [*self._groups(places), " & ".join(_latex_head(column) for column in columns) + r" \\"]

    def body(self, places: Sequence[int]) -> list[str]:
        return [" & ".join(self._cell(line[place], place) for place in places) + r" \\" for line in self.grid.lines]

    def _cell(self, item: Item, place: int) -> str:
        lines = self._lines(item, place)
        if len(lines) == 1:
            return _latex_item(item)
        return _in_lines(
            [_latex_item(Item(text, item.best)) for text in lines], "t", "l" if place < self.grid.names else "r"
        )

    def _groups(self, places: Sequence[int]) -> list[str]:
        """The upper of two header lines, ruled below; nothing where no column has a group."""
        if not any(self.grid.columns[place].group for place in places):
            return []
        heads, rules, first = [], [], 1
        for group, found in groupby(places, lambda place: self.grid.columns[place].group):
            members = list(found)
            count = len(members)
            if group:
                inner = sum(self.widths[place] for place in members) + GAP * (count - 1)
                lines = [latex(line) for line in self._group_lines(group, inner)]
                heads.append(rf"\multicolumn{{{count}}}{{c}}{{{_in_lines(lines, 'b', 'c')}}}")
                rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
            else:
                heads += [""] * count
            first += count
        return [" & ".join(heads) + r" \\", " ".join(rules)]


def shared_out(wanted: Sequence[float], room: float) -> list[float]:
    """The room for each of several columns: what it wants, and where that is too much in all, an equal part of what those that
    want less leave."""
    given = [0.0] * len(wanted)
    left = room
    for number, place in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        given[place] = min(wanted[place], left / (len(wanted) - number))
        left -= given[place]
    return given


def _cell_width(item: Item, lines: Sequence[str]) -> float:
    mean, mark, spread = item.text.partition(" ± ")
    if not mark:
        return max(typeset.width(line, is_bold=item.best) for line in lines)
    return typeset.width(mean, is_bold=item.best) + typeset.width(f"{THIN}±{THIN}{spread}", typeset.SCRIPT)


def _head(column: Column) -> str:
    """The column's name, in lines."""
    return "\n".join(textwrap.wrap(column.name, HEAD, break_long_words=False)) if column.figure else column.name


def _latex_head(column: Column) -> str:
    lines = [latex(line) for line in _head(column).split("\n")]
    return _in_lines(lines, "b", "r") + (_arrow(column) if len(lines) == 1 else "")


def _in_lines(lines: Sequence[str], foot: str, side: str) -> str:
    """Lines below each other in one cell, aligned with the others by the first (t) or the last (b)."""
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}[{foot}]{{@{{}}{side}@{{}}}}" + r"\\".join(lines) + r"\end{tabular}"


def _arrow(column: Column) -> str:
    more = rises(column.figure) if column.figure and column.name == titled(column.figure) else None
    return "" if more is None else r" $\uparrow$" if more else r" $\downarrow$"


def _latex_item(item: Item) -> str:
    """The spread in small print, so that six figures fit on a line."""
    mean, mark, spread = item.text.partition(" ± ")
    text = rf"\textbf{{{latex(mean)}}}" if item.best else latex(mean)
    return text + (rf"{{\scriptsize\,$\pm$\,{latex(spread)}}}" if mark else "")


def latex(text: str) -> str:
    """Text with LaTeX's own characters escaped; letters that its fonts lack are question marks. It may stand behind `\\\\`, which
    takes a bracket or a star after it for its own."""
    escaped = "".join(LATEX.get(mark, mark if ord(mark) <= LATIN else "?") for mark in text)
    return "{}" + escaped if text.startswith(("[", "*")) else escaped


# ---- CSV ------------------------------------------------------------------------------------------------------------


def as_csv(rows: Sequence[Row], beside: Mapping[int, Comparison] | None = None, asked: Sequence[str] = ()) -> str:
    """Fractions, not percent: one line a row, mean and spread of each figure, empty where not measured; then what was
    published for it, how sure that reading is, and its source. `fragile` is empty where no plain fine-tuning tells; `infected_n`
    counts the runs of the infected model's means, since a defense that collapsed on one has fewer, and each cost the runs whose
    records tell it.

    beside  place of a row -> its comparison
    asked   figures, of which those that stand in no column have their own, beside their n: records may lack them"""
    columns = list(rows[0].names) if rows else []
    figures = [*(f"{stage.model}_{name}" for stage in JUDGED for name in FIGURES), "der"]
    published = [*(f"published_{name}" for name in FIGURES), "certainty", "source"]
    measured = [f"{figure}{part}" for figure in figures for part in ("", "_std")]
    further = [name for name in asked if name not in (*FIGURES, "der", *COSTS)]
    counts = ["n", "infected_n", "collapsed"]
    head = [*columns, *counts, "seeds", "status", "fragile", *measured]
    head += [f"{name}{part}" for name in COSTS for part in ("", "_n")]
    head += [f"{name}{part}" for name in further for part in ("", "_std", "_n")]
    lines: list[list[Any]] = []
    for place, row in enumerate(rows):
        cells = [*(row.before[name] for name in FIGURES), *(row.figures[name] for name in (*FIGURES, "der"))]
        shown = [fraction(value) for cell in cells for value in (cell.mean, cell.spread)]
        for cell in (row.figures.get(name, Cell(())) for name in COSTS):
            shown += [fraction(cell.mean), str(len(cell.values))]
        for cell in (row.figures.get(name, Cell(())) for name in further):
            shown += [fraction(cell.mean), fraction(cell.spread), str(len(cell.values))]
        found = beside.get(place) if beside else None
        theirs = found.published if found else None
        shown += [fraction(theirs.scores.get(name)) if theirs else "" for name in FIGURES]
        shown += [theirs.certainty, theirs.source] if theirs else ["", ""]
        seeds = " ".join(str(seed) for seed in row.seeds)
        state = " ".join(row.marks) or "took"
        known = "" if row.fragile is None else "yes" if row.fragile else "no"
        met = [row.n, len(row.before["ca"].values), len(row.collapsed)]
        lines.append([*(row.names[c] for c in columns), *met, seeds, state, known, *shown])
    return separated.as_csv([*head, *published], lines)


def fraction(value: float | None) -> str:
    """A figure in a CSV; empty where not measured."""
    return "" if value is None else f"{value:.6f}"
