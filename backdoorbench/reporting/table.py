"""From runs to tables: pure functions. Mean, spread and n over seeds; what differs is a column, a label, or a table of its own.

A `Row` holds the runs that differ in nothing but the seed. A `Grid` is what a page prints of rows: text, laid out, in no
format yet. Formats are in `formats.py`, in the console and in the page's template.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backdoorbench.config import flat
from backdoorbench.errors import ConfigError, did_you_mean, join_words
from backdoorbench.metrics import defense_effectiveness

if TYPE_CHECKING:
    from backdoorbench.metrics import Scores
    from backdoorbench.recorded import Run

DASH = "–"  # what was not measured, never 0
FIGURES = ("ca", "asr", "ra")  # of one model
RISES = {"ca": True, "asr": False, "ra": True, "der": True}  # a figure -> whether more is better
NOT_COMPARED = {
    "runtime",
    "seed",
    "rerun",
    "force",
    "fail_fast",
    "plugins",
    "curve",
    "control",
    "tracker",
    "reconstruct",
}  # change no figure, or (the last) only allow one that there would not be
CHOICES = ("dataset", "model", "train", "holdout", "attack", "defense")
BASES = ("dataset", "model", "attack", "rate", "defense")
INFECTED = "infected"  # what stands for the model before any defense where defenses are told apart
LEFT_OUT, WEAK = "†", "‡"  # marks of a cell: some of its runs collapsed; its infection is weak or broken
ABSORBED = {
    "dataset": ("dataset", "model", "train", "holdout"),
    "model": ("model", "train"),
}  # what an axis' label tells


@dataclass(frozen=True)
class Cell:
    """A figure over seeds: fractions, and how many."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None below two values. In floats: `statistics` computes in fractions, at ten times the cost
        of the rest of a report."""
        if len(self.values) < 2:
            return None
        mean = statistics.fmean(self.values)
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1))


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed.

    names      column -> what it says: data set, model, attack, rate, defense, and whatever differs between rows
    n          runs that the means are over; seeds: of all its runs
    before, after  ca, asr, ra (and der after) -> Cell
    marks      the statuses among its infections, `took` apart
    collapsed  of the runs left out of `after` the reason, by seed
    best       the figures in which it beats the other defenses on the same infections
    """

    names: dict[str, str]
    n: int
    seeds: tuple[int, ...]
    before: dict[str, Cell]
    after: dict[str, Cell]
    marks: tuple[str, ...]
    config: dict[str, Any]
    collapsed: dict[int, str]
    best: frozenset[str]


@dataclass(frozen=True)
class Column:
    """Of a grid. `flat` names it where headers have one line; `group` stands above it where they have two."""

    name: str
    flat: str
    group: str
    figure: str  # ca, asr, ra, der; empty for names and n


