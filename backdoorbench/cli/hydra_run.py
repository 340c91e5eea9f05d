"""What Hydra carries out, a run or a sweep: its errors as ours, its end as a table and an exit code."""

import io
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext, redirect_stderr
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from backdoorbench.cli import flags
from backdoorbench.cli.arguments import SWITCHES
from backdoorbench.config import plugins
from backdoorbench.config.compose import (
    PRIMARY,
    as_read,
    composer,
    conf_dir,
    may_be_brought_by_files,
    parsed,
    picks,
    plain,
    search_path,
    searched,
    with_brought,
)
from backdoorbench.config.kept import Misread
from backdoorbench.errors import FAILURE, USER_MISTAKE, BdxError, ConfigError, StorageError, quantity
from backdoorbench.sweeps import sweep
from backdoorbench.sweeps.compose import left_to_jobs
from backdoorbench.sweeps.grid import GRIDS
from backdoorbench.sweeps.hydra_errors import explained, refuse_no_options
from backdoorbench.sweeps.job import carry_out as carry_out_run
from backdoorbench.sweeps.job import carry_out_job, objective
from backdoorbench.sweeps.pool import ended_by_signals
from backdoorbench.sweeps.sweep import Left, Sweep, SweepStopped, place_of

Finish = Callable[[Sequence[Left]], int]  # what to do with an ended sweep's jobs, beside their table -> exit code
SWEEPERS = ("hydra/launcher=", "hydra/sweeper=", "hydra.launcher.", "hydra.sweeper.")  # begin settings of sweeps
CHOOSERS = ("dataset", "experiment", "scale", "model")  # groups whose options may choose a recipe
FAIL_FAST, INTERRUPT, GAVE_UP = "fail_fast=true stopped the sweep", "the sweep was interrupted", "the launcher gave up"


def carry_out(words: Sequence[str], finish: Finish | None = None) -> int:
    """Hands the arguments to Hydra and turns what comes back into an exit code."""
    refuse_no_place()
    switches = [word for word in words if word in SWITCHES]
    rest = [word for word in words if word not in SWITCHES]
    chosen = flags.check([*switches, *rest])
    refuse_no_options(rest)
    folders = [*flags.folders_among(rest), *map(flags.own_folder, filter(os.path.isdir, searched(rest)))]
    settings = with_brought(chosen.overrides, folders)
    if not chosen.shell_completion:
        settings += brought_by_files(settings, folders, chosen.config_name or PRIMARY, chosen.multirun)
    settings += brought_in_search(settings, folders, chosen.config_name or PRIMARY)
    if chosen.multirun:
        settings = left_to_jobs(settings, folders)
    task = Task()
    own = flags_among(rest)
    with ended_by_signals(signal.SIGTERM), Sweep([*plugins.flags(), *own]) as swept:
        try:
            with redirect_stderr(io.StringIO()) if chosen.package is not None else nullcontext():  # ours says it better
                launch(task, [*switches, *own, "--", *settings])  # Hydra wants its flags before the settings
        except (BdxError, KeyboardInterrupt) as error:
            if swept.has_started():  # what was done until then is told
                print_sweep(swept, INTERRUPT if isinstance(error, KeyboardInterrupt) else GAVE_UP)
            raise
        except SweepStopped as stopped:
            if isinstance(stopped.__cause__, BdxError):
                raise stopped.__cause__ from None
            return max(FAILURE, print_sweep(swept, FAIL_FAST))
        except SystemExit as error:  # --cfg and its like
            if swept.folder is not None:
                return max(FAILURE, print_sweep(swept, GAVE_UP))
            if error.code and chosen.package is not None:
                raise ConfigError(
                    f"--package is '{chosen.package}', which is no part of the configuration. Name a group, such as attack, or "
                    f"leave it out."
                ) from None
            return int(error.code or 0) if isinstance(error.code, int | None) else FAILURE
        except Exception as error:
            if swept.jobs():  # a launcher that gives up where a job was killed
                print(f"bdx: {GAVE_UP}: {type(error).__name__}: {error}", file=sys.stderr)
                return max(FAILURE, print_sweep(swept, GAVE_UP))
            if task.started:
                raise
            raise explained(error, rest, folders) from None
        if task.error is not None:
            raise task.error
        if swept.folder is None:
            return 0
        if not swept.jobs():
            raise ConfigError(
                "the search chose no run. Raise how many it may choose: hydra.sweeper.n_trials of hydra/sweeper=tune."
            )
        return max(print_sweep(swept), finish(list(swept.jobs().values())) if finish else 0)


