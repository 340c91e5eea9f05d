"""CLP: channel Lipschitzness pruning. Channels that answer strongly to small changes are pruned, by the weights alone.

Idea     A trigger is a small change with a large effect, so the channels that it works through have unusually large
         Lipschitz constants. A bound on a channel's constant can be read from its filter and its batch norm: no image
         is needed.
Paper    arXiv 2208.03111, by its authors' code
Follows  the authors' code: sigma_c = the largest singular value of filter c as a matrix (C_in, k k), times |gamma_c| /
         sqrt(running variance), without eps; within a layer, channels above mean + u times the sample standard
         deviation lose scale and shift
Departs  1. a norm belongs to the convolution whose output it reads; the authors' code and BackdoorBench take the one
            registered last before it, which in a PreAct-ResNet is another one for every block's first norm
            (defense.pairing=registration). Norms that read sums have no convolution, and are skipped
         2. channels whose running variance is 0 count for neither mean nor deviation; in theirs one such channel hides
            its layer
         3. singular values in float64
         4. no sweep over u: with no data there is nothing to choose by. BackdoorBench prints one, judged by the test
            set
Cost     less than a second
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.channels import Prune, usable
from backdoorbench.models.surgery import ConvNorm, batch_norms, conv_norm_pairs, registered_pairs
from backdoorbench.training.pruning import prune_outliers


@dataclass(frozen=True)
class CLP(Defense):
    """Channel Lipschitzness pruning. The channels that went, by norm, and how many norms had no convolution, are noted."""

    needs: ClassVar[frozenset[str]] = frozenset({"model"})
    draws: ClassVar[bool] = False

    u: float
    prune: Prune
    pairing: Literal["dataflow", "registration"]

    def __post_init__(self) -> None:
        check_range("defense.u", self.u, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        pairs = conv_norm_pairs(model) if self.pairing == "dataflow" else registered_pairs(model)
        channels = usable({pair.norm_name: pair.norm for pair in pairs}, statistics=True)
        scores = {pair.norm_name: lipschitz(pair) for pair in pairs if pair.norm_name in channels.norms}
        scenario.note("norms_without_convolution", len(batch_norms(model)) - len(pairs))
        scenario.note(
            "grouped_convolutions", sum(pair.conv.groups > 1 for pair in pairs)
        )  # of each, the bound within its group
        return prune_outliers(scenario, channels, scores, self.u, self.prune)


@torch.no_grad()
def lipschitz(pair: ConvNorm) -> Tensor:
    """(C,) float64 on the CPU: the bound on each channel's Lipschitz constant; not finite where the running variance is 0."""
    assert pair.norm.running_var is not None  # `usable` asked for it
    filters = pair.conv.weight.cpu().double().flatten(2)  # (C, C_in / groups, k k)
    scale = pair.norm.weight.cpu().double().abs() / pair.norm.running_var.cpu().double().sqrt()
    sigma: Tensor = torch.linalg.matrix_norm(filters, ord=2)
    return sigma * scale