@dataclass(frozen=True)
class Item:
    """What a grid prints in one place; of a figure its value, and whether it is the best of its like."""

    text: str
    best: bool = False
    value: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table without a format: its first `names` columns name the line."""

    title: str
    columns: tuple[Column, ...]
    names: int
    lines: list[list[Item]]


def heading(run: Run) -> str:
    """`digits · demo · badnets → fst · seed 0`."""
    config = run.config
    names = [config[group]["name"] for group in ("dataset", "model")]
    return " · ".join([*names, f"{config['attack']['name']} → {config['defense']['name']}", f"seed {config['seed']}"])


def percent(value: float | None) -> str:
    """`97.31`, or a dash."""
    return DASH if value is None else f"{100 * value:.2f}"


def show(cell: Cell) -> str:
    """`97.31 ± 0.42`, `97.31` for one value, or a dash."""
    spread = f" ± {100 * cell.spread:.2f}" if cell.spread is not None else ""
    return percent(cell.mean) + spread


# ---- from runs to rows ----------------------------------------------------------------------------------------------


def aggregate(runs: Iterable[Run]) -> list[Row]:
    """One row for each setting among finished runs, in order of first appearance; a seed run twice counts once, the latest.
    Runs that collapsed are left out of the means."""
    groups: dict[str, dict[int, Run]] = {}
    identify = identifier()
    for run in runs:
        if run.status == "done":
            groups.setdefault(identify(run.config), {})[run.config["seed"]] = run
    extra = differing([next(iter(seeds.values())).config for seeds in groups.values()])
    rows = [_row([seeds[seed] for seed in sorted(seeds)], extra) for seeds in groups.values()]
    return _with_best(rows)


def _row(members: Sequence[Run], extra: Sequence[str]) -> Row:
    config = members[0].config
    reasons = {run.config["seed"]: reason for run in members if (reason := collapse(run))}
    sound = [run for run in members if run.infection.get("status") != "broken"]
    kept = [run for run in members if run.config["seed"] not in reasons]
    after = {name: _cell((run.purified for run in kept), name) for name in FIGURES}
    effect = (effectiveness(run) for run in kept)
    return Row(
        base_names(config) | {column: look_up(config, column) for column in extra},
        len(kept),
        tuple(run.config["seed"] for run in members),
        {name: _cell((run.infected for run in sound), name) for name in FIGURES},
        after | {"der": Cell(tuple(value for value in effect if value is not None))},
        tuple(sorted({run.infection.get("status", "") for run in members} - {"took", "clean", ""})),
        config,
        reasons,
        frozenset(),
    )


def _cell(scores: Iterable[Scores | None], name: str) -> Cell:
    values = (getattr(score, name) for score in scores if score is not None)
    return Cell(tuple(value for value in values if value is not None))


def effectiveness(run: Run) -> float | None:
    """DER of a run; None where there is no trigger or no second model."""
    return defense_effectiveness(run.infected, run.purified) if run.infected and run.purified else None


def collapse(run: Run) -> str:
    """Why a finished run's figures mean nothing: `broken infection`, `constant predictor`, `CA near chance`; else empty.

    Records from before `largest_share` was kept are judged by their classes: a network that calls more than `constant_share`
    of the images the same leaves less than the rest of every other class right."""
    if run.infection.get("status") == "broken":
        return "broken infection"
    details = run.details.get("purified", {})
    recalls = [recall for recall in details.get("ca_per_class", []) if recall is not None]
    if run.purified is None or len(recalls) < 2:
        return ""
    allowed = run.config["gates"]["constant_share"]
    others = sorted(recalls)[:-1]
    share = details.get("largest_share")
    if share > allowed if share is not None else statistics.fmean(others) < 1 - allowed:
        return "constant predictor"
    return "CA near chance" if run.purified.ca < 1.5 / len(recalls) else ""


def _with_best(rows: Sequence[Row]) -> list[Row]:
    """The rows with their `best`: among the defenses on the same infections those with the best mean, as printed.

    Compared are defenses that finished every seed of the setting, none collapsed, on infections that took."""
    settings: dict[str, list[Row]] = {}
    identify = identifier()
    for row in rows:
        settings.setdefault(identify({**row.config, "defense": None}), []).append(row)
    best: dict[int, set[str]] = {}
    for members in settings.values():
        seeds = {seed for row in members for seed in row.seeds}
        fit = [r for r in members if r.names["defense"] != "none" and not r.collapsed and not r.marks]
        fit = [row for row in fit if set(row.seeds) == seeds]
        for name, rises in RISES.items():
            means = {id(row): round(mean, 4) for row in fit if (mean := row.after[name].mean) is not None}
            if len(means) > 1:
                top = (max if rises else min)(means.values())
                for key, mean in means.items():
                    if mean == top:
                        best.setdefault(key, set()).add(name)
    return [dataclasses.replace(row, best=frozenset(best.get(id(row), ()))) for row in rows]


def identity(config: Mapping[str, Any]) -> str:
    """The same text for configurations that a table does not tell apart."""
    return identifier()(config)


def identifier() -> Callable[[Mapping[str, Any]], str]:
    """`identity` for many configurations that share their parts, as those that `record.collect` read do: of each part the text
    is made once."""
    texts: dict[int, tuple[Any, str]] = {}  # with the part itself, which keeps its id from being another's

    def identify(config: Mapping[str, Any]) -> str:
        said = []
        for name in sorted(config):
            if name not in NOT_COMPARED:
                value = config[name]
                if id(value) not in texts:
                    texts[id(value)] = value, json.dumps(compared({name: value})[name], sort_keys=True)
                said.append(f"{name} {texts[id(value)][1]}")
        return "\n".join(said)

    return identify


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that figures depend on. Where a named data set lies is none; a folder of images is its path."""
    kept = {name: value for name, value in config.items() if name not in NOT_COMPARED}
    dataset = kept.get("dataset")
    if dataset is not None and not str(dataset.get("_target_", "")).endswith(".Folder"):
        kept["dataset"] = {name: value for name, value in dataset.items() if name not in ("root", "download")}
    return kept


