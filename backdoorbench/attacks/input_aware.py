"""Input-aware: a network writes every image its own small trigger, and no other image's trigger works on it.

Idea     A mask network learns where a small patch goes and a generator what is in it, for each image differently. The
         classifier learns that an image with its own patch is the target's, and that with another image's patch (cross
         mode) it is what it was.
Paper    arXiv 2010.08138v1
Follows  the authors' code. Stage 1: the mask network alone, density 0.032, masks of two images apart in proportion to the
         images; then frozen. Stage 2: classifier and generator jointly, on the augmented batch: the first rows triggered,
         as many after them in cross mode; cross-entropy of all, and patterns apart as the masks were. Adam 0.01,
         betas 0.5 and 0.9, for both networks, which read normalised images. Stage 3, the test: generator and mask in eval mode,
         the image's own patch, not rounded
Departs  1. the victim's recipe trains the classifier, all its epochs, the mask's come on top (theirs: SGD 0.01 stepped at
            100 to 400 of 600 epochs; BackdoorBench: 100 epochs, 25 of them the mask's)
         2. the generator's gradients are cleared after each step; in their code, and two ports of it, they add up over the
            whole run (attack.accumulate_generator_grad=true reproduces)
         3. an image's partner is the next one in the shuffled batch (theirs: of a second shuffled pass), so a batch's masks
            are computed once and not twice
         4. the count of triggered rows is right on average (theirs is rounded down; attack.batch_count=floor reproduces)
         5. distances below 1e-7 count as 1e-7 and have no gradient (theirs: not a number for two equal images)
Cost     the mask stage, 25 epochs of a network of 0.08 GMAC an image at 32 px (PreAct-ResNet-18: 0.56); then the generator
         on 2 of 10 images a batch, at the default rate
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backdoorbench.attacks.base import Infection, Task, check_poison_rate
from backdoorbench.attacks.loop import ShareAttack, Tally
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.data.images import ImageSet, spans
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.models.base import Classifier, evaluating
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import Stream, seeded
from backdoorbench.training.fit import cross_entropy, fit, set_rate
from backdoorbench.training.optimizers import Adam
from backdoorbench.training.recipe import Recipe
from backdoorbench.triggers.base import Cover
from backdoorbench.triggers.input_aware import MULTIPLE, InputAware, paste

BETAS = (0.5, 0.9)  # Adam's, of both networks
SHOWN = 100  # training images, at most, on which the mask's density is measured


@dataclass(frozen=True)
class InputAwareAttack(ShareAttack):
    """The input-aware attack: mask, then generator and classifier."""

    acts: ClassVar[Acts] = {
        "mask_lr": Unless("mask_epochs", 0),
        "mask_milestones": Unless("mask_epochs", 0),
        "mask_density": Unless("mask_epochs", 0),
        "density_weight": Unless("mask_epochs", 0),
    }

    mask_epochs: int
    mask_lr: float
    mask_milestones: tuple[int, ...]
    mask_density: float
    density_weight: float
    diversity_weight: float
    generator_lr: float
    generator_milestones: tuple[int, ...]
    accumulate_generator_grad: bool

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate, most=0.5)  # as many rows again are in cross mode
        check_range("attack.mask_epochs", self.mask_epochs, 0)
        check_range("attack.mask_lr", self.mask_lr, 0)
        check_range("attack.mask_density", self.mask_density, 0, 1)
        check_range("attack.density_weight", self.density_weight, 0)
        check_range("attack.diversity_weight", self.diversity_weight, 0)
        check_range("attack.generator_lr", self.generator_lr, 0)

    def check(self, train: ImageSet) -> None:
        check_side(train.size, "dataset.size")
        super().check(train)

    def infect(self, task: Task, stream: Stream) -> Infection:
        if task.recipe.augment is not None and task.recipe.augment.crop is not None:
            check_side(task.recipe.augment.crop, "train.augment.crop")
        model = task.build(stream.child("init"))
        assert isinstance(model, Classifier)
        trigger = fresh(model, stream.child("networks")).to(task.train.device)
        density = self.learn_mask(trigger, task, stream.child("mask"))
        target = self.make_target(len(task.train.classes))
        learner = Learner(
            trigger,
            self.adam("generator", task.recipe.epochs, self.generator_lr, self.generator_milestones, task),
            len(spans(len(task.train), task.recipe.batch_size)),
            self.accumulate_generator_grad,
        )
        classify = cross_entropy(task.recipe.label_smoothing)
        rows = learner.rows

        def loss(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            count = min(self.count(len(images), stream.child(f"count{learner.steps}")), len(images) // 2)
            rows.update(all=len(images), poisoned=count, cover=count)
            if count == 0:
                return classify(network, images, labels)
            altered, spread = mix(trigger, images, count)
            wanted = torch.cat([target.label(labels[:count]), labels[count:]])
            return classify(network, altered, wanted) + self.diversity_weight * spread

        history = fit(
            model,
            task.train,
            task.recipe,
            stream.child("train"),
            loss=loss,
            after_step=learner.step,
            snapshots=task.snapshots,
            beside=learner,
        )
        trigger.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
        facts = {**self.facts(rows), "mask_density": density}
        return Infection(
            model,
            self.at_test(trigger),
            target,
            None,
            None,
            history,
            facts,
            self.cover(trigger),
        )

    @property
    def covers(self) -> float:
        return 1.0

    def cover(self, trigger: InputAware) -> Cover:
        return lambda images, others, _: trigger.cross(images, others)

    def learn_mask(self, trigger: InputAware, task: Task, stream: Stream) -> float:
        """Stage 1: trains the mask network of `trigger` in place and freezes it; the mean of its masks."""

        def loss(_: nn.Module, images: Images, labels: Labels) -> Tensor:
            masks = trigger.mask(images)
            dense = (masks - self.mask_density).relu().mean()
            seen = trigger.normalize(images)
            spread = diversity(seen, seen.roll(-1, 0), masks, masks.roll(-1, 0))
            return self.density_weight * dense + self.diversity_weight * spread

        recipe = self.adam("mask", self.mask_epochs, self.mask_lr, self.mask_milestones, task)
        snapshots = task.snapshots.part("mask") if task.snapshots is not None else None
        optimizer = make_adam(trigger.masker, recipe)
        fit(trigger.masker, task.train, recipe, stream, loss=loss, optimizer=optimizer, snapshots=snapshots)
        trigger.masker.requires_grad_(False)
        images, _ = next(task.train.batches(SHOWN, stream.child("shown")))
        with evaluating(trigger), torch.no_grad():
            return float(trigger.mask(images).mean())

    def adam(self, part: str, epochs: int, lr: float, milestones: tuple[int, ...], task: Task) -> Recipe:
        """How one of the trigger's networks trains: Adam, a tenth of the rate at each milestone, else as the victim."""
        return task.recipe.plain(
            name=f"{self.name} {part}", epochs=epochs, optimizer="adam", lr=lr, weight_decay=0.0,
            schedule="milestones", milestones=milestones, decay=0.1, compile=False,
        )  # fmt: skip


