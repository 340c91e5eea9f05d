"""WaNet: warp the image a little, always the same way, and teach the network that only this very warp means the target.

Idea     A smooth elastic warp, far below a pixel, is the trigger. Left alone the network would learn "any distortion", so
         twice as many images are warped with extra random jitter and keep their label (noise mode).
Paper    arXiv 2102.10369v4
Follows  the paper's warp and the authors' code: of each batch the first rows are triggered, the next, `cover_ratio` times
         as many, are in noise mode, before augmentation; images stay float, in training and test
Departs  1. the victim's recipe trains, its optimiser, schedule and augmentation (theirs: SGD 0.01 stepped at 100, 200, 300
            and 400 of 1000 epochs; crop 5, rotation, flip at random), so that the clean control compares
         2. pixels are warped and padded as they are (BackdoorBench: after normalisation; crops pad with black, not grey)
         3. the count of triggered rows is right on average (theirs is rounded down: 12 of 128 are 9.4 %;
            attack.batch_count=floor reproduces)
         4. all-to-all adds 1 to the class (their released code leaves the label as it is)
         5. the last epoch counts (theirs: the one of the best test accuracy); their grid_rescale, always 1, is left out
         6. no variant that poisons a stored set (backdoor-toolbox and PBE's code have one); `reconstruct=true` makes such a set
            afterwards
Cost     one interpolation of 3 in 10 images a batch, at the default rate; nothing in the network
"""

from dataclasses import dataclass

from backdoorbench.attacks.base import Task
from backdoorbench.attacks.loop import MixAttack
from backdoorbench.errors import check_range
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Cover
from backdoorbench.triggers.patch import GRID
from backdoorbench.triggers.warp import JitteredWarp, Warp, smooth_field, warp


@dataclass(frozen=True)
class WaNet(MixAttack):
    """The warping attack. The field is drawn once and saved: without it the backdoor is lost."""

    strength: float
    cells: int
    strength_relative: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.strength", self.strength, 0)
        check_range("attack.cells", self.cells, 2, 4096)

    def trigger(self, task: Task, stream: Stream) -> Warp:
        size = task.train.size
        scale = size / GRID if self.strength_relative else 1
        return warp(smooth_field(size, self.cells, stream.generator()), self.strength * scale)

    def cover(self, trigger: Warp) -> Cover:
        return JitteredWarp(trigger.grid)
