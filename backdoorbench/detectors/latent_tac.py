"""Latent TAC: the smallest shift of features towards each class; a backdoor's target needs an abnormally small one.

Idea     A trigger's effect gathers in the features before the classifier. The shortest shift that sends all clean images to a
         class stands for it without a search in pixels, and towards the target it is an outlier.
Paper    arXiv 2511.08944v1; abstract and a review of it read, not its tables
Follows  for each class the quadratic programme: the shortest s with w_k (z + s) at least w_j (z + s) for all other classes j
         and all clean features z; a class is flagged where |s| lies abnormally far below the others' median
Departs  1. the classifier's biases count; the programme as reviewed leaves them out
         2. of all images only the most demanding is a constraint for each pair of classes, which is the same programme
         3. outliers are told as in Neural Cleanse, by more than 2 (1.4826 MAD) below the median; the paper's rule was not seen
Cost     one pass over the holdout, and seconds on a CPU for 200 classes
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from backdoorbench.detectors.base import Detector, Judges, Scenario, Verdict
from backdoorbench.errors import check_range
from backdoorbench.training.latent import latent_changes
from backdoorbench.training.reversal import anomaly, index_of, outliers


@dataclass(frozen=True)
class LatentTAC(Detector):
    """Lengths of latent shifts, and their anomaly index: a class's score, positive for short ones."""

    judges: ClassVar[Judges] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"model", "holdout"})
    draws: ClassVar[bool] = False

    threshold: float

    def __post_init__(self) -> None:
        check_range("detector.threshold", self.threshold, 0)

    def examine(self, scenario: Scenario) -> Verdict:
        with scenario.autocast():
            _, lengths = latent_changes(scenario.model, scenario.holdout)
        flagged = outliers(lengths, self.threshold)
        scenario.note("lengths", [length if math.isfinite(length) else None for length in lengths.tolist()])
        return Verdict(
            anomaly(lengths), flagged, {"anomaly_index": index_of(lengths), "flagged_classes": float(flagged.sum())}
        )
