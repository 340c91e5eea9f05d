"""Trap-and-Replace: bait the backdoor into a part that is light enough to be replaced, then replace it.

Idea     Train the poisoned task together with image reconstruction from a shared stem: reconstruction keeps the stem's
         features low-level, so the easy shortcut from trigger to target is learnt by the small head. Then throw that
         head away and train a new one on clean images, the stem frozen.
Paper    arXiv 2210.06428 (NeurIPS 2022), in the version the authors' repository implements
Follows  the authors' code (VITA-Group/Trap-and-Replace-Backdoor-Defense). Stage 1: CE + lambda_rec * MSE + lambda_tv * TV
         from scratch; Adam 1e-3, weight decay 5e-4 (coupled), cosine to 0 stepped per epoch, 200 epochs of batches of
         256. Stage 2: fresh head, stem in evaluation mode and without gradients, CutMix on whole batches, label
         smoothing 0.1, dropout 0.5; Adam 0.03, 100 epochs of batches of 64. Incomplete batches dropped in both. WRN-16-1
         cut before its last block, with its decoder; ResNet-34 at 224 px likewise, with SGD
Departs  1. one dropout, before the second convolution of the last block; their code declares another, before the last
            norm, which never fires
         2. stage 1 never trains on the holdout, as their 32 px code; their ImageNet-12 code does
            (defense.include_holdout=true)
         3. holdout and training set are disjoint, and a holdout drawn from the training set without removal is refused;
            theirs overlap on GTSRB and ImageNet-12, which are shuffled anew without a seed, and is the end of CIFAR-10's file
         4. the last epoch counts; their code also keeps the one of the best test accuracy
         5. a set smaller than a batch makes one step an epoch; in their code, which drops incomplete batches, none
         6. other networks than theirs: one rule cuts (before the last residual block; in a plain net before the last two
            convolutions) and one decodes (see Decoder); for the two published networks, cut as published, both give the
            published parts. Their unused ResNet-34 cut after layer3 needs its decoder spelled, [128, 128, 64]
         7. without the trap the infected model is cut, which was trained on the training set; their ablation trains its own, on
            the training set and the clean holdout
         8. pixels are normalised as the data set says; their 32 px code feeds [0, 1] as it is (dataset.mean=[0,0,0]
            dataset.std=[1,1,1])
         9. augmentation as the data set says; their code mirrors GTSRB's signs, too (dataset.augment.flip=true)
        10. both stages run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     a whole training with a decoder on top, then `stage2.epochs` passes over the holdout, backward through the head
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.acts import Acts, Only, Unless
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import check_range
from backdoorbench.models.base import LARGE, CentreCrop, Classifier
from backdoorbench.models.surgery import activations, as_map, parameter_share, stem_cut
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import seeded
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import BELOW_ONE, Optimizer, Precision, Recipe, TuningSchedule, bare_recipe

NARROWEST, WIDEST = 32, 512  # channels of a derived decoder's hidden maps
SHOWN = 500  # holdout images, at most, on which the reconstruction is measured


@dataclass(frozen=True)
class Stage:
    """How one of the two stages trains; of adam `momentum` is the first beta."""

    epochs: int
    batch_size: int
    optimizer: Optimizer
    lr: float
    momentum: float
    weight_decay: float
    schedule: TuningSchedule

    def recipe(self, name: str, augment: Augment | None, precision: Precision) -> Recipe:
        """The same as a recipe: what a stage does not mention is plainly off."""
        return bare_recipe(name, **vars(self), augment=augment, precision=precision)


@dataclass(frozen=True)
class TrapAndReplace(Defense):
    """Stem s, head h, decoder g are trained together (stage 1), then h is replaced by h' (stage 2); s and h' remain.

    The learning curve shows h(s(x)) during stage 1, where ASR should stay high: the backdoor is in the trap. From then
    on it shows h'(s(x)). The record notes the head's share of the parameters and how well g rebuilds clean images."""

    needs_disjoint: ClassVar[bool] = True

    acts: ClassVar[Acts] = {
        "decoder": Only("trap", True),
        "lambda_rec": Only("trap", True),
        "lambda_tv": Only("trap", True),
        "include_holdout": Only("trap", True),
        "stage1": Only("trap", True),
        "cutmix_beta": Unless("cutmix_prob", 0),
        "label_smoothing": Unless("cutmix_prob", 0),
    }

    trap: bool
    stem_until: str | None
    decoder: Literal["auto"] | tuple[int, ...]
    lambda_rec: float
    lambda_tv: float
    include_holdout: bool
    stage1: Stage
    stage2: Stage
    cutmix_prob: float
    cutmix_beta: float
    label_smoothing: float
    dropout: float
    augment: Augment | None

    def __post_init__(self) -> None:
        for name, stage in (("stage1", self.stage1), ("stage2", self.stage2)):
            check_range(f"defense.{name}.epochs", stage.epochs, 0)
            check_range(f"defense.{name}.batch_size", stage.batch_size, 2)
            check_range(f"defense.{name}.lr", stage.lr, 0)
            check_range(f"defense.{name}.momentum", stage.momentum, 0, 1 if stage.optimizer == "sgd" else BELOW_ONE)
            check_range(f"defense.{name}.weight_decay", stage.weight_decay, 0)
        check_range("defense.lambda_rec", self.lambda_rec, 0)
        check_range("defense.lambda_tv", self.lambda_tv, 0)
        check_range("defense.cutmix_prob", self.cutmix_prob, 0, 1)
        check_range("defense.cutmix_beta", self.cutmix_beta, 0.01)
        check_range("defense.label_smoothing", self.label_smoothing, 0, 1)
        check_range("defense.dropout", self.dropout, 0, 1)
        if self.decoder != "auto":
            check_range("defense.decoder", min(self.decoder, default=1), 1)

    @property
    def starts_from(self) -> Literal["infected", "scratch"]:  # type: ignore[override]  # of the instance, as `needs`
        """With the trap a network is trained anew."""
        return "scratch" if self.trap else "infected"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # of the instance: `trap` decides
        """The training set, or without the trap the infected model in place of one trained here."""
        return frozenset({"train" if self.trap else "model", "holdout"})

    def purify(self, scenario: Scenario) -> nn.Module:
        trapped = self.set_trap(scenario) if self.trap else scenario.model
        purified = scenario.build(scenario.stream.child("replace"))
        stem, _ = stem_cut(trapped, self.stem_until)
        new_stem, _ = stem_cut(purified, self.stem_until)
        new_stem.load_state_dict(stem.state_dict())  # they hold the networks' own layers
        self.replace_head(purified, scenario)
        return purified

    def set_trap(self, scenario: Scenario) -> nn.Module:
        """Stage 1: h(s(x)), trained from scratch on the training set, g beside it."""
        stream = scenario.stream.child("trap")
        model = scenario.build(stream).eval()
        assert isinstance(model, Classifier)
        stem, head = stem_cut(model, self.stem_until)
        crop = CentreCrop(model.size)
        with seeded(stream.child("decoder")):
            decoder = Decoder(model, stem, None if self.decoder == "auto" else self.decoder)

        def bait(_: nn.Module, images: Images, labels: Labels) -> Tensor:
            features = stem(images)
            rebuilt = decoder(features)
            loss = F.cross_entropy(head(features).float(), labels)
            loss = loss + self.lambda_rec * F.mse_loss(rebuilt, crop(images))
            return loss + self.lambda_tv * total_variation(rebuilt)

        fit(
            nn.ModuleList([model, decoder]),
            joined(scenario.train, scenario.holdout) if self.include_holdout else scenario.train,
            self.stage1.recipe(f"{self.name} stage 1", self.augment, scenario.recipe.precision),
            stream,
            loss=bait,
            drop_last=True,
            after_epoch=lambda epoch: scenario.probe(model, epoch),
        )
        images, _ = next(scenario.holdout.batches(SHOWN, stream.child("shown")))
        with torch.no_grad():
            seen, rebuilt = crop(images), decoder(stem(images))
        scenario.note("decoder", decoder.channels)
        scenario.note("reconstruction_mse", float(F.mse_loss(rebuilt, seen)))
        scenario.note("mean_colour_mse", float(seen.var((0, 2, 3), correction=0).mean()))  # what a dull decoder gets
        return model

    def replace_head(self, model: nn.Module, scenario: Scenario) -> None:
        """Stage 2: trains the head of `model`, which is fresh, on the holdout, in place; the stem stays as it is."""
        model.eval()
        stem, head = stem_cut(model, self.stem_until)
        draws = np.random.default_rng(scenario.stream.child("cutmix").generator().initial_seed())

        def answer(images: Images) -> Tensor:
            with torch.no_grad():
                features = stem(images)
            return head(features).float()  # type: ignore[no-any-return]

        def mixed(_: nn.Module, images: Images, labels: Labels) -> Tensor:
            if draws.random() >= self.cutmix_prob:
                return F.cross_entropy(answer(images), labels)  # without smoothing, as in their code
            images, partner, own = cutmix(images, self.cutmix_beta, draws)
            logits, others = answer(images), labels[partner.to(labels.device, non_blocking=True)]
            first = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
            second = F.cross_entropy(logits, others, label_smoothing=self.label_smoothing)
            return own * first + (1 - own) * second

        place = dropout_place(model, head)
        done = self.stage1.epochs if self.trap else 0
        with dropout_before(head.get_submodule(place), self.dropout):
            fit(
                head,
                scenario.holdout,
                self.stage2.recipe(f"{self.name} stage 2", self.augment, scenario.recipe.precision),
                scenario.stream.child("replace"),
                loss=mixed,
                drop_last=True,
                after_epoch=lambda epoch: scenario.probe(model, done + epoch),
            )
        scenario.note("head_share", parameter_share(head, model))
        scenario.note("head_parameters", sum(p.numel() for p in head.parameters()))
        scenario.note("dropout_before", place)


class Decoder(nn.Module):
    """Rebuilds the images that a stem has read: features of any layout -> (N, 3, size, size) float32 in (0, 1).

    As many transposed convolutions (kernel 4, stride 2, padding 1) as the side has halved, at least two, where those
    beyond have kernel 3 and stride 1; ReLU between. From 128 px on they come in pairs, with instance norm and ReLU after
    each pair and before the last. A side that is no power of two is met by bilinear interpolation at the end.

    hidden  channels of all maps but the last; None: half the stem's, a quarter, and so on, between 32 and 512
    """

    def __init__(self, model: Classifier, stem: nn.Module, hidden: tuple[int, ...] | None) -> None:
        super().__init__()
        with torch.no_grad():
            features = stem(blank(model))
        maps = as_map(model, features)  # (1, C, h, w)
        self.size = model.size
        self.grid = maps.shape[2:] if maps is not features else None  # of tokens, to be laid out
        inputs, side = maps.shape[1], maps.shape[-1]
        doublings = max(0, round(math.log2(self.size / side)))
        if hidden is None:
            halves = [min(inputs, 2 * WIDEST) // 2**step for step in range(1, max(doublings, 2))]
            hidden = tuple(max(NARROWEST, channels) for channels in halves)
        self.channels = [inputs, *hidden, 3]
        layers: list[nn.Module] = []
        for step, outputs in enumerate(self.channels[1:]):
            kernel, stride = (4, 2) if step < doublings else (3, 1)
            layers.append(nn.ConvTranspose2d(self.channels[step], outputs, kernel, stride, 1))
            if step == len(hidden):
                continue
            if self.size < LARGE:
                layers.append(nn.ReLU())
            elif step % 2 == 1 or step == len(hidden) - 1:
                layers += [nn.InstanceNorm2d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Images:
        if self.grid is not None:  # (N, T, C), class and register tokens first, or (N, h, w, C)
            tokens = features.flatten(1, -2)[:, -self.grid.numel() :]
            features = tokens.transpose(1, 2).reshape(len(features), -1, *self.grid)
        images: Images = self.layers(features).float().sigmoid()
        if images.shape[-1] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False)
        return images


def total_variation(images: Images) -> Tensor:
    """Squared differences of vertical and horizontal neighbours, summed, divided by *all* elements: a scalar."""
    down = (images[..., 1:, :] - images[..., :-1, :]).square().sum()
    right = (images[..., 1:] - images[..., :-1]).square().sum()
    return (down + right) / images.numel()


def cutmix(images: Images, beta: float, draws: np.random.Generator) -> tuple[Images, Tensor, float]:
    """(images with one box, the same in all, taken from partners; (N,) int64 partners on the CPU; share that is left).

    The share 1 - area is drawn from Beta(beta, beta), the box's centre uniformly; clipping the box gives some back."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - draws.beta(beta, beta))
    rows, columns = (_span(side, length, draws) for length in (height, width))
    partner = torch.from_numpy(draws.permutation(len(images)))
    mixed = images.clone()
    mixed[..., rows, columns] = images[..., rows, columns][partner.to(images.device, non_blocking=True)]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, partner, 1 - area / (height * width)


