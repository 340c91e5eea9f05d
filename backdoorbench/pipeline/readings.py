"""Whether a network that was given is shown what it was trained on: other normalisations, pixels up to 255, blue first, another
size, another stem, other classes at its outputs.

A network that reads its images wrongly loses accuracy and says nothing. Each usual way of reading is tried on a few test images.
Of those that are as good as the best, as far as so few images tell, the one that changes the least is taken.
"""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from backdoorbench import metrics
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import BdxError, TrainingError
from backdoorbench.models.base import Classifier, ModelSpec, Normalize
from backdoorbench.models.by_order import shapes_in
from backdoorbench.models.inputs import Swapped
from backdoorbench.models.stems import STEMS, with_stem
from backdoorbench.pipeline.evaluation import Order, Predictions, in_order, other_order, predict
from backdoorbench.shapes import Images, Rows
from backdoorbench.streams import Stream, seeded
from backdoorbench.training.recipe import Precision

IMAGES = 400  # test images, at most, that each reading is tried on
GAIN = 0.1  # in accuracy, at least, from which on another reading stops what goes on; of few images more
FEW = 100  # of them, at most, that are shown at each other size, which may cost fifty times as much
SMALL = (28, 32, 64)  # pixels: sizes tried of networks whose first convolution keeps the size of an image
LARGE = (32, 64, 128, 224)  # and of those where it halves it
SURE = 3  # deviations of a difference between two readings: the best of many is better by two often enough
UNREAD = (RuntimeError, AssertionError, ValueError, TrainingError)  # of another size: one alone is read, no memory, NaN
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
    "model.mean=[103.94,116.78,123.68] model.range=255": (  # Caffe's, which has blue first
        (103.94 / 255, 116.78 / 255, 123.68 / 255),
        (1 / 255,),
    ),
}
GREY: dict[str, tuple[Numbers, Numbers]] = {"model.mean=0.1307 model.std=0.3081": ((0.1307,), (0.3081,))}  # MNIST's


@dataclass(frozen=True)
class Reading:
    """A way of reading images and outputs, and what the network knows so.

    settings  that choose it, but for those of the order; none: as it is
    changed   how many things it changes: normalisation, colours, size, stem, order
    order     of the classes at the outputs, where it is another
    right     (N,) which of the images are called right"""

    settings: str
    changed: int
    order: Order | None
    right: Tensor

    @property
    def accuracy(self) -> float:
        return metrics.share(self.right)

    def beats(self, other: "Reading") -> bool:
        """Whether it is better by more than chance: of the images that only one of the two calls right, far more are its own."""
        gained, lost = int((self.right & ~other.right).sum()), int((other.right & ~self.right).sum())
        return bool(gained - lost > SURE * (gained + lost) ** 0.5)


@dataclass(frozen=True)
class Better:
    """What explains a network's errors: the simplest of the best readings, others as good and simple, and how it reads now."""

    best: Reading
    ties: list[Reading]
    now: Reading

    @property
    def is_far(self) -> bool:
        """Whether what is said of the network as it is would be about something else."""
        least = max(GAIN, 2 / len(self.now.right) ** 0.5)
        return self.best.order is not None or self.best.accuracy > self.now.accuracy + least


def better(
    model: Classifier,
    test: ImageSet,
    rows: Rows,
    precision: Precision,
    calls: Predictions | None = None,
    stems: Sequence[tuple[str, Classifier]] = (),
) -> Better | None:
    """The reading under which the network knows more than as it is; None where there is none.

    rows   of the test images that count
    calls  the network's own on all test images, which tell an order better than few
    stems  the same weights behind other stems, by the settings that choose them"""
    few = test.subset(rows[torch.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).long()])
    true, every = few.labels.cpu(), torch.arange(len(few))

    def read(settings: str, changed: int, network: Classifier, order: Order | None = None) -> list[Reading]:
        called = predict(network, few, None, precision)
        order = order or other_order(called, few, every)
        found = [Reading(settings, changed, None, called.clean == true)]
        if order is not None:
            found.append(Reading(settings, changed + 1, order, in_order(order, few.classes)[called.clean] == true))
        return found

    now, *tried = read("", 0, model, other_order(calls, test, rows) if calls is not None else None)
    if int((~now.right).sum()) <= SURE**2:  # which nothing beats
        return None
    for stem, network in [("", model), *stems]:
        for settings, changed, reread in others(network, bool(stem)):
            with contextlib.suppress(TrainingError):  # logits that are NaN
                tried += read(" ".join(filter(None, (stem, settings))), changed + bool(stem), reread)
    if (side := best_side(model, few, now.right, precision)) is not None:
        with contextlib.suppress(TrainingError):
            tried += read(f"dataset.size={side}", 1, resized(model, side))
    best = max(tried, key=lambda reading: reading.accuracy)
    if not best.beats(now):
        return None
    alike = [reading for reading in tried if not best.beats(reading) and reading.beats(now)]
    simplest = min(reading.changed for reading in alike)
    first, *ties = sorted(
        (reading for reading in alike if reading.changed == simplest), key=lambda reading: -reading.accuracy
    )
    return Better(first, ties, now)


