"""How weights and maps lie in memory: channels last, which convolutions do faster, but for a network whose code cannot.

Code that calls `maps.view(n, -1)` assumes maps that lie channel by channel, as torch makes them of images that do. A network of
somebody else is tried once in either order; one that fails in the faster is given the other, wherever it runs. So is one that
torch would corrupt the memory of.
"""

import copy

import torch
from torch import nn

from backdoorbench.models.base import Classifier, evaluating
from backdoorbench.shapes import Images

NARROW = 16  # input channels, below which torch 2.15 is not to be trusted with a strided 1x1 convolution, channels last


class ChannelByChannel(nn.Module):
    """Lays images out as the network behind needs them; that one stands there says so to `layout_of`."""

    def forward(self, images: Images) -> Images:
        return images.contiguous()


def layout_of(model: nn.Module, device: torch.device) -> torch.memory_format:
    """The order in which a model's weights lie on a device: the fastest that its code can read."""
    is_faster = device.type in ("cpu", "cuda") and not _is_bound(model)
    is_safe = device.type != "cpu" or not _is_overrun(model)
    return torch.channels_last if is_faster and is_safe else torch.contiguous_format


def _is_bound(model: nn.Module) -> bool:
    return any(isinstance(part, ChannelByChannel) for part in model.modules())


def _is_overrun(model: nn.Module) -> bool:
    """Whether a processor may write beyond the gradient of one of its convolutions, channels last: a strided one of single pixels
    and few channels, as the shortcuts of a narrow ResNet are. With how many threads is not asked, so that figures do not depend
    on them."""
    return any(
        part.kernel_size == (1, 1) and part.stride != (1, 1) and part.in_channels < NARROW
        for part in model.modules()
        if isinstance(part, nn.Conv2d)
    )


def settle(model: Classifier, images: Images) -> bool:
    """Has the network read its maps channel by channel from now on, where it cannot read these images otherwise. Whether it has.

    images  few, (N, 3, H, W)

    Raises what the network raises where it reads them in neither order."""
    if _is_bound(model):
        return False
    trial = copy.deepcopy(model).to(memory_format=torch.channels_last)
    with evaluating(trial), torch.no_grad():
        try:
            trial(images.contiguous(memory_format=torch.channels_last))
        except RuntimeError:  # for its size as well, perhaps: the other order tells
            pass
        else:
            return False
        trial.to(memory_format=torch.contiguous_format)
        trial(images.contiguous())
    model.to(memory_format=torch.contiguous_format)
    model.crop = nn.Sequential(model.crop, ChannelByChannel())
    return True
