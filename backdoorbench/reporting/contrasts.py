"""Which defense differs from which, over attacks and seeds: paired differences with their tests, and mean ranks.

A pair is one infection that two defenses were both run on: the same data set, network, holdout, attack, rate and seed. Infections
that did not take say nothing of a defense, and a model that collapsed has no figures; neither is counted. No infection counts
twice: one that was met with several holdouts has statistics for each; runs that chose settings (`holdout.validate`) stand back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any

from backdoorbench.config.groups import INFECT, PURIFY, content_of
from backdoorbench.errors import ConfigError, DataError, did_you_mean, few, quantity
from backdoorbench.metrics import DER_DEFINITION, printed
from backdoorbench.reporting import separated
from backdoorbench.reporting.formats import fraction
from backdoorbench.reporting.grids import Column, Grid, Item, blocks, labels
from backdoorbench.reporting.notes import MOST, join_called, join_few, seeds_of
from backdoorbench.reporting.rows import (
    DASH,
    RISES,
    TITLES,
    Row,
    by_infection,
    identifier,
    is_weak,
    look_up,
    outcome,
)
from backdoorbench.reporting.significance import LEAST, LEVEL, Paired, Ranked, alike, holm, paired, ranked
from backdoorbench.reporting.verdicts import largest_block

if TYPE_CHECKING:
    from backdoorbench.reporting.rows import Outcome

COMPARED = ("ca", "asr", "ra", "der")  # figures that can be
AXES = ("dataset", INFECT.group, "rate", PURIFY.group)  # in what the rows of one comparison differ
HOLDOUT = ("holdout", content_of("holdout"))
TUNING = "holdout.validate"  # the setting that marks a run as one for choosing settings

WHAT = (
    "difference: the first defense less the second, in points: its mean over the n infections that both were run on (the same "
    "data, network, holdout, attack, rate and seed), and Student's 95 % interval. better, worse: on how many of them. p: "
    f"Wilcoxon's signed-rank test, two-sided; Holm: corrected for the number of pairs; marked: below {LEVEL:g}"
)

Unit = tuple[int, int]  # an infection, seeds aside, and a seed


@dataclass(frozen=True)
class Contrast:
    """Two defenses over the infections that both were run on.

    n          how many those are
    found      of the differences, one less other; None where n carries no test
    corrected  its p by Holm, over all contrasts of the figure
    """

    one: str
    other: str
    n: int
    found: Paired | None = None
    corrected: float | None = None


@dataclass(frozen=True)
class Standing:
    """One figure of all defenses that are compared, the best first.

    ranking  of `ranked`, the defenses on the infections that all of them have; None where these carry no test
    notes    what is not counted, and why
    """

    title: str
    figure: str
    contrasts: list[Contrast]
    ranked: tuple[str, ...]
    ranking: Ranked | None
    attacks: int
    seeds: tuple[int, ...]
    notes: list[str]


@dataclass(frozen=True)
class _Field:
    """The runs of one block, by defense, and how many were left out.

    tuning  the shares of the holdout that were kept from the defense, where they were"""

    title: str
    runs: dict[str, dict[Unit, Outcome]]
    weak: int
    collapsed: dict[str, int]
    tuning: tuple[str, ...] = ()


def standings(
    rows: Sequence[Row], figures: Sequence[str], against: str = "", keeps_tuning: bool = False
) -> list[Standing]:
    """Of each block of rows that differ in data, attack, rate and defense only, a standing a figure; DataError where nowhere two
    defenses have `LEAST` infections in common.

    against       the defense that all others are compared with; empty: each with each
    keeps_tuning  whether runs that chose settings are compared too, where there are others"""
    rows, left_out = (list(rows), []) if keeps_tuning else _final(rows)
    fields = [_field(title, members) for title, members in _comparable(rows)]
    names = list(dict.fromkeys(name for field in fields for name in field.runs))
    if against and against not in names:
        raise ConfigError(
            f"--against is '{against}'; expected a defense that was run.{did_you_mean(against, names)} There "
            f"{f'are: {join_called(names)}' if names else 'is none on infections that took'}."
        )
    most = max((_shared(field, *pair) for field in fields for pair in _pairs(field, against)), default=0)
    if most < LEAST:
        beside = "".join(f" ({note})" for note in left_out)
        raise DataError(
            f"there is too little for statistics: of {len(names)} defense{'s' * (len(names) != 1)} no two that are to be "
            f"compared have more than {most} infection{'s' * (most != 1)} in common (the same attack, rate and seed, infections "
            f"that took, neither model collapsed); expected {LEAST} at least, since of fewer no two-sided p can be below "
            f"{LEVEL:g}{beside}. Run more attacks or seeds, such as bdx -m attack=badnets,blended,sig seed=0,1,2 "
            f"defense=ft,fst, or leave out --statistics."
        )
    kept = [field for field in fields if any(_shared(field, *pair) >= LEAST for pair in _pairs(field, against))]
    few_there = [field.title for field in fields if field not in kept and len(field.runs) > 1]
    left_out += (
        [f"no statistics, for fewer than {LEAST} infections in common: {join_few(few_there)}"] if few_there else []
    )
    made = [_standing(field, figure, against) for field in kept for figure in figures]
    return [dataclasses.replace(standing, notes=[*standing.notes, *left_out]) for standing in made]


def _final(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows but for those that chose settings, and a sentence on these; where there are no others, all."""
    tuning, final = ([row for row in rows if _is_tuning(row) is asked] for asked in (True, False))
    if not tuning or not final:
        return list(rows), []
    shares = list(dict.fromkeys(look_up(row.config, TUNING) for row in tuning))
    count = sum(len(row.runs) for row in tuning)
    return final, [
        f"not counted in the statistics, being for choosing settings ({TUNING} {', '.join(shares)}): {count} "
        f"run{'s' * (count != 1)}; --where {TUNING}={','.join(shares)} compares them"
    ]


