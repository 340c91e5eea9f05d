"""What watches a method at work, one way: its learning curve, and its choice of training rows judged for the record alone."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from backdoorbench import metrics
from backdoorbench.attacks.base import Infection
from backdoorbench.data.holdout import pick
from backdoorbench.data.images import ImageSet
from backdoorbench.pipeline import evaluation
from backdoorbench.pipeline.plan import Plan
from backdoorbench.shapes import Images, Rows
from backdoorbench.storage.record import Finding
from backdoorbench.training.scenario import Inspect

KEPT = 2**30  # bytes of triggered images, at most, that a learning curve keeps from one point to the next


def probe(
    made: Plan, infection: Infection, test: ImageSet, finding: Finding, announce: Callable[[str], None]
) -> Callable[[nn.Module, int], None]:
    """Draws the learning curve: CA, ASR and RA over a stratified part of the test set, every so many epochs.

    Its triggered images are made once, unless they are too many to keep: a network that draws triggers costs more than most
    that are judged by them."""
    every, images = made.config["curve"]["every"], made.config["curve"]["images"]
    rows = made.parts.test_rows
    if len(rows) > images:
        labels = made.splits.test.labels[rows]
        rows = rows[pick(labels, images, len(test.classes), "uniform", made.stream.child("curve"))]
    small = test.subset(rows)
    trigger, precision, kept = infection.trigger, made.recipe.precision, list[Images]()
    are_few = 4 * small.images.numel() <= KEPT

    def draw(model: nn.Module, epoch: int) -> None:
        if every and (epoch + 1) % every == 0:
            with finding.timed("curve"):  # counted apart: a defense does not pay for being watched
                if trigger is not None and are_few and not kept:
                    kept.extend(evaluation.triggered(small, trigger, precision))
                scores = evaluation.evaluate(model, small, trigger, infection.target, precision, kept or None)
                point = {"epoch": epoch + 1, "ca": scores.ca, "asr": scores.asr, "ra": scores.ra, "n": len(small)}
                finding.curve.append(point)
                announce("curve")

    return draw


def inspection(infection: Infection, finding: Finding) -> Inspect:
    """Judges a defense's selection of training rows by the poison mask, for the record alone: how many there are, how
    many of them are poisoned, and the AUC of its suspicion."""

    def judge(name: str, rows: Rows, suspicion: Tensor | None) -> None:
        poisoned = infection.poisoned
        found: dict[str, Any] = {"images": len(rows)}
        if poisoned is not None and len(rows):
            found["poisoned_share"] = metrics.share(poisoned.cpu()[rows.cpu()])
            found["auc"] = metrics.auc(suspicion.cpu(), poisoned.cpu()) if suspicion is not None else None
        finding.notes[name] = found

    return judge
