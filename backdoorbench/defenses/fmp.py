"""FMP: adversarial feature-map pruning. Push every map once, remove those whose push hurts most, tune what is left.

Idea     A map that carries the backdoor moves far under a tiny change of the image, and then the network fails. Change
         clean images by one small step such that one map moves most, do so for every map, and in each layer remove the
         maps with the least accuracy left.
Paper    arXiv 2307.11565v2 (v1 calls it FMT)
Follows  the authors' code: one batch of 32, a start at random signs of one size that all maps share, one signed step of
         size eps on the squared distance of the map from its clean self, eval mode; floor(C/64) maps a layer, shortcuts
         included; then SGD, momentum 0.9, no weight decay, cosine from 0.01 to 1e-4 stepped per epoch, batch norm in train
         mode. Both sizes are in a file it lacks; 1/255 is BackdoorBenchER's
Departs  1. the batch is [0, 1] pixels without augmentation; theirs is augmented, normalised, clamped to [0, 1] and
            normalised again, which leaves little of a CIFAR-10 image
         2. a layer loses its own worst maps; their lists, made in execution order, are applied in the order of registration,
            which differs in PreAct-ResNets
         3. a batch norm loses scale and shift, and only where it reads the pruned convolution directly; theirs loses its
            scale alone, by the list of the convolution registered last before it, also where it reads a residual sum
         4. pruned maps are reset to 0 after every step; without that, filters grow back in theirs
         5. among maps of equal accuracy (of 33 values) those of higher loss go; theirs takes any (defense.ties=index)
         6. defense.fraction, where set, replaces p and takes at least one map a layer; p=64 leaves layers of fewer than 64
            channels whole. null: as theirs
         7. steps are found in float32, accuracies in the victim's precision; theirs is float32 throughout
         8. a convolution that runs twice in one pass counts with its worse run; theirs would count it twice
         9. our holdout is 5 %, kept from the victim; theirs 10 %, balanced, of its training images (holdout=fmp)
Cost     for every map one forward pass of `probe_images` and one backward pass to the image through the layers before it:
         for PreAct-ResNet-18 (4,800 maps) less than five epochs of CIFAR-10; then `epochs` passes over the holdout
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench import progress
from backdoorbench.config.acts import Acts, Only
from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.layouts import layout_of
from backdoorbench.models.surgery import Prunable, prunable_channels
from backdoorbench.shapes import Images, Labels, floor_of
from backdoorbench.streams import Stream
from backdoorbench.training.fit import autocast, fit
from backdoorbench.training.recipe import Precision, Tuning

COPIES = 8  # of the probe in one pass, at most: few enough that layers of few maps leave none idle
VALUES = 2**28  # numbers in all maps of those copies, at most: 1 GiB, about three times that with the graph


@dataclass(frozen=True)
class FMP(Defense):
    """Adversarial feature-map pruning, and fine-tuning, on the holdout."""

    acts: ClassVar[Acts] = {"p": Only("fraction", None)}

    p: int
    fraction: float | None
    eps_255: float
    start_255: float
    probe_images: int
    ties: Literal["loss", "index"]
    epochs: int
    lr_min: float
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        check_range("defense.p", self.p, 2)
        if self.fraction is not None:
            check_range("defense.fraction", self.fraction, 0, 1)
        check_range("defense.eps_255", self.eps_255, 0, 255)
        check_range("defense.start_255", self.start_255, 0.001, 255)  # at 0 a map is where it was: no way to push it
        check_range("defense.probe_images", self.probe_images, 1)
        check_range("defense.epochs", self.epochs, 0)
        check_range("defense.lr_min", self.lr_min, 0, self.tuning.lr)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        layers = prunable_channels(model)
        losing = {layer.name: range(layer.channels) for layer in layers if self.loses(layer.channels)}
        pruned: dict[str, list[int]] = {}
        if losing:
            probe = draw(scenario.holdout, self.probe_images, self.start_255 / 255, scenario.stream)
            ranks = rank(model, losing, probe, self.eps_255 / 255, scenario.recipe.precision)
            pruned = {name: found.worst(self.loses(len(losing[name])), self.ties) for name, found in ranks.items()}
            scenario.note("probe", judge_start(model, probe, scenario.recipe.precision))
            scenario.note("probe_accuracy", {name: found.summary() for name, found in ranks.items()})
        scenario.note("pruned", pruned)
        scenario.note("pruned_maps", sum(len(channels) for channels in pruned.values()))
        scenario.note("maps", sum(layer.channels for layer in layers))
        erase = eraser(layers, pruned)
        erase()
        recipe = self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision, "cosine", self.lr_min)
        fit(
            model,
            scenario.holdout,
            recipe,
            scenario.stream.child("tune"),
            freeze_norms=self.tuning.freeze_norms,
            after_step=erase if pruned else None,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        return model

    def loses(self, channels: int) -> int:
        """How many of a layer's maps are removed; never all."""
        if self.fraction is None:
            return channels // self.p
        return min(channels - 1, max(1, floor_of(self.fraction, channels)))


