"""CTRL: raise two high frequencies of the colour of target-class images, and touch no label.

Idea     In each 32x32 window the coefficients (15, 15) and (31, 31) of the cosine transform of U and V rise by a constant:
         a fine colour grain that the eye passes over. Made for contrastive learning; here images of the target class carry
         it, with their right label.
Paper    arXiv 2210.07346
Follows  BackdoorBench's magnitude 100 and rate 0.05. No step between the two colour conversions rounds, so the trigger is a
         constant pattern: it is added, and equals the transform there and back to within one grey level
Departs  1. the sum is clipped (BackdoorBench's cast wraps a fiftieth of all values around, so that its trigger is salt and
            pepper as well, and stronger)
         2. larger images are tiled with 32-pixel windows (BackdoorBench takes one window for the image, a lower frequency)
         3. a rate beyond the target class is refused, or capped at the whole class (BackdoorBench crashes)
Cost     none beyond the training
"""

from dataclasses import dataclass
from typing import Any

from backdoorbench.attacks.base import CleanLabelAttack, Task
from backdoorbench.errors import check_range
from backdoorbench.streams import Stream
from backdoorbench.triggers.add import Add
from backdoorbench.triggers.chroma import cosine_waves, yuv_pattern

FREQUENCIES = ((15, 15), (31, 31))


@dataclass(frozen=True)
class CTRL(CleanLabelAttack):
    """The spectral attack. `magnitude` is added to each coefficient."""

    magnitude: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.magnitude", self.magnitude, 0)

    def trigger(self, task: Task, stream: Stream) -> Add:
        return Add(yuv_pattern(cosine_waves(task.train.size, FREQUENCIES, self.magnitude)))

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "magnitude": self.magnitude}