def base_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The columns that every table has: data set, model, attack, rate, defense."""
    rate = config["attack"].get("poison_rate")
    return {
        "dataset": config["dataset"]["name"],
        "model": config["model"]["name"],
        "attack": config["attack"]["name"],
        "rate": DASH if rate is None else f"{100 * rate:g} %",
        "defense": config["defense"]["name"],
    }


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys that tell rows apart beyond the base columns: within one option, keys whose values differ or that some
    rows lack."""
    found: list[str] = []
    settings = [compared(config) for config in configs]
    for group in dict.fromkeys(group for config in settings for group in config):
        choices: dict[str, dict[str, dict[str, Any]]] = {}  # option -> each of its distinct settings, once
        for value in (config.get(group, DASH) for config in settings):
            name = str(value.get("name")) if group in CHOICES and isinstance(value, dict) else ""
            choices.setdefault(name, {}).setdefault(json.dumps(value, sort_keys=True), flat({group: value}))
        for key in dict.fromkeys(key for distinct in choices.values() for parts in distinct.values() for key in parts):
            values = ({json.dumps(v.get(key, DASH), sort_keys=True) for v in d.values()} for d in choices.values())
            if any(len(different) > 1 for different in values) and key != "attack.poison_rate":
                found.append(key)
        if group in ("train", "holdout") and len(choices) > 1:  # chosen, not named in the base columns
            found.append(f"{group}.name")
    return found


def look_up(config: Mapping[str, Any], column: str) -> str:
    """The setting of a dotted key, as a table prints it."""
    value: Any = config
    for name in column.split("."):
        value = value.get(name, DASH) if isinstance(value, Mapping) else DASH
    return "null" if value is None else DASH if isinstance(value, Mapping) else str(value)


def tell_apart(
    bases: Sequence[dict[str, str]], configs: Sequence[Mapping[str, Any]], places: Sequence[Any] | None = None
) -> list[dict[str, str]]:
    """Of each configuration its base names, and the settings that tell it from those called alike.

    places  what is compared with what: only settings that differ in one place count; None: all are in one"""
    alike: dict[tuple[str, ...], dict[Any, list[Mapping[str, Any]]]] = {}
    for base, config, place in zip(bases, configs, places or [None] * len(bases), strict=True):
        alike.setdefault(tuple(base.values()), {}).setdefault(place, []).append(config)
    keys = {
        base: list(dict.fromkeys(key for members in parts.values() if len(members) > 1 for key in differing(members)))
        for base, parts in alike.items()
    }
    return [
        base | {key.removesuffix(".name"): look_up(config, key) for key in keys[tuple(base.values())]}
        for base, config in zip(bases, configs, strict=True)
    ]


# ---- from rows to grids ---------------------------------------------------------------------------------------------


