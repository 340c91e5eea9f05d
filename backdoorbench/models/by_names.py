"""A network's names among those of a file, whatever wrappers have put in front of them.

`module.` and `_orig_mod.` come off wherever they stand. What else stands in front (`model.`, `net.`, `encoder.`) is the
head under which most of the network's own names lie.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from backdoorbench.models.reading import Weights

COUNTER = "num_batches_tracked"  # of a batch norm; older versions of torch had none
Shapes = Mapping[str, tuple[int, ...]]


def is_optional(name: str) -> bool:
    """Whether a file is whole without a weight: normalisation, which the data set gives, and batch norms' counters."""
    return name.startswith("normalize.") or name.endswith(f".{COUNTER}")


def fits_shape(there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """Whether a weight has the shape of another, but for the 1x1 of a convolution that is the same linear layer."""
    return there == here or (len(there) == 4 and there[: len(here)] == here and set(there[len(here) :]) == {1})


class Named:
    """A network's names looked up among those of a state dict.

    places  the network's name -> the file's
    left    names under the head that have no place
    twice   two names of the file for one weight, if there are any"""

    def __init__(self, own: Shapes, weights: Weights) -> None:
        self.own, self.weights = own, weights
        bare: dict[str, str] = {}
        self.twice: tuple[str, str] | None = None
        for there in weights:
            if (name := unwrapped(there)) in bare:
                self.twice = bare[name], there
            bare[name] = there
        inner = {name.removeprefix("net."): name for name in own if name.startswith("net.")}
        self.head = _likely_head(inner, bare)
        under = {name.removeprefix(self.head): there for name, there in bare.items() if name.startswith(self.head)}
        self.places = {inner[name]: there for name, there in under.items() if name in inner}
        self.left = [there for name, there in under.items() if name not in inner]
        if self.head.endswith("net."):  # a whole classifier brings its normalisation along
            before = self.head.removesuffix("net.")
            self.places |= {
                name: bare[before + name] for name in own if before + name in bare and name not in inner.values()
            }

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


def _likely_head(inner: Iterable[str], bare: Iterable[str]) -> str:
    """What the most of a file's names have in front of a name of the network; the shortest of several."""
    wanted = set(inner)
    heads: Counter[str] = Counter()
    for name in bare:
        parts = name.split(".")
        heads.update(
            ".".join([*parts[:cut], ""]) if cut else "" for cut in range(len(parts)) if ".".join(parts[cut:]) in wanted
        )
    return min(heads, key=lambda head: (-heads[head], len(head)), default="")
