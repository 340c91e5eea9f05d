"""Which network a file of weights is of, where nobody says: every option of `conf/model/` is tried.

Options are tried as they are, then with other choices (depth, style) and with the width of the file's first convolution, until
some fit; networks are built without memory for their weights. A name that the file itself gives beside its weights (`arch`,
`model_name`) is tried among timm's and torchvision's, and some common ones of torchvision's without it. Found are those whose
weights all have a place, by names; where no names fit, by order and shapes.
"""

import dataclasses
import functools
import logging
import re
import threading
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from backdoorbench.config import catalog
from backdoorbench.config.build import build, settings, target
from backdoorbench.config.compose import option
from backdoorbench.errors import BdxError, ModelError
from backdoorbench.models import matching
from backdoorbench.models.base import LARGE, Classifier, ModelSpec
from backdoorbench.models.by_names import COLOURS
from backdoorbench.models.matching import Fit
from backdoorbench.models.reading import Found, State

log = logging.getLogger(__name__)

WIDENINGS = (1, 2, 4, 8, 10, 12)  # of wide networks, as the literature has them
COMMON = (  # of torchvision's networks, where the file does not say which
    "resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "vgg16_bn", "mobilenet_v2", "mobilenet_v3_small",
    "mobilenet_v3_large", "densenet121", "efficientnet_b0", "alexnet", "convnext_tiny",
)  # fmt: skip
DRAWS = {  # what fills a weight when a network is built
    Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_, Tensor.erfinv_, Tensor.mul_, Tensor.add_, Tensor.clamp_,
}  # fmt: skip
REPLACED = 16  # weights, at most, that a network has for a while as it is built
UNSAID = 99  # the rank of those
SMALL, LARGE_STEM = 32, 7  # pixels: what a network reads whose first filters are smaller than those of large images
LAST = re.compile(r"(.*\.)?(fc|linear|head|classifier|output)(\.\w+)*\.weight")  # what last layers are called
NAMES = (
    "arch",
    "model_name",
    "architecture",
    "model",
    "args.arch",
    "args.model",
    "hparams.arch",
    "hyper_parameters.arch",
)


@dataclass(frozen=True)
class Candidate:
    """A network that a file's weights fit.

    option   of `conf/model/`, with the settings that differ from it
    size     pixels a side of images that it reads, as far as its stem tells
    classes  the rows of its last layer"""

    option: str
    overrides: dict[str, Any]
    size: int
    classes: int
    fit: Fit

    @property
    def words(self) -> list[str]:
        """As it is typed: `model=wrn_16_1 model.style=standard`."""
        return [f"model={self.option}", *(f"model.{name}={value}" for name, value in self.overrides.items())]

    @property
    def how(self) -> str:
        """How it fits, in words."""
        count = len(self.fit.places) + len(self.fit.colours or ())
        return (
            f"{count} weights by names" if self.fit.by == "names" else f"{count} weights by execution order and shapes"
        )


def identify(found: Found, size: int | None = None, names: Sequence[str] = ()) -> list[Candidate]:
    """The networks that a file fits: those that need the fewest settings other than ours, by names before by order.

    size   pixels a side of the images, where somebody knows
    names  of networks that it may be of, beside those that it has itself"""
    for state in found.states[:3]:
        for classes in class_counts(state) if _stem(state) is not None else []:
            side = size or likely_side(state)
            for rank, alike in groupby(_guesses(state, [*_said(found), *_names(names)]), key=lambda guess: guess.rank):
                fitting = [
                    Candidate(guess.option, guess.overrides, side, classes, fit)
                    for guess in alike
                    if (fit := _fit(guess, found, state, classes, side)) is not None
                ]
                if fitting:
                    log.debug(f"{found.named}: {len(fitting)} networks fit, of rank {rank}")
                    return sorted(fitting, key=lambda each: each.fit.by != "names")
    return []


def likely_side(state: State) -> int:
    """Pixels a side of the images that a network reads, as far as its first filters tell."""
    return LARGE if _stem_side(state) >= LARGE_STEM else SMALL


def class_counts(state: State) -> list[int]:
    """How many classes a network may have: the rows of what is called its last layer, of all that are so called the least deep
    first, since parts of blocks are, too; and those of the very last one."""
    linear = {name: value for name, value in state.weights.items() if value.ndim in (2, 4) and _is_linear(value)}
    named = [name for name in linear if LAST.fullmatch(name)]
    least = min((name.count(".") for name in named), default=0)
    outer = [name for name in named if name.count(".") == least]
    return list(dict.fromkeys(len(linear[name]) for name in [*outer[-1:], *named[-1:], *list(linear)[-1:]]))


def _is_linear(value: Tensor) -> bool:
    return value.ndim == 2 or (value.ndim == 4 and value.shape[2:] == (1, 1))


@dataclass(frozen=True)
class Guess:
    """An option with settings that differ. rank: how far it is fetched, by their number; what others only might have, last."""

    rank: int
    option: str
    overrides: dict[str, Any]


