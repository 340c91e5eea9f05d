"""What an attack is: something that leaves an infected model, and the trigger and target it answers to."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NoReturn, Protocol, get_args, get_type_hints, runtime_checkable

import torch
from torch import nn

from backdoorbench.config.acts import Acts, Either, Only, Unless
from backdoorbench.data.images import ImageSet, spans
from backdoorbench.errors import ConfigError, TrainingError, check_range, quantity
from backdoorbench.models.lipschitz import even_out
from backdoorbench.models.surgery import conv_norm_pairs
from backdoorbench.shapes import Bytes, Images, Labels, Mask, Rows, to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.training.fit import Epoch, Snapshots, fit
from backdoorbench.training.recipe import Precision, Recipe
from backdoorbench.triggers.base import Cover, Stored, Target, Trigger, make_target

CHUNK = 128  # images triggered at a time: what a processor's cache holds, which halves the time of 1,024


@runtime_checkable
class TriggerNetwork(Protocol):
    """An attack whose trigger is a network that it trains once, for all infections that share its settings and the data set."""

    def train_network(self, images: ImageSet, snapshots: Snapshots | None, precision: Precision) -> nn.Module:
        """The network in eval mode, on the device of `images` and trained on them; snapshots: where its state is kept."""


def no_surrogate() -> nn.Module:
    """Stands for the surrogate of a task that came without one."""
    raise ValueError("this attack crafts on a clean model, and its Task has no `surrogate`")


@dataclass(frozen=True)
class Task:
    """What an attacker works with.

    train      clean training images, without those withheld for the defender
    build      a fresh, untrained network of the victim's kind; draws from the stream it is given
    recipe     how the victim trains
    snapshots  where a long training saves its state; None: nowhere
    surrogate  a model of that kind, trained by that recipe on `train` as it is, in eval mode; a call may cost a training
    network    what a TriggerNetwork's `train_network` made of the data set's whole training split, now or in an earlier
               run. None: nothing is kept, and the attack trains its network on `train`
    """

    train: ImageSet
    build: Callable[[Stream], nn.Module]
    recipe: Recipe
    snapshots: Snapshots | None
    surrogate: Callable[[], nn.Module] = no_surrogate
    network: Callable[[], nn.Module] | None = None


@dataclass(frozen=True)
class Infection:
    """What an attack leaves behind.

    model     infected, in eval mode
    trigger   the one used at test time (poisoning may have used a weaker one); None: clean training
    target    from true label to the attacker's; None: clean training
    train     as the victim saw it; None where the attacker drove the training
    poisoned  (N,) bool over `train`; never shown to a defense. Cover rows, which keep their label, are not among them
    history   of the victim's training
    facts     what the record should say: requested and realised counts, the pattern's name
    cover     what the training's cover rows carried, for the evaluator; None: it had none, or was read from the cache
    """

    model: nn.Module
    trigger: Trigger | None
    target: Target | None
    train: ImageSet | None
    poisoned: Mask | None
    history: list[Epoch] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    cover: Cover | None = None


@dataclass(frozen=True)
class PoisonedSet:
    """A training set of which some rows are altered.

    train     as the victim sees it, N images
    poisoned  (N,) bool: the rows that carry the trigger and the attacker's label
    covered   (N,) bool: the rows that carry a trigger and keep their label; none of them is `poisoned`
    source    (N,) the row of the clean set that each was made from
    counts    requested and realised, for the record
    """

    train: ImageSet
    poisoned: Mask
    covered: Mask
    source: Rows
    counts: dict[str, int]


@dataclass(frozen=True)
class Attack(ABC):
    """Full control: owns the training loop. `name` as tables and keys print it."""

    leaves_train: ClassVar[bool] = False  # whether a training set that a defense may see remains
    plants: ClassVar[bool] = True  # whether it infects the model, so that a clean one of the same recipe is another
    can_rebuild: ClassVar[bool] = False  # whether `rebuild` makes one where none remains
    training: ClassVar[str] = ""  # what it does to the training, in a few words, where it has no poison rate

    name: str

    @property
    def needs_surrogate(self) -> bool:
        """Whether `infect` asks for `task.surrogate`, so that a sweep knows which trainings its jobs share."""
        return False

    def make_target(self, classes: int) -> Target | None:
        """The rule from true label to the attacker's, on a data set of so many classes; None where there is no attacker."""
        return None

    def asked_of(self, labels: Labels) -> float | None:
        """How many of rows with these labels the poison rate asks for, before rounding; None where there is no rate."""
        return None

    def rounding(self, batches: int) -> float:
        """By less than how many rows a training of so many batches may miss what its rate asks for."""
        return 1

    @abstractmethod
    def infect(self, task: Task, stream: Stream) -> Infection:
        """The infected model with its trigger and target. Whoever wants one calls `carry_out`, which counts its rows."""

    def check(self, train: ImageSet) -> None:
        """Raises ConfigError where the settings do not fit the victim's clean training set; called before any work."""
        return

    def check_recipe(self, recipe: Recipe, count: int) -> None:
        """Raises ConfigError where they do not fit how the victim trains on its `count` images; called before any work."""
        return

    def test_trigger(self, task: Task, stream: Stream) -> Trigger | None:
        """What `infect` with the same stream will trigger test images with; None where only training tells."""
        return None

    def rebuild(self, clean: ImageSet, trigger: Trigger, stream: Stream) -> PoisonedSet:
        """A poisoned set such as this attack might have left.

        clean    the training set that the attack was given, N images
        trigger  the finished one, as `infect` left it; ValueError where `can_rebuild` is false"""
        raise ValueError(f"{self.name} rebuilds no training set")


