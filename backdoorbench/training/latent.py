"""The smallest shift of a network's features that sends all clean images to a class: latent trigger-activated changes."""

import math

import torch
from torch import Tensor, nn

from backdoorbench.data.images import ImageSet
from backdoorbench.models.surgery import classifier_head
from backdoorbench.shapes import Logits

BATCH = 500  # images at a time
SWEEPS = 20_000  # over the constraints, at most
TOLERANCE = 1e-6  # of a constraint, as a share of the largest


def latent_changes(model: nn.Module, images: ImageSet) -> tuple[Tensor, Tensor]:
    """(K, D) and (K,) float32 on the CPU: for each class the smallest shift s of the features z the classifier reads such that
    `model`, in its present mode, calls every z + s that class; and the lengths of these, infinite where there is no such shift.

    Runs under the caller's autocast; of the classifier itself only differences of weights and of logits are needed."""
    with torch.no_grad():
        logits = torch.cat([model(batch).double().cpu() for batch, _ in images.batches(BATCH)])
    shifts = smallest_shifts(classifier_head(model).weight.detach().double().cpu(), logits)
    lengths = shifts.norm(dim=1)
    return shifts.float(), lengths.float()


def smallest_shifts(weight: Tensor, logits: Logits) -> Tensor:
    """(K, D): for each class k the shortest s with (W_k - W_j) s >= max over images of their logits' (j - k), for all other j.

    weight (K, D), logits (N, K), float64. Hildreth's method on the duals of all K quadratic programmes at once: a multiplier
    a constraint, each in turn set to its best value that is not negative. Infinite where the constraints cannot all hold."""
    count = len(weight)
    labels = torch.arange(count)
    others = torch.stack([labels[labels != label] for label in range(count)])  # (K, K - 1)
    ways = weight[:, None] - weight[others]  # (K, K - 1, D)
    needed = torch.stack([(logits[:, others[k]] - logits[:, [k]]).amax(0) for k in range(count)])  # (K, K - 1)
    gram = ways @ ways.mT
    scale = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-300)
    multipliers = torch.zeros_like(needed)
    allowed = TOLERANCE * needed.abs().amax().clamp(min=1e-12)
    for _ in range(SWEEPS):
        before = multipliers.clone()
        for j in range(count - 1):
            lack = needed[:, j] - (gram[:, j] * multipliers).sum(1)
            multipliers[:, j] = (multipliers[:, j] + lack / scale[:, j]).clamp(min=0)
        if ((multipliers - before).abs() * scale <= allowed / 10).all():
            break
    shifts = (multipliers[:, None] @ ways)[:, 0]
    broken = (needed - (ways @ shifts[:, :, None])[:, :, 0]).amax(1) > allowed
    return shifts.masked_fill(broken[:, None], math.inf)
