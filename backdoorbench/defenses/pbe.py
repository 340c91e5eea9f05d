"""PBE: progressive backdoor erasing, from the poisoned training set alone. Purify, pick what looks clean, purify again.

Idea     A random part of the training set is mostly clean: adversarial tuning on it weakens the backdoor. Poisoned
         images then change their logits and clean ones keep them, so those that agree best with the infected model
         are a larger, cleaner set for the next round.
Paper    arXiv 2202.06312v4; with a clean set it is AFT (defense=pbe_clean, defense=aft)
Follows  the authors' code: round 0 on 5 % drawn at random, adversarial throughout; then on the 20, 50 and 70 % of the
         whole set with the largest s(x) = 1/2 + 1/2 cos(f0(x), f(x)), f0 the infected model, on logits in eval mode;
         of these rounds the first 31 batches are adversarial; labels as given; weights and SGD go on between rounds
Departs  1. batches are shuffled; the code reads them in file order, which on GTSRB is one class after another
         2. adversarial images stay in [0, 1]; the code's may leave it (defense.clamp=false)
         3. augmentation as the data set says, drawn per image; the code crops with padding 5 (probability 0.8) and
            rotates by up to 10 degrees (0.5), drawn per batch, which reaches 80 and 25 % of the images
         4. the training set is the one that infected the model; the code poisons a fresh 10 % for PBE. After an attacker who
           drives the training there is none; reconstruct=true rebuilds one with his trigger
         5. pixels are normalised as the data set says, and PGD and the scores' logits are computed in the victim's precision; the
            code feeds [0, 1] as it is, in float32 (dataset.mean=[0,0,0] dataset.std=[1,1,1] train.precision=float32;
            in float32 its AUC on CIFAR-10 was the same)
         6. nothing is scored after the last round; the code does so and ends in an index error
Cost     `shares` times `epochs` passes over the training set, forward and backward; `steps` + 1 times that where they are
         adversarial (some 20 passes in all); a forward pass before each round
"""

import copy
import functools
import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from backdoorbench.config.acts import Acts, Unless
from backdoorbench.config.build import BESIDE
from backdoorbench.data.images import spans
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import DataError, check_range
from backdoorbench.shapes import Labels, Logits, Rows, floor_of
from backdoorbench.streams import Stream
from backdoorbench.training.adversarial import PGD, partly_adversarial
from backdoorbench.training.fit import fit, make_optimizer
from backdoorbench.training.forward import logits
from backdoorbench.training.recipe import Recipe, Tuning

NULL = 0.05  # of a tensor's norm: noise whose scores stand beside the method's in the record


@dataclass(frozen=True)
class PBE(Defense):
    """Progressive backdoor erasing without a clean set.

    How well a round told poisoned from clean goes to the record, never to the method: the AUC of its scores, of the margins, of
    the scores among rows of like margin; and as `null` the same of scores after random noise on the weights in place of tuning.
    Triggered rows have large margins, so that any small change turns their logits least."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "train"})
    acts: ClassVar[Acts] = dict.fromkeys(("eps_255", "step_share", "clamp"), Unless("steps", 0))

    shares: tuple[float, ...]
    epochs: int
    adversarial_batches: int
    restart: Literal["current", "infected"]
    eps_255: float
    steps: int
    step_share: float
    clamp: bool
    tuning: Annotated[Tuning, BESIDE]

    def __post_init__(self) -> None:
        for turn, share in enumerate(self.shares):
            check_range(f"defense.shares[{turn}]", share, 0, 1)
        check_range("defense.epochs", self.epochs, 0)
        check_range("defense.adversarial_batches", self.adversarial_batches, 0)
        check_range("defense.eps_255", self.eps_255, 0, 255)
        check_range("defense.steps", self.steps, 0)
        check_range("defense.step_share", self.step_share, 0)

    def purify(self, scenario: Scenario) -> nn.Module:
        model, train = scenario.model, scenario.train
        counts = [self.count(turn, len(train)) for turn in range(len(self.shares))]
        recipe = self.tuning.recipe(self.name, self.epochs, scenario.recipe.precision)
        radius = self.eps_255 / 255
        craft = PGD(radius, self.step_share * radius, self.steps, clamp=self.clamp)
        start = copy.deepcopy(model.state_dict())
        optimizer, passed = new_optimizer(model, recipe), itertools.count()
        with scenario.autocast():
            infected = logits(model, train)  # f0
            shaken = logits(noisy(model, NULL, scenario.stream.child("null")), train)
        margins, null = margin(infected, train.labels.cpu()), agreement(infected, shaken)
        if counts:
            scenario.inspect("null", highest(null, counts[-1]), 1 - null, margins=margins)
        for turn, count in enumerate(counts):
            draws = scenario.stream.child(f"round{turn}")
            if turn == 0:
                rows = draws.child("rows").permutation(len(train))[:count].sort().values
                scenario.inspect("selection0", rows, None)
            else:
                with scenario.autocast():
                    scores = agreement(infected, logits(model, train))
                rows = highest(scores, count)
                scenario.inspect(f"selection{turn}", rows, 1 - scores, margins=margins)
                if self.restart == "infected":
                    model.load_state_dict(start)
                    optimizer = new_optimizer(model, recipe)
            fit(
                model,
                train.subset(rows),
                recipe,
                draws.child("tune"),
                loss=partly_adversarial(craft, functools.partial(self.is_adversarial, turn, count)),
                optimizer=optimizer,
                freeze_norms=self.tuning.freeze_norms,
                after_epoch=lambda _: scenario.probe(model, next(passed)),
            )
        return model

    def is_adversarial(self, turn: int, count: int, step: int) -> bool:
        """Whether batch `step` of round `turn`, on `count` images, is: all of round 0, later the first of epoch 0."""
        return turn == 0 or step < min(self.adversarial_batches, len(spans(count, self.tuning.batch_size)))

    def count(self, turn: int, images: int) -> int:
        """How many of the training images round `turn` tunes on: its share, rounded down. DataError below 2."""
        share = self.shares[turn]
        found = floor_of(share, images)
        if found < 2:
            raise DataError(
                f"defense.shares[{turn}] is {share:g}, {found} of the {images:,} training images; expected at least 2, the "
                f"fewest that batch norm can work with. Raise it."
            )
        return found


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's, over all parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return make_optimizer(parameters, recipe, parameters[0].device)


def noisy(model: nn.Module, share: float, stream: Stream) -> nn.Module:
    """A copy whose parameters carry Gaussian noise, each tensor's of `share` of its norm."""
    copied, generator = copy.deepcopy(model), stream.generator()
    with torch.no_grad():
        for parameter in copied.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.add_(noise * (share * parameter.norm() / noise.norm()))
    return copied


def margin(logits: Logits, labels: Labels) -> Tensor:
    """(N,): the logit of each row's label over the largest of the others."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def agreement(first: Logits, second: Logits) -> Tensor:
    """(N,) float64 in [0, 1]: 1/2 + 1/2 cos(first, second), row by row; 0 where a row is zero.

    In float64, since the logits of confident networks are almost parallel."""
    first, second = first.double(), second.double()  # (N, K)
    norms = first.norm(dim=1) * second.norm(dim=1)
    cosine = (first * second).sum(1) / torch.where(norms > 0, norms, 1.0)
    return torch.where(norms > 0, (0.5 + 0.5 * cosine).clamp(0, 1), 0.0)


def highest(scores: Tensor, count: int) -> Rows:
    """The (count,) rows of (N,) scores that are largest, in ascending order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
