"""MLflow: a database beside the runs, or a server. Through its client object, which leaves no global state behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from backdoorbench.config.compose import Plain, flat
from backdoorbench.storage import store
from backdoorbench.trackers.base import Journal, Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 100  # parameters that a server takes in one request


@dataclass(frozen=True)
class Mlflow(Tracker):
    """uri: null for `mlflow.db` in the outputs folder; experiment: the name runs are kept under."""

    package: ClassVar[str] = "mlflow"

    uri: str | None
    experiment: str

    def start(self, name: str, config: Plain, folder: Path) -> Journal:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        outputs = Path(config["runtime"]["outputs"]).expanduser()
        with store.locked(outputs / "cache" / "locks" / "mlflow.lock", "another run opens the MLflow store"):
            client = MlflowClient(self.uri or f"sqlite:///{outputs / 'mlflow.db'}")  # makes its tables: one at a time
            known = client.get_experiment_by_name(self.experiment)
            experiment = known.experiment_id if known is not None else client.create_experiment(self.experiment)
        run = client.create_run(experiment, run_name=name).info.run_id
        settings = [Param(key, str(value)) for key, value in flat(config).items()]
        for first in range(0, len(settings), BATCH):
            client.log_batch(run, params=settings[first : first + BATCH])
        return Logged(client, run)


class Logged(Journal):
    def __init__(self, client: MlflowClient, run: str) -> None:
        self.client, self.run = client, run

    def log(self, epoch: int | None, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())  # milliseconds
        self.client.log_batch(
            self.run, metrics=[Metric(name, value, now, epoch or 0) for name, value in values.items()]
        )

    def finish(self, done: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if done else "FAILED")
