"""Batch norm's running statistics, measured anew."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from backdoorbench.data.images import ImageSet
from backdoorbench.models.base import evaluating
from backdoorbench.streams import Stream


@torch.no_grad()
def remeasure_norms(model: nn.Module, images: ImageSet, batch_size: int, order: Stream) -> None:
    """Sets the running mean and variance of every batch norm to the average over `images`, in batches of `batch_size`, not
    augmented. What they were before is forgotten; weights and modes are as they were. Runs under the caller's autocast.

    Each batch counts by its images, so the mean is that of all images, and the variance the mean of the batches' own. That lacks
    what batches differ by, so they are shuffled: in the order of class folders each has a class or two."""
    with collecting(model) as norms:
        seen = 0
        for batch, _ in images.batches(batch_size, order) if norms else ():
            seen += len(batch)
            for norm in norms:
                norm.momentum = len(batch) / seen
            model(batch)


@contextmanager
def collecting(model: nn.Module) -> Iterator[list[_BatchNorm]]:
    """The batch norms that keep statistics, forgotten and ready to collect them, while all else is in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    before = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        try:
            yield norms
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum
