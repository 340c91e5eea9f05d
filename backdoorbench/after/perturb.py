"""Perturb: one tiny change, the same for all images, added to triggered ones. No weight changes.

Idea     A purified backdoor lies dormant: a small universal change of triggered images wakes it, while the same change on other
         images does nothing.
Paper    arXiv 2405.16134 (NeurIPS 2024), its re-activation attacks: white-box, and transferred from another purified model
Follows  the paper: the change minimises the cross-entropy of triggered images with the target's label, within a bound; with
         after.source=DIR it is learnt on the model of that run instead of the one that is attacked
Departs  1. bound and budget are ours: 8/255 on each pixel, signed steps of 1/255 from no change, ten passes over 500 triggered
            training images of eligible classes. The authors' code (JulieCarlon/Backdoor-Reactivation-Attack, `ffa71eb`) has an L2
            ball of radius 3, a random start and plain gradient steps of 0.05, 100 on each batch of 128 in each of 100 passes over
            1,000 of the poisoned training images
         2. the cross-entropy alone; theirs adds -log(1.0001 - p) of the likeliest class beside the target
         3. its attack by queries alone is not here, nor is its backdoor existence coefficient, which compares activations
Cost     `epochs` passes over `images` images, forward and backward
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor
from torch.nn import functional as F

from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.config.build import BESIDE, Folder
from backdoorbench.models.base import frozen
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.adversarial import UniversalSearch


@dataclass(frozen=True)
class Perturb(AfterAttack):
    """A universal perturbation on top of the trigger; and on images without it, which it should leave alone."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "trigger", "train"})
    figure: ClassVar[str] = "perturbed"

    search: Annotated[UniversalSearch, BESIDE]
    source: Folder | None

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        trigger, target = scenario.trigger, scenario.target
        attacked = scenario.model
        model = attacked if self.source is None else scenario.load(self.source)
        chosen = scenario.eligible(self.search.images, scenario.stream.child("images"))
        triggered = scenario.triggered(chosen, target.label(chosen.labels))

        def towards_target(change: Images, images: Images, labels: Labels) -> Tensor:
            with scenario.autocast():
                return -F.cross_entropy(model((images + change).clamp(0, 1)).float(), labels)

        with frozen(model):
            change = self.search.find(towards_target, triggered, scenario.stream.child("perturb"))
        yield Trial(
            "perturbed",
            attacked,
            lambda images: (trigger(images) + change).clamp(0, 1),
            lambda images: (images + change).clamp(0, 1),
        )
