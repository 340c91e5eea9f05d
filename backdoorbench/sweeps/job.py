"""One run with what it prints, and one job of a sweep: whatever becomes of it is left in its folder."""

import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.errors import BdxError
from backdoorbench.progress import logging_on, outlasting_readers
from backdoorbench.sweeps.sweep import Sweep, SweepStopped, leave

if TYPE_CHECKING:  # torch is imported only when work starts
    from backdoorbench.pipeline.job import Job
    from backdoorbench.storage.record import Run

Watch = Callable[["Run", str], None]  # told the run so far, and the stage that ended


def carry_out(resolved: dict[str, Any], watch: Watch | None = None) -> "Job":
    """Carries out one configuration with its console output.

    watch  told the run and its stage too"""
    from backdoorbench import screen
    from backdoorbench.pipeline import job, outcome
    from backdoorbench.reporting.rows import heading

    out = screen.make_console()
    screen.install(out, resolved["runtime"]["progress"])
    package = logging.getLogger("backdoorbench")
    handler = screen.ConsoleHandler(out)
    package.addHandler(handler)

    def announce(run: "Run", stage: str) -> None:
        if stage == "planned":
            out.print(f"\n  {heading(run)}", style="bold", markup=False)
        elif stage != "curve":
            out.print(outcome.stage_line(run, stage), markup=False)
        if watch is not None:
            watch(run, stage)

    try:
        done = job.carry_out(resolved, announce)
    finally:
        package.removeHandler(handler)
    outcome.print_outcome(out, done.run, done.folder, done.repeated)
    return done


def objective(run: "Run") -> float | None:
    """What a search over a defense's settings goes by: accuracy on the holdout, which a defender has. Never the test set."""
    found: float | None = run.purification.details.get("holdout_ca")
    return found


def carry_out_job(
    resolve: Callable[[], dict[str, Any]], place: Path, overrides: Sequence[str], watch: Watch | None = None
) -> float | None:
    """One job of a sweep: whatever happens is left in `place` for the table at the end. Its objective.

    resolve  makes its configuration"""
    stops = False
    try:
        leave(place, overrides, "begun")
        resolved = resolve()
        stops = resolved["fail_fast"]
        with logging_on(), outlasting_readers():  # a launcher's worker does not come through the command line
            done = carry_out(resolved, watch)
    except KeyboardInterrupt:
        leave(place, overrides, "interrupted", error="interrupted")
        raise
    except BaseException as error:
        _leave_failure(error, place, overrides)
        if not isinstance(error, Exception) and not _ends_itself_alone(error):
            raise
        if stops:
            raise SweepStopped from None
        return None
    found = objective(done.run)
    leave(place, overrides, "done", record=done.folder, objective=found)
    return found


def _leave_failure(error: BaseException, place: Path, overrides: Sequence[str]) -> None:
    from backdoorbench.storage import record

    mistake = isinstance(error, BdxError)
    leave(place, overrides, "failed", error=record.failure(error), mistake=mistake)
    with outlasting_readers():
        print(f"bdx: job {place.name} failed: {error}", file=sys.stderr)
        if not mistake:
            traceback.print_exc()


def _ends_itself_alone(error: BaseException) -> bool:
    """Whether a call of sys.exit is just another failure: in the sweep's own process, whose other jobs go on. Those of launchers
    are the launchers' to end."""
    return isinstance(error, SystemExit) and Sweep.current().folder is not None
