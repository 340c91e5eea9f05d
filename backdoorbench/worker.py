"""One job of a pool, in a process of its own: `python -m backdoorbench.worker FOLDER`, started by the launcher.

FOLDER holds config.json, the resolved configuration; the job leaves job.json there. What it prints is its log.
"""

import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backdoorbench import cli, progress
from backdoorbench.config import read_json
from backdoorbench.launchers.link import VARIABLE, Link, attach

if TYPE_CHECKING:
    from backdoorbench.pipeline import Run

SECONDS = 0.5  # between two messages, at least


class Reporter:
    """Tasks as before, and told to the launcher."""

    def __init__(self, inner: progress.Reporter, link: Link) -> None:
        self.inner, self.link = inner, link
        self.run: Run | None = None

    def open(self, name: str, total: int, unit: str, steps: int) -> progress.Task:
        return Told(self, self.inner.open(name, total, unit, steps), f"{name} {unit}", total, steps)

    def scores(self) -> dict[str, float | None]:
        """The latest ca, asr and ra: of the learning curve, else of a model that was judged."""
        if self.run is None:
            return {}
        if self.run.purified is None and self.run.curve:
            return {name: self.run.curve[-1][name] for name in ("ca", "asr", "ra")}
        judged = self.run.purified or self.run.infected
        return {"ca": judged.ca, "asr": judged.asr, "ra": judged.ra} if judged else {}


class Told:
    """A task whose progress goes to the launcher now and then."""

    def __init__(self, reporter: Reporter, inner: progress.Task, name: str, total: int, steps: int) -> None:
        self.reporter, self.inner, self.name, self.total, self.steps = reporter, inner, name, total, steps
        self.done, self.start, self.sent = 0, time.monotonic(), 0.0

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.inner.advance(steps, **figures)
        self.done += steps
        now = time.monotonic()
        if now - self.sent >= SECONDS and self.done:
            self.sent = now
            left = (now - self.start) / self.done * (self.total * self.steps - self.done)
            part = f"{self.name} {min(self.done // self.steps + 1, self.total)}/{self.total}"
            self.reporter.link.send(part=part, left=round(left, 1), scores=self.reporter.scores())

    def close(self) -> None:
        self.inner.close()


def main(folder: Path) -> int:
    """Carries out the job in `folder`; 0 if it succeeded."""
    link = attach()
    link.watch()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended as by Ctrl-C: the record says so
    job = read_json(folder / "config.json")
    print(f"bdx {shlex.join(job['overrides'])}")
    following = {"planned": "infect", "infect": "purify", "purify": "store"}
    reporter: Reporter | None = None

    def watch(run: "Run", stage: str) -> None:
        nonlocal reporter
        if reporter is None:
            reporter = Reporter(progress.LogReporter(), link)
            reporter.inner = progress.install(reporter)
            reporter.run = run
        link.send(stage=following[stage], scores=reporter.scores())

    try:
        return int(cli.sweep_job(job["config"], folder, job["overrides"], watch) is None)
    except KeyboardInterrupt:
        print("bdx: interrupted", file=sys.stderr)
        return cli.INTERRUPTED


if __name__ == "__main__":
    if len(sys.argv) != 2 or VARIABLE not in os.environ:
        sys.exit("bdx: this module is started by hydra/launcher=pool, not by hand")
    sys.exit(main(Path(sys.argv[1])))
