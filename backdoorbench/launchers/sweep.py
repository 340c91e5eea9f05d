"""What the jobs of a sweep tell the process that launched them: a small file each, so that any launcher will do."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from backdoorbench import cache
from backdoorbench.config import read_json

ended: list[Path] = []  # folders of the sweeps that ended in this process


class SweepCallback(Callback):
    """Remembers where a sweep lay, for the command line to draw its table."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        ended.append(Path(config.hydra.sweep.dir))


def leave(place: Path, *, record: str | None, error: str | None, mistake: bool) -> None:
    """A job's own result, in its place among the sweep's folders: its record's folder, or its error and whether that was the
    user's mistake."""
    cache.write_json(place / "job.json", {"record": record, "error": error, "mistake": mistake})


def collect(folder: Path) -> list[dict[str, Any]]:
    """What every job of a sweep left, by job number."""
    files = sorted(folder.glob("*/job.json"), key=lambda file: int(file.parent.name))
    return [read_json(file) for file in files]
