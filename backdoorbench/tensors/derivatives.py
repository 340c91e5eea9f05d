"""Second derivatives of networks whose functions have none in torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside, what torch 2.15 differentiates only once is computed of parts that have second derivatives, the same to rounding:
    fused attention, and the hard sigmoid, as in the squeeze-and-excitation of MobileNetV3, LCNet and GhostNet."""
    with sdpa_kernel(SDPBackend.MATH), _InParts():
        yield


class _InParts(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return PARTS.get(func, func)(*args, **(kwargs or {}))


def _hard_sigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    return F.relu6(input + 3) / 6


PARTS: Mapping[Callable[..., Any], Callable[..., Any]] = {F.hardsigmoid: _hard_sigmoid}
