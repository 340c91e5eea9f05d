"""From rows to grids: text, laid out, in no format yet. What differs is a label, a column, or a table of its own.

Formats are in `formats.py`, in the console's `terminal.py` and in the page's template.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from backdoorbench.config.groups import ABSORBED, AFTER, DETECT, INFECT, PURIFY, Stage, told_by
from backdoorbench.errors import ConfigError, did_you_mean, join_words
from backdoorbench.reporting.rows import (
    CHOICES,
    COSTS,
    DASH,
    FIGURES,
    METHODS,
    NAMED,
    NUMBERS,
    PLACES,
    Cell,
    Row,
    bases,
    compared,
    label,
    look_up,
    rate_of,
    show,
    tell_apart,
    titled,
)

LEFT_OUT = "†"  # the mark of a cell some of whose runs collapsed
WEAK, FRAGILE = "‡", "§"  # marks of a cell whose infection is weak or broken; whose backdoor plain fine-tuning ends
SUPERFICIAL = "¶"  # the mark of a cell whose backdoor comes back after the defense
TUNED = (DETECT.group, PURIFY.group, AFTER.group)  # axes whose settings may differ from attack to attack
CLEAN = "clean model"  # what stands above a detector's figures on the control
EXACT = "exact purification"  # and above an after-attack's on the other one
OF_IMAGES = (
    ("auroc", "tpr_1", "tpr_5", "tpr_10", "tpr", "fpr", "precision"),
    ("fpr",),
)  # of a detector; on the clean model
AFTERWARDS = (  # title, figure, its name where headers have one line, and what stands above it
    ("asr", "asr", "ASR before", PURIFY.model),
    ("asr_after", "asr_after", "ASR after", AFTER.name),
    ("ca_after", "ca_after", "CA after", AFTER.name),
    ("asr_after_untriggered", "asr_after_untriggered", "lured", AFTER.name),
    ("asr_after", "asr_after_clean", "ASR after clean", CLEAN),
    ("asr_after", "asr_after_exact", "ASR after exact", EXACT),
)
OF_MODELS = (
    ("anomaly_index", "any_flagged", "target_flagged"),
    ("anomaly_index", "any_flagged"),
)  # where it judges models


@dataclass(frozen=True)
class Column:
    """Of a grid. `flat` names it where headers have one line; `group` stands above it where they have two."""

    name: str
    flat: str
    group: str
    figure: str  # of rows.TITLES; empty for names and n


@dataclass(frozen=True)
class Item:
    """What a grid prints in one place; of a figure its value, and whether it is the best of its like."""

    text: str
    best: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table without a format: its first `names` columns name the line.

    n  over how many runs its figures are that do not say it, where no column does; 0 where one does"""

    title: str
    columns: tuple[Column, ...]
    names: int
    lines: list[list[Item]]
    n: int = 0

    @property
    def head(self) -> str:
        """What stands above it."""
        return " · ".join(filter(None, (self.title, f"n {self.n}" if self.n else "")))


Told = Mapping[tuple[int, str], Mapping[str, str]]  # (id of a row, model) -> figure -> what was published: `0.20 a`
NOTHING_TOLD: Told = {}

# ---- a line a row ---------------------------------------------------------------------------------------------------


def list_grids(rows: Sequence[Row], figures: Sequence[str] = FIGURES, told: Told = NOTHING_TOLD) -> list[Grid]:
    """A line a row: attack, rate where it differs, defense, n, figures before and after, and what was published for it, where
    something was; for an infected model in brackets, once. What else differs is another grid."""
    grids = []
    measured = [name for name in figures if name in FIGURES]
    for title, named, lines in _listed(rows, PURIFY):
        columns = [Column(name, name, "", "") for name in (*named, "n")]
        columns += [Column(titled(name), titled(name), INFECT.model, name) for name in measured]
        columns += [_after_column(name) for name in figures]
        theirs = [name for name in figures if any(name in told.get((id(row), PURIFY.model), {}) for _, row in lines)]
        columns += [Column(titled(name), f"{titled(name)} published", "published", name) for name in theirs]
        shown = []
        for names, row in lines:
            items = [Item(text) for text in (*names, str(row.n))]
            before = [_figure(row.before, name, row.n) for name in measured]
            items += _with_told(before, measured, told.get((id(row), INFECT.model), {}))
            items += [_figure(row.figures, name, row.n, name in row.best) for name in figures]
            items += [Item(told.get((id(row), PURIFY.model), {}).get(name, DASH)) for name in theirs]
            shown.append(items)
        grids.append(Grid(title, tuple(columns), len(named), shown))
    return grids


