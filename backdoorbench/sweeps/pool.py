"""`hydra/launcher=pool`: the jobs of a sweep on this machine, one fresh process each, a GPU each from a pool.

The processes are forked from a template that has imported torch and done nothing else: a job starts at once, and its
libraries lie in memory once. A job that dies costs itself alone. Jobs that need an infected model which another one is
training are put behind those that do not, so no worker waits for a lock. When the launcher ends, whatever the way, its jobs
end with it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from backdoorbench.config.build import convert
from backdoorbench.errors import check_range
from backdoorbench.storage import store
from backdoorbench.storage.record import AT_ONCE
from backdoorbench.sweeps import schedule, sweep
from backdoorbench.sweeps.link import VARIABLE, Lines
from backdoorbench.sweeps.schedule import Slot, Waiting

if TYPE_CHECKING:  # Hydra imports this file at every start: no torch here, and no rich
    from backdoorbench.sweeps.board import Board, Row, State
    from backdoorbench.sweeps.forecast import Ahead

TICK = 0.1  # seconds between two looks at the jobs
WORKER = "backdoorbench.sweeps.worker"  # the module that carries them out


class Child:
    """A job's process, with its line.

    code  how it ended, as subprocess tells it; None while it runs, or where nobody could tell"""

    def __init__(self, run: Ahead, slot: Slot, place: Path) -> None:
        self.run, self.slot, self.place = run, slot, place
        self.pid, self.ended = 0, False
        self.code: int | None = None
        ours, self.theirs = socket.socketpair()
        self.lines = Lines(ours)

    def signal(self, number: int) -> None:
        """To the job and all that it started."""
        if self.pid and not self.ended:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Template:
    """The process that the jobs are forked from."""

    def __init__(self, folder: Path, threads: int, at_once: int) -> None:
        with store.storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "template.txt"
        ours, theirs = socket.socketpair()
        self.end, self.lines = ours, Lines(ours)
        self.children: dict[int, Child] = {}
        with theirs, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", WORKER],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(threads) | {VARIABLE: str(theirs.fileno()), AT_ONCE: str(at_once)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends the jobs
            )

    def start(self, child: Child) -> None:
        """Forks a job; returns when it has a process."""
        with store.storage_errors(child.place):
            child.place.mkdir(parents=True, exist_ok=True)
        sweep.leave(child.place, child.run.overrides, "begun")
        store.write_json(child.place / "config.json", {"overrides": child.run.overrides, "config": child.run.config})
        self.children[child.run.number] = child
        devices = {"CUDA_VISIBLE_DEVICES": child.slot.gpu or ""}
        wanted = {"number": child.run.number, "place": str(child.place), "environment": devices}
        with child.theirs, suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.end, [json.dumps(wanted).encode() + b"\n"], [child.theirs.fileno()])
        while not child.pid:
            self.hear(wait=1.0)
            if self.lines.closed and not child.pid:
                raise RuntimeError(f"the pool's template ended before it started a job; its log: {self.log}")

    def hear(self, wait: float = 0.0) -> None:
        """Takes in which jobs were started, and how others ended."""
        for message in self.lines.read(wait):
            child = self.children[message["number"]]
            child.pid, child.code = message["pid"], message["code"]

    def stop(self) -> None:
        self.lines.close()  # it ends when its line does
        try:
            self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def environment(threads: int) -> dict[str, str]:
    """The environment of jobs: ours, the same imports, their share of the cores."""
    imports = [str(Path(entry).absolute()) for entry in sys.path]  # "" is the working directory
    cap = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {
        **os.environ,
        **{name: value for name, value in cap.items() if name not in os.environ},
        "PYTHONPATH": os.pathsep.join(imports),
        "PYTHONUNBUFFERED": "1",
    }


class Pool(Launcher):
    """See the yaml for the settings."""

    def __init__(self, gpus: Any, jobs_per_gpu: int, workers: int | None, grace: float) -> None:
        self.gpus, self.jobs_per_gpu, self.workers, self.grace = gpus, jobs_per_gpu, workers, grace
        convert(jobs_per_gpu, int, "hydra.launcher.jobs_per_gpu")
        convert(workers, int | None, "hydra.launcher.workers")
        convert(grace, float, "hydra.launcher.grace")
        check_range("hydra.launcher.jobs_per_gpu", jobs_per_gpu, 1)
        check_range("hydra.launcher.workers", 1 if workers is None else workers, 1)
        check_range("hydra.launcher.grace", grace, 0)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Carries out the jobs. Failures are left in the jobs' folders, for the table at the end; nothing is raised for them
        unless fail_fast asks for it."""
        from backdoorbench.screen import make_console
        from backdoorbench.sweeps.board import Board, Row

        folder, known = sweep.place_of(self.config.hydra), sweep.Sweep.current().runs
        if known is None:
            runs: Sequence[Ahead] = self.look(job_overrides, initial_job_idx)
        else:
            runs = known[initial_job_idx : initial_job_idx + len(job_overrides)]
        runtime = runs[0].config["runtime"]
        gpus = OmegaConf.to_object(self.gpus) if OmegaConf.is_config(self.gpus) else self.gpus
        chosen = schedule.choose_gpus(gpus, runtime["device"], visible_gpus())
        slots = schedule.make_slots(chosen, self.jobs_per_gpu, self.workers, schedule.cores())
        rows = {run.number: Row(run.number, run.name) for run in runs}
        with (
            Board(make_console(), list(rows.values()), runtime["progress"]) as board,
            ended_by_signals(signal.SIGTERM, signal.SIGHUP),
        ):
            _Batch(runs, slots, folder, rows, board, self.grace).carry_out()
        return [result(run, folder) for run in runs]

    def look(self, jobs: Sequence[Sequence[str]], first: int) -> list[Ahead]:
        """The runs, where the sweeper chooses them as it goes."""
        from backdoorbench.sweeps import forecast
        from backdoorbench.sweeps.compose import composer, job_environment

        composed = composer(self.hydra_context.config_loader, self.config)
        with job_environment(self.config):
            configs = [composed(job) for job in jobs]
        runs = forecast.look(jobs, configs, here=True)
        for run in runs:
            run.number += first
        return runs


