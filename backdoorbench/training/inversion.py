"""Triggers inverted by decoupling benign features (BTI-DBF): a mask on the last map tells what clean predictions need, and a
generator of images learns to change only the rest.

Distances between images are mean squares in the network's normalised units, as in the authors' code.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from backdoorbench.errors import check_range
from backdoorbench.models.base import Classifier, Normalize, evaluating, frozen
from backdoorbench.models.surgery import stages, stem_cut
from backdoorbench.models.unet import UNet
from backdoorbench.shapes import Images, Labels, floor_of
from backdoorbench.streams import Stream, seeded
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import Loss, fit, make_optimizer
from backdoorbench.training.recipe import Recipe, bare_recipe
from backdoorbench.training.reversal import squash
from backdoorbench.training.scenario import Scenario

DEPTH = 4  # halvings of the generator
NEAR = 0.1  # distance from which on the generator, while it learns the identity, is pulled back with FAR_WEIGHT
FAR_WEIGHT, NEAR_WEIGHT = 100.0, 0.01
BENIGN_WEIGHT = 0.01  # of the benign features' change, while it learns the trigger
NOISE = 0.03  # deviation of what is added to images before their generated versions are called, normalised


@dataclass(frozen=True)
class Inversion:
    """How triggers are inverted, and on which images a method tunes; beside a defense's own settings."""

    rounds: int
    share: float
    width: int
    pretrain_epochs: int
    mask_epochs: int
    mask_lr: float
    generator_epochs: int
    generator_lr: float
    image_bound: float
    feature_bound: float
    batch_size: int
    augment: Augment | None

    def __post_init__(self) -> None:
        check_range("defense.share", self.share, 0, 1)
        for name in ("rounds", "width"):
            check_range(f"defense.{name}", getattr(self, name), 1)
        for name in ("pretrain_epochs", "mask_epochs", "mask_lr", "generator_epochs", "generator_lr"):
            check_range(f"defense.{name}", getattr(self, name), 0)
        check_range("defense.image_bound", self.image_bound, 0)
        check_range("defense.feature_bound", self.feature_bound, 0)
        check_range("defense.batch_size", self.batch_size, 2)

    def turns(self, scenario: Scenario, name: str) -> Iterator["Inverter"]:
        """An inverter of the scenario's model, once a round: by the time it is yielded, it has inverted the model as it is then.

        name  of the method, for what is shown while it works"""
        inverter = Inverter(scenario, self, name)
        inverter.imitate()
        for turn in range(self.rounds):
            inverter.invert(turn)
            yield inverter


