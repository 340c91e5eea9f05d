"""One configuration carried out and recorded: found if it was done before, written down if it fails."""

import copy
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from backdoorbench.config import plugins
from backdoorbench.config.compose import Plain
from backdoorbench.config.reached import is_module
from backdoorbench.errors import BdxError
from backdoorbench.models import checkpoint
from backdoorbench.pipeline import execute, plan
from backdoorbench.pipeline.environment import environment
from backdoorbench.pipeline.execute import Outcome
from backdoorbench.pipeline.infections import describe_purified
from backdoorbench.pipeline.plan import Plan
from backdoorbench.reporting import formats, grids, picture, rows
from backdoorbench.storage import record, store
from backdoorbench.storage.outputs import Outputs
from backdoorbench.storage.record import Run
from backdoorbench.trackers.base import tracked

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A finished run, the folder of its record, and whether it had been done before."""

    run: Run
    folder: Path
    repeated: bool


def quiet(run: Run, stage: str) -> None:
    """Announces nothing."""


def carry_out(resolved: Plain, announce: Callable[[Run, str], None] = quiet, *, alone: bool = True) -> Job:
    """Runs a resolved configuration, or finds its finished run.

    announce  told (the run so far, stage) as a stage ends (planned, infect, detect, purify, after), and at a point of the curve
              (curve)
    alone     whether it is no job of a sweep, whose others may use the plugins that it does not

    A failure is recorded with its error and log, then raised; so is an interrupt."""
    made = plan.plan(resolved)
    if alone:
        plan.refuse_unused_plugins(made.config["plugins"], made.plugins)
    if done := _done(made):
        return done
    with store.locked(made.outputs.lock(made.key), f"another process does this run ({made.key})"):
        if done := _done(made):
            return done
        mark_lost(made.outputs, made.key, "ended without a word: killed, or the machine went down")
        folder = record.new_folder(made.outputs, made.label, made.key)
        config = copy.deepcopy(made.config)
        run = Run(made.key, "running", made.label, config, started=datetime.now(UTC).isoformat(timespec="seconds"))
        run.environment, run.content = environment(made), made.content
        with log_file(folder / "log.txt"):
            record.write(run, folder)
            keep_source(made, folder / "plugins")
            announce(run, "planned")
            try:
                with tracked(made.tracker, run, folder) as tell:

                    def end(stage: str) -> None:
                        tell(stage)
                        announce(run, stage)

                    keep(execute.execute(made, run, end), run, folder, made)
            except BaseException as error:
                run.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                run.error = record.failure(error)
                log.debug(traceback.format_exc())
                with_what_remains(run, folder)
                raise
    return Job(run, folder, repeated=False)


def keep(outcome: Outcome, run: Run, folder: Path, made: Plan) -> None:
    """Everything a finished run leaves in its folder; the record says `done` only when the rest is there."""
    store.write_tensors(folder / "predictions.safetensors", outcome.predictions)
    weights, known = folder / "purified.safetensors", outcome.weights
    if known is None or checkpoint.description(known) is None or not store.link(known, weights):
        checkpoint.save(outcome.purified, weights, describe_purified(made))
    if outcome.gallery is not None:
        picture.write_gallery(*outcome.gallery, folder / "triggered.png")
    for name, images in outcome.pictures.items():
        picture.write_row(images, folder / f"{name}.png", outcome.captions)
    run.status = "done"
    made_of = rows.aggregate([run])
    tables = [*grids.list_grids(made_of), *grids.detection_grids(rows.detections([run]))]
    tables += grids.after_grids(rows.afters([run]))
    store.write_text(folder / "table.md", "\n".join(map(formats.markdown, tables)))
    store.write_text(folder / "table.csv", formats.as_csv(made_of))
    record.write(run, folder)


def keep_source(made: Plan, folder: Path) -> None:
    """Writes down the modules of plugins that the run's key holds, as they were imported, and laid out so."""
    for name, file in made.source.items():
        if is_module(name):  # what they read may be large
            with store.storage_errors(folder):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(plugins.content(name, file))


def with_what_remains(run: Run, folder: Path) -> None:
    """Records a run that is not going to be done; where even that cannot be written, the first error matters more."""
    try:
        record.write(run, folder)
    except BdxError as error:
        log.warning(str(error))


def mark_lost(outputs: Outputs, key: str, error: str, status: str = "failed") -> None:
    """Records of this run that say `running` while nobody runs it any more: they failed, or were interrupted. The caller knows
    that nobody does."""
    for folder, run in record.readable(record.recorded(outputs, key)):
        if run.status == "running":
            run.status, run.error = status, error
            with_what_remains(run, folder)


def _done(made: Plan) -> Job | None:
    folder = None if made.config["rerun"] else record.find_done(made.outputs, made.key)
    return Job(record.read(folder), folder, repeated=True) if folder is not None else None


class LogFile(logging.FileHandler):
    """A log that ends no run, nor hides the reason why one ends: lines that a full disk does not take are lost."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # of lines that wait to be written
            super().close()


@contextmanager
def log_file(file: Path) -> Iterator[None]:
    """Whatever this package logs inside goes to `file` too, with times, debug lines included."""
    with store.storage_errors(file.parent):
        handler = LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.DEBUG)
    package = logging.getLogger("backdoorbench")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
