"""What attacks share whose trigger is a network that hides something in every image: its training, kept for other runs; and
what those share that hide a bit string."""

import logging
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.attacks.base import DataAttack, Infection, Task, show
from backdoorbench.data.images import ImageSet, spans
from backdoorbench.errors import ConfigError, TrainingError, check_range
from backdoorbench.shapes import Bytes, Images, Labels, Rows, to_bytes, to_float
from backdoorbench.streams import Stream, seeded
from backdoorbench.tensors.similarity import psnr, ssim
from backdoorbench.training.fit import Snapshots, fit, make_optimizer
from backdoorbench.training.recipe import Precision, Recipe, bare_recipe
from backdoorbench.triggers.base import Stored
from backdoorbench.triggers.hidden_code import MULTIPLE, CodeReader, HiddenCode

log = logging.getLogger(__name__)

HELD_OUT = (
    500  # images, at most, and at most a tenth of all, that the training leaves out and the figures are taken over
)
READ = 0.9  # bit accuracy from which a code counts as read
PATIENCE = 2000  # steps without such an accuracy, after which a training that guesses starts anew
GUESSED = 0.6  # bit accuracy, over some hundred steps, below which a reader guesses; a slow one that is above goes on
TRIES = 3  # trainings, at most


@dataclass(frozen=True)
class HiddenAttack(DataAttack):
    """Data poisoning by a network. Write `writer`, `learn` and `compose`.

    Its training depends on what a subclass adds to DataAttack's settings, and on the data set; neither on the rate, the
    target and the victim nor on the run's seed, so that they all share one network."""

    encoder_seed: int
    encoder_epochs: int
    encoder_batch_size: int
    encoder_lr: float
    encoder_width: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.encoder_epochs", self.encoder_epochs, 1)
        check_range("attack.encoder_batch_size", self.encoder_batch_size, 2)
        check_range("attack.encoder_lr", self.encoder_lr, 0)
        check_range("attack.encoder_width", self.encoder_width, 1, 4096)

    @abstractmethod
    def writer(self, size: int, figures: dict[str, float]) -> Any:
        """An untrained trigger for images of `size` pixels, a module that carries the figures of a training."""

    @abstractmethod
    def learn(
        self, images: ImageSet, held: ImageSet, recipe: Recipe, stream: Stream, snapshots: Snapshots | None
    ) -> tuple[nn.Module, dict[str, float]]:
        """A trigger trained on `images` by `recipe`, and its figures, taken over `held`."""

    @abstractmethod
    def compose(self, network: Any, stream: Stream) -> Any:
        """The trigger of one infection: the network with what that infection draws for itself."""

    def check_side(self, size: int, multiple: int) -> None:
        """Raises ConfigError unless the networks, which halve an image again and again, can take `size` pixels."""
        if size % multiple:
            raise ConfigError(
                f"dataset.size is {size}, but the networks of attack={self.name} halve an image until {multiple} pixels are one; "
                f"expected a multiple of {multiple}. Set dataset.size={size // multiple * multiple + multiple}."
            )

    def trigger(self, task: Task, stream: Stream) -> Any:
        if task.network is not None:
            return self.compose(task.network(), stream)
        return self.compose(self.train_network(task.train, None, task.recipe.precision), stream)

    def train_network(self, images: ImageSet, snapshots: Snapshots | None, precision: Precision) -> nn.Module:
        own = Stream(self.encoder_seed).child("encoder")
        order, count = own.child("held").permutation(len(images)), min(HELD_OUT, len(images) // 10)
        held, kept = images.subset(order[:count]), images.subset(order[count:])
        recipe = self.recipe(precision)
        trained, figures = self.learn(kept, held, recipe, own, snapshots)
        found = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.info(f"{recipe.name}: {found}, on {len(held)} images left out")
        network: nn.Module = self.writer(images.size, figures)
        network.load_state_dict(trained.state_dict())
        return network.to(images.device).eval().requires_grad_(False)

    def recipe(self, precision: Precision) -> Recipe:
        """How the networks train, on images as they are."""
        return bare_recipe(
            f"{self.name} encoder", epochs=self.encoder_epochs, batch_size=self.encoder_batch_size, optimizer="adam",
            lr=self.encoder_lr, momentum=0.9, weight_decay=0.0, schedule="constant", augment=None, precision=precision,
        )  # fmt: skip

    def render(self, clean: ImageSet, rows: Rows, trigger: Stored, stream: Stream) -> Bytes:
        # where the network lies, which may not be where the images do
        return show(clean, rows, lambda images, _: trigger(images.to(clean.device)).to(images.device))

    def infect(self, task: Task, stream: Stream) -> Infection:
        infection = super().infect(task, stream)
        infection.facts.update(infection.trigger.trigger.figures)  # type: ignore[union-attr]
        return infection


class Pair(nn.Module):
    """A writer and a reader of codes while they learn, and how far they are."""

    steps: Tensor
    since: Tensor
    read: Tensor

    def __init__(self, writer: HiddenCode, reader: CodeReader) -> None:
        super().__init__()
        self.writer, self.reader = writer, reader
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # done
        self.register_buffer("since", torch.zeros((), dtype=torch.int64))  # done since codes were first read, or 0
        self.register_buffer("read", torch.tensor(0.5))  # share of the bits, a mean in which 100 steps are two thirds


class Stuck(Exception):
    """The reader has not learned to read, and will not."""


@dataclass(frozen=True)
class CodeAttack(HiddenAttack):
    """Hides a bit string; another in each training image, and at last one for all images, drawn from the infection's stream.
    Write `writer` and `loss`.

    bits  length of the code"""

    bits: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("attack.bits", self.bits, 1, 4096)

    def check(self, train: ImageSet) -> None:
        super().check(train)
        self.check_side(train.size, MULTIPLE)

    @abstractmethod
    def loss(self, pair: Pair, images: Images, written: Images, missed: Tensor, steps_per_epoch: int) -> Tensor:
        """What the training minimises.

        images, written  (N, 3, H, W), before and after the writer, which may leave [0, 1]; the reader has seen the clipped ones
        missed           the mean cross-entropy of the bits read"""

    @abstractmethod
    def image_share(self, pair: Pair) -> float:
        """The share of its weight that the image's likeness has in the loss of the next step."""

    def learn(
        self, images: ImageSet, held: ImageSet, recipe: Recipe, stream: Stream, snapshots: Snapshots | None
    ) -> tuple[nn.Module, dict[str, float]]:
        if (values := CodeReader.values(images.size, self.encoder_width)) < self.bits:
            log.warning(
                f"the reader of attack={self.name} has {values} values to read {self.bits} bits from, and may never read "
                f"{READ:.0%} of them. Raise attack.encoder_width, or lower attack.bits."
            )
        for number in range(TRIES):
            own, kept = stream, snapshots
            if number:
                own = stream.child(f"try{number}")
                kept = snapshots.part(f"try{number}") if snapshots is not None else None
            try:
                pair = self.attempt(images, recipe, own, kept)
                break
            except Stuck:
                log.info(f"{recipe.name}: bits are guessed after {PATIENCE} steps; starting anew from other weights")
        else:
            raise TrainingError(
                f"the encoder of attack={self.name} learned nothing: {TRIES} times its codes of {self.bits} bits were "
                f"guessed after {PATIENCE} steps. Raise attack.encoder_lr, or lower attack.bits."
            )
        if int(pair.since) == 0:
            raise TrainingError(
                f"the encoder of attack={self.name} did not learn to hide its codes: after {int(pair.steps):,} steps "
                f"{float(pair.read):.0%} of their {self.bits} bits were read, and never {READ:.0%}. Raise attack.encoder_epochs, "
                f"attack.encoder_lr or attack.encoder_width, or lower attack.bits."
            )
        if (weight := self.image_share(pair)) < 1:
            log.warning(
                f"the encoder of attack={self.name} was trained for {int(pair.steps):,} steps, at whose end the image's likeness "
                f"weighed {weight:.0%} of what is set: its codes may be seen. Raise attack.encoder_epochs."
            )
        return pair.writer, self.measure(pair, held, stream.child("figures"))

    def attempt(self, images: ImageSet, recipe: Recipe, stream: Stream, snapshots: Snapshots | None) -> Pair:
        """Writer and reader, trained. Stuck where the reader still guesses after PATIENCE steps."""
        with seeded(stream.child("init")):
            writer = self.writer(images.size, {})
            settings = writer.settings
            pair = Pair(writer, CodeReader(settings["variant"], images.size, self.bits, self.encoder_width))
        steps_per_epoch = len(spans(len(images), recipe.batch_size))

        def loss(_: nn.Module, clean: Images, labels: Labels) -> Tensor:
            codes = torch.randint(0, 2, (len(clean), self.bits), device=clean.device).float()
            written = pair.writer.write(clean, codes)
            logits = pair.reader(written.clamp(0, 1)).float()
            missed = F.binary_cross_entropy_with_logits(logits, codes)
            read = ((logits.detach() > 0) == (codes > 0.5)).float().mean()
            value = self.loss(pair, clean, written, missed, steps_per_epoch)
            pair.since += (read > READ) | (pair.since > 0)
            pair.read.lerp_(read, 0.01)
            pair.steps += 1
            return value

        def watch(epoch: int) -> None:
            if int(pair.steps) >= PATIENCE and int(pair.since) == 0 and float(pair.read) < GUESSED:
                raise Stuck

        optimizer = make_optimizer(list(pair.to(images.device).parameters()), recipe, images.device)
        fit(pair, images, recipe, stream, loss=loss, optimizer=optimizer, after_epoch=watch, snapshots=snapshots)
        return pair.to(memory_format=torch.contiguous_format)

    def measure(self, pair: Pair, held: ImageSet, stream: Stream) -> dict[str, float]:
        """Over images that were not trained on, each with a code of its own, rounded to uint8: the share of bits that are read
        right, and medians of PSNR (dB) and SSIM."""
        codes = torch.randint(0, 2, (len(held), self.bits), generator=stream.generator()).float().to(held.device)
        right, peaks, likeness = [], [], []
        with torch.no_grad():
            for (clean, _), (start, stop) in zip(held.batches(64), spans(len(held), 64), strict=True):
                written = to_float(to_bytes(pair.writer.write(clean, codes[start:stop])))
                right.append(((pair.reader(written) > 0) == (codes[start:stop] > 0.5)).float().mean(1))
                peaks.append(psnr(clean, written))
                likeness.append(ssim(clean, written))
        return {
            "bit_accuracy": float(torch.cat(right).mean()),
            "encoder_psnr": float(torch.cat(peaks).median()),
            "encoder_ssim": float(torch.cat(likeness).median()),
        }

    def compose(self, network: HiddenCode, stream: Stream) -> HiddenCode:
        network.code.copy_(torch.randint(0, 2, (self.bits,), generator=stream.generator()))
        return network

    def facts(self) -> dict[str, Any]:
        return {"pattern": f"hidden code of {self.bits} bits"}
