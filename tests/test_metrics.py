"""Metrics against three-line loops, and their refusals."""

import pytest
import torch

from backdoorbench import metrics
from backdoorbench.metrics import Scores, interval
from backdoorbench.triggers.base import AllToAll, AllToOne, SourceSpecific


def labels(count: int, step: int) -> torch.Tensor:
    return (torch.arange(count) * step) % 5


def test_scores_equal_a_plain_loop() -> None:
    true, clean, triggered = labels(97, 3), labels(97, 7), labels(97, 11)
    for target in (AllToOne(2), AllToAll(5), SourceSpecific(1, (0, 4))):
        scores = metrics.score(clean, true, triggered, target.label(true), target.is_eligible(true))
        rows = [i for i in range(97) if bool(target.is_eligible(true)[i])]
        asr = sum(int(triggered[i]) == int(target.label(true)[i]) for i in rows) / len(rows)
        ra = sum(int(triggered[i]) == int(true[i]) for i in rows) / len(rows)
        ca = sum(int(clean[i]) == int(true[i]) for i in range(97)) / 97
        assert scores == Scores(ca, asr, ra, 97, len(rows))
        assert asr + ra <= 1


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    assert interval(0, 10) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))  # closed forms at the ends
    assert interval(1, 485) == (pytest.approx(0.025 ** (1 / 485)), 1.0)
    assert interval(0.5, 10) == (pytest.approx(0.1871, abs=1e-4), pytest.approx(0.8129, abs=1e-4))  # tables


def test_without_a_trigger_only_ca_is_known() -> None:
    true = labels(10, 1)
    scores = metrics.score(true, true, None, true, true > 99)
    assert scores == Scores(1.0, None, None, 10, 0)


def test_nothing_is_computed_over_nothing() -> None:
    with pytest.raises(ValueError, match="a share over no images is undefined"):
        metrics.accuracy(labels(0, 1), labels(0, 1))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [((0.9, 1.0), (0.9, 0.0), 1.0), ((0.9, 1.0), (0.9, 1.0), 0.5), ((0.9, 1.0), (0.7, 1.0), 0.4)],
)
def test_defense_effectiveness(before: tuple[float, float], after: tuple[float, float], expected: float) -> None:
    first, second = (Scores(ca, asr, 0.0, 1, 1) for ca, asr in (before, after))
    assert metrics.defense_effectiveness(first, second) == pytest.approx(expected)


def test_per_class_leaves_absent_classes_out() -> None:
    predicted, true = torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2])
    assert metrics.per_class(predicted, true, true, 4) == [1.0, 1.0, 0.5, None]
