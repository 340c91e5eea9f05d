"""Activations behind a batch norm, computed again in the backward pass instead of kept until then.

A pre-activation block keeps two maps a convolution for its backward pass: what its batch norm read, and what the convolution
read. The second follows from the first, bit for bit, for next to nothing beside a convolution.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

Layer = Callable[[Tensor], Tensor]


def norm_relu(norm: nn.Module, x: Tensor, *readers: Layer) -> list[Tensor]:
    """What each of `readers` makes of relu(norm(x)), (N, C, H, W). Where a training on a CPU would keep that map for the backward
    pass, it is computed from `x` there. A norm that is not torch's own, or that has hooks, is called and no more."""
    trains = norm.training and torch.is_grad_enabled() and x.device.type == "cpu"
    if not trains or type(norm) is not nn.BatchNorm2d or norm._forward_hooks or norm._forward_pre_hooks:
        active = F.relu(norm(x))
        return [reader(active) for reader in readers]
    again = Again(norm, x)
    normed = norm(x)
    with saved_tensors_hooks(lambda _: again, Again.last):
        active = F.relu_(normed)
    place = active.data_ptr()

    def pack(kept: Tensor) -> tuple[Tensor, int] | Again:
        return again if kept.data_ptr() == place and kept.shape == x.shape else (kept, kept._version)

    def unpack(kept: tuple[Tensor, int] | Again) -> Tensor:
        if isinstance(kept, Again):
            return kept.value()
        if kept[0]._version != kept[1]:  # autograd itself does not look where there are hooks
            raise RuntimeError("a tensor needed for the backward pass has been modified by an inplace operation")
        return kept[0]

    with saved_tensors_hooks(pack, unpack):
        return [reader(active) for reader in readers]


class Again:
    """relu(norm(x)) of a training's batch, with the scale and shift of now: whoever changes them before the backward pass is
    stopped there with a RuntimeError, since the norm itself reads them."""

    def __init__(self, norm: nn.BatchNorm2d, x: Tensor) -> None:
        self.x, self.weight, self.bias, self.eps = x.detach(), norm.weight, norm.bias, norm.eps
        self.known: Tensor | None = None

    def value(self) -> Tensor:
        """Kept from the first that asks, a convolution, to the last, the activation."""
        if self.known is None:
            with torch.no_grad():
                self.known = F.batch_norm(
                    self.x, None, None, self.weight, self.bias, training=True, eps=self.eps
                ).relu_()
        return self.known

    def last(self) -> Tensor:
        value, self.known = self.value(), None
        return value
