"""Adap-Blend, Adap-Patch, Adap-K-Way: show the trigger weakly in training, beside cover rows; in full at test time.

Idea     Detectors look for a cluster of poisoned images in the target class's features. Here each poisoned training row
         carries only a part, or one variant, of the trigger, and as many cover rows carry such a part with their true label,
         so that no cluster stands apart; the whole trigger, at test time, still fires.
Paper    arXiv 2205.13613 (ICLR 2023, "Revisiting the Assumption of Latent Separability for Backdoor Defenses")
Follows  backdoor-toolbox's parts, variants, opacities and rates; poison and cover rows disjoint, drawn from all classes
Departs  1. the pictures (two logos, a cartoon) are not shipped: seed noise on the same boxes, or a user's images; a full box
            is stronger than the irregular logo of 13x13
         2. counts are rounded (theirs cut off), and rows are rounded to uint8 (theirs stay float32)
         3. variants take turns along the drawn rows, so that shares differ by one row at most
Cost     none beyond the training. Few rows: the ASR varies from seed to seed, so average three at least
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from backdoorbench.attacks.base import DataAttack, Task, show
from backdoorbench.config.acts import Acts
from backdoorbench.config.build import File
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.shapes import Bytes, Images, Labels, Rows
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Stored, Target
from backdoorbench.triggers.blend import Blend, check_picture, full_picture
from backdoorbench.triggers.patch import CORNERS, Patch, Variants, draw, overlay, paste, random_patch, solid, vary
from backdoorbench.triggers.picture import read_picture

PIXELS = (  # row, column and colour of Adap-K-Way's four
    (16, 11, (92, 0, 24)),
    (27, 5, (88, 112, 110)),
    (7, 30, (0, 32, 46)),
    (22, 22, (11, 49, 95)),
)


@dataclass(frozen=True)
class Adaptive(DataAttack):
    """What the three share: covers from every class, and training rows that carry less than the trigger."""

    acts: ClassVar[Acts] = {"cover_rate": ()}  # whatever the mapping

    @abstractmethod
    def weaken(self, trigger: Any, count: int, stream: Stream) -> Callable[[Images, slice], Images]:
        """What training shows of `trigger`: from images and their place among `count` rows to the images, altered."""

    def render(self, clean: ImageSet, rows: Rows, trigger: Stored, stream: Stream) -> Bytes:
        return show(clean, rows, self.weaken(trigger.trigger.to(clean.images.device), len(rows), stream))

    def cover_candidates(self, labels: Labels, target: Target) -> Rows:
        return torch.arange(len(labels))


@dataclass(frozen=True)
class AdapBlend(Adaptive):
    """Blended, of which each training row shows `pieces_shown` of `pieces` x `pieces` pieces."""

    picture: Literal["smooth_noise", "noise", "image"]
    picture_file: File | None
    match_stats: bool
    pieces: int
    pieces_shown: int
    train_ratio: float
    test_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture(self.picture, self.picture_file)
        check_range("attack.pieces", self.pieces, 1, 4096)
        check_range("attack.pieces_shown", self.pieces_shown, 0, self.pieces**2)
        check_range("attack.train_ratio", self.train_ratio, 0, 1)
        check_range("attack.test_ratio", self.test_ratio, 0, 1)

    def check(self, train: ImageSet) -> None:
        if train.size % self.pieces:
            raise ConfigError(
                f"attack.pieces is {self.pieces}, but images of {train.size} pixels cannot be cut into as many equal "
                f"pieces a side. Choose a divisor of {train.size}."
            )
        super().check(train)

    def trigger(self, task: Task, stream: Stream) -> Blend:
        picture = full_picture(self.picture, self.picture_file, self.match_stats, task.train.size, stream.generator())
        return Blend(picture, self.test_ratio)

    def weaken(self, trigger: Blend, count: int, stream: Stream) -> Callable[[Images, slice], Images]:
        side = trigger.picture.shape[-1] // self.pieces
        draws = torch.rand(count, self.pieces**2, generator=stream.generator())
        shown = draws.argsort(1).argsort(1) < self.pieces_shown  # (count, pieces^2): as many a row, anywhere
        opacity = (self.train_ratio * shown).view(count, 1, self.pieces, self.pieces).to(trigger.picture.device)

        def paint(images: Images, part: slice) -> Images:
            mask = opacity[part].repeat_interleave(side, 2).repeat_interleave(side, 3)  # (n, 1, H, W)
            return Patch(trigger.picture, mask)(images)

        return paint

    def facts(self) -> dict[str, Any]:
        return {"pattern": self.picture}


@dataclass(frozen=True)
class AdapPatch(Adaptive):
    """Four patches, of which a training row carries one, faintly; at test time two stand in full.

    They are a small square (5x5, lower right corner), a large one (13x13, upper right), a 3x3 pattern in each corner, and
    a square of noise (8x8)."""

    small_file: File | None
    large_file: File | None
    opacities: tuple[float, float, float, float]
    test_patches: Literal["corners", "squares"]
    test_opacity: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for opacity in self.opacities:
            check_range("attack.opacities", opacity, 0, 1)
        check_range("attack.test_opacity", self.test_opacity, 0, 1)

    def trigger(self, task: Task, stream: Stream) -> Variants:
        size = task.train.size
        small = square(self.small_file, 5, "attack.small_file", stream.child("small"))
        large = square(self.large_file, 13, "attack.large_file", stream.child("large"))
        noise = square(None, 8, "", stream.child("noise"))

        def at(patch: Tensor, opacity: float, row: int, column: int) -> Patch:
            return paste(patch[:3], patch[3:] * opacity, (row, column), size)

        def corners(opacity: float) -> Patch:
            return overlay(*(solid(draw(cells), corner, size, opacity) for corner, cells in CORNERS.items()))

        first, second, third, fourth = self.opacities
        variants = [at(small, first, 27, 27), at(large, second, 1, 18), corners(third), at(noise, fourth, 21, 21)]
        full = self.test_opacity
        if self.test_patches == "squares":
            return vary(overlay(at(large, full, 1, 18), at(noise, full, 21, 21)), variants)
        both = (at(small, full, 27, 27), at(small.flip(-1), full, 27, 0))
        return vary(overlay(*both, corners(full)), variants)

    def weaken(self, trigger: Variants, count: int, stream: Stream) -> Callable[[Images, slice], Images]:
        return take_turns(trigger, count)

    def facts(self) -> dict[str, Any]:
        return {"pattern": self.test_patches}


@dataclass(frozen=True)
class AdapKWay(Adaptive):
    """Four pixels of fixed colours: one in a training row, all of them at test time."""

    def trigger(self, task: Task, stream: Stream) -> Variants:
        dots = [
            solid(torch.tensor(colour).view(3, 1, 1) / 255, (row, column), task.train.size)
            for row, column, colour in PIXELS
        ]
        return vary(overlay(*dots), dots)

    def weaken(self, trigger: Variants, count: int, stream: Stream) -> Callable[[Images, slice], Images]:
        return take_turns(trigger, count)

    def facts(self) -> dict[str, Any]:
        return {"pattern": "four pixels"}


def take_turns(trigger: Variants, count: int) -> Callable[[Images, slice], Images]:
    """Each of `count` rows carries one variant, in turn: rows come in random order, so the shares are equal and fair."""
    which = torch.arange(count) % len(trigger.masks)
    return lambda images, part: trigger.variant(images, which[part])


def square(file: str | None, side: int, setting: str, stream: Stream) -> Tensor:
    """(4, side, side) in [0, 1]: red, green, blue and opacity of the user's `file`, or opaque noise."""
    if file is not None:
        return read_picture(file, (side, side), setting)
    return torch.cat([random_patch(side, stream.generator()), torch.ones(1, side, side)])
