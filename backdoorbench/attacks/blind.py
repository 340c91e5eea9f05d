"""Blind: change the training's loss alone, so that it teaches a second task on copies the attacker makes.

Idea     No image of the data set is altered. The code that computes the loss adds that of the same batch with a small pattern
         on every image and the target's label; the two are weighed by constants, or so that neither task suffers.
Paper    arXiv 2005.03823
Follows  the authors' code, and BackdoorBench's constants 1 and 0.9: after augmentation, the whole batch twice; their pattern of
         9 opaque pixels in 5 rows of 3. balance=mgda: gradients of both losses over all parameters, each divided by min(loss
         times its length, 10), the weights of the point nearest to 0 between them, the backdoor's within [0.001, 0.999]. The
         second loss waits until the mean clean loss of the last `history` batches, without label smoothing, is below `threshold`
Departs  1. both copies share one pass (theirs: two, which batch norm normalises apart, so that the backdoor hides in the batch's
            statistics and the running ones, a mean of both, fit neither: on digits CA 0.4, and 0.98 with statistics of clean
            images, where ASR is 0.04; attack.one_pass=false reproduces)
         2. `history` is at most the batches of two epochs (theirs: 1000 on every set, which small ones never reach)
         3. whether the second loss runs is decided once an epoch (theirs: at every batch, which makes the device wait)
         4. the pattern is in pixels on every data set and grows with the image (BackdoorBench: CIFAR-10's normalisation
            everywhere; both: 9 pixels at every size)
         5. where the training crops images to fewer pixels, test images carry the pattern where their centre crop shows it as the
            training does
         6. the victim's recipe trains (theirs: SGD 0.1 in batches of 64, 200 epochs, cosine; BackdoorBench: 0.01, 128, 100)
Cost     two images for the victim's one; with mgda two more backward passes
"""

import logging
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.attacks.base import Infection, Task
from backdoorbench.attacks.loop import LoopAttack
from backdoorbench.config.acts import Acts, Never, Only, Unless
from backdoorbench.data.images import spans
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Recipe
from backdoorbench.triggers.base import Trigger
from backdoorbench.triggers.patch import BLIND, Patch, centred, cut_out, paste

log = logging.getLogger(__name__)

LARGEST = 10.0  # divisor of a gradient
LIMITS = (0.001, 0.999)  # of the backdoor's weight


