"""A network's names among those of a file, whatever wrappers have put in front of them.

`module.` and `_orig_mod.` come off wherever they stand. What else stands in front (`model.`, `net.`, `encoder.`) is the
head under which most of the network's own names lie. Under other heads it may lie once more (`ema.`, `teacher.`,
`attacker.model.`), and beside it what its images are normalised by (`0.mean`, `normalizer.new_std`).
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from backdoorbench.models.reading import Weights, is_averaged

COUNTER = "num_batches_tracked"  # of a batch norm; older versions of torch had none
COSTS = {"total_ops", "total_params"}  # what thop leaves in the modules that it has counted
AUXILIARY = ("net.aux1.", "net.aux2.", "net.AuxLogits.")
NORMALISED = {  # what those who normalise images in the network call their mean and deviation
    "mean": "std", "mu": "sigma", "new_mean": "new_std", "_mean": "_std", "pixel_mean": "pixel_std", "image_mean": "image_std",
}  # fmt: skip
COLOURS = {*NORMALISED, *NORMALISED.values()}
Shapes = Mapping[str, tuple[int, ...]]
Places = dict[str, str]  # the network's names -> the file's


def is_optional(name: str) -> bool:
    """Whether a file is whole without a weight: normalisation, which the data set gives, batch norms' counters, and what
    torchvision's GoogLeNet and Inception have for their training alone."""
    return name.startswith("normalize.") or name.endswith(f".{COUNTER}") or name.startswith(AUXILIARY)


def is_count(name: str, value: Tensor) -> bool:
    """Whether a tensor counts something: a single whole number, as averages of weights keep beside them how many they are of, or
    what a network costs."""
    return (not value.ndim and not value.is_floating_point()) or name.rpartition(".")[2] in COSTS


def fits_shape(there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """Whether a weight has the shape of another, but for the 1x1 of a convolution that is the same linear layer."""
    return there == here or (len(there) == 4 and there[: len(here)] == here and set(there[len(here) :]) == {1})


class Named:
    """A network's names looked up among those of a state dict.

    places   the network's name -> the file's
    copies   the same under each other head under which most of it lies once more, by that head
    colours  the names of the mean and the deviation that images are normalised by, where the file has them
    left     names under the head that have no place
    twice    two names of the file for one weight, if there are any"""

    def __init__(self, own: Shapes, weights: Weights) -> None:
        self.own, self.weights = own, weights
        bare: dict[str, str] = {}
        self.twice: tuple[str, str] | None = None
        for there in weights:
            if (name := unwrapped(there)) in bare:
                self.twice = bare[name], there
            bare[name] = there
        inner = {name.removeprefix("net."): name for name in own if name.startswith("net.")}
        heads = _heads(inner, bare)
        self.head = min(heads, key=lambda head: (-heads[head], is_averaged(head), len(head)), default="")
        under = {name.removeprefix(self.head): there for name, there in bare.items() if name.startswith(self.head)}
        self.places = {inner[name]: there for name, there in under.items() if name in inner}
        self.copies = {head: self._copy(inner, bare, head) for head in heads if 2 * heads[head] >= len(inner)}
        self.copies = {head: copy for head, copy in self.copies.items() if copy}
        self.colours = normalisation(self.aside, math.prod(own.get("normalize.mean", (0,))))
        known = {
            *self.places.values(),
            *(self.colours or ()),
            *(name for copy in self.copies.values() for name in copy.values()),
        }
        self.left = [there for there in under.values() if there not in known and not is_count(there, weights[there])]

    def _copy(self, inner: Places, bare: Places, head: str) -> Places:
        """The network's names under another head, as far as they lie there in their shapes and are not its own."""
        taken = set(self.places.values())
        found = {inner[name]: bare[head + name] for name in inner if head + name in bare}
        return {
            name: there
            for name, there in found.items()
            if there not in taken and fits_shape(tuple(self.weights[there].shape), self.own[name])
        }

    @property
    def aside(self) -> Weights:
        """The file's weights that are not the network's."""
        taken = set(self.places.values())
        return {there: value for there, value in self.weights.items() if there not in taken}

    @property
    def shown_head(self) -> str:
        """What stands before the network's names in the file, as it is written there; nothing where that differs."""
        heads = {
            there.removesuffix(name.removeprefix("net."))
            for name, there in self.places.items()
            if name.startswith("net.")
        }
        return heads.pop() if len(heads) == 1 else ""

    @property
    def fits(self) -> bool:
        """Whether every weight that is needed is there, of its shape, once, and no other under the same head."""
        return self.twice is None and next(self.differences(), None) is None

    @property
    def fitting(self) -> list[str]:
        """The network's weights that lie there in their shape."""
        return [
            name for name, place in self.places.items() if fits_shape(tuple(self.weights[place].shape), self.own[name])
        ]

    @property
    def is_stranger(self) -> bool:
        """Whether the most of the network's names are not there, so that the file is of another."""
        return 2 * len(self.places) < sum(not is_optional(name) for name in self.own)

    def differences(self) -> Iterator[str]:
        """What keeps the network's weights from lying there, in words."""
        for name, place in sorted(self.places.items()):
            shape = tuple(self.weights[place].shape)
            if not fits_shape(shape, self.own[name]):
                yield f"{place} is {shape} there and {self.own[name]} here"
        for name in sorted(self.own):
            if name not in self.places and not is_optional(name):
                yield f"{self.shown_head or self.head}{name.removeprefix('net.')} is missing"
        for there in sorted(self.left):
            yield f"{there} has no place"


def unwrapped(name: str) -> str:
    """A weight's name without what DataParallel (`module.`) and torch.compile (`_orig_mod.`) put into it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def normalisation(weights: Weights, channels: int) -> tuple[str, str] | None:
    """The names of a mean and a deviation, a number each or one for each channel, by which images are normalised; those that lie
    least deep. None where there are none.

    weights  of a file, but for those of a network"""
    found = []
    for name, mean in weights.items():
        module, _, last = name.rpartition(".")
        other = ".".join(filter(None, (module, NORMALISED.get(last, ""))))
        std = weights.get(other) if last in NORMALISED else None
        is_pair = std is not None and mean.shape == std.shape and mean.numel() in (1, channels)
        if is_pair and std is not None and bool((std > 0).all() and mean.isfinite().all() and std.isfinite().all()):
            found.append((name, other))
    return min(found, key=lambda pair: pair[0].count("."), default=None)


def _heads(inner: Iterable[str], bare: Iterable[str]) -> Counter[str]:
    """How many names of the network lie behind each head in a file."""
    wanted = set(inner)
    heads: Counter[str] = Counter()
    for name in bare:
        parts = name.split(".")
        heads.update(
            ".".join([*parts[:cut], ""]) if cut else "" for cut in range(len(parts)) if ".".join(parts[cut:]) in wanted
        )
    return heads
