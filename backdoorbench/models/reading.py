"""What a file of weights offers a network: its state dicts by the keys that lead to them, and the plain values beside them.

    found = read(FILE)       nothing of the file runs; see formats.py and unpickling.py
    found.states             each dict of tensors, and each pickled network's parameters, likeliest first
    found.beside             `epoch`, `acc`, `args.arch`: plain values, by dotted name

Which of the states a network takes, `matching` finds by trying.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backdoorbench.models import formats
from backdoorbench.models.formats import Format
from backdoorbench.models.unpickling import Foreign, Global

Weights = dict[str, Tensor]
Keys = tuple[Any, ...]  # lead from the whole content to a part of it

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "netC",
    "model_raw",
    "classifier",
)  # where scripts usually put it
AVERAGED = ("ema", "swa", "averaged", "shadow")  # in the names of states that are means of others
MODULE = ("_parameters", "_buffers", "_modules")  # what a pickled network keeps its parts in
WRAPPER = Global("torch._utils", "_rebuild_wrapper_subclass")  # what makes tensors that are no plain ones
DEEPEST, MOST = 4, 10_000  # containers inside each other, and in all, that are looked through


@dataclass(frozen=True)
class State:
    """A dict of tensors that may be a network's.

    keys       lead to it: none where it is the whole file
    weights    by the file's own names, in its order
    is_module  whether it was gathered from a pickled network"""

    keys: Keys
    weights: Weights
    is_module: bool = False

    @property
    def name(self) -> str:
        """`net`, or nothing for the whole file."""
        return ".".join(map(str, self.keys))

    @property
    def is_averaged(self) -> bool:
        """Whether its name says that it is a mean of weights over training."""
        return is_averaged(self.name)


def is_averaged(name: str) -> bool:
    """Whether a name says that what it names is a mean of weights over training."""
    return any(word in name.lower().replace(".", "_").split("_") for word in AVERAGED)


@dataclass(frozen=True)
class Found:
    """What a file of weights holds.

    named   the file as the user named it, for messages
    states  likeliest first: those under names that training scripts use, averages of weights last"""

    named: str
    file: Path
    format: Format
    tree: Any
    states: tuple[State, ...]
    beside: dict[str, Any]
    foreign: tuple[str, ...]
    metadata: dict[str, str]

    @property
    def is_ordered(self) -> bool:
        """Whether its weights stand in the order in which the network registered them; safetensors files sort theirs."""
        return self.format != "safetensors"

    @property
    def unread(self) -> dict[str, str]:
        """Entries of state dicts that are no plain tensors, quantised ones or parts of one, by their names: of which kind."""
        inside = (
            value.inside if isinstance(value, Foreign) else value
            for _, value in _containers(self.tree)
            if not (isinstance(value, Foreign) and is_module(value))
        )
        return {
            name: kind
            for entries in inside
            for name, part in entries.items()
            if isinstance(name, str) and (kind := _kind(part)) is not None
        }

    @property
    def optimizers(self) -> list[str]:
        """The dotted names of what optimizers have left in it."""
        return [
            ".".join(map(str, keys)) or "all of it" for keys, value in _containers(self.tree) if is_optimizer(value)
        ]


def read(file: str | Path, named: str = "") -> Found:
    """What a file of weights holds; ModelError where it is none that is read. Nothing that the file says is imported or called.

    named  the file as the user named it, for messages; its path by default"""
    path = Path(file).expanduser()
    content = formats.read(path, named or str(file))
    states = sorted(_states(content.tree), key=_unlikeliness)  # stable: else in the file's order
    beside = dict(_plain(content.tree))
    return Found(
        named or str(file),
        path,
        content.format,
        content.tree,
        tuple(states),
        beside,
        content.foreign,
        content.metadata or {},
    )


def _unlikeliness(state: State) -> tuple[bool, int, int]:
    first = str(state.keys[0]) if state.keys else ""
    usual = WRAPPERS.index(first) if first in WRAPPERS else len(WRAPPERS)
    return state.is_averaged, len(state.keys) if usual == len(WRAPPERS) else 0, usual


def _containers(tree: Any) -> Iterator[tuple[Keys, Any]]:
    """Every dict and every note of an object, with the keys that lead there; from the outside in, each once."""
    todo: deque[tuple[Keys, Any]] = deque([((), tree)])
    seen: set[int] = set()
    while todo and len(seen) < MOST:
        keys, value = todo.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict | Foreign):
            yield keys, value
        if len(keys) < DEEPEST and not is_optimizer(value):
            todo += [
                ((*keys, key), part) for key, part in _parts(value) if isinstance(part, dict | list | tuple | Foreign)
            ]


def is_optimizer(value: Any) -> bool:
    """Whether a dict is what an optimizer keeps: a tensor or more for each weight, and settings."""
    inside = value.inside if isinstance(value, Foreign) else value
    return (
        isinstance(inside, dict)
        and isinstance(inside.get("state"), dict)
        and isinstance(inside.get("param_groups"), list)
    )


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple) and len(value) <= 16:  # such as (weights, accuracy)
        yield from enumerate(value)
    elif isinstance(value, Foreign) and not is_module(value):
        yield from value.inside.items()
        yield from enumerate(value.arguments)


def _states(tree: Any) -> Iterator[State]:
    for keys, value in _containers(tree):
        if isinstance(value, Foreign) and is_module(value):
            weights = dict(module_weights(value))
        else:
            inside = value.inside if isinstance(value, Foreign) else value
            weights = {name: part for name, part in inside.items() if isinstance(name, str) and is_plain(part)}
        if weights:
            yield State(keys, weights, isinstance(value, Foreign))


def is_plain(value: Any) -> bool:
    """Whether something is a tensor of torch's own kind, and no part or code of one."""
    return type(value) in (Tensor, nn.Parameter)


