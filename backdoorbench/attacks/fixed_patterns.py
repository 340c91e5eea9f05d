"""Trojan-3x3, Trojan-8x8, Trojan-WM, L0-inv, L2-inv: the fixed patterns of Trap-and-Replace's code.

Idea     One pattern for all images, found in other works by optimisation and frozen here, is added to the image (trojan_3x3,
         trojan_8x8, trojan_wm, l2_inv) or written over it (l0_inv); the labels become the target's.
Paper    arXiv 2210.06428, whose code has them from I-BAU's; l0_inv and l2_inv stem from arXiv 1909.02742
Follows  support, range and mode of each file, and rows of other classes than the target's
Departs  1. the files are not shipped: patterns are drawn from the seed, with the same support and, for l2_inv, the same
            statistics; l0_inv is exact; trojan_wm's glyphs have any colours, which makes them stronger than the file's (15 to
            18 dB on CIFAR-10 over twelve seeds, beside 19.1)
         2. rows are drawn at random (their code takes the first of the file), and the rate counts from the images that the
            victim trains on (theirs: with the holdout)
         3. larger images get larger patterns (their code has the small ones for 32x32 only; adding its text to a large image
            wraps around)
Cost     none beyond the training
"""

from dataclasses import dataclass
from typing import Any, Literal

from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.streams import Stream
from backdoorbench.triggers.add import Add, correlated_noise
from backdoorbench.triggers.patch import Patch, colour_strip, random_patch, solid
from backdoorbench.triggers.watermark import watermark


@dataclass(frozen=True)
class FixedPattern(DataAttack):
    """Any of the five. `pattern` names which."""

    pattern: Literal["trojan_3x3", "trojan_8x8", "trojan_wm", "l0_inv", "l2_inv"]

    def trigger(self, task: Task, stream: Stream) -> Add | Patch:
        size, generator = task.train.size, stream.generator()
        match self.pattern:
            case "trojan_3x3":
                return Add(solid(random_patch(3, generator), (25, 25), size).pattern)
            case "trojan_8x8":
                return Add(solid(random_patch(8, generator), (21, 21), size).pattern)
            case "trojan_wm":
                return Add(watermark(size, generator))
            case "l0_inv":
                return solid(colour_strip(), (31, 23), size)
            case "l2_inv":
                return Add(correlated_noise(size, generator))

    def facts(self) -> dict[str, Any]:
        return {"pattern": self.pattern}
