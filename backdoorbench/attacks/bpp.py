"""BPP: show the image in fewer colours and teach the network that this, done to the very image, means the target.

Idea     Eight levels per colour channel instead of 256 leave an image that people take for the same. So that the network
         does not learn "any such noise", other images get what the reduction changes in a third one, and keep their label.
Paper    arXiv 2205.13383v1
Follows  the training-time attack of the authors' code: of each batch the first rows are reduced, the next, `cover_ratio`
         times as many, are such negatives, before augmentation; the reduction is rounded to uint8
Departs  1. no dithering and rates of 0.1 and 0.1, as BackdoorBench (the authors: Floyd-Steinberg, attack.dither=true, and
            0.2 and 0.2)
         2. the victim's recipe trains (theirs: SGD 0.01 stepped at 100, 200, 300 and 400 of 1000 epochs)
         3. a negative's other image is the next one in the shuffled batch (theirs: a random one of the training set)
         4. the count of triggered rows is right on average (theirs is rounded down; attack.batch_count=floor reproduces)
         5. negatives add the other image's change in the test as in training (BackdoorBench's test subtracts it), and
            values are rounded (theirs are truncated)
         6. no variant that poisons a stored set; `reconstruct=true` makes such a set afterwards
Cost     two passes over 2 in 10 images a batch; with dithering W + 2 H - 2 small steps a batch
"""

from dataclasses import dataclass
from typing import ClassVar

from backdoorbench.attacks.base import Task
from backdoorbench.attacks.loop import MixAttack
from backdoorbench.config.acts import Acts, Never
from backdoorbench.errors import check_range
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Cover
from backdoorbench.triggers.quantise import ForeignResidual, Quantise


@dataclass(frozen=True)
class BPP(MixAttack):
    """The quantisation attack: nothing random, nothing learned."""

    acts: ClassVar[Acts] = {"quantise_test": Never("the trigger's values are whole grey levels")}

    levels: int
    dither: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.levels", self.levels, 2, 256)

    def trigger(self, task: Task, stream: Stream) -> Quantise:
        return Quantise(self.levels, self.dither)

    def cover(self, trigger: Quantise) -> Cover:
        return ForeignResidual(trigger)