def _after_column(figure: str) -> Column:
    if figure in COSTS:
        return Column(titled(figure), titled(figure), "cost", figure)
    return Column(titled(figure), _after(figure), PURIFY.model, figure)


def detection_grids(rows: Sequence[Row]) -> list[Grid]:
    """A line a row of `rows.detections`: attack, rate where it differs, detector, n, what the detector says of the infected
    model and, where it was asked, of the clean one. Detectors that judge models have tables of their own."""
    grids = []
    for is_of_models, (figures, beside) in ((False, OF_IMAGES), (True, OF_MODELS)):
        alike = [row for row in rows if ("any_flagged" in row.figures) == is_of_models]
        for title, named, lines in _listed(alike, DETECT):
            asked = beside if any(row.beside for _, row in lines) else ()
            columns = [Column(name, name, "", "") for name in (*named, "n")]
            columns += [Column(titled(name), titled(name), INFECT.model, name) for name in figures]
            columns += [Column(titled(name), f"{titled(name)} clean", CLEAN, name) for name in asked]
            shown = []
            for names, row in lines:
                items = [Item(text) for text in (*names, str(row.n))]
                items += [_figure(row.figures, name, row.n) for name in figures]
                items += [_figure(row.beside, name, row.n) for name in asked]
                shown.append(items)
            grids.append(Grid(title, tuple(columns), len(named), shown))
    return grids


def after_grids(rows: Sequence[Row]) -> list[Grid]:
    """A line a row of `rows.afters`: attack, rate where it differs, defense, after-attack, n, ASR before and after, and what else
    it measured; then the same after-attack on the clean model and after exact purification."""
    grids = []
    for title, named, lines in _listed(rows, AFTER):
        asked = [place for place in AFTERWARDS if any(place[1] in row.figures for _, row in lines)]
        columns = [Column(name, name, "", "") for name in (*named, "n")]
        columns += [Column(titled(shown), flat, model, shown) for shown, _, flat, model in asked]
        shown = []
        for names, row in lines:
            items = [Item(text) for text in (*names, str(row.n))]
            shown.append(items + [_figure(row.figures, name, row.n) for _, name, _, _ in asked])
        grids.append(Grid(title, tuple(columns), len(named), shown))
    return grids


def _after(figure: str) -> str:
    """What a column of the purified model is called where headers have one line."""
    return titled(figure) if figure.startswith("asr_") else f"{titled(figure)} after"


def _listed(rows: Sequence[Row], stage: Stage) -> Iterator[tuple[str, list[str], list[tuple[list[str], Row]]]]:
    """Of each list its title, the columns that name a line, and its rows in order, each under what these columns say."""
    for title, members in blocks(rows, (INFECT.group, "rate", *stage.upon[1:], stage.group)):
        rates = {row.names["rate"] for row in members}
        named = [INFECT.group, *(["rate"] if len(rates) > 1 else []), *stage.upon[1:], stage.group]
        called = [labels(members, name, (INFECT.group, "rate")) for name in named]
        order = {text: place for place, text in reversed(list(enumerate(called[0])))}
        lines = []
        for place, row in sorted(
            enumerate(members), key=lambda pair: (order[called[0][pair[0]]], rate_of(pair[1].config))
        ):
            names = [texts[place] for texts in called]
            said = _warnings(row)
            names[-1] += "".join(f" ({word})" for word in said.pop(SUPERFICIAL, ()))
            names[0] += "".join(f" ({word})" for words in said.values() for word in words)
            if row.collapsed:
                names[-1] += f" ({len(row.collapsed)} of {len(row.seeds)} collapsed)"
            lines.append((names, row))
        shared = f"rate {rates.pop()}" if len(rates) == 1 else ""
        yield " · ".join(filter(None, (title, shared))), named, lines


def _warnings(row: Row) -> dict[str, tuple[str, ...]]:
    """What must be said of a row's infections, and of its defense's work: mark -> its words."""
    said = {WEAK: row.marks, FRAGILE: ("fragile",) if row.fragile else ()}
    said[SUPERFICIAL] = ("superficial",) if row.superficial else ()
    return {mark: words for mark, words in said.items() if words}


def _figure(cells: Mapping[str, Cell], name: str, n: int, best: bool = False) -> Item:
    cell = cells.get(name, Cell(()))
    return Item(show(cell, name) + _another(cell, n), best, cell.mean)


