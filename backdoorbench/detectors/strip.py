"""STRIP: strong intentional perturbation. An input whose label survives whatever is laid over it carries a trigger.

Idea     Clean images of other classes, superimposed on a clean input, scatter its predictions. A trigger shows through and
         holds them at its target: low entropy of the predictions betrays it.
Paper    arXiv 1902.06531v2
Follows  the paper and the authors' code: H(x) = mean over N overlays of -sum p log p, overlays drawn anew for each input and
         with replacement; suspicion is -H, and an input below a low quantile of clean images' H is flagged. The sum x +
         alpha overlay is BackdoorBench's, of normalised images and without clipping: here x + alpha (overlay - mean) of pixels
Departs  1. overlays and calibration images come from the holdout; BackdoorBench takes both from the test set
         2. the threshold is the largest value of the calibration images that fresh clean inputs fall below with probability
            `fpr` at most, whatever their distribution; the authors' is the quantile of a normal fit
         3. every input is judged; the toolbox keeps clean ones that are classified correctly and triggers that succeed
         4. natural logarithms, p + 1e-8 as in BackdoorBench; the authors' are to base 2
         5. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     N forward passes for each input and each calibration image
"""

import logging
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoorbench import progress
from backdoorbench.detectors.base import BATCH, Detector, Judges, Scenario, Verdict
from backdoorbench.errors import DataError, ModelError, check_range
from backdoorbench.models.base import Classifier
from backdoorbench.models.layouts import layout_of
from backdoorbench.shapes import Bytes, Images, Rows, floor_of, to_float
from backdoorbench.streams import Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class STRIP(Detector):
    """Entropy of predictions under superimposed clean images.

    The holdout is divided at random: one half is laid over, the other sets the threshold. Where a half is too small for
    `fpr` (fewer than 1 / fpr - 1 images) all of it does both, and no image is laid over itself. Where even that is too
    small, no threshold holds `fpr`: nothing is flagged, and the scores stand."""

    judges: ClassVar[Judges] = "inputs"
    needs: ClassVar[frozenset[str]] = frozenset({"model", "holdout", "inputs"})

    overlays: int
    blend: Literal["add", "convex"]
    alpha: float
    fpr: float

    def __post_init__(self) -> None:
        check_range("detector.overlays", self.overlays, 1)
        check_range("detector.alpha", self.alpha, 0, 1 if self.blend == "convex" else math.inf)
        check_range("detector.fpr", self.fpr, 0, 1)

    def examine(self, scenario: Scenario) -> Verdict:
        model, inputs, holdout = scenario.model, scenario.inputs, scenario.holdout
        if len(holdout) < 2:
            raise DataError(
                f"strip lays clean images over each other, but the holdout has {len(holdout)}; expected at least 2. Raise "
                f"holdout.rate, or holdout.per_class."
            )
        order = scenario.stream.child("split").permutation(len(holdout))
        laid, calibrating = order[len(holdout) // 2 :], order[: len(holdout) // 2]
        own = None
        if rank(self.fpr, len(calibrating)) == 0:
            laid = calibrating = order
            own = torch.arange(len(order))  # where each calibration image lies among the overlays
        pool = holdout.images.index_select(0, laid.to(holdout.images.device))
        clean = holdout.images.index_select(0, calibrating.to(holdout.images.device))
        draws = scenario.stream.child("overlays")
        with progress.task(self.name, len(clean) + len(inputs), "image") as work:
            drawn = draw(len(clean), len(pool), self.overlays, draws.child("calibration"), own)
            expected = self.entropies(scenario, model, clean, pool, drawn, work)
            drawn = draw(len(inputs), len(pool), self.overlays, draws.child("inputs"), None)
            found = self.entropies(scenario, model, inputs, pool, drawn, work)
        threshold = quantile(expected, self.fpr)
        if threshold == -math.inf:
            log.warning(
                f"{self.name}: {len(clean)} clean images set no threshold that flags at most {self.fpr:g} of the clean "
                f"inputs, so nothing is flagged; raise holdout.rate, holdout.per_class or detector.fpr"
            )
        scenario.note("calibration_images", len(clean))
        scenario.note("clean_entropy", float(expected.mean()))
        scenario.note("threshold", threshold if math.isfinite(threshold) else None)
        return Verdict(-found, found < threshold)

    @torch.no_grad()
    def entropies(
        self,
        scenario: Scenario,
        model: nn.Module,
        images: Images | Bytes,
        pool: Bytes,
        drawn: Rows,
        work: progress.Task,
    ) -> Tensor:
        """(M,) float32 on the CPU, in [0, log K]: mean entropy of the predictions for each of (M, 3, H, W) images.

        pool   (P, 3, H, W) uint8: what may be laid over them
        drawn  (M, N) int64: which of the pool each image is given"""
        device = scenario.device
        layout = layout_of(model, device)
        mean = normalisation_mean(model)
        count = drawn.shape[1]
        chosen = drawn.flatten()
        parts: list[Tensor] = [torch.zeros(0, device=device)]
        for start in range(0, len(chosen), BATCH):  # pairs of an image and an overlay
            stop = min(start + BATCH, len(chosen))
            first, last = start // count, (stop - 1) // count + 1
            under = (torch.arange(start, stop) // count - first).to(device)
            below = floats(images[first:last].to(device)).index_select(0, under)
            above = floats(pool.index_select(0, chosen[start:stop].to(pool.device)).to(device))
            mixed = superimpose(below, above, mean, self.alpha, self.blend)
            with scenario.autocast():
                logits = model(mixed.contiguous(memory_format=layout))
            parts.append(entropy(logits))
            work.advance(stop // count - start // count)
        return torch.cat(parts).view(-1, count).mean(1).cpu()


def superimpose(below: Images, above: Images, mean: Tensor, alpha: float, blend: Literal["add", "convex"]) -> Images:
    """(N, 3, H, W) of pixels, not clamped. add: below + alpha (above - mean); convex: (1 - alpha) below + alpha above.

    mean  of the model's normalisation: the sum is that of normalised images"""
    if blend == "convex":
        return torch.lerp(below, above, alpha)
    return below + alpha * (above - mean)


def entropy(logits: Tensor) -> Tensor:
    """(N,) float32 in [0, log K]: -sum p log p of the softmax of (N, K) logits, with p + 1e-8 for p."""
    chances = logits.float().softmax(1) + 1e-8
    return -(chances * chances.log()).sum(1)


def draw(count: int, pool: int, overlays: int, stream: Stream, own: Rows | None) -> Rows:
    """(count, overlays) int64 in [0, pool): with replacement; never `own[i]` for image i, where that is given."""
    generator = stream.generator()
    if own is None:
        return torch.randint(pool, (count, overlays), generator=generator)
    others = torch.randint(pool - 1, (count, overlays), generator=generator)
    return others + (others >= own[:, None])


def rank(fpr: float, count: int) -> int:
    """How many of `count` + 1 equally likely places lie at or below a threshold that clean inputs pass but for `fpr`."""
    return min(count, floor_of(fpr, count + 1))


def quantile(values: Tensor, fpr: float) -> float:
    """The `rank`th smallest of (n,) values: a fresh one falls below it with probability `fpr` at most; -inf for rank 0."""
    place = rank(fpr, len(values))
    return float(values.sort().values[place - 1]) if place else -math.inf


def normalisation_mean(model: nn.Module) -> Tensor:
    """(3, 1, 1), or (1, 1, 1) of a grey network: the mean that the model subtracts from pixels, red first."""
    for module in model.modules():
        if isinstance(module, Classifier):
            return module.of_pixels.mean
    raise ModelError(
        f"strip adds images as the network sees them, but this {type(model).__name__} has no normalisation layer. Wrap the "
        f"network in backdoorbench.models.base.Classifier."
    )


def floats(images: Images | Bytes) -> Images:
    return to_float(images) if images.dtype == torch.uint8 else images
