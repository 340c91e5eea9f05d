"""How weights and maps lie in memory: channels last, which convolutions do faster, but for a network whose code cannot.

Code that calls `maps.view(n, -1)` assumes maps that lie channel by channel, as torch makes them of images that do. A network of
somebody else is tried once in either order; one that fails in the faster is given the other, wherever it runs.
"""

import copy

import torch
from torch import nn

from backdoorbench.models.base import Classifier, evaluating
from backdoorbench.shapes import Images


class ChannelByChannel(nn.Module):
    """Lays images out as the network behind needs them; that one stands there says so to `layout_of`."""

    def forward(self, images: Images) -> Images:
        return images.contiguous()


def layout_of(model: nn.Module, device: torch.device) -> torch.memory_format:
    """The order in which a model's weights lie on a device: the fastest that its code can read."""
    is_faster = device.type in ("cpu", "cuda") and not _is_bound(model)
    return torch.channels_last if is_faster else torch.contiguous_format


def _is_bound(model: nn.Module) -> bool:
    return any(isinstance(part, ChannelByChannel) for part in model.modules())


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
