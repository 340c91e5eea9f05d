"""What watches a method at work, one way: its learning curve, and its choice of training rows judged for the record alone."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from backdoorbench import metrics
from backdoorbench.attacks.base import Infection
from backdoorbench.data.images import ImageSet
from backdoorbench.pipeline import evaluation
from backdoorbench.pipeline.plan import Plan
from backdoorbench.shapes import Images, Mask, Rows
from backdoorbench.storage.record import Finding
from backdoorbench.training.scenario import Inspect, TakenFor

KEPT = 2**30  # bytes of triggered images, at most, that a learning curve keeps from one point to the next


def probe(
    made: Plan, infection: Infection, test: ImageSet, finding: Finding, announce: Callable[[str], None]
) -> Callable[[nn.Module, int], None]:
    """Draws the learning curve: CA, ASR and RA over a random part of the test set, every so many epochs.

    Its triggered images are made once, unless they are too many to keep: a network that draws triggers costs more than most
    that are judged by them."""
    every, images = made.config["curve"]["every"], made.config["curve"]["images"]
    rows = evaluation.few(test, made.parts.test_rows, images, infection.target, made.stream.child("curve"))
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
    """Judges a defense's selection of training rows by the poison mask, for the record alone.

    Where it hands over margins, `auc_margin` says how far they alone tell poisoned rows, `auc_matched` what the suspicion tells
    among rows of like margin."""

    def judge(
        name: str,
        rows: Rows,
        suspicion: Tensor | None,
        *,
        taken_for: TakenFor = "clean",
        margins: Tensor | None = None,
    ) -> None:
        found: dict[str, Any] = {"images": len(rows)}
        if infection.poisoned is not None:
            poisoned = infection.poisoned.cpu()
            found |= judged(rows.cpu(), suspicion, poisoned, taken_for)
            if margins is not None and suspicion is not None:
                found["auc_margin"] = metrics.auc(margins.cpu(), poisoned)
                found["auc_matched"] = metrics.matched_auc(suspicion.cpu(), poisoned, margins.cpu())
        finding.notes[name] = found

    return judge


def judged(rows: Rows, suspicion: Tensor | None, poisoned: Mask, taken_for: TakenFor) -> dict[str, Any]:
    """Of (M,) rows taken for clean the share that is poisoned; of those taken for poisoned how many are (precision), and how many
    of all that are (recall). And the AUC of (N,) suspicion. None where there is nothing to count."""
    right = metrics.share(poisoned[rows]) if len(rows) else None
    auc = metrics.auc(suspicion.cpu(), poisoned) if suspicion is not None else None
    if taken_for == "poisoned":
        recall = int(poisoned[rows].sum()) / int(poisoned.sum()) if poisoned.any() else None
        return {"precision": right, "recall": recall, "auc": auc}
    return {"poisoned_share": right, "auc": auc} if len(rows) else {}
