"""Exact purification: what a defense could do that knew the trigger. An oracle, so no defense but a control.

Idea     An infected model that is fine-tuned on triggered images with their true labels has unlearnt the backdoor itself.
Paper    arXiv 2410.09838 (NeurIPS 2024), its control that stays robust
Follows  the paper: fine-tuning on real triggered images with correct labels, beside the clean ones
Departs  1. images, passes and rates are ours: the holdout and the same images triggered, SGD, momentum 0.9, no weight decay;
            the paper's were not seen
Cost     `epochs` passes over twice the holdout, once for an infection
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from backdoorbench.after.retune import joined
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import check_range
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Precision, bare_recipe


@dataclass(frozen=True)
class Exact:
    """How the oracle tunes."""

    acts: ClassVar[Acts] = {"batch_size": Unless("epochs", 0), "lr": Unless("epochs", 0)}

    epochs: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        check_range("exact.epochs", self.epochs, 0)
        check_range("exact.batch_size", self.batch_size, 2)
        check_range("exact.lr", self.lr, 0)

    def purify(
        self, model: nn.Module, clean: ImageSet, triggered: ImageSet, precision: Precision, stream: Stream
    ) -> None:
        """Tunes the infected model in place. triggered: the same images with the trigger, true labels kept."""
        recipe = bare_recipe(
            "exact", epochs=self.epochs, batch_size=self.batch_size, optimizer="sgd", lr=self.lr, momentum=0.9,
            weight_decay=0.0, schedule="constant", augment=None, precision=precision,
        )  # fmt: skip
        fit(model, joined(clean, triggered), recipe, stream)