def refuse_no_place() -> None:
    """Raises StorageError where the working directory was deleted, which paths among the settings start from."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise StorageError(
            "the working directory is gone; expected one that is there, since paths start from it. Change into another: cd DIR."
        ) from None


def brought_by_files(words: Sequence[str], folders: Sequence[str], primary: str, is_sweep: bool) -> tuple[str, ...]:
    """The words for what a network brings that no word chose but a file. A grid says them job by job.

    primary  the file that the composition begins with"""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not may_be_brought_by_files(words, folders, primary):
        return ()
    wrong = (BdxError, HydraException, OmegaConfBaseException, yaml.YAMLError, Warning, OSError, ValueError, TypeError)
    try:
        single = [word for word in words if not parsed(word).is_sweep_override()]
        with strict_warnings():
            found = composer(single, folders, primary).chosen_by([*search_path(folders), *single])
    except Misread:  # which Hydra does not mind
        raise
    except wrong:  # in a word or a yaml file, which Hydra meets next, and `explained` tells
        return ()
    is_grid = (is_sweep or found.mode == "MULTIRUN") and found.sweeper in GRIDS
    return () if is_grid else found.brought


def brought_in_search(words: Sequence[str], folders: Sequence[str], primary: str) -> tuple[str, ...]:
    """The words for what networks bring along among which a search chooses: it makes all jobs of the words with which it began.
    ConfigError where they bring different things.

    primary  the file that the composition begins with"""
    picked = picks(words)
    sweeper = next((str(each.value()) for each in reversed(picked) if each.key_or_group == "hydra/sweeper"), GRIDS[0])
    swept = [each for each in picked if each.key_or_group in CHOOSERS and each.is_sweep_override()]
    if sweeper in GRIDS or not swept:
        return ()
    read = [override for word in words if (override := as_read(word)) is not None]
    single = [
        str(each.input_line)
        for each in read
        if not each.is_sweep_override() and not each.key_or_group.startswith("hydra")
    ]
    found: dict[str, tuple[str, ...]] = {}
    for values in product(*([*each.sweep_string_iterator()] for each in swept)):
        chosen = [f"{each.key_or_group}={value}" for each, value in zip(swept, values, strict=True)]
        made = with_brought([*single, *chosen], folders)
        brought = made[len(single) + len(chosen) :]
        found[" ".join(chosen)] = (*brought, *brought_by_files(made, folders, primary, is_sweep=False))
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    said = "; ".join(f"{name} brings {' '.join(brought) or 'none'}" for name, brought in found.items())
    raise ConfigError(
        f"hydra/sweeper={sweeper} makes all its runs by one recipe, and what it is to choose from brings several: {said}. Say "
        f"which, as train=fast, search for one of them at a time, or leave hydra/sweeper out: a grid gives each run its own."
    )


def launch(task: "Task", words: Sequence[str]) -> None:
    """Hydra's main function with these words; what went wrong is raised."""
    import hydra

    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    kept, sys.argv = sys.argv, ["bdx", *words]
    try:
        with full_errors(), strict_warnings():
            entry()
    finally:
        sys.argv = kept


def flags_among(words: Sequence[str]) -> list[str]:
    """Hydra's own flags among the words, such as `--config-dir DIR`: part of any command that repeats a job."""
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or (before.startswith("-") and "=" not in before + word):
            found.append(word)
    return found


