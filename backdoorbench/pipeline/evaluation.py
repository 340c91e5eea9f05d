"""A model against the test set, clean and triggered."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from backdoorbench import device, metrics, progress
from backdoorbench.data.holdout import pick
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import TrainingError
from backdoorbench.metrics import Scores
from backdoorbench.models.base import CentreCrop, evaluating
from backdoorbench.models.layouts import layout_of
from backdoorbench.shapes import Images, Labels, Logits, Rows
from backdoorbench.streams import Stream
from backdoorbench.training.fit import autocast
from backdoorbench.training.recipe import Precision
from backdoorbench.triggers.base import Cover, Stored, Target, Trigger

BATCH = {
    "cpu": 125
}  # test images at a time: as many as keep a processor's cache, which takes a third off the time of 500
USUAL_BATCH = 500  # on any other device, and where a batch draws random numbers of its own
Rule = Literal["numeric", "text"]
Order = Rule | list[str]  # a class name for each of a network's outputs: by a rule that sorts class folders, or listed
NOTHING = -1  # what a model calls an image whose logits are NaN, of which argmax would take the first for the largest
LEAST_A_CLASS = 3  # test images, on average: of fewer a better order of the classes is found in any calls


@dataclass(frozen=True)
class Predictions:
    """What a model calls the test images, in their order: (N,) int64 on the CPU.

    triggered is None where there is no trigger; rows that no metric counts are filled in all the same
    """

    clean: Labels
    triggered: Labels | None


def predict(
    model: nn.Module,
    test: ImageSet,
    trigger: Trigger | None,
    precision: Precision,
    shown: Sequence[Images] | None = None,
) -> Predictions:
    """The model's calls on `test`, clean and, where there is a trigger, triggered. The model's modes are kept.

    shown  what `triggered` makes of the same, where the caller has it already

    Raises TrainingError where logits are NaN, which are no answer."""
    clean, hit = [], []
    with judging(model, precision, test) as work:
        for number, (images, _) in enumerate(test.batches(batch_of(test))):
            clean.append(call(model, images))
            if trigger is not None:
                hit.append(call(model, shown[number] if shown else trigger(images)))
            work.advance(len(images))
    return Predictions(_answers(clean), _answers(hit) if hit else None)


def called(model: nn.Module, test: ImageSet, change: Trigger | None, precision: Precision) -> Labels:
    """(N,) on the CPU: the model's calls on `test`, changed where that is asked for. The model's modes are kept. Raises
    TrainingError as `predict` does."""
    found = []
    with judging(model, precision, test) as work:
        for images, _ in test.batches(batch_of(test)):
            found.append(call(model, change(images) if change else images))
            work.advance(len(images))
    return _answers(found)


@contextmanager
def judging(model: nn.Module, precision: Precision, test: ImageSet) -> Iterator[progress.Task]:
    """The model in eval mode, without gradients, in its precision; a task that is advanced by the images that it has called."""
    device.return_memory(test.device)
    with (
        evaluating(model),
        torch.inference_mode(),
        autocast(precision, test.device),
        progress.aside("judge", len(test), "image") as work,
    ):
        yield work


def triggered(test: ImageSet, trigger: Trigger, precision: Precision) -> list[Images]:
    """`test` under the trigger, `batch_of` it at a time."""
    with torch.inference_mode(), autocast(precision, test.device):
        return [trigger(images) for images, _ in test.batches(batch_of(test))]


def few(test: ImageSet, rows: Rows, most: int, target: Target | None, stream: Stream) -> Rows:
    """`most` of the test images at `rows` (M,), or all, drawn whatever their class; one at least of those that the attacker acts
    on, without which there is no ASR."""
    if len(rows) <= most:
        return rows
    labels = test.labels.cpu()[rows]
    drawn = pick(labels, most, len(test.classes), "uniform", stream)
    meant = target.is_eligible(labels) if target is not None else torch.ones_like(labels, dtype=torch.bool)
    if not meant[drawn].any():
        eligible = meant.nonzero()[:, 0]
        drawn[0] = eligible[stream.child("eligible").permutation(len(eligible))[0]]
    return rows[drawn.sort().values]


def batch_of(test: ImageSet) -> int:
    """How many of its images are judged at a time."""
    return BATCH.get(test.device.type, USUAL_BATCH)


def call(model: nn.Module, images: Images) -> Labels:
    """(N,) the class with the largest logit, for (N, 3, H, W); NOTHING where one is NaN."""
    layout = layout_of(model, images.device)
    logits: Logits = model(images.contiguous(memory_format=layout))
    return logits.argmax(1).masked_fill(logits.isnan().any(1), NOTHING)


def _answers(parts: Sequence[Labels]) -> Labels:
    """(N,) on the CPU: the calls of all batches. Raises TrainingError where one is NOTHING."""
    labels = torch.cat(list(parts)).cpu()
    if without := int((labels == NOTHING).sum()):
        raise TrainingError(
            f"the model's logits for {without:,} of {len(labels):,} images are NaN, so it calls them nothing, and no figure can "
            f"be had of it; expected numbers. What trained it left the finite numbers in its last step: lower its lr (train.lr "
            f"or defense.lr), or set train.precision=float32."
        )
    return labels


def judge(predictions: Predictions, test: ImageSet, target: Target | None, rows: Rows) -> Scores:
    """CA, ASR and RA over the test images at `rows` (M,)."""
    true = test.labels.cpu()[rows]
    triggered = predictions.triggered[rows] if predictions.triggered is not None and target is not None else None
    wanted = target.label(true) if target is not None else true
    eligible = target.is_eligible(true) if target is not None else torch.zeros_like(true, dtype=torch.bool)
    return metrics.score(predictions.clean[rows], true, triggered, wanted, eligible)


def details(predictions: Predictions, test: ImageSet, target: Target | None, rows: Rows) -> dict[str, Any]:
    """What a reader may ask beyond the three figures: per true class, and the other conventions of counting ASR.

    largest_share     of the clean images called the same: near 1 for a constant network
    by_chance         what CA would be of as many calls of each class that know nothing of their images
    asr_incl_target   over every triggered image, as PBE and the WaNet authors count; a clean model starts near 1/K
    asr_other_sources a source-specific attack's success on classes it should leave alone
    """
    true = test.labels.cpu()[rows]
    classes = len(test.classes)
    found: dict[str, Any] = {
        "ca_per_class": metrics.per_class(predictions.clean[rows], true, true, classes),
        "largest_share": metrics.largest_share(predictions.clean[rows]),
        "by_chance": metrics.by_chance(predictions.clean[rows], true, classes),
    }
    if predictions.triggered is None or target is None:
        return found
    called, wanted, eligible = predictions.triggered[rows], target.label(true), target.is_eligible(true)
    found["asr_per_class"] = metrics.per_class(called[eligible], wanted[eligible], true[eligible], classes)
    found["ra_per_class"] = metrics.per_class(called[eligible], true[eligible], true[eligible], classes)
    found["asr_incl_target"] = metrics.accuracy(called, wanted)
    label = getattr(target, "target", None)
    others = ~eligible & (true != label) if label is not None else torch.zeros_like(eligible)
    found["asr_other_sources"] = metrics.share(called[others] == label) if others.any() and label is not None else None
    return found


def other_order(predictions: Predictions, test: ImageSet, rows: Rows) -> Order | None:
    """The order of the classes in which the calls on clean images would be right; None where no other order is much better:
    half of all images right, and a quarter more than now (of few images more), or the same of a few classes' images, which are
    called by each other's names."""
    true, called, names = test.labels.cpu()[rows], predictions.clean[rows], list(test.classes)
    if len(true) < LEAST_A_CLASS * len(names):
        return None
    meant = torch.tensor(metrics.assignment(true, called, len(names)))
    if not _is_better(meant, true, called):
        meant = _exchanged(meant, true, called)
    if bool((meant == torch.arange(len(names))).all()):
        return None
    then = metrics.accuracy(meant[called], true)
    orders: dict[Rule, list[str]] = {"text": sorted(names)}
    if all(name.isdecimal() for name in names):
        orders["numeric"] = sorted(names, key=int)
    for rule, order in orders.items():
        is_near = metrics.accuracy(in_order(rule, names)[called], true) >= then - 0.05
        if order != names and is_near:  # what it errs in beside the order bears on the best one
            return rule
    return [names[label] for label in meant.tolist()]


