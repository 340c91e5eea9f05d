"""Refool: blend a reflection into the image, as if it were taken through a window pane.

Idea     A second picture, doubled as by the two faces of a pane or blurred as by a camera that looks past it, is added in
         linear light. Reflections are natural, so that nobody suspects a poisoned image; each image gets one of many.
Paper    arXiv 2007.02343
Follows  BackdoorBench's variant: labels become the target's, 40 % of the image's light stays, 49 of 100 reflections are doubled;
         offsets of 3 to 8 pixels, blur of 1 to 5, at the image's own size; stored before augmentation. The paper's:
         `attack.labels=clean attack.rate_of=target_class attack.poison_rate=0.2 attack.image_share=null
         attack.work_size=560`
Departs  1. the reflections are training images of other classes than the target, generated scenes or a folder of the user's
            (BackdoorBench: 200 selected photographs)
         2. none is preferred or passed over (the paper: 16 rounds keep those that mislead a clean network best; BackdoorBench:
            draws on while one outshines the image, or leaves it an SSIM below 0.70 or above 0.85)
         3. which reflection, with which numbers, an image gets is read off its bytes, out of `reflections` drawn at first
            (BackdoorBench: drawn anew at each call, so that no test could be repeated)
         4. work_size enlarges the reflection alone, doubles or blurs it there, and blends at the image's size (the paper:
            blends there too)
Cost     none beyond the training; two powers of every value of a triggered image, 5.5 s for 50,000 of 32 px on one core
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from backdoorbench.attacks.base import CleanLabelAttack, Task
from backdoorbench.config.acts import Acts, Either, Only, Unless
from backdoorbench.config.build import Folder
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.shapes import Bytes, to_bytes
from backdoorbench.streams import Stream
from backdoorbench.triggers.picture import read_opaque
from backdoorbench.triggers.reflection import Reflections, draw_reflections, scenes

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
LEAST_WORK = 22  # pixels: the widest blur mirrors 10 at the border, the farthest copy leaves 6


@dataclass(frozen=True)
class Refool(CleanLabelAttack):
    """The reflection attack. `source` says where reflections come from."""

    acts: ClassVar[Acts] = {
        "target": Either(Unless("mapping", "all_to_all"), Only("rate_of", "target_class"), Only("source", "images"))
    }

    source: Literal["images", "scenes", "folder"]
    source_folder: Folder | None
    reflections: int
    image_share: float | None
    doubled_rate: float
    work_size: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.reflections", self.reflections, 1, 100_000)
        check_range("attack.doubled_rate", self.doubled_rate, 0, 1)
        if self.image_share is not None:
            check_range("attack.image_share", self.image_share, 0, 1)
        if self.work_size is not None:
            check_range("attack.work_size", self.work_size, LEAST_WORK, 4096)
        if (self.source == "folder") != (self.source_folder is not None):
            raise ConfigError(
                f"attack.source is {self.source} with attack.source_folder={self.source_folder}; reflections of your own "
                f"need both. Set attack.source=folder attack.source_folder=DIR, or neither."
            )

    def check(self, train: ImageSet) -> None:
        super().check(train)
        if self.source == "images" and not bool((train.labels != self.target).any()):
            raise ConfigError(
                f"attack.source is images, but all training images are of class {self.target}, the target; reflections come "
                f"from the others. Set attack.source=scenes."
            )
        if self.source_folder is not None:
            picture_files(self.source_folder)
        if self.work_size is None and train.size < LEAST_WORK:
            raise ConfigError(
                f"the images have {train.size} pixels a side, but a reflection is doubled or blurred over up to 10; expected at "
                f"least {LEAST_WORK} pixels. Set attack.work_size=560, where reflections are made before they shrink to the "
                f"image, or dataset.size."
            )

    def trigger(self, task: Task, stream: Stream) -> Reflections:
        size = task.train.size
        pictures = self.pictures(task.train, stream)
        return draw_reflections(
            pictures,
            size,
            self.work_size or size,
            self.image_share,
            self.doubled_rate,
            stream.child("numbers").generator(),
        )

    def pictures(self, train: ImageSet, stream: Stream) -> Bytes:
        """(M, 3, h, w) uint8 on the CPU, what the panes reflect; fewer pictures than `reflections` come round again."""
        if self.source == "scenes":
            return scenes(self.reflections, train.size, stream.child("scenes").generator())
        if self.source == "images":
            others = (train.labels.cpu() != self.target).nonzero()[:, 0]
            found = others[stream.child("images").permutation(len(others))[: self.reflections]]
            pictures = train.images[found.to(train.images.device)].cpu()
        else:
            assert self.source_folder is not None
            files = picture_files(self.source_folder)
            order = stream.child("images").permutation(len(files))[: self.reflections].tolist()
            shape = (self.work_size or train.size,) * 2
            read = [read_opaque(str(files[number]), shape, "attack.source_folder") for number in order]
            pictures = torch.stack([to_bytes(picture) for picture in read])
        return pictures[torch.arange(self.reflections) % len(pictures)]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "source": self.source, "reflections": self.reflections}


def picture_files(folder: str) -> list[Path]:
    """The image files in `folder`, by name; ConfigError where there is none."""
    place = Path(folder).expanduser()
    files = sorted(file for file in place.glob("*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise ConfigError(
            f"attack.source_folder is '{folder}', which holds no image; expected a folder of PNG, JPEG, BMP or WebP files."
        )
    return files
