"""Airbench: a small network that learns CIFAR-10 in few epochs. A fixed whitening convolution, then three groups of two 3x3
convolutions.

Paper     Jordan, 94 % on CIFAR-10 in 3.29 Seconds on a Single GPU, arXiv 2404.00498v2
Follows   the authors' airbench94: 2x2 whitening of 24 maps that does not train but for its bias; groups of 64, 256 and 256
          channels, each convolution, 2x2 max pooling, batch norm, GELU, convolution, batch norm, GELU; batch norms without
          scale, their statistics moving by 0.4 a batch; 3x3 max pooling; a linear layer without bias
Departs   1. features are divided by 9 before the linear layer, theirs are the logits after it: the same function and the same
             gradients, and the linear layer returns the logits
          2. whitening is of 5,000 images spread over the training set, poisoned rows among them; theirs, its first 5,000
          3. batch norm's eps is 1e-5, theirs 1e-12, by which a map that is pruned to a constant would be scaled a million times
          4. any side from 25 px on; of larger images than their 32 px the last pooling leaves several pixels, whose mean is read
Init      3x3 convolutions torch's default, but the first filters pass one input map each (Dirac); linear torch's default;
          whitening 0 until training images are shown, `start`
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.models.base import GlobalAverage, ModelSpec
from backdoorbench.shapes import Images

PATCH = 2  # side of the patches that are whitened
FLOOR = 5e-4  # added to the variance of each direction, so that noise is not blown up
LOGIT_SCALE = 1 / 9


class Scale(nn.Module):
    """x -> factor * x."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


class Airbench(nn.Sequential):
    """(N, 3, size, size) -> (N, classes): whitening, three groups that halve the side, 3x3 pooling, mean, scale, linear.

    At 32 px the maps have 31, 15, 7, 3 and 1 pixels a side. `width` is the first group's channels; the others have four times
    as many.
    """

    def __init__(self, width: int, classes: int) -> None:
        directions = 3 * PATCH**2
        whiten = nn.Conv2d(3, 2 * directions, PATCH)
        nn.init.zeros_(whiten.weight.requires_grad_(False))
        nn.init.zeros_(whiten.bias)  # type: ignore[arg-type]
        super().__init__(
            OrderedDict(
                whiten=whiten,
                act=nn.GELU(),
                group1=group(2 * directions, width),
                group2=group(width, 4 * width),
                group3=group(4 * width, 4 * width),
                maxpool=nn.MaxPool2d(3),
                pool=GlobalAverage(),
                scale=Scale(LOGIT_SCALE),
                linear=nn.Linear(4 * width, classes, bias=False),
            )
        )

    @property
    def is_started(self) -> bool:
        """Whether the whitening convolution is more than the zeros it was made of."""
        return bool(self._whitening.any())

    def start(self, batches: Iterable[Images]) -> None:
        """Sets the whitening convolution by normalised training images: filters are the principal directions of their
        patches, scaled to unit variance, the widest first, and then their negatives, since GELU keeps one side."""
        with torch.no_grad():
            values, vectors = torch.linalg.eigh(patch_moments(batches))  # ascending; a column each
            filters = (vectors / (values + FLOOR).sqrt()).T.flip(0).unflatten(1, (3, PATCH, PATCH))
            self._whitening.copy_(torch.cat([filters, -filters]))

    @property
    def _whitening(self) -> Tensor:
        return self.get_submodule("whiten").get_parameter("weight")


def group(inputs: int, channels: int) -> nn.Sequential:
    """Convolution, pooling, batch norm, GELU; convolution, batch norm, GELU."""
    return nn.Sequential(
        OrderedDict(
            conv1=convolution(inputs, channels),
            pool=nn.MaxPool2d(2),
            norm1=norm(channels),
            act1=nn.GELU(),
            conv2=convolution(channels, channels),
            norm2=norm(channels),
            act2=nn.GELU(),
        )
    )


def convolution(inputs: int, channels: int) -> nn.Conv2d:
    """3x3 without bias; its first filters start as the identity."""
    layer = nn.Conv2d(inputs, channels, 3, 1, 1, bias=False)
    nn.init.dirac_(layer.weight[:inputs])
    return layer


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm whose scale stays 1."""
    layer = nn.BatchNorm2d(channels, momentum=0.4)
    layer.weight.requires_grad_(False)
    return layer


def patch_moments(batches: Iterable[Images]) -> Tensor:
    """(12, 12) float64 on the CPU: the mean of p p^T over all patches p, (3, 2, 2) flattened, of all images; no mean is
    subtracted."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for images in batches:
        patches = F.unfold(images, PATCH).transpose(0, 1).flatten(1)  # (12, patches)
        total = total + (patches @ patches.T).cpu().double()
        count += patches.shape[1]
    return total / count


@dataclass(frozen=True)
class AirbenchSpec(ModelSpec):
    """width  channels of the first group; the other two have four times as many"""

    width: int

    def net(self, classes: int, size: int) -> Airbench:
        self.check(size, least=25, width=self.width)
        return Airbench(self.width, classes)
