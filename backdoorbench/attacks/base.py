"""What an attack is: something that leaves an infected model, and the trigger and target it answers to."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.shapes import Labels, Mask, Rows, to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.training.fit import Epoch, Snapshots, fit
from backdoorbench.training.recipe import Recipe
from backdoorbench.triggers.base import Stored, Target, Trigger, make_target

CHUNK = 1024  # images triggered at a time


@dataclass(frozen=True)
class Task:
    """What an attacker works with.

    train      clean training images, without those withheld for the defender
    build      a fresh, untrained network of the victim's kind; draws from the stream it is given
    recipe     how the victim trains
    snapshots  where a long training saves its state; None: nowhere
    """

    train: ImageSet
    build: Callable[[Stream], nn.Module]
    recipe: Recipe
    snapshots: Snapshots | None


@dataclass(frozen=True)
class Infection:
    """What an attack leaves behind.

    model     infected, in eval mode
    trigger   the one used at test time (poisoning may have used a weaker one); None: clean training
    target    from true label to the attacker's; None: clean training
    train     as the victim saw it; None where the attacker drove the training
    poisoned  (N,) bool over `train`; never shown to a defense
    history   of the victim's training
    facts     what the record should say: requested and realised counts, the pattern's name
    """

    model: nn.Module
    trigger: Trigger | None
    target: Target | None
    train: ImageSet | None
    poisoned: Mask | None
    history: list[Epoch] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack(ABC):
    """Full control: owns the training loop. `name` as tables and keys print it."""

    leaves_train: ClassVar[bool] = False  # whether a training set that a defense may see remains

    name: str

    @abstractmethod
    def infect(self, task: Task, stream: Stream) -> Infection:
        """The infected model with its trigger and target."""

    def check(self, train: ImageSet) -> None:
        """Raises ConfigError where the settings do not fit the victim's clean training set; called before any work."""
        return


