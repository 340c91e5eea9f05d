"""ULRL: unlearn, then relearn. Raise the clean loss to see which output rows move most, redraw those, and tune.

Idea     When clean images are unlearnt, the classifier's row of the backdoor's target changes far more than the others. From the
         old weights that row is drawn anew, and tuning holds it away from what it was.
Paper    arXiv 2405.14781v2
Follows  the authors' code (NayMyatMin/ULRL). Unlearning: ascent on the holdout, SGD 0.01, the gradient clipped at norm 20, until
         the accuracy of a pass is at most 0.2. Suspects: rows of the classifier whose sum of absolute changes lies above the
         median by more than 3.5 of 1.4826 median deviations, two at most. Relearning: the old weights, suspects uniform within
         sqrt(2 / D) with bias 0, 20 epochs of SGD 0.005 with cosine, loss CE + alpha times the sum of the suspects' cosines to
         their old rows
Departs  1. the two rows are those that moved most; the code takes the first two in the order of classes
         2. the median of an even number of rows is the mean of the middle two; the code's is the lower one
         3. only the last linear layer is the classifier, found by tracing (theirs: `linear`, by name)
         4. unlearning keeps its lr; the code's falls to a tenth after 10 passes, where it has not ended by then
         5. a batch passes the network once in relearning; the code's passes it again in train mode, after the step, for a figure
            of its log, so that statistics of batch norm move twice
         6. the holdout is 5 %, withheld; theirs is 1 %, of the images that were trained on (holdout.rate=0.01)
Cost     at most `unlearning_epochs` + `epochs` passes over the holdout
"""

import copy
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Unless
from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.surgery import classifier_head
from backdoorbench.shapes import Images, Labels, Rows
from backdoorbench.streams import Stream
from backdoorbench.training.fit import cross_entropy, fit, make_optimizer
from backdoorbench.training.recipe import Tuning, TuningSchedule


@dataclass(frozen=True)
class ULRL(Defense):
    """Unlearning and relearning on the holdout. The record tells which classes were suspect, and how far their rows moved."""

    acts: ClassVar[Acts] = {
        name: (Unless("unlearning_epochs", 0), Unless("most_suspects", 0))
        for name in ("unlearning_lr", "unlearning_weight_decay", "clip_norm", "unlearnt_accuracy", "threshold")
    } | {"alpha": Unless("most_suspects", 0)}

    unlearning_epochs: int
    unlearning_lr: float
    unlearning_weight_decay: float
    clip_norm: float
    unlearnt_accuracy: float
    threshold: float
    most_suspects: int
    alpha: float
    epochs: int
    schedule: TuningSchedule
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        for name in ("unlearning_epochs", "unlearning_lr", "unlearning_weight_decay", "clip_norm", "threshold"):
            check_range(f"defense.{name}", getattr(self, name), 0)
        check_range("defense.unlearnt_accuracy", self.unlearnt_accuracy, 0, 1)
        for name in ("most_suspects", "alpha", "epochs"):
            check_range(f"defense.{name}", getattr(self, name), 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        head = classifier_head(model)
        moved = self.unlearn(copy.deepcopy(model), scenario)
        suspects = outstanding(moved, self.threshold)[: self.most_suspects].to(head.weight.device)
        scenario.note("suspects", suspects.tolist())
        scenario.note("rows_moved", [round(float(each), 4) for each in moved])
        old = head.weight.detach()[suspects]  # (S, D), a copy
        redraw(head, suspects, scenario.stream.child("redraw"))
        entropy = cross_entropy(0.0)

        def away(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            cosines = F.cosine_similarity(head.weight[suspects].float(), old, dim=1)
            return entropy(network, images, labels) + self.alpha * cosines.sum()

        fit(
            model,
            scenario.holdout,
            self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, self.schedule),
            scenario.stream.child("relearn"),
            loss=away,
            freeze_norms=self.tuning.freeze_norms,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        return model

    def unlearn(self, model: nn.Module, scenario: Scenario) -> Tensor:
        """(K,) on the CPU: how far each row of the classifier of `model` moves while clean images are unlearnt."""
        holdout, stream = scenario.holdout, scenario.stream.child("unlearn")
        head = classifier_head(model)
        before = head.weight.detach().clone()
        recipe = self.tuning.recipe(f"{self.name} unlearning", 1, scenario.recipe.precision)
        recipe = replace(recipe, lr=self.unlearning_lr, weight_decay=self.unlearning_weight_decay)
        optimizer = make_optimizer(list(model.parameters()), recipe, scenario.device)
        hits: list[Tensor] = []

        def worse(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            logits = network(images).float()
            hits.append((logits.detach().argmax(1) == labels).sum())
            return -F.cross_entropy(logits, labels)

        for epoch in range(self.unlearning_epochs):
            hits.clear()
            draws = stream.child(f"pass{epoch}")
            fit(model, holdout, recipe, draws, loss=worse, optimizer=optimizer, clip_norm=self.clip_norm)
            if int(torch.stack(hits).sum()) / len(holdout) <= self.unlearnt_accuracy:
                break
        return (head.weight.detach() - before).abs().sum(1).cpu()


def outstanding(values: Tensor, threshold: float) -> Rows:
    """Of (K,) values those above the median by more than `threshold` scaled median deviations, the largest first."""
    values = values.double()
    above = values - values.quantile(0.5)  # of an even count, the mean of the two in the middle
    limit = threshold * 1.4826 * above.abs().quantile(0.5)
    order = above.argsort(descending=True, stable=True)
    return order[above[order] > limit]


def redraw(head: nn.Linear, rows: Rows, stream: Stream) -> None:
    """Those rows of the weight anew, uniform in +-sqrt(2 / D); their bias 0."""
    bound = (2 / head.in_features) ** 0.5
    fresh = torch.empty(len(rows), head.in_features).uniform_(-bound, bound, generator=stream.generator())
    with torch.no_grad():
        head.weight[rows] = fresh.to(head.weight.device)
        if head.bias is not None:
            head.bias[rows] = 0
