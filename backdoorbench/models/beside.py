"""What toolkits write in a file of its own beside their weights: which network they are of, and how its images are read.

config.json               of timm and of transformers' timm wrapper: `architecture`, and `pretrained_cfg` with mean and deviation
preprocessor_config.json  of transformers: `image_mean` and `image_std`, and whether images are normalised at all

It is read as data, and only what is of the kind that is expected; whatever else is called so says nothing.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LARGEST = 2**22  # bytes of such a file
COLOURS = 3
UNIT = 1 / 255  # what transformers multiplies bytes by, unless a model was trained otherwise
Numbers = tuple[float, ...]
NONE: Numbers = ()  # what stands for images that are not normalised


@dataclass(frozen=True)
class Beside:
    """names   of networks that the weights may be of
    mean, std  of pixels in [0, 1]; `NONE` where nothing is subtracted; None where nothing is said
    source     the file that says these"""

    names: tuple[str, ...] = ()
    mean: Numbers | None = None
    std: Numbers | None = None
    source: str = ""

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
    if (found := _of_transformers(images)) is not None:
        return Beside(names, *found, "preprocessor_config.json")
    inner = config.get("pretrained_cfg", config)  # older files have no part of that name
    told = _normalisation(inner, "mean", "std") if names and isinstance(inner, Mapping) else None
    return Beside(names, *told, "config.json") if told is not None else Beside(names)


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
    listed = value if isinstance(value, list) else [value]
    is_read = len(listed) in (1, COLOURS) and all(type(number) in (int, float) for number in listed)
    if not is_read or not all(abs(number) <= sys.float_info.max for number in listed):
        return None
    return tuple(map(float, listed))


def _typed(value: Numbers) -> str:
    return "none" if value == NONE else f"[{','.join(f'{number:.12g}' for number in value)}]"
