"""None: no defense. The purified row equals the infected one.

Idea     Leave the model as it is: for tables of attacks alone, and to train infections ahead of a sweep.
Paper    none
Follows  -
Departs  -
Cost     none
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from backdoorbench.defenses.base import Defense, Scenario


@dataclass(frozen=True)
class NoDefense(Defense):
    """Returns its copy of the model."""

    needs: ClassVar[frozenset[str]] = frozenset({"model"})
    draws: ClassVar[bool] = False
    tunes: ClassVar[bool] = False

    def purify(self, scenario: Scenario) -> nn.Module:
        return scenario.model
