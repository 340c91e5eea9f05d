"""Adversarial examples: signed gradient steps of a whole batch, in pixels, within a distance per value (L-infinity).

The gradient is taken with respect to the images alone, so no parameter gathers one, and nothing is read back from the
device. Forward passes run under the caller's autocast.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from backdoorbench import progress
from backdoorbench.data.images import ImageSet, spans
from backdoorbench.errors import check_range
from backdoorbench.models.base import evaluating
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import Stream
from backdoorbench.training.fit import Loss, cross_entropy

Norm = Literal["linf", "l2"]  # of a change: the largest of its values, or its Euclidean length
Craft = Callable[[nn.Module, Images, Labels], Images]  # (model, (N, 3, H, W), (N,)) -> (N, 3, H, W)


@dataclass(frozen=True)
class PGD:
    """Projected gradient steps on the cross-entropy (arXiv 1706.06083v4).

    radius    how far a value may end from where it was, of [0, 1]
    step      how far one step moves it
    steps     0: the images stay as they are
    targeted  False: away from the labels that are given; True: towards them
    clamp     keep values in [0, 1]
    """

    radius: float
    step: float
    steps: int
    targeted: bool = False
    clamp: bool = True

    def __call__(self, model: nn.Module, images: Images, labels: Labels, start: Stream | None = None) -> Images:
        """(N, 3, H, W) adversarial images; `model` attacked in eval mode, its modes, weights and statistics kept.

        labels  (N,) int64
        start   where to draw a random start from, uniform within `radius`; None: from the images themselves
        """
        entropy = cross_entropy(0.0)

        def objective(moved: Images) -> Tensor:
            loss = entropy(model, moved, labels)
            return -loss if self.targeted else loss

        with evaluating(model):
            return ascend(
                objective, images, radius=self.radius, step=self.step, steps=self.steps, clamp=self.clamp, start=start
            )


def fgsm(radius: float, *, targeted: bool = False, clamp: bool = True) -> PGD:
    """One step of the whole radius (arXiv 1412.6572v3)."""
    return PGD(radius, radius, 1, targeted, clamp)


def ascend(
    objective: Callable[[Images], Tensor],
    images: Images,
    *,
    radius: float,
    step: float,
    steps: int,
    clamp: bool = True,
    project: bool = True,
    start: Stream | Images | None = None,
) -> Images:
    """(N, 3, H, W): x <- P(x + step * sign(gradient of the objective at x)), `steps` times; P returns to within `radius`.

    images     or anything else that can be moved: a row of factors on channels
    objective  (N, 3, H, W) -> scalar to increase; whoever calls sees to the model's mode
    start      where to begin: a stream to draw it from, uniform within `radius`; images, or by default those that are moved
    project    False: P leaves values where a step took them; a random start is within `radius` all the same
    """
    bound = radius if project else math.inf
    low, high = images.detach() - bound, images.detach() + bound
    if clamp:
        low, high = low.clamp_(min=0), high.clamp_(max=1)
    moved = start.detach() if isinstance(start, Tensor) else images.detach()
    if isinstance(start, Stream):
        noise = torch.rand(images.shape, generator=start.generator()).to(images.device, non_blocking=True)
        moved = (moved + (2 * noise - 1) * radius).clamp(low, high)
    with torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_()
            (gradient,) = torch.autograd.grad(objective(moved), moved)
            moved = (moved.detach() + step * gradient.sign()).clamp(low, high)
    return moved


@dataclass(frozen=True)
class UniversalSearch:
    """How an after-attack searches one change of all images. In its yaml these settings stand beside its own:
    `search: Annotated[UniversalSearch, BESIDE]`.

    epsilon  how far the change goes at most: of a pixel's value, or under an L2 norm its Euclidean length
    step     how far one step goes, of a pixel's value; under an L2 norm what the gradient is multiplied by
    images   that it learns from
    epochs   passes over them
    """

    epsilon: float
    step: float
    images: int
    epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        check_range("after.epsilon", self.epsilon, 0)
        check_range("after.step", self.step, 0)
        check_range("after.images", self.images, 1)
        check_range("after.epochs", self.epochs, 0)
        check_range("after.batch_size", self.batch_size, 1)

    def check_pixels(self) -> None:
        """Raises ConfigError where epsilon or step is no change of a value in [0, 1]."""
        check_range("after.epsilon", self.epsilon, 0, 1)
        check_range("after.step", self.step, 0, 1)

    def find(
        self,
        objective: Callable[[Images, Images, Labels], Tensor],
        images: ImageSet,
        stream: Stream,
        *,
        name: str,
        norm: Norm = "linf",
        is_drawn: bool = False,
        turns: int = 1,
    ) -> Images:
        """(1, 3, H, W): one change of all images within epsilon.

        objective  (change, batch, labels) -> scalar to increase; whoever calls sees to clipping, and to the model's mode
        name       as progress calls it
        norm       linf: epsilon bounds each value, by signed steps of `ascend`. l2: it bounds the Euclidean length, and a step is
                   the gradient times `step`
        is_drawn   whether it begins at a random change instead of none: of values within epsilon, under l2 as long as that
        turns      steps on each batch"""
        passes = (images.batches(self.batch_size, stream.child(f"epoch{epoch}")) for epoch in range(self.epochs))
        batches = (batch for each in passes for batch in each for _ in range(turns))
        a_pass = len(spans(len(images), self.batch_size)) * turns
        steps = self.epochs * a_pass
        none = torch.zeros(1, *images.images.shape[1:], device=images.device)
        start = stream.child("start") if is_drawn else None

        with progress.task(name, self.epochs, "pass", a_pass) as work:

            def on_next_batch(change: Images) -> Tensor:
                work.advance()
                return objective(change, *next(batches))

            if norm == "linf":
                return ascend(
                    on_next_batch, none, radius=self.epsilon, step=self.step, steps=steps, clamp=False, start=start
                )
            if start is not None:
                none = (2 * torch.rand(none.shape, generator=start.generator()) - 1).to(images.device)
            return climb(
                on_next_batch, within_l2(self.epsilon * none, self.epsilon), self.epsilon, step=self.step, steps=steps
            )


def climb(objective: Callable[[Tensor], Tensor], changes: Tensor, radius: float, *, step: float, steps: int) -> Tensor:
    """(N, ...): d <- P(d + step * gradient of the objective), `steps` times; P shortens to a Euclidean length of `radius`."""
    with torch.enable_grad():
        for _ in range(steps):
            changes = changes.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(changes), changes)
            changes = within_l2(changes.detach() + step * gradient, radius)
    return changes


def clipped(images: Images) -> Images:
    """The images cut to [0, 1]. A value at 0 or 1 has the slope of the values between, so that a search is told which way a black
    pixel should go: the `clamp` of torch does that until 2.13, with which papers were written, and no more from 2.14 on."""
    return images.masked_fill(images < 0, 0.0).masked_fill(images > 1, 1.0)


def within_l2(deltas: Tensor, radius: float) -> Tensor:
    """The same changes (N, ...), each shortened to a Euclidean length of at most `radius`."""
    lengths = deltas.flatten(1).norm(dim=1).view(-1, *[1] * (deltas.ndim - 1))
    shorter: Tensor = deltas * (radius / lengths.clamp(min=1e-12)).clamp(max=1)
    return shorter


def partly_adversarial(craft: Craft, when: Callable[[int], bool]) -> Loss:
    """A loss for `fit`: cross-entropy on crafted images, and on them alone, in each step for which `when(step)`; on the
    images as they are in the others. Steps are counted from 0, so a loss serves one training."""
    calls, entropy = itertools.count(), cross_entropy(0.0)

    def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
        return entropy(model, craft(model, images, labels) if when(next(calls)) else images, labels)

    return loss
