"""Which weights of a file are a network's, whatever they are called: by the order in which layers run, and by shapes.

Layers are told by the names and shapes of their weights, and a file must have as many of each kind. Among layers of one kind the
file's order of registration is taken for the order in which they run, and only where it can mean one thing: where one of two such
layers reads what the other returns. Of two that stand beside each other, a shortcut and the path that it skips, names must say
which is which; else the file is refused, since a wrong pairing would look right.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from backdoorbench.errors import ModelError, few
from backdoorbench.models.base import evaluating
from backdoorbench.models.by_names import COLOURS, COSTS, COUNTER, Shapes
from backdoorbench.models.reading import Weights

SHORTCUTS = (
    "shortcut",
    "downsample",
    "skip",
    "proj",
    "identity",
    "residual",
)  # in names of the path that adds its input


@dataclass(frozen=True)
class Layer:
    """The weights of one module.

    name   the module's; parts: its weights, by the last part of their names, with their shapes"""

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def is_shortcut(self) -> bool:
        """Whether its name says that it is on a path that others skip along."""
        return any(word in self.name.lower() for word in SHORTCUTS)


def match(model: nn.Module, weights: Weights, named: str, described: str) -> dict[str, str]:
    """The network's names -> those of weights that have its shapes, as often.

    named, described  the file and the network, for messages

    Raises ModelError where layers of equal shapes run beside each other, and names do not tell them apart."""
    own, flow = model.state_dict(), Flow(model)
    ours = sorted(layers(shapes_in(own)), key=lambda layer: flow.position(layer.name))
    theirs = layers(shapes_in(weights))
    places: dict[str, str] = {}
    for kind in dict.fromkeys(layer.parts for layer in ours):
        here, there = ([layer for layer in side if layer.parts == kind] for side in (ours, theirs))
        if (two := _undecided(here, there, flow)) is not None:
            first, second = (layer.name.removeprefix("net.") for layer in two)
            raise ModelError(
                f"{named} has the shapes of {described} under other names, but {first} and {second} have equal shapes and run "
                f"beside each other, and its names ({few(layer.name for layer in there)}) do not say which is which. "
                f"Rename its weights as that network has them, or name its own: model=module model.target=PACKAGE.MODULE:FACTORY."
            )
        for mine, other in _pairs(here, there):
            for part in (*(part for part, _ in kind), COUNTER):
                name = f"{other.name}.{part}" if other.name else part
                if name in weights:
                    places[f"{mine.name}.{part}"] = name
    return {name: places[name] for name in own if name in places}


def _undecided(ours: list[Layer], theirs: list[Layer], flow: "Flow") -> tuple[Layer, Layer] | None:
    """Two layers of ours that nothing tells apart in the file: neither reads the other, and names do not say which is a shortcut
    on either side."""
    beside = [(first, second) for first, second in combinations(ours, 2) if not flow.is_after(second.name, first.name)]
    are_named = sum(layer.is_shortcut for layer in ours) == sum(layer.is_shortcut for layer in theirs)
    return next((two for two in beside if not are_named or two[0].is_shortcut == two[1].is_shortcut), None)


def _pairs(ours: list[Layer], theirs: list[Layer]) -> Iterator[tuple[Layer, Layer]]:
    """Layers of one kind, each with its like; shortcuts with shortcuts where both sides name as many."""
    if sum(layer.is_shortcut for layer in ours) == sum(layer.is_shortcut for layer in theirs):
        ours, theirs = (sorted(side, key=lambda layer: layer.is_shortcut) for side in (ours, theirs))  # stable
    yield from zip(ours, theirs, strict=True)


def layers(shapes: Shapes) -> list[Layer]:
    """The modules that have weights, in their order, but for those that only normalise; counters tell nothing."""
    gathered: dict[str, list[tuple[str, tuple[int, ...]]]] = defaultdict(list)
    for name, shape in shapes.items():
        module, _, part = name.rpartition(".")
        if part != COUNTER and part not in COSTS:
            gathered[module].append((part, shape))
    found = [Layer(name, tuple(sorted(parts))) for name, parts in gathered.items()]
    return [layer for layer in found if not {part for part, _ in layer.parts} <= COLOURS]


def shapes_in(weights: Weights) -> dict[str, tuple[int, ...]]:
    """The shape of each weight, by name."""
    return {name: tuple(value.shape) for name, value in weights.items()}


def counts(shapes: Shapes) -> Counter[Any]:
    """How many layers there are of each kind."""
    return Counter(layer.parts for layer in layers(shapes))


class Flow:
    """What one pass through a network shows: when each module first ran, and which reads what another returned.

    A module that does not run stands where it was registered."""

    def __init__(self, model: nn.Module) -> None:
        self.places: dict[str, float] = {}
        self.entered: dict[str, Any] = {}  # the nodes of the gradient's graph that a module reads, and returns
        self.returned: dict[str, Any] = {}
        names = {module: name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
        hooks = [module.register_forward_hook(self._listen(name)) for module, name in names.items()]
        size, sample = model.size, next(model.parameters())
        images = torch.rand(2, 3, int(size), int(size), device=sample.device, requires_grad=True)  # type: ignore[arg-type]
        try:
            with evaluating(model), torch.enable_grad():
                self.result = model(images)  # kept, with the graph
        finally:
            for hook in hooks:
                hook.remove()
        before = -1.0
        for name in names.values():
            before = self.places.setdefault(name, before + 1e-6)
        self.ancestors: dict[str, set[Any]] = {}

    def _listen(self, name: str) -> Any:
        def keep(_: nn.Module, given: tuple[Any, ...], result: Any) -> None:
            if name not in self.places:
                self.places[name] = float(len(self.places))
                self.entered[name] = next((value.grad_fn for value in given if isinstance(value, Tensor)), None)
                self.returned[name] = result.grad_fn if isinstance(result, Tensor) else None

        return keep

    def position(self, name: str) -> float:
        """When a module ran, counted in modules."""
        return self.places.get(name, float("inf"))

    def is_after(self, later: str, earlier: str) -> bool:
        """Whether what one module read came through another; of a module that did not run, whether its place is after."""
        if later not in self.entered or earlier not in self.returned:
            return True
        if later not in self.ancestors:
            self.ancestors[later] = _above(self.entered[later])
        return self.returned[earlier] in self.ancestors[later]


def _above(node: Any) -> set[Any]:
    """A node of the gradient's graph, and all that it was computed from."""
    seen: set[Any] = set()
    todo = [node]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return seen