def mix(trigger: InputAware, images: Images, count: int) -> tuple[Images, Tensor]:
    """The attacked batch of a clean one: `count` rows triggered, as many in cross mode with their next neighbours' triggers,
    the rest as it was; and the `diversity` of the two groups' patterns."""
    own, crossed, rest = images[:count], images[count : 2 * count], images[2 * count :]
    others = images.roll(-1, 0)[count : 2 * count]
    with torch.no_grad():
        masks = trigger.mask(own), trigger.mask(others)
    patterns = trigger.pattern(own), trigger.pattern(others)  # two calls: batch norm sees each group for itself
    altered = torch.cat([paste(own, patterns[0], masks[0]), paste(crossed, patterns[1], masks[1]), rest])
    return altered, diversity(*map(trigger.normalize, (own, others, *patterns)))


class Learner:
    """The generator's steps beside the classifier's, and what a snapshot must hold of them.

    recipe  its rates; steps: done so far; rows: that passed"""

    def __init__(self, trigger: InputAware, recipe: Recipe, steps_per_epoch: int, accumulate: bool) -> None:
        self.trigger, self.recipe, self.steps_per_epoch, self.accumulate = trigger, recipe, steps_per_epoch, accumulate
        self.optimizer = make_adam(trigger.generator, recipe)
        self.steps = 0
        self.rows = Tally()

    def step(self) -> None:
        """One step along the gradients that the classifier's loss has left in the generator."""
        set_rate(self.optimizer, self.recipe.rate(self.steps, self.steps_per_epoch))
        self.optimizer.step()
        if not self.accumulate:
            self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        gradients = [parameter.grad for parameter in self.trigger.generator.parameters()]
        return {
            "trigger": self.trigger.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gradients": gradients,
            "steps": self.steps,
            "rows": self.rows.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trigger.load_state_dict(state["trigger"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, gradient in zip(self.trigger.generator.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        self.steps = state["steps"]
        self.rows.load_state_dict(state["rows"])


def diversity(images: Images, others: Images, outputs: Tensor, other_outputs: Tensor) -> Tensor:
    """The mean over pairs of |x - x'| / |y - y'|, root mean squares: small where outputs differ as much as images do."""
    return (distance(images, others) / (distance(outputs, other_outputs) + 1e-7)).mean()


def distance(first: Tensor, second: Tensor) -> Tensor:
    """(N,): root mean square of the difference of each pair, at least 1e-7."""
    return (first - second).square().mean((1, 2, 3)).clamp_min(1e-14).sqrt()


def fresh(model: Classifier, stream: Stream) -> InputAware:
    """Untrained networks that read pixels normalised as `model` normalises them."""
    with seeded(stream):
        return InputAware(*(value.flatten().tolist() for value in (model.of_pixels.mean, model.of_pixels.std)))


def make_adam(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam with the paper's betas over a network."""
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    return Adam(network.parameters(), lr=recipe.lr, betas=BETAS, fused=fused)


def check_side(size: int, setting: str) -> None:
    """Raises ConfigError unless the networks, which halve an image three times, can take `size` pixels."""
    if size % MULTIPLE:
        raise ConfigError(
            f"{setting} is {size}, but input_aware's networks halve an image three times; expected a multiple of {MULTIPLE}. "
            f"Set {setting}={size // MULTIPLE * MULTIPLE + MULTIPLE}."
        )
