"""ResNet: residual blocks that activate after the addition.

Paper     He et al., Deep Residual Learning for Image Recognition, arXiv 1512.03385v1
Follows   torchvision from 128 px on (in a bottleneck the 3x3 convolution strides, not the first 1x1); layer names are
          the same, so its weights fit. Below 128 px the usual CIFAR stem.
Init      convolutions Kaiming normal over the fan-out, batch norms 1 and 0, linear torch's default
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench.models.base import LARGE, GlobalAverage, ModelSpec


class BasicBlock(nn.Module):
    """3x3 convolution, BN, ReLU, 3x3 convolution, BN, add, ReLU."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample(inputs, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 convolution to four times the channels, each with BN; add, ReLU."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = downsample(inputs, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


def downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """1x1 convolution and BN where a block changes the shape of its input, else None: the input itself is added."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


Block = type[BasicBlock] | type[Bottleneck]
LAYERS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {  # blocks in each of the four stages
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Sequential):
    """(N, 3, size, size) -> (N, classes): stem, four stages (the last three halve the side), mean, linear.

    Below 128 px the stem is a 3x3 convolution of stride 1; from 128 px on, a 7x7 one of stride 2 and, after BN and
    ReLU, a 3x3 max-pooling of stride 2. The last map has side/8 or side/32 pixels a side.
    """

    def __init__(self, depth: int, width: int, classes: int, size: int) -> None:
        block, counts = LAYERS[depth]
        kernel, stride = (3, 1) if size < LARGE else (7, 2)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False)
        layers["bn1"] = nn.BatchNorm2d(width)
        layers["relu"] = nn.ReLU()
        if size >= LARGE:
            layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for stage, count in enumerate(counts):
            channels = width * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(block(inputs, channels, 2 if stage > 0 and index == 0 else 1))
                inputs = channels * block.expansion
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        layers["avgpool"] = GlobalAverage()
        layers["fc"] = nn.Linear(inputs, classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@dataclass(frozen=True)
class ResNetSpec(ModelSpec):
    """depth  layers      width  channels of the first stage; each later stage doubles them"""

    depth: Literal[18, 34, 50]
    width: int

    def net(self, classes: int, size: int) -> ResNet:
        self.check(size, least=8, width=self.width)
        return ResNet(self.depth, self.width, classes, size)
