"""How weights and maps lie in memory: channels last, which convolutions do faster, but for a network that cannot have it.

Code that calls `maps.view(n, -1)` assumes maps that lie channel by channel, as torch makes them of images that do: such a network
is tried once in either order (`outputs.settle_layout`). A network that torch would write beyond the gradients of is told by its
layers. Either begins with a layer that lays images out anew, so that nobody, whatever trains beside the network, can hand it
others.
"""

from itertools import chain

import torch
from torch import nn

from backdoorbench.shapes import Images

NARROW = 16  # input channels, below which torch 2.15 is not to be trusted with a strided 1x1 convolution, channels last


class ChannelByChannel(nn.Module):
    """Lays images out as the network behind needs them; that one stands there says so to `layout_of`."""

    def forward(self, images: Images) -> Images:
        return images.contiguous()


def layout_of(model: nn.Module, device: torch.device) -> torch.memory_format:
    """The order in which the weights of a model, or of a part of one, lie on a device: the fastest that it can have."""
    is_faster = device.type in ("cpu", "cuda")
    is_led = any(isinstance(part, ChannelByChannel) for part in model.modules())
    return torch.channels_last if is_faster and not is_led and not is_bound(model) else torch.contiguous_format


def is_bound(model: nn.Module) -> bool:
    """Whether a network's weights cannot lie channels last, whatever its code: torch does not lay those of a three-dimensional
    convolution out so, as LambdaNet has them, and what is overrun is not to be trusted."""
    return is_overrun(model) or any(tensor.dim() == 5 for tensor in chain(model.parameters(), model.buffers()))


def is_overrun(model: nn.Module) -> bool:
    """Whether a processor may write beyond the gradient of one of its convolutions, channels last: a strided one of single pixels
    and few channels, as the shortcuts of a narrow ResNet are. With which instructions and threads is not asked, so that figures
    do not depend on them."""
    return any(
        part.kernel_size == (1, 1) and part.stride != (1, 1) and part.in_channels < NARROW
        for part in model.modules()
        if isinstance(part, nn.Conv2d)
    )