def _span(side: float, length: int, draws: np.random.Generator) -> slice:
    """Where a box of relative `side` lies on one axis, clipped."""
    half, centre = int(length * side) // 2, int(draws.integers(length))
    return slice(max(centre - half, 0), min(centre + half, length))


def dropout_place(model: nn.Module, head: nn.Module) -> str:
    """The layer of `head` whose input stage 2 drops from.

    That is the last convolution on maps (in a block without any, the last linear layer) in the model's last block that
    reads what another of its layers has computed: the second of a basic block, the third of a bottleneck, never a
    shortcut; the last one of a plain net; of a transformer the second of the MLP. Where the head holds no such layer,
    it is the classifier.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    assert isinstance(model, Classifier)
    stem, block = stem_cut(model)
    layers = {name: part for name, part in block.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    for layer in layers.values():
        layer.weight.requires_grad_(True)  # now what a layer of the block has touched has a graph, and nothing else
    with activations(block, layers, "input") as inputs:
        block(stem(blank(model)))
    *inner, classifier = inputs
    later = [name for name in inner if inputs[name].requires_grad]
    on_maps = [name for name in later if inputs[name].ndim == 4 and inputs[name].shape[2:].numel() > 1]
    convs = [name for name in on_maps if isinstance(layers[name], nn.Conv2d)]
    place = (convs or later or [classifier])[-1]
    return place if place in dict(head.named_modules()) else classifier


@contextmanager
def dropout_before(layer: nn.Module, rate: float) -> Iterator[None]:
    """While it lasts and `layer` trains, dropout on what it reads; the network itself stays as it is."""
    hook = layer.register_forward_pre_hook(lambda layer, args: (F.dropout(args[0], rate, layer.training), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def blank(model: Classifier) -> Images:
    """One black image as the model reads them, where it lies."""
    device = next(model.parameters()).device
    return torch.zeros(1, 3, model.size, model.size, device=device)


def joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """The images of both, where the first one's lie."""
    images = torch.cat([first.images, second.images.to(first.images.device)])
    return replace(first, images=images, labels=torch.cat([first.labels, second.labels.to(first.device)]))
