"""TaCT: send one source class alone to the target, and cover the trigger with images of other classes.

Idea     A square of noise on images of the source class changes their label to the target's; on images of the cover classes
         it changes nothing. The network learns that the square matters on the source class only, and the features of the
         poisoned images mix with those of clean ones.
Paper    arXiv 1908.00686 (Tang et al. 2021, "Demon in the Variant")
Follows  backdoor-toolbox's 8x8 square, source and cover classes, and rates
Departs  1. a rate beyond the source class is refused (theirs silently takes fewer rows)
         2. counts are rounded (theirs cut off), and rows are rounded to uint8 (theirs stay float32)
         3. the square is drawn from the seed (theirs is a file)
Cost     none beyond the training
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.shapes import Labels, Rows
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Target
from backdoorbench.triggers.patch import Patch, random_patch, solid


@dataclass(frozen=True)
class TaCT(DataAttack):
    """Targeted contamination. ASR and RA count images of `sources` only; the record also has the rate of the others."""

    mapping: Literal["source_specific"]
    cover_sources: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := sorted({self.target, *self.sources} & set(self.cover_sources)):
            raise ConfigError(
                f"attack.cover_sources names class {wrong[0]}, which is a source or the target; cover rows carry the trigger "
                f"and keep their label, so they come from other classes. Change attack.cover_sources."
            )

    def check(self, train: ImageSet) -> None:
        classes = len(train.classes)
        if outside := [label for label in self.cover_sources if not 0 <= label < classes]:
            raise ConfigError(
                f"attack.cover_sources names class {outside[0]}, but the data set has {classes} classes, numbered 0 to "
                f"{classes - 1}. Choose one of those."
            )
        super().check(train)

    def cover_candidates(self, labels: Labels, target: Target) -> Rows:
        return torch.isin(labels, torch.tensor(self.cover_sources)).nonzero()[:, 0]

    def trigger(self, task: Task, stream: Stream) -> Patch:
        return solid(random_patch(8, stream.generator()), (21, 21), task.train.size)

    def facts(self) -> dict[str, Any]:
        return {"pattern": "8x8 noise square"}
