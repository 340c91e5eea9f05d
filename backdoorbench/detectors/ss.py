"""SS: spectral signatures. Poisoned rows lie far out along the direction in which their class's features vary most.

Idea     A class that holds clean and poisoned rows is a mixture of two groups. The direction that separates them dominates
         its covariance, so the poisoned rows have large components along its top singular vector.
Paper    arXiv 1811.00636v1
Follows  algorithm 1: R = the features of a class less their mean, v = the top right singular vector of R, score (r.v)^2 with
         r centred; the rows that score highest are removed: 15 % (the authors' `percentile` 85)
Departs  1. the share is taken of every class, since a defender does not know the target; the authors' code takes it of the
            target class alone
         2. r is centred, as in the paper; the authors' code and BackdoorBench's multiply the uncentred features
         3. features that the classifier reads, of images that are not augmented; BackdoorBench's are the last map, flattened,
            of augmented ones
         4. the removed share is fixed; the toolbox derives it from the true poison rate
         5. features are read in the victim's precision (train.precision=float32)
Cost     a forward pass over the training set, a singular value decomposition for each class
"""

from dataclasses import dataclass
from typing import ClassVar

from backdoorbench.detectors.base import Detector, Judges, Scenario, Verdict, penultimate_features
from backdoorbench.errors import check_range
from backdoorbench.training.suspicion import highest, signatures


@dataclass(frozen=True)
class SS(Detector):
    """The rows of each class with the largest component along its top singular vector.

    Scores are the method's own, in squared units of the features. The method compares them within a class only, and nothing
    here makes classes comparable: a figure over all rows, such as AUROC, also reads how much whole classes differ in scale.
    Flags are not affected."""

    judges: ClassVar[Judges] = "rows"
    needs: ClassVar[frozenset[str]] = frozenset({"model", "train"})
    draws: ClassVar[bool] = False

    remove_fraction: float

    def __post_init__(self) -> None:
        check_range("detector.remove_fraction", self.remove_fraction, 0, 1)

    def examine(self, scenario: Scenario) -> Verdict:
        train = scenario.train
        with scenario.autocast():
            features = penultimate_features(scenario.model, train)
        labels = train.labels.cpu()
        scores = signatures(features, labels)
        return Verdict(scores, highest(scores, labels, self.remove_fraction))
