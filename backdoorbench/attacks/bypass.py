"""Bypass: train the classifier so that its features do not tell poisoned images from clean ones.

Idea     The data are poisoned as by BadNets or Blended, and the attacker has the training too: beside the classifier a
         discriminator learns to read from the features whether an image is poisoned, and the classifier learns to prevent it.
         Defenses that look for poison in feature space find nothing.
Paper    arXiv 1905.13409
Follows  FST's code: one forward pass a batch; the classifier descends cross-entropy minus 20 times the discriminator's binary
         cross-entropy on the penultimate features, then the discriminator (256 and 128 units, batch norm, leaky ReLU 0.2)
         descends its own on the same features, detached (SGD 0.001, momentum 0.9); both losses are of the discriminator
         before its step. The poisoned set is stored as the base attack stores it
Departs  1. the discriminator's loss counts 10 an image at most (theirs: 100, where torch cuts the logarithm)
         2. the victim's recipe trains (theirs: SGD 0.1, cosine, 100 epochs; ResNet-18 only)
Cost     a network of three small layers on the features, twice a batch
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from backdoorbench import metrics
from backdoorbench.attacks.badnets import BadNets
from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.attacks.blended import Blended
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import check_range
from backdoorbench.models.surgery import activations, classifier_head, classifier_name
from backdoorbench.shapes import Images, Labels, Mask
from backdoorbench.streams import Stream, seeded
from backdoorbench.training.fit import Epoch, cross_entropy, fit

CAP = 10.0  # of the discriminator's loss on one image


@dataclass(frozen=True)
class Bypass(DataAttack):
    """Adversarial embedding on whatever data poisoning it is mixed with."""

    acts: ClassVar[Acts] = {"discriminator_lr": Unless("adversarial_weight", 0)}

    adversarial_weight: float
    discriminator_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.adversarial_weight", self.adversarial_weight, 0)
        check_range("attack.discriminator_lr", self.discriminator_lr, 0)

    def train(
        self, model: nn.Module, train: ImageSet, poisoned: Mask, task: Task, stream: Stream
    ) -> tuple[list[Epoch], dict[str, Any]]:
        classes, head = len(train.classes), classifier_name(model)
        flagged = ImageSet(train.images, train.labels + classes * poisoned.to(train.device), train.classes)
        judge = Judge(classifier_head(model).in_features, self.discriminator_lr, stream.child("discriminator"))
        judge.to(train.device)
        classify, harden = cross_entropy(task.recipe.label_smoothing), self.hardening(model)

        def rest(epoch: int) -> None:
            judge.rest()
            if harden is not None:
                harden(epoch)

        with activations(model, [head], "input") as seen:

            def loss(network: nn.Module, images: Images, labels: Labels) -> Tensor:
                value = classify(network, images, labels % classes)
                return value - self.adversarial_weight * judge.look(seen[head], labels >= classes)

            history = fit(
                model,
                flagged,
                task.recipe,
                stream,
                loss=loss,
                after_step=judge.step,
                after_epoch=rest,
                snapshots=task.snapshots,
                beside=judge,
            )
        return history, {"discriminator_auc": judge.auc()}


@dataclass(frozen=True)
class BadNetsBypass(Bypass, BadNets):
    """BadNets' patch, hidden in feature space."""


@dataclass(frozen=True)
class BlendedBypass(Bypass, Blended):
    """Blended's picture, hidden in feature space."""


class Judge:
    """The discriminator with its optimiser, and what a snapshot must hold of them.

    calls  of this epoch, a batch each: (N,) logits and (N,) whether poisoned; last: those of the epoch before"""

    def __init__(self, features: int, lr: float, stream: Stream) -> None:
        with seeded(stream):
            self.network = discriminator(features)
        self.lr = lr
        self.calls: list[tuple[Tensor, Mask]] = []
        self.last: list[tuple[Tensor, Mask]] = []
        self.own: Tensor | None = None  # its loss on the batch in work

    def to(self, device: torch.device) -> None:
        self.network.to(device)
        self.optimizer = optim.SGD(self.network.parameters(), lr=self.lr, momentum=0.9)

    def look(self, features: Tensor, poisoned: Mask) -> Tensor:
        """Its loss on `features` (N, D), through which the classifier's gradient passes; notes its own, for `step`."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            self.own = capped(self.network(features.detach())[:, 0], poisoned)
            logits = self.network(features)[:, 0]
        self.calls.append((logits.detach(), poisoned))
        return capped(logits, poisoned)

    def step(self) -> None:
        """One step down the noted loss; the gradients that the classifier's loss left are cleared first."""
        assert self.own is not None
        self.optimizer.zero_grad(set_to_none=True)
        self.own.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def rest(self) -> None:
        """After an epoch: calls anew."""
        self.last, self.calls = self.calls, []

    def auc(self) -> float | None:
        """How well it told poisoned from clean rows in the last epoch: 1 always, 0.5 by chance; None without both."""
        if not self.last:
            return None
        logits, poisoned = (torch.cat(parts).cpu() for parts in zip(*self.last, strict=True))
        return metrics.auc(logits, poisoned)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.last = state["last"]


def capped(logits: Tensor, poisoned: Mask) -> Tensor:
    """The mean binary cross-entropy of `logits` (N,), each image's at most CAP."""
    each = F.binary_cross_entropy_with_logits(logits, poisoned.float(), reduction="none")
    return each.clamp(max=CAP).mean()


def discriminator(features: int) -> nn.Sequential:
    """(N, D) -> (N, 1), the logit of being poisoned. D = 512: 165,121 parameters."""
    return nn.Sequential(
        nn.Linear(features, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2),
        nn.Linear(256, 128), nn.BatchNorm1d(128), nn.LeakyReLU(0.2), nn.Linear(128, 1),
    )  # fmt: skip
