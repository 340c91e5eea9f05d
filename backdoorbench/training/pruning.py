"""How a pruner settles how much goes, and how what went is told: by its own rule, or by the accuracy on a part of the holdout."""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from backdoorbench.config.acts import Acts, Only
from backdoorbench.data.images import ImageSet
from backdoorbench.data.store import stratified
from backdoorbench.errors import DataError, check_range
from backdoorbench.models.channels import (
    Channels,
    Network,
    Prune,
    can_stand_out,
    multiplied,
    multiply,
    norm_channels,
    outliers,
)
from backdoorbench.shapes import Images, Mask
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import Loss, autocast, fit
from backdoorbench.training.recipe import Precision, Recipe
from backdoorbench.training.scenario import Scenario

log = logging.getLogger(__name__)

BATCH = 500  # images at a time, where only logits are wanted
THRESHOLDS = tuple(twentieth / 20 for twentieth in range(19))  # 0 to 0.9, as pruners by masks try them

Level = TypeVar("Level", int, float)


@dataclass(frozen=True)
class Selection:
    """How a pruner settles how much goes. In its yaml these settings stand beside its own (`Annotated[Selection, BESIDE]`).

    selection        fixed: as much as it is told; holdout_drop: as much as a part of the holdout lets it
    max_drop         largest fall of that part's accuracy, as a share of what it was
    select_fraction  that part, as a share of the holdout, every class in it
    """

    acts: ClassVar[Acts] = {
        "max_drop": Only("selection", "holdout_drop"),
        "select_fraction": Only("selection", "holdout_drop"),
    }

    selection: Literal["fixed", "holdout_drop"]
    max_drop: float
    select_fraction: float

    def __post_init__(self) -> None:
        check_range("defense.max_drop", self.max_drop, 0, 1)
        check_range("defense.select_fraction", self.select_fraction, 0, 1)

    def divide(self, holdout: ImageSet, stream: Stream) -> tuple[ImageSet, ImageSet | None]:
        """(what the method works on, what it is judged by): disjoint; all and None where nothing is chosen."""
        if self.selection == "fixed":
            return holdout, None
        present, labels = torch.unique(
            holdout.labels.cpu(), return_inverse=True
        )  # stratified() wants classes that occur
        count = max(round(self.select_fraction * len(holdout)), len(present))
        if count > len(holdout) - 2:
            raise DataError(
                f"defense.selection=holdout_drop judges by {count} of the {len(holdout)} holdout images, at least one of each "
                f"class; expected two others at least to work on. Raise holdout.rate or holdout.per_class, lower "
                f"defense.select_fraction, or set defense.selection=fixed."
            )
        is_judge = torch.zeros(len(holdout), dtype=torch.bool)
        is_judge[stratified(labels, count, stream)] = True
        return holdout.subset((~is_judge).nonzero()[:, 0]), holdout.subset(is_judge.nonzero()[:, 0])

    def strongest(self, levels: Iterable[Level], accuracy: Callable[[Level], float], before: float) -> Level | None:
        """The last of some levels of pruning, from weak to strong, at which the accuracy has not yet fallen from `before` by more
        than `max_drop` of it; None where the first is too strong. What comes after a level that is too strong is not looked at.
        """
        found = None
        for level in levels:
            if before - accuracy(level) > self.max_drop * before + 1e-9:  # 1 - 0.7 is more than 0.3
                break
            found = level
        return found


@torch.no_grad()
def accuracy(network: Network, images: ImageSet, precision: Precision) -> float:
    """The share of the images, in [0, 1], that a network in its present mode calls by their labels."""
    hits = torch.zeros((), dtype=torch.int64, device=images.device)
    for batch, labels in images.batches(BATCH):
        with autocast(precision, images.device):
            hits += (network(batch).argmax(1) == labels).sum()
    return int(hits) / len(images)


# ---- channels that stand out ----------------------------------------------------------------------------------------


