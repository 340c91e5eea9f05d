"""D-BR: backdoor removal. Tell poisoned from clean rows by how far a rotation moves their features, then unlearn and relearn.

Idea     Clean images keep their features when they are turned and shifted, poisoned ones lose the trigger and with it the target
         class. The most sensitive rows are unlearnt by gradient ascent, the least sensitive ones learnt again.
Paper    NeurIPS 2022, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples"
Follows  the authors' code (SCLBD/Effective_backdoor_defense). A network is trained for 2 epochs without augmentation, then for
         10 to spread its classes: mean over all pairs of classes of the cosine between their centres in a batch. Sensitivity
         of a row: mean squared change of its penultimate features under a rotation up to 180 degrees and a shift up to 20 %.
         The 5 % most sensitive rows are taken for poisoned, the 20 % least sensitive for clean. The infected model then takes
         20 rounds: a pass of ascent over the former, a pass of descent over the latter, SGD 1e-4
Departs  1. the last round counts; the authors' code keeps that of the best test CA - ASR
         2. sensitivity is drawn once and ranked; the code draws anew when it divides the rows, so its shares are approximate
         3. the rotation interpolates (theirs: nearest pixel)
         4. the first 12 epochs have a constant lr; theirs is a cosine over 100 epochs, which has fallen by 3 % then
         5. a batch passes the network that is spread once; theirs passes it twice in train mode, for a figure of its log
         6. the infected model is the victim's, whatever its recipe (theirs: ResNet-18, 200 epochs)
         7. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     12 passes over the training set and two forward ones; 20 over a quarter of it
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import ConfigError, check_range, part
from backdoorbench.models.surgery import activations, classifier_name
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import ascent, fit, make_optimizer
from backdoorbench.training.forward import penultimate_features
from backdoorbench.training.recipe import Tuning


@dataclass(frozen=True)
class DBR(Defense):
    """Backdoor removal. The record tells precision and recall of the rows taken for poisoned, and the poison among the clean."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "train"})

    warmup_epochs: int
    spread_epochs: int
    spread_lr: float
    rotation: float
    shift: float
    clean_share: float
    poisoned_share: float
    epochs: int
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        for name in ("warmup_epochs", "spread_epochs", "spread_lr", "epochs"):
            check_range(f"defense.{name}", getattr(self, name), 0)
        check_range("defense.rotation", self.rotation, 0, 180)
        for name in ("shift", "clean_share", "poisoned_share"):
            check_range(f"defense.{name}", getattr(self, name), 0, 1)
        if self.clean_share + self.poisoned_share > 1:
            raise ConfigError(
                f"defense.clean_share={self.clean_share:g} and defense.poisoned_share={self.poisoned_share:g} are more than the "
                f"whole training set together; expected at most 1. Lower one of them."
            )

    def purify(self, scenario: Scenario) -> nn.Module:
        model, train, stream = scenario.model, scenario.train, scenario.stream
        least = part("defense.clean_share", self.clean_share, len(train), "training images")
        most = part("defense.poisoned_share", self.poisoned_share, len(train), "training images")
        network = self.spread(scenario)
        with scenario.autocast():
            moved = sensitivity(network, train, self.rotation, self.shift, stream.child("transform"))
        order = moved.argsort(stable=True)
        clean = order[:least].sort().values
        poisoned = order[max(least, len(train) - most) :].sort().values  # halves of an odd number may meet
        scenario.inspect("clean", clean, moved)
        scenario.inspect("poisoned", poisoned, moved, taken_for="poisoned")
        recipe = self.tuning.recipe(self.name, 1, scenario.recipe.precision)
        optimizer = make_optimizer(list(model.parameters()), recipe, scenario.device)
        frozen = self.tuning.freeze_norms
        unlearnt, relearnt = train.subset(poisoned), train.subset(clean)
        for epoch in range(self.epochs):
            draws = stream.child(f"round{epoch}")
            if len(unlearnt):
                fit(
                    model,
                    unlearnt,
                    recipe,
                    draws.child("unlearn"),
                    loss=ascent(),
                    optimizer=optimizer,
                    freeze_norms=frozen,
                )
            if len(relearnt):
                fit(model, relearnt, recipe, draws.child("relearn"), optimizer=optimizer, freeze_norms=frozen)
            scenario.probe(model, epoch)
        return model

    def spread(self, scenario: Scenario) -> nn.Module:
        """A network of its own, shortly trained on the training set, its classes then driven apart; no augmentation."""
        stream = scenario.stream.child("spread")
        network = scenario.build(stream.child("init"))
        first = self.tuning.recipe(f"{self.name} warm-up", self.warmup_epochs, scenario.recipe.precision)
        first = replace(first, lr=self.spread_lr, augment=None)
        then = replace(first, name=f"{self.name} spreading", epochs=self.spread_epochs)
        optimizer = make_optimizer(list(network.parameters()), first, scenario.device)
        fit(network, scenario.train, first, stream.child("warm-up"), optimizer=optimizer)
        head, classes = classifier_name(network), len(scenario.train.classes)
        with activations(network, [head], "input") as seen:

            def apart(model: nn.Module, images: Images, labels: Labels) -> Tensor:
                model(images)
                return closeness(seen[head].float(), labels, classes)

            fit(network, scenario.train, then, stream.child("apart"), loss=apart, optimizer=optimizer)
        return network


def closeness(features: Tensor, labels: Labels, classes: int) -> Tensor:
    """The mean over all pairs of classes in a batch, a class with itself counted as 0, of the cosine between their centres.

    features  (N, D); labels: (N,) in [0, classes)"""
    members = F.one_hot(labels, classes).to(features.dtype)  # (N, K)
    counts = members.sum(0)
    centres = F.normalize(members.T @ features / counts.clamp(min=1)[:, None], dim=1)  # (K, D), 0 for absent classes
    cosines = centres @ centres.T
    return (cosines.sum() - cosines.diagonal().sum()) / (counts > 0).sum() ** 2


def sensitivity(model: nn.Module, images: ImageSet, rotation: float, shift: float, stream: Stream) -> Tensor:
    """(N,) float32 on the CPU: the mean squared change of each image's penultimate features when it is turned by up to `rotation`
    degrees and then shifted by up to the share `shift` of its side."""
    turn = Augment(crop_padding=0, flip=False, rotation=rotation, resized_crop=None, crop=None)
    move = replace(turn, rotation=0, crop_padding=int(shift * images.size))

    def transform(batch: Images, number: int) -> Images:
        draws = stream.child(f"batch{number}")
        for each in (turn, move):
            batch = each.apply(batch, each.draw(len(batch), images.size, draws).to(batch.device))
        return batch

    return (penultimate_features(model, images) - penultimate_features(model, images, transform)).square().mean(1)
