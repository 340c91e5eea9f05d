"""AC: leave out the training rows that activation clustering suspects, and train anew.

Idea     Among the rows that carry one label, poisoned and clean ones form two clusters of features. Without the small cluster
         of each class an ordinary training learns no backdoor.
Paper    arXiv 1811.03728v1
Follows  the paper, in the form that is detector=ac: per given label, features that the classifier reads, 10 dimensions by
         PCA, 2-means, the smaller cluster left out where its share is below 35 %; then a training from scratch on the rest
Departs  1. the smaller cluster goes only where it is small; BackdoorBench's defense drops the smaller one of every class, up
            to half of the data (defense.max_share=0.5)
         2. one pass in file order, eval mode, test transform; BackdoorBench's defense clusters batches of a shuffled, augmented
            loader and maps a second shuffling back to rows, so that what it drops is almost random
         3. the victim's recipe trains; the paper relabels and tunes on, BackdoorBench trains 100 epochs of its own recipe
         4. classes of fewer than `min_samples` rows are kept whole; the codes fail on them or cluster noise
         5. features are read in the victim's precision (train.precision=float32)
Cost     a forward pass over the training set, a small clustering for each class, a whole training
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.training.forward import penultimate_features
from backdoorbench.training.suspicion import Reduction, cluster, train_without


@dataclass(frozen=True)
class AC(Defense):
    """Activation clustering as a filter. The record tells precision and recall of the rows that were left out."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "train"})
    starts_from: ClassVar[Literal["infected", "scratch"]] = "scratch"
    retrains: ClassVar[bool] = True

    reduction: Reduction
    dimensions: int
    max_share: float
    min_samples: int

    def __post_init__(self) -> None:
        check_range("defense.dimensions", self.dimensions, 1)
        check_range("defense.max_share", self.max_share, 0, 0.5)
        check_range("defense.min_samples", self.min_samples, 2)

    def purify(self, scenario: Scenario) -> nn.Module:
        with scenario.autocast():
            features = penultimate_features(scenario.model, scenario.train)
        labels, stream = scenario.train.labels.cpu(), scenario.stream.child("clusters")
        scores, flagged = cluster(
            features, labels, stream, self.reduction, self.dimensions, self.max_share, self.min_samples
        )
        return train_without(flagged, scores, scenario)
