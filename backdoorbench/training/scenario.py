"""What somebody is handed who did not train the model: a defender, or one who examines it. Nothing else is within reach."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from backdoorbench.data.images import ImageSet
from backdoorbench.errors import PairingError
from backdoorbench.shapes import Images, Rows
from backdoorbench.streams import Stream
from backdoorbench.training.fit import autocast
from backdoorbench.training.recipe import Recipe

TakenFor = Literal["clean", "poisoned"]


class Inspect(Protocol):
    """Judges a choice of training rows, for the record alone."""

    def __call__(
        self,
        name: str,
        rows: Rows,
        suspicion: Tensor | None,
        *,
        taken_for: TakenFor = "clean",
        margins: Tensor | None = None,
    ) -> None: ...


def unseen(
    name: str,
    rows: Rows,
    suspicion: Tensor | None,
    *,
    taken_for: TakenFor = "clean",
    margins: Tensor | None = None,
) -> None:
    """The inspection of a scenario in which nobody knows what is poisoned."""


class Scenario:
    """All that a defense or a detector may know. `model`, `holdout`, `train` and `inputs` raise unless its `needs` name them.

    There is no path from here to the test set, the trigger, the target or the poison mask.

    build   a fresh, untrained network of the same kind, drawn from the stream it is given
    recipe  how the victim was trained
    stream  random numbers of one's own
    probe   one-way: draws a learning curve, tells the defense nothing; `probe(model, epoch)`
    note    one-way: a figure for the record, `note("cosine", -0.31)`
    inspect one-way: which training rows the defense takes for clean, or with `taken_for="poisoned"` for poisoned, and how
            suspicious each row is (larger: more), for the record to judge; `inspect("selection1", rows, suspicion)`, (M,) and
            (N,) or None; `margins` (N,), how surely the model says each row's label, where a suspicion may have told no more
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
        inputs: Images | None = None,
    ) -> None:
        offered = {"model": model, "holdout": holdout, "train": train, "inputs": inputs}
        self._granted = {name: value for name, value in offered.items() if name in needs}
        self.build, self.recipe, self.stream, self.device = build, recipe, stream, device
        self.probe, self.note, self.inspect = probe, note, inspect

    @property
    def model(self) -> nn.Module:
        """The infected model, in eval mode; one's own copy: edit it freely."""
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

    @property
    def inputs(self) -> Images:
        """(M, 3, H, W) images as they arrive at the model, some of them triggered, unmarked and without labels."""
        inputs: Images = self._grant("inputs")
        return inputs

    def autocast(self) -> AbstractContextManager[Any]:
        """The victim's precision, for a loop of one's own: `with scenario.autocast(): ...`."""
        return autocast(self.recipe.precision, self.device)

    def _grant(self, name: str) -> Any:
        if name not in self._granted:
            raise PermissionError(f"this method did not name '{name}' in its `needs`")
        return self._granted[name]


def check_needs(name: str, group: str, needs: frozenset[str], offered: dict[str, bool], attack: str) -> None:
    """Raises PairingError where a need of a method is not among what is `offered` (need -> whether it exists).

    name, group  of the method: `pbe`, `defense`"""
    if "train" in needs and not offered["train"]:
        remedy = "reconstruct=true rebuilds one with its trigger; or " if offered.get("rebuild") else ""
        raise PairingError(
            f"{name} needs the training set, but {attack} drives the training itself and leaves none; {remedy}pick "
            f"a data-poisoning attack (bdx list attacks) or a {group} that needs only the model."
        )
    if "holdout" in needs and not offered["holdout"]:
        raise PairingError(
            f"{name} needs clean images, but holdout.rate is 0; give it some, such as holdout.rate=0.05, or pick a "
            f"{group} that needs none (bdx list {group}s)."
        )