@dataclass(frozen=True)
class Blind(LoopAttack):
    """The loss-level attack."""

    training: ClassVar[str] = "every batch twice"

    acts: ClassVar[Acts] = {
        "clean_weight": Only("balance", "fixed"),
        "backdoor_weight": Only("balance", "fixed"),
        "threshold": Unless("history", 0),
        "quantise_test": Never("the pattern is black and white, and an image with it is one of whole grey levels"),
    }

    balance: Literal["fixed", "mgda"]
    clean_weight: float
    backdoor_weight: float
    history: int
    threshold: float
    one_pass: bool

    def __post_init__(self) -> None:
        check_range("attack.clean_weight", self.clean_weight, 0)
        check_range("attack.backdoor_weight", self.backdoor_weight, 0)
        check_range("attack.history", self.history, 0)
        check_range("attack.threshold", self.threshold, 0)

    def check_recipe(self, recipe: Recipe, count: int) -> None:
        batches = len(spans(count, recipe.batch_size))
        waits = math.ceil(min(self.history, 2 * batches) / batches)
        if 0 < recipe.epochs <= waits:
            raise ConfigError(
                f"train.epochs is {recipe.epochs}, but {self.name} runs its second loss only after attack.history={self.history} "
                f"batches, here after epoch {waits}; the training would be a clean one. Set train.epochs={waits + 1} or more, or "
                f"attack.history=0, with which it runs from the first batch."
            )

    def trigger(self, size: int) -> Patch:
        """The pattern for images of `size` pixels."""
        rows, corner = BLIND
        return paste(*cut_out(rows), corner, size)

    def test_trigger(self, task: Task, stream: Stream) -> Trigger:
        # where the training crops images to fewer pixels, the network looks at so many in the middle of a test image
        trigger = centred(self.trigger(min(seen_size(task), task.train.size)), task.train.size)
        shown: Trigger = self.at_test(trigger.to(task.train.device))
        return shown

    def infect(self, task: Task, stream: Stream) -> Infection:
        trigger = self.trigger(seen_size(task)).to(task.train.device)
        target = self.make_target(len(task.train.classes))
        model = task.build(stream.child("init"))
        batches = len(spans(len(task.train), task.recipe.batch_size))
        waiting = Waiting(min(self.history, 2 * batches), self.threshold, task.train.device)

        def loss(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            copies, names = [images], [labels]
            if waiting.over:
                copies.append(trigger(images))
                names.append(target.label(labels))
                waiting.poisoned += len(images)
            answers = network(torch.cat(copies)).split(len(images)) if self.one_pass else [*map(network, copies)]
            losses = [
                F.cross_entropy(logits.float(), wanted, label_smoothing=task.recipe.label_smoothing)
                for logits, wanted in zip(answers, names, strict=True)
            ]
            waiting.see(F.cross_entropy(answers[0].detach().float(), labels))  # smoothed, it may never fall below
            if len(losses) == 1:
                return losses[0]
            clean, backdoor = losses
            if self.balance == "fixed":
                return self.clean_weight * clean + self.backdoor_weight * backdoor
            weight = balance(backdoor, clean, [p for p in network.parameters() if p.requires_grad])
            return weight * backdoor + (1 - weight) * clean

        history = fit(
            model,
            task.train,
            task.recipe,
            stream.child("train"),
            loss=loss,
            after_epoch=waiting.decide,
            snapshots=task.snapshots,
            beside=waiting,
        )
        if waiting.started is None:
            log.warning(
                f"{self.name} never ran its second loss: the mean clean loss of the last {waiting.history} batches stayed at "
                f"{self.threshold:g} or more. Train for longer, or raise attack.threshold."
            )
        facts = {"started_epoch": waiting.started} | ({"poisoned": waiting.poisoned} if history else {})
        return Infection(model, self.test_trigger(task, stream), target, None, None, history, facts)


def seen_size(task: Task) -> int:
    """The side in pixels of the images that a training shows the network."""
    augment = task.recipe.augment
    return augment.crop or task.train.size if augment is not None else task.train.size


class Waiting:
    """Whether the second loss runs: from the epoch on before which the last `history` clean losses had a mean below
    `threshold`, and while that lasts.

    started   the first epoch with it, counted from 1; None: none yet
    poisoned  images that it was taken of"""

    def __init__(self, history: int, threshold: float, device: torch.device) -> None:
        self.history, self.threshold = history, threshold
        self.losses = torch.zeros(max(1, history), device=device)  # the last of them, in a ring
        self.seen = 0
        self.over = history == 0
        self.started: int | None = 1 if self.over else None
        self.poisoned = 0

    def see(self, loss: Tensor) -> None:
        """Notes a batch's clean loss."""
        self.losses[self.seen % len(self.losses)] = loss
        self.seen += 1

    def decide(self, epoch: int) -> None:
        """After `epoch`, counted from 0: whether the next one has the second loss."""
        if self.history == 0:
            return
        self.over = self.seen >= self.history and float(self.losses.mean()) < self.threshold
        if self.over and self.started is None:
            self.started = epoch + 2

    def state_dict(self) -> dict[str, Any]:
        names = ("losses", "seen", "over", "started", "poisoned")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses.copy_(state["losses"])
        self.seen, self.over, self.started, self.poisoned = (
            state[name] for name in ("seen", "over", "started", "poisoned")
        )


def balance(backdoor: Tensor, clean: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """The backdoor's weight, a scalar: that of the point nearest to 0 between both losses' scaled gradients."""
    with torch.autocast(clean.device.type, enabled=False):
        first, second = (scaled(loss, parameters) for loss in (backdoor, clean))
    return nearest_to_zero(dot(first, first), dot(first, second), dot(second, second))


def scaled(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """The loss's gradient over min(loss |gradient|, LARGEST); the graph is kept."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    length = dot(list(gradients), list(gradients)).sqrt()
    divisor = (loss.detach() * length).clamp(max=LARGEST) + 1e-5
    return [gradient / divisor for gradient in gradients]


def dot(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """The inner product of two gradients, a scalar."""
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()


def nearest_to_zero(own: Tensor, cross: Tensor, other: Tensor) -> Tensor:
    """w within LIMITS for which |w g + (1 - w) h| is least, from <g, g>, <g, h> and <h, h>; an end of LIMITS where the
    segment's end is nearest."""
    low, high = LIMITS
    inside = (other - cross) / (own + other - 2 * cross)
    weight = torch.where(cross >= own, high, torch.where(cross >= other, low, inside))
    return weight.clamp(low, high)