class _Batch:
    """The jobs of one call of `launch`."""

    def __init__(
        self, runs: Sequence[Ahead], slots: list[Slot], folder: Path, rows: dict[int, Row], board: Board, grace: float
    ) -> None:
        self.runs = {run.number: run for run in runs}
        self.free, self.folder, self.rows, self.board, self.grace = slots, folder, rows, board, grace
        self.threads = schedule.threads_each(schedule.cores(), len(slots))
        self.at_once = min(len(slots), sum(run.done is None and run.error is None for run in runs))
        self.children: dict[Waiting, Child] = {}
        self.template: Template | None = None

    def carry_out(self) -> None:
        waiting = [job for run in self.runs.values() if (job := self.begin(run)) is not None]
        try:
            while waiting or self.children:
                while self.free and (job := schedule.next_job(waiting, self.children, Path.is_dir)) is not None:
                    waiting.remove(job)
                    self.start(job)
                time.sleep(TICK)
                self.hear()
        finally:
            self.stop()

    def hear(self) -> None:
        """Takes in what the jobs said, and which of them have ended."""
        assert self.template is not None
        self.template.hear()
        for job, child in list(self.children.items()):
            for message in child.lines.read():
                if said := self.rows[job.number].hear(message):
                    self.board.say(self.rows[job.number], said)
            if child.lines.closed and child.code is None:
                self.template.hear(wait=1.0)  # the template has not looked yet
            if child.lines.closed or child.code is not None:
                child.ended = True
                del self.children[job]
                self.free.insert(0, child.slot)
                self.end(child)

    def begin(self, run: Ahead) -> Waiting | None:
        """The job to wait for a slot; None where there is nothing to do for it."""
        place, row = self.folder / str(run.number), self.rows[run.number]
        if run.error is not None:
            sweep.leave(place, run.overrides, "failed", error=f"{type(run.error).__name__}: {run.error}", mistake=True)
            row.end("failed", str(run.error))
            self.board.say(row, f"failed: {run.error}")
            self.fail(run)
            return None
        if run.done is not None:
            from backdoorbench.storage import record
            from backdoorbench.sweeps.job import objective

            sweep.leave(place, run.overrides, "done", record=run.done, objective=objective(record.read(run.done)))
            row.end("found")
            self.board.say(row, "done before; rerun=true repeats it")
            return None
        return Waiting(run.number, run.key, tuple(run.trainings()))

    def start(self, job: Waiting) -> None:
        run, slot = self.runs[job.number], self.free.pop(0)
        row = self.rows[job.number]
        row.start()
        if self.template is not None and self.template.lines.closed:
            self.template.stop()
            self.template = None
        if self.template is None:
            self.template = Template(self.folder, self.threads, self.at_once)
        self.children[job] = Child(run, slot, self.folder / str(job.number))
        self.template.start(self.children[job])
        self.board.say(row, f"starts on {slot.name}")

    def end(self, child: Child) -> None:
        """Takes note of how a job ended."""
        from backdoorbench.pipeline.job import mark_lost

        child.lines.close()
        run, row, code = child.run, self.rows[child.run.number], child.code
        if not sweep.has_ended(child.place):
            how = "ended" if code is None else f"ended with exit code {code}"
            if code is not None and code < 0:
                how = f"was killed by {signal.Signals(-code).name}"
            hint = "; memory may have run out" if code == -signal.SIGKILL else ""
            error = f"the process {how} before its run was over{hint}. Its log: {child.place / 'log.txt'}"
            sweep.leave(child.place, run.overrides, "failed", error=error)
            mark_lost(run.outputs, run.key, error)
        left = sweep.Left.read(child.place / sweep.WORD)
        if left.status == "done":
            row.end("done")
            self.board.say(row, f"done in {row.seconds:.0f} s{row.figures()}")
            return
        state: State = "interrupted" if left.status == "interrupted" else "failed"
        row.end(state, left.error or "")
        self.board.say(row, f"{state}: {left.error}; log {child.place / 'log.txt'}")
        self.fail(run)

    def fail(self, run: Ahead) -> None:
        if run.config["fail_fast"]:
            raise sweep.SweepStopped(self.folder)

    def stop(self) -> None:
        """Ends the jobs that still run: SIGTERM, and SIGKILL after `grace` seconds, or at once when asked again."""
        from backdoorbench.pipeline.job import mark_lost

        if self.template is None:
            return
        try:
            for child in self.children.values():
                child.signal(signal.SIGTERM)
            deadline = time.monotonic() + self.grace
            left = list(self.children.values())
            while left and time.monotonic() < deadline:
                time.sleep(TICK)
                for child in left:
                    child.lines.read()
                    child.ended = child.lines.closed
                left = [child for child in left if not child.ended]
        finally:
            for child in self.children.values():
                child.signal(signal.SIGKILL)
            self.template.stop()
            for child in self.children.values():
                child.lines.close()
                if not sweep.has_ended(child.place):  # it had no time to say so
                    sweep.leave(child.place, child.run.overrides, "interrupted", error="was interrupted")
                    mark_lost(child.run.outputs, child.run.key, "interrupted", "interrupted")


def result(run: Ahead, folder: Path) -> JobReturn:
    """What Hydra's sweepers want to know of a job. A failed one counts as completed: its folder tells the rest."""
    left = sweep.Left.read(folder / str(run.number) / sweep.WORD)
    done = JobReturn(overrides=run.overrides, cfg=OmegaConf.create(run.config), status=JobStatus.COMPLETED)
    done.return_value = left.objective
    return done


def visible_gpus() -> list[str]:
    """The GPUs this process sees, as CUDA_VISIBLE_DEVICES names them; no context is made on any."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.replace(" ", "").split(",") if name and name != "-1"]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())] if torch.version.cuda else []


@contextmanager
def ended_by_signals(*numbers: signal.Signals) -> Iterator[None]:
    """These signals end what is inside as Ctrl-C does: a pool its jobs first, and a run with its record written. One that is
    ignored, as under nohup, stays so."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    kept = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
