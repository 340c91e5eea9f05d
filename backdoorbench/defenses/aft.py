"""AFT: adversarial fine-tuning. Tune on untargeted adversarial examples of the infected model, then on clean images.

Idea     An infected network's untargeted adversarial examples mostly end in the backdoor's target class and excite the
         features that the trigger excites. They stand in for the unknown trigger: trained on with their true labels,
         they cut the shortcut.
Paper    arXiv 2202.06312v1; also PBE with a clean set (2202.06312v4): its loop run once, without the identification
Follows  the authors' code: PGD of the current model without random start, in eval mode; adversarial passes on such
         images alone, then natural passes; one SGD with momentum 0.9, weight decay 5e-4 and constant rate throughout
Departs  1. the passes are counted in batches, as many as the code's 3 + 17 epochs over all 50,000 training images; with
            a small holdout those epochs are another, weaker method (defense.budget=epochs runs them)
         2. adversarial images stay in [0, 1]; the code's may leave it (defense.clamp=false)
         3. augmentation as the data set says, drawn per image; the code crops with padding 5 (probability 0.8) and
            rotates by up to 10 degrees (0.5), drawn per batch, which reaches 80 and 25 % of the images
         4. pixels are normalised as the data set says, and PGD runs in the victim's precision; the code feeds [0, 1] as it is,
            in float32 (dataset.mean=[0,0,0] dataset.std=[1,1,1] train.precision=float32)
         5. schedule=alternate is the reading of WhoDunnett/BackdoorBenchmark, not of the authors' code; theirs has 20 passes
            of each kind at lr 0.01 in batches of 256, makes a new optimiser each pass and starts PGD at random, within 0.02;
            here only the order is theirs, and what one kind has more of than the other comes last
Cost     natural passes over the holdout, forward and backward; an adversarial one costs steps + 1 of them
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import nn

from backdoorbench.config.acts import Acts, Only, Unless
from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import spans
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.training.adversarial import PGD, partly_adversarial
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Tuning


@dataclass(frozen=True)
class AFT(Defense):
    """Adversarial fine-tuning on the holdout. The passes that the budget came to are noted in the record."""

    acts: ClassVar[Acts] = {
        "adversarial_iterations": Only("budget", "iterations"),
        "natural_iterations": Only("budget", "iterations"),
        "adversarial_epochs": Only("budget", "epochs"),
        "natural_epochs": Only("budget", "epochs"),
    } | dict.fromkeys(("eps_255", "step_share", "clamp"), Unless("steps", 0))

    eps_255: float
    steps: int
    step_share: float
    clamp: bool
    schedule: Literal["two_phase", "alternate"]
    budget: Literal["iterations", "epochs"]
    adversarial_iterations: int
    natural_iterations: int
    adversarial_epochs: int
    natural_epochs: int
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.eps_255", self.eps_255, 0, 255)
        check_range("defense.steps", self.steps, 0)
        check_range("defense.step_share", self.step_share, 0)
        for phase in ("adversarial", "natural"):
            for unit in ("iterations", "epochs"):
                check_range(f"defense.{phase}_{unit}", getattr(self, f"{phase}_{unit}"), 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        batches = len(spans(len(scenario.holdout), self.tuning.batch_size))
        is_adversarial = self.passes(batches)
        recipe = self.tuning.recipe(self.name, len(is_adversarial), scenario.recipe.precision)
        radius = self.eps_255 / 255
        craft = PGD(radius, self.step_share * radius, self.steps, clamp=self.clamp)
        fit(
            model,
            scenario.holdout,
            recipe,
            scenario.stream.child("tune"),
            loss=partly_adversarial(craft, lambda step: is_adversarial[step // batches]),
            freeze_norms=self.tuning.freeze_norms,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        scenario.note("adversarial_passes", sum(is_adversarial))
        scenario.note("natural_passes", len(is_adversarial) - sum(is_adversarial))
        scenario.note("batches_per_pass", batches)
        return model

    def passes(self, batches: int) -> list[bool]:
        """Whether each pass over the holdout, in their order, is adversarial.

        batches  of a pass; a budget of iterations is rounded up to whole passes"""
        if self.budget == "iterations":
            adversarial = math.ceil(self.adversarial_iterations / batches)
            natural = math.ceil(self.natural_iterations / batches)
        else:
            adversarial, natural = self.adversarial_epochs, self.natural_epochs
        turns = min(adversarial, natural) if self.schedule == "alternate" else 0
        return [True, False] * turns + [True] * (adversarial - turns) + [False] * (natural - turns)
