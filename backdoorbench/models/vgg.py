"""VGG with batch norm: 3x3 convolutions and five 2x2 poolings, then one linear layer.

Paper     Simonyan and Zisserman, arXiv 1409.1556v6; batch norm after each convolution as in torchvision
Departs   the paper's three linear layers on a 7x7 map (134 million parameters) are one linear layer on the mean of the
          last map (15 million), as on CIFAR; convolution names are torchvision's, so its `features` fit
Init      convolutions Kaiming normal over the fan-out and bias 0, batch norms 1 and 0, linear N(0, 0.01) and bias 0
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from backdoorbench.models.base import GlobalAverage, ModelSpec

LAYERS = {  # convolutions in each of the five stages; with three linear layers they gave the nets their numbers
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Sequential):
    """(N, 3, size, size) -> (N, classes): five stages, each ending in a pooling that halves the side; mean, linear.

    The same layers at every size, so at 32 px the mean is over one pixel and at 224 px over 7x7.
    """

    def __init__(self, depth: int, width: int, classes: int) -> None:
        layers: list[nn.Module] = []
        inputs = 3
        for stage, count in enumerate(LAYERS[depth]):
            channels = width * 2 ** min(stage, 3)  # 64, 128, 256, 512, 512
            for _ in range(count):
                layers += [nn.Conv2d(inputs, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
                inputs = channels
            layers.append(nn.MaxPool2d(2))
        features, linear = nn.Sequential(*layers), nn.Linear(inputs, classes)
        super().__init__(OrderedDict(features=features, pool=GlobalAverage(), classifier=linear))
        for module in features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(linear.weight, 0, 0.01)
        nn.init.zeros_(linear.bias)


@dataclass(frozen=True)
class VGGSpec(ModelSpec):
    """depth  layers, as the paper counts      width  channels of the first stage; they double up to eight times that"""

    depth: Literal[11, 13, 16, 19]
    width: int

    def net(self, classes: int, size: int) -> VGG:
        self.check(size, least=32, width=self.width)
        return VGG(self.depth, self.width, classes)