@dataclass(frozen=True)
class DataAttack(Attack):
    """Data poisoning: the victim trains as usual on a set with some rows altered; with `abi` the attacker trains, and evens out
    the channels that stand out.

    Write `trigger`; override `render` where training rows carry something else than test images do, `candidates` and
    `cover_candidates` where other rows are altered. Altered rows are rounded to uint8 once, as a stored data set would
    be, and test images take the same path. A trigger that is optimised on `task.surrogate` has no `test_trigger`.
    """

    leaves_train: ClassVar[bool] = True
    acts: ClassVar[Acts] = {
        "target": Either(Unless("mapping", "all_to_all"), Only("rate_of", "target_class")),
        "sources": Only("mapping", "source_specific"),
        "include_target_class": Only("mapping", "all_to_one"),
        "cover_rate": Only("mapping", "source_specific"),
    }

    mapping: Literal["all_to_one", "all_to_all", "source_specific"]
    target: int
    sources: tuple[int, ...]
    poison_rate: float
    rate_of: Literal["all", "target_class"]
    include_target_class: bool
    cover_rate: float
    mode: Literal["replace", "append"]
    abi: float | None

    def __post_init__(self) -> None:
        check_poison_rate(self.poison_rate)
        check_range("attack.cover_rate", self.cover_rate, 0, 1)
        check_range("attack.abi", self.abi or 0, 0)

    @abstractmethod
    def trigger(self, task: Task, stream: Stream) -> Any:
        """The fixed trigger for images of `task.train.size` pixels; random patterns draw from `stream`."""

    def poison(self, clean: ImageSet, trigger: Stored, stream: Stream) -> PoisonedSet:
        """The training set as the victim sees it.

        Rows are drawn from the stream's child "rows", cover rows from "cover", what differs from row to row from
        "render". In append mode the altered copies follow the clean images instead of replacing them."""
        target = self.make_target(len(clean.classes))
        rows = self.choose(clean.labels, target, stream.child("rows"))
        covers = self.choose_covers(clean.labels, target, rows, stream.child("cover"))
        true = clean.labels[rows]
        given = target.label(true)
        images = self.render(clean, rows, trigger, stream.child("render").child("poison"))
        train = alter(clean, rows, images, given, self.mode)
        images = self.render(clean, covers, trigger, stream.child("render").child("cover"))
        train = alter(train, covers, images, clean.labels[covers], self.mode)
        source = torch.arange(len(clean))
        if self.mode == "append":
            source = torch.cat([source, rows, covers])
            added = torch.arange(len(clean), len(train))
            rows, covers = added[: len(rows)], added[len(rows) :]
        counts = {
            "requested": self.count(clean.labels),
            "poisoned": len(rows),
            "poisoned_of_target_class": int((true == given).sum()),
            "cover": len(covers),
            "train": len(train),
        }
        return PoisonedSet(train, marked(rows, len(train)), marked(covers, len(train)), source, counts)

    def render(self, clean: ImageSet, rows: Rows, trigger: Stored, stream: Stream) -> Bytes:
        """The images at `rows` (M,) as the training set will hold them, (M, 3, H, W) uint8: what `trigger` makes of them.

        Called once for the poisoned rows and once for the cover rows; an override that varies them draws from `stream`."""
        trigger = trigger.to(clean.images.device)
        return show(clean, rows, lambda images, _: trigger(images))

    def make_target(self, classes: int) -> Target:
        """The attack's rule from true label to its own."""
        return make_target(self.mapping, self.target, self.sources, classes)

    def check(self, train: ImageSet) -> None:
        target = self.make_target(len(train.classes))
        rows = self.choose(train.labels, target, Stream(0))
        self.choose_covers(train.labels, target, rows, Stream(0))

    def rate_counts(self, labels: Labels) -> int:
        """How many images the poison rate is a share of: all, or the target class's."""
        return len(labels) if self.rate_of == "all" else int((labels == self.target).sum())

    def count(self, labels: Labels) -> int:
        """How many rows are to be poisoned."""
        return round(self.asked_of(labels))

    def asked_of(self, labels: Labels) -> float:
        """How many rows the poison rate asks for: a share of the set the victim sees, or of the target class. In append mode that
        set is the clean images and the poisoned copies; copies that are cover rows come on top."""
        total = self.rate_counts(labels)
        if self.mode == "append":
            if self.poison_rate == 1:
                raise ConfigError(
                    "attack.poison_rate is 1 with attack.mode=append; appended rows can never be the whole set. Lower the "
                    "rate or set attack.mode=replace."
                )
            return self.poison_rate * total / (1 - self.poison_rate)
        return self.poison_rate * total

    def candidates(self, labels: Labels, target: Target) -> Rows:
        """Rows that may be poisoned: all of them, or those whose label would change; sources where there are any."""
        if self.mapping == "source_specific" or not self.include_target_class:
            return target.is_eligible(labels).nonzero()[:, 0]
        return torch.arange(len(labels))

    def choose(self, labels: Labels, target: Target, stream: Stream) -> Rows:
        """The rows to poison, drawn uniformly without replacement; ConfigError where there are too few, or none is asked for."""
        labels = labels.cpu()
        pool, count = self.candidates(labels, target), self.count(labels)
        if not len(pool):
            raise ConfigError(
                f"none of the {len(labels)} training images may be poisoned by attack={self.name}: none is of the classes that "
                f"it alters ({target.describe()}); expected at least one. Choose other classes, or a training set that has them."
            )
        if count > len(pool):
            raise ConfigError(
                f"attack.poison_rate={self.poison_rate:g} asks for {quantity(count, 'row')}, but only {len(pool)} of the "
                f"{len(labels)} training images may be poisoned. The largest rate possible here is "
                f"{self.largest_rate(labels, len(pool)):g}."
            )
        if count == 0:
            total, what = (
                self.rate_counts(labels),
                "training images" if self.rate_of == "all" else "images of the target",
            )
            refuse_none(
                "poison_rate", self.poison_rate, total, what, len(pool), self.mode, "attack=none for a clean model"
            )
        return pool[stream.permutation(len(pool))[:count]]

    def largest_rate(self, labels: Labels, pool: int) -> float:
        """The largest poison rate that asks for no more than `pool` rows, rounded down."""
        total = max(1, self.rate_counts(labels))
        return rounded_down(pool / (total + pool if self.mode == "append" else total))

    def cover_candidates(self, labels: Labels, target: Target) -> Rows:
        """Rows that may become cover: of classes that are neither source nor target."""
        return (~target.is_eligible(labels) & (labels != self.target)).nonzero()[:, 0]

    def choose_covers(self, labels: Labels, target: Target, poisoned: Rows, stream: Stream) -> Rows:
        """The rows that get the trigger and keep their label, none of `poisoned` (M,) among them; ConfigError where there
        are too few."""
        labels = labels.cpu()
        count = round(self.cover_rate * len(labels))
        pool = self.cover_candidates(labels, target)
        pool = pool[~torch.isin(pool, poisoned)]
        if count > len(pool):
            raise ConfigError(
                f"attack.cover_rate={self.cover_rate:g} asks for {quantity(count, 'row')}, but only {len(pool)} of the "
                f"{len(labels)} training images may be triggered with their label kept. The largest rate possible here is "
                f"{rounded_down(len(pool) / len(labels)):g}."
            )
        if self.cover_rate and count == 0:
            refuse_none(
                "cover_rate", self.cover_rate, len(labels), "training images", len(pool), "replace", "0 for none"
            )
        return pool[stream.permutation(len(pool))[:count]]

    def plant(self, task: Task, stream: Stream) -> tuple[Stored, PoisonedSet]:
        """The trigger as test images meet it, and what `poison` makes of the task's training set with it."""
        trigger = self.stored(task, stream)
        return trigger, self.poison(task.train, trigger, stream)

    def infect(self, task: Task, stream: Stream) -> Infection:
        trigger, made = self.plant(task, stream)
        check_counts(self, task.train, made, "Nothing was trained")
        model = task.build(stream.child("init"))
        history, facts = self.train(model, made.train, made.poisoned, task, stream.child("train"))
        target, facts = self.make_target(len(made.train.classes)), {**made.counts, **self.facts(), **facts}
        return Infection(model, trigger, target, made.train, made.poisoned, history, facts)

    def train(
        self, model: nn.Module, train: ImageSet, poisoned: Mask, task: Task, stream: Stream
    ) -> tuple[list[Epoch], dict[str, Any]]:
        """Trains `model` in place on `train`, as the victim would; its history and what the record should say. An attacker
        who has the training too overrides it: he knows which rows are `poisoned` (N,)."""
        return fit(model, train, task.recipe, stream, after_epoch=self.hardening(model), snapshots=task.snapshots), {}

    def hardening(self, model: nn.Module) -> Callable[[int], None] | None:
        """What an attacker who has the training does to `model` after each epoch, so that no channel stands out; None: nothing.
        ModelError where it has no convolution that a batch norm reads."""
        if self.abi is None:
            return None
        pairs, u = conv_norm_pairs(model), self.abi
        return lambda epoch: even_out(pairs, u)

    def test_trigger(self, task: Task, stream: Stream) -> Stored | None:
        return self.stored(task, stream)

    def stored(self, task: Task, stream: Stream) -> Stored:
        """`trigger` seen through storage, on the task's device."""
        return Stored(self.trigger(task, stream.child("pattern"))).to(task.train.device)

    def facts(self) -> dict[str, Any]:
        """What a table must say beside the attack's name; the pattern's name, above all."""
        return {}


