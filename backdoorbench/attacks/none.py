"""None: clean training. The control that every infection is held against, and the way to purify a model as it is.

Idea     Nothing is planted. With `train.epochs=0 model.checkpoint=FILE` it hands a given model to a defense.
Paper    none
Follows  -
Departs  -
Cost     one training
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from backdoorbench.attacks.base import Attack, Infection, Task
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit


@dataclass(frozen=True)
class NoAttack(Attack):
    """No trigger, no target: CA only."""

    leaves_train: ClassVar[bool] = True
    plants: ClassVar[bool] = False
    training: ClassVar[str] = "clean training"

    def infect(self, task: Task, stream: Stream) -> Infection:
        model = task.build(stream.child("init"))
        history = fit(model, task.train, task.recipe, stream.child("train"), snapshots=task.snapshots)
        untouched = torch.zeros(len(task.train), dtype=torch.bool)
        return Infection(model, None, None, task.train, untouched, history)
