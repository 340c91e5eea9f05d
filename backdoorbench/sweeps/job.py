"""One run with what it prints, and one job of a sweep: whatever becomes of it is left in its folder."""

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.errors import BdxError
from backdoorbench.progress import logging_on, outlasting_readers
from backdoorbench.sweeps.sweep import SweepStopped, leave

if TYPE_CHECKING:  # torch is imported only when work starts
    from backdoorbench.pipeline.job import Job
    from backdoorbench.storage.record import Run

LAUNCHERS = ("submitit",)  # packages of launchers that set handlers of signals
Watch = Callable[["Run", str], None]  # told the run so far, and the stage that ended


def carry_out(resolved: dict[str, Any], watch: Watch | None = None, *, alone: bool = True) -> "Job":
    """Carries out one configuration with its console output.

    watch  told the run and its stage too; alone: whether it is no job of a sweep"""
    from backdoorbench import screen
    from backdoorbench.pipeline import job, outcome
    from backdoorbench.reporting.rows import heading

    out = screen.make_console()

    def announce(run: "Run", stage: str) -> None:
        if stage == "planned":
            out.print(f"\n  {heading(run)}", style="bold", markup=False)
        elif stage != "curve":
            out.print(outcome.stage_line(run, stage), markup=False)
        if watch is not None:
            watch(run, stage)

    with screen.showing(out, resolved["runtime"]["progress"]):
        done = job.carry_out(resolved, announce, alone=alone)
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
            done = carry_out(resolved, watch, alone=False)
    except KeyboardInterrupt:
        leave(place, overrides, "interrupted", error="was interrupted")
        raise
    except BaseException as error:
        _leave_failure(error, place, overrides)
        if not isinstance(error, Exception) and not _is_a_methods(error):
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
    said = record.failure(error)
    leave(place, overrides, "failed", error=said, mistake=mistake)
    with outlasting_readers():
        print(f"bdx: job {place.name} failed: {said}", file=sys.stderr)
        if not mistake:
            traceback.print_exc()


def _is_a_methods(error: BaseException) -> bool:
    """Whether a method called sys.exit, which is that job's failure and no matter of the others. A launcher's handlers of signals
    call it too, where a job is to end and to be submitted again."""
    if not isinstance(error, SystemExit):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] not in LAUNCHERS
