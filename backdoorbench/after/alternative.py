"""Alternative: a pattern unlike the trigger that takes the way through the features that the trigger took.

Idea     Purification closes the door for one pattern. The backdoor is a direction in feature space, and other patterns lead
         there.
Paper    arXiv 2603.09772
Follows  the paper's abstract: the direction is the mean feature of triggered images less that of the same images without the
         trigger; a pattern is optimised for the target's label and for alignment of the features' change with the direction
Departs  1. all numbers are ours: one additive pattern within 16/255, signed steps of 1/255, ten passes over 500 training images
            of eligible classes, both terms with the same weight
         2. features are what the classifier reads; alignment is the cosine, averaged over images
         3. the direction is that of the model that is attacked, so that a clean control has one of its own
            (after.direction=infected takes the infected model's)
Cost     `epochs` passes over `images` images, twice forward and once backward
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import check_range
from backdoorbench.models.base import frozen
from backdoorbench.models.surgery import activations, classifier_name
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.adversarial import UniversalSearch, clipped
from backdoorbench.training.forward import penultimate_features


@dataclass(frozen=True)
class Alternative(AfterAttack):
    """An alternative trigger. It is shown to images without the old one."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "infected", "trigger", "train"})
    figure: ClassVar[str] = "alternative"

    direction: Literal["attacked", "infected"]
    weight: float
    search: Annotated[UniversalSearch, BESIDE]

    def __post_init__(self) -> None:
        check_range("after.weight", self.weight, 0)
        self.search.check_pixels()

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        model, target = scenario.model, scenario.target
        clean = scenario.eligible(self.search.images, scenario.stream.child("images"))
        source = scenario.infected if self.direction == "infected" else model
        with scenario.autocast():
            way = direction(source, clean, scenario.triggered(clean)).to(scenario.device)
        head = classifier_name(model)

        def objective(change: Images, images: Images, labels: Labels) -> Tensor:
            with scenario.autocast(), activations(model, [head], "input") as seen:
                with torch.no_grad():
                    model(images)
                before = seen[head].float()
                logits = model(clipped(images + change)).float()
                aligned = F.cosine_similarity(seen[head].float() - before, way[None]).mean()
            return self.weight * aligned - F.cross_entropy(logits, target.label(labels))

        with frozen(model):
            pattern = self.search.find(objective, clean, scenario.stream.child("pattern"), name=self.name)
        yield Trial("alternative", model, lambda images: (images + pattern).clamp(0, 1))


def direction(model: nn.Module, clean: ImageSet, triggered: ImageSet) -> Tensor:
    """(D,) float32 on the CPU: the mean feature of the triggered images less that of the clean ones."""
    return penultimate_features(model, triggered).mean(0) - penultimate_features(model, clean).mean(0)