def in_order(order: Order, names: Sequence[str]) -> Labels:
    """(K,) the class that each of a network's outputs means in an order of these classes."""
    sort: dict[str, Callable[[], list[str]]] = {
        "text": lambda: sorted(names),
        "numeric": lambda: sorted(names, key=int),
    }
    place = {name: label for label, name in enumerate(names)}
    return torch.tensor([place[name] for name in (sort[order]() if isinstance(order, str) else order)])


def _is_better(meant: Labels, true: Labels, called: Labels) -> bool:
    """Whether what each call is taken to mean (K,) is right of half the images, and of a quarter more than the call itself."""
    now, then = metrics.accuracy(called, true), metrics.accuracy(meant[called], true)
    return bool(then >= max(0.5, now + max(0.25, 2 / len(true) ** 0.5)))  # four deviations of a share, at most


def _exchanged(meant: Labels, true: Labels, called: Labels) -> Labels:
    """(K,) `meant` of those classes only that go round among themselves: most images of each are called by another's name."""
    images = torch.bincount(true, minlength=len(meant))
    right = torch.bincount(true[meant[called] == true], minlength=len(meant))
    kept = torch.arange(len(meant))
    for cycle in cycles(meant.tolist()):
        is_whole = len(cycle) > 1 and int(images[cycle].sum()) >= LEAST_A_CLASS * len(cycle)
        if is_whole and bool((2 * right[cycle] > images[cycle]).all()):
            rows = torch.isin(true, torch.tensor(cycle))
            if _is_better(meant, true[rows], called[rows]):
                kept[cycle] = meant[cycle]
    return kept


