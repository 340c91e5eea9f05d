"""D3: distance-driven detoxification. Carry the classifier as far from its infected weights as a small loss allows.

Idea     Plain tuning stays near the infected weights, where the backdoor lives. Ask instead for the classifier at the largest
         distance from them, at their norm, whose loss on clean images is below a threshold; the features must follow.
Paper    arXiv 2411.09585v1
Follows  the authors' code (`cf5006a`): W starts elsewhere; loss = lambda mean relu(CE_i - eps) - |W - W0|_p, divided by
         lambda + 1 where lambda exceeds 1; W has W0's norm after each step; all else is tuned along; SGD, momentum 0.9, no
         weight decay, cosine to 0 stepped per epoch, batch norm in train mode
Departs  1. the classifier is the last linear layer, found by tracing; theirs is any module that is named
         2. tuned in the victim's precision; theirs in float32 (train.precision=float32)
         3. a start of noise is brought to W0's norm at once; theirs after the first step
         4. `near`, the infected weights themselves as a start, is left out; theirs has it and advises against it
Cost     `epochs` passes over the holdout, forward and backward
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Unless
from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.surgery import classifier_head
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Tuning, TuningSchedule

Start = Literal["random", "zero", "negated", "noise"]


@dataclass(frozen=True)
class D3(Defense):
    """Distance-driven tuning on the holdout. The record notes the distance that was reached, of the largest there is, 2 |W0|."""

    acts: ClassVar[Acts] = {"loss_threshold": Unless("loss_weight", 0)}

    loss_weight: float
    loss_threshold: float
    norm: float
    start: Start
    epochs: int
    schedule: TuningSchedule
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.loss_weight", self.loss_weight, 0)
        check_range("defense.loss_threshold", self.loss_threshold, 0)
        check_range("defense.norm", self.norm, 1)
        check_range("defense.epochs", self.epochs, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        weight = classifier_head(model).weight  # (K, D)
        infected = weight.detach().clone()
        length = infected.norm(p=self.norm)
        scale = 1 + self.loss_weight if self.loss_weight > 1 else 1.0

        def project() -> None:
            with torch.no_grad():
                weight.mul_(length / weight.norm(p=self.norm).clamp(min=1e-12))  # a start of zero stays there

        def detoxify(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            each = F.cross_entropy(network(images).float(), labels, reduction="none")
            clean = F.relu(each - self.loss_threshold).mean()
            distance: Tensor = (weight - infected).norm(p=self.norm)
            return (self.loss_weight * clean - distance) / scale

        with torch.no_grad():
            weight.copy_(moved(infected, self.start, scenario.stream.child("start")))
        project()
        fit(
            model,
            scenario.holdout,
            self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, self.schedule),
            scenario.stream.child("tune"),
            loss=detoxify,
            freeze_norms=self.tuning.freeze_norms,
            after_step=project,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        reached = (weight.detach() - infected).norm(p=self.norm)
        scenario.note("classifier_norm", float(length))
        scenario.note("distance_share", float(reached / (2 * length)))
        return model


def moved(weight: Tensor, start: Start, stream: Stream) -> Tensor:
    """Where a classifier's weights (K, D) start, up to their norm. noise: the infected ones, plus as much again at random."""
    if start == "zero":
        return torch.zeros_like(weight)
    if start == "negated":
        return -weight  # the farthest there is
    draws = stream.generator()
    if start == "noise":
        return weight + weight.std() * torch.randn(weight.shape, generator=draws).to(weight)
    return (torch.rand(weight.shape, generator=draws) - 0.5).to(weight)
