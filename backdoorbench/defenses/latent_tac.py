"""Latent TAC: tune against the shift of features that stands for the trigger.

Idea     The shortest shift of features that sends all clean images to the backdoor's target stands for what the trigger does
         there. Tuned to call shifted features what they are, the network no longer follows it, in whatever pixels it came.
Paper    arXiv 2511.08944v1; abstract and a review of it read, not its tables
Follows  a quadratic programme for each class (detector=latent_tac), and fine-tuning with the shift of the class that is flagged
Departs  1. the loss, which was not seen: cross-entropy of clean features and, as much, of shifted ones, under the true labels;
            the shift stays as the infected model has it
         2. several flagged classes count alike; where none is flagged nothing is tuned, and the record says so
         3. SGD, epochs and rate as ft, so that the two differ in the shift alone
         4. the detector's own departures
Cost     one pass over the holdout, then `epochs` passes, forward and backward
"""

import logging
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.surgery import activations, classifier_head, classifier_name
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.fit import Loss, fit
from backdoorbench.training.latent import latent_changes
from backdoorbench.training.recipe import Tuning, TuningSchedule
from backdoorbench.training.reversal import index_of, outliers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentTAC(Defense):
    """Fine-tuning under latent shifts. The flagged classes and the anomaly index are noted in the record."""

    threshold: float
    shift_weight: float
    epochs: int
    schedule: TuningSchedule
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.threshold", self.threshold, 0)
        check_range("defense.shift_weight", self.shift_weight, 0)
        check_range("defense.epochs", self.epochs, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        with scenario.autocast():
            shifts, lengths = latent_changes(model, scenario.holdout)
        flagged = outliers(lengths, self.threshold)
        scenario.note("anomaly_index", index_of(lengths))
        scenario.note("flagged", flagged.nonzero()[:, 0].tolist())
        if not flagged.any():
            log.warning(f"{self.name}: no class is flagged, so the model is returned as it was")
            return model
        fit(
            model,
            scenario.holdout,
            self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, self.schedule),
            scenario.stream.child("tune"),
            loss=shifted(model, shifts[flagged].to(scenario.device), self.shift_weight),
            freeze_norms=self.tuning.freeze_norms,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        return model


def shifted(model: nn.Module, shifts: Tensor, weight: float) -> Loss:
    """Cross-entropy of the features as they are, and `weight` times that of the features under each of `shifts` (F, D)."""
    name, head = classifier_name(model), classifier_head(model)

    def loss(network: nn.Module, images: Images, labels: Labels) -> Tensor:
        with activations(network, [name], "input") as seen:
            logits = network(images)
        moved = (seen[name][None] + shifts[:, None]).flatten(0, 1)  # (F N, D)
        return F.cross_entropy(logits.float(), labels) + weight * F.cross_entropy(
            head(moved).float(), labels.repeat(len(shifts))
        )

    return loss
