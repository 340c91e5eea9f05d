"""U-Net: an image out of an image, at every resolution with what was there on the way down."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """(N, 3, H, W) -> (N, 3, H, W), of any sides: `depth` halvings, each with twice as many channels, `width` at first."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_block(before, after) for before, after in pairwise([3, *widths]))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        turns = [(below, above) for above, below in pairwise(widths)][::-1]
        self.grow = nn.ModuleList(nn.ConvTranspose2d(below, above, 2, 2) for below, above in turns)
        self.up = nn.ModuleList(_block(2 * above, above) for _, above in turns)
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        maps = [self.down[0](images)]
        for block in self.down[1:]:
            maps.append(block(self.pool(maps[-1])))
        now = maps.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            beside = maps.pop()
            grown = grow(now)[..., : beside.shape[2], : beside.shape[3]]
            now = block(torch.cat([beside, grown], 1))
        return self.out(now)  # type: ignore[no-any-return]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    first = [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU())
