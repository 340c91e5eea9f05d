"""`hydra/sweeper=grid`: every combination, composed and checked before the first one trains. `listing` only lists them.

Hydra's own sweeper composes each job from all yaml files, a tenth of a second each, and finds a wrong type, an impossible
rate or a missing data set only when that job's turn comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from backdoorbench.config.build import convert
from backdoorbench.config.compose import with_brought
from backdoorbench.config.groups import NAMES
from backdoorbench.errors import ConfigError, check_range, did_you_mean, join_words, shown
from backdoorbench.sweeps.compose import composer, job_environment
from backdoorbench.sweeps.sweep import Sweep

if TYPE_CHECKING:
    from backdoorbench.sweeps.forecast import Ahead

GRIDS = ("grid", "listing")  # the options of hydra/sweeper that this module carries out
MOST_RUNS = 100_000  # of a sweep: their list takes minutes, and a gigabyte
REMOTE = ("slurm", "submitit_slurm", "ray", "ray_aws")  # launchers whose jobs see other devices than this process


class Grid(BasicSweeper):
    """Hydra's sweeper over combinations, with the whole sweep looked over first."""

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None) -> None:
        # Not through the base class: Hydra's scan for plugins executes its file anew, and `super(BasicSweeper, self)` there
        # then means another class than the one this was derived from.
        if max_batch_size is not None:
            check_range("hydra.sweeper.max_batch_size", convert(max_batch_size, int, "hydra.sweeper.max_batch_size"), 1)
        if params is not None and not isinstance(params, Mapping):
            raise ConfigError(
                f"hydra.sweeper.params is {shown(params)}; expected settings with their values. Leave it out."
            )
        self.overrides, self.batch_index = None, 0
        self.max_batch_size, self.params = max_batch_size, params or {}
        self.hydra_context = self.config = self.launcher = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config, self.task_function = hydra_context, config, task_function

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.hydra_context is not None
        self.launcher = Plugins.instance().instantiate_launcher(  # first, for it may not be installed
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        from backdoorbench.sweeps import forecast  # torch is imported only when a sweep begins

        runs = self.look(arguments)
        forecast.refuse_mistakes(runs)
        one = self.hydra_context.config_loader.load_sweep_config(self.config, list(runs[0].overrides))
        Sweep.current().begin(self.config, one.hydra.sweep.dir, runs)
        OmegaConf.save(self.config, Path(self.config.hydra.sweep.dir) / "multirun.yaml")
        jobs = [list(run.overrides) for run in runs]
        size = self.max_batch_size or len(jobs)
        returned: list[Any] = []
        for first in range(0, len(jobs), size):
            returned.append(self.launcher.launch(jobs[first : first + size], initial_job_idx=first))
            for job in returned[-1]:
                _ = job.return_value  # raises what a job raised
        return returned

    def look(self, arguments: Sequence[str]) -> list[Ahead]:
        """Every run of the sweep, looked over; nothing is trained."""
        assert self.config is not None and self.hydra_context is not None
        from backdoorbench.sweeps import forecast

        (listed,) = self.split_arguments(self.parsed(arguments), None)
        composed = composer(self.hydra_context.config_loader, self.config)
        jobs = [with_brought(job, composed.folders) for job in listed]
        with job_environment(self.config):
            jobs = [[*job, *composed.chosen_by(job).brought] for job in jobs]
            configs = [composed(job) for job in jobs]
        launcher = str(OmegaConf.select(self.config, "hydra.runtime.choices.hydra/launcher"))
        return forecast.look(jobs, configs, here=launcher not in REMOTE)

    def parsed(self, arguments: Sequence[str]) -> list[Override]:
        """The sweep's overrides, the command line's last, with ranges as the numbers they are meant to be."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        for override in overrides:
            value = override.value()
            if isinstance(value, IntervalSweep):
                raise ConfigError(not_listed(override.input_line or ""))
            if isinstance(value, RangeSweep):
                found = list[Any](numbers(value, override.input_line or ""))
                override._value = ChoiceSweep(list=found, simple_form=True, shuffle=value.shuffle)
            if isinstance(value, Glob) and not any(override.sweep_iterator()):
                raise ConfigError(self.nothing_matches(override))
        refuse_two_ways(overrides)
        count = math.prod(sum(1 for _ in each.sweep_iterator()) for each in overrides if each.is_sweep_override())
        if count > MOST_RUNS:
            raise ConfigError(f"the sweep has {count:,} runs; expected at most {MOST_RUNS:,}. Sweep over fewer values.")
        return overrides

    def nothing_matches(self, override: Override) -> str:
        """What is wrong with a glob that makes a sweep of no run."""
        assert self.hydra_context is not None
        group = override.key_or_group
        if group not in NAMES:
            return (
                f"'{group}' is no group, so '{override.input_line}' matches nothing.{did_you_mean(group, NAMES)} The groups are "
                f"{join_words(list(NAMES))}."
            )
        options = self.hydra_context.config_loader.get_group_options(group)
        return (
            f"'{override.input_line}' matches no option, so the sweep has no run. The options of {group} are "
            f"{join_words(options)}."
        )


class Listing(Grid):
    """`hydra/sweeper=listing`, which `bdx plan` chooses: says what a sweep would do, and launches nothing."""

    def sweep(self, arguments: list[str]) -> Any:
        from backdoorbench import screen
        from backdoorbench.sweeps import forecast, listing

        runs = self.look(arguments)
        listing.print_plan(screen.make_console(), runs, forecast.forecast(runs))
        forecast.refuse_mistakes(runs)  # as a sweep would: exit code 2 says that it would start none


def refuse_two_ways(overrides: Sequence[Override]) -> None:
    """Raises ConfigError where a setting is given in two ways, such as `seed=0,1` and `++seed=3`, of which Hydra keeps both: a
    job would be called by the one and be of the other. Of two that are written alike the last one holds, as in a run."""
    written: dict[str, Override] = {}
    for override in overrides:
        first = written.setdefault(override.key_or_group, override)
        if first.get_key_element() != override.get_key_element():
            raise ConfigError(
                f"'{first.input_line}' and '{override.input_line}' both set {override.key_or_group}. Leave one of them out."
            )


def not_listed(word: str) -> str:
    """What is wrong with an interval among the values of a grid."""
    return (
        f"'{word}' draws numbers from an interval, and a grid takes listed ones. List values ({word.partition('=')[0]}=0.01,0.05 "
        f"or a range), or search with hydra/sweeper=tune."
    )


def numbers(sweep: RangeSweep, said: str) -> list[int | float]:
    """The numbers of `range(start, stop, step)`, the stop excluded, each computed from the start in decimals: Hydra adds steps
    up in binary, which makes 0.060000000000000005 of 0.06 and takes an excluded stop in. ConfigError where there is none."""
    start, stop, step = (Decimal(str(value)) for value in (sweep.start or 0, sweep.stop, sweep.step))
    if not all(value.is_finite() for value in (start, stop, step)):
        raise ConfigError(f"'{said}' never ends: expected finite numbers. Give others.")
    if step == 0:
        raise ConfigError(f"'{said}' never ends: its step is 0. Give another step.")
    if (stop - start) / step > MOST_RUNS:
        raise ConfigError(
            f"'{said}' holds more than {MOST_RUNS:,} numbers, the most that a sweep runs. Lower the stop, or raise the step."
        )
    found = [start + step * place for place in range(math.ceil((stop - start) / step))]
    if not found:
        raise ConfigError(
            f"'{said}' holds no number: the stop is left out. Raise the stop, or list values with commas."
        )
    if all(isinstance(value, int) for value in (sweep.start or 0, sweep.stop, sweep.step)):
        return [int(value) for value in found]
    return [float(value) for value in found]
