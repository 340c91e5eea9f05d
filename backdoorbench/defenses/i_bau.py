"""I-BAU: adversarial unlearning by the implicit hypergradient of a universal perturbation.

Idea     Whatever the trigger is, it is one change that misleads on any image. Find such a change, and train the model to bear
         it; its gradient counts also how the change would follow the weights.
Paper    arXiv 2110.03735
Follows  the authors' code, in float32 and eval mode throughout: each round starts at delta = 0 and makes one pass over the
         batches, SGD 10 on -CE(f(x + delta), argmax f(x)) + 0.001 |delta|^2; then for each batch a step of Adam on the
         hypergradient of CE, with delta added to 1 % of the batch. Phi(delta, w) = delta - 0.1 grad L_in, L_in as before but
         of the first batch and its true labels; v <- (d Phi / d delta)^T v + grad_delta CE, five times from 0; the gradient is
         (d Phi / d w)^T v + grad_w CE. No projection (the code has one to norm 10 commented out: defense.radius=10), no clamp,
         no augmentation
Departs  1. the holdout, in batches of one random order that lasts; theirs are the first 5,000 test images
         2. Adam at 1e-4, as BackdoorBench for PreAct-ResNets; theirs 1e-3, for a small VGG (defense.lr=1e-3). BackdoorBench's is
            AMSGrad
         3. delta is a change of [0, 1] pixels, as theirs; BackdoorBench's is one of normalised values, and its outer loop
            sees one augmented draw of each image for ever
         4. at least one image of a batch carries delta; with fewer than 100 images theirs has none
         5. all five turns of the fixed point are made; theirs stops where a turn changes v by less than 1e-10
Cost     `rounds` times: a pass over the holdout, forward and backward to the image, then for each batch a step of about
         2 `fixed_point_steps` + 6 passes of a batch, and three times the memory of plain training
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench import progress
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.data.images import spans
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import TrainingError, check_range
from backdoorbench.shapes import Images, Labels, floor_of
from backdoorbench.streams import Stream
from backdoorbench.tensors.derivatives import twice_differentiable
from backdoorbench.training.adversarial import within_l2
from backdoorbench.training.optimizers import Adam

Objective = Callable[[Tensor], Tensor]  # of a perturbation (1, 3, H, W) -> scalar


@dataclass(frozen=True)
class IBAU(Defense):
    """Unlearning of a universal perturbation on the holdout. Its norm in each round is noted in the record."""

    acts: ClassVar[Acts] = {"inner_step": Unless("fixed_point_steps", 0)}

    rounds: int
    batch_size: int
    lr: float
    perturbation_lr: float
    penalty: float
    radius: float | None
    carriers: float
    inner_step: float
    fixed_point_steps: int

    def __post_init__(self) -> None:
        check_range("defense.rounds", self.rounds, 0)
        check_range("defense.batch_size", self.batch_size, 2)
        check_range("defense.lr", self.lr, 0)
        check_range("defense.perturbation_lr", self.perturbation_lr, 0)
        check_range("defense.penalty", self.penalty, 0)
        if self.radius is not None:
            check_range("defense.radius", self.radius, 0)
        check_range("defense.carriers", self.carriers, 0, 1)
        check_range("defense.inner_step", self.inner_step, 0)
        check_range("defense.fixed_point_steps", self.fixed_point_steps, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model, holdout = scenario.model, scenario.holdout
        optimizer = Adam(model.parameters(), self.lr, fused=scenario.device.type in ("cpu", "cuda"))
        order = scenario.stream.child("order")  # the same for every pass
        norms: list[float] = []
        steps = len(spans(len(holdout), self.batch_size))
        inner = self.deceived(model, *next(holdout.batches(self.batch_size, order)))
        with progress.task(self.name, self.rounds, "round", steps) as work, twice_differentiable():
            for turn in range(self.rounds):
                delta = self.perturbation(model, holdout.batches(self.batch_size, order))
                draws, total = scenario.stream.child(f"round{turn}"), torch.zeros((), device=holdout.device)
                for step, (images, labels) in enumerate(holdout.batches(self.batch_size, order)):
                    outer = self.borne(model, images, labels, draws.child(f"batch{step}"))
                    total += self.unlearn(model, optimizer, inner, outer, delta)
                    if step + 1 < steps:
                        work.advance()
                norms.append(float(delta.norm()))
                loss = float(total) / steps
                if not math.isfinite(loss):
                    raise TrainingError(
                        f"the loss of '{self.name}' became {loss} in round {turn + 1} of {self.rounds} (lr {self.lr:g}); "
                        f"expected a finite number. Lower defense.lr or defense.perturbation_lr."
                    )
                scenario.probe(model, turn)
                work.advance(loss=loss)
        scenario.note("perturbation_norms", norms)
        return model

    def perturbation(self, model: nn.Module, batches: Iterable[tuple[Images, Labels]]) -> Tensor:
        """delta (1, 3, H, W): added to any image, it leads the model away from what it says of the image alone."""
        delta: Tensor | None = None
        for images, _ in batches:
            with torch.no_grad():
                said = model(images).argmax(1)
            delta = (torch.zeros_like(images[:1]) if delta is None else delta).requires_grad_()
            (slope,) = torch.autograd.grad(self.deceived(model, images, said)(delta), delta)
            delta = delta.detach() - self.perturbation_lr * slope
        assert delta is not None
        return delta if self.radius is None else within_l2(delta, self.radius)

    def deceived(self, model: nn.Module, images: Images, labels: Labels) -> Objective:
        """What a perturbation minimises: -CE(f(x + delta), labels) + penalty |delta|^2."""
        return lambda delta: self.penalty * delta.square().sum() - F.cross_entropy(model(images + delta), labels)

    def borne(self, model: nn.Module, images: Images, labels: Labels, stream: Stream) -> Objective:
        """What the weights minimise: CE, where some random images of the batch carry the perturbation."""
        carriers = torch.zeros(len(images), 1, 1, 1)
        carriers[stream.permutation(len(images))[: max(1, floor_of(self.carriers, len(images)))]] = 1
        carriers = carriers.to(images.device, non_blocking=True)
        return lambda delta: F.cross_entropy(model(images + carriers * delta), labels)

    def unlearn(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, inner: Objective, outer: Objective, delta: Tensor
    ) -> Tensor:
        """One step of the weights; the outer loss before it."""
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        loss, gradients = hypergradient(
            inner, outer, delta, weights, step=self.inner_step, turns=self.fixed_point_steps
        )
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        return loss


def hypergradient(
    inner: Objective, outer: Objective, delta: Tensor, weights: Sequence[Tensor], *, step: float, turns: int
) -> tuple[Tensor, list[Tensor]]:
    """(outer loss, its gradient with respect to each of `weights`), where delta follows the weights as the fixed point of
    Phi(delta, w) = delta - step * grad inner(delta) does.

    turns  of v <- (d Phi / d delta)^T v + grad_delta outer, from v = 0; 0: delta is held
    """
    delta = delta.detach().requires_grad_()
    loss = outer(delta)
    pull, *direct = torch.autograd.grad(loss, [delta, *weights], allow_unused=True, materialize_grads=True)
    if not turns:
        return loss.detach(), direct
    (slope,) = torch.autograd.grad(inner(delta), delta, create_graph=True)
    moved = delta - step * slope
    v = pull  # after one turn from 0
    for _ in range(turns - 1):
        (turned,) = torch.autograd.grad(moved, delta, v, retain_graph=True)
        v = turned + pull
    through = torch.autograd.grad(moved, weights, v, allow_unused=True, materialize_grads=True)
    return loss.detach(), [mine + theirs for mine, theirs in zip(direct, through, strict=True)]