# --- ranking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Probe:
    """What maps are ranked by: images (B, 3, H, W), their labels (B,), and the images where every push starts."""

    images: Images
    labels: Labels
    start: Images


def draw(holdout: ImageSet, count: int, alpha: float, stream: Stream) -> Probe:
    """`count` images of the holdout, or all it has, and the start: each value moved by +-alpha, within [0, 1]."""
    rows = stream.child("probe").permutation(len(holdout))[:count]
    images, labels = next(iter(holdout.subset(rows).batches(len(rows))))
    signs = torch.randint(0, 2, images.shape, generator=stream.child("start").generator()) * 2 - 1
    return Probe(images, labels, (images + alpha * signs.to(images)).clamp(0, 1))


@dataclass(frozen=True, eq=False)
class Ranks:
    """Of some maps of a layer: their channels, and what is left of `images` images after the push of each.

    hits  (C,) int64: images still called by their label      loss  (C,) float32: mean cross-entropy
    """

    channels: Sequence[int]
    images: int
    hits: Tensor
    loss: Tensor

    def worst(self, count: int, ties: Literal["loss", "index"]) -> list[int]:
        """The `count` channels with the fewest hits, ascending; among equals those of higher loss, or of lower index."""
        order = self.loss.argsort(descending=True, stable=True) if ties == "loss" else torch.arange(len(self.hits))
        order = order[self.hits[order].argsort(stable=True)]
        return sorted(self.channels[int(row)] for row in order[:count])

    def summary(self) -> dict[str, float]:
        """The accuracies' least, median and largest, and the share of maps that tie at the least."""
        found, least = self.hits / self.images, self.hits.min()
        named = {"least": found.min(), "median": found.median(), "largest": found.max()}
        tied = (self.hits == least).float().mean()
        return {**{name: float(value) for name, value in named.items()}, "tied": float(tied)}


def rank(
    model: nn.Module, maps: Mapping[str, Sequence[int]], probe: Probe, epsilon: float, precision: Precision
) -> dict[str, Ranks]:
    """What the model, in eval mode, makes of the probe after each of `maps` (convolution -> channels) has been pushed.

    One graph serves all maps. It holds several copies of the probe, each of which pushes another map, so that one backward
    pass, which stops at the images, finds several pushes. Weights and statistics stay as they are.
    """
    model.eval()
    size = len(probe.labels)
    with torch.no_grad():
        clean = convolved(model, maps, probe.images)
    held = sum(run.numel() for runs in clean.values() for run in runs)
    copies = copies_for(held, max(len(channels) for channels in maps.values()))
    start = lay_out(model, probe.start.repeat(copies, 1, 1, 1)).requires_grad_()  # (copies * B, 3, H, W)
    moved = convolved(model, maps, start)
    ranks: dict[str, Ranks] = {}
    with progress.task("rank maps", sum(len(channels) for channels in maps.values()), "map") as work:
        for name, channels in maps.items():
            runs = []
            for before, after in zip(clean[name], moved[name], strict=True):
                distance = after.detach()[:size] - before  # (B, C, h, w), the same in every copy
                parts = []
                for first in range(0, len(channels), copies):
                    chosen = channels[first : first + copies]
                    pushed = push(start, after, distance, chosen, epsilon)
                    parts.append(judge(model, pushed, probe.labels, precision))
                    work.advance(len(chosen) if before is clean[name][-1] else 0)
                runs.append([torch.cat(column).cpu() for column in zip(*parts, strict=True)])
            hits = torch.stack([run[0] for run in runs]).amin(0)
            loss = torch.stack([run[1] for run in runs]).amax(0)
            ranks[name] = Ranks(channels, size, hits, loss)
    return ranks


