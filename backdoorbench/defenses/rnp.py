"""RNP: reconstructive neuron pruning. Unlearn clean data, recover it by masks on channels, prune those that had to give way.

Idea     Raise the loss on clean images until the network has forgotten them: what is left is the backdoor. Then let
         masks on the channels bring clean accuracy back, all weights frozen: they shut the channels that the backdoor
         runs through.
Paper    arXiv 2305.14876, by its authors' code
Follows  the authors' code: SGD up the cross-entropy, momentum 0.9, weight decay 5e-4, times 0.1 at epochs 10 and 20,
         train mode, until an epoch's accuracy is at most 0.2; then SGD on masks of the unlearned network's scales
         alone, on alpha times the cross-entropy, clamped to [0, 1]; then the infected network loses its scales where
         the mask is at most a threshold
Departs  1. the threshold is the largest of 0, 0.05, ..., 0.9 that a fifth of the holdout allows, or fixed; the authors
            print all of them, judged by the test set. BackdoorBench's is 0.7. Behind the first that costs too much none is
            tried
         2. where the accuracy never falls to 0.2 the last epoch counts, with a warning; theirs finds no file, and ends
         3. gradients are not clipped: theirs are clipped before they exist, which does nothing
         4. at most 20 epochs of unlearning; their loop makes 21
         5. the holdout is 5 %, withheld; theirs are 500 of the images that were trained on, 1 % (holdout.rate=0.01)
         6. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `unlearn_epochs` and `recover_epochs` passes over the holdout, forward and backward
"""

import copy
import logging
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Only, Unless
from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.channels import Channels, Prune, multiplied
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.fit import Loss, fit
from backdoorbench.training.pruning import Selection, learn_mask, prune_by_mask
from backdoorbench.training.recipe import Recipe, Tuning

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RNP(Defense):
    """Reconstructive neuron pruning on the holdout.

    The accuracy of each epoch of unlearning, and how many channels each threshold takes, are noted in the record."""

    acts: ClassVar[Acts] = {"threshold": Only("selection", "fixed"), "decay": Unless("milestones", [])}

    unlearn_epochs: int
    milestones: tuple[int, ...]
    decay: float
    clean_accuracy: float
    recover_epochs: int
    recover_lr: float
    alpha: float
    threshold: float
    prune: Prune
    chosen: Annotated[Selection, BESIDE]
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.unlearn_epochs", self.unlearn_epochs, 0)
        check_range("defense.decay", self.decay, 0, 1)
        check_range("defense.clean_accuracy", self.clean_accuracy, 0, 1)
        check_range("defense.recover_epochs", self.recover_epochs, 0)
        check_range("defense.recover_lr", self.recover_lr, 0)
        check_range("defense.alpha", self.alpha, 0)
        check_range("defense.threshold", self.threshold, 0, 1)

    def purify(self, scenario: Scenario) -> nn.Module:
        images, judge = self.chosen.divide(scenario.holdout, scenario.stream.child("select"))
        network = copy.deepcopy(scenario.model)
        recipe = self.tuning.recipe(self.name, self.unlearn_epochs, scenario.recipe.precision, "milestones")
        recipe = replace(recipe, milestones=self.milestones, decay=self.decay)
        self.unlearn(scenario, network, images, recipe)
        mask = learn_mask(
            network,
            images,
            replace(recipe, epochs=self.recover_epochs, schedule="constant", lr=self.recover_lr, weight_decay=0.0),
            scenario.stream.child("recover"),
            self.recovery,
            self.tuning.freeze_norms,
        )
        return prune_by_mask(scenario, mask, self.prune, self.chosen, mask <= self.threshold, judge)

    def unlearn(self, scenario: Scenario, network: nn.Module, images: ImageSet, recipe: Recipe) -> None:
        """Raises the network's loss on the images, in place, until an epoch's accuracy is low enough or the epochs are over."""
        hits = torch.zeros((), dtype=torch.int64, device=images.device)
        accuracies: list[float] = []

        def raised(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            logits = network(images).float()
            hits.add_((logits.detach().argmax(1) == labels).sum())
            return -F.cross_entropy(logits, labels)

        def forgotten() -> bool:
            accuracies.append(int(hits) / len(images))
            hits.zero_()
            return accuracies[-1] <= self.clean_accuracy

        freeze = self.tuning.freeze_norms
        fit(
            network, images, recipe, scenario.stream.child("unlearn"), loss=raised, freeze_norms=freeze, until=forgotten
        )
        scenario.note("unlearning_accuracy", accuracies)
        if accuracies and accuracies[-1] > self.clean_accuracy:
            log.warning(
                f"{self.name}: after {len(accuracies)} epochs of unlearning the accuracy on the holdout is {accuracies[-1]:.3g}, "
                f"not {self.clean_accuracy:g} or less, so the masks tell little; raise defense.lr or defense.unlearn_epochs"
            )

    def recovery(self, channels: Channels, mask: Tensor) -> Loss:
        """alpha times the masked network's cross-entropy."""

        def loss(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            logits = multiplied(network, channels.factors(mask))(images)
            return self.alpha * F.cross_entropy(logits.float(), labels)

        return loss
