"""CA, ASR, RA and defense effectiveness, from class indices. Count first, divide once; nothing is computed over nothing.

CA   share of clean test images called by their true label
ASR  share of eligible triggered test images called by the attacker's label
RA   share of the same triggered images called by their true label; ASR + RA <= 1
DER  defense effectiveness: [max(0, drop of ASR) - max(0, drop of CA) + 1] / 2; 1/2 is no change (arXiv 2206.12654)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who reads records needs no torch
    from torch import Tensor

    from backdoorbench.shapes import Labels, Mask

DEFINITIONS = {
    "ca": "CA: clean test images called by their true label.",
    "asr": "ASR: triggered test images of eligible classes called by the attacker's label.",
    "ra": "RA: the same images called by their true label.",  # as those of the ASR
}
KNOWS = 0.2  # of what chance leaves to be known: less is near chance; from four classes on 1.5 / K is stricter
DER_DEFINITION = "DER: half of (drop of ASR - drop of CA + 1), drops at least 0; 50 is no change."


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1], and the images they were counted over; asr and ra are None where there is no trigger."""

    ca: float
    asr: float | None
    ra: float | None
    n_clean: int
    n_triggered: int


def printed(share: float) -> float:
    """A share as tables print it: percent, to a hundredth of a point. Whatever says `the same`, `best` or `at most` of what is
    printed compares these.

    >>> printed(0.00125), printed(0.99995), printed(-0.00001)
    (0.12, 100.0, 0.0)
    """
    return round(100 * share, 2) + 0.0  # which makes -0.0 a 0.0


@dataclass(frozen=True)
class Limits:
    """When a defense has done its work: it costs at most `ca_loss` of CA and leaves an ASR below `asr`. Fractions; figures are
    compared as tables print them.

    >>> Limits().met(0.94 - 0.91, 0.0999), Limits().met(0, 0.1)
    (True, False)
    """

    ca_loss: float = 0.03
    asr: float = 0.1

    def met(self, loss: float, asr: float) -> bool:
        return printed(loss) <= round(100 * self.ca_loss, 4) and self.is_ended(asr)

    def is_ended(self, asr: float) -> bool:
        """Whether a backdoor of this ASR counts as gone."""
        return printed(asr) < round(100 * self.asr, 4)

    def __str__(self) -> str:
        return f"an ASR below {100 * self.asr:g} % at a loss of at most {100 * self.ca_loss:g} points of CA"


LIMITS = Limits()  # unless somebody says otherwise


def interval(share: float, count: int) -> tuple[float, float]:
    """Between which shares the true one lies by a confidence of 95 %, where `share` was found over `count` independent images:
    the exact binomial interval of Clopper and Pearson.

    >>> [round(bound, 3) for bound in interval(0.0, 100)]
    [0.0, 0.036]
    """
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


def accuracy(predicted: Labels, true: Labels) -> float:
    """Share of (N,) predictions equal to (N,) labels; ValueError over no image.

    >>> import torch
    >>> accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
    0.6666666666666666
    """
    return share(predicted == true)


def share(hits: Mask) -> float:
    """Share of true entries in (N,) bool; ValueError over no entry."""
    if hits.numel() == 0:
        raise ValueError("a share over no images is undefined")
    return int(hits.sum()) / hits.numel()


def score(clean: Labels, true: Labels, triggered: Labels | None, wanted: Labels, eligible: Mask) -> Scores:
    """The three figures from predictions.

    clean      (N,) predictions on clean test images
    true       (N,) true labels
    triggered  (N,) predictions on the same images, triggered; None: no trigger
    wanted     (N,) the attacker's label of each
    eligible   (N,) bool, the rows that ASR and RA count
    """
    ca = accuracy(clean, true)
    if triggered is None:
        return Scores(ca, None, None, len(true), 0)
    called, true = triggered[eligible], true[eligible]
    asr, ra = accuracy(called, wanted[eligible]), accuracy(called, true)
    assert asr + ra <= 1 + 1e-9, "an eligible row's attacker label equals its true label"
    return Scores(ca, asr, ra, len(clean), len(called))


def per_class(predicted: Labels, wanted: Labels, groups: Labels, classes: int) -> list[float | None]:
    """For each true class of `groups`, the share of its rows with predicted == wanted; None where it has no row."""
    total = groups.bincount(minlength=classes)
    hits = groups[predicted == wanted].bincount(minlength=classes)
    return [int(hit) / int(count) if count else None for hit, count in zip(hits, total, strict=True)]


def by_chance(called: Labels, true: Labels, classes: int) -> float:
    """The share that would be right if every class were called as often, whatever an image shows: 1/K where the images are spread
    evenly over K classes, and more where a class that has most of them is called most."""
    shares = [labels.bincount(minlength=classes).double() / len(labels) for labels in (called, true)]
    return float(shares[0] @ shares[1])


