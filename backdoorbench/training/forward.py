"""What a model says of a whole set of images, in its present mode and under the caller's autocast; all of it on the CPU."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench import progress
from backdoorbench.data.images import ImageSet
from backdoorbench.models.layouts import layout_of
from backdoorbench.models.surgery import activations, classifier_name
from backdoorbench.shapes import Images, Logits

BATCH = 500  # images at a time, where only activations or logits are wanted
ON_CPU = 125  # for logits: as quick there, and the maps of 500 would be what a run needs most memory for

Alter = Callable[[Images, int], Images]  # a batch, given its number, as the model is to see it


@torch.no_grad()
def logits(model: nn.Module, images: ImageSet) -> Logits:
    """(N, K): the model's answers to images that are not augmented, as the autocast gives them."""
    layout = layout_of(model, images.device)
    size = ON_CPU if images.device.type == "cpu" else BATCH
    found = []
    with progress.aside("answers", len(images), "image") as work:
        for batch, _ in images.batches(size):
            found.append(model(batch.contiguous(memory_format=layout)))
            work.advance(len(batch))
    return torch.cat(found).cpu()


def losses(model: nn.Module, images: ImageSet) -> Tensor:
    """(N,) float32: the cross-entropy of each image with its label."""
    return F.cross_entropy(logits(model, images).float(), images.labels.cpu(), reduction="none")


@torch.no_grad()
def read_layers(
    model: nn.Module, images: ImageSet, layers: Iterable[str], alter: Alter | None = None
) -> dict[str, Tensor]:
    """name -> (N, ...) float32: what each of the named modules reads.

    layers  names of `model.named_modules()`, which `models/surgery.py` finds
    alter   what is done to each batch before"""
    names = list(layers)
    layout = layout_of(model, images.device)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    with activations(model, names, "input") as seen, progress.aside("features", len(images), "image") as work:
        for number, (batch, _) in enumerate(images.batches(BATCH)):
            batch = batch if alter is None else alter(batch, number)
            model(batch.contiguous(memory_format=layout))
            for name in names:
                parts[name].append(seen[name].float().cpu())
            work.advance(len(batch))
    return {name: torch.cat(found) for name, found in parts.items()}


def penultimate_features(model: nn.Module, images: ImageSet, alter: Alter | None = None) -> Tensor:
    """(N, D) float32: what the classifier reads. alter: see `read_layers`."""
    head = classifier_name(model)
    return read_layers(model, images, [head], alter)[head]
