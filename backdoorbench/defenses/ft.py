"""FT: fine-tuning, the baseline of every paper.

Idea     Continue supervised training on clean images; what the images do not ask for may be forgotten.
Paper    none; as a baseline in arXiv 2310.01875v2
Follows  the FST paper's setting: SGD, momentum 0.9, no weight decay, cosine to 0 stepped per epoch, batch norm in train mode
Departs  1. the classifier's norm is free; FST's code rescales it to its first value after every step in all its modes
            (defense.keep_head_norm=true reproduces that)
         2. our holdout is 5 %, kept from the victim; theirs 2 %, uniform, of its training images (holdout=fst)
         3. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `epochs` passes over the holdout, forward and backward
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import nn

from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.surgery import classifier_head
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Tuning, TuningSchedule


@dataclass(frozen=True)
class FT(Defense):
    """Fine-tuning of all parameters on the holdout."""

    plain: ClassVar[bool] = True

    tuning: Annotated[Tuning, BESIDE]
    epochs: int
    schedule: TuningSchedule
    keep_head_norm: bool

    def __post_init__(self) -> None:
        check_range("defense.epochs", self.epochs, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        recipe = self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, self.schedule)
        weight = classifier_head(model).weight if self.keep_head_norm else None  # (K, D)
        norm = weight.detach().norm() if weight is not None else None

        def rescale() -> None:
            if weight is not None:
                with torch.no_grad():
                    weight.mul_(norm / weight.norm())

        fit(
            model,
            scenario.holdout,
            recipe,
            scenario.stream.child("tune"),
            freeze_norms=self.tuning.freeze_norms,
            after_step=rescale if self.keep_head_norm else None,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        return model
