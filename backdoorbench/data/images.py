"""A data set as two tensors on the device: editing it is an index and an assignment."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from backdoorbench.shapes import Bytes, Images, Labels, Mask, Rows, check_images, to_float
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment

Change: TypeAlias = Callable[[Images, Labels, Stream], tuple[Images, Labels]]  # of a batch, its draws from the stream


@dataclass(frozen=True)
class ImageSet:
    """Images with their labels.

    images   (N, 3, H, W) uint8; may lie in host memory (memory-mapped, pinned) when the device is too small for them
    labels   (N,) int64; their device is the one that batches arrive on
    classes  K class names, in label order
    dataset  the data set that they are of, by its name; empty where nobody knows
    """

    images: Bytes
    labels: Labels
    classes: tuple[str, ...]
    dataset: str = ""

    def __post_init__(self) -> None:
        check_images(self.images)
        if self.images.dtype != torch.uint8:
            raise ValueError(f"an ImageSet holds uint8 images, not {self.images.dtype}")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels are {tuple(self.labels.shape)} {self.labels.dtype}; expected ({len(self.images)},) int64"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Where batches arrive."""
        return self.labels.device

    @property
    def size(self) -> int:
        """The side of an image in pixels."""
        return self.images.shape[-1]

    def subset(self, rows: Rows) -> "ImageSet":
        """The images at `rows` (M,), in that order, copied."""
        images = self.images.index_select(0, rows.to(self.images.device))
        return replace(self, images=images, labels=self.labels.index_select(0, rows.to(self.device)))

    def counts(self) -> Tensor:
        """(K,) int64: images a class."""
        return torch.bincount(self.labels, minlength=len(self.classes))

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set on `device`; where less than two thirds of a GPU's free memory would hold the images, they
        stay in (pinned) host memory and travel a batch at a time."""
        device = torch.device(device)
        labels = self.labels.to(device)
        if device.type == "cuda" and self.images.device.type == "cpu":
            free, _ = torch.cuda.mem_get_info(device)
            if self.images.nbytes * 3 > free * 2:
                return replace(self, images=self.images.pin_memory(), labels=labels)
        return replace(self, images=self.images.to(device), labels=labels)

    def shuffled(self, stream: Stream) -> Rows:
        """The rows of a shuffled pass, as it comes to them."""
        return stream.permutation(len(self))

    def batches(
        self,
        size: int,
        order: Stream | None = None,
        augment: Augment | None = None,
        change: Change | None = None,
        mirrored: Mask | None = None,
    ) -> Iterator[tuple[Images, Labels]]:
        """Batches of `size` as (float32 images in [0, 1], labels) on `device`: one pass over the set.

        Shuffled where `order` is given; augmented, with draws from the same stream, where `augment` is, and `change`d
        before that. A last batch of a single image joins the one before it: batch norm cannot normalise one image's 1x1
        map.

        mirrored  (N,) bool: the images of the set that the augmentation flips in this pass, in place of coins
        """
        count = len(self)
        rows = self.shuffled(order.child("order")) if order else None
        place = self.images.device if change is None else self.device  # where a batch is augmented
        draws = None
        if order is None and (augment is not None or change is not None):
            raise ValueError("augmentation and change draw random numbers: give batches() an order stream")
        if augment is not None and order is not None:
            draws = augment.draw(count, self.size, order.child("augment"))
            draws = (draws if mirrored is None else replace(draws, mirrored=mirrored[rows])).to(place)
        here = rows.to(self.images.device, non_blocking=True) if rows is not None else None
        there = rows.to(self.device, non_blocking=True) if rows is not None else None
        for number, (start, stop) in enumerate(spans(count, size)):
            images = self.images[start:stop] if here is None else self.images.index_select(0, here[start:stop])
            labels = self.labels[start:stop] if there is None else self.labels.index_select(0, there[start:stop])
            if change is not None and order is not None:
                images = to_float(images.to(place, non_blocking=True))
                images, labels = change(images, labels, order.child(f"change{number}"))
            if augment is not None and draws is not None:
                images = augment.apply(images, draws[start:stop])
            elif change is None:
                images = to_float(images)
            yield images.to(self.device, non_blocking=True), labels


@dataclass(frozen=True)
class Redrawn(ImageSet):
    """Images of which a shuffled pass draws `count` with replacement, whatever their number."""

    count: int = field(kw_only=True)

    def __len__(self) -> int:
        return self.count

    def shuffled(self, stream: Stream) -> Rows:
        return torch.randint(len(self.images), (self.count,), generator=stream.generator())

    @classmethod
    def of(cls, images: ImageSet, count: int) -> "Redrawn":
        """`count` draws a pass from the images of another set."""
        return cls(images.images, images.labels, images.classes, images.dataset, count=count)


def spans(count: int, size: int) -> list[tuple[int, int]]:
    """The (start, stop) of each batch; a last batch of one is joined to the one before.

    >>> spans(9, 4)
    [(0, 4), (4, 9)]
    """
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))