def _guesses(state: State, said: list[str]) -> list[Guess]:
    """Each option as it is, then with its other choices and widths; those that name one network once.

    said  names of networks that it may be"""
    stem = _stem(state)
    first = {"channels": 1} if stem is not None and stem.shape[1] == 1 else {}
    guesses: list[Guess] = []
    for name in catalog.names("model"):
        node = _node(name)
        if "target" in node:  # anybody's
            continue
        choices = {key: (node[key], *values) for key, values in _choices(node).items()}
        if named := next((key for key in ("timm_name", "architecture") if key in node), None):
            choices = {named: tuple(said)} | choices
        elif stem is not None and "width" in node:
            choices["width"] = (node["width"], len(stem))
        for values in product(*choices.values()):
            changed = {key: value for key, value in zip(choices, values, strict=True) if value != node[key]}
            guesses.append(Guess(len(changed), name, first | changed))
        if named == "architecture":
            own = {"stem": "as_is"}  # of a ResNet that was trained on small images with the stem of large ones
            guesses += [
                Guess(UNSAID, name, {named: architecture, **first, **stem})
                for architecture in COMMON
                for stem in ({}, own)[: 1 + architecture.startswith("resnet")]
            ]
    known: dict[str, Guess] = {}
    for guess in sorted(guesses, key=lambda guess: guess.rank):
        known.setdefault(str(_node(guess.option) | guess.overrides | {"name": ""}), guess)
    return list(known.values())


@functools.cache
def _node(name: str) -> dict[str, Any]:
    """The settings of an option, without those that are other settings."""
    return {key: value for key, value in option("model", name).items() if key != "checkpoint"} | {
        "name": name,
        "checkpoint": None,
    }


def _stem(state: State) -> Tensor | None:
    """The first convolution of a file; of its weights only."""
    return next((value for name, value in state.weights.items() if value.ndim == 4 and not _is_colour(name)), None)


def _stem_side(state: State) -> int:
    stem = _stem(state)
    return 0 if stem is None else int(stem.shape[-1])


def _choices(node: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Settings of an option that shape its layers, with what they may be."""
    hints = settings(target(node, "model"))
    shared = settings(ModelSpec)
    found = {
        name: typing.get_args(hint)
        for name, hint in hints.items()
        if typing.get_origin(hint) is Literal and name not in shared
    }
    return found | ({"widen": WIDENINGS} if "widen" in hints else {})


def _said(found: Found) -> list[str]:
    """Names of networks that the file itself has beside its weights."""
    return _names(found.beside.get(key) for key in NAMES)


def _names(values: Iterable[Any]) -> list[str]:
    """Those values that may be a network's name."""
    return [text for text in values if isinstance(text, str) and re.fullmatch(r"[\w.]{3,60}", text)]


def _fit(guess: Guess, found: Found, state: State, classes: int, size: int) -> Fit | None:
    """How a network fits a state; None where it cannot be built so, or does not fit."""
    try:
        spec: ModelSpec = build(_node(guess.option) | guess.overrides, "model")
        there = _kinds(state.weights)
        with torch.device("meta"), Unfilled(), refusing(there):
            net = spec.net(classes, size)
            spec.reads.narrow(net, guess.option)
        if _kinds(net.state_dict()) - there:  # which may have others beside it
            return None
        channels = spec.reads.channels  # ours say how they are normalised, by as many numbers
        model = Classifier(net, size, (0.0,) * channels, (1.0,) * channels, channels).to("meta")
        fits = matching.find(model, dataclasses.replace(found, states=(state,)), guess.option)
    except BdxError:  # a size that it cannot read, a width that it cannot have, names that do not tell
        return None
    return fits[0] if fits else None


class Unfilled(TorchFunctionMode):
    """Inside, weights without memory are not drawn: nobody could read them, and it takes most of the time."""

    def __torch_function__(
        self, function: Any, types: Any, given: Sequence[Any] = (), named: dict[str, Any] | None = None
    ) -> Any:
        return given[0] if function in DRAWS and given[0].is_meta else function(*given, **(named or {}))


@contextmanager
def refusing(there: Counter[tuple[int, ...]]) -> Iterator[None]:
    """Inside, the construction of a network ends with a ModelError as soon as it has more weights that are not there, of their
    shape and as often, than are ever replaced on the way (a stem, a classifier).

    there  how many weights there are of each kind"""
    here, left, spare = threading.get_ident(), Counter(there), REPLACED

    def count(_: nn.Module, name: str, value: nn.Parameter) -> None:
        nonlocal spare
        if threading.get_ident() != here or not value.ndim or _is_colour(name):
            return
        kind = _kind(value)
        left[kind] -= 1
        spare -= left[kind] < 0
        if spare < 0:
            raise ModelError(f"{name} of shape {tuple(value.shape)} has no place")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _kinds(weights: dict[str, Tensor]) -> Counter[tuple[int, ...]]:
    """How many weights there are of each kind; counters do not count."""
    return Counter(_kind(value) for name, value in weights.items() if value.ndim and not _is_colour(name))


def _kind(value: Tensor) -> tuple[int, ...]:
    """The shape of a weight; a 1x1 convolution has that of the equal linear layer."""
    return tuple(value.shape[:2]) if _is_linear(value) else tuple(value.shape)


def _is_colour(name: str) -> bool:
    """Whether a weight is what images are normalised by."""
    return name.rpartition(".")[2] in COLOURS
