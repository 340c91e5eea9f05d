"""FP: fine-pruning. Prune the features that clean images leave silent, then fine-tune.

Idea     What clean images never excite is free for a backdoor to use. Prune the classifier's inputs in the order of
         their mean activation on clean images, as far as the accuracy allows, and let fine-tuning repair the rest.
Paper    arXiv 1805.12185, by BackdoorBench's code
Follows  BackdoorBench's code: mean activation of what the classifier reads, in eval mode; 1 % of the features a step,
         until the accuracy has fallen by more than a tenth of what it was; then SGD with momentum 0.9, weight decay
         5e-4 and cosine to 0 stepped per epoch, the pruned features held at 0
Departs  1. the accuracy is that of a fifth of the holdout, which features are ranked by and the network is tuned on, too;
            BackdoorBench's is that of the test set
         2. the last step that keeps the accuracy counts, and prunes what it says; BackdoorBench returns the step after
            it, and prunes one feature fewer than it reports
         3. the cosine ends with the training; BackdoorBench's always takes 100 epochs, and its Tiny ImageNet file lowers
            the rate where the loss stands still instead
         4. the pruned share depends on the clean images alone; the paper prunes channels of the last convolution, which
            are these features where pooling follows it. Behind a flattened map (a VGG at 224 px) every value of it is a
            feature. In a PreAct-ResNet no activation stands before the pooling, so that half of the features are negative on
            average and go first, silent or not, as in BackdoorBench; trojanzoo ranks absolute values
         5. features are read of images as they are; BackdoorBench's are augmented, as for tuning
         6. batches of one are joined to the one before; precision as the victim's
Cost     a forward pass over the holdout; then `epochs` passes, forward and backward
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from backdoorbench.config.acts import Acts, Only
from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.channels import multiply, read_inputs
from backdoorbench.models.surgery import classifier_head, classifier_name
from backdoorbench.shapes import ceil_of, floor_of
from backdoorbench.training.fit import fit
from backdoorbench.training.pruning import BATCH, Selection
from backdoorbench.training.recipe import Tuning, TuningSchedule


@dataclass(frozen=True)
class FP(Defense):
    """Fine-pruning on the holdout. How many features went, and what the accuracy was, is noted in the record."""

    acts: ClassVar[Acts] = {"step": Only("selection", "holdout_drop"), "share": Only("selection", "fixed")}

    step: float
    share: float
    epochs: int
    schedule: TuningSchedule
    chosen: Annotated[Selection, BESIDE]
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.step", self.step, 1e-4, 1)
        check_range("defense.share", self.share, 0, 1)
        check_range("defense.epochs", self.epochs, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model, holdout = scenario.model, scenario.holdout
        name, head = classifier_name(model), classifier_head(model)
        order = read_features(scenario, name, holdout).mean(0).argsort(stable=True)  # (D,), the most silent first
        _, judge = self.chosen.divide(holdout, scenario.stream.child("select"))
        count = floor_of(self.share, len(order))
        if judge is not None:
            count = self.count(scenario, read_features(scenario, name, judge), judge, head, order)
        kept = torch.ones(len(order))
        kept[order[:count]] = 0
        mask = {f"{name}.weight": kept.to(head.weight)}  # of (K, D): its columns
        scenario.note("pruned_features", count)
        scenario.note("features", len(order))
        multiply(model, mask)
        fit(
            model,
            holdout,
            self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, self.schedule),
            scenario.stream.child("tune"),
            freeze_norms=self.tuning.freeze_norms,
            after_step=lambda: multiply(model, mask),
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        return model

    def count(self, scenario: Scenario, features: Tensor, judge: ImageSet, head: nn.Linear, order: Tensor) -> int:
        """How many of the features, in their `order` (D,), go: as many steps as the images' accuracy allows.

        features  (N, D): what the classifier reads for the images of `judge`"""
        weight, bias, labels = head.weight.detach().cpu(), head.bias, judge.labels.cpu()

        def accuracy(count: int) -> float:
            left = features.index_fill(1, order[:count], 0)
            logits = left @ weight.T + (0 if bias is None else bias.detach().cpu())
            return float((logits.argmax(1) == labels).float().mean())

        step, before = ceil_of(self.step, len(order)), accuracy(0)
        count = self.chosen.strongest(range(step, len(order), step), accuracy, before) or 0
        scenario.note("selection_accuracy", {"before": before, "pruned": accuracy(count)})
        return count


def read_features(scenario: Scenario, classifier: str, images: ImageSet) -> Tensor:
    """(N, D) float32 on the CPU: what the classifier reads for images that are not augmented."""
    with scenario.autocast():
        batches = (batch for batch, _ in images.batches(BATCH))
        return read_inputs(scenario.model, [classifier], batches, Tensor.cpu)[classifier]