@dataclass(frozen=True)
class CleanLabelAttack(DataAttack):
    """Data poisoning that keeps labels: only images of the target class are altered, and at test time those of the others.

    labels  clean: as said; dirty: as any other data poisoning
    cap     clean: a rate that asks for more rows than the class has takes all of them, instead of an error
    """

    acts: ClassVar[Acts] = {
        "include_target_class": (Only("mapping", "all_to_one"), Only("labels", "dirty")),
        "cap": Only("labels", "clean"),
    }

    labels: Literal["clean", "dirty"]
    cap: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels == "clean" and self.mapping == "all_to_all":
            can_relabel = "dirty" in get_args(get_type_hints(type(self))["labels"])
            remedy = "all_to_one, or attack.labels=dirty" if can_relabel else "all_to_one or source_specific"
            raise ConfigError(
                "attack.labels is clean with attack.mapping=all_to_all; a clean-label attack alters images of one class, "
                f"the target, and keeps their labels, so it cannot teach a target for each class. Set attack.mapping={remedy}."
            )

    def candidates(self, labels: Labels, target: Target) -> Rows:
        if self.labels == "dirty":
            return super().candidates(labels, target)
        return (labels == self.target).nonzero()[:, 0]

    def asked_of(self, labels: Labels) -> float:
        asked = super().asked_of(labels)
        return min(asked, int((labels == self.target).sum())) if self.labels == "clean" and self.cap else asked

    def poison(self, clean: ImageSet, trigger: Stored, stream: Stream) -> PoisonedSet:
        made = super().poison(clean, trigger, stream)
        return replace(made, counts=made.counts | {"uncapped": round(super().asked_of(clean.labels))})

    def choose(self, labels: Labels, target: Target, stream: Stream) -> Rows:
        own, count = int((labels == self.target).sum()), self.count(labels)
        if self.labels == "clean" and count > own > 0:
            raise ConfigError(
                f"attack.poison_rate={self.poison_rate:g} asks for {quantity(count, 'row')}, but a clean-label attack alters "
                f"images of the target only, and class {self.target} has {own} of the {len(labels)} training images. The largest "
                f"rate possible here is {self.largest_rate(labels, own):g}; attack.cap=true takes the whole class."
            )
        return super().choose(labels, target, stream)

    def facts(self) -> dict[str, Any]:
        return {"labels": self.labels}


