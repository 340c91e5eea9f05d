"""Variations: the trigger a little otherwise than it was trained, with no training at all.

Idea     An ASR of 0 that holds for one position of a patch, or one opacity of a picture, is no purification. Whoever attacks can
         move the patch.
Paper    none
Follows  -
Departs  1. what is varied is the difference that the trigger makes, so that it goes for any trigger; of warps and of triggers
            that read the image it is the difference of that image
Cost     a forward pass over `images` test images for each variation; JPEG is written and read on the CPU
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, product
from typing import ClassVar, Literal

import torch
from torch import Tensor

from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.errors import ConfigError, check_range, join_words
from backdoorbench.shapes import Images
from backdoorbench.tensors.vary import blurred, compressed, cropped, repeated, scaled, shifted
from backdoorbench.triggers.base import Trigger

BOUNDS = {  # of the values of a setting
    "opacities": (0, 10), "shifts": (1, 64), "scales": (0.1, 10), "repeats": (2, 16), "blurs": (0.1, 10), "qualities": (1, 100),
    "crops": (1, 64),
}  # fmt: skip
Change = Callable[[Tensor], Tensor]  # (N, 3, H, W) of differences or of images -> the same shape


@dataclass(frozen=True)
class Variations(AfterAttack):
    """ASR by variation; the largest is the one number. The first trial is the trigger as it was.

    opacities, shifts, scales and repeats vary the difference alone; blurs, qualities, crops and flips the whole image."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "trigger"})
    draws: ClassVar[bool] = False
    figure: ClassVar[str] = "varied"
    counts: ClassVar[Literal["only", "mean", "largest"]] = "largest"

    images: int
    opacities: tuple[float, ...]
    shifts: tuple[int, ...]
    scales: tuple[float, ...]
    repeats: tuple[int, ...]
    blurs: tuple[float, ...]
    qualities: tuple[int, ...]
    crops: tuple[int, ...]
    flip: bool

    def __post_init__(self) -> None:
        check_range("after.images", self.images, 1)
        for name, (least, most) in BOUNDS.items():
            for place, value in enumerate(getattr(self, name)):
                check_range(f"after.{name}[{place}]", value, least, most)
        if not any((*self.of_difference(), *self.of_image())):
            raise ConfigError(
                f"after={self.name} varies nothing: {join_words([*BOUNDS])} are empty, and flip is false; expected one variation "
                f"at least. Give one of them a value, such as after.shifts=[1]."
            )

    def most_images(self) -> int:
        return self.images

    def count(self) -> int:
        return 1 + sum(1 for _ in chain(self.of_difference(), self.of_image()))

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        model, trigger = scenario.model, scenario.trigger
        yield Trial("as it was", model, trigger)
        for label, change in self.of_difference():
            yield Trial(label, model, partial(differing, trigger, change))
        for label, change in self.of_image():
            yield Trial(label, model, partial(changed, trigger, change))

    def of_difference(self) -> Iterator[tuple[str, Change]]:
        """What is done to the difference that the trigger makes."""
        for opacity in self.opacities:
            yield f"opacity {opacity:g}", partial(torch.mul, other=opacity)
        for by, (down, right) in product(self.shifts, product((-1, 0, 1), repeat=2)):
            if down or right:
                yield f"shift {by * down:+d} {by * right:+d}", partial(shifted, down=by * down, right=by * right)
        for factor in self.scales:
            yield f"scale {factor:g}", partial(scaled, factor=factor)
        for count in self.repeats:
            yield f"repeat {count}x{count}", partial(repeated, count=count)

    def of_image(self) -> Iterator[tuple[str, Change]]:
        """What is done to the triggered image."""
        for sigma in self.blurs:
            yield f"blur {sigma:g}", partial(blurred, sigma=sigma)
        for quality in self.qualities:
            yield f"jpeg {quality}", partial(compressed, quality=quality)
        for margin in self.crops:
            yield f"crop {margin}", partial(cropped, margin=margin)
        if self.flip:
            yield "flip", partial(torch.flip, dims=(3,))


def differing(trigger: Trigger, change: Change, images: Images) -> Images:
    """The images with the trigger's difference, changed."""
    return (images + change(trigger(images) - images)).clamp(0, 1)


def changed(trigger: Trigger, change: Change, images: Images) -> Images:
    """The triggered images, changed."""
    return change(trigger(images)).clamp(0, 1)
