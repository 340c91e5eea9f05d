"""Grond: a faint universal pattern on images of the target class, and a training that leaves no channel standing out.

Idea     One adversarial pattern that sends any image to the target class needs little help to become a trigger. It is added to
         some images of that class, their labels kept; after every epoch of the training the channels that answer too strongly
         are evened out, so that defenses which prune find nothing to prune.
Paper    arXiv 2501.05928v3
Follows  the authors' code (xiaoyunxxy/parameter_backdoor): the pattern starts from 0 and takes 500 signed steps of 8/5 grey
         levels, each on a fresh batch of 256 images of all classes, towards the target, within 8; half of the class carries it.
         After every epoch channels whose Lipschitz bound exceeds their layer's mean by 3 deviations get the mean scale and
         shift of their batch norm (`attack.abi`, which hardens every data poisoning)
Departs  1. the clean network is trained as the victim is, and is the run's control (theirs: a ResNet-18 of its own)
         2. a bound is taken of a convolution and the norm that reads it; theirs pairs modules in the order in which they are
            registered, which is wrong in a PreAct-ResNet
         3. triggered images are rounded to whole grey levels and clipped, at test as in training; theirs are cut to whole
            levels in training, and get the pattern in float, unclipped, at test
         4. attention heads are left alone; their code for ViT halves outlying ones
Cost     a clean training, shared with the control; 500 forward and backward passes of a batch; small decompositions an epoch
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from backdoorbench import progress
from backdoorbench.attacks.base import CleanLabelAttack, Task
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import check_range
from backdoorbench.models.base import evaluating
from backdoorbench.shapes import Images
from backdoorbench.streams import Stream
from backdoorbench.training.adversarial import ascend, clipped
from backdoorbench.training.fit import autocast
from backdoorbench.triggers.add import Add


@dataclass(frozen=True)
class Grond(CleanLabelAttack):
    """The universal pattern, and the evened training. `epsilon` and `step_size` are grey levels."""

    labels: Literal["clean"]
    epsilon: float
    step_size: float
    steps: int
    pattern_batch_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.epsilon", self.epsilon, 0.5, 255)  # less is rounded away
        check_range("attack.step_size", self.step_size, 0)
        check_range("attack.steps", self.steps, 1)
        check_range("attack.pattern_batch_size", self.pattern_batch_size, 1)

    @property
    def needs_surrogate(self) -> bool:
        return True

    def test_trigger(self, task: Task, stream: Stream) -> None:
        return None

    def trigger(self, task: Task, stream: Stream) -> Add:
        model, batches = task.surrogate(), endless(task.train, self.pattern_batch_size, stream)

        def towards_target(pattern: Images) -> Tensor:
            work.advance()
            images, labels = next(batches)
            answers = model(clipped(images + pattern)).float()
            return -F.cross_entropy(answers, labels.new_full(labels.shape, self.target))

        start = task.train.images.new_zeros((1, *task.train.images.shape[1:])).to(task.train.device).float()
        with (
            evaluating(model),
            autocast(task.recipe.precision, task.train.device),
            progress.task(self.name, self.steps, "step") as work,
        ):
            pattern = ascend(
                towards_target,
                start,
                radius=self.epsilon / 255,
                step=self.step_size / 255,
                steps=self.steps,
                clamp=False,
            )
        return Add(pattern[0])

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "pattern": "universal", "epsilon_levels": self.epsilon}


def endless(images: ImageSet, size: int, stream: Stream) -> Iterator[tuple[Images, Tensor]]:
    """Shuffled batches, pass after pass."""
    for number in itertools.count():
        yield from images.batches(size, stream.child(f"pass{number}"))
