"""FST: feature shift tuning. Redraw the classifier, then hold it away from the infected one. LP, FE-tuning, FT-init: its parts.

Idea     At low poisoning rates clean and triggered features are entangled, and plain tuning has no reason to leave the
         infected solution. Push the classifier against its infected weights at constant norm, and the features must move.
Paper    arXiv 2310.01875v2
Follows  section 3 and the authors' code: loss = CE(f(x), y) + alpha <W, W0>; after every step W is rescaled to the norm
         of W0; SGD, momentum 0.9, no weight decay, cosine to 0 stepped per epoch, batch norm in train mode. The siblings
         are the same loop with parts switched off: LP (head only), FE-tuning (redrawn frozen head, the rest tuned), FT-init
         (redrawn head, all tuned)
Departs  1. only the last linear layer counts as the classifier, found by tracing (their code matches parameter names)
         2. LP, FE-tuning and FT-init leave the classifier's norm free; the code rescales it in all modes
            (defense.project=true reproduces that)
         3. no label smoothing option: in their code it replaces the whole loss and switches FST off
         4. our holdout is 5 %, kept from the victim; theirs 2 %, uniform, of its training images (holdout=fst), and 5 % on
            CIFAR-100 and Tiny ImageNet, whose images they enlarge to 224 pixels for networks pretrained on ImageNet and do not
            mirror
         5. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `epochs` passes over the holdout, forward and backward; about 80 steps on CIFAR-10
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Either, Only, Unless
from backdoorbench.config.build import BESIDE
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.surgery import classifier_head
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Tuning, TuningSchedule


@dataclass(frozen=True)
class FST(Defense):
    """Feature shift tuning on the holdout.

    The penalty's strength is alpha * |W0|^2, which depends on network and classes; it is noted in the record, with the
    cosine between W and W0 that it reached. `strength` sets it instead, the same on any network."""

    acts: ClassVar[Acts] = {
        "alpha": (Only("strength", None), Unless("trainable", "body")),
        "strength": Unless("trainable", "body"),
        "project": Either(Unless("trainable", "body"), Only("reinit", True)),
    }

    alpha: float
    strength: float | None
    reinit: bool
    project: bool
    trainable: Literal["all", "head", "body"]
    epochs: int
    schedule: TuningSchedule
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.alpha", self.alpha, 0)
        check_range("defense.strength", self.strength or 0, 0)
        check_range("defense.epochs", self.epochs, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        head = classifier_head(model)
        weight = head.weight  # (K, D)
        infected = weight.detach().clone()
        norm = infected.norm()
        alpha = self.alpha if self.strength is None else self.strength / float(norm) ** 2
        if self.reinit:
            redraw(head, scenario.stream.child("redraw").generator())
        recipe = self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, self.schedule)

        def shift(network: nn.Module, images: Images, labels: Labels) -> Tensor:
            return F.cross_entropy(network(images).float(), labels) + alpha * (weight * infected).sum()

        def project() -> None:
            with torch.no_grad():
                weight.mul_(norm / weight.norm())

        own = {id(parameter) for parameter in head.parameters()}
        moved = [
            p for p in model.parameters() if self.trainable == "all" or (id(p) in own) == (self.trainable == "head")
        ]
        fit(
            model,
            scenario.holdout,
            recipe,
            scenario.stream.child("tune"),
            parameters=moved,
            loss=shift if alpha else None,
            freeze_norms=self.tuning.freeze_norms,
            after_step=project if self.project else None,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        scenario.note("classifier_norm", float(norm))
        scenario.note("penalty_strength", alpha * float(norm) ** 2)
        scenario.note("cosine", float(F.cosine_similarity(weight.detach().flatten(), infected.flatten(), dim=0)))
        return model


def redraw(head: nn.Linear, generator: torch.Generator) -> None:
    """Weight and bias anew, uniform in +-1/sqrt(D), as a linear layer starts."""
    bound = head.in_features**-0.5
    with torch.no_grad():
        for parameter in [head.weight] if head.bias is None else [head.weight, head.bias]:
            fresh = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.copy_(fresh)
