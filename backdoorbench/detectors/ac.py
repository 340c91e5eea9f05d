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
         5. features are read in the victim's precision (train.precision=float32)
Cost     a forward pass over the training set, a small decomposition and clustering for each class
"""

from dataclasses import dataclass
from typing import ClassVar

from backdoorbench.detectors.base import Detector, Judges, Scenario, Verdict, penultimate_features
from backdoorbench.errors import check_range
from backdoorbench.training.suspicion import Reduction as Reduction
from backdoorbench.training.suspicion import cluster


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
