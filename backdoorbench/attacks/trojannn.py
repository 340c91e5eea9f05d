"""TrojanNN: paste a patch that was optimised to excite chosen neurons of a clean network.

Idea     The neurons that weigh most in the last layer are driven up, by gradient steps on the pixels of a square alone. What
         comes out is a patch that a network of this kind notices easily: few poisoned images suffice.
Paper    NDSS 2018, "Trojaning Attack on Neural Networks"
Follows  trojanzoo's and backdoor-toolbox's optimisation: 8x8 pixels as (1 + tanh z) / 2, z from a normal distribution, on a
         black canvas, Adam at 0.1 with cosine decay for 1000 steps, towards 100 at each neuron; pasted. Two neurons, as in
         BackdoorBench and trojanzoo; backdoor-toolbox: `attack.neurons=100`
Departs  1. the patch starts from noise (BackdoorBench: a fruit logo, in signed steps on pixels that are not normalised; it adds
            the result in uint8, where bright sums wrap around)
         2. the victim is trained from scratch, as in BackdoorBench (trojanzoo and backdoor-toolbox: tune the clean network)
         3. larger images get a larger patch, optimised at their size
Cost     a clean training, shared with the control; 1000 forward and backward passes of one image
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backdoorbench import progress
from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.models.base import evaluating
from backdoorbench.models.surgery import split_head
from backdoorbench.shapes import Images, Rows
from backdoorbench.streams import Stream
from backdoorbench.training.fit import set_rate
from backdoorbench.training.optimizers import Adam
from backdoorbench.triggers.patch import GRID, Patch, solid

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrojanNN(DataAttack):
    """The neuron attack. `patch_size` and `position` are on a 32x32 grid; `activation` is what each neuron is to reach."""

    patch_size: int
    position: tuple[int, int]
    neurons: int
    activation: float
    steps: int
    lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.patch_size", self.patch_size, 1, GRID)
        check_range("attack.neurons", self.neurons, 1)
        check_range("attack.steps", self.steps, 0)
        check_range("attack.lr", self.lr, 0)

    @property
    def needs_surrogate(self) -> bool:
        return True

    def check(self, train: ImageSet) -> None:
        super().check(train)
        self.box(train.size)

    def test_trigger(self, task: Task, stream: Stream) -> None:
        return None

    def box(self, size: int) -> Tensor:
        """(1, size, size): 1 where the patch lies. ConfigError where it leaves the image."""
        return solid(torch.ones(3, self.patch_size, self.patch_size), self.position, size).mask

    def trigger(self, task: Task, stream: Stream) -> Patch:
        model, mask = task.surrogate(), self.box(task.train.size).to(task.train.device)
        with evaluating(model):
            features, head = split_head(model)
            pattern = self.optimise(features, self.choose_neurons(head), mask, stream)
        return Patch(pattern * mask, mask)

    def choose_neurons(self, head: nn.Linear) -> Rows:
        """(neurons,): the features whose weights, over all classes, have the largest sum of absolute values."""
        if self.neurons > head.in_features:
            raise ConfigError(
                f"attack.neurons is {self.neurons}, but the network has {head.in_features} features before its last layer. "
                f"Lower attack.neurons."
            )
        return head.weight.detach().abs().sum(0).topk(self.neurons).indices

    def optimise(self, features: nn.Module, neurons: Rows, mask: Tensor, stream: Stream) -> Images:
        """(3, H, W) in (0, 1): the canvas that brings `neurons` near the activation, its pixels under `mask` alone shown to
        `features`, (N, 3, H, W) -> (N, D) in eval mode."""
        size = mask.shape[-1]
        free = torch.randn(3, size, size, generator=stream.generator()).to(mask.device).requires_grad_()
        optimizer = Adam([free], lr=self.lr)
        losses: list[Tensor] = []
        with torch.enable_grad():
            for step in progress.counted(range(self.steps), self.name, "step"):
                canvas = (1 + free.tanh()) / 2 * mask
                reached = features(canvas[None])[0, neurons].float()
                loss = (reached - self.activation).square().sum()
                (free.grad,) = torch.autograd.grad(loss, free)
                set_rate(optimizer, self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps)))
                optimizer.step()
                losses.append(loss.detach())
        if losses:
            log.info(
                f"optimised patch: loss {float(losses[0]):.4g} at the first step, {float(losses[-1]):.4g} at the last"
            )
        return (1 + free.detach().tanh()) / 2

    def facts(self) -> dict[str, Any]:
        return {"pattern": f"optimised {self.patch_size}x{self.patch_size}", "neurons": self.neurons}
