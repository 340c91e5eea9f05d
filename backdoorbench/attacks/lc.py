"""LC: make images of the target class hard to tell by themselves, put a patch into their corners, and touch no label.

Idea     Adversarial noise from a clean network hides what makes these images look like their class, so that the victim has to
         learn the patch on top to name them; their labels stay right. At test time the patch alone is shown.
Paper    arXiv 1912.02771
Follows  BackdoorBench's noise: away from the true label in 100 steps of 1.5 grey levels within 8, no random start, the network
         in eval mode; the patch in all four corners, opaque. BackdoorBox's rate, a quarter of the class:
         `attack.rate_of=target_class attack.poison_rate=0.25`. Trap-and-Replace's `cl`: `attack.corners=grid3
         attack.epsilon=16 attack.cap=true`
Departs  1. the clean network is trained as the victim is, and is the run's control (BackdoorBench: an adversarially trained
            ResNet-18; `attack.surrogate=adversarial` trains the victim's network so). Its noise can be learned in place of the
            patch: airbench of half the width on CIFAR-10 (docs/after-cifar10.md)
         2. the noise is bounded per value (the authors' default: 300 grey levels in L2; backdoor-toolbox: 600)
         3. a rate beyond the target class is refused, or capped at the whole class (BackdoorBench crashes)
         4. rows are rounded to uint8 (BackdoorBench truncates)
Cost     a clean training, shared with the control; 100 forward and backward passes of each poisoned image.
         surrogate=adversarial: eight times a training instead, repeated where the infection is
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from backdoorbench import progress
from backdoorbench.attacks.base import CleanLabelAttack, PoisonedSet, Task, alter, show
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.data.images import spans
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.shapes import Images
from backdoorbench.streams import Stream
from backdoorbench.training.adversarial import PGD, partly_adversarial
from backdoorbench.training.fit import autocast, fit
from backdoorbench.triggers.add import Add
from backdoorbench.triggers.base import Stored
from backdoorbench.triggers.patch import CORNERS, LC_CORNERS, draw, overlay, solid

PATCHES: dict[str, dict[tuple[int, int], tuple[str, str, str]]] = {  # corner on the 32 grid -> cells
    "lc": LC_CORNERS,
    "grid3": dict.fromkeys(LC_CORNERS, ("001", "010", "101")),
    "toolbox": CORNERS,
}
TRAINING = PGD(8 / 255, 2 / 255, 7)  # of the adversarially trained surrogate


@dataclass(frozen=True)
class LC(CleanLabelAttack):
    """The label-consistent attack. `corners` names the cells; `epsilon` and `step_size` are grey levels."""

    acts: ClassVar[Acts] = {
        "surrogate": (Unless("epsilon", 0), Unless("steps", 0)),
        "step_size": (Unless("epsilon", 0), Unless("steps", 0)),
    }

    labels: Literal["clean"]
    corners: Literal["lc", "grid3", "toolbox"]
    amplitude: float
    surrogate: Literal["clean", "adversarial"]
    epsilon: int
    step_size: float
    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.amplitude", self.amplitude, 0, 1)
        check_range("attack.epsilon", self.epsilon, 0, 255)
        check_range("attack.step_size", self.step_size, 0)
        check_range("attack.steps", self.steps, 0)
        if self.amplitude == 0:
            raise ConfigError(
                "attack.amplitude is 0, so test images would not change; expected a number above 0, at most 1. Change "
                "attack.amplitude."
            )

    @property
    def needs_surrogate(self) -> bool:
        return self.surrogate == "clean"

    def trigger(self, task: Task, stream: Stream) -> Add:
        """White cells rise by the amplitude and black ones fall by it, clipped: 1 overwrites."""
        size = task.train.size
        patch = overlay(*(solid(draw(cells), corner, size) for corner, cells in PATCHES[self.corners].items()))
        return Add(self.amplitude * (2 * patch.pattern - 1) * patch.mask)

    def plant(self, task: Task, stream: Stream) -> tuple[Stored, PoisonedSet]:
        # the poisoned rows once more, from the clean images, with the noise below the patch
        trigger, made = super().plant(task, stream)
        rows = self.choose(task.train.labels, self.make_target(len(task.train.classes)), stream.child("rows"))
        labels = task.train.labels[rows.to(task.train.device)]
        model = self.make_surrogate(task, stream.child("surrogate"))
        noise = PGD(self.epsilon / 255, self.step_size / 255, self.steps)

        def harden(images: Images, part: slice) -> Images:
            """The images with the noise, then the patch."""
            clean, true = images.to(task.train.device), labels[part]
            with autocast(task.recipe.precision, clean.device):
                crafted = [noise(model, clean[i:j], true[i:j]) for i, j in spans(len(clean), task.recipe.batch_size)]
            work.advance(len(images))
            hardened: Images = trigger.trigger(torch.cat(crafted))
            return hardened.to(images.device)

        places = rows if self.mode == "replace" else made.poisoned.nonzero()[:, 0]
        with progress.task(self.name, len(rows), "image") as work:
            images = show(task.train, rows, harden)
        return trigger, replace(made, train=alter(made.train, places, images, labels, "replace"))

    def make_surrogate(self, task: Task, stream: Stream) -> nn.Module:
        """The network that the noise is made on, in eval mode."""
        if self.surrogate == "clean":
            return task.surrogate()
        model = task.build(stream.child("init"))
        fit(model, task.train, task.recipe, stream.child("train"), loss=partly_adversarial(TRAINING, lambda step: True))
        return model

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "pattern": f"{self.corners} corners", "epsilon_levels": self.epsilon}
