"""The jobs of a pool, each in a process of its own: `python -m backdoorbench.sweeps.worker`, started by the launcher.

It imports what every job needs, five to ten seconds of work, touches no device and starts no thread, and then forks a child
for each job it is told of. A job's folder holds config.json, the resolved configuration; the job leaves job.json there. What
it prints is its log.
"""

import json
import os
import select
import shlex
import signal
import socket
import sys
import time
import traceback
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from backdoorbench import progress
from backdoorbench.config.groups import GROUPS, STAGES
from backdoorbench.errors import FAILURE, INTERRUPTED
from backdoorbench.storage.store import read_json
from backdoorbench.sweeps.job import carry_out_job
from backdoorbench.sweeps.link import VARIABLE, Link
from backdoorbench.sweeps.sweep import SweepStopped

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

SECONDS = 0.5  # between two messages, at least


class Reporter:
    """Tasks as before, and told to the launcher."""

    def __init__(self, inner: progress.Reporter, link: Link) -> None:
        self.inner, self.link = inner, link
        self.run: Run | None = None

    def open(self, name: str, total: int, unit: str, steps: int, done: int) -> progress.Task:
        return Told(self, self.inner.open(name, total, unit, steps, done), f"{name} {unit}", total, steps, done)

    def scores(self) -> dict[str, float | None]:
        """The latest ca, asr and ra: of the learning curve, else of a model that was judged."""
        if self.run is None:
            return {}
        if self.run.purified is None and (curve := self.run.purification.curve):
            return {name: curve[-1][name] for name in ("ca", "asr", "ra")}
        judged = self.run.purified or self.run.infected
        return {"ca": judged.ca, "asr": judged.asr, "ra": judged.ra} if judged else {}


class Told:
    """A task whose progress goes to the launcher now and then."""

    def __init__(
        self, reporter: Reporter, inner: progress.Task, name: str, total: int, steps: int, done: int = 0
    ) -> None:
        self.reporter, self.inner, self.name, self.total, self.steps = reporter, inner, name, total, steps
        self.done, self.before, self.start, self.sent = done, done, time.monotonic(), 0.0

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.inner.advance(steps, **figures)
        self.done += steps
        now = time.monotonic()
        if now - self.sent >= SECONDS and self.done > self.before:
            self.sent = now
            left = (now - self.start) / (self.done - self.before) * (self.total * self.steps - self.done)
            part = f"{self.name} {min(self.done // self.steps + 1, self.total)}/{self.total}"
            self.reporter.link.send(part=part, left=round(left, 1), scores=self.reporter.scores())

    def close(self) -> None:
        self.inner.close()


def carry_out(folder: Path, link: Link) -> int:
    """Carries out the job in `folder`; 0 if it succeeded."""
    link.watch()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended as by Ctrl-C: the record says so
    job = read_json(folder / "config.json")
    print(f"process {os.getpid()}: bdx {shlex.join(job['overrides'])}")
    silent = {group.name: group.silent for group in GROUPS if group.silent}
    stages = [each for each in STAGES if job["config"][each.group]["name"] != silent.get(each.group)]
    following = dict(pairwise(["planned", *(each.name for each in stages), "store"]))
    reporter: Reporter | None = None

    def watch(run: "Run", stage: str) -> None:
        nonlocal reporter
        if reporter is None:
            reporter = Reporter(progress.LogReporter(), link)
            reporter.inner = progress.install(reporter)
            reporter.run = run
        begins = {"stage": following[stage]} if stage in following else {}  # a point of the curve begins none
        link.send(**begins, scores=reporter.scores())

    try:
        carry_out_job(lambda: job["config"], folder, job["overrides"], watch)
    except KeyboardInterrupt:
        print("bdx: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SweepStopped:
        return FAILURE
    return 0


def child(wanted: dict[str, Any], descriptor: int) -> NoReturn:
    """The forked process: one job, and the end."""
    code = FAILURE
    try:
        os.setsid()  # a group of its own, which ends as one
        os.environ.update(wanted["environment"])
        folder = Path(wanted["place"])
        with (folder / "log.txt").open("ab") as log:
            for standard in (1, 2):
                os.dup2(log.fileno(), standard)
        code = carry_out(folder, Link(socket.socket(fileno=descriptor)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def warm_up() -> None:
    """Imports what a job will."""
    from backdoorbench.pipeline import job, outcome  # noqa: F401


def serve(control: socket.socket) -> None:
    """Forks a child for each job that the launcher names, and tells it how they end, until the launcher is gone."""
    numbers: dict[int, int] = {}
    while True:
        if select.select([control], [], [], SECONDS / 5)[0]:
            said, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)  # one at a time: it waits for our answer
            if not said:
                return
            wanted = json.loads(said)
            pid = os.fork()
            if pid == 0:
                control.close()
                child(wanted, descriptors[0])
            os.close(descriptors[0])
            numbers[pid] = wanted["number"]
            tell(control, number=wanted["number"], pid=pid, code=None)
        while numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            tell(control, number=numbers.pop(pid), pid=pid, code=os.waitstatus_to_exitcode(status))


def tell(control: socket.socket, **facts: Any) -> None:
    Link(control).send(**facts)


if __name__ == "__main__":
    if VARIABLE not in os.environ:
        sys.exit("bdx: this module is started by hydra/launcher=pool, not by hand")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = socket.socket(fileno=int(os.environ.pop(VARIABLE)))
    warm_up()
    serve(line)
