"""`bdx`: a verb, a run or a sweep, and one paragraph for whatever a user got wrong. No maths.

A bare first word is a verb (verbs.py); anything else goes to Hydra. torch is imported only when work starts.
"""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoorbench.config import conf_dir, plain
from backdoorbench.errors import BdxError
from backdoorbench.mistakes import explained, refuse_null_groups
from backdoorbench.verbs import SWITCHES, carry_out

USER_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130  # exit codes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `bdx` with the given arguments (those of the process by default) and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "OMP_WAIT_POLICY" not in os.environ:  # threads that wait spin shortly: for ever slows a shared machine down
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # sixty-fold, not at all costs small networks a third
    try:
        with _logging():
            if words and words[0] == "--version":
                from importlib.metadata import version

                print(f"bdx {version('bdx')}")
                return 0
            if words and not words[0].startswith(("-", "+", "~")) and "=" not in words[0]:
                return carry_out(words[0], words[1:], _hydra)
            return _hydra(words)
    except BdxError as error:
        print(f"bdx: {error}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("bdx: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return FAILURE


def _hydra(words: Sequence[str], finish: Callable[[Path], int] | None = None) -> int:
    """Hands the arguments to Hydra and turns what comes back into an exit code.

    finish  what to do with an ended sweep's folder, beside its table"""
    import hydra

    from backdoorbench.launchers import sweep

    switches = [word for word in words if word in SWITCHES]
    rest = [word for word in words if word not in SWITCHES]
    refuse_null_groups(rest)
    sweep.flags[:] = _flags(rest)
    outcome = _Outcome()
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(outcome.task)
    kept = sys.argv
    sys.argv = ["bdx", *switches, *rest]
    try:
        with _full_errors():
            entry()
    except BdxError:
        raise
    except SystemExit as error:  # --help and its like
        return int(error.code or 0) if isinstance(error.code, int | None) else FAILURE
    except sweep.SweepStopped as stopped:
        return max(FAILURE, _print_sweep(stopped.folder))
    except Exception as error:
        if sweep.begun:  # a launcher that gives up where a job was killed; what the others did is not lost
            print(f"bdx: the launcher gave up: {type(error).__name__}: {error}", file=sys.stderr)
            return max(FAILURE, _print_sweep(sweep.begun[-1]))
        if outcome.started:
            raise
        raise explained(error, rest) from None
    finally:
        sys.argv = kept
        sweep.begun.clear()
    if outcome.error is not None:
        raise outcome.error
    return outcome.close(finish)


def _flags(words: Sequence[str]) -> list[str]:
    """Hydra's own flags among the words, such as `--config-dir DIR`: part of any command that repeats a job."""
    flags: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or (before.startswith("-") and "=" not in before + word):
            flags.append(word)
    return flags


class _Outcome:
    """What the task function saw, for the exit code and the sweep's table."""

    def __init__(self) -> None:
        self.started = False
        self.error: BaseException | None = (
            None  # of a single run, raised after Hydra, which would print a line of its own
        )

    def task(self, config: Any) -> float | None:
        """One job; the figure that a search over settings goes by. In a sweep, a failure is written down and the others go on."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        self.started = True
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.RUN:
            try:
                return objective(_one(plain(config)))
            except BaseException as error:
                self.error = error
            return None
        overrides = list(hydra_config.overrides.task)
        return sweep_job(plain(config), Path(hydra_config.runtime.output_dir), overrides)

    def close(self, finish: Callable[[Path], int] | None) -> int:
        """The table of the sweep that ended, if one did, and the exit code."""
        from backdoorbench.launchers import sweep

        code = 0
        while sweep.ended:
            folder = sweep.ended.pop(0)
            code = max(code, _print_sweep(folder), finish(folder) if finish else 0)
        return code


def _one(resolved: dict[str, Any], watch: Callable[[Any, str], None] | None = None) -> Any:
    """Carries out one configuration with its console output; the finished `Job`.

    watch  told the run and its stage too"""
    from backdoorbench import console, job

    out = console.make_console()
    console.install(out, resolved["runtime"]["progress"])
    package = logging.getLogger("backdoorbench")
    handler = console.ConsoleHandler(out)
    package.addHandler(handler)

    def announce(run: Any, stage: str) -> None:
        if stage == "planned":
            out.print(f"\n  {console.heading(run)}", style="bold", markup=False)
        elif stage != "curve":
            out.print(console.stage_line(run, stage), markup=False)
        if watch is not None:
            watch(run, stage)

    try:
        done = job.carry_out(resolved, announce)
    finally:
        package.removeHandler(handler)
    console.print_outcome(out, done.run, done.folder, done.repeated)
    return done


def objective(done: Any) -> float | None:
    """What a search over a defense's settings goes by: accuracy on the holdout, which a defender has. Never the test set."""
    found: float | None = done.run.details.get("holdout_ca")
    return found


def sweep_job(
    resolved: dict[str, Any], folder: Path, overrides: Sequence[str], watch: Callable[[Any, str], None] | None = None
) -> float | None:
    """One job of a sweep: whatever happens is left in `folder` for the table at the end. Its objective."""
    from backdoorbench.launchers import sweep

    try:
        with _logging():  # a launcher's worker does not come through `main`
            done = _one(resolved, watch)
    except Exception as error:
        mistake = isinstance(error, BdxError)
        sweep.leave(folder, overrides, error=f"{type(error).__name__}: {error}", mistake=mistake)
        print(f"bdx: job {folder.name} failed: {error}", file=sys.stderr)
        if not mistake:
            traceback.print_exc()
        if resolved["fail_fast"]:
            raise sweep.SweepStopped(folder.parent) from None
        return None
    found = objective(done)
    sweep.leave(folder, overrides, record=str(done.folder), objective=found)
    return found


def _print_sweep(folder: Path) -> int:
    """The aggregated table of a sweep; 0 if every job succeeded, 2 if only the user's mistakes failed, else 1."""
    from backdoorbench import console
    from backdoorbench.launchers import sweep
    from backdoorbench.reporting import record

    jobs = sweep.collect(folder)
    out = console.make_console()
    runs = [record.read(Path(left.record)) for left in jobs.values() if left.record]
    console.print_report(out, runs)
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
def _full_errors() -> Iterator[None]:
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


@contextmanager
def _logging() -> Iterator[None]:
    """This package's log lines are let through; where they go is decided where work starts."""
    package = logging.getLogger("backdoorbench")
    level, propagate = package.level, package.propagate
    package.setLevel(logging.DEBUG)
    package.propagate = False
    try:
        yield
    finally:
        package.setLevel(level)
        package.propagate = propagate


if __name__ == "__main__":
    sys.exit(main())
