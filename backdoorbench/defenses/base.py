"""What a defense is, and all that it may know."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from backdoorbench.errors import ConfigError, PairingError
from backdoorbench.training.recipe import Recipe
from backdoorbench.training.scenario import Scenario as Scenario
from backdoorbench.training.scenario import check_needs


@dataclass(frozen=True)
class Defense(ABC):
    """Purifies a model, or trains one that needs no purification. `name` as tables and keys print it."""

    needs: ClassVar[frozenset[str]] = frozenset({"model", "holdout"})  # others e.g. {"train"}, {"model", "train"}
    needs_disjoint: ClassVar[bool] = False  # true: no image of the holdout may be in the training set

    starts_from: ClassVar[Literal["infected", "scratch"]] = "infected"  # what the learning curve's epoch 0 is
    retrains: ClassVar[bool] = False  # whether it trains a network anew by the victim's recipe
    draws: ClassVar[bool] = True  # whether another seed gives another model
    tunes: ClassVar[bool] = True  # whether it changes weights
    plain: ClassVar[bool] = (
        False  # whether it is plain fine-tuning: a backdoor that this ends tells nothing of other defenses
    )

    name: str

    @abstractmethod
    def purify(self, scenario: Scenario) -> nn.Module:
        """The purified model. The last one, always: nothing is chosen by test data."""

    def reshape(self, model: nn.Module) -> None:  # noqa: B027  # most leave the layers as they are
        """Gives a network of the victim's kind the layers that `purify` adds, so that the weights of a purified one fit it."""

    @property
    def reshapes(self) -> bool:
        """Whether a purified network has layers that the victim's has not."""
        return type(self).reshape is not Defense.reshape

    def check(self, offered: dict[str, bool], attack: str) -> None:
        """Raises PairingError where a need is not among what is `offered` (name -> whether it exists)."""
        check_needs(self.name, "defense", self.needs, offered, attack)
        if self.needs_disjoint and not offered["disjoint"]:
            raise PairingError(
                f"{self.name} needs clean images that the training set lacks, but holdout.kind is seen, which leaves them in it; "
                f"set holdout.kind=reserved, as holdout=standard has it."
            )

    def check_recipe(self, recipe: Recipe) -> None:
        """Raises ConfigError where it would train anew by a recipe that trains nothing; called before any work."""
        if self.retrains and not recipe.epochs:
            raise ConfigError(
                f"{self.name} trains a fresh network by the victim's recipe, but train.epochs is 0, so that it would stay as it "
                f"was drawn; expected at least 1. Set train.epochs, or pick a defense that tunes the model that it is given (bdx "
                f"list defenses)."
            )
