"""NC: Neural Cleanse. Reverse the smallest trigger towards each class; a backdoor's target needs an abnormally small one.

Idea     Any class can be reached by a mask and a pattern that cover enough of the image. The target of a backdoor is reached
         by its trigger, far smaller than what the other classes need: an outlier among their sizes.
Paper    Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE Symposium on Security
         and Privacy 2019 (no arXiv version)
Follows  the authors' code in BackdoorBench's setting: m and p are tanh(v) / (2 + 1e-7) + 1/2, x' = (1 - m) x + m p, loss
         CE(f(x'), y) + lambda |m|_1 over all images, Adam 0.1 with betas 0.5 and 0.9. After each pass: `patience` in a row at
         success tau or above double lambda, as many below divide it by 2^1.5; the smallest mask at tau is kept; a class
         stops after 25 passes without a smaller one, once lambda has gone both ways. A class is flagged where its
         size lies below the median by more than 2 (1.4826 MAD)
Departs  1. all classes are reversed at once, as one batched problem; the codes take one after another
         2. images of the holdout as they are, in batches of 128; the authors' and the toolbox take test images, BackdoorBench
            batches of 256, augmented as for training
         3. starts are random in [0, 1], of a stream of each class's own; BackdoorBench's are all ones
         4. the median of an even count is the mean of the two in the middle; torch.median, BackdoorBench's, is the lower one
         5. what is kept are the mask and pattern that a pass's last batch was measured with, and their own size; the codes
            keep those after its last step, with the mean size along the pass
         6. a class that never reaches tau has no mask: its size is infinite, and median and MAD leave it out; BackdoorBench
            enters its mask of the first pass, the authors' code that of the last
         7. a class stops after 25 passes that together shrink its mask by less than 1 %; the codes count each pass that shrinks
            it by less than that, so a mask that creeps is cut short, and a small holdout's pass is a single step
         8. MAD 0 flags nothing; the codes divide by it
         9. passes run in the victim's precision; the authors' in float32 (train.precision=float32)
Cost     K times `units` passes over the holdout, forward and backward to the image; less where classes stop early
"""

import logging
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch

from backdoorbench.config.build import BESIDE
from backdoorbench.data.store import stratified
from backdoorbench.detectors.base import Detector, Judges, Reversed, Scenario, Verdict
from backdoorbench.errors import check_range
from backdoorbench.models.layouts import layout_of
from backdoorbench.training.reversal import Search, anomaly, index_of, outliers, reverse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NC(Detector):
    """Reversed triggers, and the anomaly index of their sizes.

    A class's score is its anomaly index with a sign, (median - size) / (1.4826 MAD): positive for small masks. A class
    without a mask ties with the least suspicious one. `anomaly_index` is the largest of them: the score of the model."""

    judges: ClassVar[Judges] = "model"
    needs: ClassVar[frozenset[str]] = frozenset({"model", "holdout"})

    search: Annotated[Search, BESIDE]
    images: int | None
    threshold: float

    def __post_init__(self) -> None:
        self.search.check("detector")
        if self.images is not None:
            check_range("detector.images", self.images, 1)
        check_range("detector.threshold", self.threshold, 0)

    def examine(self, scenario: Scenario) -> Verdict:
        model, holdout = scenario.model, scenario.holdout
        count = max(self.images or len(holdout), len(holdout.classes))
        if count < len(holdout):
            holdout = holdout.subset(stratified(holdout.labels.cpu(), count, scenario.stream.child("images")))
        model.to(memory_format=layout_of(model, scenario.device))
        classes = range(len(holdout.classes))
        found = reverse(model, holdout, classes, scenario.stream, **vars(self.search), autocast=scenario.autocast)
        scores = anomaly(found.norms)
        flagged = outliers(found.norms, self.threshold)
        without = int(found.norms.isinf().sum())
        index = index_of(found.norms)
        if index is None:
            masks = f"the sizes of the {len(flagged) - without} reversed masks"
            reason = f"{masks} lie equally far from their median" if scores.any() else f"{masks} have a MAD of 0"
            remark = f"no class is flagged, since {reason}"
            log.warning(f"{self.name}: {remark}")
            scenario.note("remark", remark)
        scenario.note("mask_norms", [norm if math.isfinite(norm) else None for norm in found.norms.tolist()])
        scenario.note("success", found.success.tolist())
        scenario.note("classes_without_mask", without)
        figures = {
            "anomaly_index": index,
            "flagged_classes": float(flagged.sum()),
        }
        grey = torch.full_like(found.patterns, 0.5)
        pictures = {"reversed_triggers": torch.lerp(grey, found.patterns, found.masks)}
        return Verdict(scores, flagged, figures, pictures, Reversed(found.masks, found.patterns))