def _another(cell: Cell, n: int) -> str:
    """` (n 2)` for a figure over another number of runs than n, such as one that the records of some do not have."""
    return f" (n {len(cell.values)})" if len(cell.values) not in (0, n) else ""


# ---- rows by columns ------------------------------------------------------------------------------------------------

Place = tuple[
    tuple[str, ...], tuple[str, ...]
]  # in a table of rows by columns: the labels of a line, and those of a column


def pivot_grids(
    rows: Sequence[Row], lines: Sequence[str], columns: Sequence[str], figures: Sequence[str], told: Told = NOTHING_TOLD
) -> list[Grid]:
    """Rows by columns, such as attacks by defenses: figures after the defense; in the place of `none` the infected model's, and
    those of the clean model of the same recipe where it was judged; in brackets what was published. What neither axis names is
    another grid, but for rates that differ between attacks alone. ConfigError for an axis there is not."""
    _check_axes(rows, lines, columns)
    if _has_one_rate_each(rows) and "rate" not in (*lines, *columns):
        lines, columns = (_beside_attack(axes) for axes in (lines, columns))
    return [
        _pivot(title, members, lines, columns, figures, told) for title, members in blocks(rows, (*lines, *columns))
    ]


def _has_one_rate_each(rows: Sequence[Row]) -> bool:
    """Whether poison rates differ, but never within an attack: then the attack's name goes with its rate."""
    rates: dict[str, set[str]] = {}
    for row in rows:
        rates.setdefault(row.names[INFECT.group], set()).add(row.names["rate"])
    several = set().union(*rates.values()) - {DASH}
    return len(several) > 1 and all(len(found) == 1 for found in rates.values())


def _beside_attack(axes: Sequence[str]) -> list[str]:
    return [part for axis in axes for part in ((axis, "rate") if axis == INFECT.group else (axis,))]


def _pivot(
    title: str, rows: Sequence[Row], lines: Sequence[str], columns: Sequence[str], figures: Sequence[str], told: Told
) -> Grid:
    others = [axis for axis in (*lines, *columns) if axis not in TUNED]
    left = zip(*(labels(rows, axis, others) for axis in lines), strict=True)
    above = zip(*(labels(rows, axis, others) for axis in columns), strict=True)
    placed: dict[Place, Row] = dict(zip(zip(left, above, strict=True), rows, strict=True))
    assert len(placed) == len(rows), "two settings have one place"
    clean: dict[Place, Row] = {}
    before: dict[Place, Row] = {}
    of_infected: dict[Place, Mapping[str, str]] = {}  # what was published, whichever of its rows has it
    if PURIFY.group in (*lines, *columns) and set(figures) & set(FIGURES):
        clean = _upon(CLEAN, {place: row for place, row in placed.items() if row.beside["ca"].values}, lines, columns)
        before = _upon(INFECT.model, placed, lines, columns)
        of_infected = {
            _on(INFECT.model, place, lines, columns): known
            for place, row in placed.items()
            if (known := told.get((id(row), INFECT.model)))
        }
        placed = {place: row for place, row in placed.items() if row.names[PURIFY.group] != "none"}
    left_labels, heads = (_in_order(_with_own(clean, (*before, *placed), at)) for at in (0, 1))
    usual = _usual(figures, placed.values(), before.values(), clean.values())
    shown: list[list[Item]] = []
    for line in left_labels:
        members = [row for place, row in (*before.items(), *placed.items()) if place[0] == line]
        shared, words = _shared([_warnings(row) for row in members])
        items = [Item(text) for text in line]
        items[0] = Item(items[0].text + (f" ({', '.join(words)})" if words else ""))
        for column in heads:
            if (line, column) in clean:
                judged = clean[line, column].beside
                items += [_of_clean(judged.get(name, Cell(())), usual) for name in figures]
            elif (line, column) in before:
                row = before[line, column]
                found = [_item(row, row.before, name, False, shared, usual) for name in figures]
                items += _with_told(found, figures, of_infected.get((line, column), {}))
            elif (line, column) in placed:
                row = placed[line, column]
                found = [_item(row, row.figures, name, name in row.best, shared, usual) for name in figures]
                items += _with_told(found, figures, told.get((id(row), PURIFY.model), {}))
            else:
                items += [Item(DASH)] * len(figures)
        shown.append(items)
    names = [Column(axis, axis, "", "") for axis in lines]
    cells = [_pivot_column(", ".join(column), name, len(figures) == 1) for column in heads for name in figures]
    return Grid(_with_figure(title, figures), (*names, *cells), len(lines), shown, usual)


