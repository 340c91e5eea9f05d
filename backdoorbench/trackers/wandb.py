"""Weights & Biases: online, or offline into `outputs/wandb`, from where `wandb sync` uploads later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from backdoorbench.config.compose import Plain
from backdoorbench.trackers.base import EPOCHS, Journal, Tracker

if TYPE_CHECKING:
    from wandb import Run


@dataclass(frozen=True)
class Wandb(Tracker):
    """project, entity: where the run is filed; entity null: the login's own."""

    package: ClassVar[str] = "wandb"

    project: str
    entity: str | None
    mode: Literal["online", "offline", "disabled"]

    def start(self, name: str, config: Plain, folder: Path) -> Journal:
        import wandb

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            name=name,
            config=config,
            dir=str(Path(config["runtime"]["outputs"]).expanduser()),
            reinit="create_new",  # jobs of a sweep follow each other in one process
            settings=wandb.Settings(console="off", quiet=True),  # on would wrap the console and tear its bars
        )
        for prefix in EPOCHS:
            run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/epoch")
        return Uploaded(run)


class Uploaded(Journal):
    def __init__(self, run: Run) -> None:
        self.run = run

    def log(self, epoch: int | None, values: Mapping[str, float]) -> None:
        if epoch is None:
            self.run.summary.update(dict(values))
        else:
            prefix = next(iter(values)).partition("/")[0]
            self.run.log({**values, f"{prefix}/epoch": epoch})

    def finish(self, done: bool) -> None:
        self.run.finish(exit_code=0 if done else 1)
