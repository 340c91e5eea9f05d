"""SAU: shared adversarial unlearning. Search what misleads the infected and the present model alike, and unlearn only that.

Idea     Adversarial examples that the infected and the purified model share are like triggered images: what bounds the backdoor's
         risk. Make them anew in every step, and teach the model not to follow the infected one on them.
Paper    arXiv 2307.10562 (NeurIPS 2023)
Follows  the authors' code, which is BackdoorBench's: delta starts at +0.2 everywhere and takes 5 signed steps of 0.2 within
         +-0.2, against both models' clean predictions where these still stand, and towards a small Jensen-Shannon divergence
         where the two do not yet agree on another class; f(x) and f(x + delta) in one pass; Adam (AMSGrad) at a constant 1e-4,
         the network in eval mode, no augmentation. The weights bear our names for the code's numbers, not for the paper's
Departs  1. clean predictions are computed once a batch; the code computes them in each step of the search, to the same end
         2. the search does not stop once all images are shared; from there on its gradient is 0, so nothing moves
         3. delta is added to [0, 1] pixels of whatever data set, and like the code's may leave the range
         4. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `epochs` passes over the holdout, each image forward and backward `steps` times through both models and twice through
         one, and three times forward
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Unless
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.base import evaluating, frozen
from backdoorbench.shapes import Images, Labels, Logits
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.adversarial import ascend
from backdoorbench.training.fit import fit
from backdoorbench.training.optimizers import Adam
from backdoorbench.training.recipe import bare_recipe


@dataclass(frozen=True)
class SAU(Defense):
    """Shared adversarial unlearning on the holdout."""

    acts: ClassVar[Acts] = dict.fromkeys(("step", "fooling_weight", "agreement_weight"), Unless("steps", 0))

    radius: float
    step: float
    steps: int
    fooling_weight: float
    agreement_weight: float
    clean_weight: float
    adversarial_weight: float
    shared_weight: float
    epochs: int
    batch_size: int
    lr: float
    bn_mode: Literal["train", "eval"]
    augment: Augment | None

    def __post_init__(self) -> None:
        check_range("defense.radius", self.radius, 0, 1)
        check_range("defense.step", self.step, 0)
        check_range("defense.steps", self.steps, 0)
        for part in ("fooling", "agreement", "clean", "adversarial", "shared"):
            check_range(f"defense.{part}_weight", getattr(self, f"{part}_weight"), 0)
        check_range("defense.epochs", self.epochs, 0)
        check_range("defense.batch_size", self.batch_size, 2)
        check_range("defense.lr", self.lr, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model, infected = scenario.model, copy.deepcopy(scenario.model)
        recipe = bare_recipe(
            self.name, epochs=self.epochs, batch_size=self.batch_size, optimizer="adam", lr=self.lr, momentum=0.9,
            weight_decay=0.0, schedule="constant", augment=self.augment, precision=scenario.recipe.precision,
        )  # fmt: skip
        with frozen(infected):
            fit(
                model,
                scenario.holdout,
                recipe,
                scenario.stream.child("tune"),
                loss=self.unlearning(infected),
                optimizer=Adam(model.parameters(), self.lr, amsgrad=True),
                freeze_norms=self.bn_mode == "eval",
                after_epoch=lambda epoch: scenario.probe(model, epoch),
            )
        return model

    def unlearning(self, infected: nn.Module) -> Callable[[nn.Module, Images, Labels], Tensor]:
        """The outer loss: cross-entropy of clean and of adversarial images, and the shared examples' pull towards their class."""

        def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
            if self.bn_mode == "eval":
                model.eval()  # dropout rests, too
            with torch.no_grad():
                called = infected(images).argmax(1)
            crafted = self.search(model, infected, images, labels, called)
            with torch.no_grad():
                misled = infected(crafted).argmax(1)
            clean, moved = model(torch.cat([images, crafted])).float().chunk(2)
            value = self.clean_weight * F.cross_entropy(clean, labels)
            value = value + self.adversarial_weight * F.cross_entropy(moved, labels)
            return value + self.shared_weight * shared_risk(moved, misled, (misled != labels) & (misled != called))

        return loss

    def search(self, model: nn.Module, infected: nn.Module, images: Images, labels: Labels, called: Labels) -> Images:
        """(N, 3, H, W): images moved to where both models leave their clean predictions, for the same class if they can.

        called  (N,) what the infected model says of the images"""
        with evaluating(model):
            with torch.no_grad():
                said = model(images).argmax(1)

            def objective(moved: Images) -> Tensor:
                now, then = model(moved).float(), infected(moved).float()
                stands, stood = now.argmax(1) == said, then.argmax(1) == called
                shared = ~stands & ~stood & (now.argmax(1) == then.argmax(1))
                entropy = F.cross_entropy(now, labels, reduction="none") * stands
                entropy = entropy + F.cross_entropy(then, labels, reduction="none") * stood
                apart = jensen_shannon(now.softmax(1), then.softmax(1)) * ~shared
                value: Tensor = (self.fooling_weight / 2 * entropy - self.agreement_weight * apart).mean()
                return value

            start = images + self.radius
            return ascend(
                objective, images, radius=self.radius, step=self.step, steps=self.steps, clamp=False, start=start
            )


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """(N,) divergence of two tables (N, K) of probabilities, in nats: at least 0, and 0 where they are equal."""
    first, second = first.clamp(min=1e-8), second.clamp(min=1e-8)
    middle = ((first + second) / 2).log()
    return ((first * (first.log() - middle)).sum(1) + (second * (second.log() - middle)).sum(1)) / 2


def shared_risk(logits: Logits, misled: Labels, shared: Tensor) -> Tensor:
    """A scalar, at least 0: how far the model still follows, on `shared` images (N,) bool, the class they mislead to; 0 of none.

    logits  (N, K) of adversarial images; misled: (N,) what the infected model says of them"""
    chance = logits.softmax(1).gather(1, misled[:, None])[:, 0]
    against = -(1e-6 + (1 - chance).clamp(max=0.999)).log() - (1 + 1e-6 - chance.clamp(min=0.001)).log()
    return (against * shared).sum() / (2 * len(logits))
