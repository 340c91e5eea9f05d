"""FTrojan: raise one middle and one high frequency of the colour planes of every block.

Idea     In each 32x32 block the coefficients (15, 15) and (31, 31) of the cosine transform of Cr and Cb rise by a constant.
         The change is spread over all pixels, a few grey levels each; the network sees it, people do not.
Paper    ECCV 2022, "An Invisible Black-box Backdoor Attack through Frequency Domain"
Follows  its OpenCV colour planes in whole grey levels, BackdoorBench's magnitude 30 and rate 0.1. The authors' own:
         `attack.magnitude=20 attack.poison_rate=0.02 attack.include_target_class=false attack.target=8`
Departs  1. the result is rounded (theirs is truncated: one grey level, 1 dB)
         2. images whose side is no multiple of 32 keep the strip beyond the last block
         3. rows are drawn at random (the authors' code takes the first of the file)
         4. no clean-label variant (the authors' adds a gradient step on a clean network)
Cost     none beyond the training
"""

from dataclasses import dataclass
from typing import Any

import torch

from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.streams import Stream
from backdoorbench.triggers.chroma import BLOCK, ChromaAdd, cosine_waves


@dataclass(frozen=True)
class FTrojan(DataAttack):
    """The frequency attack. `magnitude` is added to the coefficients `frequencies`, each a row and a column."""

    magnitude: float
    frequencies: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.magnitude", self.magnitude, 0)
        if not self.frequencies or not all(0 <= place < BLOCK for pair in self.frequencies for place in pair):
            raise ConfigError(
                f"attack.frequencies is {[list(pair) for pair in self.frequencies]}; expected at least one [row, column], "
                f"each 0 to {BLOCK - 1}. Change attack.frequencies."
            )

    def trigger(self, task: Task, stream: Stream) -> ChromaAdd:
        size = task.train.size
        inside = torch.arange(size) < size // BLOCK * BLOCK
        waves = cosine_waves(size, self.frequencies, self.magnitude)
        return ChromaAdd(waves, inside[:, None] & inside[None, :])

    def facts(self) -> dict[str, Any]:
        return {"magnitude": self.magnitude, "frequencies": [list(pair) for pair in self.frequencies]}
