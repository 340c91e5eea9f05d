"""None: no detector. Nothing is judged, and a run's key is what it was before there were detectors.

Idea     Look for nothing: the option that the group stands on.
Paper    none
Follows  -
Departs  -
Cost     none
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from backdoorbench.detectors.base import Detector, Judges, Scenario, Verdict


@dataclass(frozen=True)
class NoDetector(Detector):
    """Judges nothing and is handed nothing; its verdict is empty."""

    judges: ClassVar[Judges] = "model"  # there is no fourth word for nothing
    needs: ClassVar[frozenset[str]] = frozenset()
    draws: ClassVar[bool] = False

    def examine(self, scenario: Scenario) -> Verdict:
        return Verdict(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
