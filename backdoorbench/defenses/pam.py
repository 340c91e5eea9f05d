"""PAM: path-aware minimisation. Unlearn inverted triggers by gradients taken on the way back to the infected weights.

Idea     Purified weights often stay near the infected ones, and a little tuning brings the backdoor back. A step that is good
         further on towards the infected weights, too, leads out of their reach.
Paper    arXiv 2410.09838 (NeurIPS 2024)
Follows  the authors' code: triggered images by BTI-DBF's inversion (defense=bti_dbf), anew in each of 3 rounds, a fifth of
         every batch; 30 passes of SGD 0.01, momentum 0.1, no weight decay, cross-entropy alone, batch norm in train mode; each
         gradient is taken at theta + rho (theta_infected - theta) / |theta_infected - theta|, one norm over all parameters,
         and applied at theta
Departs  1. the weights never move to that point and back: the forward pass is given them, so theta is kept to the bit; the code
            copies the network in each step and leaves parameters without a gradient where they were moved to
         2. at rho 0 it is plain unlearning with the same SGD; the code's branch for that fails
         3. the generator learns in every round, as BTI-DBF's does; the code takes its gradients away in the first unlearning and
            never gives them back, so that rounds 2 and 3 unlearn what the first one generates
         4. our holdout is kept from the victim; theirs are 2,500 of its training images (holdout=backdoorbench)
         5. the inversion's own departures, which bti_dbf lists
Cost     as BTI-DBF's: a pass forward and backward for each step of the tuning, whatever rho
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.fit import Loss, fit, make_optimizer
from backdoorbench.training.inversion import Inversion, Inverter
from backdoorbench.training.recipe import bare_recipe

Weights = Mapping[str, Tensor]  # name -> parameter


@dataclass(frozen=True)
class PAM(Defense):
    """Path-aware minimisation. How far the weights went, and the target that the inversion points at, are noted in the record."""

    inversion: Annotated[Inversion, BESIDE]
    rho: float
    epochs: int
    lr: float
    momentum: float

    def __post_init__(self) -> None:
        check_range("defense.rho", self.rho, 0)
        check_range("defense.epochs", self.epochs, 0)
        check_range("defense.lr", self.lr, 0)
        check_range("defense.momentum", self.momentum, 0, 1)

    def purify(self, scenario: Scenario) -> nn.Module:
        model, passed = scenario.model, itertools.count()
        infected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        recipe = bare_recipe(
            self.name, epochs=self.epochs, batch_size=self.inversion.batch_size, optimizer="sgd", lr=self.lr,
            momentum=self.momentum, weight_decay=0.0, schedule="constant", augment=self.inversion.augment,
            precision=scenario.recipe.precision,
        )  # fmt: skip
        optimizer = make_optimizer(list(model.parameters()), recipe, scenario.device)
        for turn, inverter in enumerate(self.inversion.turns(scenario, self.name)):
            fit(
                model,
                scenario.holdout,
                recipe,
                scenario.stream.child(f"unlearn{turn}"),
                loss=path_aware(inverter, infected, self.rho),
                optimizer=optimizer,
                after_epoch=lambda _: scenario.probe(model, next(passed)),
            )
        scenario.note("path", float(length(apart(dict(model.named_parameters()), infected))))
        return model


def path_aware(inverter: Inverter, infected: Weights, rho: float) -> Loss:
    """Cross-entropy of mixed batches under their true labels, of the model at the point on its path."""

    def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
        there = on_path(dict(model.named_parameters()), infected, rho)
        return F.cross_entropy(functional_call(model, dict(there), (inverter.mix(images),)).float(), labels)

    return loss


def on_path(weights: Weights, infected: Weights, rho: float) -> Weights:
    """The weights, moved by rho towards the infected ones; a gradient there is one with respect to them where they are."""
    ways = apart(weights, infected)
    share = rho / (length(ways) + 1e-12)
    return {name: weight + share * ways[name] for name, weight in weights.items()}


def apart(weights: Weights, infected: Weights) -> Weights:
    """From the weights to the infected ones, without gradient."""
    return {name: infected[name] - weight.detach() for name, weight in weights.items()}


def length(ways: Weights) -> Tensor:
    """One Euclidean norm over all parameters."""
    return torch.stack([way.square().sum() for way in ways.values()]).sum().sqrt()
