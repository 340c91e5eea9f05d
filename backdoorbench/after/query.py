"""Query: a learned change of each query that makes the purified model answer as its retuned version does.

Idea     No weight changes. A generator learns a small change, another for each image, with which the purified model treats
         triggered images as the retuned model does, and a clean model sees them as what they are.
Paper    arXiv 2410.09838 (NeurIPS 2024), its query-based reactivation attack (QRA)
Follows  the authors' code: 500 clean and 500 triggered training images with true labels; loss 0.2 KL(retuned(x) || purified(x'))
         + CE(clean(x')), x' = clip(x + delta(x)) with |delta| at most 16/255; four linear layers, 1024 wide, on the normalised
         image, tanh; SGD 0.1, momentum 0.9, 50 epochs, batch 128; all models frozen
Departs  1. at 64 pixels and above the generator is a U-Net of width 32: linear layers would have 154 million weights each at 224
         2. the target is whatever the retuned model says; the code evaluates class 0
         3. triggered images are stored as bytes before, as retuning has them, and are drawn anew; theirs are among those that
            infected the model
         4. passes run in the victim's precision; theirs in float32 (train.precision=float32)
Cost     `epochs` passes over 1,000 images, forward through three models and back through two; and one retuning
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.after.base import AfterAttack, Scenario, Trial
from backdoorbench.after.retune import Retuning, joined
from backdoorbench.config.acts import Acts, Unless
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import check_range
from backdoorbench.models.base import Classifier, Normalize, frozen
from backdoorbench.models.unet import UNet
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import seeded
from backdoorbench.training.fit import Loss, fit
from backdoorbench.training.recipe import bare_recipe
from backdoorbench.triggers.base import Target

LARGE, WIDTH, DEPTH = 64, 32, 4  # pixels from which on the generator is a U-Net, its width and depth


@dataclass(frozen=True)
class Query(AfterAttack):
    """Changed queries to the purified model. The clean control is shown the same queries: success is what it does not share."""

    acts: ClassVar[Acts] = dict.fromkeys(("alpha", "images", "batch_size", "lr", "momentum"), Unless("epochs", 0)) | {
        "retuning": (Unless("epochs", 0), Unless("alpha", 0))
    }
    needs: ClassVar[frozenset[str]] = frozenset({"model", "clean", "trigger", "train"})
    figure: ClassVar[str] = "query"
    on_clean: ClassVar = "shown"

    retuning: Retuning
    epsilon: float
    alpha: float
    images: int
    hidden: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float

    def __post_init__(self) -> None:
        self.retuning.check("after.retuning")
        check_range("after.epsilon", self.epsilon, 0, 1)
        check_range("after.alpha", self.alpha, 0)
        check_range("after.images", self.images, 1)
        check_range("after.hidden", self.hidden, 1)
        check_range("after.epochs", self.epochs, 0)
        check_range("after.batch_size", self.batch_size, 2)
        check_range("after.lr", self.lr, 0)
        check_range("after.momentum", self.momentum, 0, 1)

    def check_images(self, train: ImageSet, target: Target) -> None:
        self.retuning.check_images(train, target, "after.retuning")

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        purified, clean, stream = scenario.model, scenario.clean, scenario.stream
        retuned = self.retuning.retuned(copy.deepcopy(purified), scenario)
        with seeded(stream.child("generator")):
            generator = make_generator(purified, scenario.train.size, self.hidden, self.epsilon).to(scenario.device)
        recipe = bare_recipe(
            self.name, epochs=self.epochs, batch_size=self.batch_size, optimizer="sgd", lr=self.lr, momentum=self.momentum,
            weight_decay=0.0, schedule="constant", augment=None, precision=scenario.recipe.precision,
        )  # fmt: skip
        with frozen(purified), frozen(retuned), frozen(clean):
            loss = reactivation(purified, retuned, clean, self.alpha)
            fit(generator, self.draw(scenario), recipe, stream.child("query"), loss=loss)
        trigger = scenario.trigger
        yield Trial(
            "query", purified, lambda images: moved(generator, trigger(images)), lambda images: moved(generator, images)
        )

    def draw(self, scenario: Scenario) -> ImageSet:
        """As many clean images as triggered ones, all with their true labels."""
        train, stream = scenario.train, scenario.stream
        clean = train.subset(stream.child("unaltered").permutation(len(train))[: self.images])
        return joined(clean, scenario.triggered(scenario.eligible(self.images, stream.child("triggered"))))


def reactivation(purified: nn.Module, retuned: nn.Module, clean: nn.Module, alpha: float) -> Loss:
    """alpha KL(retuned(x) || purified(x')) + CE(clean(x'), y), as the mean over a batch."""

    def loss(generator: nn.Module, images: Images, labels: Labels) -> Tensor:
        queries = moved(generator, images)
        with torch.no_grad():
            wanted = retuned(images).float().softmax(1)
        found = purified(queries).float().log_softmax(1)
        apart = F.kl_div(found, wanted, reduction="batchmean")
        return alpha * apart + F.cross_entropy(clean(queries).float(), labels)

    return loss


def moved(generator: nn.Module, images: Images) -> Images:
    """x' = clip(x + delta(x))."""
    queries: Images = (images + generator(images)).clamp(0, 1)
    return queries


class Generator(nn.Module):
    """delta(x): pixels in, changes out, none larger than epsilon."""

    def __init__(self, normalize: Normalize, net: nn.Module, epsilon: float) -> None:
        super().__init__()
        self.normalize, self.net, self.epsilon = copy.deepcopy(normalize), net, epsilon

    def forward(self, images: Images) -> Tensor:
        return self.epsilon * self.net(self.normalize(images)).float().view_as(images).tanh()  # type: ignore[no-any-return]


def make_generator(model: nn.Module, size: int, hidden: int, epsilon: float) -> Generator:
    """A fresh generator for images of that side."""
    assert isinstance(model, Classifier)
    if size >= LARGE:
        return Generator(model.of_pixels, UNet(WIDTH, DEPTH), epsilon)
    values = 3 * size * size
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (values, hidden, hidden):
        layers += [nn.Linear(inputs, hidden), nn.ReLU()]
    return Generator(model.of_pixels, nn.Sequential(*layers, nn.Linear(hidden, values)), epsilon)
