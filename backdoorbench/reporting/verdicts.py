"""Which defense works: defenses ranked over the infections that all of them were run on, at a stated loss of CA.

A cell here is an attack at a rate. Every figure is computed of each seed over the same cells, then told as mean and spread over
seeds, so that nothing but the defense differs between two lines. Infections that did not take are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.errors import DataError, quantity
from backdoorbench.metrics import DER_DEFINITION, printed
from backdoorbench.reporting import separated
from backdoorbench.reporting.formats import fraction
from backdoorbench.reporting.grids import Column, Grid, Item, blocks, labels
from backdoorbench.reporting.notes import join_called, join_few, seeds_of
from backdoorbench.reporting.rows import DASH, TITLES, Cell, Outcome, Row, is_weak, outcome, rate_of, show

if TYPE_CHECKING:
    from backdoorbench.metrics import Limits

FIGURES = ("met", "worst_asr", "asr", "ca_loss", "ra", "der", "front")  # of a verdict, in the order of its table
MEASURED = (*FIGURES, "met_not_fragile")  # the last where some cells are fragile
ORDER = ("met", "worst_asr", "asr", "ca_loss")  # what lines are ranked by
AXES = (INFECT.group, "rate", PURIFY.group)  # in what the rows of one ranking differ
DEFINITIONS = (
    "worst ASR: in the cell with the highest mean. CA loss: what it costs of the infected model's CA, in points. front: cells in "
    f"which no other of these defenses is as good in CA and in ASR and better in one; equals share it. {DER_DEFINITION} Percent."
)

Case = tuple[str, str]  # an attack and a rate, as the tables call them
Unit = tuple[Case, int]  # with a seed
K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """What one defense reaches.

    figures    of MEASURED -> Cell, a value a seed
    worst      the case of `worst_asr`
    collapsed  how many of its runs collapsed: they count with the figures that they have, as not met and on no front
    """

    name: str
    figures: dict[str, Cell]
    worst: Case
    collapsed: int = 0

    @property
    def place(self) -> tuple[float, ...]:
        """What verdicts are sorted by; the same where all that counts is printed the same."""
        met, *others = (printed(self.figures[name].mean or 0) for name in ORDER)
        return (-met, *others)


@dataclass(frozen=True)
class Ranking:
    """The verdicts on defenses, best first, in what else is the same for all of them.

    cases, seeds  that all of these defenses have runs of
    infected      what the infected models show there
    fragile       whether plain fine-tuning ends a case's backdoor; None where none tells
    notes         what is not counted, and why
    """

    title: str
    limits: Limits
    cases: tuple[Case, ...]
    seeds: tuple[int, ...]
    verdicts: list[Verdict]
    infected: Verdict
    fragile: dict[Case, bool | None]
    notes: list[str]


def rank(rows: Sequence[Row], limits: Limits) -> list[Ranking]:
    """A ranking of each block of rows that differ in attack, rate and defense only; DataError where none has two defenses on the
    same infection."""
    contests = [_contest(title, members) for title, members in blocks(rows, AXES)]
    found = [ranking for contest in contests if (ranking := _ranking(contest, limits)) is not None]
    if not found:
        defenses = list(dict.fromkeys(name for contest in contests for name in contest.runs))
        have = f"of {join_called(defenses)}" if defenses else "of no defense at all"
        raise DataError(
            f"there is nothing to rank: on infections that took there are finished runs {have}; expected at least two defenses "
            f"with an infection and a seed in common. Run another on the same attacks and seeds, or leave out --verdicts."
        )
    return found


# ---- what can be compared -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Contest:
    """The runs of one block, by defense.

    cases  all of them, in order -> whether they are fragile
    weak   what is not counted since the infection did not take
    """

    title: str
    runs: dict[str, dict[Unit, Outcome]]
    cases: dict[Case, bool | None]
    weak: set[Unit]


def _contest(title: str, rows: Sequence[Row]) -> _Contest:
    attacks, names = (labels(rows, axis, (INFECT.group, "rate")) for axis in (INFECT.group, PURIFY.group))
    made = _Contest(title, {}, {}, set())
    entries = [entry for entry in zip(rows, attacks, names, strict=True) if entry[0].names[PURIFY.group] != "none"]
    first = {attack: place for place, attack in reversed(list(enumerate(attacks)))}
    for row, attack, name in sorted(entries, key=lambda entry: (first[entry[1]], rate_of(entry[0].config))):
        case = attack, row.names["rate"]
        for run in row.runs:
            found, unit = outcome(run), (case, int(run.config["seed"]))
            if found is not None and is_weak(run):
                made.weak.add(unit)
            elif found is not None:
                made.runs.setdefault(name, {})[unit] = found
                made.cases.setdefault(case, row.fragile)
    return made


def largest_block(having: Mapping[K, frozenset[T]], least: int) -> tuple[list[K], frozenset[T]]:
    """Of keys that have some things each, those keys, `least` of them at least, and the things they share, of which keys times
    things is largest; of equals that with more keys. Nothing where no thing is shared.

    >>> largest_block({"ft": frozenset("abc"), "fst": frozenset("abd"), "pbe": frozenset("a")}, 2)[0]
    ['ft', 'fst']
    """
    sets = list(dict.fromkeys(having.values()))
    offered = dict.fromkeys(one & other for one in sets for other in sets)
    offered |= dict.fromkeys([frozenset.intersection(*sets)] if sets else [])
    best: tuple[list[K], frozenset[T]] = [], frozenset()
    for shared in filter(None, offered):
        keys = [key for key, things in having.items() if things >= shared]
        if len(keys) >= least and (len(keys) * len(shared), len(keys)) > (len(best[0]) * len(best[1]), len(best[0])):
            best = keys, shared
    return best


def _ranking(contest: _Contest, limits: Limits) -> Ranking | None:
    """None where no two defenses share an infection."""
    names, units = largest_block({name: frozenset(runs) for name, runs in contest.runs.items()}, 2)
    if not names:
        return None
    seeds_of = {case: frozenset(seed for other, seed in units if other == case) for case in contest.cases}
    cases, common = largest_block(seeds_of, 1)
    seeds = sorted(common)
    kept = {name: {(case, seed): contest.runs[name][case, seed] for case in cases for seed in seeds} for name in names}
    fronts = {unit: front({name: kept[name][unit] for name in names}) for unit in kept[names[0]]}
    fragile = {case: contest.cases[case] for case in cases}
    verdicts = [_verdict(name, kept[name], fronts, fragile, limits) for name in names]
    return Ranking(
        contest.title,
        limits,
        tuple(cases),
        tuple(seeds),
        sorted(verdicts, key=lambda verdict: (verdict.place, verdict.name)),
        _infected(kept[names[0]]),
        fragile,
        [*_left_out(contest, names, cases, seeds), *_weak(contest)],
    )


def _left_out(contest: _Contest, names: Sequence[str], cases: Sequence[Case], seeds: Sequence[int]) -> list[str]:
    """A sentence on what some defense has no run of, and which."""
    every = {unit for runs in contest.runs.values() for unit in runs}
    defenses = [
        f"{name} ({len(runs)} of {len(every)} runs)" for name, runs in contest.runs.items() if name not in names
    ]
    lacking = []
    for case in (case for case in contest.cases if case not in cases):
        without = [name for name in names if any((case, seed) not in contest.runs[name] for seed in seeds)]
        lacking.append(f"{_called(case)} (of {join_called(without)})")
    others = sorted({seed for _, seed in every} - set(seeds))
    parts = [
        f"{len(found)} {noun}{'s' * (len(found) > 1)}: {join_few(found)}"
        for noun, found in (("defense", defenses), ("cell", lacking), ("seed", list(map(str, others))))
        if found
    ]
    return [f"left out of the verdicts, for missing runs: {'. '.join(parts)}"] if parts else []


def _weak(contest: _Contest) -> list[str]:
    """A sentence on infections that did not take."""
    seeds: dict[Case, list[int]] = {}
    for case, seed in sorted(contest.weak):
        seeds.setdefault(case, []).append(seed)
    said = [f"{_called(case)} ({seeds_of(found)})" for case, found in seeds.items()]
    return [f"not counted in the verdicts, the infection being weak or broken: {join_few(said)}"] if said else []


# ---- what each reaches ----------------------------------------------------------------------------------------------


def front(runs: Mapping[str, Outcome]) -> frozenset[str]:
    """The defenses on the Pareto front of (CA, ASR) of one infection, as printed; equals share it, a collapsed run is on none."""
    points = {name: (printed(run.ca), printed(run.asr)) for name, run in runs.items() if not run.collapsed}
    return frozenset(name for name, point in points.items() if not any(_beats(o, point) for o in points.values()))


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] <= other[1]


def _verdict(
    name: str,
    runs: Mapping[Unit, Outcome],
    fronts: Mapping[Unit, frozenset[str]],
    fragile: Mapping[Case, bool | None],
    limits: Limits,
) -> Verdict:
    def is_met(unit: Unit) -> bool:
        return limits.met(runs[unit].ca_loss, runs[unit].asr) and not runs[unit].collapsed

    worst = _worst({unit: run.asr for unit, run in runs.items()})
    figures = {
        "met": _by_seed(runs, is_met),
        "met_not_fragile": _by_seed([unit for unit in runs if any(fragile.values()) and not fragile[unit[0]]], is_met),
        "worst_asr": _by_seed([unit for unit in runs if unit[0] == worst], lambda unit: runs[unit].asr),
        "asr": _by_seed(runs, lambda unit: runs[unit].asr),
        "ca_loss": _by_seed(runs, lambda unit: runs[unit].ca_loss),
        "ra": _by_seed(runs, lambda unit: runs[unit].ra),
        "der": _by_seed(runs, lambda unit: runs[unit].der),
        "front": _by_seed(runs, lambda unit: name in fronts[unit]),
    }
    return Verdict(name, figures, worst, sum(run.collapsed for run in runs.values()))


def _infected(runs: Mapping[Unit, Outcome]) -> Verdict:
    """What the infected models show; what is about a defense stays empty."""
    asr = {unit: run.before[0] for unit, run in runs.items()}
    worst = _worst(asr)
    figures = dict.fromkeys(MEASURED, Cell(())) | {
        "worst_asr": _by_seed([unit for unit in runs if unit[0] == worst], asr.__getitem__),
        "asr": _by_seed(runs, asr.__getitem__),
        "ra": _by_seed(runs, lambda unit: runs[unit].before[1]),
    }
    return Verdict(INFECT.model, figures, worst)


def _by_seed(units: Iterable[Unit], value: Callable[[Unit], float]) -> Cell:
    """The mean over cases, a value a seed."""
    found: dict[int, list[float]] = {}
    for unit in units:
        found.setdefault(unit[1], []).append(value(unit))
    return Cell(tuple(fmean(values) for values in found.values()))


def _worst(asr: Mapping[Unit, float]) -> Case:
    """The case with the highest mean over seeds."""
    found: dict[Case, list[float]] = {}
    for (case, _), value in asr.items():
        found.setdefault(case, []).append(value)
    return max(found, key=lambda case: printed(fmean(found[case])))


# ---- as a table -----------------------------------------------------------------------------------------------------


def as_grid(ranking: Ranking) -> Grid:
    """A line a defense, best first, the infected models below them; cells and n beside every figure."""
    rates = list(dict.fromkeys(rate for _, rate in ranking.cases))
    names = [Column(name, name, "", figure) for name, figure in ((PURIFY.group, ""), ("cells", "cells"), ("n", ""))]
    shown = []
    for verdict in (*ranking.verdicts, ranking.infected):
        line = [Item(text) for text in (verdict.name, str(len(ranking.cases)), str(len(ranking.seeds)))]
        for name in FIGURES:
            cell = verdict.figures[name]
            where = f" ({_called(verdict.worst, len(rates) > 1)})" if name == "worst_asr" else ""
            line.append(Item(show(cell, name) + where, value=cell.mean))
        shown.append(line)
    columns = (*names, *(Column(TITLES[name], TITLES[name], "", name) for name in FIGURES))
    order = f"ranked by {', '.join(TITLES[name] for name in ORDER)}"
    rate = f"rate {rates[0]}" if len(rates) == 1 else ""
    return Grid(" · ".join(filter(None, ("verdicts", ranking.title, rate, order))), columns, 1, shown)


def said(ranking: Ranking) -> list[str]:
    """What must stand below the table of a ranking."""
    spread = "; mean ± sample standard deviation over seeds" if len(ranking.seeds) > 1 else "; one seed has no spread"
    compared = f"cells: attacks at a rate that all of these defenses have, on {seeds_of(ranking.seeds)}{spread}"
    collapsed = [f"{verdict.name} ({verdict.collapsed})" for verdict in ranking.verdicts if verdict.collapsed]
    count = "collapsed, so not met and on no front, but in the means"
    return [
        f"met: cells with {ranking.limits}. {DEFINITIONS}",
        compared,
        *ranking.notes,
        *([f"{count}: {join_few(collapsed)}"] if collapsed else []),
        *_fragile(ranking),
    ]


def _fragile(ranking: Ranking) -> list[str]:
    """How many of the cells plain fine-tuning ends, and of how many it says nothing."""
    ended, unknown = (
        [_called(case) for case, is_fragile in ranking.fragile.items() if is_fragile is told] for told in (True, None)
    )
    total = f"of {quantity(len(ranking.cases), 'cell')}"
    said = [f"{len(ended)} {total} fragile, where a defense proves nothing: {join_few(ended)}"] if ended else []
    if 0 < len(ended) < len(ranking.cases):
        others = (f"{verdict.name} {show(verdict.figures['met_not_fragile'])}" for verdict in ranking.verdicts)
        mark = "; " if any("," in verdict.name for verdict in ranking.verdicts) else ", "
        said[0] += f". met on the others: {mark.join(others)}"
    said += [f"{len(unknown)} {total} without plain fine-tuning (defense=ft): {join_few(unknown)}"] if unknown else []
    return said


def as_csv(rankings: Sequence[Ranking]) -> str:
    """Fractions: a line a defense, mean and spread of each figure, beside the limits that they hold for."""
    measured = [f"{figure}{part}" for figure in MEASURED for part in ("", "_std")]
    limits = ["limit_ca_loss", "limit_asr"]
    head = ["setting", "rank", PURIFY.group, "cells", "fragile_cells", "n", "seeds", "collapsed"]
    lines: list[list[Any]] = []
    for ranking in rankings:
        for verdict in (*ranking.verdicts, ranking.infected):
            counts = len(ranking.cases), sum(map(bool, ranking.fragile.values())), len(ranking.seeds)
            cells = [verdict.figures[name] for name in MEASURED]
            shown = [fraction(value) for cell in cells for value in (cell.mean, cell.spread)]
            ends = [f"{value:g}" for value in (ranking.limits.ca_loss, ranking.limits.asr)]
            seeds = " ".join(map(str, ranking.seeds))
            line = [ranking.title, _place(verdict, ranking), verdict.name, *counts, seeds, verdict.collapsed]
            lines.append([*line, *shown, *verdict.worst, *ends])
    return separated.as_csv([*head, *measured, "worst_attack", "worst_rate", *limits], lines)


def _place(verdict: Verdict, ranking: Ranking) -> str:
    """`1` for the best; equal ones share a place, and the infected models have none."""
    if verdict is ranking.infected:
        return ""
    return str(1 + sum(other.place < verdict.place for other in ranking.verdicts))


def _called(case: Case, with_rate: bool = True) -> str:
    """`badnets, 10 %`."""
    attack, rate = case
    return f"{attack}, {rate}" if with_rate and rate != DASH else attack