def _kind(value: Any) -> str | None:
    """The name of the class of a tensor that is no plain one, or of the note of one; None for anything else."""
    if isinstance(value, Tensor):
        return None if is_plain(value) else type(value).__name__
    is_note = isinstance(value, Foreign) and value.kind == WRAPPER
    return str(value.arguments[0]) if is_note and value.arguments else None


def is_module(value: Foreign) -> bool:
    """Whether a note is of a network: an object with torch's dicts of parameters, buffers and modules."""
    return all(isinstance(value.inside.get(name), dict) for name in MODULE)


def module_weights(module: Foreign) -> Iterator[tuple[str, Tensor]]:
    """Dotted name and tensor of every parameter and buffer of a pickled network, in the order of its state dict."""
    todo: list[tuple[str, Any]] = [("", module)]
    seen: set[int] = set()
    while todo and len(seen) < MOST:
        prefix, value = todo.pop()
        if not isinstance(value, Foreign) or id(value) in seen or not is_module(value):
            continue
        seen.add(id(value))
        inside = value.inside
        passing = inside.get("_non_persistent_buffers_set")
        for kind in ("_parameters", "_buffers"):
            for name, part in inside[kind].items():
                passes = kind == "_buffers" and isinstance(passing, list) and name in passing
                if isinstance(part, Tensor) and not passes:
                    yield f"{prefix}{name}", part
        todo += reversed([(f"{prefix}{name}.", part) for name, part in inside["_modules"].items()])


def _plain(tree: Any) -> Iterator[tuple[str, Any]]:
    """Numbers and texts outside state dicts, by dotted name; at most two containers deep."""
    for keys, value in _containers(tree):
        inside: Mapping[Any, Any] = value.inside if isinstance(value, Foreign) else value
        if len(keys) < 2 and not (isinstance(value, Foreign) and is_module(value)):
            for key, part in inside.items():
                if isinstance(part, str | int | float | bool):
                    yield ".".join(map(str, (*keys, key))), part
