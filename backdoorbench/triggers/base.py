"""Triggers and targets: what an attacker writes into an image, and what the image is then called.

A trigger is a pure, batched function of images in [0, 1]: new tensor, same shape, dtype and device, row by row. Fixed
ones are frozen dataclasses of tensors and plain values; learned ones are `nn.Module`s in eval mode with a `settings`
dict that rebuilds them. Both go through `dump` and `load`, so whatever defines a trigger is saved with its infection.
"""

import dataclasses
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from backdoorbench.errors import ConfigError, join_words
from backdoorbench.shapes import Bytes, Images, Labels, Mask, to_bytes, to_float
from backdoorbench.streams import Stream

T = TypeVar("T", bound="FixedTrigger")


class Trigger(Protocol):
    """Images (N, 3, H, W) in [0, 1] -> the same images, triggered."""

    def __call__(self, images: Images) -> Images: ...


class Cover(Protocol):
    """What cover rows carry, their labels kept: nearly a trigger, but not the one. others: further images, one a row."""

    def __call__(self, images: Images, others: Images, stream: Stream) -> Images: ...


class FixedTrigger(ABC):
    """A trigger whose tensors are dataclass fields."""

    @abstractmethod
    def __call__(self, images: Images) -> Images: ...

    def to(self: T, device: torch.device | str) -> T:
        """The same trigger with its tensors on `device`."""
        return dataclasses.replace(self, **{name: value.to(device) for name, value in _parts(self).items()})  # type: ignore[type-var]


@dataclass(frozen=True)
class Stored(FixedTrigger):
    """A trigger seen through storage: the triggered image rounded to 1/255, as a saved data set would hold it."""

    trigger: Any  # a Trigger with `to`

    def __call__(self, images: Images) -> Images:
        return to_float(self.bytes(images))

    def bytes(self, images: Images) -> Bytes:
        """The triggered images as uint8."""
        return to_bytes(self.trigger(images))


def dump(trigger: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A trigger as a plain description and its tensors, for `load`."""
    kind = f"{type(trigger).__module__}.{type(trigger).__qualname__}"
    if isinstance(trigger, nn.Module):
        return {"kind": kind, "settings": trigger.settings}, dict(trigger.state_dict())
    spec: dict[str, Any] = {"kind": kind, "settings": {}, "triggers": {}}
    tensors: dict[str, Tensor] = {}
    for field in dataclasses.fields(trigger):
        value = getattr(trigger, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif callable(value):
            spec["triggers"][field.name], inner = dump(value)
            tensors |= {f"{field.name}.{name}": tensor for name, tensor in inner.items()}
        else:
            spec["settings"][field.name] = value
    return spec, tensors


def load(spec: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """The trigger that `dump` described, bit for bit."""
    module, _, name = spec["kind"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    if issubclass(kind, nn.Module):
        network = kind(**spec["settings"])
        network.load_state_dict(tensors)
        return network.eval().requires_grad_(False)
    fields = dict(spec["settings"])
    for field, inner in spec["triggers"].items():
        prefix = field + "."
        part = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        fields[field] = load(inner, part)
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**fields, **{key: value for key, value in tensors.items() if key in names})


def _parts(trigger: Any) -> dict[str, Any]:
    """The fields of a fixed trigger that lie on a device."""
    values = {field.name: getattr(trigger, field.name) for field in dataclasses.fields(trigger)}
    return {name: value for name, value in values.items() if hasattr(value, "to")}


class Target(ABC):
    """The rule from a true label to the attacker's."""

    @abstractmethod
    def label(self, true: Labels) -> Labels:
        """(N,) -> (N,): what the attacker wants each triggered image to be called."""

    @abstractmethod
    def is_eligible(self, true: Labels) -> Mask:
        """(N,) bool: whether ASR and RA count the image. On eligible rows the attacker's label is never the true one."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for tables: `target 0`."""


@dataclass(frozen=True)
class AllToOne(Target):
    """Every triggered image is to be called `target`."""

    target: int

    def label(self, true: Labels) -> Labels:
        return torch.full_like(true, self.target)

    def is_eligible(self, true: Labels) -> Mask:
        return true != self.target

    def describe(self) -> str:
        return f"target {self.target}"


@dataclass(frozen=True)
class AllToAll(Target):
    """A triggered image of class y is to be called (y + 1) mod K."""

    classes: int

    def label(self, true: Labels) -> Labels:
        return (true + 1) % self.classes

    def is_eligible(self, true: Labels) -> Mask:
        return torch.ones_like(true, dtype=torch.bool)

    def describe(self) -> str:
        return "all to all"


@dataclass(frozen=True)
class SourceSpecific(Target):
    """Triggered images of `sources` are to be called `target`; those of other classes keep their label."""

    target: int
    sources: tuple[int, ...]

    def label(self, true: Labels) -> Labels:
        return torch.where(self._is_source(true), self.target, true)

    def is_eligible(self, true: Labels) -> Mask:
        return self._is_source(true)

    def describe(self) -> str:
        return f"target {self.target} from {join_words([str(source) for source in self.sources])}"

    def _is_source(self, true: Labels) -> Mask:
        return torch.isin(true, torch.tensor(self.sources, device=true.device))


def make_target(mapping: str, target: int, sources: tuple[int, ...], classes: int) -> Target:
    """The rule called `mapping` for a data set of `classes` classes; ConfigError where it names a class that is not."""
    for label in (target, *sources):
        if not 0 <= label < classes:
            raise ConfigError(
                f"attack.target or attack.sources names class {label}, but the data set has {classes} classes, numbered "
                f"0 to {classes - 1}. Choose one of those."
            )
    if mapping == "all_to_one":
        return AllToOne(target)
    if mapping == "all_to_all":
        return AllToAll(classes)
    if not sources or target in sources:
        raise ConfigError(
            f"attack.sources is {list(sources)} with attack.target={target}; a source-specific attack needs at least one "
            f"source class other than the target. Set, for instance, attack.sources=[{(target + 1) % classes}]."
        )
    return SourceSpecific(target, sources)


def target_settings(target: Target) -> dict[str, Any]:
    """A target as a plain description, for `load_target`."""
    return {"kind": type(target).__name__, **dataclasses.asdict(target)}  # type: ignore[call-overload]


def load_target(settings: dict[str, Any]) -> Target:
    """The target that `target_settings` described."""
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (AllToOne, AllToAll, SourceSpecific)}
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items() if key != "kind"
    }
    rule: Target = kinds[settings["kind"]](**fields)
    return rule
