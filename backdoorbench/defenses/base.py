"""What a defense is, and all that it may know."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backdoorbench.data.images import ImageSet
from backdoorbench.errors import PairingError
from backdoorbench.shapes import Rows
from backdoorbench.streams import Stream
from backdoorbench.training.fit import autocast
from backdoorbench.training.recipe import Recipe

Inspect = Callable[[str, Rows, Tensor | None], None]  # (name, (M,), (N,) or None)


def unseen(name: str, rows: Rows, suspicion: Tensor | None) -> None:
    """The inspection of a scenario in which nobody knows what is poisoned."""


class Scenario:
    """All that a defender may know. `model`, `holdout` and `train` raise unless the defense names them in `needs`.

    There is no path from here to the test set, the trigger, the target or the poison mask.

    build   a fresh, untrained network of the same kind, drawn from the stream it is given
    recipe  how the victim was trained
    stream  the defense's own random numbers
    probe   one-way: draws a learning curve, tells the defense nothing; `probe(model, epoch)`
    note    one-way: a figure for the record, `note("cosine", -0.31)`
    inspect one-way: which training rows the defense takes for clean, and how suspicious each row is (larger: more), for the
            record to judge; `inspect("selection1", rows, suspicion)`, (M,) and (N,) or None
    device  where the images and the model lie
    """

    def __init__(
        self,
        needs: frozenset[str],
        *,
        model: nn.Module | None,
        holdout: ImageSet | None,
        train: ImageSet | None,
        build: Callable[[Stream], nn.Module],
        recipe: Recipe,
        stream: Stream,
        device: torch.device,
        probe: Callable[[nn.Module, int], None],
        note: Callable[[str, Any], None],
        inspect: Inspect = unseen,
    ) -> None:
        offered = {"model": model, "holdout": holdout, "train": train}
        self._granted = {name: value for name, value in offered.items() if name in needs}
        self.build, self.recipe, self.stream, self.device = build, recipe, stream, device
        self.probe, self.note, self.inspect = probe, note, inspect

    @property
    def model(self) -> nn.Module:
        """The infected model, in eval mode; the defense's own copy: edit it freely."""
        model: nn.Module = self._grant("model")
        return model

    @property
    def holdout(self) -> ImageSet:
        """Clean images, disjoint from the test set and, by default, from what the victim trained on."""
        holdout: ImageSet = self._grant("holdout")
        return holdout

    @property
    def train(self) -> ImageSet:
        """The victim's training set, possibly poisoned, unmarked."""
        train: ImageSet = self._grant("train")
        return train

    def autocast(self) -> AbstractContextManager[Any]:
        """The victim's precision, for a loop of one's own: `with scenario.autocast(): ...`."""
        return autocast(self.recipe.precision, self.device)

    def _grant(self, name: str) -> Any:
        if name not in self._granted:
            raise PermissionError(f"this defense did not name '{name}' in its `needs`")
        return self._granted[name]


@dataclass(frozen=True)
class Defense(ABC):
    """Purifies a model, or trains one that needs no purification. `name` as tables and keys print it."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "holdout"})  # others e.g. {"train"}, {"model", "train"}
    needs_disjoint: ClassVar[bool] = False  # true: no image of the holdout may be in the training set

    name: str

    @abstractmethod
    def purify(self, scenario: Scenario) -> nn.Module:
        """The purified model. The last one, always: nothing is chosen by test data."""

    def check(self, offered: dict[str, bool], attack: str) -> None:
        """Raises PairingError where a need is not among what is `offered` (name -> whether it exists)."""
        if "train" in self.needs and not offered["train"]:
            remedy = "reconstruct=true rebuilds one with its trigger; or " if offered.get("rebuild") else ""
            raise PairingError(
                f"{self.name} needs the training set, but {attack} drives the training itself and leaves none; {remedy}pick "
                f"a data-poisoning attack (bdx list attacks) or a defense that needs only the model."
            )
        if "holdout" in self.needs and not offered["holdout"]:
            raise PairingError(
                f"{self.name} needs clean images, but holdout.rate is 0; give it some, such as holdout.rate=0.05, or pick a "
                f"defense that needs none (bdx list defenses)."
            )
        if self.needs_disjoint and not offered["disjoint"]:
            raise PairingError(
                f"{self.name} needs clean images that the training set lacks, but holdout.source is train_overlap, which leaves "
                f"them in it; set holdout.source=withheld, as holdout=standard has it."
            )
