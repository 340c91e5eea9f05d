"""A training that gets far in few epochs: rates of their own for some parameters, flips that take turns, weights that look ahead.

Paper     Jordan, 94 % on CIFAR-10 in 3.29 Seconds on a Single GPU, arXiv 2404.00498v2
Follows   the authors' airbench94, whose settings are those of conf/train/airbench.yaml
Departs   1. whole epochs, and the last, incomplete batch of each counts; theirs: 9.9 epochs, incomplete batches dropped
          2. images are judged as they are; theirs in six views each, flipped and shifted
          3. float32 weights under bf16 autocast; theirs are float16, batch norms float32
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backdoorbench.config.acts import Acts, Only
from backdoorbench.errors import check_range
from backdoorbench.shapes import Mask
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Alternating
from backdoorbench.training.recipe import Companion, Recipe


@dataclass(frozen=True)
class Lookahead:
    """Slow weights that average the fast ones, which go back to them every few steps (arXiv 1907.08610v2).

    from_epoch  epochs before the slow weights start, from what the fast ones are then
    every       steps between two returns
    decay       a step's share of the slow weights that stays, at the end of the training
    power       of the share of the training that is over, by which the decay is multiplied
    """

    from_epoch: int
    every: int
    decay: float
    power: float

    def __post_init__(self) -> None:
        check_range("train.lookahead.from_epoch", self.from_epoch, 0)
        check_range("train.lookahead.every", self.every, 1)
        check_range("train.lookahead.decay", self.decay, 0, 1)
        check_range("train.lookahead.power", self.power, 0)

    def kept(self, done: float) -> float:
        """The share of the slow weights that stays at a return, where `done` of the training is over."""
        return float(self.decay**self.every * done**self.power)


@dataclass(frozen=True)
class Sprint(Recipe):
    """A recipe with the devices of a short training, each of which can be switched off.

    start, end         one_cycle's first and last rate, as shares of its peak
    norm_bias_lr       how many times larger the rate of batch norms' biases is; their decay a step is that of the others. 1: off
    fixed_bias_epochs  epochs after which the biases of layers whose weights are fixed stand still, and with them all before
    lookahead          null: none
    """

    acts: ClassVar[Acts] = {"start": Only("schedule", "one_cycle"), "end": Only("schedule", "one_cycle")}

    augment: Alternating | None
    start: float
    end: float
    norm_bias_lr: float
    fixed_bias_epochs: int
    lookahead: Lookahead | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("train.start", self.start, 0, 1)
        check_range("train.end", self.end, 0, 1)
        check_range("train.norm_bias_lr", self.norm_bias_lr, 0.001)
        check_range("train.fixed_bias_epochs", self.fixed_bias_epochs, 0)

    def rate(self, step: int, steps_per_epoch: int) -> float:
        if self.schedule != "one_cycle":
            return super().rate(step, steps_per_epoch)
        total = self.epochs * steps_per_epoch
        peak = int(self.warmup * total)
        if step < peak:
            return self.lr * (self.start + (1 - self.start) * step / peak)
        return self.lr * (self.end + (1 - self.end) * (total - step) / (total - peak))

    def groups(self, model: nn.Module, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        biases = {id(norm.bias) for norm in norms}
        fast = [parameter for parameter in parameters if id(parameter) in biases]
        rest = [parameter for parameter in parameters if id(parameter) not in biases]
        factor = self.norm_bias_lr
        found = [
            {"params": rest, "lr_factor": 1.0},
            {"params": fast, "lr_factor": factor, "weight_decay": self.weight_decay / factor},
        ]
        return [group for group in found if group["params"]]

    def resting(self, model: nn.Module, epoch: int) -> list[nn.Parameter]:
        if epoch < self.fixed_bias_epochs:
            return []
        layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        biases = [layer.bias for layer in layers if not layer.weight.requires_grad]
        return [bias for bias in biases if isinstance(bias, nn.Parameter) and bias.requires_grad]

    def mirrored(self, count: int, epoch: int, stream: Stream) -> Mask | None:
        if self.augment is None or not self.augment.flip or not self.augment.alternating:
            return None
        coins = torch.rand(count, generator=stream.child("flips").generator()) < 0.5
        return ~coins if epoch % 2 else coins

    def companion(self, model: nn.Module) -> Companion | None:
        return SlowWeights(self.lookahead, model) if self.lookahead is not None else None


class SlowWeights:
    """The slow weights of a model in training, its batch norms' statistics among them; None before they start."""

    def __init__(self, settings: Lookahead, model: nn.Module) -> None:
        self.settings, self.model = settings, model
        self.slow: list[Tensor] | None = None

    def before_epoch(self) -> None:
        """The slow weights follow what was done to the model between two epochs; without that they are the fast ones already."""
        if self.slow is not None:
            torch._foreach_copy_(self.slow, self.fast())

    def after_step(self, epoch: int, step: int, total: int) -> None:
        """After `step` steps of `total`, in `epoch`: nothing, or a return of the fast weights to the slow ones, moved."""
        if epoch < self.settings.from_epoch or step % self.settings.every:
            return
        if self.slow is None:
            self.slow = [value.clone() for value in self.fast()]
            return
        torch._foreach_lerp_(self.slow, self.fast(), 1 - self.settings.kept(step / total))
        torch._foreach_copy_(self.fast(), self.slow)

    def after_epoch(self) -> None:
        """The fast weights become the slow ones."""
        if self.slow is not None:
            torch._foreach_copy_(self.fast(), self.slow)

    def fast(self) -> list[Tensor]:
        """The model's own numbers, those that count batches aside."""
        return [value for value in self.model.state_dict().values() if value.is_floating_point()]

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        slow = state["slow"]
        if slow is not None:
            slow = [kept.to(value.device) for kept, value in zip(slow, self.fast(), strict=True)]
        self.slow = slow
