"""What attacks share that drive the training themselves: the rule, the rows of a batch they alter, and the mixed batch."""

import math
from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from backdoorbench.attacks.base import (
    Attack,
    Infection,
    PoisonedSet,
    Task,
    alter,
    check_poison_rate,
    marked,
    refuse_none,
    show,
)
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.data.images import Change, ImageSet
from backdoorbench.errors import ConfigError, check_range
from backdoorbench.shapes import Images, Labels, ceil_of, floor_of, to_float
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Recipe
from backdoorbench.triggers.base import Cover, Stored, Target, Trigger, make_target


@dataclass(frozen=True)
class LoopAttack(Attack):
    """The attacker trains and hands over the model alone."""

    acts: ClassVar[Acts] = {"target": Unless("mapping", "all_to_all")}

    mapping: Literal["all_to_one", "all_to_all"]
    target: int
    quantise_test: bool

    def make_target(self, classes: int) -> Target:
        """The attack's rule from true label to its own."""
        return make_target(self.mapping, self.target, (), classes)

    def check(self, train: ImageSet) -> None:
        self.make_target(len(train.classes))

    def at_test(self, trigger: Any) -> Any:
        """The trigger as test images meet it."""
        return Stored(trigger) if self.quantise_test else trigger


class Tally(Counter[str]):
    """The rows that passed in a training: `all`, of them `poisoned` and `cover`. A snapshot holds it."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clear()
        self.update(state)


@dataclass(frozen=True)
class ShareAttack(LoopAttack):
    """Alters a share of each batch. Batches are shuffled, so their first rows are random ones: these are triggered and get
    the attacker's label, those after them are cover rows, the rest stays clean."""

    can_rebuild: ClassVar[bool] = True

    poison_rate: float
    batch_count: Literal["unbiased", "floor"]

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)

    def check(self, train: ImageSet) -> None:
        super().check(train)
        if self.asked(len(train)) == 0:
            most = int(len(train) / (1 + self.covers))
            refuse_none(
                "poison_rate", self.poison_rate, len(train), "training images", most, "replace",
                "attack=none for a clean model",
            )  # fmt: skip

    def asked_of(self, labels: Labels) -> float:
        return self.poison_rate * len(labels)

    def rounding(self, batches: int) -> float:
        # six standard deviations of as many draws of one row or none, or a row a batch
        return 1 + 3 * math.sqrt(batches) if self.batch_count == "unbiased" else 1 + batches

    def asked(self, rows: int) -> int:
        """How many of `rows` that pass in training are to be triggered."""
        return round(self.poison_rate * rows)

    def count(self, batch: int, stream: Stream) -> int:
        """How many of `batch` rows are triggered: floor(rate * batch + u), u uniform in [0, 1), which is the rate on
        average. `floor`: u = 0, except where the rate asks for less than one row (BackdoorBench)."""
        wanted = self.poison_rate * batch
        if self.batch_count == "floor" and wanted >= 1:
            return floor_of(self.poison_rate, batch)
        return int(wanted + float(torch.rand((), dtype=torch.float64, generator=stream.generator())))

    def facts(self, rows: Tally) -> dict[str, Any]:
        """What was asked for and what was made of all the rows that passed, epoch after epoch, for the record. Where none passed
        there is nothing to say."""
        if not (passed := rows["all"]):
            return {}
        made = {"requested": self.asked(passed), "poisoned": rows["poisoned"], "cover": rows["cover"], "passed": passed}
        return made | {"poisoned_share": rows["poisoned"] / passed, "cover_share": rows["cover"] / passed}

    @property
    @abstractmethod
    def covers(self) -> float:
        """Cover rows to a triggered one."""

    @abstractmethod
    def cover(self, trigger: Any) -> Cover:
        """What cover rows carry."""

    def rebuild(self, clean: ImageSet, trigger: Trigger, stream: Stream) -> PoisonedSet:
        """A poisoned set for defenses that read one, after BackdoorBench: rate * N rows with the finished trigger and the
        attacker's label, `covers` times as many cover rows, all rounded to bytes once. BackdoorBench takes the first rows of
        every 128 in file order, truncates, and flags cover rows as poisoned too; here rows are random, and cover rows have
        a mask of their own. The model has seen no such set: its triggered rows were other ones in every epoch, in float."""
        trigger = trigger.trigger if isinstance(trigger, Stored) else trigger  # rounding is `show`'s
        target, cover, device = self.make_target(len(clean.classes)), self.cover(trigger), clean.device
        order = stream.child("rows").permutation(len(clean))
        count = self.asked(len(clean))
        rows, kept = order[:count], order[count : count + floor_of(self.covers, count)]
        partners = kept.roll(-1).to(clean.images.device)  # of each cover row, the next one
        others = clean.images[partners]  # (M, 3, H, W) uint8

        def near(images: Images, part: slice) -> Images:
            noise = stream.child("cover").child(f"rows{part.start}")
            return cover(images.to(device), to_float(others[part]).to(device), noise)

        with torch.no_grad():
            hit = show(clean, rows, lambda images, _: trigger(images.to(device)))
            covered = show(clean, kept, near)
        train = alter(clean, rows, hit, target.label(clean.labels[rows.to(device)]), "replace")
        train = alter(train, kept, covered, clean.labels[kept.to(device)], "replace")
        counts = {"requested": count, "poisoned": count, "cover": len(kept), "train": len(train)}
        return PoisonedSet(train, marked(rows, len(train)), marked(kept, len(train)), torch.arange(len(train)), counts)


@dataclass(frozen=True)
class MixAttack(ShareAttack):
    """A fixed trigger, applied to each batch before its augmentation. Write `trigger` and `cover`."""

    cover_ratio: float  # cover rows to a triggered one

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.cover_ratio", self.cover_ratio, 0)
        if self.poison_rate * (1 + self.cover_ratio) > 1:
            raise ConfigError(
                f"attack.poison_rate is {self.poison_rate:g} with attack.cover_ratio={self.cover_ratio:g}; triggered and cover "
                f"rows together would be more than the batch. Lower the rate to {1 / (1 + self.cover_ratio):.3g} or less, or "
                f"the ratio."
            )

    def check_recipe(self, recipe: Recipe, count: int) -> None:
        batch = min(recipe.batch_size, count)
        most = (
            ceil_of(self.poison_rate, batch)
            if self.batch_count == "unbiased"
            else max(1, floor_of(self.poison_rate, batch))
        )
        if recipe.epochs and self.cover_ratio and not floor_of(self.cover_ratio, most):
            raise ConfigError(
                f"attack.cover_ratio={self.cover_ratio:g} of at most {most} triggered rows in a batch of {batch} is no cover "
                f"row; expected at least 1. Set attack.cover_ratio={math.ceil(100 / most) / 100:g} or more, or 0 for none, or "
                f"raise attack.poison_rate or train.batch_size."
            )

    @abstractmethod
    def trigger(self, task: Task, stream: Stream) -> Any:
        """The fixed trigger for images of `task.train.size` pixels; random parts draw from `stream`."""

    @property
    def covers(self) -> float:
        return self.cover_ratio

    def test_trigger(self, task: Task, stream: Stream) -> Trigger:
        trigger: Trigger = self.at_test(self.trigger(task, stream.child("pattern")).to(task.train.device))
        return trigger

    def infect(self, task: Task, stream: Stream) -> Infection:
        trigger = self.trigger(task, stream.child("pattern")).to(task.train.device)
        cover, target = self.cover(trigger), self.make_target(len(task.train.classes))
        rows = Tally()
        model = task.build(stream.child("init"))
        history = fit(
            model,
            task.train,
            task.recipe,
            stream.child("train"),
            change=self.mix(trigger, cover, target, rows),
            snapshots=task.snapshots,
            beside=rows,
        )
        return Infection(model, self.at_test(trigger), target, None, None, history, self.facts(rows), cover)

    def mix(self, trigger: Any, cover: Cover, target: Target, rows: Tally) -> Change:
        """What makes an attacked batch of a clean one. A cover row's other image is the next row's. Counts in `rows`."""

        def change(images: Images, labels: Labels, stream: Stream) -> tuple[Images, Labels]:
            poisoned = self.count(len(images), stream.child("count"))
            end = min(poisoned + floor_of(self.cover_ratio, poisoned), len(images))
            rows.update(all=len(images), poisoned=poisoned, cover=end - poisoned)
            kept, others = images[poisoned:end], images.roll(-1, 0)[poisoned:end]
            parts = [trigger(images[:poisoned]), cover(kept, others, stream.child("cover")), images[end:]]
            return torch.cat(parts), torch.cat([target.label(labels[:poisoned]), labels[poisoned:]])

        return change
