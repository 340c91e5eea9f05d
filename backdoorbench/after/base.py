"""What an after-attack is, and all that it may know: what an attacker knows once his backdoor was purified away."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from backdoorbench.data.images import ImageSet
from backdoorbench.errors import PairingError
from backdoorbench.shapes import Labels, to_bytes
from backdoorbench.streams import Stream
from backdoorbench.training.fit import autocast
from backdoorbench.training.forward import BATCH
from backdoorbench.training.recipe import Recipe
from backdoorbench.triggers.base import Target, Trigger

NEEDS = ("model", "infected", "clean", "trigger", "train")  # what an after-attack may name


class Scenario:
    """All that an attacker may know. `model`, `infected`, `clean`, `trigger` and `target`, and `train` raise unless `needs` name
    them (`trigger` grants the target, too).

    There is no path from here to the test set, to the defender's images, or to what the defense was.

    load    the purified model of another run's folder, whose network is of the same kind
    recipe  how the victim was trained; stream: random numbers of one's own; device: where models and images lie
    note    one-way: a figure for the record"""

    def __init__(
        self,
        needs: frozenset[str],
        *,
        model: nn.Module,
        infected: nn.Module,
        clean: nn.Module | None,
        trigger: Trigger,
        target: Target,
        train: ImageSet,
        load: Callable[[str], nn.Module],
        recipe: Recipe,
        stream: Stream,
        device: torch.device,
        note: Callable[[str, Any], None],
    ) -> None:
        offered = {"model": model, "infected": infected, "clean": clean, "trigger": (trigger, target), "train": train}
        self._granted = {name: value for name, value in offered.items() if name in needs}
        self.load, self.recipe, self.stream, self.device, self.note = load, recipe, stream, device, note

    @property
    def model(self) -> nn.Module:
        """The model that is attacked, in eval mode: the purified one, or a control. One's own copy: edit it freely."""
        model: nn.Module = self._grant("model")
        return model

    @property
    def infected(self) -> nn.Module:
        """The infected model as it was before the defense, in eval mode; a copy, too."""
        infected: nn.Module = self._grant("infected")
        return infected

    @property
    def clean(self) -> nn.Module:
        """A clean model of the same recipe, in eval mode; a copy, too."""
        clean: nn.Module = self._grant("clean")
        return clean

    @property
    def trigger(self) -> Trigger:
        """The trigger that the model was infected with."""
        trigger: Trigger = self._grant("trigger")[0]
        return trigger

    @property
    def target(self) -> Target:
        """What triggered images were to be called."""
        target: Target = self._grant("trigger")[1]
        return target

    @property
    def train(self) -> ImageSet:
        """The attacker's own images: the victim's training set before it was poisoned, with true labels."""
        train: ImageSet = self._grant("train")
        return train

    def autocast(self) -> AbstractContextManager[Any]:
        """The victim's precision, for a loop of one's own."""
        return autocast(self.recipe.precision, self.device)

    def eligible(self, count: int, stream: Stream) -> ImageSet:
        """`count` of the attacker's images that the trigger is meant for, or all there are, in random order."""
        rows = self.target.is_eligible(self.train.labels).nonzero()[:, 0].cpu()
        return self.train.subset(rows[stream.permutation(len(rows))[:count]])

    def triggered(self, images: ImageSet, labels: Labels | None = None) -> ImageSet:
        """The same images with the trigger, stored as bytes; called by `labels` (N,), by default as they were."""
        shown = painted(images, self.trigger)
        return shown if labels is None else replace(shown, labels=labels)

    def _grant(self, name: str) -> Any:
        if name not in self._granted:
            raise PermissionError(f"this after-attack did not name '{name}' in its `needs`")
        return self._granted[name]


@dataclass(frozen=True, eq=False)
class Trial:
    """One way in which a backdoor may come back; the pipeline judges it on test images.

    label    what tells it from the others of the same after-attack: `opacity 0.5`
    model    what the images are shown to, in eval mode
    trigger  what is done to the images that are to be called the target
    lure     what of that is done to images without the trigger, to see whether they are called so, too; None: nothing is
    is_moved whether the model is another than the one that was attacked, so that its CA is worth asking for
    """

    label: str
    model: nn.Module
    trigger: Trigger
    lure: Trigger | None = None
    is_moved: bool = False


@torch.no_grad()
def painted(images: ImageSet, trigger: Trigger) -> ImageSet:
    """The same images with the trigger, stored as bytes where they lay; labels as they were."""
    batches = images.batches(BATCH) if len(images) else ()
    shown = [to_bytes(trigger(batch)).to(images.images.device) for batch, _ in batches]
    return replace(images, images=torch.cat([images.images[:0], *shown]))


@dataclass(frozen=True)
class AfterAttack(ABC):
    """Tries to bring a purified backdoor back. `name` as tables and keys print it.

    needs      what it is handed: of NEEDS
    draws      whether another seed may give another outcome
    figure     what tables call its figures after: `retuned` makes asr_retuned
    counts     how the ASR of several trials becomes one: of the only one, their mean, or the largest but for the first, which
               is the trigger as it was
    on_clean   what becomes of the clean control: attacked: the same is done to it; shown: it sees what was made for the
               purified model
    """

    needs: ClassVar[frozenset[str]]
    draws: ClassVar[bool] = True
    figure: ClassVar[str]
    counts: ClassVar[Literal["only", "mean", "largest"]] = "only"
    on_clean: ClassVar[Literal["attacked", "shown"]] = "attacked"

    name: str

    def check(self, offered: dict[str, bool], attack: str) -> None:
        """Raises PairingError where a need is not among what is `offered` (name -> whether it exists)."""
        if "trigger" in self.needs and not offered["trigger"]:
            raise PairingError(
                f"{self.name} brings a backdoor back, but attack={attack} plants none; expected an attack with a trigger. Pick "
                f"one (bdx list attacks), or set after=none."
            )
        if "clean" in self.needs and not offered["clean"]:
            raise PairingError(
                f"{self.name} needs a clean model of the same recipe, and there is none; expected control=train, or "
                f"control=cached beside one that is cached. Set control=train."
            )

    def check_images(self, train: ImageSet, target: Target) -> None:  # noqa: B027  # most need none
        """Raises a BdxError where the attacker's images are too few for it; called before any work."""

    def most_images(self) -> int | None:
        """Test images, at most, that each trial is judged on; None: all."""
        return None

    def count(self) -> int:
        """How many trials there are."""
        return 1

    @abstractmethod
    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        """One after another: the model of a trial may be changed for the next."""
