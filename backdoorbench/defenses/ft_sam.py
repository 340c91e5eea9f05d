"""FT-SAM: fine-tuning with sharpness-aware minimisation, which moves the large weights of backdoor neurons.

Idea     A few neurons of large norm carry the backdoor, and plain tuning barely moves them. Take the gradient not at the
         weights but at a point uphill, where each weight has moved in proportion to its own size: large weights move most.
Paper    arXiv 2304.11823
Follows  BackdoorBench's code: e = rho w^2 g / (|| |w| g ||_2 + 1e-12), g the gradient at w, the norm over all parameters; an SGD
         step at w with the gradient of w + e; batch norm's statistics are updated by the pass at w alone; label smoothing
         gives each other class 0.1 / (K - 1)
Departs  1. the cosine falls once, to 0 at the last batch; theirs, made for epochs, is stepped per batch and so rises and falls
            with a half period of 100 batches (defense.cosine_period=100), and on Tiny ImageNet, where the rate is to fall once
            the loss stands still, its call fails
         2. both passes run in the victim's precision; theirs in float32 (train.precision=float32)
         3. the holdout is stratified, as the data set is; theirs has equal counts a class
         4. on CIFAR-100, for which they give no values, those of CIFAR-10
Cost     `epochs` passes over the holdout, forward and backward, twice
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.shapes import Images, Labels, Logits
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import CosineByBatch, Tuning


@dataclass(frozen=True)
class FTSAM(Defense):
    """Sharpness-aware fine-tuning of all parameters on the holdout."""

    rho: float
    label_smoothing: float
    epochs: int
    cosine_period: int | None
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.rho", self.rho, 0)
        check_range("defense.label_smoothing", self.label_smoothing, 0, 0.5)
        check_range("defense.epochs", self.epochs, 0)
        if self.cosine_period is not None:
            check_range("defense.cosine_period", self.cosine_period, 1)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        plain = self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, "cosine")
        fit(
            model,
            scenario.holdout,
            CosineByBatch(**vars(plain), period=self.cosine_period),
            scenario.stream.child("tune"),
            loss=self.uphill,
            freeze_norms=self.tuning.freeze_norms,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        return model

    def uphill(self, model: nn.Module, images: Images, labels: Labels) -> Tensor:
        """The loss at w + e, whose gradient with respect to w is that at w + e; the model's own weights stay at w."""
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        here = smoothed(model(images).float(), labels, self.label_smoothing)
        gradients = torch.autograd.grad(here, list(weights.values()), allow_unused=True, materialize_grads=True)
        steps = ascent(list(weights.values()), gradients, self.rho)
        moved = {name: weight + step for (name, weight), step in zip(weights.items(), steps, strict=True)}
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}  # the second pass updates copies
        logits = functional_call(model, moved | statistics, (images,))
        return smoothed(logits.float(), labels, self.label_smoothing)


@torch.no_grad()
def ascent(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """e = rho w^2 g / (|| |w| g ||_2 + 1e-12), for each tensor, the norm over all: so ||e / |w| ||_2 = rho (arXiv 2102.11600)."""
    scaled = [weight * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    norm = torch.stack([part.norm() for part in scaled]).norm()
    return [weight * part * (rho / (norm + 1e-12)) for weight, part in zip(weights, scaled, strict=True)]


def smoothed(logits: Logits, labels: Labels, share: float) -> Tensor:
    """Cross-entropy with labels of which `share` is spread evenly over the other classes; torch spreads over all of them."""
    classes = logits.shape[1]
    return F.cross_entropy(logits, labels, label_smoothing=share * classes / (classes - 1))