def list_grids(rows: Sequence[Row], figures: Sequence[str] = FIGURES) -> list[Grid]:
    """A line a row: attack, rate where it differs, defense, n, figures before and after. What else differs is another grid."""
    grids = []
    for title, members in _blocks(rows, ("attack", "rate", "defense")):
        rates = {row.names["rate"] for row in members}
        named = ["attack", *(["rate"] if len(rates) > 1 else []), "defense"]
        labels = [_labels(members, name, ("attack", "rate")) for name in named]
        more = f"rate {rates.pop()}" if len(rates) == 1 else ""
        measured = [name for name in figures if name in FIGURES]
        columns = [Column(name, name, "", "") for name in (*named, "n")]
        columns += [Column(name.upper(), name.upper(), "infected", name) for name in measured]
        columns += [Column(name.upper(), f"{name.upper()} after", "purified", name) for name in figures]
        lines = []
        order = {label: place for place, label in reversed(list(enumerate(labels[0])))}
        for place, row in sorted(enumerate(members), key=lambda pair: (order[labels[0][pair[0]]], _rate(pair[1]))):
            names = dict(zip(named, (label[place] for label in labels), strict=True))
            names["attack"] += "".join(f" ({mark})" for mark in row.marks)
            if row.collapsed:
                names["defense"] += f" ({len(row.collapsed)} of {len(row.seeds)} collapsed)"
            items = [Item(text) for text in (*names.values(), str(row.n))]
            items += [Item(show(row.before[name]), False, row.before[name].mean) for name in measured]
            items += [Item(show(row.after[name]), name in row.best, row.after[name].mean) for name in figures]
            lines.append(items)
        grids.append(Grid(" · ".join(filter(None, (title, more))), tuple(columns), len(named), lines))
    return grids


def pivot_grids(
    rows: Sequence[Row], lines: Sequence[str], columns: Sequence[str], figures: Sequence[str]
) -> list[Grid]:
    """Rows by columns, such as attacks by defenses: figures after the defense; before it under `infected`, in the place of
    `none`. What neither axis names is another grid. ConfigError for an axis there is not."""
    _check_axes(rows, lines, columns)
    grids = []
    for title, members in _blocks(rows, (*lines, *columns)):
        others = [axis for axis in (*lines, *columns) if axis != "defense"]
        left = list(zip(*(_labels(members, axis, others) for axis in lines), strict=True))
        above = list(zip(*(_labels(members, axis, others) for axis in columns), strict=True))
        placed: dict[tuple[Any, Any], Row] = dict(zip(zip(left, above, strict=True), members, strict=True))
        assert len(placed) == len(members), "two settings have one place"
        before: dict[tuple[Any, Any], Row] = {}
        if ("defense" in lines or "defense" in columns) and set(figures) & set(FIGURES):
            for (line, column), row in placed.items():
                place = _infected(line, lines), _infected(column, columns)
                if place not in before or len(before[place].seeds) < len(row.seeds):
                    before[place] = row
            placed = {place: row for place, row in placed.items() if row.names["defense"] != "none"}
        heads = _in_order([place[1] for place in (*before, *placed)])
        usual = statistics.multimode(row.n for row in placed.values())[:1]
        shown: list[list[Item]] = []
        for line in _in_order([place[0] for place in (*before, *placed)]):
            weak = all(row.marks for place, row in (*before.items(), *placed.items()) if place[0] == line)
            items = [Item(label) for label in line]
            for column in heads:
                if (line, column) in before:
                    row = before[line, column]
                    items += [_item(row, row.before.get(name), False, weak, None) for name in figures]
                elif (line, column) in placed:
                    row = placed[line, column]
                    items += [_item(row, row.after[name], name in row.best, weak, usual[0]) for name in figures]
                else:
                    items += [Item(DASH)] * len(figures)
            if weak:
                marks = {
                    mark for place, row in (*before.items(), *placed.items()) if place[0] == line for mark in row.marks
                }
                items[0] = Item(f"{items[0].text} ({', '.join(sorted(marks))})")
            shown.append(items)
        names = [Column(axis, axis, "", "") for axis in lines]
        cells = [_pivot_column(", ".join(column), name, len(figures) == 1) for column in heads for name in figures]
        grids.append(Grid(_with_figure(title, figures), (*names, *cells), len(lines), shown))
    return grids


