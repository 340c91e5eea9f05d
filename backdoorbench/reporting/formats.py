"""Grids as text: Markdown, LaTeX, CSV. Pure functions; the console and the page have their own."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby

from backdoorbench.config.groups import JUDGED
from backdoorbench.reporting.grids import Column, Grid, Item
from backdoorbench.reporting.published import Comparison
from backdoorbench.reporting.rows import COSTS, FIGURES, Cell, Row, rises, titled

LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "–": "--", "—": "---", "·": r"$\cdot$", "→": r"$\rightarrow$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "§": r"\S{}", "−": r"$-$", "≤": r"$\leq$",
} | {mark: "\\" + mark for mark in "&%_#${}"}  # fmt: skip
LINE, HEAD = 112, 16  # letters of a line of small print between margins of 2 cm; of a column's name, where it wraps
PAGE, LONG = 45, r"\begin{longtable}"  # lines of a table on a page; how one begins that has more
LATIN = 0x17F  # the last letter that LaTeX's standard fonts are sure to have


# ---- Markdown -------------------------------------------------------------------------------------------------------


def markdown(grid: Grid) -> str:
    """A pipe table under its title; names to the left, figures to the right, the best in bold."""
    cells = [[f"**{item.text}**" if item.best else item.text for item in line] for line in grid.lines]
    body = pipes([column.flat for column in grid.columns], cells, grid.names)
    return f"{grid.title}\n\n{body}" if grid.title else body


def pipes(header: Sequence[str], cells: Sequence[Sequence[str]], names: int) -> str:
    """Header and cells as a Markdown table, its first `names` columns to the left."""
    lines = [header, ["---"] * names + ["---:"] * (len(header) - names), *cells]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# ---- LaTeX ----------------------------------------------------------------------------------------------------------


def preamble(tables: Sequence[str]) -> str:
    """What a document must load for these tables, as a comment."""
    packages = ["booktabs", *(["longtable"] if any(LONG in table for table in tables) else [])]
    return f"% \\usepackage{{{','.join(packages)}}}\n"


def latex_table(grid: Grid, said: Sequence[str] = ()) -> str:
    """A booktabs table that compiles as it is, after what `preamble` says: arrows say which way is better, the best is bold, an n
    that all lines share is in the caption, and so is what must be `said`. It is one tabular: columns that a line has no room for
    stand below in the same columns, beside the names again. One with more lines than a page has breaks over pages."""
    counts = {
        line[place].text for place, column in enumerate(grid.columns) if column.name == "n" for line in grid.lines
    }
    kept = [place for place, column in enumerate(grid.columns) if not (column.name == "n" and len(counts) == 1)]
    head = ", ".join(filter(None, (grid.title, f"n = {counts.pop()}" if len(counts) == 1 else "")))
    caption = rf"\caption{{{latex('. '.join(text.rstrip('.') for text in (head, *said) if text))}.}}"
    bands = [[*kept[: grid.names], *piece] for piece in _pieces(grid, kept)]
    form = "l" * grid.names + "r" * (max(map(len, bands)) - grid.names)
    heads, bodies = [_band_head(grid, band) for band in bands], [_band_lines(grid, band) for band in bands]
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


def _pieces(grid: Grid, kept: Sequence[int]) -> list[list[int]]:
    """Columns beside the names, as many as a line of text has room for; groups stay together."""
    widths = [
        max(_width(column), *(_letters(line[place].text) for line in grid.lines)) + 1.5
        for place, column in enumerate(grid.columns)
    ]
    room = LINE - sum(widths[: grid.names])
    pieces: list[list[int]] = [[]]
    for _, members in groupby(kept[grid.names :], lambda place: grid.columns[place].group or str(place)):
        group = list(members)
        if pieces[-1] and sum(widths[place] for place in (*pieces[-1], *group)) > room:
            pieces.append([])
        pieces[-1] += group
    return pieces


def _letters(text: str) -> float:
    """The width of a cell, in letters of the table's size."""
    mean, mark, spread = text.partition(" ± ")
    return len(mean) + 0.7 * len(spread) + bool(mark)


def _width(column: Column) -> float:
    return max(map(len, _head(column).split("\n"))) + 2.0 * bool(_arrow(column))


