"""LF: add one pattern without high frequencies that was optimised to sway a clean network.

Idea     Usual triggers leave traces at high frequencies, by which a detector of spectra finds them. This one is universal
         adversarial noise, blurred at each step of its search; it is added to any image, and the labels become the target's.
Paper    arXiv 2104.03413v4
Follows  the authors' and BackdoorBench's search: targeted DeepFool from each of 100 training images, the step blurred and added
         to the pattern, which is blurred and stretched to [0, 51] of 255 again; it ends when a fifth of the held-out images
         change their class, when the last five such rates lie within 0.01, or after 50 passes
Departs  1. DeepFool takes the gradient of one difference of logits (the reference computes all classes', and uses two)
         2. the rate of changed classes is taken on training images that the search leaves out (the reference: on test images)
         3. images that the network already calls the target give no step (the first one would divide by zero)
         4. both parts of the search see the same pixels, normalised inside the network (BackdoorBench's DeepFool gets them raw)
         5. DeepFool's step is added as it is (the reference: 1.02 times it; of a linear network's pattern a tenth of the values
            differ then, by a grey level)
         6. rows are rounded to uint8 (BackdoorBench truncates; where it adds a pattern in [0, 0.2] to [0, 255], nothing is left)
Cost     a clean training, shared with the control; a few hundred forward and backward passes of one image a search pass.
         pattern=noise: none
"""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoorbench import progress
from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.config.acts import Acts, Either, Only, Unless
from backdoorbench.data.images import ImageSet, spans
from backdoorbench.errors import TrainingError, check_range
from backdoorbench.models.base import evaluating
from backdoorbench.shapes import Images, Rows
from backdoorbench.streams import Stream
from backdoorbench.triggers.add import Add, low_frequency_noise, smooth
from backdoorbench.triggers.base import Stored

log = logging.getLogger(__name__)

BATCH = 500  # images classified at a time
HELD_OUT = 10  # images a class that the rate of changed classes is taken over
OVERSHOOT = 1.02  # DeepFool looks this much further than its step
SETTLED = (5, 0.01)  # so many rates within so much: the search has come to rest


@dataclass(frozen=True)
class LF(DataAttack):
    """The low-frequency attack. `amplitude` is the pattern's largest value, of the whole range."""

    acts: ClassVar[Acts] = {
        "target": Either(
            Unless("mapping", "all_to_all"), Only("rate_of", "target_class"), Only("pattern", "optimised")
        ),
        "search_images": Only("pattern", "optimised"),
        "search_passes": Only("pattern", "optimised"),
        "deepfool_steps": Only("pattern", "optimised"),
        "changed_rate": Only("pattern", "optimised"),
    }

    pattern: Literal["optimised", "noise"]
    amplitude: float
    search_images: int
    search_passes: int
    deepfool_steps: int
    changed_rate: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.amplitude", self.amplitude, 1 / 255, 1)
        check_range("attack.search_images", self.search_images, 1)
        check_range("attack.search_passes", self.search_passes, 1)
        check_range("attack.deepfool_steps", self.deepfool_steps, 1)
        check_range("attack.changed_rate", self.changed_rate, 0, 1)

    @property
    def needs_surrogate(self) -> bool:
        return self.pattern == "optimised"

    def test_trigger(self, task: Task, stream: Stream) -> Stored | None:
        return super().test_trigger(task, stream) if self.pattern == "noise" else None

    def trigger(self, task: Task, stream: Stream) -> Add:
        if self.pattern == "noise":
            return Add(low_frequency_noise(task.train.size, self.amplitude, stream.generator()))
        model = task.surrogate()
        with evaluating(model):
            field = self.search(model, task.train, stream)
        return Add((field * 255).round() / 255)

    def search(self, model: nn.Module, train: ImageSet, stream: Stream) -> Tensor:
        """(3, H, W) in [0, amplitude] that sways `model`, which is in eval mode. TrainingError where no image gave a step."""
        searched, held = split(train, self.search_images, stream)
        images, _ = next(train.subset(searched).batches(len(searched)))
        watched, _ = next(train.subset(held).batches(len(held)))
        field = torch.zeros_like(images[0])
        clean, before = classify(model, images).tolist(), classify(model, watched)
        rates: list[float] = []
        with progress.task(self.name, self.search_passes, "pass", len(images)) as work:
            for number in range(self.search_passes):
                for row in stream.child(f"pass{number}").permutation(len(images)).tolist():
                    field = self.advance(model, field, images[row : row + 1], clean[row])
                    work.advance()
                rates.append(float((classify(model, watched + field) != before).float().mean()))
                last = rates[-SETTLED[0] :]
                if rates[-1] >= self.changed_rate or (len(last) == SETTLED[0] and max(last) - min(last) < SETTLED[1]):
                    break
        log.info(f"low-frequency pattern: {rates[-1]:.0%} of held-out images change their class, {len(rates)} passes")
        if not field.any():
            raise TrainingError(
                f"attack=lf found no pattern: from none of {len(images)} training images did DeepFool reach class "
                f"{self.target} within {self.deepfool_steps} steps. The clean network may be constant: train it for longer, or "
                f"set attack.pattern=noise."
            )
        return field

    def advance(self, model: nn.Module, field: Tensor, image: Images, clean: int) -> Tensor:
        """The pattern after one image (1, 3, H, W) that `model` calls `clean` without it: unchanged where it already sways
        the image, where that is called the target, or where DeepFool does not arrive."""
        start = image + field
        if int(classify(model, start)) != clean or clean == self.target:
            return field
        step = deepfool(model, start, clean, self.target, self.deepfool_steps)
        if step is None:
            return field
        moved = smooth(field + smooth(step[0]))
        return self.amplitude * (moved - moved.min()) / (moved.max() - moved.min())

    def facts(self) -> dict[str, Any]:
        return {"pattern": self.pattern, "amplitude": self.amplitude}


def split(train: ImageSet, searched: int, stream: Stream) -> tuple[Rows, Rows]:
    """Up to `searched` random rows, and HELD_OUT others of each class, or as many as there are."""
    order = stream.child("images").permutation(len(train))
    first, rest = order[:searched], order[searched:]
    labels = train.labels.cpu()[rest]
    held = [rest[labels == label][:HELD_OUT] for label in range(len(train.classes))]
    return first, torch.cat(held) if len(rest) else first


def classify(model: nn.Module, images: Images) -> Tensor:
    """(N,) int64: the class of the largest logit."""
    with torch.no_grad():
        return torch.cat([model(images[start:stop]).argmax(1) for start, stop in spans(len(images), BATCH)])


def deepfool(model: nn.Module, start: Images, source: int, target: int, steps: int) -> Tensor | None:
    """(1, 3, H, W): a sum of steps across the linearised border between classes `source` and `target`,
    e <- e + |f_t - f_s| / |w|^2 w, w the gradient of f_t - f_s at start + 1.02 e (arXiv 1511.04599); None where that point
    is not called `target` after `steps` of them."""
    total = torch.zeros_like(start)
    for _ in range(steps):
        with torch.enable_grad():
            point = (start + OVERSHOOT * total).requires_grad_()
            logits = model(point)[0].float()
            if not bool(logits.isfinite().all()):
                return None  # a flat place sent it beyond the numbers, where argmax means nothing
            if int(logits.argmax()) == target:
                return total
            gap = logits[target] - logits[source]
            (slope,) = torch.autograd.grad(gap, point)
        total = total + gap.detach().abs() / slope.square().sum().clamp_min(1e-20) * slope
    arrived = bool(total.isfinite().all()) and int(classify(model, start + OVERSHOOT * total)) == target
    return total if arrived else None
