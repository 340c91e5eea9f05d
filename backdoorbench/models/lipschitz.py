"""How strongly a channel can answer to small changes of what it reads: a bound, from its filter and its batch norm alone."""

from collections.abc import Iterable

import torch
from torch import Tensor

from backdoorbench.models.surgery import ConvNorm
from backdoorbench.shapes import Mask


@torch.no_grad()
def lipschitz(pair: ConvNorm) -> Tensor:
    """(C,) float64 on the CPU: the largest singular value of each channel's filter, (C_in, k k), times |scale| / deviation of its
    norm; not finite where the running variance is 0."""
    assert pair.norm.running_var is not None
    filters = pair.conv.weight.cpu().double().flatten(2)  # (C, C_in / groups, k k)
    scale = pair.norm.weight.cpu().double().abs() / pair.norm.running_var.cpu().double().sqrt()
    largest: Tensor = torch.linalg.matrix_norm(filters, ord=2)
    return largest * scale


def outlying(scores: Tensor, u: float) -> Mask:
    """(C,) bool: which of (C,) scores exceed their mean by more than `u` deviations; one that is not finite does not count."""
    known = scores.isfinite()
    if known.sum() < 2:
        return torch.zeros_like(known)
    return known & (scores > scores[known].mean() + u * scores[known].std())


@torch.no_grad()
def even_out(pairs: Iterable[ConvNorm], u: float) -> None:
    """Gives the channels whose bound is outlying the mean scale and the mean shift of their norm, in place."""
    for pair in pairs:
        found = outlying(lipschitz(pair), u).to(pair.norm.weight.device)
        for values in (pair.norm.weight, pair.norm.bias):
            values.copy_(torch.where(found, values.mean(), values))
