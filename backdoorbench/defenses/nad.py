"""NAD: neural attention distillation. A fine-tuned copy of the model shows the infected one where to look.

Idea     Fine-tune a copy on clean images; it looks less at triggers. Then fine-tune the infected model itself, and hold what its
         stages attend to, place by place, to what the copy's attend to.
Paper    arXiv 2101.05930
Follows  the authors' code: A(F) = sum over channels of |F|^p, flattened, each image's divided by its norm + 1e-6; loss =
         CE + sum over stages of beta times the mean squared difference of student's and teacher's A; teacher frozen in eval mode;
         SGD, Nesterov momentum 0.9, weight decay 1e-4, batches of 64, 10 passes for the teacher and 20 for the student
Departs  1. the stages are the last maps of the last three resolutions above 1x1, found by tracing, on any network; the authors
            have the three groups of a WRN. BackdoorBench drops children of the network, and so compares pooled 1x1 maps, on which
            the term and its gradient are 0: one term of three in PreAct-ResNets, all of them elsewhere
         2. betas are theirs, but a term is a mean over a map's places, so that one beta weighs small maps more: their deepest map
            has 8x8 places, a PreAct-ResNet-18's 4x4, airbench's 3x3, where 1000 is four and seven times as much as there
         3. one forward pass of student and teacher a step; BackdoorBench runs four, and moves batch norm's statistics four times
         4. the rate is 0.01 throughout; the authors' 0.1 for two passes, then 0.01, is for their WRN (defense.lr=0.1
            defense.milestones=[2]). Behind 20 passes both codes go on at 1e-4 (defense.milestones=[20] defense.decay=0.01)
         5. images are normalised as the data set says; the authors' are [0, 1] as they are (dataset.mean=[0,0,0]
            dataset.std=[1,1,1])
         6. images are augmented as the data set says; the authors crop and flip, and blacken 2x2 pixels of each at random
         7. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `teacher_epochs` passes over the holdout, then `epochs` with the teacher's forward pass beside
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Unless
from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import ConfigError, ModelError, check_range
from backdoorbench.models.surgery import Stage, activations, stages
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.fit import Loss, cross_entropy, fit
from backdoorbench.training.recipe import Recipe, Tuning


@dataclass(frozen=True)
class NAD(Defense):
    """Attention distillation on the holdout. The stages that are compared are noted in the record."""

    acts: ClassVar[Acts] = {"nesterov": Unless("momentum", 0), "decay": Unless("milestones", [])}

    betas: tuple[float, ...]
    power: float
    teacher_epochs: int
    epochs: int
    milestones: tuple[int, ...]
    decay: float
    nesterov: bool
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        if not self.betas:
            raise ConfigError(
                "defense.betas is empty; expected the weight of each stage, the last one's last. Give one at least."
            )
        for place, beta in enumerate(self.betas):
            check_range(f"defense.betas[{place}]", beta, 0)
        check_range("defense.power", self.power, 1)
        check_range("defense.teacher_epochs", self.teacher_epochs, 0)
        check_range("defense.epochs", self.epochs, 0)
        check_range("defense.decay", self.decay, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        student = scenario.model
        names = [stage.name for stage in last_stages(student, len(self.betas))]
        scenario.note("stages", names)
        teacher = copy.deepcopy(student)
        fit(
            teacher,
            scenario.holdout,
            self.recipe(f"{self.name} teacher", self.teacher_epochs, scenario),
            scenario.stream.child("teacher"),
            freeze_norms=self.tuning.freeze_norms,
        )
        fit(
            student,
            scenario.holdout,
            self.recipe(self.name, self.epochs, scenario),
            scenario.stream.child("tune"),
            loss=distilled(teacher.requires_grad_(False), dict(zip(names, self.betas, strict=True)), self.power),
            freeze_norms=self.tuning.freeze_norms,
            after_epoch=lambda epoch: scenario.probe(student, epoch),
        )
        return student

    def recipe(self, name: str, epochs: int, scenario: Scenario) -> Recipe:
        """That of the teacher and of the student: they differ in their epochs."""
        plain = self.tuning.recipe(name, epochs, scenario.recipe.precision, "milestones")
        nesterov = self.nesterov and self.tuning.momentum > 0
        return replace(plain, nesterov=nesterov, milestones=self.milestones, decay=self.decay)


def distilled(teacher: nn.Module, betas: dict[str, float], power: float) -> Loss:
    """CE + sum over the named stages of beta times the mean squared difference of attention; `teacher` in eval mode."""
    entropy = cross_entropy(0.0)

    def loss(student: nn.Module, images: Images, labels: Labels) -> Tensor:
        with torch.no_grad(), activations(teacher, betas) as shown:
            teacher(images)
        with activations(student, betas) as seen:
            total = entropy(student, images, labels)
        for name, beta in betas.items():
            total = total + beta * F.mse_loss(attention(seen[name], power), attention(shown[name], power))
        return total

    return loss


def attention(maps: Tensor, power: float) -> Tensor:
    """(N, H W) float32: sum over channels of |maps|^power, each image's divided by its norm + 1e-6. maps: (N, C, H, W)."""
    found: Tensor = maps.float().abs().pow(power).sum(1).flatten(1)
    norm: Tensor = found.norm(dim=1, keepdim=True)
    return found / (norm + 1e-6)


def last_stages(model: nn.Module, count: int) -> list[Stage]:
    """The last `count` stages whose maps are larger than 1x1: a smaller one is attended to wholly, whatever the network."""
    found = [stage for stage in stages(model) if math.prod(stage.side) > 1]
    if len(found) < count:
        raise ModelError(
            f"This network has {len(found)} stages with maps larger than 1x1, but defense.betas weighs {count}. Give as many "
            f"weights as it has stages, or choose a network that halves the side less often, or a larger dataset.size."
        )
    return found[-count:]
