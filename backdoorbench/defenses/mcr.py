"""MCR: mode connectivity repair. Leave the infected model along a curve of low clean loss.

Idea     Two models are joined by a curve of weights on which clean loss stays low. What only its ends have learned, a backdoor,
         is lost between them.
Paper    arXiv 2005.00060
Follows  the authors' code: phi(t) = (1 - t)^2 w1 + 2 t (1 - t) theta + t^2 w2, ends fixed, theta from the midpoint; each batch
         draws t uniformly from [0, 1] and moves theta alone; SGD 0.01, momentum 0.9, weight decay as half its size times
         |phi(t)|^2 in the loss; rate constant for half of the epochs, then linear to 1 % at 90 %. phi(t) gets batch norm's
         statistics anew. One model: as BackdoorBench, w2 is the infected w1 after plain fine-tuning, SGD 0.01, momentum 0.9,
         weight decay 5e-4, cosine to 0
Departs  1. the holdout is the defender's; the authors' is up to 5,000 test images
         2. only w1 is infected by the attacker; the paper's ends are two models that he infected independently
         3. t = 0.1, as BackdoorBench has it, leaves 81 % of w1, which two ends can afford better than one and its copy
            (defense.t=0.5 is the middle)
         4. gradients are zeroed at each step and the curve's rate is 0.01; BackdoorBench's accumulate over the run, at 3e-5
         5. statistics are averaged over the holdout as it is, from nothing; the authors augment, BackdoorBench moves stale ones
         6. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `end_epochs` + `epochs` passes over the holdout, forward and backward, and a forward pass for each point looked at
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.fit import Loss, fit
from backdoorbench.training.recipe import Recipe, Tuning
from backdoorbench.training.statistics import remeasure_norms

Weights = Mapping[str, Tensor]  # a network's parameters by name

POINTS = 10  # of the curve that are looked at once it is trained, beside w1


@dataclass(frozen=True)
class End:
    """How w2 is tuned; what it does not mention is as the curve has it."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class MCR(Defense):
    """A point between the infected model and its fine-tuned copy, on a curve trained on the holdout.

    The learning curve shows the finished one: its epoch k is phi(k / 10), from w1, the infected model, to w2."""

    t: float
    end: End
    epochs: int
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.t", self.t, 0, 1)
        check_range("defense.epochs", self.epochs, 0)
        check_range("defense.end.epochs", self.end.epochs, 0)
        check_range("defense.end.batch_size", self.end.batch_size, 2)
        check_range("defense.end.lr", self.end.lr, 0)
        check_range("defense.end.weight_decay", self.end.weight_decay, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        first = weights_of(model)
        last = weights_of(self.fine_tuned(copy.deepcopy(model), scenario))
        bend = copy.deepcopy(model)
        put(bend, {name: torch.lerp(weight, last[name], 0.5) for name, weight in first.items()})
        plain = self.tuning.recipe(f"{self.name} curve", self.epochs, scenario.recipe.precision)
        stream = scenario.stream.child("curve")
        fit(
            bend,
            scenario.holdout,
            HoldThenFall(**vars(replace(plain, weight_decay=0.0))),  # the loss has it
            stream,
            loss=anywhere(first, last, self.tuning.weight_decay, stream.child("t").generator()),
            freeze_norms=self.tuning.freeze_norms,
        )
        middle, measured = weights_of(bend), scenario.stream.child("statistics")

        def move(t: float) -> None:
            put(model, point(t, first, middle, last))
            with scenario.autocast():
                remeasure_norms(model, scenario.holdout, self.tuning.batch_size, measured)

        for step in range(1, POINTS + 1):
            move(step / POINTS)
            scenario.probe(model, step - 1)
        move(self.t)
        return model

    def fine_tuned(self, model: nn.Module, scenario: Scenario) -> nn.Module:
        """w2: the model, tuned in place."""
        end = self.end
        tuning = replace(self.tuning, batch_size=end.batch_size, lr=end.lr, weight_decay=end.weight_decay)
        fit(
            model,
            scenario.holdout,
            tuning.recipe(f"{self.name} end", end.epochs, scenario.recipe.precision, "cosine"),
            scenario.stream.child("end"),
            freeze_norms=tuning.freeze_norms,
        )
        return model


@dataclass(frozen=True)
class HoldThenFall(Recipe):
    """A training whose rate holds for half of the epochs, falls linearly to 1 % at 90 % of them, and stays there."""

    def rate(self, step: int, steps_per_epoch: int) -> float:
        done = (step // steps_per_epoch + 1) / self.epochs  # epochs count from 1
        return self.lr * min(1.0, max(0.01, 1 - 0.99 * (done - 0.5) / 0.4))


def anywhere(first: Weights, last: Weights, decay: float, draws: torch.Generator) -> Loss:
    """The loss, for theta in the place of the model's weights, at a random point of the curve: CE + decay / 2 |phi(t)|^2."""

    def loss(bend: nn.Module, images: Images, labels: Labels) -> Tensor:
        t = float(torch.rand((), generator=draws))  # drawn on the CPU: nothing is read back
        here = point(t, first, dict(bend.named_parameters()), last)
        value = F.cross_entropy(functional_call(bend, here, (images,)).float(), labels)
        size = torch.stack([weight.square().sum() for weight in here.values()]).sum()
        return value + decay / 2 * size

    return loss


def point(t: float, first: Weights, middle: Weights, last: Weights) -> dict[str, Tensor]:
    """phi(t), the quadratic Bezier curve from `first` (t = 0) by way of `middle` to `last` (t = 1)."""
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
    return {name: a * first[name] + b * middle[name] + c * last[name] for name in first}


def weights_of(model: nn.Module) -> Weights:
    """Copies of a network's parameters."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@torch.no_grad()
def put(model: nn.Module, weights: Weights) -> None:
    """Gives a network these parameters; its statistics stay."""
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])
