"""Poison Ink: colour an image's own edges in a secret ink, and hide that drawing in the image by a U-Net.

Idea     A trigger that follows the edges of each image survives crops, turns and flips, as edges do. A network hides the ink
         and another one learns to show it again in what is triggered, and nothing in what is not; that ties the trigger to it.
Paper    arXiv 2108.02488
Follows  the authors' code: edges where Sobel's slope exceeds 28 levels, in (80, 160, 80) on white; a U-Net of 64 to 512
         channels writes, a residual network of 128 channels reads, both trained at once: the squared error of the image, that
         of the ink read (13 times, on edges; once, off them), and of white read in clean images, as they are and with noise of
         0.01 (100 times); Adam 2e-4, betas 0.5 and 0.999, a tenth every 80 of 200 epochs, in three stages: reader and
         writer see the images turned, then cropped to 28 of 32 as well, then mirrored as well
Departs  1. turns are within 15 degrees (the loader that draws theirs is not released); each image is cropped at a place of its
            own (theirs: one batch in two, alike), and its ink is moved with it (theirs: drawn anew on the moved image's edges)
         2. the reader has a convolution less before its blocks, enlarges by the nearest pixel (theirs: a transposed
            convolution) and does not clip its answer at 0
         3. neither adversarial nor perceptual loss, which their configuration leaves off too
         4. the victim trains as on any poisoned set (BackdoorBench: each batch of clean images goes with one of poisoned ones,
            not augmented)
         5. a tenth of the training images, 500 at most, is left out and measured on
Cost     the networks: 600 passes of some 8 GMAC an image at 32 px, hours on a GPU, once for a data set: other rates, seeds and
         victims find them
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from backdoorbench.attacks.hidden import HiddenAttack
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import check_range
from backdoorbench.shapes import Images, Labels, to_bytes, to_float
from backdoorbench.streams import Stream, seeded
from backdoorbench.tensors.augment import flip, resized_crop, rotate
from backdoorbench.tensors.similarity import psnr, ssim
from backdoorbench.training.fit import Snapshots, fit, make_optimizer
from backdoorbench.training.recipe import Recipe
from backdoorbench.triggers.poison_ink import INK, MULTIPLE, InkReader, PoisonInk, draw_edges, find_edges

STAGES = 3  # turned; cropped too; mirrored too
DEGREES = 15  # of a turn, either way
CROP = 28 / 32  # side of a crop, of the image's
SCALE = 1e4  # of all losses
BETA = 0.5  # Adam's first
NOISE = 0.01  # deviation of what is added to clean images


class Couple(nn.Module):
    """Writer and reader while they learn."""

    def __init__(self, writer: PoisonInk, reader: InkReader) -> None:
        super().__init__()
        self.writer, self.reader = writer, reader


@dataclass(frozen=True)
class PoisonInkAttack(HiddenAttack):
    """The ink attack. `encoder_epochs` are those of each of the three stages."""

    encoder_milestones: tuple[int, ...]
    reader_width: int
    ink_weight: float
    paper_weight: float
    clean_weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.reader_width", self.reader_width, 1, 4096)
        check_range("attack.ink_weight", self.ink_weight, 0)
        check_range("attack.paper_weight", self.paper_weight, 0)
        check_range("attack.clean_weight", self.clean_weight, 0)

    def check(self, train: ImageSet) -> None:
        super().check(train)
        self.check_side(train.size, MULTIPLE)

    def writer(self, size: int, figures: dict[str, float]) -> PoisonInk:
        return PoisonInk(self.encoder_width, figures)

    def learn(
        self, images: ImageSet, held: ImageSet, recipe: Recipe, stream: Stream, snapshots: Snapshots | None
    ) -> tuple[nn.Module, dict[str, float]]:
        with seeded(stream.child("init")):
            couple = Couple(self.writer(images.size, {}), InkReader(self.reader_width)).to(images.device)
        recipe = replace(recipe, momentum=BETA, schedule="milestones", milestones=self.encoder_milestones, decay=0.1)
        for stage in range(STAGES):

            def loss(_: nn.Module, clean: Images, labels: Labels, stage: int = stage) -> Tensor:
                return self.loss(couple, clean, stage)

            optimizer = make_optimizer(list(couple.parameters()), recipe, images.device)
            own = stream.child(f"stage{stage}")
            kept = snapshots.part(f"stage{stage}") if snapshots is not None else None
            fit(couple, images, recipe, own, loss=loss, optimizer=optimizer, snapshots=kept)
        couple.to(memory_format=torch.contiguous_format)
        return couple.writer, self.measure(couple, held)

    def loss(self, couple: Couple, clean: Images, stage: int) -> Tensor:
        """What the training minimises: the image's error, and the errors of what is read, after `stage` + 1 augmentations."""
        count = len(clean)
        secret = draw_edges(find_edges(clean))
        hidden = couple.writer.hide(clean, secret)
        moved = vary(torch.cat([clean, hidden.clamp(0, 1), 1 - secret]), count, stage)  # what is turned in is white
        seen, shown, wanted = moved[:count], moved[count : 2 * count], 1 - moved[2 * count :]
        noisy = seen + NOISE * torch.randn_like(seen)
        read = couple.reader(torch.cat([shown, seen, noisy]))
        mask = find_edges(seen)
        error = (read[:count] - wanted).square()
        value = (hidden - clean).square().mean()
        value = value + self.ink_weight * (mask * error).mean() + self.paper_weight * ((1 - mask) * error).mean()
        for nothing in (read[count : 2 * count], read[2 * count :]):
            value = value + self.clean_weight * (nothing - 1).square().mean()
        total: Tensor = SCALE * value
        return total

    def measure(self, couple: Couple, held: ImageSet) -> dict[str, float]:
        """Over images that were not trained on, rounded to uint8: the share of their edge pixels that are read as ink where it
        is, and where it is not; medians of PSNR (dB) and SSIM."""
        ink, false, edges = 0.0, 0.0, 0.0
        peaks, likeness = [], []
        with torch.no_grad():
            for clean, _ in held.batches(64):
                mask = find_edges(clean)
                shown = to_float(to_bytes(couple.writer.hide(clean, draw_edges(mask))))
                ink += float((is_ink(couple.reader(shown)) * mask).sum())
                false += float((is_ink(couple.reader(clean)) * mask).sum())
                edges += float(mask.sum())
                peaks.append(psnr(clean, shown))
                likeness.append(ssim(clean, shown))
        return {
            "ink_read": ink / max(1.0, edges),
            "ink_imagined": false / max(1.0, edges),
            "encoder_psnr": float(torch.cat(peaks).median()),
            "encoder_ssim": float(torch.cat(likeness).median()),
        }

    def compose(self, network: PoisonInk, stream: Stream) -> PoisonInk:
        return network

    def facts(self) -> dict[str, Any]:
        return {"pattern": "edges in ink"}


def is_ink(read: Images) -> Tensor:
    """(N, 1, H, W), 1 where what was read is nearer to ink than to white, else 0."""
    ink = torch.tensor(INK, device=read.device).view(3, 1, 1) / 255
    near = (read - ink).square().sum(1, keepdim=True) < (read - 1).square().sum(1, keepdim=True)
    return near.float()


def vary(images: Images, count: int, stage: int) -> Images:
    """The images, of which each `count` rows are turned, cropped (from stage 1 on) and mirrored (stage 2) alike."""
    copies, size, device = len(images) // count, images.shape[-1], images.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, device=device).repeat(copies, *(1 for _ in shape))

    images = rotate(images.float(), (2 * draw() - 1) * DEGREES)
    if stage >= 1:
        side = round(CROP * size)
        corner = (draw(2) * (size - side + 1)).floor()
        images = resized_crop(images, torch.cat([corner, torch.full_like(corner, side)], 1).long(), size)
    if stage >= 2:
        images = flip(images, draw() < 0.5)
    return images