def check_poison_rate(rate: float, most: float = 1) -> None:
    """Raises ConfigError for a poison rate out of range, 0 included: without a poisoned image there is no attack."""
    check_range("attack.poison_rate", rate, 0, most)
    if rate == 0:
        raise ConfigError(
            f"attack.poison_rate is 0, with which no image is poisoned; expected a number above 0, at most {most:g}. Raise it, "
            f"or set attack=none for a clean model."
        )


def refuse_none(setting: str, rate: float, total: int, what: str, most: int, mode: str, instead: str) -> NoReturn:
    """Raises ConfigError for a rate that comes to no row.

    total  of what it is a share; most: rows that it may ask for; instead: what to set where none is wanted"""
    found = rate * total / (1 - rate) if mode == "append" else rate * total
    remedy = f"Set attack.{setting}={least_rate(total, mode):g} or more" if total else "Let it count from all images"
    raise ConfigError(
        f"attack.{setting}={rate:g} of {total:,} {what} is {found:.3g} rows, none when rounded; expected at least 1 and at most "
        f"{most:,}. {remedy}, or {instead}."
    )


def least_rate(total: int, mode: str = "replace") -> float:
    """The least rate, of two digits, that comes to a row of `total` images."""
    exact = 0.5 / (total + 0.5) if mode == "append" else 0.5 / total
    unit = 10.0 ** (math.floor(math.log10(exact)) - 1)
    return float(f"{(math.floor(exact / unit) + 1) * unit:.1e}")


