"""What toolkits write in a file of its own beside their weights, or in the file itself beside its weights: which network they are
of, how its images are read, and what its classes are called.

config.json               of timm and of transformers' timm wrapper: `architecture`, and `pretrained_cfg` with mean and deviation;
                          the classes as `id2label`, or as `label_names`
preprocessor_config.json  of transformers: `image_mean` and `image_std`, and whether images are normalised at all
`args` in the file        of timm's training script: `mean` and `std`, where they were given

It is read as data, and only what is of the kind that is expected; whatever else is called so says nothing.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoorbench.errors import few, quantity
from backdoorbench.models.unpickling import Foreign

LARGEST = 2**22  # bytes of such a file
COLOURS = 3
UNIT = 1 / 255  # what transformers multiplies bytes by, unless a model was trained otherwise
Numbers = tuple[float, ...]
NONE: Numbers = ()  # what stands for images that are not normalised


@dataclass(frozen=True)
class Beside:
    """names   of networks that the weights may be of
    mean, std  of pixels in [0, 1]; `NONE` where nothing is subtracted; None where nothing is said
    source     what says these: `config.json beside the weights says`
    classes    their names, in the order of the network's outputs; none where nothing is said"""

    names: tuple[str, ...] = ()
    mean: Numbers | None = None
    std: Numbers | None = None
    source: str = ""
    classes: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """How images are normalised, as it is typed; none where nothing is said."""
        pairs = (("mean", self.mean), ("std", self.std))
        return [f"model.{name}={_typed(value)}" for name, value in pairs if value is not None]


def read(weights: Path) -> Beside:
    """What lies beside a file of weights and says something of them."""
    folder = weights.expanduser().parent
    config, images = (_object(folder / name) for name in ("config.json", "preprocessor_config.json"))
    named = config.get("architecture")
    names = (named,) if isinstance(named, str) else ()
    classes = _classes(config)
    if (found := _of_transformers(images)) is not None:
        return Beside(names, *found, "preprocessor_config.json beside the weights says", classes)
    inner = config.get("pretrained_cfg", config)  # older files have no part of that name
    told = _normalisation(inner, "mean", "std") if names and isinstance(inner, Mapping) else None
    if told is None:
        return Beside(names, classes=classes)
    return Beside(names, *told, "config.json beside the weights says", classes)


def inside(tree: Any) -> Beside:
    """What the content of a file of weights says of itself."""
    content = tree.inside if isinstance(tree, Foreign) else tree
    args = content.get("args") if isinstance(content, dict) else None
    said = args.inside if isinstance(args, Foreign) else args
    told = _normalisation(said, "mean", "std") if isinstance(said, dict) else None
    return Beside(mean=told[0], std=told[1], source="args in the file say") if told is not None else Beside()


def unlike(said: Sequence[str], classes: Sequence[str]) -> str:
    """In which way names of classes that lie beside weights contradict those of a data set; empty where they do not. Names that
    the other side does not have contradict nothing: they may be other words for the same.

    classes  of the data set, in label order"""
    if len(said) != len(classes):
        return f"names {quantity(len(said), 'class', 'classes')}, and the images have {len(classes)}" if said else ""
    theirs = {_spelled(name): place for place, name in enumerate(said)}
    if len(theirs) < len(said):  # some have one name
        return ""
    moved = [
        f"{name} is {place} in the images and {theirs[_spelled(name)]} there"
        for place, name in enumerate(classes)
        if theirs.get(_spelled(name), place) != place
    ]
    same = "the same classes" if {*map(_spelled, classes)} == theirs.keys() else "classes of the images"
    return f"has {same} in another order, so that labels mean other classes: {few(moved)}" if moved else ""


def _spelled(name: str) -> str:
    """A name without its capitals, and what stands between its words: `Sports Car` and `sports_car` are one."""
    return re.sub(r"[\W_]+", " ", name).strip().casefold() or name


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of classes in label order; none where they are not said, or are the numbers that transformers writes then."""
    listed = config.get("label_names")
    numbered = config.get("id2label")
    if isinstance(numbered, dict) and {*numbered} == {str(place) for place in range(len(numbered))}:
        listed = [numbered[str(place)] for place in range(len(numbered))]
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        return ()
    is_numbered = all(name == f"LABEL_{place}" for place, name in enumerate(listed))
    return () if is_numbered else tuple(listed)


def _of_transformers(said: Mapping[str, Any]) -> tuple[Numbers, Numbers] | None:
    """Mean and deviation of an image processor, where it reads pixels from 0 to 1."""
    factor = said.get("rescale_factor", UNIT)
    is_usual = said.get("do_rescale") is True and isinstance(factor, float) and abs(factor - UNIT) < 1e-6
    if not is_usual:
        return None
    if said.get("do_normalize") is False:
        return NONE, NONE
    return _normalisation(said, "image_mean", "image_std")


def _object(file: Path) -> Mapping[str, Any]:
    """A JSON file's names and values; none where it is no such file."""
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:
            return {}
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _normalisation(said: Mapping[str, Any], mean: str, std: str) -> tuple[Numbers, Numbers] | None:
    """Mean and deviation under these names, where pixels in [0, 1] can have them; None for anything else."""
    means, deviations = _numbers(said.get(mean)), _numbers(said.get(std))
    if means is None or deviations is None or len(means) != len(deviations):
        return None
    can_be = all(0 <= number <= 1 for number in means) and all(0 < number <= 1 for number in deviations)
    return (means, deviations) if can_be else None


def _numbers(value: Any) -> Numbers | None:
    """Three finite numbers, or one; None for anything else."""
    listed = value if isinstance(value, list | tuple) else [value]
    is_read = len(listed) in (1, COLOURS) and all(type(number) in (int, float) for number in listed)
    if not is_read or not all(abs(number) <= sys.float_info.max for number in listed):
        return None
    return tuple(map(float, listed))


def _typed(value: Numbers) -> str:
    return "none" if value == NONE else f"[{','.join(f'{number:.12g}' for number in value)}]"