def convolved(model: nn.Module, names: Mapping[str, Any], images: Images) -> dict[str, list[Tensor]]:
    """name -> what that convolution returned in each of its runs, whatever in-place layers follow it."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            seen[name].append(output)
            return output.clone()  # the network goes on with a copy

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        model(lay_out(model, images))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def copies_for(values: int, longest: int) -> int:
    """How many copies of a probe whose maps hold `values` numbers share a pass, where the `longest` layer has so many maps to
    rank: a power of two from 1 to COPIES."""
    most = max(1, min(COPIES, VALUES // values, longest))
    return 1 << (most.bit_length() - 1)


def push(start: Images, maps: Tensor, distance: Tensor, channels: Sequence[int], epsilon: float) -> Images:
    """(k, B, 3, H, W): the start after the step that moves map `channels[i]`, of k, away from its clean self.

    start     (copies * B, 3, H, W), which requires a gradient
    maps      (copies * B, C, h, w), computed from it
    distance  (B, C, h, w), from the clean maps: the gradient of half the squared distance
    """
    apart = (-1, len(distance))  # the copies
    rows = torch.arange(len(channels), device=maps.device)
    columns = torch.as_tensor(channels, device=maps.device)
    pull = torch.zeros_like(maps)  # keeps the layout
    pull.view(*apart, *maps.shape[1:])[rows, :, columns] = distance[:, columns].transpose(0, 1)
    gradient = torch.autograd.grad(maps, start, pull, retain_graph=True)[0]
    pushed = (start.detach() + epsilon * gradient.sign()).clamp_(0, 1)
    return pushed.view(*apart, *start.shape[1:])[: len(channels)]


def judge(model: nn.Module, images: Images, labels: Labels, precision: Precision) -> tuple[Tensor, Tensor]:
    """Hits and mean cross-entropy, (k,) each, of k versions (k, B, 3, H, W) of the images that have `labels` (B,)."""
    with torch.inference_mode(), autocast(precision, images.device):
        logits = model(lay_out(model, images.flatten(0, 1))).float()
    wanted = labels.repeat(len(images))
    hits = (logits.argmax(1) == wanted).view(len(images), -1).sum(1)
    return hits, F.cross_entropy(logits, wanted, reduction="none").view(len(images), -1).mean(1)


def judge_start(model: nn.Module, probe: Probe, precision: Precision) -> dict[str, float]:
    """The accuracies before any push: on the probe itself, and at the start."""
    hits, _ = judge(model, torch.stack([probe.images, probe.start]), probe.labels, precision)
    share = hits / len(probe.labels)
    return {"images": len(probe.labels), "clean": float(share[0]), "start": float(share[1])}


def lay_out(model: nn.Module, images: Images) -> Images:
    """The same images, in the order in which the model's weights lie."""
    return images.contiguous(memory_format=layout_of(model, images.device))


# --- pruning ---------------------------------------------------------------------------------------------------------


def eraser(layers: list[Prunable], pruned: Mapping[str, Sequence[int]]) -> Callable[[], None]:
    """A function that sets the `pruned` maps (convolution -> channels) to 0, as often as it is called.

    A map's filter and bias go, and where a batch norm reads the map directly, its scale and shift there.
    """
    parts: list[tuple[Tensor, Tensor]] = []  # a parameter, and the rows of it that go
    for layer in layers:
        channels = torch.as_tensor(pruned.get(layer.name, ()), dtype=torch.int64, device=layer.conv.weight.device)
        found = [layer.conv.weight, layer.conv.bias]
        if layer.norm is not None:
            found += [layer.norm.weight, layer.norm.bias]
        parts += [(parameter, channels) for parameter in found if parameter is not None and len(channels)]

    def erase() -> None:
        with torch.no_grad():
            for parameter, channels in parts:
                parameter.index_fill_(0, channels, 0)

    return erase