def _usual(figures: Sequence[str], placed: Iterable[Row], before: Iterable[Row], clean: Iterable[Row]) -> int:
    """The n of most cells of the methods, or where there are none of the models that they start from; 0 where nothing is."""
    parts = ([row.figures for row in placed], [row.before for row in before], [row.beside for row in clean])
    for part in parts:
        counts = [len(cells[name].values) for cells in part for name in figures if name in cells and cells[name].values]
        if counts:
            return statistics.multimode(counts)[0]
    return 0


def _with_told(items: Sequence[Item], figures: Sequence[str], told: Mapping[str, str]) -> list[Item]:
    """`2.00 ± 0.10 [0.20 a]`."""
    return [
        dataclasses.replace(item, text=f"{item.text} [{told[name]}]") if name in told else item
        for item, name in zip(items, figures, strict=True)
    ]


def _upon(model: str, placed: Mapping[Place, Row], lines: Sequence[str], columns: Sequence[str]) -> dict[Place, Row]:
    """Where the figures of a model stand that defenses start from, and the row with most seeds that has them."""
    found: dict[Place, Row] = {}
    for at, row in placed.items():
        place = _on(model, at, lines, columns)
        if place not in found or len(found[place].seeds) < len(row.seeds):
            found[place] = row
    return found


def _with_own(clean: Iterable[Place], others: Iterable[Place], at: int) -> list[tuple[str, ...]]:
    """The labels of places, those first that the clean model alone has: elsewhere it changes no order."""
    usual = [place[at] for place in others]
    return [place[at] for place in clean if place[at] not in usual] + usual


def _shared(warnings: Sequence[Mapping[str, Sequence[str]]]) -> tuple[set[str], list[str]]:
    """The marks that all cells of a line have, which its label then says, and their words."""
    shared = set.intersection(*(set(found) for found in warnings)) if warnings else set()
    return shared, [
        word
        for mark in (WEAK, FRAGILE, SUPERFICIAL)
        if mark in shared
        for word in sorted({word for found in warnings for word in found[mark]})
    ]


def _item(row: Row, cells: Mapping[str, Cell], figure: str, best: bool, known: Set[str], usual: int) -> Item:
    """A cell of a pivot, with its marks but for those `known` of its line; its n where it is another than most cells have."""
    if figure not in cells:
        return Item(DASH)
    left_out = LEFT_OUT if row.collapsed and cells is row.figures else ""
    doubts = "" if figure in COSTS else "".join(mark for mark in _warnings(row) if mark not in known)
    marks = left_out + doubts
    found = _figure(cells, figure, usual, best)
    return dataclasses.replace(found, text=found.text + (f" {marks}" if marks else ""))


def _of_clean(cell: Cell, usual: int) -> Item:
    return Item(show(cell) + _another(cell, usual), False, cell.mean) if cell.values else Item(DASH)


def _pivot_column(text: str, figure: str, alone: bool) -> Column:
    name = titled(figure)
    return Column(text, text, "", figure) if alone else Column(name, f"{text} {name}", text, figure)


def _with_figure(title: str, figures: Sequence[str]) -> str:
    said = titled(figures[0]) + ("" if figures[0] in NUMBERS else ", %") if len(figures) == 1 else ""
    return " · ".join(filter(None, (title, said)))


def _on(model: str, place: Place, lines: Sequence[str], columns: Sequence[str]) -> Place:
    """Where a model's figures stand, of a defense's."""
    return _in_place_of_defense(model, place[0], lines), _in_place_of_defense(model, place[1], columns)


