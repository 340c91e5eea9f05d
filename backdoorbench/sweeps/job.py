"""One run with what it prints, and one job of a sweep: whatever becomes of it is left in its folder."""

import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.errors import BdxError
from backdoorbench.progress import logging_on
from backdoorbench.sweeps.sweep import SweepStopped, leave

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
    resolved: dict[str, Any], folder: Path, overrides: Sequence[str], watch: Watch | None = None
) -> float | None:
    """One job of a sweep: whatever happens is left in `folder` for the table at the end. Its objective."""
    try:
        with logging_on():  # a launcher's worker does not come through the command line
            done = carry_out(resolved, watch)
    except Exception as error:
        mistake = isinstance(error, BdxError)
        leave(folder, overrides, error=f"{type(error).__name__}: {error}", mistake=mistake)
        print(f"bdx: job {folder.name} failed: {error}", file=sys.stderr)
        if not mistake:
            traceback.print_exc()
        if resolved["fail_fast"]:
            raise SweepStopped(folder.parent) from None
        return None
    found = objective(done.run)
    leave(folder, overrides, record=str(done.folder), objective=found)
    return found