def best_side(model: Classifier, few: ImageSet, right: Tensor, precision: Precision) -> int | None:
    """The usual size at which a network knows more of these images than at theirs, as far as some of them tell.

    right  (N,) which of them it calls right as they are"""
    rows = torch.linspace(0, len(few) - 1, min(FEW, len(few))).long()
    some, found = few.subset(rows), []
    for side in LARGE if _halves(model) else SMALL:
        if side != few.size == model.size:
            try:
                called = predict(resized(model, side), some, None, precision)
            except UNREAD:
                continue
            found.append((side, Reading("", 1, None, called.clean == some.labels.cpu())))
    side, best = max(found, key=lambda pair: pair[1].accuracy, default=(0, None))
    return side if best is not None and best.beats(Reading("", 0, None, right[rows])) else None


def _halves(model: Classifier) -> bool:
    """Whether a network's first convolution leaves out every second pixel, as those of large images do."""
    first = next((part for part in model.net.modules() if isinstance(part, nn.Conv2d)), None)
    return first is not None and first.stride[0] > 1


class Resized(nn.Module):
    """Images as large as a network was perhaps trained on."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Images) -> Images:
        return interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)


def resized(model: Classifier, side: int) -> Classifier:
    """The same network on images of another size."""
    changed = _shared(model)
    changed.crop = nn.Sequential(model.crop, Resized(side))
    return changed


def _shared(model: Classifier) -> Classifier:
    """A model around the same network, of which other parts can be replaced."""
    changed = copy.copy(model)
    changed._modules = dict(model._modules)
    return changed


def others(model: Classifier, as_it_is: bool = False) -> list[tuple[str, int, Classifier]]:
    """The model under each other usual reading: the settings that choose it, how many things they change, and the model.

    as_it_is  whether it is among them as well"""
    found: list[tuple[str, int, Classifier]] = [("", 0, model)] if as_it_is else []
    own = (tuple(model.normalize.mean.flatten().tolist()), tuple(model.normalize.std.flatten().tolist()))
    swaps = model.channels == 3 and not _is_swapped(model)
    usual = NORMALISATIONS | (GREY if model.channels == 1 else {})
    for settings, (mean, std) in {"": own, **usual}.items():
        if not {len(mean), len(std)} <= {1, model.channels} or (settings and _is_same(own, mean, std)):
            continue
        for swapped in (False, True)[: 1 + swaps]:
            if settings or swapped:
                changed = with_reading(model, mean, std, swapped)
                words = " ".join(filter(None, (settings, "model.colours=bgr" * swapped)))
                found.append((words, bool(settings) + swapped, changed))
    return found


def _is_same(own: tuple[Numbers, Numbers], mean: Numbers, std: Numbers) -> bool:
    """Whether a normalisation is the model's own, but for rounding."""
    pairs = ((torch.tensor(ours), torch.tensor(theirs)) for ours, theirs in zip(own, (mean, std), strict=True))
    return all(bool((ours - theirs).abs().max() < 1e-3 * theirs.abs().max().clamp_min(1e-3)) for ours, theirs in pairs)


def other_stems(
    spec: ModelSpec, model: Classifier, classes: int, mean: Numbers, std: Numbers
) -> list[tuple[str, Classifier]]:
    """The model's weights behind those of its network's other stems that they fit as well, by the settings that choose them."""
    found = []
    for stem in STEMS if hasattr(spec, "stem") else ():
        try:
            with seeded(Stream(0)):
                made = with_stem(spec, stem).classifier(classes, model.size, mean, std)
        except BdxError:  # of a network that has no other
            continue
        alike = shapes_in(made.state_dict()) == shapes_in(model.state_dict())
        if alike and repr(made.net) != repr(model.net):
            made.load_state_dict(model.state_dict())
            made.crop, made.normalize = model.crop, model.normalize
            found.append((f"model.stem={stem}", made.to(model.normalize.mean.device).eval()))
    return found


def told(model: Classifier) -> str:
    """How a model reads its images, in words."""
    parts = (model.normalize.mean, model.normalize.std)
    mean, std = (", ".join(f"{number:.4g}" for number in part.flatten().tolist()) for part in parts)
    colours = "grey" if model.channels == 1 else "blue first" if _is_swapped(model) else "red first"
    return (
        f"{model.size} px, {colours}, less a mean of {mean} and divided by a deviation of {std} (of pixels in [0, 1])"
    )


def _is_swapped(model: Classifier) -> bool:
    return any(isinstance(part, Swapped) for part in model.crop.modules())


def with_reading(model: Classifier, mean: Numbers, std: Numbers, swapped: bool) -> Classifier:
    """The same network behind another normalisation, and with blue first where `swapped`."""
    changed = _shared(model)
    device = model.normalize.mean.device
    changed.normalize = Normalize(mean, std).to(device)
    if swapped:
        changed.crop = nn.Sequential(model.crop, Swapped())
    return changed
