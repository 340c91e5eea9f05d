"""Stems that suit small images: a ResNet halves a large image twice before its first block, and a small one not at all."""

import dataclasses
from typing import Any

import torch
from torch import nn

from backdoorbench.errors import BdxError, ModelError
from backdoorbench.models import matching, reading
from backdoorbench.models.base import Classifier, ModelSpec

STEMS = ("as_is", "small")  # that a network may have, where it has a choice


def fitting(spec: ModelSpec, classes: int, size: int) -> str | None:
    """The stem that the weights of a network's file have, where they do not fit the one that `auto` takes; else None."""
    if spec.checkpoint is None or getattr(spec, "stem", None) != "auto":
        return None
    try:
        found = reading.read(spec.checkpoint)
    except ModelError:  # whoever loads it says why
        return None
    fitting_ones = (stem for stem in STEMS if _fits(with_stem(spec, stem), found, classes, size))
    return None if _fits(spec, found, classes, size) else next(fitting_ones, None)


def with_stem(spec: ModelSpec, stem: str) -> ModelSpec:
    """The same network with another stem, where it has a choice."""
    changes: dict[str, Any] = {"stem": stem}
    return dataclasses.replace(spec, **changes)


def _fits(spec: ModelSpec, found: reading.Found, classes: int, size: int) -> bool:
    try:
        with torch.device("meta"):
            net = spec.net(classes, size)
            spec.reads.narrow(net, spec.name)
        channels = spec.reads.channels
        model = Classifier(net, size, (0.0,) * channels, (1.0,) * channels, channels).to("meta")
        return bool(matching.find(model, found, spec.name))
    except BdxError:
        return False


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
