"""TensorBoard: an event file in the run's own folder, so that `tensorboard --logdir outputs/runs` shows every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from backdoorbench.config.compose import Plain, flat
from backdoorbench.trackers.base import FINAL, Journal, Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class TensorBoard(Tracker):
    """Settings under HPARAMS, figures under SCALARS; flushed at once, so that a killed run keeps what it had."""

    package: ClassVar[str] = "tensorboard"

    def start(self, name: str, config: Plain, folder: Path) -> Journal:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        writer = SummaryWriter(str(folder))
        settings = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in flat(config).items()}
        # not add_hparams, which makes a second folder for each run
        for summary in hparams(settings, dict.fromkeys(FINAL, 0)):  # type: ignore[no-untyped-call]
            writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
        return Events(writer)


class Events(Journal):
    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer

    def log(self, epoch: int | None, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch or 0)
        self.writer.flush()

    def finish(self, done: bool) -> None:
        self.writer.add_text("status", "done" if done else "failed")
        self.writer.close()
