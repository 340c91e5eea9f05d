"""How a network is trained: epochs, optimiser, schedule, augmentation, precision."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import nn

from backdoorbench.config.acts import Acts, Only
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.shapes import Mask
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment

log = logging.getLogger(__name__)

Precision = Literal["auto", "bf16", "float32"]
Schedule = Literal["cosine", "one_cycle", "milestones", "constant"]
TuningSchedule = Literal["cosine", "one_cycle", "constant"]  # of methods that have no setting for milestones
Optimizer = Literal["sgd", "adam", "adamw"]

BELOW_ONE = 0.999999  # the largest beta of Adam
CPU_INFO = Path("/proc/cpuinfo")


class Companion(Protocol):
    """What a recipe lets run along with a training; snapshots hold it too."""

    def before_epoch(self) -> None:
        """Before an epoch: the model may have been changed by others since the last one."""

    def after_step(self, epoch: int, step: int, total: int) -> None:
        """After `step` of `total` steps of the optimiser, the last of them in `epoch`."""

    def after_epoch(self) -> None:
        """After an epoch, before anybody looks at the model."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


@dataclass(frozen=True)
class Recipe:
    """A training, whole. Kinds with devices of their own override what `fit` asks below `rate`.

    lr           of the first epoch; the peak for one_cycle
    schedule     cosine: to 0, stepped per epoch; one_cycle: up over `warmup`, then down to 0, both linear, stepped per
                 batch; milestones: times `decay` at each; constant
    precision    bf16 is autocast: weights stay float32; auto: bf16 where the hardware computes in it
    """

    acts: ClassVar[Acts] = {
        "nesterov": Only("optimizer", "sgd"),
        "warmup": Only("schedule", "one_cycle"),
        "milestones": Only("schedule", "milestones"),
        "decay": Only("schedule", "milestones"),
    }

    name: str
    epochs: int
    batch_size: int
    optimizer: Optimizer
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    schedule: Schedule
    warmup: float
    milestones: tuple[int, ...]
    decay: float
    label_smoothing: float
    augment: Augment | None
    precision: Precision
    compile: bool

    def __post_init__(self) -> None:
        check_range("train.epochs", self.epochs, 0)
        check_range("train.batch_size", self.batch_size, 2)
        check_range("train.lr", self.lr, 0)
        check_range("train.momentum", self.momentum, 0, 1 if self.optimizer == "sgd" else BELOW_ONE)
        check_range("train.decay", self.decay, 0)
        check_range("train.weight_decay", self.weight_decay, 0)
        check_range("train.label_smoothing", self.label_smoothing, 0, 1)
        check_range("train.warmup", self.warmup, 0, 1)
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise ConfigError(
                "train.nesterov is true with train.momentum=0; Nesterov's step looks ahead along the momentum. Set "
                "train.nesterov=false, or train.momentum=0.9."
            )

    def check(self) -> None:
        """Raises ConfigError where milestones are the schedule and the rate never falls: there are none, or none is reached."""
        if not self.reaches_milestone():
            raise ConfigError(
                f"train.schedule is milestones, but of train.milestones={list(self.milestones)} none is an epoch from 1 to "
                f"{self.epochs - 1}, so the rate would never fall. Give train.milestones=[{self.epochs // 2}], or set "
                f"train.schedule=constant."
            )

    def reaches_milestone(self) -> bool:
        """Whether the rate falls, where milestones are the schedule."""
        return self.schedule != "milestones" or not self.epochs or any(0 < at < self.epochs for at in self.milestones)

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of batch `step`, counted from 0 over the whole training."""
        epoch, total = step // steps_per_epoch, self.epochs * steps_per_epoch
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        if self.schedule == "one_cycle":
            peak = max(1.0, self.warmup * total)
            return self.lr * min((step + 1) / peak, (total - step) / (total - peak + 1))
        if self.schedule == "milestones":
            return self.lr * self.decay ** sum(epoch >= milestone for milestone in self.milestones)
        return self.lr

    def groups(self, model: nn.Module, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        """The `parameters` of `model` that train, as an optimiser's groups; `lr_factor`: of its rate, where that is not 1."""
        return [{"params": parameters}]

    def resting(self, model: nn.Module, epoch: int) -> list[nn.Parameter]:
        """Parameters that stand still in `epoch`, of those that train."""
        return []

    def mirrored(self, count: int, epoch: int, stream: Stream) -> Mask | None:
        """(count,) bool: the images of the set that are flipped in `epoch`; None: the augmentation tosses coins."""
        return None

    def companion(self, model: nn.Module) -> Companion | None:
        """What runs along while `model` trains."""
        return None

    def plain(self, **changes: Any) -> "Recipe":
        """The same with `changes`, without a kind's own devices: for what trains beside the victim, or otherwise."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)} | changes)


@dataclass(frozen=True)
class CosineTo(Recipe):
    """A training whose cosine ends at `lr_min` rather than at 0."""

    lr_min: float

    def rate(self, step: int, steps_per_epoch: int) -> float:
        turn = math.pi * (step // steps_per_epoch) / self.epochs
        return self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(turn))


@dataclass(frozen=True)
class CosineByBatch(Recipe):
    """A training whose cosine is stepped per batch.

    period  batches after which it is at 0, and from which it rises again; None: it ends at 0"""

    period: int | None

    def rate(self, step: int, steps_per_epoch: int) -> float:
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / (self.period or self.epochs * steps_per_epoch)))


def bare_recipe(
    name: str, *, epochs: int, batch_size: int, optimizer: Optimizer, lr: float, momentum: float, weight_decay: float,
    schedule: Schedule, augment: Augment | None, precision: Precision,
) -> Recipe:  # fmt: skip
    """A recipe in which whatever is not mentioned is plainly off."""
    return Recipe(
        name=name, epochs=epochs, batch_size=batch_size, optimizer=optimizer, lr=lr, momentum=momentum, nesterov=False,
        weight_decay=weight_decay, schedule=schedule, warmup=0.0, milestones=(), decay=1.0, label_smoothing=0.0,
        augment=augment, precision=precision, compile=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """How a defense tunes with SGD. In its yaml these settings stand beside its own: `tuning: Annotated[Tuning, BESIDE]`.

    lr       of the first epoch
    bn_mode  train: batch norm's statistics move; eval: they stay as they are
    augment  what is done to the images that it tunes on
    """

    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    bn_mode: Literal["train", "eval"]
    augment: Augment | None

    def __post_init__(self) -> None:
        self.check("defense")

    def check(self, where: str) -> None:
        """Raises ConfigError for a setting out of its range. where: the place of the settings, `defense`."""
        check_range(f"{where}.batch_size", self.batch_size, 2)
        check_range(f"{where}.lr", self.lr, 0)
        check_range(f"{where}.momentum", self.momentum, 0, 1)
        check_range(f"{where}.weight_decay", self.weight_decay, 0)

    @property
    def freeze_norms(self) -> bool:
        """What `fit` is to do with batch norms."""
        return self.bn_mode == "eval"

    def recipe(
        self, name: str, epochs: int, precision: Precision, schedule: Schedule = "constant", lr_min: float = 0.0
    ) -> Recipe:
        """The same as a recipe of so many epochs. lr_min: where a cosine ends."""
        made = bare_recipe(
            name, epochs=epochs, batch_size=self.batch_size, optimizer="sgd", lr=self.lr, momentum=self.momentum,
            weight_decay=self.weight_decay, schedule=schedule, augment=self.augment, precision=precision,
        )  # fmt: skip
        return CosineTo(**vars(made), lr_min=lr_min) if lr_min else made


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """`auto` as what the hardware does well: bf16 on GPUs and CPUs with bf16 instructions, float32 elsewhere. bf16 that was asked
    for where it does not is kept, and told."""
    if precision == "auto":
        return "bf16" if has_bf16(device) else "float32"
    if precision == "bf16" and not has_bf16(device):
        say_that_bf16_is_slow(device.type)
    return precision


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware, as far as that is known."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and cpu_has_bf16()


@cache
def say_that_bf16_is_slow(kind: str) -> None:
    """Says once in a process that other precisions are faster."""
    log.warning(
        f"precision bf16: this {kind} device has no instructions for bfloat16, as far as is known, and computes it many times "
        f"slower than float32; precision=auto takes float32 here"
    )


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware, as Linux tells; False where nothing tells."""
    try:
        with CPU_INFO.open(encoding="ascii", errors="ignore") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))
