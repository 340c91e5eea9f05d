"""The channels of a network's batch norms: what they read, which of them stand out, factors on them, and pruning.

A mask or a perturbation is a factor on a norm's scale or shift. `multiplied` gives the network as it would be with the factors,
and leaves its parameters alone; `multiply` makes them part of the network. To prune is to multiply by 0: the scale alone
(`weight`), after which a channel says the same of every image, or the shift too (`both`), after which it says nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from backdoorbench.errors import ModelError
from backdoorbench.models.surgery import batch_norms
from backdoorbench.shapes import Images, Logits, Mask

Network = Callable[[Images], Logits]
Factors = Mapping[str, Tensor]  # name of a parameter -> what it is multiplied by
Prune = Literal["weight", "both"]  # what a pruned channel loses: its scale, or its scale and its shift


@dataclass(frozen=True, eq=False)
class Channels:
    """All channels of some batch norms in one row, norm after norm.

    norms  name -> batch norm, one that has scales and shifts
    """

    norms: Mapping[str, nn.BatchNorm2d]

    def __len__(self) -> int:
        return sum(norm.num_features for norm in self.norms.values())

    @property
    def device(self) -> torch.device:
        """Where the norms lie."""
        return next(norm.weight.device for norm in self.norms.values())

    def parts(self, row: Tensor) -> dict[str, Tensor]:
        """norm -> its part of a row (C,), as views."""
        sizes = [norm.num_features for norm in self.norms.values()]
        return dict(zip(self.norms, torch.split(row, sizes), strict=True))

    def row(self, parts: Mapping[str, Tensor]) -> Tensor:
        """(C,): the parts, one for each norm, put together."""
        return torch.cat([parts[name] for name in self.norms])

    def factors(self, scale: Tensor, shift: Tensor | None = None) -> dict[str, Tensor]:
        """What multiplies the norms' scales by a row (C,), and their shifts by another."""
        found = {f"{name}.weight": part for name, part in self.parts(scale).items()}
        if shift is not None:
            found |= {f"{name}.bias": part for name, part in self.parts(shift).items()}
        return found

    def without(self, pruned: Mask, prune: Prune) -> dict[str, Tensor]:
        """What takes the `pruned` (C,) channels away."""
        kept = (~pruned).to(self.device, torch.float32)
        return self.factors(kept, kept if prune == "both" else None)

    def named(self, chosen: Mask) -> dict[str, list[int]]:
        """norm -> its channels among the `chosen` (C,); norms without any are left out."""
        rows = {name: part.nonzero()[:, 0].tolist() for name, part in self.parts(chosen.cpu()).items()}
        return {name: found for name, found in rows.items() if found}


def norm_channels(model: nn.Module, statistics: bool = False) -> Channels:
    """The channels of every batch norm that runs, shortcuts included, as `usable` has them."""
    return usable(batch_norms(model), statistics)


def usable(norms: Mapping[str, nn.BatchNorm2d], statistics: bool = False) -> Channels:
    """The channels of those of the norms that have scales and shifts, and running statistics where these are asked for.

    Refuses where none has."""
    found = {
        name: norm for name, norm in norms.items() if norm.affine and (norm.running_var is not None or not statistics)
    }
    if not found:
        wanted = "scales, shifts and running statistics" if statistics else "scales and shifts"
        raise ModelError(
            f"None of the {len(norms)} batch norms that this method would work on has {wanted} (affine, track_running_stats), "
            f"but it prunes by them. Choose a network whose norms have them, such as preact_resnet18."
        )
    return Channels(found)


def multiplied(model: nn.Module, factors: Factors) -> Network:
    """The model with some parameters multiplied, as a function through which gradients reach the factors. In train mode its
    running statistics move as the model's own."""
    parameters = dict(model.named_parameters())

    def run(images: Images) -> Logits:
        changed = {name: parameters[name] * factor for name, factor in factors.items()}
        logits: Logits = torch.func.functional_call(model, changed, (images,))
        return logits

    return run


@torch.no_grad()
def multiply(model: nn.Module, factors: Factors) -> None:
    """Multiplies some of the model's parameters, in place; what the factors do not name stays as it is, bit for bit."""
    for name, factor in factors.items():
        model.get_parameter(name).mul_(factor)


@torch.no_grad()
def read_inputs(
    model: nn.Module, layers: Iterable[str], images: Iterable[Images], reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """name -> (M, ...): what `reduce` makes of each named layer's input (N, ...), over all batches, in the model's present mode.

    Only what `reduce` returns is kept, so that the maps of many layers need not fit in memory. Runs under the caller's autocast.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def listen(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: found[name].append(reduce(args[0].float()))

    hooks = [model.get_submodule(name).register_forward_pre_hook(listen(name)) for name in found]
    try:
        for batch in images:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def outliers(scores: Tensor, u: float) -> Mask:
    """(C,) bool: which of a layer's (C,) scores exceed their mean by more than `u` (sample) standard deviations.

    Scores that are no finite numbers, of channels that are constant, count for neither mean nor deviation, and are none."""
    known = scores.isfinite()
    mean, deviation = scores[known].mean(), scores[known].std() if known.sum() > 1 else scores.new_tensor(torch.inf)
    return known & (scores > mean + u * deviation)


def can_stand_out(channels: int, u: float) -> bool:
    """Whether one of so many scores can lie more than `u` deviations from their mean: at most (n - 1) / sqrt(n) can.

    >>> [can_stand_out(channels, 3.0) for channels in (8, 10, 11, 64)]
    [False, False, True, True]
    """
    return channels - 1 > u * math.sqrt(channels)
