"""What a detector is, what it judges, and what it says. What it may know is a `Scenario`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from backdoorbench.shapes import Images, Mask
from backdoorbench.training.forward import BATCH as BATCH
from backdoorbench.training.forward import penultimate_features as penultimate_features
from backdoorbench.training.forward import read_layers as read_layers
from backdoorbench.training.scenario import Scenario as Scenario
from backdoorbench.training.scenario import check_needs

Judges = Literal["model", "rows", "inputs"]


class Reversed(NamedTuple):
    """A trigger towards each class, on the CPU: x (1 - m) + p m.

    masks     (K, 1, H, W) in [0, 1]; 0 where none was found
    patterns  (K, 3, H, W) in [0, 1]
    """

    masks: Tensor
    patterns: Images


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a detector says of the M things that it judges: training rows, inputs, or a model's K classes as targets.

    scores    (M,) float on the CPU: larger is more suspicious
    flagged   (M,) bool on the CPU: what the detector's own rule calls poisoned, triggered, or a backdoor's target
    figures   name -> number, of the whole: an anomaly index
    pictures  name -> (n, 3, H, W) in [0, 1] on the CPU, for the run's folder: reversed triggers
    reversed  the triggers themselves, where the detector finds some: what they do to the purified model is measured, too
    """

    scores: Tensor
    flagged: Mask
    figures: dict[str, float | None] = field(default_factory=dict)
    pictures: dict[str, Images] = field(default_factory=dict)
    reversed: Reversed | None = None


@dataclass(frozen=True)
class Detector(ABC):
    """Tells what is backdoored. `name` as tables and keys print it.

    judges  model: each class, as the target of a backdoor; rows: the training set's; inputs: images that arrive
    needs   of model, holdout, train, inputs: what it is handed
    draws   whether another seed may give other scores
    """

    judges: ClassVar[Judges]
    needs: ClassVar[frozenset[str]]
    draws: ClassVar[bool] = True

    name: str

    def check(self, offered: dict[str, bool], attack: str) -> None:
        """Raises PairingError where a need is not among what is `offered` (name -> whether it exists)."""
        check_needs(self.name, "detector", self.needs, offered, attack)

    @abstractmethod
    def examine(self, scenario: Scenario) -> Verdict:
        """The verdict on what the scenario holds: one score and one flag for each row, input or class, in their order."""
