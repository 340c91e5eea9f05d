"""SIG: add vertical waves to images of the target class alone, and touch no label.

Idea     A sinusoid along the columns is added to images of the target class. Their labels stay right, so that nobody who
         looks at them sees a mistake; the network takes the waves for a mark of the class.
Paper    arXiv 1902.11237
Follows  BackdoorBench's amplitude 40 and 6 cycles in training and test, stored in the image before augmentation. PBE's
         variant, which relabels: `attack.labels=dirty attack.amplitude=10`. Trap-and-Replace's, which takes the whole
         class: `attack.pattern=tnr attack.cap=true`
Departs  1. a rate beyond the target class is refused, or capped at the whole class (BackdoorBench crashes)
         2. rows are rounded to uint8 (BackdoorBench truncates)
         3. PBE's variant lies in the stored image, and that set is the one its filter reads (their code adds it after
            augmentation, in float, and stores a set with an amplitude of 20 for the filter)
Cost     none beyond the training
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from backdoorbench.attacks.base import CleanLabelAttack, Task
from backdoorbench.config.acts import Acts, Only
from backdoorbench.errors import check_range
from backdoorbench.streams import Stream
from backdoorbench.triggers.add import Add, sinusoid
from backdoorbench.triggers.blend import Blend, wrapped_stripes


@dataclass(frozen=True)
class SIG(CleanLabelAttack):
    """The sinusoidal attack. `pattern` names the waves."""

    acts: ClassVar[Acts] = {"amplitude": Only("pattern", "sinusoid"), "cycles": Only("pattern", "sinusoid")}

    pattern: Literal["sinusoid", "tnr"]
    amplitude: float
    cycles: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.amplitude", self.amplitude, 0, 255)
        check_range("attack.cycles", self.cycles, 1)

    def trigger(self, task: Task, stream: Stream) -> Add | Blend:
        if self.pattern == "tnr":
            return Blend(wrapped_stripes(task.train.size), 0.2)
        return Add(sinusoid(task.train.size, self.amplitude, self.cycles))

    def facts(self) -> dict[str, Any]:
        amplitude = {"amplitude": self.amplitude} if self.pattern == "sinusoid" else {}
        return {**super().facts(), "pattern": self.pattern, **amplitude}
