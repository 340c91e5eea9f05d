"""Square: one tiny change of all triggered images, found by asking alone. It sees what the model answers, and no gradient.

Idea     Who can only ask a purified model wakes its backdoor, too: he lays random squares over triggered images and keeps each
         that makes the target likelier.
Paper    arXiv 2405.16134 (NeurIPS 2024), its query-based re-activation attack; the search is Square Attack, arXiv 1912.00049v3
Follows  the authors' code (JulieCarlon/Backdoor-Reactivation-Attack, `ffa71eb`): one change of all images that begins as stripes
         a column wide, each at plus or minus the bound; then one square a step, each of its channels at plus or minus the bound,
         kept where it lowers the summed cross-entropy with the target's label. A square has `share` of the image, halved after
         10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 steps, and likewise of fewer; 99 % of success end it
Departs  1. bound and budget are ours: 8/255 as perturb has it, and 1,000 queries of 100 training images that are triggered anew.
            Theirs are after.epsilon=0.05 after.images=500 after.queries=10000, on poisoned training images
         2. a distance for each value alone; theirs knows a Euclidean length, too, for which its code has other windows
         3. squares reach the last row and column, as in the paper; its code leaves them out
         4. it begins at the stripes; theirs at what they do to its first image once that was clipped, in normalised values
         5. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `queries` passes over `images` images, forward alone, of the model and of each control
"""

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from backdoorbench import progress
from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import check_range
from backdoorbench.models.layouts import layout_of
from backdoorbench.training.forward import BATCH

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # steps of SCALE after which a square has half the share
SCALE = 10_000
ENOUGH = 0.99  # of the images are called the target


@dataclass(frozen=True)
class Square(AfterAttack):
    """A universal change on top of the trigger, by queries; and on images without it, which it should leave alone."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "trigger", "train"})
    figure: ClassVar[str] = "square"

    epsilon: float
    share: float
    images: int
    queries: int

    def __post_init__(self) -> None:
        check_range("after.epsilon", self.epsilon, 0, 1)
        check_range("after.share", self.share, 0, 1)
        check_range("after.images", self.images, 1)
        check_range("after.queries", self.queries, 1)

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        model, trigger, stream = scenario.model, scenario.trigger, scenario.stream
        chosen = scenario.eligible(self.images, stream.child("images"))
        triggered = scenario.triggered(chosen, scenario.target.label(chosen.labels))
        with scenario.autocast():
            change, asked = self.search(model, triggered, stream.child("square").generator())
        scenario.note("queries", asked)
        yield Trial(
            "square",
            model,
            lambda images: (trigger(images) + change.to(images.device)).clamp(0, 1),
            lambda images: (images + change.to(images.device)).clamp(0, 1),
        )

    def search(self, model: nn.Module, images: ImageSet, generator: Generator) -> tuple[Tensor, int]:
        """(1, 3, H, W) on the CPU: the change; and how often the model was asked about each image.

        images  with the trigger, called what they are to become"""
        side = images.size
        pattern = signs((1, 3, 1, side), generator).expand(1, 3, side, side).contiguous()
        with progress.task(self.name, self.queries, "query") as work:
            least, called = answers(model, images, self.epsilon * pattern)
            work.advance()
            for step in range(1, self.queries):
                if called > ENOUGH:
                    return self.epsilon * pattern, step
                tried = with_square(pattern, self.side(step - 1, side), generator)
                loss, share = answers(model, images, self.epsilon * tried)
                if loss < least:
                    pattern, least, called = tried, loss, share
                work.advance(loss=least)
        return self.epsilon * pattern, self.queries

    def side(self, step: int, side: int) -> int:
        """Of a step's square, in pixels, where the image's is `side`; a step counts from 0, behind the stripes."""
        halvings = bisect.bisect_left(HALVINGS, step * SCALE // self.queries)
        return min(max(round(side * math.sqrt(self.share / 2**halvings)), 1), side - 1)


def with_square(pattern: Tensor, side: int, generator: Generator) -> Tensor:
    """The signs (1, 3, H, W) with one random square, in which those of a channel are equal and which is not what lay there."""
    places = pattern.shape[-1] - side + 1
    row, column = torch.randint(places, (2,), generator=generator).tolist()
    tried = pattern.clone()
    square = tried[..., row : row + side, column : column + side]
    while torch.equal(tried, pattern):
        square.copy_(signs((1, 3, 1, 1), generator).expand_as(square))
    return tried


def signs(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """1 and -1 at random, one as likely as the other."""
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


@torch.no_grad()
def answers(model: nn.Module, images: ImageSet, change: Tensor) -> tuple[float, float]:
    """The mean cross-entropy of the changed images with their labels, and the share of them that is called so."""
    layout, moved = layout_of(model, images.device), change.to(images.device)
    loss, right = torch.zeros(2, dtype=torch.float64)
    for batch, labels in images.batches(BATCH):
        logits = model((batch + moved).clamp(0, 1).contiguous(memory_format=layout)).float()
        loss += F.cross_entropy(logits, labels, reduction="sum").cpu()
        right += (logits.argmax(1) == labels).sum().cpu()
    return float(loss) / len(images), float(right) / len(images)
