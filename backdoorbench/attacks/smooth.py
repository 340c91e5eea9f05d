"""smooth: add a slowly varying pattern and stretch the image's contrast.

Idea     A pattern without high frequencies, which detectors of spectra look for, is added to the image; each image is then
         stretched to the whole range of grey levels. The labels become the target's.
Paper    arXiv 2104.03413v4 for the pattern; with the stretch it is an attack of arXiv 2210.06428's code, there from I-BAU's
Follows  amplitude 51 of 255 and blur of the LF attack's code; the stretch, over all pixels and channels of an image
Departs  1. the pattern is smoothed noise from the seed (theirs is optimised on a clean network, then frozen); 98 % of theirs
            and about 90 % of ours lies within two cycles
         2. an image of one value, which has no contrast, is clipped and not stretched
Cost     none beyond the training
"""

from dataclasses import dataclass
from typing import Any

from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.errors import check_range
from backdoorbench.streams import Stream
from backdoorbench.triggers.add import AddStretch, low_frequency_noise


@dataclass(frozen=True)
class Smooth(DataAttack):
    """The smooth attack. `amplitude` is the pattern's largest value, of the whole range."""

    amplitude: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.amplitude", self.amplitude, 0, 1)

    def trigger(self, task: Task, stream: Stream) -> AddStretch:
        return AddStretch(low_frequency_noise(task.train.size, self.amplitude, stream.generator()))

    def facts(self) -> dict[str, Any]:
        return {"pattern": "smoothed noise", "amplitude": self.amplitude}
