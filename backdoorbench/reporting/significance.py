"""Tests of differences between methods: numbers in, numbers out. SciPy does the counting; nothing here knows what a run is.

After Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets (JMLR 7, 2006).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST = 6  # pairs: of fewer no two-sided signed-rank p can be below 0.05 (of 5 the least is 2 / 2^5 = 0.0625)
LEVEL = 0.05  # of a test; 1 - LEVEL of an interval
DIGITS = 10  # of a difference: fractions that are equal on paper differ in the last bits


@dataclass(frozen=True)
class Paired:
    """What n paired differences say.

    low, high  Student's interval of their mean
    p          Wilcoxon's signed-rank test, two-sided; pairs without a difference do not bear on it, and of those alone it is 1
    above, below  how many differences lie above 0, and below
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    above: int
    below: int


@dataclass(frozen=True)
class Ranked:
    """How k methods rank over n blocks, 1 being the best; equal ones share the mean of their places.

    means     the mean rank of each method
    p         Friedman's test that they rank alike, corrected for ties
    distance  Nemenyi's critical difference: mean ranks further apart than this differ
    """

    n: int
    means: tuple[float, ...]
    statistic: float
    p: float
    distance: float


def paired(differences: Sequence[float]) -> Paired:
    """Of at least `LEAST` differences; ValueError of fewer, which carry no test."""
    from scipy import stats

    count = len(differences)
    if count < LEAST:
        raise ValueError(f"{count} pairs carry no test; expected {LEAST} at least")
    rounded = [round(value, DIGITS) for value in differences]
    mean, spread = statistics.fmean(rounded), statistics.stdev(rounded)
    reach = float(stats.t.ppf(1 - LEVEL / 2, count - 1)) * spread / math.sqrt(count)
    moved = [value for value in rounded if value]
    p = float(stats.wilcoxon(moved).pvalue) if moved else 1.0
    above = sum(value > 0 for value in moved)
    return Paired(count, mean, mean - reach, mean + reach, p, above, len(moved) - above)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for how many there are (Holm 1979), in their order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, values[index] * (len(values) - place)))
        corrected[index] = largest
    return corrected


def ranked(table: Sequence[Sequence[float]], rises: bool) -> Ranked:
    """Of a table with a line a block and a column a method: at least `LEAST` lines and three columns; ValueError else.

    rises  whether more is better"""
    from scipy import stats

    count, methods = len(table), len(table[0]) if table else 0
    if count < LEAST or methods < 3:
        raise ValueError(f"{count} blocks of {methods} methods carry no test; expected {LEAST} of 3 at least")
    rounded = [[round(value, DIGITS) for value in line] for line in table]
    ranks = [stats.rankdata([-value for value in line] if rises else line) for line in rounded]
    means = tuple(statistics.fmean(float(line[place]) for line in ranks) for place in range(methods))
    if all(len(set(line)) == 1 for line in rounded):
        statistic, p = 0.0, 1.0  # every block is one tie, of which Friedman's statistic is 0 / 0
    else:
        found = stats.friedmanchisquare(*zip(*rounded, strict=True))
        statistic, p = float(found.statistic), float(found.pvalue)
    return Ranked(count, means, statistic, p, critical_difference(methods, count))


def critical_difference(methods: int, blocks: int) -> float:
    """Nemenyi's, at `LEVEL`.

    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    from scipy import stats

    studentized = float(stats.studentized_range.ppf(1 - LEVEL, methods, math.inf))
    return studentized / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * blocks))


def alike(means: Sequence[float], distance: float) -> list[tuple[int, int]]:
    """Of mean ranks in ascending order the longest stretches, first and last place, in which none differ by `distance` or more;
    none of a single method.

    >>> alike([1.0, 1.5, 2.4, 4.0], 1.0)
    [(0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    for first, mean in enumerate(means):
        last = max(place for place, other in enumerate(means) if place >= first and other - mean < distance)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
