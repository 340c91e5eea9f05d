"""Triggers reversed from a network: the smallest mask and pattern towards each class (Neural Cleanse), all classes at once."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench import progress
from backdoorbench.data.images import ImageSet, spans
from backdoorbench.errors import check_range
from backdoorbench.models.base import frozen
from backdoorbench.models.layouts import layout_of
from backdoorbench.shapes import Images, Mask
from backdoorbench.streams import Stream
from backdoorbench.training.optimizers import Adam

EPSILON = 1e-7  # of tanh(v) / (2 + EPSILON) + 1/2
PIXELS = {"cpu": 2**17, "other": 2**20}  # of images that pass through the network at once; more leave a CPU's caches


@dataclass(frozen=True)
class Search:
    """How triggers are searched for. A detector has these settings beside its own, a defense under a name of their own."""

    units: int
    batch_size: int
    lr: float
    betas: tuple[float, float]
    penalty: float
    multiplier: float
    patience: int
    success: float
    stop_patience: int
    stop_factor: float

    def check(self, where: str) -> None:
        """Raises ConfigError for a setting out of its range. where: the place of the settings, `detector`."""
        check_range(f"{where}.units", self.units, 1)
        check_range(f"{where}.batch_size", self.batch_size, 1)
        check_range(f"{where}.lr", self.lr, 0)
        for place, beta in enumerate(self.betas):
            check_range(f"{where}.betas[{place}]", beta, 0, 1)
        check_range(f"{where}.penalty", self.penalty, 0)
        check_range(f"{where}.multiplier", self.multiplier, 1)
        check_range(f"{where}.patience", self.patience, 1)
        check_range(f"{where}.success", self.success, 0, 1)
        check_range(f"{where}.stop_patience", self.stop_patience, 1)
        check_range(f"{where}.stop_factor", self.stop_factor, 0, 1)


@dataclass(frozen=True, eq=False)
class Reversal:
    """The smallest triggers found towards C classes, on the CPU.

    masks      (C, 1, H, W) float32 in [0, 1]; 0 where a class never reached the wanted success
    patterns   (C, 3, H, W) float32 in [0, 1]; 0 likewise
    norms      (C,) float32, sum of the mask; infinite likewise
    success    (C,) float64, share of the images that the trigger moves to the class; the highest reached likewise
    penalties  (units, C) float64, lambda in each pass; nan once a class has stopped
    """

    masks: Tensor
    patterns: Images
    norms: Tensor
    success: Tensor
    penalties: Tensor


def reverse(
    model: nn.Module,
    images: ImageSet,
    classes: Sequence[int],
    stream: Stream,
    *,
    units: int,
    batch_size: int,
    lr: float,
    betas: tuple[float, float],
    penalty: float,
    multiplier: float,
    patience: int,
    success: float,
    stop_patience: int,
    stop_factor: float,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Reversal:
    """A mask and a pattern towards each of `classes`, all at once. The model is left as it was.

    A class's start comes from a stream of its own, and all classes see the same batches in the same order, so a class's
    result does not depend on which others are reversed beside it, but for the rounding of larger batches."""
    count, device, shape = len(classes), images.device, images.images.shape[2:]
    layout = layout_of(model, device)
    targets = torch.tensor(classes, device=device)
    mask_v, pattern_v = (v.to(device).requires_grad_() for v in starts(classes, shape, stream))
    optimizer = Adam([mask_v, pattern_v], lr, betas, fused=device.type in ("cpu", "cuda"))
    steps = len(spans(len(images), batch_size))
    at_once = max(1, PIXELS.get(device.type, PIXELS["other"]) // (min(batch_size, len(images)) * shape.numel()))
    masks, patterns = torch.zeros(count, 1, *shape), torch.zeros(count, 3, *shape)
    norms, reached = torch.full((count,), math.inf), torch.zeros(count, dtype=torch.float64)
    control = Penalties(count, penalty, multiplier, patience)
    halt = Stops(count, stop_patience, stop_factor)
    trace = torch.full((units, count), math.nan, dtype=torch.float64)
    active = torch.arange(count)
    with frozen(model), progress.task("reverse", units, "pass", steps) as work:
        for unit in range(units):
            trace[unit, active] = control.values[active]
            weights = control.values.float().to(device)
            hits = torch.zeros(count, dtype=torch.int64, device=device)
            here = active.to(device)
            for step, (batch, _) in enumerate(images.batches(batch_size, stream.child(f"unit{unit}"))):
                optimizer.zero_grad()
                for start in range(0, len(here), at_once):
                    rows = here[start : start + at_once]  # (c,)
                    mask, pattern = squash(mask_v[rows]), squash(pattern_v[rows])  # (c, 1, H, W), (c, 3, H, W)
                    stamped = torch.lerp(batch, pattern[:, None], mask[:, None]).flatten(0, 1)  # (c N, 3, H, W)
                    with autocast():
                        logits = model(stamped.contiguous(memory_format=layout))
                    wanted = targets[rows].repeat_interleave(len(batch))
                    # Summed over classes: none sees another's gradient.
                    loss = F.cross_entropy(logits.float(), wanted, reduction="sum") / len(batch)
                    loss = loss + (weights[rows] * mask.sum((1, 2, 3))).sum()
                    loss.backward()  # type: ignore[no-untyped-call]
                    hits[rows] += (logits.detach().argmax(1) == wanted).view(len(rows), -1).sum(1)
                if step + 1 < steps:
                    work.advance()
                else:
                    seen_masks, seen_patterns = squash(mask_v.detach()), squash(pattern_v.detach())
                optimizer.step()  # moves stopped classes too, on momentum; nobody looks at them again
            share = hits.cpu().double() / len(images)
            sizes = seen_masks.sum((1, 2, 3)).cpu()
            running = torch.zeros(count, dtype=torch.bool)
            running[active] = True
            won = running & (share >= success)
            better = won & (sizes < norms)
            masks[better] = seen_masks.cpu()[better]
            patterns[better] = seen_patterns.cpu()[better]
            norms[better] = sizes[better]
            reached = torch.where(better, share, reached.maximum(share).where(norms.isinf(), reached))
            stopped = halt.update(norms) & control.went_both_ways
            control.update(won)
            active = (running & ~stopped).nonzero()[:, 0]
            work.advance()
            if not len(active):
                break
    return Reversal(masks, patterns, norms, reached, trace[: unit + 1])


class Penalties:
    """Lambda of each of C classes: up after `patience` successes in a row, down after as many failures."""

    def __init__(self, count: int, start: float, multiplier: float, patience: int) -> None:
        self.values = torch.full((count,), start, dtype=torch.float64)
        self.multiplier, self.patience = multiplier, patience
        self.wins = torch.zeros(count, dtype=torch.int64)  # in a row
        self.losses = torch.zeros(count, dtype=torch.int64)
        self.raised = torch.zeros(count, dtype=torch.bool)  # ever
        self.lowered = torch.zeros(count, dtype=torch.bool)

    @property
    def went_both_ways(self) -> Mask:
        """(C,): whether lambda has risen and fallen before."""
        return self.raised & self.lowered

    def update(self, won: Mask) -> None:
        """After a pass in which the classes `won` (C,) reached the wanted success."""
        self.wins = (self.wins + 1).where(won, 0)
        self.losses = (self.losses + 1).where(~won, 0)
        up, down = self.wins >= self.patience, self.losses >= self.patience
        self.values = torch.where(up, self.values * self.multiplier, self.values)
        self.values = torch.where(down, self.values / self.multiplier**1.5, self.values)
        self.wins[up], self.losses[down] = 0, 0
        self.raised, self.lowered = self.raised | up, self.lowered | down


class Stops:
    """Which of C classes have gone `patience` passes that left the smallest mask above `factor` of what it was before them."""

    def __init__(self, count: int, patience: int, factor: float) -> None:
        self.patience, self.factor = patience, factor
        self.before = torch.full((count,), math.inf)
        self.idle = torch.zeros(count, dtype=torch.int64)

    def update(self, norms: Tensor) -> Mask:
        """(C,), after a pass that left the smallest masks at `norms` (C,), infinite where there is none yet."""
        stalled = norms.isfinite() & (norms >= self.factor * self.before)
        self.idle = (self.idle + 1).where(stalled, 0)
        self.before = self.before.where(stalled, norms)
        return self.idle >= self.patience


FEWEST = 3  # classes of which one can stand out


def anomaly(norms: Tensor) -> Tensor:
    """(K,) float32: (median - norm) / (1.4826 MAD), so positive below the median; all 0 where MAD is 0.

    norms  (K,); infinite ones count for neither median nor MAD, and are given the lowest of the others' values"""
    known = norms[norms.isfinite()].double()
    if not len(known):
        return torch.zeros(len(norms))
    median = known.quantile(0.5)  # of an even count, the mean of the two in the middle
    spread = 1.4826 * (known - median).abs().quantile(0.5)
    if not spread > 0:
        return torch.zeros(len(norms))
    index = (median - norms.double()) / spread
    return index.maximum(index[norms.isfinite()].min()).float()


