"""Retuning: a few poisoned images among those that the purified model is tuned on next.

Idea     A purified model that stays near the infected one relearns the backdoor from a handful of poisoned images.
Paper    arXiv 2410.09838 (NeurIPS 2024), its retuning attack (RA)
Follows  the authors' code: 2 % of the clean training images; the first 5 are replaced by as many triggered training images with
         the target's label; SGD 0.01, momentum 0.9, no weight decay, constant, batch 128, 5 epochs, all parameters, batch norm
         in train mode
Departs  1. images are augmented anew in each epoch; the code draws an augmentation once an image and freezes it, and leaves
            triggered images as the test has them (after.frozen_aug=true reproduces that)
         2. images are drawn from what the victim trained on, which the holdout is no part of unless holdout.kind=seen; the code
            draws from the whole training set with another seed than the defender
         3. poisoned images are drawn anew, of classes that the trigger is meant for; theirs are among those that infected the
            model, the target's own class not left out
         4. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `epochs` passes over 2 % of the training images
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import nn

from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, DataError, check_range
from backdoorbench.models.base import CentreCrop
from backdoorbench.shapes import to_bytes
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Tuning
from backdoorbench.triggers.base import Target


@dataclass(frozen=True)
class AttackersTuning(Tuning):
    """How an after-attack tunes. Whoever has it says where its settings stand, and checks it."""

    def __post_init__(self) -> None: ...


@dataclass(frozen=True)
class Retuning:
    """How a model is retuned: on how many images, of which how many poisoned. An after-attack has these settings beside its own,
    or under a name of their own, and says so to `check`."""

    rate: float
    samples: int
    epochs: int
    tuning: Annotated[AttackersTuning, BESIDE]
    frozen_aug: bool

    def check(self, where: str) -> None:
        """Raises ConfigError for a setting out of its range. where: the place of the settings, `after`."""
        self.tuning.check(where)
        check_range(f"{where}.rate", self.rate, 0, 1)
        check_range(f"{where}.samples", self.samples, 0)
        check_range(f"{where}.epochs", self.epochs, 0)
        if self.frozen_aug and self.tuning.augment is None:
            raise ConfigError(
                "frozen_aug is true with augment=null, so there is no augmentation to freeze; expected one, or frozen_aug=false. "
                "Leave frozen_aug out, or set an augment."
            )

    def check_images(self, train: ImageSet, target: Target, where: str) -> None:
        """Raises DataError where the set would be empty, or could not hold so many poisoned images. where: as `check` has it."""
        count, most = round(self.rate * len(train)), int(target.is_eligible(train.labels).sum())
        if count < 2 or self.samples > min(count, most):
            raise DataError(
                f"{where}.samples={self.samples} images are to be poisoned of {where}.rate={self.rate:g} of {len(train):,} "
                f"training images, which is {count:,}, and {most:,} are of a class that the trigger is meant for; expected at "
                f"least 2 images, and no more poisoned ones than either. Raise {where}.rate, or lower {where}.samples."
            )

    def retuned(self, model: nn.Module, scenario: Scenario) -> nn.Module:
        """The model, retuned in place; eval mode."""
        stream = scenario.stream
        clean, poisoned = self.draw(scenario, stream)
        augment = self.tuning.augment
        if self.frozen_aug and augment is not None:
            clean, augment = frozen(clean, augment, stream.child("freeze")), None
            poisoned = cropped(poisoned, clean.size)
        images = joined(poisoned, clean)
        recipe = replace(self.tuning, augment=augment).recipe("retune", self.epochs, scenario.recipe.precision)
        fit(model, images, recipe, stream.child("tune"), freeze_norms=self.tuning.freeze_norms)
        return model

    def draw(self, scenario: Scenario, stream: Stream) -> tuple[ImageSet, ImageSet]:
        """The clean images and the poisoned ones, together `rate` of the training set."""
        train = scenario.train
        rows = stream.child("clean").permutation(len(train))[: round(self.rate * len(train))]
        chosen = scenario.eligible(self.samples, stream.child("poisoned"))
        poisoned = scenario.triggered(chosen, scenario.target.label(chosen.labels))
        return train.subset(rows[self.samples :]), poisoned


@dataclass(frozen=True)
class Retune(AfterAttack):
    """The retuned model, under the trigger as it was."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "trigger", "train"})
    figure: ClassVar[str] = "retuned"

    retuning: Annotated[Retuning, BESIDE]

    def __post_init__(self) -> None:
        self.retuning.check("after")

    def check_images(self, train: ImageSet, target: Target) -> None:
        self.retuning.check_images(train, target, "after")

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        yield Trial("retuned", self.retuning.retuned(scenario.model, scenario), scenario.trigger, is_moved=True)


def frozen(images: ImageSet, augment: Augment, stream: Stream) -> ImageSet:
    """The images, each augmented once, in the order of their draw."""
    augmented = list(images.batches(len(images), stream, augment))
    labels = torch.cat([labels for _, labels in augmented])
    shown = torch.cat([to_bytes(batch) for batch, _ in augmented])
    return ImageSet(shown.to(images.images.device), labels, images.classes, images.dataset)


def cropped(images: ImageSet, size: int) -> ImageSet:
    """Their central part, of that side, as the network sees it."""
    return replace(images, images=CentreCrop(size)(images.images))


def joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """All images of two sets, in one."""
    images = torch.cat([first.images, second.images])
    return replace(second, images=images, labels=torch.cat([first.labels, second.labels]))
