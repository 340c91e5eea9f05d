"""BNP: batch-norm statistics pruning. Channels whose statistics were another on poisoned data are pruned.

Idea     A batch norm's running statistics were collected on the poisoned training set. Where those of clean images
         differ most, poisoned images made the difference.
Paper    Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022, by its authors' code
Follows  the authors' code: one batch of clean images in eval mode, augmented as the victim's were; for every batch norm
         the mean and variance (unbiased) of its input, against the running ones: d = log(s2 / s1) + (s1^2 + (m1 -
         m2)^2) / (2 s2^2) - 1/2; within a layer, channels above mean + u times the sample standard deviation lose their
         scale
Departs  1. variances are at least 1e-12, and those of images are put together in float64
         2. BackdoorBench writes log(s2^2 / s1^2), and takes the shift too (defense.prune=both)
         3. the holdout is 5 % and withheld; theirs are 500 images, 1 %, withheld too. Fewer are taken as they are
         4. no sweep over u; the authors print one figure for each, judged by the test set
         5. the pass runs in the victim's precision; theirs in float32 (train.precision=float32)
Cost     a forward pass over 500 images
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.channels import Prune, norm_channels, read_inputs
from backdoorbench.training.pruning import one_batch, prune_outliers

LEAST = 1e-12  # variance


@dataclass(frozen=True)
class BNP(Defense):
    """Batch-norm statistics pruning by clean images. The channels that went are noted, by norm."""

    u: float
    images: int
    prune: Prune
    augment: bool

    def __post_init__(self) -> None:
        check_range("defense.u", self.u, 0)
        check_range("defense.images", self.images, 1)

    def purify(self, scenario: Scenario) -> nn.Module:
        channels = norm_channels(scenario.model, statistics=True)
        augment = scenario.recipe.augment if self.augment else None
        batch = one_batch(scenario.holdout, self.images, scenario.stream.child("batch"), augment)
        with scenario.autocast():
            read = read_inputs(scenario.model, channels.norms, batch, moments)
        scores = {name: divergence(*pooled(read[name]), norm) for name, norm in channels.norms.items()}
        return prune_outliers(scenario, channels, scores, self.u, self.prune)


def moments(maps: Tensor) -> Tensor:
    """(N, C, 3) float64 on the CPU, of maps (N, C, H, W): each map's mean, mean squared deviation from it, and size."""
    flat = maps.flatten(2)
    mean, spread = flat.mean(2), flat.var(2, correction=0)
    return torch.stack([mean, spread, torch.full_like(mean, flat.shape[2])], 2).double().cpu()


def pooled(read: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and unbiased variance (C,) of all values whose `moments` (N, C, 3) are given, maps of one size."""
    means, spreads, size = read.unbind(2)
    count = len(read) * size[0]
    return means.mean(0), (spreads.mean(0) + means.var(0, correction=0)) * count / (count - 1).clamp(min=1)


def divergence(mean: Tensor, variance: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """(C,) float64, at least 0: of the normal distribution with these moments from the one with the norm's running ones."""
    assert norm.running_mean is not None and norm.running_var is not None  # `norm_channels` asked for them
    known = norm.running_var.cpu().double().clamp(min=LEAST)
    variance, apart = variance.clamp(min=LEAST), mean - norm.running_mean.cpu().double()
    return (known / variance).log() / 2 + (variance + apart.square()) / (2 * known) - 0.5