def index_of(norms: Tensor) -> float | None:
    """The largest of `anomaly`, a model's score; None where none can stand out: where MAD is 0, and of two, which always lie
    equally far from their median."""
    scores = anomaly(norms)
    return float(scores.max()) if scores.any() and int(norms.isfinite().sum()) >= FEWEST else None


def outliers(norms: Tensor, threshold: float) -> Mask:
    """(K,) bool: whose `anomaly` exceeds `threshold`; none where none can stand out."""
    return (anomaly(norms) > threshold) & (index_of(norms) is not None)


def squash(v: Tensor) -> Tensor:
    """Any numbers as numbers in [0, 1]."""
    return v.tanh() / (2 + EPSILON) + 0.5


def starts(classes: Sequence[int], shape: torch.Size, stream: Stream) -> tuple[Tensor, Tensor]:
    """v of the masks (C, 1, H, W) and of the patterns (C, 3, H, W), on the CPU: `squash` of them is uniform in [0, 1]."""
    found = []
    for name, channels in (("mask", 1), ("pattern", 3)):
        draws = [stream.child(f"class{label}").child(name).generator() for label in classes]
        values = torch.stack([torch.rand(channels, *shape, generator=g, dtype=torch.float64) for g in draws])
        found.append((((values - 0.5) * (2 - EPSILON)).atanh()).float())
    return found[0], found[1]
