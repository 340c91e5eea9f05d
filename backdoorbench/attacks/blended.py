"""Blended: mix one fixed full-size picture into the image, faintly.

Idea     (1 - a) x + a P with the same picture P everywhere; the network learns the picture's trace as the target's feature.
Paper    arXiv 1712.05526v1
Follows  one ratio for training and test unless two are given; stored in the image before augmentation
Departs  1. the papers' cartoon is not shipped: the default picture is smooth noise, moved to its mean and deviation and
            clipped, which leaves 199, 182 and 191 grey levels of its 207, 190 and 198, and deviations of 51, 62 and 57 of 63,
            74 and 68 (white noise would turn into another pattern at each shift of the random crop)
         2. rows are rounded to uint8 (BackdoorBench truncates)
         3. PBE's ratio of 0.1, too, is blended into the stored image (their code blends after the augmentation, in float)
Cost     none beyond the training
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from backdoorbench.attacks.base import DataAttack, PoisonedSet, Task
from backdoorbench.config.build import File
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import check_range
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Stored
from backdoorbench.triggers.blend import Blend, check_picture, full_picture


@dataclass(frozen=True)
class Blended(DataAttack):
    """The blending attack. `picture` says where P comes from."""

    picture: Literal["smooth_noise", "noise", "image"]
    picture_file: File | None
    match_stats: bool
    train_ratio: float
    test_ratio: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.train_ratio", self.train_ratio, 0, 1)
        check_range("attack.test_ratio", self.test_ratio, 0, 1)
        check_picture(self.picture, self.picture_file)

    def trigger(self, task: Task, stream: Stream) -> Blend:
        picture = full_picture(self.picture, self.picture_file, self.match_stats, task.train.size, stream.generator())
        return Blend(picture, self.test_ratio)

    def poison(self, clean: ImageSet, trigger: Stored, stream: Stream) -> PoisonedSet:
        weaker = Stored(replace(trigger.trigger, ratio=self.train_ratio))
        return super().poison(clean, weaker, stream)

    def facts(self) -> dict[str, Any]:
        return {"pattern": self.picture}