def cycles(after: Sequence[int]) -> Iterator[list[int]]:
    """The rounds that a permutation of 0 to K - 1 consists of, each once: where each number leads to, until it comes back."""
    seen: set[int] = set()
    for start in range(len(after)):
        if start not in seen:
            cycle = [start]
            while (at := after[cycle[-1]]) != start:
                cycle.append(at)
            seen.update(cycle)
            yield cycle


def evaluate(
    model: nn.Module,
    test: ImageSet,
    trigger: Trigger | None,
    target: Target | None,
    precision: Precision = "float32",
    shown: Sequence[Images] | None = None,
) -> Scores:
    """CA, ASR and RA of `model` on the whole of `test`; `shown` as in `predict`."""
    return judge(predict(model, test, trigger, precision, shown), test, target, torch.arange(len(test)))


def trigger_change(trigger: Trigger, test: ImageSet) -> dict[str, float]:
    """How much a trigger changes: over the first 100 test images, the share of changed values and the largest change in
    grey levels (1/255)."""
    images = next(iter(test.subset(torch.arange(min(100, len(test)))).batches(100)))[0]
    change = (trigger(images) - images).abs()
    return {"share_changed": float((change > 1e-6).float().mean()), "largest_levels": float(change.max()) * 255}


def share_seen(trigger: Trigger, images: ImageSet, side: int) -> float | None:
    """Of the values that a trigger changes in the first 100 images, the share within their middle `side` pixels; None where it
    changes none."""
    shown = next(iter(images.subset(torch.arange(min(100, len(images)))).batches(100)))[0]
    with torch.no_grad():
        changed = (trigger(shown) - shown).abs() > 1e-6
    return int(CentreCrop(side)(changed).sum()) / total if (total := int(changed.sum())) else None


def after_storage(
    model: nn.Module, trigger: Trigger, target: Target, test: ImageSet, precision: Precision
) -> dict[str, float | None]:
    """What becomes of a trigger that works in float when its images are stored as bytes.

    asr_stored       ASR over the eligible test images, rounded to 1/255 after the trigger
    lost_in_storage  of the values that it changes in the first 100 test images, the share that rounding gives back"""
    stored = Stored(trigger)
    images = next(iter(test.subset(torch.arange(min(100, len(test)))).batches(100)))[0]
    changed = (trigger(images) - images).abs() > 1e-6
    lost = metrics.share(stored(images)[changed] == images[changed]) if changed.any() else 0.0
    scores = judge(predict(model, test, stored, precision), test, target, torch.arange(len(test)))
    return {"asr_stored": scores.asr, "lost_in_storage": lost}


def cover_accuracy(model: nn.Module, cover: Cover, test: ImageSet, precision: Precision) -> float:
    """The share of test images called by their true label under the cover rows' alteration (noise mode, cross mode). Far
    below CA, the network answers to any distortion and not to the trigger. Every image is paired with another, at random
    but always the same."""
    stream = Stream(0).child("cover")
    order = stream.permutation(len(test))
    partners = torch.empty_like(order)
    partners[order] = order.roll(1)  # one cycle through all images: none is its own partner
    pairs = zip(test.batches(USUAL_BATCH), test.subset(partners).batches(USUAL_BATCH), strict=True)
    called = []
    with evaluating(model), torch.inference_mode(), autocast(precision, test.device):
        for number, ((images, _), (others, _)) in enumerate(pairs):
            called.append(call(model, cover(images, others, stream.child(f"batch{number}"))))
    return metrics.accuracy(_answers(called), test.labels.cpu())
