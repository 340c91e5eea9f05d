"""Whether a network that was given is shown what it was trained on: other normalisations, pixels up to 255, blue first.

A network that reads its images wrongly loses accuracy and says nothing. Each usual way of reading is tried on a few test images,
and one that is far better is said, with the settings that choose it.
"""

import copy
from dataclasses import dataclass

import torch

from backdoorbench import metrics
from backdoorbench.data.images import ImageSet
from backdoorbench.models.base import Classifier, Normalize
from backdoorbench.models.inputs import Swapped
from backdoorbench.pipeline.evaluation import predict
from backdoorbench.shapes import Rows
from backdoorbench.training.recipe import Precision

IMAGES = 400  # test images, at most, that each reading is tried on
GAIN = 0.1  # in accuracy, at least, from which on another reading is worth a word; of few images more
Numbers = tuple[float, ...]

NORMALISATIONS: dict[str, tuple[Numbers, Numbers]] = {  # settings -> mean and deviation of pixels in [0, 1]
    "model.mean=none model.std=none": ((0.0,), (1.0,)),
    "model.mean=0.5 model.std=0.5": ((0.5,), (0.5,)),
    "model.mean=[0.485,0.456,0.406] model.std=[0.229,0.224,0.225]": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "model.mean=[0.4914,0.4822,0.4465] model.std=[0.247,0.2435,0.2616]": (
        (0.4914, 0.4822, 0.4465),
        (0.247, 0.2435, 0.2616),
    ),
    "model.range=255": ((0.0,), (1 / 255,)),
}


@dataclass(frozen=True)
class Reading:
    """A way of reading images, as it is set, and the accuracy that the network has under it."""

    settings: str
    accuracy: float


def better(model: Classifier, test: ImageSet, rows: Rows, precision: Precision) -> tuple[Reading, float] | None:
    """The reading under which the network is far more accurate than as it is, and its accuracy now; None where there is none.

    rows  of the test images that count"""
    few = test.subset(rows[torch.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).long()])

    def accuracy(changed: Classifier) -> float:
        return metrics.accuracy(predict(changed, few, None, precision).clean, few.labels.cpu())

    now = accuracy(model)
    if now + GAIN > 1:
        return None
    tried = [Reading(settings, accuracy(changed)) for settings, changed in others(model)]
    best = max(tried, key=lambda reading: reading.accuracy)
    return (best, now) if best.accuracy > now + max(GAIN, 2 / len(few) ** 0.5) else None


def others(model: Classifier) -> list[tuple[str, Classifier]]:
    """The model under each other usual reading, by the settings that choose it."""
    found = []
    own = (model.normalize.mean.flatten().tolist(), model.normalize.std.flatten().tolist())
    swaps = model.channels == 3 and not any(isinstance(part, Swapped) for part in model.crop.modules())
    for settings, (mean, std) in {"": (tuple(own[0]), tuple(own[1])), **NORMALISATIONS}.items():
        if len(mean) not in (1, model.channels):
            continue
        for swapped in (False, True)[: 1 + swaps]:
            if settings or swapped:
                changed = with_reading(model, mean, std, swapped)
                found.append((" ".join(filter(None, (settings, "model.colours=bgr" * swapped))), changed))
    return found


def with_reading(model: Classifier, mean: Numbers, std: Numbers, swapped: bool) -> Classifier:
    """The same network behind another normalisation, and with blue first where `swapped`."""
    changed = copy.copy(model)  # the network itself is shared
    changed._modules = dict(model._modules)
    device = model.normalize.mean.device
    changed.normalize = Normalize(mean, std).to(device)
    if swapped:
        changed.crop = torch.nn.Sequential(model.crop, Swapped())
    return changed