def is_near_chance(ca: float, classes: int, by_chance: float = 0.0) -> bool:
    """Whether a network knows next to nothing of its images: its CA is below 1.5/K, or little above what `by_chance` makes of its
    calls.

    >>> is_near_chance(0.14, 10), is_near_chance(0.16, 10), is_near_chance(0.91, 2, by_chance=0.9)
    (True, False, True)
    """
    known = by_chance + (1 - by_chance) * min(0.5 / (classes - 1), KNOWS) if classes > 1 else 0.0
    return ca < max(1.5 / classes, known)


def assignment(true: Labels, called: Labels, classes: int) -> list[int]:
    """For each class that a network can call, the true class that it means by it, each once: pairs are taken by how many of (N,)
    images they hold, the most first, which is the best assignment where the errors are few.

    >>> import torch
    >>> assignment(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 0, 0]), 3)
    [1, 0, 2]
    """
    meant: dict[int, int] = {}
    left = set(range(classes))
    for (label, call), _ in Counter(zip(true.tolist(), called.tolist(), strict=True)).most_common():
        if call not in meant and label in left:
            meant[call] = label
            left.remove(label)
    rest = iter(sorted(left))
    return [meant[call] if call in meant else next(rest) for call in range(classes)]


def auc(scores: Tensor, positive: Mask) -> float | None:
    """Area under the ROC curve: how often a positive entry of (N,) scores lies above a negative one, ties counting half.
    None where there is no positive or no negative entry.

    >>> import torch
    >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, False, True, True]))
    0.875
    """
    from torch import searchsorted

    above, below = scores[positive], scores[~positive].sort().values
    if not len(above) or not len(below):
        return None
    beaten = searchsorted(below, above) + searchsorted(below, above, right=True)  # twice: ties count once
    return int(beaten.sum()) / (2 * len(above) * len(below))


def matched_auc(scores: Tensor, positive: Mask, by: Tensor, bins: int = 10) -> float | None:
    """The AUC of (N,) scores among entries of like (N,) `by`: the mean over bins, each weighted by its pairs, of which every one
    holds as many positive entries. None where no bin holds both kinds.

    >>> import torch
    >>> matched_auc(torch.tensor([1, 2, 3, 4]), torch.tensor([False, True, False, True]), torch.tensor([0, 0, 9, 9]), 2)
    1.0
    """
    from torch import bucketize, linspace, quantile

    by = by.double()
    if not positive.any():
        return None
    edges = quantile(by[positive], linspace(0, 1, bins + 1, dtype=by.dtype)[1:-1])
    place = bucketize(by, edges, right=True)
    beaten = pairs = 0.0
    for turn in range(bins):
        inside = place == turn
        found = auc(scores[inside], positive[inside])
        if found is not None:
            weight = float(positive[inside].sum()) * float((~positive[inside]).sum())
            beaten, pairs = beaten + found * weight, pairs + weight
    return beaten / pairs if pairs else None


def defense_effectiveness(infected: Scores, purified: Scores) -> float | None:
    """DER in [0, 1], or None without a trigger."""
    if infected.asr is None or purified.asr is None:
        return None
    return (max(0.0, infected.asr - purified.asr) - max(0.0, infected.ca - purified.ca) + 1) / 2


def largest_share(predicted: Labels) -> float:
    """Share of the most frequent prediction: near 1 for a network that calls everything the same."""
    counts: Tensor = predicted.bincount()
    return int(counts.max()) / len(predicted)


def tpr_at(scores: Tensor, positive: Mask, bound: float) -> float | None:
    """Share of positive entries of (N,) scores above the smallest threshold that at most `bound` of the others exceed; None
    where there is no positive or no negative entry.

    >>> import torch
    >>> tpr_at(torch.tensor([0.1, 0.2, 0.3, 0.8]), torch.tensor([False, True, False, True]), 0.5)
    1.0
    """
    above, below = scores[positive], scores[~positive].sort(descending=True).values
    if not len(above) or not len(below):
        return None
    threshold = below[min(int(bound * len(below)), len(below) - 1)]  # so many lie strictly above it, at most
    return share(above > threshold)


def detection(scores: Tensor, flagged: Mask, positive: Mask) -> dict[str, float | None]:
    """The figures of a detector: (N,) scores, larger for what is more suspicious, (N,) what its own rule flags, and (N,) truth.

    auroc             area under the ROC curve, ties counting half
    tpr_1, _5, _10    TPR at the threshold that at most 1, 5 and 10 % of the clean exceed
    tpr, fpr          at the detector's own threshold: of the poisoned and of the clean the share that is flagged
    precision         of the flagged the share that is poisoned; None where nothing is flagged"""
    found: dict[str, float | None] = {"auroc": auc(scores, positive)}
    found |= {f"tpr_{percent}": tpr_at(scores, positive, percent / 100) for percent in (1, 5, 10)}
    found["tpr"] = share(flagged[positive]) if positive.any() else None
    found["fpr"] = share(flagged[~positive]) if not positive.all() else None
    found["precision"] = share(positive[flagged]) if flagged.any() else None
    return found
