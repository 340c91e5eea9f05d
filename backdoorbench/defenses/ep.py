"""EP: entropy pruning. Channels that see two kinds of images in the training set are pruned.

Idea     Of a batch that mixes clean and poisoned images, a channel of the backdoor sees two kinds: its pre-activations
         have two modes, and low entropy once they are standardised.
Paper    Pre-activation Distributions Expose Backdoor Neurons, NeurIPS 2022, by its authors' code
Follows  the authors' code: the training set in eval mode, augmented as the victim saw it; of every batch norm's input
         the largest value of each map, standardised by channel over the images; entropy of their histogram in bins over
         the layer's whole range; within a layer, channels below mean - u times the sample standard deviation lose their
         scale
Departs  1. bins are 0.1 wide, as in BackdoorBench: in the authors' 0.01 most bins of 500 images hold one, and all
            entropies are alike
         2. bins are half-open; in both codes a value on an edge is in no bin, and what lies behind the last whole bin
            neither
         3. constant channels are in no comparison; theirs become NaN, and fail
         4. 500 images drawn at random; the code that we read pools every batch of its loader (defense.images=50000)
         5. BackdoorBench takes the shift too (defense.prune=both)
         6. no sweep over u: there is no clean image to choose by
         7. after an attacker who drives the training there is no training set; reconstruct=true rebuilds one with his
            trigger
         8. the pass runs in the victim's precision; theirs in float32 (train.precision=float32)
Cost     a forward pass over 500 images
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.channels import Prune, norm_channels, read_inputs
from backdoorbench.training.pruning import one_batch, prune_outliers


@dataclass(frozen=True)
class EP(Defense):
    """Entropy pruning by images of the training set. The channels that went are noted, by norm."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "train"})

    u: float
    images: int
    bin_width: float
    prune: Prune
    augment: bool

    def __post_init__(self) -> None:
        check_range("defense.u", self.u, 0)
        check_range("defense.images", self.images, 2)
        check_range("defense.bin_width", self.bin_width, 1e-3)

    def purify(self, scenario: Scenario) -> nn.Module:
        channels = norm_channels(scenario.model)
        augment = scenario.recipe.augment if self.augment else None
        batch = one_batch(scenario.train, self.images, scenario.stream.child("batch"), augment)
        with scenario.autocast():
            peaks = read_inputs(scenario.model, channels.norms, batch, peak)
        scores = {name: -entropy(found, self.bin_width) for name, found in peaks.items()}
        return prune_outliers(scenario, channels, scores, self.u, self.prune)


def peak(maps: Tensor) -> Tensor:
    """(N, C) on the CPU: the largest value of each of the maps (N, C, H, W)."""
    return maps.amax((2, 3)).cpu()


def entropy(peaks: Tensor, width: float) -> Tensor:
    """(C,) float64, in nats: of each channel's (N, C) values, standardised, in bins of one width over the range of all channels.

    NaN for a channel that is constant."""
    values = peaks.double()
    values = (values - values.mean(0)) / values.std(0)
    known = values.isfinite().all(0)
    found = torch.full((values.shape[1],), torch.nan, dtype=torch.float64)
    if not known.any():
        return found
    values = values[:, known]
    bins = ((values - values.min()) / width).long()  # (N, C'), half-open
    counts = torch.zeros(int(bins.max()) + 1, values.shape[1], dtype=torch.float64)
    shares = counts.scatter_add_(0, bins, torch.ones_like(values)) / len(values)
    # Rounded, since equal shares in other bins add up to another last digit.
    found[known] = -torch.xlogy(shares, shares).sum(0).round(decimals=12)
    return found
