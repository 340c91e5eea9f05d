"""ABL: anti-backdoor learning. Isolate the rows that are learnt first, train on the others, then unlearn the isolated ones.

Idea     A backdoor is learnt faster than the task. Hold the loss of every batch at a level, and what falls below it all the same
         is mostly poisoned: few such rows suffice to unlearn the backdoor by gradient ascent.
Paper    arXiv 2110.11571v3
Follows  the authors' code (bboylyg/ABL): local gradient ascent sign(l - gamma) l on the loss l of a batch, without augmentation;
         then the `isolation_rate` of all rows with the lowest loss, in eval mode; training on the others with crop, flip and
         cutout; ascent on the isolated ones, not augmented. SGD with Nesterov momentum throughout, one optimiser for the last
         two. Their flooding |l - b| + b has the same gradient with b = gamma
Departs  1. the isolated rows are those of the lowest loss, as the paper has it and the code since `fe9ff40`; its first release
            (`3522945`) takes the highest, and saves them as the others too
         2. `unlearning_epochs` passes of ascent; the code's first one only evaluates, so that its 5 are 4
         3. 20 tuning epochs (paper, BackdoorBench); the code's default is 10, the paper's two phases are 20 of 100
         4. tuning shuffles; the code reads the set in file order
         5. learning rates are settings; BackdoorBench fixes 0.01 for finetuning and 1e-4 for unlearning in its code
         6. the hole of cutout has a side of 2; the code says 3, which its rounding makes 2
         7. what is unlearnt is not augmented, as in the authors' code; BackdoorBench augments it as it does in finetuning
         8. images are normalised as the data set says; the authors' are [0, 1] as they are (dataset.mean=[0,0,0]
            dataset.std=[1,1,1])
         9. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `tuning_epochs` + `finetuning_epochs` passes over the training set; a forward pass; a few over the isolated rows
"""

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Unless
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range, part
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment, cut_out
from backdoorbench.training.fit import Loss, ascent, cross_entropy, fit, make_optimizer
from backdoorbench.training.forward import losses
from backdoorbench.training.recipe import Recipe, bare_recipe


@dataclass(frozen=True)
class ABL(Defense):
    """Anti-backdoor learning, from scratch. The record tells precision and recall of the isolated rows."""

    needs: ClassVar[frozenset[str]] = frozenset({"train"})
    starts_from: ClassVar[Literal["infected", "scratch"]] = "scratch"
    acts: ClassVar[Acts] = {
        "finetuning_decay": Unless("finetuning_milestones", []),
        "unlearning_epochs": Unless("isolation_rate", 0),
        "unlearning_lr": (Unless("unlearning_epochs", 0), Unless("isolation_rate", 0)),
    }

    level: float
    trapped: Literal["batch", "image"]
    isolation_rate: float
    tuning_epochs: int
    tuning_lr: float
    finetuning_epochs: int
    finetuning_lr: float
    finetuning_milestones: tuple[int, ...]
    finetuning_decay: float
    unlearning_epochs: int
    unlearning_lr: float
    batch_size: int
    momentum: float
    weight_decay: float
    cutout: int
    augment: Augment | None

    def __post_init__(self) -> None:
        check_range("defense.isolation_rate", self.isolation_rate, 0, 0.5)
        check_range("defense.momentum", self.momentum, 0, 1)
        check_range("defense.batch_size", self.batch_size, 2)
        for name in ("level", "finetuning_decay", "weight_decay", "cutout"):
            check_range(f"defense.{name}", getattr(self, name), 0)
        for phase in ("tuning", "finetuning", "unlearning"):
            check_range(f"defense.{phase}_epochs", getattr(self, f"{phase}_epochs"), 0)
            check_range(f"defense.{phase}_lr", getattr(self, f"{phase}_lr"), 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        train, stream, passed = scenario.train, scenario.stream, itertools.count()
        count = part("defense.isolation_rate", self.isolation_rate, len(train), "training images")
        model = scenario.build(stream.child("init"))

        def watch(_: int) -> None:
            scenario.probe(model, next(passed))

        tuning, finetuning, unlearning = self.recipes(scenario)
        trap = trapped(self.level, self.trapped)
        fit(model, train, tuning, stream.child("tuning"), loss=trap, after_epoch=watch)
        with scenario.autocast():
            values = losses(model, train)
        order = values.argsort(stable=True)
        isolated, others = order[:count].sort().values, order[count:].sort().values
        scenario.inspect("isolated", isolated, -values, taken_for="poisoned")
        optimizer = make_optimizer(list(model.parameters()), finetuning, scenario.device)
        own = stream.child("finetuning")
        holed = cut(self.cutout, own.child("cutout")) if self.cutout else None
        fit(model, train.subset(others), finetuning, own, loss=holed, optimizer=optimizer, after_epoch=watch)
        if count:
            rows, own = train.subset(isolated), stream.child("unlearning")
            fit(model, rows, unlearning, own, loss=ascent(), optimizer=optimizer, after_epoch=watch)
        return model

    def recipes(self, scenario: Scenario) -> tuple[Recipe, Recipe, Recipe]:
        """Of tuning, finetuning and unlearning."""
        tuning = bare_recipe(
            f"{self.name} tuning", epochs=self.tuning_epochs, batch_size=self.batch_size, optimizer="sgd", lr=self.tuning_lr,
            momentum=self.momentum, weight_decay=self.weight_decay, schedule="constant", augment=None,
            precision=scenario.recipe.precision,
        )  # fmt: skip
        tuning = replace(tuning, nesterov=self.momentum > 0)
        finetuning = replace(
            tuning, name=f"{self.name} finetuning", epochs=self.finetuning_epochs, lr=self.finetuning_lr, augment=self.augment,
            schedule="milestones", milestones=self.finetuning_milestones, decay=self.finetuning_decay,
        )  # fmt: skip
        unlearning = replace(
            tuning, name=f"{self.name} unlearning", epochs=self.unlearning_epochs, lr=self.unlearning_lr
        )
        return tuning, finetuning, unlearning


def trapped(level: float, each: Literal["batch", "image"]) -> Loss:
    """Cross-entropy that is held at a level: above it falls, below it rises. The level of a batch's mean, or of each image."""

    def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
        values = F.cross_entropy(model(images).float(), labels, reduction="none")
        values = values.mean() if each == "batch" else values
        return (torch.sign(values.detach() - level) * values).mean()

    return loss


def cut(side: int, stream: Stream) -> Loss:
    """Cross-entropy on images with a hole each, drawn anew for each batch."""
    batches, entropy = itertools.count(), cross_entropy(0.0)

    def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
        draws = stream.child(f"batch{next(batches)}").generator()
        centres = torch.randint(images.shape[-1], (len(images), 2), generator=draws)
        return entropy(model, cut_out(images, centres.to(images.device, non_blocking=True), side), labels)

    return loss
