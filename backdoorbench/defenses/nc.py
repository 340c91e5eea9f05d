"""NC: unlearning on reversed triggers. Reverse the smallest trigger towards each class, tune on the outliers' with true labels.

Idea     The target of a backdoor needs an abnormally small trigger to absorb all other classes. Stamped on clean images that
         keep their labels, that trigger teaches the network to ignore the real one.
Paper    Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", IEEE Symposium on Security
         and Privacy 2019 (no arXiv version)
Follows  for each flagged class the holdout once more, a fifth of it stamped with the class's trigger and called what it is;
         SGD on all parameters, batch norm in train mode. Masks, lambda and the rule that flags are the detector's of the same
         name (detector=nc), from the same code
Departs  1. where several classes are flagged the holdout is repeated for each, a fifth of it drawn anew and stamped;
            BackdoorBench has four fifths of it once, as they are, and the same last fifth under the trigger of each class
         2. 10 epochs without weight decay, as ft here, so that the two differ in the stamped images alone; BackdoorBench 100 with
            5e-4 (defense.epochs=100 defense.weight_decay=5e-4), the paper, as others report it, 1 (defense.epochs=1) on 10 % of
            the training set
         3. the tuned model is what is returned; BackdoorBench saves a fresh copy of the infected one
         4. masks are stamped as they were found; BackdoorBench stretches them over [0, 1] on their way through a PNG
         5. where no class is flagged nothing is tuned, and the record says so
         6. the detector's own departures
Cost     K times `reversal.units` passes over the holdout, then `epochs` passes for each flagged class, forward and backward
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import nn

from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range, part
from backdoorbench.models.layouts import layout_of
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Tuning, TuningSchedule
from backdoorbench.training.reversal import Reversal, Search, index_of, outliers, reverse

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NC(Defense):
    """Neural Cleanse: reversal, anomaly index, unlearning. The flagged classes and the index are noted in the record."""

    reversal: Search
    threshold: float
    share: float
    epochs: int
    schedule: TuningSchedule
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        self.reversal.check("defense.reversal")
        check_range("defense.threshold", self.threshold, 0)
        check_range("defense.share", self.share, 0, 1)
        check_range("defense.epochs", self.epochs, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model, holdout, stream = scenario.model, scenario.holdout, scenario.stream
        count = part("defense.share", self.share, len(holdout), "images of the holdout")
        model.to(memory_format=layout_of(model, scenario.device))
        classes = range(len(holdout.classes))
        found = reverse(
            model, holdout, classes, stream.child("reverse"), **vars(self.reversal), autocast=scenario.autocast
        )
        flagged = outliers(found.norms, self.threshold).nonzero()[:, 0].tolist()
        scenario.note("anomaly_index", index_of(found.norms))
        scenario.note("flagged", flagged)
        if not flagged:
            log.warning(f"{self.name}: no class is flagged, so the model is returned as it was")
            return model
        fit(
            model,
            stamped(holdout, found, flagged, count, stream.child("stamp")),
            self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, self.schedule),
            stream.child("tune"),
            freeze_norms=self.tuning.freeze_norms,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        return model


def stamped(holdout: ImageSet, found: Reversal, classes: Sequence[int], count: int, stream: Stream) -> ImageSet:
    """The holdout once for each of `classes`, `count` of its images under that class's trigger; all labels are the true ones."""
    parts = []
    for label in classes:
        rows = stream.child(f"class{label}").permutation(len(holdout))[:count]
        images, rows = holdout.images.clone(), rows.to(holdout.images.device)
        mask, pattern = (trigger[label].to(images.device) for trigger in (found.masks, found.patterns))
        images[rows] = to_bytes(torch.lerp(to_float(images[rows]), pattern, mask))
        parts.append(images)
    return replace(holdout, images=torch.cat(parts), labels=holdout.labels.repeat(len(parts)))