@dataclass(frozen=True)
class DataAttack(Attack):
    """Data poisoning: the victim trains as usual on a set with some rows altered.

    Write `trigger`; override `poison` where the training rows differ from the test images. Poisoned rows are rounded to
    uint8 once, as a stored data set would be, and test images take the same path.
    """

    leaves_train: ClassVar[bool] = True

    mapping: Literal["all_to_one", "all_to_all", "source_specific"]
    target: int
    sources: tuple[int, ...]
    poison_rate: float
    rate_of: Literal["all", "target_class"]
    include_target_class: bool
    cover_rate: float
    mode: Literal["replace", "append"]

    def __post_init__(self) -> None:
        check_range("attack.poison_rate", self.poison_rate, 0, 1)
        check_range("attack.cover_rate", self.cover_rate, 0, 1)
        if self.cover_rate and self.mapping != "source_specific":
            raise ConfigError(
                f"attack.cover_rate is {self.cover_rate:g} with attack.mapping={self.mapping}; cover rows (triggered, true "
                f"label kept) make sense for source_specific attacks only. Set attack.cover_rate=0 or "
                f"attack.mapping=source_specific."
            )

    @abstractmethod
    def trigger(self, task: Task, stream: Stream) -> Any:
        """The fixed trigger for images of `task.train.size` pixels; random patterns draw from `stream`."""

    def poison(self, clean: ImageSet, trigger: Any, stream: Stream) -> tuple[ImageSet, Mask, dict[str, int]]:
        """The training set as the victim sees it, which of its rows are poisoned (N,) bool, and the counts.

        Rows are drawn from the stream's child "rows", cover rows from "cover". In append mode the altered copies follow
        the clean images instead of replacing them."""
        target = self.make_target(len(clean.classes))
        rows = self.choose(clean.labels, target, stream.child("rows"))
        covers = self.choose_covers(clean.labels, target, stream.child("cover"))
        train = alter(clean, rows, trigger, target.label(clean.labels[rows]), self.mode)
        poisoned = torch.zeros(len(train), dtype=torch.bool)
        poisoned[rows if self.mode == "replace" else slice(len(clean), None)] = True
        train = alter(train, covers, trigger, clean.labels[covers], self.mode)
        poisoned = torch.nn.functional.pad(poisoned, (0, len(train) - len(poisoned)))
        counts = {
            "requested": self.count(clean.labels),
            "poisoned": int(poisoned.sum()),
            "poisoned_of_target_class": int((clean.labels[rows] == target.label(clean.labels[rows])).sum()),
            "cover": len(covers),
            "train": len(train),
        }
        return train, poisoned, counts

    def make_target(self, classes: int) -> Target:
        """The attack's rule from true label to its own."""
        return make_target(self.mapping, self.target, self.sources, classes)

    def check(self, train: ImageSet) -> None:
        target = self.make_target(len(train.classes))
        self.choose(train.labels, target, Stream(0))
        self.choose_covers(train.labels, target, Stream(0))

    def count(self, labels: Labels) -> int:
        """How many rows the poison rate asks for: a share of the set the victim sees, or of the target class."""
        total = len(labels) if self.rate_of == "all" else int((labels == self.target).sum())
        if self.mode == "append":
            if self.poison_rate == 1:
                raise ConfigError(
                    "attack.poison_rate is 1 with attack.mode=append; appended rows can never be the whole set. Lower the "
                    "rate or set attack.mode=replace."
                )
            return round(self.poison_rate * total / (1 - self.poison_rate))
        return round(self.poison_rate * total)

    def candidates(self, labels: Labels, target: Target) -> Rows:
        """Rows that may be poisoned: all of them, or those whose label would change; sources where there are any."""
        if self.mapping == "source_specific" or not self.include_target_class:
            return target.is_eligible(labels).nonzero()[:, 0]
        return torch.arange(len(labels))

    def choose(self, labels: Labels, target: Target, stream: Stream) -> Rows:
        """The rows to poison, drawn uniformly without replacement; ConfigError where there are too few."""
        labels = labels.cpu()
        pool, count = self.candidates(labels, target), self.count(labels)
        if count > len(pool):
            most = len(pool) / max(1, len(labels) if self.rate_of == "all" else int((labels == self.target).sum()))
            raise ConfigError(
                f"attack.poison_rate={self.poison_rate:g} asks for {count} rows, but only {len(pool)} of the "
                f"{len(labels)} training images may be poisoned. The largest rate possible here is "
                f"{int(most * 1e4) / 1e4:g}."
            )
        return pool[stream.permutation(len(pool))[:count]]

    def choose_covers(self, labels: Labels, target: Target, stream: Stream) -> Rows:
        """The rows that get the trigger and keep their label: of classes that are neither source nor target."""
        labels = labels.cpu()
        count = round(self.cover_rate * len(labels))
        pool = (~target.is_eligible(labels) & (labels != self.target)).nonzero()[:, 0]
        if count > len(pool):
            raise ConfigError(
                f"attack.cover_rate={self.cover_rate:g} asks for {count} rows, but only {len(pool)} training images belong "
                f"to neither a source class nor the target. The largest rate possible here is "
                f"{int(len(pool) / len(labels) * 1e4) / 1e4:g}."
            )
        return pool[stream.permutation(len(pool))[:count]]

    def infect(self, task: Task, stream: Stream) -> Infection:
        trigger = Stored(self.trigger(task, stream.child("pattern"))).to(task.train.device)
        train, poisoned, counts = self.poison(task.train, trigger, stream)
        model = task.build(stream.child("init"))
        history = fit(model, train, task.recipe, stream.child("train"), snapshots=task.snapshots)
        target = self.make_target(len(train.classes))
        return Infection(model, trigger, target, train, poisoned, history, {**counts, **self.facts()})

    def facts(self) -> dict[str, Any]:
        """What a table must say beside the attack's name; the pattern's name, above all."""
        return {}


def alter(clean: ImageSet, rows: Rows, trigger: Any, labels: Labels, mode: str) -> ImageSet:
    """`clean` with the images at `rows` (M,) triggered and called `labels` (M,): in place of them, or after the others."""
    device = clean.images.device
    here = rows.to(device)
    trigger = trigger.to(device)
    pieces = [to_bytes(trigger(to_float(clean.images[part]))) for part in torch.split(here, CHUNK)] if len(rows) else []
    images = torch.cat(pieces) if pieces else clean.images[:0]
    if mode == "append":
        return replace(
            clean,
            images=torch.cat([clean.images, images]),
            labels=torch.cat([clean.labels, labels.to(clean.device)]),
        )
    altered, names = clean.images.clone(), clean.labels.clone()
    altered[here] = images
    names[rows.to(clean.device)] = labels.to(clean.device)
    return replace(clean, images=altered, labels=names)
