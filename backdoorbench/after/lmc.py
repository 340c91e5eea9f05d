"""LMC: linear mode connectivity. Is there a wall on the straight way from the purified weights back to the infected ones?

Idea     Where the backdoor comes back right behind the purified weights, purification went hardly anywhere. It is a
         diagnosis, no attack.
Paper    arXiv 2410.09838 (NeurIPS 2024), its connectivity plots
Follows  the paper: ASR of (1 - t) purified + t infected for t from 0 to 1; the backdoor's error is 1 - ASR
Departs  1. batch norm's statistics are interpolated like weights, counters are the purified model's until t = 1; the paper does
            not say (after.remeasure=true measures them anew on training images, between the ends)
         2. t = 0 is the purified model; at which end the paper's plots begin was not seen
         3. one number is the mean ASR of the points; the ends are among them
Cost     `points` evaluations
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.config.acts import Acts, Only
from backdoorbench.errors import ModelError, check_range
from backdoorbench.training.forward import BATCH
from backdoorbench.training.statistics import remeasure_norms

State = Mapping[str, Tensor]  # name -> parameter or buffer


@dataclass(frozen=True)
class Connectivity(AfterAttack):
    """ASR along the line of weights; a mean near the purified model's own says that the way back is long."""

    acts: ClassVar[Acts] = {"statistics_images": Only("remeasure", True)}
    needs: ClassVar[frozenset[str]] = frozenset({"model", "infected", "trigger", "train"})
    draws: ClassVar[bool] = False
    figure: ClassVar[str] = "path"
    counts: ClassVar[Literal["only", "mean", "largest"]] = "mean"

    points: int
    images: int
    remeasure: bool
    statistics_images: int

    def __post_init__(self) -> None:
        check_range("after.points", self.points, 2)
        check_range("after.images", self.images, 1)
        check_range("after.statistics_images", self.statistics_images, 2)

    def most_images(self) -> int:
        return self.images

    def count(self) -> int:
        return self.points

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        model = scenario.model
        start, end = state_of(model), state_of(scenario.infected)
        refuse_other_networks(start, end)
        count = min(self.statistics_images, len(scenario.train))
        few = scenario.train.subset(torch.linspace(0, len(scenario.train) - 1, count).long())
        for place in range(self.points):
            t = place / (self.points - 1)
            model.load_state_dict(between(start, end, t))
            if self.remeasure and 0 < t < 1:
                with scenario.autocast():
                    remeasure_norms(model, few, BATCH, scenario.stream.child("statistics"))
            yield Trial(f"t {t:.3g}", model, scenario.trigger, is_moved=True)


def state_of(model: nn.Module) -> State:
    """Copies of a model's parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def between(purified: State, infected: State, t: float) -> dict[str, Tensor]:
    """(1 - t) purified + t infected, each end to the bit; of whole numbers the purified model's, until t is 1."""
    return {
        name: (1 - t) * value + t * infected[name]
        if value.is_floating_point()
        else (infected[name] if t == 1 else value)
        for name, value in purified.items()
    }


def refuse_other_networks(purified: State, infected: State) -> None:
    """Raises ModelError where the defense left a network of another shape."""
    shapes = [{name: value.shape for name, value in state.items()} for state in (purified, infected)]
    if shapes[0] != shapes[1]:
        differs = next(name for name in sorted({*shapes[0], *shapes[1]}) if shapes[0].get(name) != shapes[1].get(name))
        raise ModelError(
            f"the defense left a network of another shape ('{differs}' differs), so no straight line leads from its weights to "
            f"the infected ones; expected the victim's network. Choose another after-attack, or a defense that keeps the network."
        )