def prune_outliers(
    scenario: Scenario, channels: Channels, scores: Mapping[str, Tensor], u: float, prune: Prune
) -> nn.Module:
    """The scenario's model without those channels of each norm whose score exceeds the norm's mean by more than `u` deviations.

    scores  norm -> (C,)"""
    norms = channels.norms.values()
    if not any(can_stand_out(norm.num_features, u) for norm in norms):
        widest = max(norm.num_features for norm in norms)
        log.warning(
            f"the widest batch norm has {widest} channels, of which none can lie {u:g} standard deviations above their mean, so "
            f"nothing is pruned; lower defense.u below {(widest - 1) / widest**0.5:.3g}, or take a wider network"
        )
    pruned = channels.row({name: outliers(scores[name].cpu(), u) for name in channels.norms})
    return prune_channels(scenario, channels, pruned, prune)


def prune_channels(scenario: Scenario, channels: Channels, pruned: Mask, prune: Prune) -> nn.Module:
    """The scenario's model without the `pruned` (C,) channels, which are noted by norm."""
    model = scenario.model
    multiply(model, channels.without(pruned, prune))
    scenario.note("pruned", channels.named(pruned))
    scenario.note("pruned_channels", int(pruned.sum()))
    scenario.note("channels", len(channels))
    return model


def one_batch(images: ImageSet, count: int, stream: Stream, augment: Augment | None) -> Iterable[Images]:
    """`count` images drawn at random, or all there are, augmented; in parts, since together they are one batch to the method."""
    rows = stream.child("rows").permutation(len(images))[:count]
    for batch, _ in images.subset(rows).batches(BATCH, stream.child("augment"), augment):
        yield batch


# ---- channels whose mask is low -------------------------------------------------------------------------------------


def learn_mask(
    network: nn.Module,
    images: ImageSet,
    recipe: Recipe,
    stream: Stream,
    loss_of: Callable[[Channels, Tensor], Loss],
    freeze_norms: bool = False,
) -> Tensor:
    """(C,) in [0, 1]: a factor on the scale of each channel, all 1 at the start, after training by `loss_of(channels, mask)`.

    network  a copy of one's own: its weights stay and want no gradient any more, its running statistics may move"""
    channels = norm_channels(network)
    mask = nn.Parameter(torch.ones(len(channels), device=channels.device))

    def clamp() -> None:
        with torch.no_grad():
            mask.clamp_(0, 1)

    network.requires_grad_(False)
    loss = loss_of(channels, mask)
    fit(network, images, recipe, stream, loss=loss, parameters=[mask], after_step=clamp, freeze_norms=freeze_norms)
    return mask.detach()


def prune_by_mask(
    scenario: Scenario, mask: Tensor, prune: Prune, chosen: Selection, told: Mask, judge: ImageSet | None
) -> nn.Module:
    """The scenario's model without the channels whose `mask` (C,) is low.

    told   (C,) bool: the channels to prune where nothing is chosen
    judge  what a threshold is chosen by, of THRESHOLDS; None: nothing is chosen

    The learning curve is drawn over THRESHOLDS, a point each; how many channels each of them takes is noted."""
    model, precision = scenario.model, scenario.recipe.precision
    channels, mask, pruned = norm_channels(model), mask.cpu(), told.cpu()
    for number, threshold in enumerate(THRESHOLDS):
        candidate = copy.deepcopy(model)
        multiply(candidate, channels.without(mask <= threshold, prune))
        scenario.probe(candidate, number)
    if judge is not None:

        def judged(threshold: float) -> float:
            return accuracy(multiplied(model, channels.without(mask <= threshold, prune)), judge, precision)

        before = accuracy(model, judge, precision)
        strongest = chosen.strongest(THRESHOLDS, judged, before)
        pruned = mask <= (-1 if strongest is None else strongest)
        scenario.note("threshold", strongest)
        scenario.note(
            "selection_accuracy", {"before": before, "pruned": None if strongest is None else judged(strongest)}
        )
    scenario.note("channels_below", {f"{threshold:g}": int((mask <= threshold).sum()) for threshold in THRESHOLDS})
    return prune_channels(scenario, channels, pruned, prune)
