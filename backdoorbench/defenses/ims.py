"""IMS: invertible mask and selection. Find the channels without which what is left still answers, and with which alone it fools.

Idea     A mask over channels splits the network: what it keeps should answer clean images as the whole does, and its inverse
         should not, but should follow perturbations that the whole falls for. Perturbations stand for the unknown trigger,
         and masks and perturbations chase each other. A second vector selects which channels are divided at all.
Paper    arXiv 2509.15497v2
Follows  the authors' code (`8613640`): each convolution's channels have m and s, from 1, in [0, 1]; they are scaled by
         s + (1 - s) sigmoid(k (m - 1/2)), for the inverse with 1 - m; weights frozen, eval mode. Three phases of AdamW on m
         and s, each with a new optimiser: without perturbations; with them; and with them and `penalty` times the mean of
         |1 - s|, which the first phase has too, and which has no slope where s is 1. A round draws a batch, gives each image
         a perturbation (20 steps of AdamW from 0) that the inverse follows and that moves the whole network's answer, and
         makes one step. Two answers agree by -log <p, q> and disagree by -log(1 - <p, q>), p and q softmax. A phase ends
         after `rounds`, or where 26 rounds in a row do not lower its loss by 2 %
Departs  1. masks scale filters and biases rather than outputs, which is the same, so that the purified model is a plain network
         2. the first phase makes no perturbations; theirs does, and only logs what comes of them
         3. all of the holdout is drawn from; the paper's has at most 10 images a class
         4. the victim's precision; theirs is float32 (train.precision=float32)
         5. networks without convolutions on maps are refused; theirs has another file for transformers, which masks blocks
Cost     a round passes its batch some 2 `steps` + 3 times forward and backward: 400 rounds of 256 images are about 80 epochs
         of CIFAR-10
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from backdoorbench import progress
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import ModelError, check_range
from backdoorbench.models.surgery import Prunable, prunable_channels
from backdoorbench.shapes import Images, Logits
from backdoorbench.training.optimizers import AdamW

DECAY = 0.01  # of every AdamW here; torch's default, which the authors keep
TINY = 1e-8  # below a logarithm


@dataclass(frozen=True)
class IMS(Defense):
    """Masks and selections of channels, learned on the holdout. The learning curve's epochs are rounds.

    The record notes how many channels end below one half, and the rounds that each phase took."""

    acts: ClassVar[Acts] = {"steps": Unless("rounds", 0)} | dict.fromkeys(
        ("perturbation_lr", "bound"), (Unless("rounds", 0), Unless("steps", 0))
    )

    initial_rounds: int
    rounds: int
    patience: int
    improvement: float
    batch_size: int
    lr: float
    steepness: float
    penalty: float
    steps: int
    perturbation_lr: float
    bound: float

    def __post_init__(self) -> None:
        check_range("defense.initial_rounds", self.initial_rounds, 0)
        check_range("defense.rounds", self.rounds, 0)
        check_range("defense.patience", self.patience, 0)
        check_range("defense.improvement", self.improvement, 0, 1)
        check_range("defense.batch_size", self.batch_size, 1)
        check_range("defense.lr", self.lr, 0)
        check_range("defense.steepness", self.steepness, 0)
        check_range("defense.penalty", self.penalty, 0)
        check_range("defense.steps", self.steps, 0)
        check_range("defense.perturbation_lr", self.perturbation_lr, 0)
        check_range("defense.bound", self.bound, 0, 1)

    def purify(self, scenario: Scenario) -> nn.Module:
        model = scenario.model
        masks = Masks(model, self.steepness)
        initial = self.phase(scenario, masks, "initial", self.initial_rounds, self.penalty, None)
        free = self.phase(scenario, masks, "free", self.rounds, 0.0, initial)
        sparse = self.phase(scenario, masks, "sparse", self.rounds, self.penalty, initial + free)
        masks.burn_in(model)
        kept = masks.kept().detach()
        scenario.note("masked_channels", int((kept < 0.5).sum()))
        scenario.note("channels", len(kept))
        scenario.note("rounds", {"initial": initial, "free": free, "sparse": sparse})
        return model

    def phase(self, scenario: Scenario, masks: Masks, name: str, most: int, penalty: float, before: int | None) -> int:
        """Moves the masks for up to `most` rounds; how many it took. before: rounds of other phases, None: it is the first."""
        optimizer = AdamW([masks.mask, masks.selection], self.lr, weight_decay=DECAY)
        best, idle, stream = float("inf"), 0, scenario.stream.child(name)
        with progress.task(f"{self.name} {name}", most, "round") as work:
            for turn in range(most):
                rows = stream.child(f"round{turn}").permutation(len(scenario.holdout))[: self.batch_size]
                images, _ = next(scenario.holdout.subset(rows).batches(len(rows)))
                with scenario.autocast():
                    loss = split(masks, images) if before is None else self.divided(masks, images)
                    loss = loss + penalty * (1 - masks.selection).abs().mean()  # without a slope at 1, where s starts
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                masks.clamp()
                masks.burn_in(scenario.model)
                scenario.probe(scenario.model, (before or 0) + turn)
                value = float(loss.detach())
                work.advance(loss=value)
                best, idle = (value, 0) if value < best * self.improvement else (best, idle + 1)
                if idle > self.patience:
                    return turn + 1
        return most

    def divided(self, masks: Masks, images: Images) -> Tensor:
        """What is kept answers clean and perturbed images as the whole does clean ones; its inverse follows perturbations."""
        moved = images + self.perturbation(masks, images)
        with torch.no_grad():
            clean, fooled = masks.whole(images), masks.whole(moved)
        kept_clean, kept_moved = masks.part(torch.cat([images, moved])).chunk(2)
        left_clean, left_moved = masks.part(torch.cat([images, moved]), inverted=True).chunk(2)
        repaired = agree(kept_clean, clean) + agree(kept_moved, clean)
        return repaired + agree(left_moved, fooled) + disagree(left_moved, clean) + disagree(left_clean, clean)

    def perturbation(self, masks: Masks, images: Images) -> Tensor:
        """(N, 3, H, W): moves the whole network's answer, and to where the inverse follows."""
        moved = torch.zeros_like(images).requires_grad_()
        optimizer = AdamW([moved], self.perturbation_lr, weight_decay=DECAY)
        with torch.no_grad():
            clean = masks.whole(images)
        inverse = masks.filters(masks.kept(inverted=True).detach())
        for _ in range(self.steps):
            answer = masks.whole(images + moved)
            loss = agree(masks.answer(inverse, images + moved), answer) + disagree(answer, clean)
            (moved.grad,) = torch.autograd.grad(loss, moved)
            optimizer.step()
            with torch.no_grad():
                moved.clamp_(-self.bound, self.bound)
        return moved.detach()


