"""None: no after-attack. Whether the backdoor comes back is not asked, and a run's key is what it was before there were any.

Idea     Ask for nothing: the option that the group stands on.
Paper    none
Follows  -
Departs  -
Cost     none
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from backdoorbench.after.base import AfterAttack, Scenario, Trial


@dataclass(frozen=True)
class NoAfterAttack(AfterAttack):
    """Tries nothing and is handed nothing."""

    needs: ClassVar[frozenset[str]] = frozenset()
    draws: ClassVar[bool] = False
    figure: ClassVar[str] = ""

    def trials(self, scenario: Scenario) -> Iterator[Trial]:
        return iter(())
