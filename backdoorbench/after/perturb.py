"""Perturb: one tiny change, the same for all images, added to triggered ones. No weight changes.

Idea     A purified backdoor lies dormant: a small universal change of triggered images wakes it, while the same change on other
         images does nothing.
Paper    arXiv 2405.16134 (NeurIPS 2024), its re-activation attacks: white-box, and transferred from another purified model
Follows  the paper: the change minimises the cross-entropy of triggered images with the target's label, within a bound on each
         pixel; with after.source=DIR it is learnt on the model of that run instead of the one that is attacked
Departs  1. bound and budget are ours: 8/255, signed steps of 1/255 from no change, ten passes over 500 triggered training images
            of eligible classes
         2. its attack by queries alone is not here
Cost     `epochs` passes over `images` images, forward and backward
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.config.build import Folder
from backdoorbench.errors import check_range
from backdoorbench.models.base import frozen
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.adversarial import universal


@dataclass(frozen=True)
class Perturb(AfterAttack):
    """A universal perturbation on top of the trigger; and on images without it, which it should leave alone."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "trigger", "train"})
    figure: ClassVar[str] = "perturbed"

    epsilon: float
    step: float
    images: int
    epochs: int
    batch_size: int
    source: Folder | None

    def __post_init__(self) -> None:
        check_range("after.epsilon", self.epsilon, 0, 1)
        check_range("after.step", self.step, 0, 1)
        check_range("after.images", self.images, 1)
        check_range("after.epochs", self.epochs, 0)
        check_range("after.batch_size", self.batch_size, 1)

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        trigger, target = scenario.trigger, scenario.target
        attacked = scenario.model
        model = attacked if self.source is None else scenario.load(self.source)
        chosen = scenario.eligible(self.images, scenario.stream.child("images"))
        triggered = scenario.triggered(chosen, target.label(chosen.labels))

        def towards_target(change: Images, images: Images, labels: Labels) -> Tensor:
            with scenario.autocast():
                return -F.cross_entropy(model((images + change).clamp(0, 1)).float(), labels)

        with frozen(model):
            change = universal(
                towards_target, triggered, radius=self.epsilon, step=self.step, epochs=self.epochs,
                batch_size=self.batch_size, stream=scenario.stream.child("perturb"),
            )  # fmt: skip
        yield Trial(
            "perturbed",
            attacked,
            lambda images: (trigger(images) + change).clamp(0, 1),
            lambda images: (images + change).clamp(0, 1),
        )