def _item(row: Row, cell: Cell | None, best: bool, known_weak: bool, usual: int | None) -> Item:
    """A cell of a pivot, with its marks; its n where it is another than most cells have."""
    if cell is None:
        return Item(DASH)
    after = usual is not None
    marks = (LEFT_OUT if row.collapsed and after else "") + (WEAK if row.marks and not known_weak else "")
    count = f" (n {row.n})" if after and row.n != usual and row.n else ""
    return Item(show(cell) + count + (f" {marks}" if marks else ""), best, cell.mean)


def _pivot_column(label: str, figure: str, alone: bool) -> Column:
    name = figure.upper()
    return Column(label, label, "", figure) if alone else Column(name, f"{label} {name}", label, figure)


def _with_figure(title: str, figures: Sequence[str]) -> str:
    said = f"{figures[0].upper()}, %" if len(figures) == 1 else ""
    return " · ".join(filter(None, (title, said)))


def _infected(label: tuple[str, ...], axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(INFECTED if axis == "defense" else text for axis, text in zip(axes, label, strict=True))


def _in_order(labels: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Each label once, in order of appearance; poison rates ascend, since they are numbers."""
    distinct = list(dict.fromkeys(labels))

    def order(label: tuple[str, ...]) -> list[Any]:
        firsts = [next(i for i, other in enumerate(distinct) if other[at] == text) for at, text in enumerate(label)]
        numbers = [_number(text) for text in label]
        return [number if number is not None else first for number, first in zip(numbers, firsts, strict=True)]

    return sorted(distinct, key=order)


def _number(text: str) -> float | None:
    try:
        return float(text.removesuffix(" %"))
    except ValueError:
        return None


def _rate(row: Row) -> float:
    return float(row.config["attack"].get("poison_rate") or 0)


def _check_axes(rows: Sequence[Row], lines: Sequence[str], columns: Sequence[str]) -> None:
    known = [*BASES, "train", "holdout", *(name for name in (rows[0].names if rows else ()) if name not in BASES)]
    for axis in (*lines, *columns):
        if axis not in known:
            raise ConfigError(
                f"'{axis}' is nothing to lay a table out by.{did_you_mean(axis, known)} There are {join_words(known)}."
            )
    if twice := [axis for axis in lines if axis in columns]:
        raise ConfigError(f"'{twice[0]}' is given for rows and for columns; expected one of the two. Drop one.")


def _part(config: Mapping[str, Any], axis: str) -> dict[str, Any]:
    """The settings that an axis' label tells."""
    if axis == "rate":
        return {}
    if axis in CHOICES:
        kept = {group: config[group] for group in ABSORBED.get(axis, (axis,)) if group in config}
        return _without_rate(kept) if axis == "attack" else kept
    return {}


def _without_rate(config: Mapping[str, Any]) -> dict[str, Any]:
    attack = {name: value for name, value in config["attack"].items() if name != "poison_rate"}
    return {**config, "attack": attack}


def _blocks(rows: Sequence[Row], axes: Sequence[str]) -> list[tuple[str, list[Row]]]:
    """Rows that differ in nothing but the axes, under what tells them from the other blocks."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps(_rest(row.config, axes), sort_keys=True), []).append(row)
    firsts = [members[0] for members in groups.values()]
    left = [base for base in BASES if base not in _told(axes)]
    bases = [{base: row.names[base] for base in left} for row in firsts]
    names = tell_apart(bases, [_rest(row.config, axes) for row in firsts])
    titles = [" · ".join(f"{name} {value}" for name, value in found.items()) for found in names]
    return list(zip(titles, groups.values(), strict=True))


def _told(axes: Iterable[str]) -> set[str]:
    """The groups whose settings the axes' labels tell."""
    return {group for axis in axes for group in ABSORBED.get(axis, (axis,))}


def _rest(config: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Any]:
    """What no axis tells."""
    told = _told(axes)
    kept = compared(config)
    rate = kept["attack"].get("poison_rate")
    kept = {group: value for group, value in kept.items() if group not in told}
    if "attack" in told and "rate" not in told:
        kept["rate"] = rate
    elif "rate" in told and "attack" in kept:
        kept = _without_rate(kept)
    for axis in axes:
        group, _, key = axis.partition(".")
        if key and group in kept:
            kept[group] = _without(kept[group], key.split("."))
    return kept


def _without(settings: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    inner = {path[0]: _without(settings[path[0]], path[1:])} if len(path) > 1 and path[0] in settings else {}
    return {name: value for name, value in settings.items() if name != path[0]} | inner


def _labels(rows: Sequence[Row], axis: str, others: Sequence[str]) -> list[str]:
    """What each row is called on an axis: `fst`, or `fst, alpha 0.2` beside another fst.

    Where a defense's settings differ from attack to attack only, as papers tune them, it keeps one name; a note says so."""
    if axis == "rate" or axis not in CHOICES:
        return [row.names[axis] for row in rows]
    places = list(zip(*(_labels(rows, other, ()) for other in others), strict=True)) if axis == "defense" else None
    names = tell_apart(
        [{axis: row.config[axis]["name"]} for row in rows], [_part(row.config, axis) for row in rows], places or None
    )
    return [label(found, axis) for found in names]


def varying(rows: Sequence[Row]) -> list[str]:
    """`fst: lr 0.01, 0.02`: settings of a defense that differ between attacks on the same data and network."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for _, members in _blocks(rows, ("attack", "rate", "defense")):
        called = _labels(members, "defense", ("attack", "rate"))
        for name in dict.fromkeys(called):
            configs = [row.config for row, text in zip(members, called, strict=True) if text == name]
            for key in differing([{"defense": config["defense"]} for config in configs]):
                values = found.setdefault(name, {}).setdefault(key.removeprefix("defense."), {})
                values.update(dict.fromkeys(look_up(config, key) for config in configs))
    return [
        f"{name}: " + "; ".join(f"{key} {', '.join(values)}" for key, values in settings.items())
        for name, settings in found.items()
    ]


def label(names: Mapping[str, str], axis: str) -> str:
    """`fst, alpha 0.2` from its names; settings of another group keep their dotted key."""
    more = (f"{key.removeprefix(f'{axis}.')} {value}" for key, value in names.items() if key != axis)
    return ", ".join([names[axis], *more])


# ---- what must be said below ----------------------------------------------------------------------------------------


def footer(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """What a table must say of itself: n and seeds, spread, hardware."""
    seeds = sorted({seed for row in rows for seed in row.seeds})
    devices = sorted({run.environment.get("device", "?") for run in runs if run.status == "done"})
    spread = "mean ± sample standard deviation over seeds; " if any(row.n > 1 for row in rows) else ""
    return f"{spread}seeds {ranges(seeds)}; {'; '.join(devices)}"


def rebuilt(runs: Sequence[Run]) -> list[str]:
    """A sentence that names the defenses whose training set is not the one that infected the model, where there are any."""
    met = {
        f"{run.config['defense']['name']} on {run.config['attack']['name']}"
        for run in runs
        if "rebuilt_train" in run.notes
    }
    what = "given a poisoned set rebuilt with the finished trigger, which the model was not trained on"
    return [f"{what}: {join_few(sorted(met))}"] if met else []


def ranges(numbers: Sequence[int]) -> str:
    """`0, 1, 2`, or `0 to 9` for a long row without gaps."""
    if len(numbers) > 5 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def join_few(texts: Sequence[str]) -> str:
    """The texts joined; of more than ten the first, and how many more."""
    more = f"; and {len(texts) - 10} more" if len(texts) > 10 else ""
    return "; ".join(texts[:10]) + more
