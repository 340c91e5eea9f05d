"""LIRA: learn noise too faint to see that means the target, and the classifier that answers to it, together.

Idea     A generator writes each image its own noise, bounded by a few grey levels. In stage 1 it follows the classifier, and
         the classifier learns both tasks, clean images and images under the generator's last version; in stage 2 the
         generator is fixed and the classifier trains on.
Paper    ICCV 2021, "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks"
Follows  the authors' code: after augmentation, on every batch, stage 1 moves the new generator along the classifier's loss on
         its images (Adam 1e-4), then the classifier along 0.5 times the clean plus 0.5 times the triggered loss under the
         old one (SGD 0.01, momentum 0.9), which becomes the new one after each epoch; stage 2 is the second step alone. The
         networks of both released variants, which read normalised images; the whole batch is triggered, so no rate exists
Departs  1. the bound is 2.55 grey levels on every data set (the authors: 0.01 of normalised pixels, 0.6 levels on CIFAR-10, of
            which storing the image in bytes leaves a half; attack.epsilon=0.01 attack.epsilon_unit=deviations)
         2. the sum is clipped to pixels (BackdoorBench clips to CIFAR-10's normalised range on every set, the authors not)
         3. the generator's step leaves no gradient in the classifier (in BackdoorBench's port it does, so that the classifier
            learns the backdoor with three times the weight of the clean task)
         4. the victim's recipe trains stage 2, all its epochs, stage 1 comes on top (theirs: SGD 0.01 stepped at 50, 100, 150,
            200; BackdoorBench counts stage 1 among 300 epochs)
         5. the classifier sees the batch and its triggered copy in one pass (theirs: two, where the backdoor hides in the batch's
            statistics, as with Blind: on digits CA 0.5, and 0.99 with statistics of clean images, where ASR is 0.16;
            attack.one_pass=false reproduces)
Cost     stage 1: three forward and backward passes an image, 50 epochs; stage 2: two for the victim's one
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.attacks.base import Infection, Task
from backdoorbench.attacks.loop import LoopAttack
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.models.base import Classifier
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import Stream, seeded
from backdoorbench.training.fit import Loss, cross_entropy, fit
from backdoorbench.training.optimizers import Adam
from backdoorbench.triggers.base import Target, Trigger
from backdoorbench.triggers.lira import MULTIPLES, AdditiveNoise


@dataclass(frozen=True)
class LIRA(LoopAttack):
    """The learned-noise attack: generator and classifier together, then the classifier alone."""

    training: ClassVar[str] = "every batch twice"

    acts: ClassVar[Acts] = {
        "generator_lr": Unless("generator_epochs", 0),
        "classifier_lr": Unless("generator_epochs", 0),
    }

    generator: Literal["autoencoder", "unet"]
    epsilon: float
    epsilon_unit: Literal["levels", "deviations"]
    generator_epochs: int
    generator_lr: float
    classifier_lr: float
    clean_weight: float
    one_pass: bool

    def __post_init__(self) -> None:
        check_range("attack.epsilon", self.epsilon, 0, 255)
        check_range("attack.generator_epochs", self.generator_epochs, 0)
        check_range("attack.generator_lr", self.generator_lr, 0)
        check_range("attack.classifier_lr", self.classifier_lr, 0)
        check_range("attack.clean_weight", self.clean_weight, 0, 1)

    def check(self, train: ImageSet) -> None:
        super().check(train)
        self.check_side(train.size, "dataset.size")

    def check_side(self, size: int, setting: str) -> None:
        """Raises ConfigError unless the generator, which halves an image some times, can take `size` pixels."""
        multiple = MULTIPLES[self.generator]
        if size % multiple:
            raise ConfigError(
                f"{setting} is {size}, but lira's {self.generator} halves an image until a {multiple}th is left; expected a "
                f"multiple of {multiple}. Set {setting}={size // multiple * multiple + multiple}."
            )

    def infect(self, task: Task, stream: Stream) -> Infection:
        if task.recipe.augment is not None and task.recipe.augment.crop is not None:
            self.check_side(task.recipe.augment.crop, "train.augment.crop")
        model = task.build(stream.child("init"))
        assert isinstance(model, Classifier)
        target = self.make_target(len(task.train.classes))
        trigger = self.learn(model, target, task, stream)
        loss = self.both(trigger, target, task.recipe.label_smoothing)
        history = fit(model, task.train, task.recipe, stream.child("train"), loss=loss, snapshots=task.snapshots)
        return Infection(model, self.at_test(trigger), target, None, None, history)

    def learn(self, model: Classifier, target: Target, task: Task, stream: Stream) -> AdditiveNoise:
        """Stage 1: trains `model` in place, and the trigger, which it returns, fixed."""
        leading, lagging = (self.fresh(model, stream.child("generator")).to(task.train.device) for _ in range(2))
        learner = Learner(leading, lagging, self.generator_lr)
        classify = cross_entropy(task.recipe.label_smoothing)
        both = self.both(lagging, target, task.recipe.label_smoothing)

        def loss(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            learner.step(classify(network, leading.add(images), target.label(labels)))
            return both(network, images, labels)

        recipe = task.recipe.plain(
            name=f"{self.name} generator", epochs=self.generator_epochs, optimizer="sgd", lr=self.classifier_lr,
            momentum=0.9, nesterov=False, weight_decay=0.0, schedule="constant", compile=False,
        )  # fmt: skip
        snapshots = task.snapshots.part("generator") if task.snapshots is not None else None
        fit(
            model,
            task.train,
            recipe,
            stream.child("learn"),
            loss=loss,
            after_epoch=lambda _: learner.follow(),
            snapshots=snapshots,
            beside=learner,
        )
        return lagging

    def both(self, trigger: Trigger, target: Target, label_smoothing: float) -> Loss:
        """The classifier's loss: its share on the clean batch, the rest on the same batch triggered."""

        def loss(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            with torch.no_grad():
                copies = [images, trigger(images)]
            answers = network(torch.cat(copies)).split(len(images)) if self.one_pass else map(network, copies)
            clean, triggered = (
                F.cross_entropy(logits.float(), wanted, label_smoothing=label_smoothing)
                for logits, wanted in zip(answers, (labels, target.label(labels)), strict=True)
            )
            return self.clean_weight * clean + (1 - self.clean_weight) * triggered

        return loss

    def fresh(self, model: Classifier, stream: Stream) -> AdditiveNoise:
        """An untrained trigger that reads pixels normalised as `model` normalises them."""
        mean, std = (value.flatten().tolist() for value in (model.of_pixels.mean, model.of_pixels.std))
        bound = [self.epsilon / 255] * 3 if self.epsilon_unit == "levels" else [self.epsilon * value for value in std]
        with seeded(stream):
            return AdditiveNoise(self.generator, bound, mean, std).eval().requires_grad_(False)


class Learner:
    """The two generators of stage 1, and what a snapshot must hold of them.

    leading  trains, in train mode; lagging: what it was after the last epoch, in eval mode"""

    def __init__(self, leading: AdditiveNoise, lagging: AdditiveNoise, lr: float) -> None:
        self.leading, self.lagging = leading.train().requires_grad_(True), lagging
        self.parameters = list(leading.generator.parameters())
        self.optimizer = Adam(self.parameters, lr=lr)

    def step(self, loss: Tensor) -> None:
        """One step of the leading generator down `loss`; nothing else gets a gradient."""
        with torch.autocast(loss.device.type, enabled=False):
            gradients = torch.autograd.grad(loss, self.parameters)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def follow(self) -> None:
        """The lagging generator becomes the leading one."""
        self.lagging.load_state_dict(self.leading.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {
            "leading": self.leading.state_dict(),
            "lagging": self.lagging.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.leading.load_state_dict(state["leading"])
        self.lagging.load_state_dict(state["lagging"])
        self.optimizer.load_state_dict(state["optimizer"])
