"""PreAct-ResNet: residual blocks that normalise and activate before they convolve. The backdoor literature's network.

Paper     He et al., Identity Mappings in Deep Residual Networks, arXiv 1603.05027v3
Follows   BackdoorBench's CIFAR variant: pooling and one linear layer follow the last block directly, without the
          paper's final batch norm; strided shortcuts read the activated input. Layer names are the same, so its
          weights fit.
Init      torch's defaults, as there
"""

from abc import abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from backdoorbench.models.base import LARGE, GlobalAverage, ModelSpec
from backdoorbench.models.recompute import norm_relu


class Block(nn.Module):
    """BN, ReLU, a convolution and what a kind of block has behind it, beside a shortcut, which runs last."""

    expansion: int
    bn1: nn.BatchNorm2d
    conv1: nn.Conv2d
    shortcut: nn.Sequential | None

    @abstractmethod
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is None:
            (out,) = norm_relu(self.bn1, x, self.conv1)
            return self.behind(out) + x
        out, side = norm_relu(self.bn1, x, lambda active: self.behind(self.conv1(active)), self.shortcut)
        return out + side

    @abstractmethod
    def behind(self, out: Tensor) -> Tensor:
        """What is added to the shortcut, of what the first convolution gives."""


class BasicBlock(Block):
    """BN, ReLU, 3x3 convolution, twice. Where the shape changes, the shortcut is a 1x1 convolution."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__(inputs, channels, stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = shortcut(inputs, channels, stride)

    def behind(self, out: Tensor) -> Tensor:
        (out,) = norm_relu(self.bn2, out, self.conv2)
        return out


class Bottleneck(Block):
    """BN, ReLU, convolution, three times: 1x1, 3x3 (which strides), 1x1 to four times the channels."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__(inputs, channels, stride)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.shortcut = shortcut(inputs, 4 * channels, stride)

    def behind(self, out: Tensor) -> Tensor:
        (out,) = norm_relu(self.bn2, out, self.conv2)
        (out,) = norm_relu(self.bn3, out, self.conv3)
        return out


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """A 1x1 convolution where a block changes the shape of its input, else None: the input itself is added."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))


LAYERS: dict[int, tuple[type[Block], tuple[int, int, int, int]]] = {  # blocks in each of the four stages
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class PreActResNet(nn.Sequential):
    """(N, 3, size, size) -> (N, classes): stem, four stages (the last three halve the side), mean, linear.

    Below 128 px the stem is a 3x3 convolution of stride 1; from 128 px on, a 7x7 one of stride 2 and a 3x3 max-pooling
    of stride 2. The last map has side/8 or side/32 pixels a side.
    """

    def __init__(self, depth: int, width: int, classes: int, size: int) -> None:
        block, counts = LAYERS[depth]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if size < LARGE:
            layers["conv1"] = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        else:
            layers["conv1"] = nn.Conv2d(3, width, 7, 2, 3, bias=False)
            layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate(counts):
            channels = width * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(block(inputs, channels, 2 if stage > 0 and index == 0 else 1))
                inputs = channels * block.expansion
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        layers["pool"] = GlobalAverage()
        layers["linear"] = nn.Linear(inputs, classes)
        super().__init__(layers)


@dataclass(frozen=True)
class PreActResNetSpec(ModelSpec):
    """depth  layers      width  channels of the first stage; each later stage doubles them"""

    depth: Literal[10, 18, 34, 50]
    width: int

    def net(self, classes: int, size: int) -> PreActResNet:
        self.check(size, least=8, width=self.width)
        return PreActResNet(self.depth, self.width, classes, size)