class Inverter:
    """A generator of triggered images, for a model that changes between the rounds.

    stem, head  the model before and behind its last map, of its own layers
    painter     the optimiser of the generator's inversions: its moments outlast a round
    mask        (1, C, h, w) in [0, 1]: how benign each place of the last map is
    target      the class that generated images are called most often, as the first round found it"""

    def __init__(self, scenario: Scenario, settings: Inversion, name: str) -> None:
        model = scenario.model
        assert isinstance(model, Classifier)
        self.model, self.settings, self.name = model, settings, name
        self.scenario, self.holdout, self.stream = scenario, scenario.holdout, scenario.stream.child("invert")
        self.last = stages(model)[-1]
        self.stem, self.head = stem_cut(model, self.last.name)
        with seeded(self.stream.child("generator")):
            self.generator = Generator(model.of_pixels, settings.width).to(scenario.device).eval()
        inversion = self.recipe("generate", settings.generator_epochs, settings.generator_lr)
        self.painter = make_optimizer(list(self.generator.parameters()), inversion, scenario.device)
        self.mask = torch.ones(1, self.last.channels, *self.last.side, device=scenario.device)
        self.target: int | None = None

    def imitate(self) -> None:
        """The generator learns to leave images, features and predictions as they are."""
        with frozen(self.model):
            self._fit(
                "imitate", self.generator, self.settings.pretrain_epochs, self.settings.generator_lr, self.imitation
            )

    def invert(self, turn: int) -> None:
        """A new mask, then the generator on; after the first round, the target that this points at."""
        self.mask = self.learn_mask(turn)
        with frozen(self.model):
            epochs, lr = self.settings.generator_epochs, self.settings.generator_lr
            self._fit(f"generate{turn}", self.generator, epochs, lr, self.inversion, self.painter)
        called = self.call(self.stream.child(f"noise{turn}"))
        if self.target is None:
            self.target = int(called.argmax())
            self.scenario.note("target", self.target)
        self.scenario.note(f"called_target_round{turn + 1}", float(called[self.target] / called.sum()))

    def mix(self, images: Images) -> Images:
        """(N, 3, H, W): the same batch, in which floor(share N) + 1 images are generated. Batches come in random order."""
        count = min(floor_of(self.settings.share, len(images)) + 1, len(images))
        with torch.no_grad():
            generated = self.generator(images[:count])
        return torch.cat([generated.to(images.dtype), images[count:]])

    def imitation(self, generator: nn.Module, images: Images, labels: Labels) -> Tensor:
        """Loss of the identity: predictions, features, and the image, which counts much while it is far from itself."""
        with torch.no_grad():
            features = self.stem(images).float()
            answer = self.head(features).float().softmax(1)
        painted = generator(images)
        moved = self.stem(painted).float()
        far = self.distance(images, painted)
        weight = torch.where(far > NEAR, FAR_WEIGHT, NEAR_WEIGHT)
        return F.cross_entropy(self.head(moved).float(), answer) + F.mse_loss(moved, features) + weight * far

    def inversion(self, generator: nn.Module, images: Images, labels: Labels) -> Tensor:
        """Loss of the trigger: the backdoor's features move, unless the image or benign features have moved too far already."""
        with torch.no_grad():
            features = self.stem(images).float()
        painted = generator(images)
        moved = self.stem(painted).float()
        change = (features - moved).square()
        far, benign = self.distance(images, painted), (self.mask.square() * change).mean()
        backdoor = ((1 - self.mask).square() * change).mean()
        loss = self.switched(far, benign, backdoor)
        if self.target is not None:
            loss = loss + F.cross_entropy(self.head(moved).float(), torch.full_like(labels, self.target))
        return loss

    def switched(self, far: Tensor, benign: Tensor, backdoor: Tensor) -> Tensor:
        """The image's distance alone where a bound is passed, else minus what the backdoor's features moved."""
        beyond = (far > self.settings.image_bound) | (benign > self.settings.feature_bound)
        return torch.where(beyond, far, BENIGN_WEIGHT * benign - backdoor)

    def learn_mask(self, turn: int) -> Tensor:
        """(1, C, h, w): what clean predictions need of the last map, and what they fail on without. On a copy in train mode."""
        twin = copy.deepcopy(self.model).requires_grad_(False).train()
        stem, head = stem_cut(twin, self.last.name)
        mask = FeatureMask((1, self.last.channels, *self.last.side), self.stream.child(f"start{turn}"))

        def loss(mask: nn.Module, images: Images, labels: Labels) -> Tensor:
            with torch.no_grad():
                features = stem(images)
            kept = mask()
            benign, rest = (head(part * features).float() for part in (kept, 1 - kept))
            return F.cross_entropy(benign, labels) - F.cross_entropy(rest, labels)

        self._fit(f"mask{turn}", mask, self.settings.mask_epochs, self.settings.mask_lr, loss)
        return mask().detach()  # type: ignore[no-any-return]

    @torch.no_grad()
    def call(self, stream: Stream) -> Tensor:
        """(K,): how often each class is what the model calls a generated image, of the holdout under a little noise."""
        draws, spread = stream.generator(), NOISE * self.model.of_pixels.std
        counts = torch.zeros(len(self.holdout.classes), dtype=torch.int64, device=self.scenario.device)
        with evaluating(self.model), self.scenario.autocast():
            for images, _ in self.holdout.batches(self.settings.batch_size):
                noise = torch.randn(images.shape, generator=draws).to(images.device) * spread
                counts += torch.bincount(self.model(self.generator(images + noise)).argmax(1), minlength=len(counts))
        return counts

    def distance(self, images: Images, painted: Images) -> Tensor:
        """A scalar: mean squared difference of two batches, in normalised units."""
        return ((images - painted.float()) / self.model.of_pixels.std).square().mean()

    def recipe(self, part: str, epochs: int, lr: float) -> Recipe:
        """Adam at a constant rate on the holdout."""
        return bare_recipe(
            f"{self.name} {part}", epochs=epochs, batch_size=self.settings.batch_size, optimizer="adam", lr=lr, momentum=0.9,
            weight_decay=0.0, schedule="constant", augment=self.settings.augment, precision=self.scenario.recipe.precision,
        )  # fmt: skip

    def _fit(
        self, part: str, network: nn.Module, epochs: int, lr: float, loss: Loss, optimizer: Optimizer | None = None
    ) -> None:
        recipe = self.recipe(part, epochs, lr)
        fit(network, self.holdout, recipe, self.stream.child(part), loss=loss, optimizer=optimizer)


class Generator(nn.Module):
    """Pixels in, pixels out, neither bounded: a U-Net on normalised images."""

    def __init__(self, normalize: Normalize, width: int) -> None:
        super().__init__()
        self.normalize = copy.deepcopy(normalize)
        self.net = UNet(width, DEPTH)

    def forward(self, images: Images) -> Images:
        return self.net(self.normalize(images)) * self.normalize.std + self.normalize.mean  # type: ignore[no-any-return]


class FeatureMask(nn.Module):
    """A learnt tensor in [0, 1], random at first."""

    def __init__(self, shape: tuple[int, ...], stream: Stream) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.randn(shape, generator=stream.generator()))

    def forward(self) -> Tensor:
        return squash(self.v)
