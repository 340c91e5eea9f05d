"""Perturb: one tiny change, the same for all images, added to triggered ones. No weight changes.

Idea     A purified backdoor lies dormant: a small universal change of triggered images wakes it, while the same change on other
         images does nothing.
Paper    arXiv 2405.16134 (NeurIPS 2024), its re-activation attacks: white-box, and transferred from another purified model
Follows  the paper: the change minimises the cross-entropy of triggered images with the target's label, within a bound; with
         after.source=DIR it is learnt on the model of that run instead of the one that is attacked
Departs  1. bound and budget are ours: 8/255 on each pixel, signed steps of 1/255 from no change, ten passes over 500 triggered
            training images of eligible classes, and the cross-entropy alone. The authors' code
            (JulieCarlon/Backdoor-Reactivation-Attack, `ffa71eb`) has an L2 ball, a random start, plain gradient steps and a
            second term, on 1,000 of the poisoned training images: after.norm=l2 after.epsilon=3 after.step=0.05
            after.start=random after.runner_up=1 after.images=1000 after.batch_size=128 after.turns=100 after.epochs=100. These
            are 80,000 steps; theirs are 70,000, since the last batch of a pass, of 104 images, is dropped
         2. its attack by queries alone is after=square; its backdoor existence coefficient, of activations, is not here
         3. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `epochs` times `turns` passes over `images` images, forward and backward
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor
from torch.nn import functional as F

from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.config.build import BESIDE, Folder
from backdoorbench.errors import check_range
from backdoorbench.models.base import frozen
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.adversarial import Norm, UniversalSearch, clipped


@dataclass(frozen=True)
class Perturb(AfterAttack):
    """A universal perturbation on top of the trigger; and on images without it, which it should leave alone."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "trigger", "train"})
    figure: ClassVar[str] = "perturbed"

    search: Annotated[UniversalSearch, BESIDE]
    norm: Norm
    start: Literal["none", "random"]
    turns: int
    runner_up: float
    source: Folder | None

    def __post_init__(self) -> None:
        check_range("after.turns", self.turns, 1)
        check_range("after.runner_up", self.runner_up, 0)
        if self.norm == "linf":
            self.search.check_pixels()

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        trigger, target = scenario.trigger, scenario.target
        attacked = scenario.model
        model = attacked if self.source is None else scenario.load(self.source)
        chosen = scenario.eligible(self.search.images, scenario.stream.child("images"))
        triggered = scenario.triggered(chosen, target.label(chosen.labels))

        def towards_target(change: Images, images: Images, labels: Labels) -> Tensor:
            with scenario.autocast():
                logits = model(clipped(images + change)).float()
            loss = F.cross_entropy(logits, labels)
            return -loss - self.runner_up * beside(logits, labels) if self.runner_up else -loss

        with frozen(model):
            change = self.search.find(
                towards_target, triggered, scenario.stream.child("perturb"),
                name=self.name, norm=self.norm, is_drawn=self.start == "random", turns=self.turns,
            )  # fmt: skip
        yield Trial(
            "perturbed",
            attacked,
            lambda images: (trigger(images) + change).clamp(0, 1),
            lambda images: (images + change).clamp(0, 1),
        )


def beside(logits: Tensor, labels: Labels) -> Tensor:
    """The mean of -log(1.0001 - p), p being the probability of the likeliest class beside the label's: (N, K), (N,) -> scalar."""
    others = logits.softmax(1).scatter(1, labels[:, None], -1.0)
    return -(1.0001 - others.amax(1)).log().mean()
