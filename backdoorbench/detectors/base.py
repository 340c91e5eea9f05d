"""What a detector is, what it judges, and what it says. What it may know is a `Scenario`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoorbench.data.images import ImageSet
from backdoorbench.models.surgery import activations, classifier_name
from backdoorbench.shapes import Images, Mask
from backdoorbench.training.scenario import Scenario as Scenario
from backdoorbench.training.scenario import check_needs

Judges = Literal["model", "rows", "inputs"]

BATCH = 500  # images at a time, where only activations or logits are wanted


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a detector says of the M things that it judges: training rows, inputs, or a model's K classes as targets.

    scores    (M,) float on the CPU: larger is more suspicious
    flagged   (M,) bool on the CPU: what the detector's own rule calls poisoned, triggered, or a backdoor's target
    figures   name -> number, of the whole: an anomaly index
    pictures  name -> (n, 3, H, W) in [0, 1] on the CPU, for the run's folder: reversed triggers
    """

    scores: Tensor
    flagged: Mask
    figures: dict[str, float | None] = field(default_factory=dict)
    pictures: dict[str, Images] = field(default_factory=dict)


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


@torch.no_grad()
def read_layers(model: nn.Module, images: ImageSet, layers: Iterable[str]) -> dict[str, Tensor]:
    """name -> (N, ...) float32 on the CPU: what each of the named modules reads for `images`, in the model's present mode.

    layers  names of `model.named_modules()`, which `models/surgery.py` finds; runs under the caller's autocast"""
    names = list(layers)
    layout = torch.channels_last if images.device.type in ("cpu", "cuda") else torch.contiguous_format
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    with activations(model, names, "input") as seen:
        for batch, _ in images.batches(BATCH):
            model(batch.contiguous(memory_format=layout))
            for name in names:
                parts[name].append(seen[name].float().cpu())
    return {name: torch.cat(found) for name, found in parts.items()}


def penultimate_features(model: nn.Module, images: ImageSet) -> Tensor:
    """(N, D) float32 on the CPU: what the classifier reads."""
    head = classifier_name(model)
    return read_layers(model, images, [head])[head]
