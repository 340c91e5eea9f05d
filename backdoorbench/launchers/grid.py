"""`hydra/sweeper=grid`: every combination, composed and checked before the first one trains.

Hydra's own sweeper composes each job from all yaml files, a tenth of a second each, and finds a wrong type, an impossible
rate or a missing data set only when that job's turn comes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from backdoorbench.launchers import sweep
from backdoorbench.launchers.compose import Composer
from backdoorbench.launchers.pool import Pool

REMOTE = ("slurm", "submitit_slurm", "ray", "ray_aws")  # launchers whose jobs see other devices than this process


class Grid(BasicSweeper):
    """Hydra's sweeper over combinations, with the whole sweep looked over first.

    only_look  set by `bdx plan`: what to do with the runs instead of launching them"""

    only_look: Any = None

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        # Not through the base class: Hydra's scan for plugins executes its file anew, and `super(BasicSweeper, self)` there
        # then means another class than the one this was derived from.
        self.overrides, self.batch_index = None, 0
        self.max_batch_size, self.params = max_batch_size, params or {}
        self.hydra_context = self.config = self.launcher = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config, self.task_function = hydra_context, config, task_function

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.hydra_context is not None
        if Grid.only_look is None:  # first, for it may not be installed
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
            )
        from backdoorbench.launchers import outlook  # torch is imported only when a sweep begins

        jobs = self.jobs(arguments)
        composer = Composer(self.hydra_context.config_loader, self.config)
        composed = [composer(job) for job in jobs]
        launcher = str(OmegaConf.select(self.config, "hydra.runtime.choices.hydra/launcher"))
        runs = outlook.look(jobs, composed, here=launcher not in REMOTE)
        if Grid.only_look is not None:
            return Grid.only_look(runs)
        outlook.refuse_mistakes(runs)
        folder = Path(self.config.hydra.sweep.dir)
        words = sweep.flags + [word for word in self.config.hydra.overrides.hydra if not word.startswith("hydra.mode=")]
        sweep.begin(folder, jobs, words)
        sweep.begun.append(folder)
        if isinstance(self.launcher, Pool):
            self.launcher.runs = runs
        return super().sweep(arguments)

    def jobs(self, arguments: Sequence[str]) -> list[list[str]]:
        """The settings of each job."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        return [job for batch in self.split_arguments(overrides, None) for job in batch]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Done above, for all batches at once."""