def _is_tuning(row: Row) -> bool:
    """Whether part of the holdout was kept from the defense."""
    return bool(row.config["holdout"].get("validate"))


def _comparable(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Blocks under their titles, in which an infection was met with one holdout only."""
    found = []
    for title, members in blocks(rows, AXES):
        apart = blocks(members, AXES, HOLDOUT) if _is_met_twice(members) else [("", members)]
        found += [(" · ".join(filter(None, (title, more))), part) for more, part in apart]
    return found


def _is_met_twice(rows: Sequence[Row]) -> bool:
    """Whether an infection is there with several holdouts."""
    nothing = {PURIFY.group: None, content_of(PURIFY.group): None}
    infection, holdout = identifier(), identifier(HOLDOUT)
    met: dict[str, set[str]] = {}
    for row in rows:
        rest = {**row.config, **nothing, **dict.fromkeys(HOLDOUT)}
        met.setdefault(infection(rest), set()).add(holdout(row.config))
    return any(len(holdouts) > 1 for holdouts in met.values())


def _field(title: str, rows: Sequence[Row]) -> _Field:
    infections = {id(row): number for number, members in enumerate(by_infection(rows)) for row in members}
    found = _Field(title, {}, 0, {})
    weak: set[Unit] = set()
    for row, name in zip(rows, labels(rows, PURIFY.group, AXES[:-1]), strict=True):
        if row.names[PURIFY.group] == "none":
            continue
        for run in row.runs:
            unit, said = (infections[id(row)], int(run.config["seed"])), outcome(run)
            if said is None:
                continue
            if is_weak(run):
                weak.add(unit)
            elif said.collapsed:
                found.collapsed[name] = found.collapsed.get(name, 0) + 1
            else:
                found.runs.setdefault(name, {})[unit] = said
    tuning = dict.fromkeys(look_up(row.config, TUNING) for row in rows if _is_tuning(row))
    return _Field(title, found.runs, len(weak), found.collapsed, tuple(tuning))


def _pairs(field: _Field, against: str) -> list[tuple[str, str]]:
    if against:
        return [(name, against) for name in field.runs if name != against and against in field.runs]
    return list(combinations(field.runs, 2))


def _shared(field: _Field, one: str, other: str) -> int:
    return len(field.runs[one].keys() & field.runs[other].keys())


def _standing(field: _Field, figure: str, against: str) -> Standing:
    values = {name: {unit: getattr(said, figure) for unit, said in runs.items()} for name, runs in field.runs.items()}
    names, shared = largest_block({name: frozenset(runs) for name, runs in values.items()}, 2)
    order = _best_first(values, names, shared, RISES[figure])
    pairs = [(name, against) for name in order if name != against] if against else list(combinations(order, 2))
    every = {unit for runs in values.values() for unit in runs}
    contrasts = _contrasts(values, pairs)
    ranking = None
    if len(names) >= 3 and len(shared) >= LEAST:
        kept = [name for name in order if name in names]
        found = ranked([[values[name][unit] for name in kept] for unit in sorted(shared)], RISES[figure])
        by_rank = sorted(range(len(kept)), key=found.means.__getitem__)
        ranking = dataclasses.replace(found, means=tuple(sorted(found.means)))
        names = [kept[place] for place in by_rank]
    return Standing(
        field.title,
        figure,
        contrasts,
        tuple(names) if ranking else (),
        ranking,
        len({infection for infection, _ in every}),
        tuple(sorted({seed for _, seed in every})),
        [*_unmet(contrasts), *_unranked(values, names, shared, ranking), *_left_out(field)],
    )


def _best_first(
    values: Mapping[str, Mapping[Unit, float]], names: Sequence[str], shared: frozenset[Unit], rises: bool
) -> list[str]:
    """The defenses by their mean over what `names` share; those that lack some of it follow, in the order they came."""
    means = {name: fmean(values[name][unit] for unit in sorted(shared)) for name in names}
    return sorted(means, key=means.__getitem__, reverse=rises) + [name for name in values if name not in means]


def _contrasts(values: Mapping[str, Mapping[Unit, float]], pairs: Sequence[tuple[str, str]]) -> list[Contrast]:
    found = [
        [values[one][unit] - values[other][unit] for unit in sorted(values[one].keys() & values[other].keys())]
        for one, other in pairs
    ]
    tests = [paired(differences) if len(differences) >= LEAST else None for differences in found]
    corrected = iter(holm([test.p for test in tests if test]))
    return [
        Contrast(one, other, len(differences), test, next(corrected) if test else None)
        for (one, other), differences, test in zip(pairs, found, tests, strict=True)
    ]


def _unmet(contrasts: Sequence[Contrast]) -> list[str]:
    """How many pairs of defenses have no line, since no infection has both."""
    unmet = sum(not contrast.n for contrast in contrasts)
    total = f"{unmet} of {len(contrasts)} pairs of defenses"
    return [f"without a line, having no infection in common: {total}"] if unmet else []


def _unranked(
    values: Mapping[str, object], names: Sequence[str], shared: frozenset[Unit], ranking: Ranked | None
) -> list[str]:
    """Why there are no ranks, or which defenses have none."""
    if ranking is None:
        return [
            f"no ranks: {quantity(len(values), 'defense')} with {quantity(len(shared), 'infection')} in common; "
            f"expected 3 with {LEAST} at least"
        ]
    left = [name for name in values if name not in names]
    return [f"not ranked, for missing runs: {join_few(left)}"] if left else []


def _left_out(field: _Field) -> list[str]:
    said = (
        [f"not counted in the statistics, being weak or broken: {quantity(field.weak, 'infection')}"]
        if field.weak
        else []
    )
    collapsed = [f"{name} ({count})" for name, count in field.collapsed.items()]
    shares = ", ".join(field.tuning)
    said += (
        [f"runs for choosing settings, whose defenses had less than the holdout: {TUNING} {shares}"] if shares else []
    )
    return said + ([f"collapsed, so not counted in the statistics: {join_few(collapsed)}"] if collapsed else [])


# ---- as tables ------------------------------------------------------------------------------------------------------


def as_grids(standing: Standing) -> list[Grid]:
    """The differences of a figure, and its ranks, where there are any."""
    return [_differences(standing), *([_ranks(standing)] if standing.ranking else [])]


def _differences(standing: Standing) -> Grid:
    heads = (PURIFY.group, "against", "n", "difference", "95 % interval", "better", "worse", "p", "p, Holm")
    columns = tuple(Column(head, head, "", "" if place < 3 else "contrast") for place, head in enumerate(heads))
    lines = []
    for contrast in (met for met in standing.contrasts if met.n):
        found = contrast.found
        line = [Item(contrast.one), Item(contrast.other), Item(str(contrast.n), value=contrast.n)]
        if found is None:
            line += [Item(DASH)] * 6
        else:
            better, worse = (found.above, found.below) if RISES[standing.figure] else (found.below, found.above)
            line += [
                Item(points(found.mean), value=found.mean),
                Item(f"{points(found.low)} to {points(found.high)}", value=found.low),
                *(Item(str(count), value=count) for count in (better, worse)),
                Item(probability(found.p), value=found.p),
                Item(probability(contrast.corrected), (contrast.corrected or 0) < LEVEL, contrast.corrected),
            ]
        lines.append(line)
    return Grid(_titled("differences", standing), columns, 2, lines)


def captions(standing: Standing) -> list[list[str]]:
    """What must be said of each of `as_grids`."""
    return [[WHAT], *([[_friedman(standing)]] if standing.ranking else [])]


def _ranks(standing: Standing) -> Grid:
    assert standing.ranking is not None
    columns = (
        Column(PURIFY.group, PURIFY.group, "", ""), Column("n", "n", "", ""), Column("mean rank", "mean rank", "", "contrast"),
    )  # fmt: skip
    lines = [
        [Item(name), Item(str(standing.ranking.n)), Item(f"{rank:.2f}", value=rank)]
        for name, rank in zip(standing.ranked, standing.ranking.means, strict=True)
    ]
    return Grid(_titled("mean ranks", standing), columns, 1, lines)


def _titled(what: str, standing: Standing) -> str:
    return " · ".join(filter(None, (what, standing.title, TITLES[standing.figure])))


def said(standings: Sequence[Standing]) -> list[str]:
    """What must stand below the tables of statistics."""
    if not standings:
        return []
    tests = sorted({sum(contrast.found is not None for contrast in standing.contrasts) for standing in standings})
    ways = [f"{TITLES[s.figure]} {'higher' if RISES[s.figure] else 'lower'}" for s in standings]
    notes = [
        f"{WHAT}; better is {', '.join(dict.fromkeys(ways))}; corrected for {' or '.join(map(str, tests))} "
        f"test{'s' * (tests != [1])} of a figure",
        "; ".join(dict.fromkeys(_counted(standing) for standing in standings))
        + ": infections by one attack are like each other, so p is rather too small than too large",
    ]
    notes += [_friedman(standing) for standing in standings if standing.ranking]
    notes += dict.fromkeys(note for standing in standings for note in standing.notes)
    return notes + ([DER_DEFINITION] if any(standing.figure == "der" for standing in standings) else [])


def _counted(standing: Standing) -> str:
    where = f" ({standing.title})" if standing.title else ""
    return f"n counts infections of {quantity(standing.attacks, 'setting')} of data and attack, {seeds_of(standing.seeds)}{where}"


def _friedman(standing: Standing) -> str:
    """What the ranks of a figure say as a whole, and which do not differ."""
    found = standing.ranking
    assert found is not None
    groups = [
        f"({'; '.join(standing.ranked[i : j + 1])})" for i, j in alike(found.means, found.distance)
    ]  # names have commas
    same = f"; not apart: {few(groups, MOST)}" if groups else "; all are apart"
    verdict = "they differ" if found.p < LEVEL else "no difference is shown, nor can one between two of them be"
    where = f" ({standing.title})" if standing.title else ""
    return (
        f"{TITLES[standing.figure]} ranks{where}: Friedman p {probability(found.p)}, n {found.n}: {verdict}. Nemenyi's critical "
        f"difference {found.distance:.2f}{same if found.p < LEVEL else ''}"
    )


def points(value: float) -> str:
    """`+1.20`, in points."""
    return f"{printed(value):+.2f}".replace("-", "−")


def probability(value: float | None) -> str:
    """`0.031`, or `<0.001`."""
    if value is None:
        return DASH
    return "<0.001" if value < 0.0005 else f"{value:.3f}"


def as_csv(standings: Sequence[Standing]) -> str:
    """A line a contrast, fractions; empty where n carries no test."""
    head = [
        "setting",
        "figure",
        PURIFY.group,
        "against",
        "n",
        "difference",
        "low",
        "high",
        "better",
        "worse",
        "p",
        "p_holm",
    ]
    lines: list[list[Any]] = []
    for standing in standings:
        ranking = standing.ranking
        means = dict(zip(standing.ranked, ranking.means, strict=True)) if ranking else {}
        shared = [str(ranking.n), fraction(ranking.p), fraction(ranking.distance)] if ranking else [""] * 3
        for contrast in standing.contrasts:
            found, measured = contrast.found, [""] * 7
            if found is not None:
                counts = (found.above, found.below) if RISES[standing.figure] else (found.below, found.above)
                measured = [*map(fraction, (found.mean, found.low, found.high)), *map(str, counts)]
                measured += [fraction(found.p), fraction(contrast.corrected)]
            ranks = [fraction(means.get(name)) for name in (contrast.one, contrast.other)]
            line = [standing.title, standing.figure, contrast.one, contrast.other, contrast.n]
            lines.append([*line, *measured, *ranks, *shared])
    return separated.as_csv([*head, "rank", "rank_against", "rank_n", "friedman_p", "critical_difference"], lines)