def _head(column: Column) -> str:
    """The column's name, in lines."""
    return "\n".join(textwrap.wrap(column.name, HEAD, break_long_words=False)) if column.figure else column.name


def _band_head(grid: Grid, places: Sequence[int]) -> list[str]:
    """The heads of some columns of a grid."""
    columns = [grid.columns[place] for place in places]
    return [*_groups(columns), " & ".join(_latex_head(column) for column in columns) + r" \\"]


def _band_lines(grid: Grid, places: Sequence[int]) -> list[str]:
    return [" & ".join(_latex_item(line[place]) for place in places) + r" \\" for line in grid.lines]


def _latex_head(column: Column) -> str:
    lines = [latex(line) for line in _head(column).split("\n")]
    if len(lines) > 1:
        return r"\begin{tabular}[b]{@{}r@{}}" + r"\\".join(lines) + r"\end{tabular}"
    return lines[0] + _arrow(column)


def _groups(columns: Sequence[Column]) -> list[str]:
    """The upper of two header lines, ruled below; nothing where no column has a group."""
    if not any(column.group for column in columns):
        return []
    heads, rules, place = [], [], 1
    for group, found in groupby(columns, lambda column: column.group):
        width = len(list(found))
        if group:
            heads.append(rf"\multicolumn{{{width}}}{{c}}{{{latex(group)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + width - 1}}}")
        else:
            heads += [""] * width
        place += width
    return [" & ".join(heads) + r" \\", " ".join(rules)]


def _arrow(column: Column) -> str:
    more = rises(column.figure) if column.figure and column.name == titled(column.figure) else None
    return "" if more is None else r" $\uparrow$" if more else r" $\downarrow$"


def _latex_item(item: Item) -> str:
    """The spread in small print, so that six figures fit on a line."""
    mean, mark, spread = item.text.partition(" ± ")
    text = rf"\textbf{{{latex(mean)}}}" if item.best else latex(mean)
    return text + (rf"{{\scriptsize\,$\pm$\,{latex(spread)}}}" if mark else "")


def latex(text: str) -> str:
    """Text with LaTeX's own characters escaped; letters that its fonts lack are question marks."""
    return "".join(LATEX.get(mark, mark if ord(mark) <= LATIN else "?") for mark in text)


# ---- CSV ------------------------------------------------------------------------------------------------------------


def as_csv(rows: Sequence[Row], beside: Mapping[int, Comparison] | None = None) -> str:
    """Fractions, not percent: one line a row, mean and spread of each figure, empty where not measured; then what was
    published for it, how sure that reading is, and its source. `fragile` is empty where no plain fine-tuning tells.

    beside  place of a row -> its comparison"""
    columns = list(rows[0].names) if rows else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    figures = [*(f"{stage.model}_{name}" for stage in JUDGED for name in FIGURES), "der"]
    published = [*(f"published_{name}" for name in FIGURES), "certainty", "source"]
    measured = [f"{figure}{part}" for figure in figures for part in ("", "_std")]
    writer.writerow([*columns, "n", "collapsed", "seeds", "status", "fragile", *measured, *COSTS, *published])
    for place, row in enumerate(rows):
        cells = [*(row.before[name] for name in FIGURES), *(row.figures[name] for name in (*FIGURES, "der"))]
        shown = [fraction(value) for cell in cells for value in (cell.mean, cell.spread)]
        shown += [fraction(row.figures.get(name, Cell(())).mean) for name in COSTS]
        found = beside.get(place) if beside else None
        theirs = found.published if found else None
        shown += [fraction(theirs.scores.get(name)) if theirs else "" for name in FIGURES]
        shown += [theirs.certainty, theirs.source] if theirs else ["", ""]
        seeds = " ".join(str(seed) for seed in row.seeds)
        state = " ".join(row.marks) or "took"
        known = "" if row.fragile is None else "yes" if row.fragile else "no"
        writer.writerow([*(row.names[c] for c in columns), row.n, len(row.collapsed), seeds, state, known, *shown])
    return buffer.getvalue()


def fraction(value: float | None) -> str:
    """A figure in a CSV; empty where not measured."""
    return "" if value is None else f"{value:.6f}"
