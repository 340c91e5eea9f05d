"""Trojan signature: the weights of the last layer alone; a backdoor's target has the row that stands out.

Idea     Every trigger is to outvote the image's own features, so training raises the weights that lead to the target as a
         whole. The mean of its row lies above the other classes' means; to see that takes no image, no gradient and no time.
Paper    arXiv 2109.02836v1; abstract and a replication (arXiv 2402.16896v2, abstract) read, not its tables
Follows  the distribution of the weights of each class in the final linear layer, told apart by its mean
Departs  1. outliers are told as in Neural Cleanse, by more than 2 (1.4826 MAD) above the median; the paper's own test
            was not seen
         2. biases are left out
Cost     none
"""

from dataclasses import dataclass
from typing import ClassVar

from backdoorbench.detectors.base import Detector, Judges, Scenario, Verdict
from backdoorbench.errors import check_range
from backdoorbench.models.surgery import classifier_head
from backdoorbench.training.reversal import anomaly, index_of, outliers


@dataclass(frozen=True)
class Signature(Detector):
    """Mean weights of the classes' rows, and their anomaly index: a class's score, positive for large means."""

    judges: ClassVar[Judges] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"model"})
    draws: ClassVar[bool] = False

    threshold: float

    def __post_init__(self) -> None:
        check_range("detector.threshold", self.threshold, 0)

    def examine(self, scenario: Scenario) -> Verdict:
        means = classifier_head(scenario.model).weight.detach().double().mean(1).float().cpu()  # (K,)
        flagged = outliers(-means, self.threshold)
        scenario.note("means", means.tolist())
        return Verdict(
            anomaly(-means), flagged, {"anomaly_index": index_of(-means), "flagged_classes": float(flagged.sum())}
        )
