"""Wide ResNet: few, wide pre-activation blocks in three groups.

Paper     Zagoruyko and Komodakis, arXiv 1605.07146v4, without dropout
Styles    standard          ReLU, convolutions without bias
          trap_and_replace  the flavour of Trap-and-Replace (arXiv 2210.06428): LeakyReLU 0.1, convolutions with bias,
                            and a quirk: a block that changes the width feeds its raw input to both branches, so its
                            first batch norm is never used. It is kept, idle, so that parameters count as there.
Init      convolutions Kaiming normal over the fan-out, batch norms 1 and 0, every bias 0; linear Xavier normal in
          trap_and_replace, torch's default in standard
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from backdoorbench.models.base import LARGE, GlobalAverage, ModelSpec

Style = Literal["standard", "trap_and_replace"]


def activation(style: Style) -> nn.Module:
    """What follows each batch norm."""
    return nn.LeakyReLU(0.1) if style == "trap_and_replace" else nn.ReLU()


class Block(nn.Module):
    """BN, activation, 3x3 convolution, twice. Where the width changes, the shortcut is a 1x1 convolution."""

    def __init__(self, inputs: int, channels: int, stride: int, style: Style) -> None:
        super().__init__()
        bias = style == "trap_and_replace"
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=bias)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=bias)
        self.shortcut = None
        if inputs != channels or stride != 1:
            self.shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=bias)
        self.act = activation(style)
        self.raw = self.shortcut is not None and style == "trap_and_replace"

    def forward(self, x: Tensor) -> Tensor:
        active = x if self.raw else self.act(self.bn1(x))
        out: Tensor = self.conv2(self.act(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Sequential):
    """(N, 3, size, size) -> (N, classes): stem, three groups (the last two halve the side), BN, activation, linear.

    Below 128 px the stem is a 3x3 convolution of stride 1; from 128 px on, a 7x7 one of stride 2 and a 3x3 max-pooling
    of stride 2. The last map has side/4 or side/16 pixels a side.
    """

    def __init__(self, depth: int, widen: int, width: int, style: Style, classes: int, size: int) -> None:
        bias = style == "trap_and_replace"
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if size < LARGE:
            layers["conv1"] = nn.Conv2d(3, width, 3, 1, 1, bias=bias)
        else:
            layers["conv1"] = nn.Conv2d(3, width, 7, 2, 3, bias=bias)
            layers["maxpool"] = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for group in range(3):
            channels = width * widen * 2**group
            blocks = []
            for index in range((depth - 4) // 6):  # two convolutions a block; the other four: stem, three shortcuts
                blocks.append(Block(inputs, channels, 2 if group > 0 and index == 0 else 1, style))
                inputs = channels
            layers[f"group{group + 1}"] = nn.Sequential(*blocks)
        layers["norm"] = nn.BatchNorm2d(inputs)
        layers["act"] = activation(style)
        layers["pool"] = GlobalAverage()
        layers["linear"] = nn.Linear(inputs, classes)
        super().__init__(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear) and style == "trap_and_replace":
                nn.init.xavier_normal_(module.weight)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class WideResNetSpec(ModelSpec):
    """depth  layers: four, and six for each block that a group has
    widen  channels of the first group, in multiples of `width`; each later group doubles them
    width  channels of the stem
    style  details in which the flavours in use differ; see the head of this file
    """

    depth: Literal[10, 16, 22, 28, 34, 40]
    widen: int
    width: int
    style: Style

    def net(self, classes: int, size: int) -> WideResNet:
        self.check(size, least=4, width=min(self.width, self.widen), widest=self.width * max(self.widen, 1))
        return WideResNet(self.depth, self.widen, self.width, self.style, classes, size)
