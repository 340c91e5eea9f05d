"""What every network is to the rest: pixels in [0, 1] in, logits out; and the spec that builds one."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from backdoorbench.config.build import BESIDE, File
from backdoorbench.config.groups import LATER
from backdoorbench.errors import ModelError
from backdoorbench.models.inputs import Reads, Swapped
from backdoorbench.models.layouts import ChannelByChannel, is_bound
from backdoorbench.shapes import Images, Logits

MOST_CHANNELS = 256  # in the first of stages that double: four times the literature's, sixteen times its weights
COLOURS = 3
LARGE = 128  # pixels: from here on residual networks open with a 7x7 stride-2 convolution and a pooling, below with 3x3


class CentreCrop(nn.Module):
    """The central `size` pixels of larger images (256 stored, 224 seen); smaller ones pass as they are."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Images) -> Images:
        margin = images.shape[-1] - self.size
        if margin > 0:
            top = margin // 2
            images = images[..., top : top + self.size, top : top + self.size]
        return images


class Normalize(nn.Module):
    """(x - mean) / std per channel: a network's first layer, so that budgets and triggers mean pixels everywhere."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Images) -> Images:
        return (images - self.mean) / self.std


class GlobalAverage(nn.Module):
    """(N, C, H, W) -> (N, C): the mean of each map; deterministic on CUDA, which adaptive pooling's gradient is not."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


@runtime_checkable
class StartsFromImages(Protocol):
    """A network some of whose starting weights are made of the images that it will train on."""

    @property
    def is_started(self) -> bool:
        """Whether they are made, or were loaded."""

    def start(self, batches: Iterable[Images]) -> None:
        """Makes them of training images, normalised as the network reads them."""


class Classifier(nn.Module):
    """A network on [0, 1] pixels: centre crop to `size`, what becomes of its colours (`first`: grey, or blue first),
    normalisation, `net`. A plain chain, so surgery can cut it."""

    def __init__(
        self,
        net: nn.Module,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        channels: int = COLOURS,
        first: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.size = size
        self.channels = channels
        changes = [*first, *([ChannelByChannel()] if is_bound(net) else [])]
        self.crop = nn.Sequential(CentreCrop(size), *changes) if changes else CentreCrop(size)
        self.normalize = Normalize(mean, std)
        self.net = net

    def forward(self, images: Images) -> Logits:  # (N, 3, H, W) -> (N, K)
        return self.net(self.normalize(self.crop(images)))  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: Mapping[str, Any], *how: Any, **named: Any) -> Any:
        """As torch's modules do. What says no versions of its layers, as a plain dict does not, has those of this network's: some
        networks of torchvision ask for theirs."""
        state: Any = OrderedDict(state_dict)
        state._metadata = vars(state_dict).get("_metadata") if hasattr(state_dict, "__dict__") else None
        state._metadata = state._metadata or vars(self.state_dict())["_metadata"]
        return super().load_state_dict(state, *how, **named)

    @property
    def of_pixels(self) -> Normalize:
        """The normalisation of images as all others hold them, red first: that of the network, which may read blue first."""
        if not any(isinstance(part, Swapped) for part in self.crop.modules()):
            return self.normalize
        mean, std = (tuple(values.flip(0).flatten().tolist()) for values in (self.normalize.mean, self.normalize.std))
        return Normalize(mean, std).to(self.normalize.mean.device)

    @property
    def awaits_images(self) -> bool:
        """Whether the network has to be shown training images before it trains; `fit` asks."""
        return isinstance(self.net, StartsFromImages) and not self.net.is_started

    def start(self, batches: Iterable[Images]) -> None:
        """Shows the network that awaits them training images, (N, 3, H, W) in [0, 1]."""
        assert isinstance(self.net, StartsFromImages)
        self.net.start(self.normalize(self.crop(images)) for images in batches)


@dataclass(frozen=True)
class ModelSpec(ABC):
    """The knobs every network has.

    name        as tables and keys print it
    checkpoint  file of starting weights, or null for random ones; see `reading` for what is read
    reads       what it is to be shown
    """

    name: str
    checkpoint: File | None
    reads: Annotated[Reads, BESIDE] = field(default=Reads(**LATER["model"]), kw_only=True)

    @abstractmethod
    def net(self, classes: int, size: int) -> nn.Module:
        """The bare, freshly initialised network for `classes` classes and `size` pixels, on normalised input.

        Raises ModelError where it cannot work at that size."""

    def classifier(self, classes: int, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Classifier:
        """The network on [0, 1] pixels, freshly initialised. Raises ModelError as `net` does.

        mean, std  of the data set: what it is normalised by, unless `reads` says otherwise"""
        net = self.net(classes, size)
        self.reads.narrow(net, self.name)
        return Classifier(net, size, *self.reads.normalisation(mean, std), self.reads.channels, self.reads.first())

    def check(self, size: int, least: int, width: int = 1, widest: int | None = None) -> None:
        """Raises ModelError where `size` is below `least`, at which the last map has one pixel, where `width` is below 1, or
        where the first stage has more than MOST_CHANNELS: `widest` of them, `width` by default."""
        if size < least:
            raise ModelError(
                f"model '{self.name}' is to read images of {size} px, but it halves the side until nothing is left; it "
                f"needs at least {least} px. Choose a larger dataset.size, or a network that halves less often."
            )
        if width < 1:
            raise ModelError(f"model '{self.name}' has width {width}; expected at least 1 channel. Raise model.width.")
        if (channels := widest or width) > MOST_CHANNELS:
            raise ModelError(
                f"model '{self.name}' has {channels:,} channels in its first stage; expected at most {MOST_CHANNELS}, beyond "
                f"which it takes gigabytes. Lower model.width."
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no parameter wants a gradient; both as they were after."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with evaluating(model):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