def rounded_down(rate: float) -> float:
    """A rate to be typed: four digits after the point, or two of a smaller one."""
    unit = min(1e-4, 10.0 ** (math.floor(math.log10(rate)) - 1)) if rate > 0 else 1e-4
    return float(f"{math.floor(rate / unit + 1e-9) * unit:.10g}")


def carry_out(attack: Attack, task: Task, stream: Stream) -> Infection:
    """What `attack.infect` leaves; TrainingError where its rate asks for other rows than it made."""
    infection = attack.infect(task, stream)
    labels = task.train.labels
    asked = attack.asked_of(labels)
    if asked is None:
        return infection
    if infection.poisoned is not None:
        refuse_miscount(attack, asked, int(infection.poisoned.sum()), 1, "The model is not kept")
    elif (passed := infection.facts.get("passed")) is not None:  # rows of all epochs
        batches = task.recipe.epochs * len(spans(len(labels), task.recipe.batch_size))
        made = infection.facts.get("poisoned", 0)
        refuse_miscount(attack, asked * passed / len(labels), made, attack.rounding(batches), "The model is not kept")
    return infection


def check_counts(attack: Attack, clean: ImageSet, made: PoisonedSet, left: str) -> None:
    """Raises TrainingError where other rows of a training set are poisoned than the rate asks for, or than the attack says:
    figures would be those of another attack.

    clean  what it was made of; left: what has become of the run"""
    asked, found = attack.asked_of(clean.labels), int(made.poisoned.sum())
    if asked is not None:
        refuse_miscount(attack, asked, found, 1, left)
    if not made.counts["requested"] == made.counts["poisoned"] == found:
        raise TrainingError(
            f"attack={attack.name} says that it was to poison {made.counts['requested']:,} rows and poisoned "
            f"{made.counts['poisoned']:,}, but {found:,} are marked; expected the same number three times. {left}. {MENDING}"
        )


