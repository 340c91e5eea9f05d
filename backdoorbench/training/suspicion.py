"""Training rows that look poisoned among those of their label: by two clusters of the class's features, or by its spectrum.

Detectors flag such rows; defenses leave them out and train anew.
"""

import logging
import warnings
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backdoorbench.errors import DataError
from backdoorbench.shapes import Labels, Mask
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.training.scenario import Scenario

log = logging.getLogger(__name__)

Reduction = Literal["pca", "ica"]
Points = np.ndarray[Any, np.dtype[np.float64]]


def train_without(flagged: Mask, scores: Tensor, scenario: Scenario) -> nn.Module:
    """A fresh network, trained by the victim's recipe on the rows that are not `flagged` (N,). DataError where none is left.

    scores  (N,), larger for what is more suspicious: the record tells how well they rank, and what the flags got right"""
    kept = (~flagged).nonzero()[:, 0]
    if len(kept) < 2:
        raise DataError(
            f"of {len(flagged):,} training rows {len(kept)} are left to train on; expected at least 2. Set the defense to leave "
            f"out fewer."
        )
    scenario.inspect("left_out", flagged.nonzero()[:, 0], scores, taken_for="poisoned")
    model, stream = scenario.build(scenario.stream.child("init")), scenario.stream.child("train")
    rows = scenario.train.subset(kept)
    fit(model, rows, scenario.recipe, stream, after_epoch=lambda epoch: scenario.probe(model, epoch))
    return model


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
        log.warning("independent components did not converge in 1,000 steps; reduction=pca always has an answer")
    return independent


def halves(points: Points, seed: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """(n,) bool: which of (n, d) points are in the second of two clusters; none where all are alike."""
    from sklearn.cluster import KMeans

    if (points == points[0]).all():
        return np.zeros(len(points), dtype=bool)
    found: np.ndarray[Any, np.dtype[np.bool_]] = KMeans(2, n_init=10, random_state=seed).fit_predict(points) == 1
    return found


def signatures(features: Tensor, labels: Labels) -> Tensor:
    """(N,) float32, at least 0: the squared component of each of (N, D) features along its class's top singular vector."""
    scores = torch.zeros(len(labels))
    for label in labels.bincount().nonzero()[:, 0].tolist():
        rows = (labels == label).nonzero()[:, 0]
        centred = features[rows].double()
        centred -= centred.mean(0)  # (n, D)
        top = torch.linalg.svd(centred, full_matrices=False).Vh[0]
        scores[rows] = (centred @ top).square().float()
    return scores


def highest(scores: Tensor, labels: Labels, fraction: float) -> Mask:
    """(N,) bool: round(fraction n) rows of each class of n, those that score highest; of equal ones the first."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.bincount().nonzero()[:, 0].tolist():
        rows = (labels == label).nonzero()[:, 0]
        order = scores[rows].argsort(descending=True, stable=True)
        chosen[rows[order[: round(fraction * len(rows))]]] = True
    return chosen