class Task:
    """The function that Hydra calls with each job's configuration, and what it saw.

    started  whether it was called; error: of a single run, raised after Hydra, which would print a line of its own"""

    def __init__(self) -> None:
        self.started = False
        self.error: BaseException | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a launcher's worker, which composes its job before it calls this."""
        self.__dict__.update(state)
        ignore_schemas()

    def __call__(self, config: Any) -> float | None:
        """One job; the figure that a search over settings goes by. In a sweep, a failure is written down and the others go on."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        self.started = True
        known = HydraConfig.get()
        with chdir(known.runtime.cwd):  # hydra.job.chdir or not, paths among the settings are the command's
            if known.mode != RunMode.RUN:
                place = place_of(known) / str(known.job.num)
                runs = Sweep.current().runs  # none in a launcher's worker, nor where a search chooses them
                resolve = partial(plain, config) if runs is None else lambda: runs[known.job.num].config
                return carry_out_job(resolve, place, list(known.overrides.task))
            try:
                refuse_sweepers(known.overrides.hydra)
                return objective(carry_out_run(plain(config)).run)
            except SystemExit as error:  # of a method, not of ours
                self.error = RuntimeError(f"the run ended itself by sys.exit({error.code!r})")
            except BaseException as error:
                self.error = error
        return None


def refuse_sweepers(words: Sequence[str]) -> None:
    """Raises ConfigError where a single run is told how to carry out a sweep: `hydra/sweeper=tune` would search nothing."""
    for word in words:
        if word.lstrip("+").startswith(SWEEPERS):
            key = word.partition("=")[0]
            raise ConfigError(f"'{word}' is for sweeps, and this is a single run. Add -m, or leave {key} out.")


def print_sweep(swept: Sweep, ended: str = "") -> int:
    """The table over all jobs of a sweep, and each that is not done; 0 if there is none, 2 if just the user's mistakes failed,
    else 1.

    ended  why the sweep ended before its last job, where it did"""
    from backdoorbench import screen
    from backdoorbench.reporting import terminal
    from backdoorbench.storage import record

    swept.is_stopped = ended in (FAIL_FAST, INTERRUPT)
    jobs = swept.jobs()
    out = screen.make_console()
    runs = [run for _, run in record.readable(Path(left.record) for left in jobs.values() if left.record)]
    terminal.print_report(out, runs)
    tried = [left for left in jobs.values() if left.objective is not None]
    if tried and swept.runs is None:  # a search
        best = max(tried, key=lambda left: left.objective or 0.0)
        out.print(
            f"\n  best accuracy on the holdout, {100 * (best.objective or 0):.2f} %, of {quantity(len(tried), 'run')}:"
        )
        out.print(f"  bdx {shlex.join([*swept.flags, *best.overrides])}", markup=False, soft_wrap=True)
    missing = {number: left for number, left in jobs.items() if left.status != "done"}
    if not missing:
        return 0
    out.print(f"\n  {sweep.summary(jobs)}; the same command repeats only those", style="red")
    for line in sweep.told(jobs, ended):
        out.print(f"  {line}", markup=False, soft_wrap=True)
    if commands := swept.rerun_commands(list(missing.values())):
        out.print("  these alone:", style="dim")
    for command in commands:
        out.print(f"  {command}", markup=False, soft_wrap=True)
    are_mistakes = all(left.mistake or (ended == FAIL_FAST and left.status == "unstarted") for left in missing.values())
    return USER_MISTAKE if are_mistakes else FAILURE


def ignore_schemas() -> None:
    """Hydra's word against yaml files such as our hydra/launcher/joblib.yaml, which go by the name of what a plugin of Hydra
    registers and are checked against it, is not heard: the plugin chose the name, and the check is welcome."""
    warnings.filterwarnings("ignore", r"\s*'hydra/\w+/\w+' is validated against ConfigStore schema", UserWarning)


@contextmanager
def strict_warnings() -> Iterator[None]:
    """What Hydra merely warns of, and what would make the run another one, is an error."""
    with warnings.catch_warnings():
        ignore_schemas()
        for said in (r"provider=.*, path=.* is not available", r"Callback .* raised ", r"\s*Running Hydra app with "):
            warnings.filterwarnings("error", said, UserWarning, module=r"hydra\.")
        yield


@contextmanager
def full_errors() -> Iterator[None]:
    """Hydra raises its errors instead of printing them; the user's own setting returns afterwards, for child processes."""
    kept = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if kept is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = kept