def _in_place_of_defense(model: str, text: tuple[str, ...], axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(model if axis == PURIFY.group else part for axis, part in zip(axes, text, strict=True))


def _in_order(texts: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Each label once, in order of appearance; numbers such as poison rates ascend, what is none stands behind them."""
    distinct = list(dict.fromkeys(texts))

    def order(text: tuple[str, ...]) -> list[tuple[bool, float]]:
        firsts = [next(i for i, other in enumerate(distinct) if other[at] == part) for at, part in enumerate(text)]
        numbers = [_number(part) for part in text]
        return [
            (number is None, first if number is None else number) for number, first in zip(numbers, firsts, strict=True)
        ]

    return sorted(distinct, key=order)


def _number(text: str) -> float | None:
    try:
        number = float(text.removesuffix(" %"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _check_axes(rows: Sequence[Row], lines: Sequence[str], columns: Sequence[str]) -> None:
    stage = rows[0].stage if rows else PURIFY
    known = [*bases(stage), *(group for group in PLACES if group not in NAMED)]
    known += [name for name in (rows[0].names if rows else ()) if name not in bases(stage)]
    for axis in (*lines, *columns):
        if axis not in known:
            raise ConfigError(
                f"'{axis}' is nothing to lay a table out by.{did_you_mean(axis, known)} There are {join_words(known)}."
            )
    if both := [axis for axis in lines if axis in columns]:
        raise ConfigError(f"'{both[0]}' is given for rows and for columns; expected one of the two. Drop one.")
    for flag, axes in (("--rows", lines), ("--columns", columns)):
        if twice := [axis for axis in axes if axes.count(axis) > 1]:
            raise ConfigError(f"{flag} names '{twice[0]}' twice; expected it once. Drop one.")


# ---- blocks and labels ----------------------------------------------------------------------------------------------


def blocks(rows: Sequence[Row], axes: Sequence[str], apart: Sequence[str] = ()) -> list[tuple[str, list[Row]]]:
    """Rows that differ in nothing but the axes, under what tells them from the other blocks.

    apart  groups that an axis would absorb, and in which the rows of a block are to agree all the same"""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps(_rest(row, axes, apart), sort_keys=True), []).append(row)
    firsts = [members[0] for members in groups.values()]
    said = [{base: row.names[base] for base in bases(row.stage) if base not in _told(axes)} for row in firsts]
    names = tell_apart(said, [_rest(row, axes, apart) for row in firsts])
    titles = []
    for called, members in zip(names, groups.values(), strict=True):
        shared = {key.removesuffix(".name"): value for key, value in unsaid(members).items()}
        titles.append(" · ".join(f"{name} {value}" for name, value in {**called, **shared}.items()))
    return list(zip(titles, groups.values(), strict=True))


def unsaid(rows: Sequence[Row]) -> dict[str, str]:
    """The settings, methods' apart, that all these rows share and that the names of their options do not imply."""
    shared = [row.beyond for row in rows]
    return {
        key: look_up(rows[0].config, key)
        for key, value in shared[0].items()
        if key.split(".")[0] not in METHODS and all(key in each and each[key] == value for each in shared)
    }


def _told(axes: Iterable[str]) -> set[str]:
    """The groups whose settings the axes' labels tell."""
    return {group for axis in axes for group in ABSORBED.get(axis, (axis,))}


def _rest(row: Row, axes: Sequence[str], apart: Sequence[str] = ()) -> dict[str, Any]:
    """What no axis tells of a row's settings; `apart` is told by none."""
    told = _told(axes) - set(apart)
    kept = compared(row.config, told_by(row.stage))
    rate = kept[INFECT.group].get("poison_rate")
    kept = {group: value for group, value in kept.items() if group not in told}
    if INFECT.group in told and "rate" not in told:
        kept["rate"] = rate
    elif "rate" in told and INFECT.group in kept:
        kept = _without_rate(kept)
    for axis in axes:
        group, _, key = axis.partition(".")
        if key and group in kept:
            kept[group] = _without(kept[group], key.split("."))
    return kept


def _without(settings: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    inner = {path[0]: _without(settings[path[0]], path[1:])} if len(path) > 1 and path[0] in settings else {}
    return {name: value for name, value in settings.items() if name != path[0]} | inner


def _without_rate(config: Mapping[str, Any]) -> dict[str, Any]:
    attack = {name: value for name, value in config[INFECT.group].items() if name != "poison_rate"}
    return {**config, INFECT.group: attack}


def labels(rows: Sequence[Row], axis: str, others: Sequence[str]) -> list[str]:
    """What each row is called on an axis: `fst`, or `fst, alpha 0.2` beside another fst.

    Where a defense's settings differ from attack to attack only, as papers tune them, it keeps one name; a note says so."""
    if axis not in CHOICES:
        return [row.names[axis] for row in rows]
    places = list(zip(*(labels(rows, other, ()) for other in others), strict=True)) if axis in TUNED else None
    names = tell_apart(
        [{axis: row.config[axis]["name"]} for row in rows], [_part(row, axis) for row in rows], places or None
    )
    return [label(found, axis) for found in names]


def _part(row: Row, axis: str) -> dict[str, Any]:
    """The settings that an axis' label tells."""
    kept = compared({group: row.config[group] for group in ABSORBED[axis] if group in row.config}, told_by(row.stage))
    return _without_rate(kept) if axis == INFECT.group else kept
