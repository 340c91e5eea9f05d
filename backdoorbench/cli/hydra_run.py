"""What Hydra carries out, a run or a sweep: its errors as ours, its end as a table and an exit code."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoorbench.cli.arguments import SWITCHES
from backdoorbench.cli.hydra_errors import explained, refuse_null_groups
from backdoorbench.config.compose import conf_dir, plain
from backdoorbench.errors import FAILURE, USER_MISTAKE, BdxError
from backdoorbench.sweeps import sweep
from backdoorbench.sweeps.job import carry_out as carry_out_run
from backdoorbench.sweeps.job import carry_out_job, objective
from backdoorbench.sweeps.sweep import Sweep, SweepStopped

Finish = Callable[[Path], int]  # what to do with an ended sweep's folder, beside its table -> exit code


def carry_out(words: Sequence[str], finish: Finish | None = None) -> int:
    """Hands the arguments to Hydra and turns what comes back into an exit code."""
    import hydra

    switches = [word for word in words if word in SWITCHES]
    rest = [word for word in words if word not in SWITCHES]
    refuse_null_groups(rest)
    task = Task()
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)
    kept = sys.argv
    sys.argv = ["bdx", *switches, *rest]
    with Sweep(flags_among(rest)) as swept:
        try:
            with full_errors():
                entry()
        except BdxError:
            raise
        except SystemExit as error:  # --help and its like
            return int(error.code or 0) if isinstance(error.code, int | None) else FAILURE
        except SweepStopped as stopped:
            return max(FAILURE, print_sweep(stopped.folder))
        except Exception as error:
            if (
                swept.folder is not None
            ):  # a launcher that gives up where a job was killed; what the others did is not lost
                print(f"bdx: the launcher gave up: {type(error).__name__}: {error}", file=sys.stderr)
                return max(FAILURE, print_sweep(swept.folder))
            if task.started:
                raise
            raise explained(error, rest) from None
        finally:
            sys.argv = kept
    if task.error is not None:
        raise task.error
    if not swept.has_ended or swept.folder is None or not swept.folder.is_dir():
        return 0
    return max(print_sweep(swept.folder), finish(swept.folder) if finish else 0)


def flags_among(words: Sequence[str]) -> list[str]:
    """Hydra's own flags among the words, such as `--config-dir DIR`: part of any command that repeats a job."""
    flags: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or (before.startswith("-") and "=" not in before + word):
            flags.append(word)
    return flags


class Task:
    """The function that Hydra calls with each job's configuration, and what it saw.

    started  whether it was called; error: of a single run, raised after Hydra, which would print a line of its own"""

    def __init__(self) -> None:
        self.started = False
        self.error: BaseException | None = None

    def __call__(self, config: Any) -> float | None:
        """One job; the figure that a search over settings goes by. In a sweep, a failure is written down and the others go on."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        self.started = True
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.RUN:
            try:
                return objective(carry_out_run(plain(config)).run)
            except BaseException as error:
                self.error = error
            return None
        overrides = list(hydra_config.overrides.task)
        return carry_out_job(plain(config), Path(hydra_config.runtime.output_dir), overrides)


def print_sweep(folder: Path) -> int:
    """The aggregated table of a sweep; 0 if every job succeeded, 2 if only the user's mistakes failed, else 1."""
    from backdoorbench import screen
    from backdoorbench.reporting import terminal
    from backdoorbench.storage import record

    jobs = sweep.collect(folder)
    out = screen.make_console()
    runs = [run for _, run in record.readable(Path(left.record) for left in jobs.values() if left.record)]
    terminal.print_report(out, runs)
    tried = [left for left in jobs.values() if left.objective is not None]
    if tried and not sweep.planned(folder):  # a search
        best = max(tried, key=lambda left: left.objective or 0.0)
        out.print(f"\n  best accuracy on the holdout, {100 * (best.objective or 0):.2f} %, of {len(tried)} runs:")
        out.print(f"  bdx {shlex.join(best.overrides)}", markup=False, soft_wrap=True)
    failed = {number: left for number, left in jobs.items() if left.error}
    if not failed:
        return 0
    out.print(f"\n  {len(failed)} of {len(jobs)} jobs failed; the same command repeats only those", style="red")
    for number, left in failed.items():
        out.print(f"  job {number}: {left.error}", markup=False, soft_wrap=True)
    if commands := sweep.rerun_commands(folder, list(failed.values())):
        out.print("  these alone:", style="dim")
    for command in commands:
        out.print(f"  {command}", markup=False, soft_wrap=True)
    return USER_MISTAKE if all(left.mistake for left in failed.values()) else FAILURE


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