class Masks:
    """One mask m and one selection s in [0, 1] for each output channel of a network's convolutions, all in one row (C,)."""

    def __init__(self, model: nn.Module, steepness: float) -> None:
        self.layers = prunable_channels(model)
        for layer in self.layers:
            check_linear(layer)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.steepness = steepness
        count = sum(layer.channels for layer in self.layers)
        weight = self.layers[0].conv.weight
        self.mask = torch.ones(count, device=weight.device, requires_grad=True)
        self.selection = torch.ones(count, device=weight.device, requires_grad=True)

    def kept(self, inverted: bool = False) -> Tensor:
        """(C,) in [0, 1]: what each channel is scaled by, s + (1 - s) sigmoid(k (m - 1/2)); inverted: with 1 - m."""
        side = 0.5 - self.mask if inverted else self.mask - 0.5
        return self.selection + (1 - self.selection) * (self.steepness * side).sigmoid()

    def clamp(self) -> None:
        """Back into [0, 1]."""
        with torch.no_grad():
            self.mask.clamp_(0, 1)
            self.selection.clamp_(0, 1)

    def whole(self, images: Images) -> Logits:
        """What the infected network says."""
        logits: Logits = self.model(images).float()
        return logits

    def part(self, images: Images, inverted: bool = False) -> Logits:
        """What is left of it under the mask, or its inverse, says."""
        return self.answer(self.filters(self.kept(inverted)), images)

    def answer(self, filters: Mapping[str, Tensor], images: Images) -> Logits:
        """What the infected network says with these parameters in place of its own."""
        logits: Logits = functional_call(self.model, dict(filters), (images,)).float()
        return logits

    def filters(self, scales: Tensor) -> dict[str, Tensor]:
        """The infected network's filters and biases with their channels scaled (C,), by the names of its parameters."""
        found: dict[str, Tensor] = {}
        counts = [layer.channels for layer in self.layers]
        for layer, scale in zip(self.layers, torch.split(scales, counts), strict=True):
            for name, weight in self.model.get_submodule(layer.name).named_parameters(recurse=False):
                found[f"{layer.name}.{name}"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        return found

    @torch.no_grad()
    def burn_in(self, model: nn.Module) -> None:
        """Gives the network, of which the infected one is a copy, the filters and biases that the mask leaves."""
        for name, weight in self.filters(self.kept()).items():
            model.get_parameter(name).copy_(weight)


def split(masks: Masks, images: Images) -> Tensor:
    """What is kept answers as the whole does, its inverse otherwise."""
    with torch.no_grad():
        clean = masks.whole(images)
    return agree(masks.part(images), clean) + disagree(masks.part(images, inverted=True), clean)


def agree(first: Logits, second: Logits) -> Tensor:
    """Mean of -log <p, q>, the softmaxes of two answers (N, K)."""
    return -(overlap(first, second) + TINY).log().mean()


def disagree(first: Logits, second: Logits) -> Tensor:
    """Mean of -log(1 - <p, q>)."""
    return -(1 - overlap(first, second) + TINY).log().mean()


def overlap(first: Logits, second: Logits) -> Tensor:
    """(N,) in [0, 1]: <p, q>, the chance that two draws from the answers are one class."""
    return (first.softmax(1) * second.softmax(1)).sum(1)


def check_linear(layer: Prunable) -> None:
    """Raises ModelError where half the filters do not give half the output: such filters are scaled in vain."""
    conv = layer.conv
    parts = dict(conv.named_parameters(recurse=False))
    seen = torch.ones(1, conv.in_channels, *conv.kernel_size).to(conv.weight)
    with torch.no_grad():
        halved = functional_call(conv, {name: weight / 2 for name, weight in parts.items()}, (seen,))
        if not torch.allclose(halved, conv(seen) / 2, rtol=1e-3, atol=1e-5):
            raise ModelError(
                f"the convolution '{layer.name}' ({type(conv).__name__}) normalises its own filters, so scaling them changes "
                f"nothing; this method scales filters. Choose a network with plain convolutions, such as preact_resnet18."
            )