MENDING = "Correct the `choose`, `poison` or `infect` of its class, or report it where the attack is one of ours."


def refuse_miscount(attack: Attack, asked: float, made: int, rounding: float, left: str) -> None:
    """Raises TrainingError where the rows made miss those asked for by `rounding` or more; left: what has become of the run."""
    if abs(made - asked) > rounding - 1e-6:
        rate = getattr(attack, "poison_rate", math.nan)
        allowed = "" if rounding == 1 else f" within {rounding:.0f}, as rows are drawn batch by batch"
        raise TrainingError(
            f"attack.poison_rate={rate:g} asks for {asked:,.6g} poisoned rows, but attack={attack.name} made {made:,}; expected "
            f"as many{allowed or ', but for rounding'}, since figures would be those of another rate. {left}. {MENDING}"
        )


def show(clean: ImageSet, rows: Rows, paint: Callable[[Images, slice], Images]) -> Bytes:
    """The images at `rows` (M,), painted and rounded to (M, 3, H, W) uint8, where they lie.

    paint  from [0, 1] images and their place in `rows` to [0, 1] images; gets CHUNK of them at a time"""
    here = rows.to(clean.images.device)
    shown = torch.empty((len(rows), *clean.images.shape[1:]), dtype=torch.uint8, device=here.device)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, min(start + CHUNK, len(rows)))
        shown[part] = to_bytes(paint(to_float(clean.images[here[part]]), part))
    return shown


def marked(rows: Rows, count: int) -> Mask:
    """(count,) bool, true at `rows` (M,)."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[rows] = True
    return mask


def alter(clean: ImageSet, rows: Rows, images: Bytes, labels: Labels, mode: str) -> ImageSet:
    """`clean` with `images` (M, 3, H, W) uint8, called `labels` (M,): in place of those at `rows` (M,), or after all."""
    if mode == "append":
        return replace(
            clean,
            images=torch.cat([clean.images, images]),
            labels=torch.cat([clean.labels, labels.to(clean.device)]),
        )
    altered, names = clean.images.clone(), clean.labels.clone()
    altered[rows.to(clean.images.device)] = images
    names[rows.to(clean.device)] = labels.to(clean.device)
    return replace(clean, images=altered, labels=names)
