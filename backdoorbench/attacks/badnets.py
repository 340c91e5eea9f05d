"""BadNets: overwrite a few fixed pixels and teach the network that they mean the target.

Idea     A small patch, always the same, is pasted into a share of the training images, whose labels become the target's.
         The network learns the patch as a feature of the target class.
Paper    arXiv 1708.06733v2
Follows  the papers' named patterns on a 32x32 grid, stored in the image before augmentation
Departs  1. black cells are 0 and opaque (BackdoorBench takes 0 for transparent, so that its grid's dark cells are of level 1)
         2. larger images replicate the patch pixel by pixel (BackdoorBench resizes it smoothly, which blurs its edge);
            the cells of grid10 have 10 pixels at 256 alone, and at 224 nine, eight and nine
         3. rows are rounded to uint8 (BackdoorBench truncates, which darkens every poisoned image)
         4. grid3 lies in the stored image, where a random crop may cut it off (PBE's code pastes it in float, after the
            augmentation)
Cost     none beyond the training
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.config.acts import Acts, Only
from backdoorbench.config.build import File
from backdoorbench.errors import ConfigError
from backdoorbench.streams import Stream
from backdoorbench.triggers.patch import GRID, Patch, named_pattern, paste, random_patch
from backdoorbench.triggers.picture import read_picture


@dataclass(frozen=True)
class BadNets(DataAttack):
    """The patch attack. `pattern` names what is pasted; positions and sizes are on a 32x32 grid."""

    acts: ClassVar[Acts] = {"patch_size": Only("pattern", "random", "image")}

    pattern: Literal["white3", "checker3", "grid3", "grid10", "white4", "random", "image"]
    patch_file: File | None
    patch_size: int
    position: tuple[int, int] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.pattern == "image") != (self.patch_file is not None):
            raise ConfigError(
                f"attack.pattern is {self.pattern} with attack.patch_file={self.patch_file}; an image patch needs both. Set "
                f"attack.pattern=image attack.patch_file=FILE, or neither."
            )
        if not 1 <= self.patch_size <= GRID:
            raise ConfigError(
                f"attack.patch_size is {self.patch_size}; expected 1 to {GRID} pixels of a {GRID}x{GRID} image. Change "
                f"attack.patch_size."
            )

    def trigger(self, task: Task, stream: Stream) -> Patch:
        corner, cell = (GRID - self.patch_size, GRID - self.patch_size), 1.0
        alpha = torch.ones(1, self.patch_size, self.patch_size)
        if self.pattern == "random":
            patch = random_patch(self.patch_size, stream.generator())
        elif self.pattern == "image":
            assert self.patch_file is not None
            picture = read_picture(self.patch_file, (self.patch_size, self.patch_size), "attack.patch_file")
            patch, alpha = picture[:3], picture[3:]
        else:
            patch, corner, cell = named_pattern(self.pattern)
            alpha = torch.ones(1, *patch.shape[-2:])
        return paste(patch, alpha, self.position or corner, task.train.size, cell)

    def facts(self) -> dict[str, Any]:
        return {"pattern": self.pattern}
