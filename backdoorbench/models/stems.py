"""Stems that suit small images: a ResNet halves a large image twice before its first block, and a small one not at all."""

from typing import Any

from torch import nn


def shrink_stem(net: Any) -> None:
    """Turns the stem of timm's ResNet or ResNetV2 into a 3x3 convolution of stride 1 without pooling, in place.

    A stem of three 3x3 convolutions keeps them and its weights; only the stride of the first goes.
    """
    stem: Any = getattr(net, "stem", net)  # ResNetV2 keeps its stem in a module of that name
    name = "conv1" if hasattr(stem, "conv1") else "conv"
    first: Any = getattr(stem, name)
    if isinstance(first, nn.Sequential):  # the deep stem of a ResNet
        first = next(first.children())
    if first.kernel_size == (3, 3):
        first.stride = (1, 1)
    else:
        conv = type(first)(first.in_channels, first.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        setattr(stem, name, conv)
    for name in ("maxpool", "pad", "pool"):
        if hasattr(stem, name):
            setattr(stem, name, nn.Identity())
