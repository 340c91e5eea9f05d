"""AC: activation clustering. Among the rows that carry one label, poisoned and clean ones form two clusters.

Idea     The network calls a poisoned row by its label for another reason than a clean one, so their features differ. Split
         each class's features in two: a small cluster is suspect.
Paper    arXiv 1811.03728v1
Follows  the paper: per given label, features that the classifier reads, 10 dimensions, 2-means; the rule by relative size in
         the form of BackdoorBench's detection, the toolbox and trojanzoo: the smaller cluster is suspect below 35 %
Departs  1. PCA to 10 dimensions, which has one answer; the paper's independent components are reduction=ica, computed from
            those 10
         2. one pass in file order, eval mode, test transform; BackdoorBench's defense clusters batches of a shuffled,
            augmented loader and maps a second shuffling back to rows
         3. classes of fewer than `min_samples` rows are not judged; the codes fail on them or cluster noise
         4. 2-means is the best of 10 starts, on rows in an order of their own: permuting the training set changes nothing
Cost     a forward pass over the training set, a small decomposition and clustering for each class
"""

import logging
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from backdoorbench.detectors.base import Detector, Judges, Scenario, Verdict, penultimate_features
from backdoorbench.errors import check_range
from backdoorbench.shapes import Labels, Mask
from backdoorbench.streams import Stream

log = logging.getLogger(__name__)

Reduction = Literal["pca", "ica"]
Points = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class AC(Detector):
    """Two clusters a class; the smaller is suspect if it is small enough.

    A row's score is 1 - its cluster's share of its class: large in small clusters, suspect or not; 0 in classes that are
    not judged. Rows of one cluster tie."""

    judges: ClassVar[Judges] = "rows"
    needs: ClassVar[frozenset[str]] = frozenset({"model", "train"})

    reduction: Reduction
    dimensions: int
    max_share: float
    min_samples: int

    def __post_init__(self) -> None:
        check_range("detector.dimensions", self.dimensions, 1)
        check_range("detector.max_share", self.max_share, 0, 0.5)
        check_range("detector.min_samples", self.min_samples, 2)

    def examine(self, scenario: Scenario) -> Verdict:
        train = scenario.train
        with scenario.autocast():
            features = penultimate_features(scenario.model, train)
        labels = train.labels.cpu()
        scores, flagged = cluster(
            features, labels, scenario.stream.child("clusters"), self.reduction, self.dimensions, self.max_share,
            self.min_samples,
        )  # fmt: skip
        small = int((train.counts() < self.min_samples).sum())
        scenario.note("flagged_classes", int((labels[flagged].bincount() > 0).sum()))
        scenario.note("classes_not_judged", small)
        return Verdict(scores, flagged)


def cluster(
    features: Tensor,
    labels: Labels,
    stream: Stream,
    reduction: Reduction,
    dimensions: int,
    max_share: float,
    min_samples: int,
) -> tuple[Tensor, Mask]:
    """((N,) scores in [0, 1], (N,) flagged) of (N, D) features and (N,) labels.

    A class of fewer than `min_samples` rows, or whose rows are all alike, is one cluster: score 0, not flagged."""
    scores, flagged = torch.zeros(len(labels)), torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.bincount().nonzero()[:, 0].tolist():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < min_samples:
            continue
        points = features[rows].double().numpy()
        order = np.argsort(points.sum(1), kind="stable")  # starts of 2-means, and sums, depend on it
        seed = stream.child(f"class{label}").generator().initial_seed() % 2**32
        second = np.empty(len(rows), dtype=bool)
        second[order] = halves(reduce(points[order], reduction, dimensions, seed), seed)
        in_second = torch.from_numpy(second)
        share = float(second.mean())  # of the second cluster
        scores[rows] = 1 - torch.where(in_second, share, 1 - share)
        if min(share, 1 - share) < max_share and 0 < share < 1:
            flagged[rows] = in_second if share < 0.5 else ~in_second
    return scores, flagged


def reduce(points: Points, reduction: Reduction, dimensions: int, seed: int) -> Points:
    """(n, d) of (n, D) points, d <= dimensions: principal components that vary; ica: made independent, of unit variance."""
    from sklearn.decomposition import PCA, FastICA
    from sklearn.exceptions import ConvergenceWarning

    if (points == points[0]).all():
        return points[:, :1]
    pca = PCA(min(dimensions, *points.shape), svd_solver="full")
    reduced: Points = pca.fit_transform(points)
    if reduction == "pca":
        return reduced
    deviations = pca.singular_values_
    reduced = reduced[:, deviations > 1e-6 * deviations[0]]  # noise has no unit variance
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        ica = FastICA(whiten="unit-variance", random_state=seed, max_iter=1000)
        independent: Points = ica.fit_transform(reduced)
    if caught:
        log.warning("ac: independent components did not converge in 1,000 steps; reduction=pca always has an answer")
    return independent


def halves(points: Points, seed: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """(n,) bool: which of (n, d) points are in the second of two clusters; none where all are alike."""
    from sklearn.cluster import KMeans

    if (points == points[0]).all():
        return np.zeros(len(points), dtype=bool)
    found: np.ndarray[Any, np.dtype[np.bool_]] = KMeans(2, n_init=10, random_state=seed).fit_predict(points) == 1
    return found
