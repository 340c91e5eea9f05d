"""NPD: neural polarizer. Put one small layer into the frozen network, and train it alone to let no trigger's features through.

Idea     A filter before a late convolution can block what the trigger adds and pass what clean images need. It learns against
         targeted adversarial examples of the network with the filter, each towards the class that the image is next likely to be.
Paper    arXiv 2306.16697 (NeurIPS 2023)
Follows  the authors' code in BackdoorBench's setting: a 1x1 convolution, the identity at first, and a batch norm; 5 passes of
         plain SGD 1e-4 fill its statistics, then 50 with these fixed; two signed steps of 0.1 within an L2 ball, one where it
         brings more than 60 % of the batch there; cross-entropies of clean images and, with the model's own clean answer, of
         adversarial ones, and -log(1.0001 - p) of the class attacked and of the likeliest wrong one; constant rate, no
         augmentation. Where the statistics move (defense.bn_mode=train, theirs on Tiny-ImageNet), only clean images move them,
         and the network is attacked with those that are stored
Departs  1. the layer stands before the first convolution of the last block, in a plain network before the last convolution; their
            layer4.1.conv1, for PreAct-ResNet-18 alone, is the same place
         2. what is returned is the network with the layer inside; BackdoorBench saves the infected model and the layer apart
         3. the holdout has the class shares of its data set; theirs is class-balanced (holdout.draw=balanced)
         4. the ball around an image is L2; their L-infinity variant is left out
         5. the true class is never what an image is aimed at; theirs is given the logit -10, which others may be below
         6. the search follows cross-entropies of whatever size; theirs end at 80
         7. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `epochs` passes over the holdout, each image `steps` + 2 times forward and backward
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Unless
from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.base import frozen
from backdoorbench.models.surgery import insert_before, late_convolution
from backdoorbench.shapes import Images, Labels, Logits
from backdoorbench.training.adversarial import clipped, within_l2
from backdoorbench.training.fit import Loss, fit
from backdoorbench.training.recipe import Tuning


@dataclass(frozen=True)
class NPD(Defense):
    """Neural polarizer, trained on the holdout. Where it stands is noted in the record."""

    acts: ClassVar[Acts] = dict.fromkeys(("radius", "step", "gradient"), Unless("steps", 0)) | {
        "enough": Unless("steps", 0, 1),
        "warmup_lr": Unless("warmup_epochs", 0),
    }

    radius: float
    step: float
    steps: int
    gradient: Literal["sign", "plain"]
    enough: float
    clean_weight: float
    answer_weight: float
    wrong_weight: float
    target_weight: float
    warmup_epochs: int
    warmup_lr: float
    epochs: int
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        for name in ("radius", "step", "steps", "warmup_epochs", "warmup_lr", "epochs"):
            check_range(f"defense.{name}", getattr(self, name), 0)
        for part in ("clean", "answer", "wrong", "target"):
            check_range(f"defense.{part}_weight", getattr(self, f"{part}_weight"), 0)
        check_range("defense.enough", self.enough, 0, 1)

    def purify(self, scenario: Scenario) -> nn.Module:
        model, stream = scenario.model, scenario.stream
        name, _ = late_convolution(model)
        scenario.note("before", name)
        recipe = self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision)
        warm_up = dataclasses.replace(
            recipe,
            name=f"{self.name} warm-up",
            epochs=self.warmup_epochs,
            lr=self.warmup_lr,
            momentum=0.0,
            weight_decay=0.0,
        )
        with frozen(model):
            self.reshape(model)
            layer = model.get_submodule(f"{name}.0")
            fit(model, scenario.holdout, warm_up, stream.child("warm"), loss=self.warming(layer))
            fit(
                model,
                scenario.holdout,
                recipe,
                stream.child("tune"),
                loss=self.polarizing(layer),
                after_epoch=lambda epoch: scenario.probe(model, epoch),
            )
        return model

    def reshape(self, model: nn.Module) -> None:
        name, conv = late_convolution(model)
        insert_before(model, name, polarizer(conv.in_channels).to(conv.weight.device))

    def warming(self, layer: nn.Module) -> Loss:
        """Cross-entropy of clean images, with the layer alone in train mode."""

        def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
            model.eval()
            layer.train()
            return F.cross_entropy(model(images).float(), labels)

        return loss

    def polarizing(self, layer: nn.Module) -> Loss:
        """The four terms, on clean images and on adversarial ones made anew."""

        def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
            model.eval()
            clean = model(images).float()
            target, answer = others(clean, labels).argmax(1), clean.argmax(1)
            crafted = self.search(model, images, target)
            if not self.tuning.freeze_norms:  # what is attacked is the network as it will be deployed
                layer.train()
                clean = model(images).float()
            with statistics_kept(layer):
                moved = model(crafted).float()
            value = self.clean_weight * F.cross_entropy(clean, labels)
            value = value + self.answer_weight * F.cross_entropy(moved, answer)
            value = value + self.wrong_weight * repelled(moved, others(moved, labels).argmax(1))
            return value + self.target_weight * repelled(moved, target)

        return loss

    def search(self, model: nn.Module, images: Images, target: Labels) -> Images:
        """(N, 3, H, W) in [0, 1]: images moved towards the classes `target` (N,), each within the ball around it."""
        deltas = torch.zeros_like(images)
        for step in range(self.steps):
            deltas.requires_grad_()
            logits = model(clipped(images + deltas)).float()
            (slopes,) = torch.autograd.grad(F.cross_entropy(logits, target), deltas)
            reached = (logits.argmax(1) == target).float().mean()
            deltas = deltas.detach()
            moved = within_l2(deltas - self.step * (slopes.sign() if self.gradient == "sign" else slopes), self.radius)
            deltas = torch.where(reached > self.enough, deltas, moved) if step else moved  # the first is always taken
        return (images + deltas).clamp(0, 1)


def polarizer(channels: int) -> nn.Sequential:
    """(N, C, h, w) -> (N, C, h, w): a 1x1 convolution and a batch norm, in eval mode the identity but for the norm's eps."""
    conv = nn.Conv2d(channels, channels, 1, bias=False, device="meta").to_empty(
        device="cpu"
    )  # no random number is drawn
    nn.init.dirac_(conv.weight)
    return nn.Sequential(conv, nn.BatchNorm2d(channels)).eval()


def others(logits: Logits, labels: Labels) -> Logits:
    """(N, K): the logits without gradient, each true class out of the running."""
    return logits.detach().scatter(1, labels[:, None], -torch.inf)


def repelled(logits: Logits, classes: Labels) -> Tensor:
    """A scalar: mean -log(1.0001 - p) of the probabilities of `classes` (N,)."""
    return -(1.0001 - logits.softmax(1).gather(1, classes[:, None])).log().mean()


@contextmanager
def statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Batch norms in train mode normalise by their batch, but remember nothing of it."""
    norms = [(module, module.momentum) for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
