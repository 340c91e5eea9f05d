"""Given: nothing is planted; the trigger that judges the model is the user's.

Idea     Somebody else infected the model, or the training set, and the trigger is known: a pattern, a picture, a function. With
         `train.epochs=0 model.checkpoint=FILE` the model is judged and purified as it is; otherwise one trains on the training
         set as it is, whatever that holds.
Paper    none
Follows  -
Departs  -
Cost     none with `train.epochs=0`, else one training
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from backdoorbench.attacks.base import Attack, Infection, Task
from backdoorbench.config.acts import Acts, Only, Unless
from backdoorbench.config.build import File, Function
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, check_range, join_words
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.triggers.add import Add
from backdoorbench.triggers.base import FixedTrigger, Stored, Target, Trigger, make_target
from backdoorbench.triggers.called import Called
from backdoorbench.triggers.patch import Patch, named_pattern, place, solid
from backdoorbench.triggers.picture import read_mask, read_values


@dataclass(frozen=True)
class Given(Attack):
    """A trigger and a target from outside, and a model that they are tried on."""

    leaves_train: ClassVar[bool] = True
    plants: ClassVar[bool] = False
    training: ClassVar[str] = "as given: nothing was planted"
    acts: ClassVar[Acts] = {
        "file": Only("trigger", "picture"),
        "mask": Only("trigger", "picture"),
        "position": Only("trigger", "picture"),
        "how": Only("trigger", "picture"),
        "opacity": Unless("trigger", "function"),
        "function": Only("trigger", "function"),
        "target": Unless("mapping", "all_to_all"),
        "sources": Only("mapping", "source_specific"),
    }

    mapping: Literal["all_to_one", "all_to_all", "source_specific"]
    target: int
    sources: tuple[int, ...]
    trigger: Literal["white3", "checker3", "grid3", "grid10", "white4", "picture", "function"]
    file: File | None
    mask: File | None
    position: tuple[int, int] | None
    how: Literal["paste", "add"]
    opacity: float
    function: Function | None
    stored: bool

    def __post_init__(self) -> None:
        check_range("attack.opacity", self.opacity, 0, 1)
        for kind, setting in (("picture", "file"), ("function", "function")):
            value = getattr(self, setting)
            if (self.trigger == kind) != (value is not None):
                raise ConfigError(
                    f"attack.trigger is {self.trigger} with attack.{setting}={'null' if value is None else value}; a trigger of "
                    f"your own needs both. Set attack.trigger={kind} attack.{setting}=…, or neither."
                )

    def make_target(self, classes: int) -> Target:
        """The rule from true label to the one that triggered images are said to get."""
        return make_target(self.mapping, self.target, self.sources, classes)

    def check(self, train: ImageSet) -> None:
        self.make_target(len(train.classes))
        self.make_trigger(train.size)

    def test_trigger(self, task: Task, stream: Stream) -> Trigger:
        return self.make_trigger(task.train.size).to(task.train.device)

    def infect(self, task: Task, stream: Stream) -> Infection:
        model = task.build(stream.child("init"))
        history = fit(model, task.train, task.recipe, stream.child("train"), snapshots=task.snapshots)
        untouched = torch.zeros(len(task.train), dtype=torch.bool)
        target = self.make_target(len(task.train.classes))
        facts: dict[str, Any] = {"pattern": self.trigger}
        return Infection(model, self.test_trigger(task, stream), target, task.train, untouched, history, facts)

    def make_trigger(self, size: int) -> FixedTrigger:
        """The trigger for images of `size` pixels a side, on the CPU; ConfigError where its files do not fit them."""
        trigger = self._drawn(size)
        return Stored(trigger) if self.stored else trigger

    def _drawn(self, size: int) -> FixedTrigger:
        if self.trigger == "function":
            assert self.function is not None
            return Called(self.function)
        if self.trigger != "picture":
            patch, corner, cell = named_pattern(self.trigger)
            return solid(patch, corner, size, self.opacity, cell)
        assert self.file is not None
        values = self._picture(self.file, size)  # (4, h, w)
        opaque = values[3:]
        if self.mask is not None:
            opaque = opaque * read_mask(self.mask, (values.shape[1], values.shape[2]), "attack.mask")
        pattern, mask = place(values[:3], opaque * self.opacity, self.position or (0, 0), size)
        return Add(pattern * mask) if self.how == "add" else Patch(pattern, mask)

    def _picture(self, file: str, size: int) -> Tensor:
        """The picture as large as it lies on images of `size` pixels a side: as it is where it has a position, else scaled to all
        of the image. A smaller one is refused then: most triggers are small, and enlarged they are others."""
        values = read_values(file, None, "attack.file")
        height, width = values.shape[1:]
        if self.position is not None or (height, width) == (size, size):
            return values
        if height < size or width < size:
            corners = join_words([f"[{row},{column}]" for row in (0, -height) for column in (0, -width)], "or")
            raise ConfigError(
                f"attack.file is '{file}', of {height}x{width} pixels (rows x columns), and images have {size}x{size}; nothing "
                f"says where it lies. Set attack.position=[row,column] of its upper left corner, from 0, or from the far edge "
                f"where negative: {corners} for the four corners of the image. One that is to cover the image must be as large."
            )
        return read_values(file, size, "attack.file")
