"""How long work says how far it is, without knowing who watches.

Work opens a `task` and advances it; what is mostly over in a moment, such as a judgement, opens an `aside`. The console
installs a reporter that draws bars; without one, and in pipes and log files, a task logs one line each fifth of its way, and
an early one where a fifth is long in coming. Work never ends because nobody reads what it prints.
"""

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol, TextIO, TypeVar, cast

from backdoorbench.errors import paragraph

log = logging.getLogger(__name__)

Item = TypeVar("Item")

EARLY = 10.0  # seconds after which a task says how long it will take, though it has not come a fifth of its way


class Task(Protocol):
    """One piece of work under way."""

    def advance(self, steps: int = 1, **figures: float) -> None:
        """`steps` more are done; `figures` (loss=0.31, images_per_second=812.0) are the latest known values."""

    def close(self) -> None:
        """The work has ended, finished or not."""


class Reporter(Protocol):
    """Whoever shows tasks to a person."""

    def open(self, name: str, total: int, unit: str, steps: int, done: int) -> Task:
        """A new task of `total` units ("epoch", "image"), each of `steps` steps; `done` steps were done before it, by another
        process, and say nothing of how long the rest takes."""


class LoggedTask:
    """A task that logs a line each fifth of its way, with the time it has left; the first after EARLY seconds at the latest, and
    one at the end of the first unit from then on, which has figures."""

    def __init__(self, name: str, total: int, unit: str, steps: int, done: int = 0) -> None:
        self.name, self.total, self.unit, self.steps = name, total, unit, steps
        self.done, self.before, self.start = done, done, time.monotonic()
        self.reported, self.is_silent, self.is_unsaid = self._fifth(), True, True

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.done += steps
        fifth = self._fifth()
        spent = time.monotonic() - self.start
        whole, part = divmod(self.done, self.steps)
        is_late = spent >= EARLY
        if fifth > self.reported or (is_late and self.is_silent and whole and not part):
            self.reported, self.is_silent, self.is_unsaid = fifth, False, False
            self._say(f"{self.unit} {whole}/{self.total}", spent, figures)
        elif is_late and self.is_unsaid:
            self.is_unsaid = False
            self._say(f"in {self.unit} {whole + 1}/{self.total}", spent, {})

    def _say(self, where: str, spent: float, figures: Mapping[str, float]) -> None:
        left = spent / (self.done - self.before) * (self.total * self.steps - self.done)
        shown = "".join(f", {describe(key, value)}" for key, value in figures.items())
        log.info(f"{self.name}: {where}{shown}, {spent:.0f} s, {left:.0f} s left")

    def close(self) -> None:
        pass

    def _fifth(self) -> int:
        """Of whole units: figures come with their last step."""
        return self.done // self.steps * 5 // max(self.total, 1)


class LogReporter:
    def open(self, name: str, total: int, unit: str, steps: int, done: int) -> Task:
        return LoggedTask(name, total, unit, steps, done)


def forgive_terminals() -> None:
    """What standard output cannot write, an ASCII terminal an arrow, becomes a question mark there instead of an error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="replace")


_reporter: Reporter = LogReporter()


def install(reporter: Reporter) -> Reporter:
    """Shows tasks through `reporter` from now on; returns the one it replaces."""
    global _reporter
    _reporter, previous = reporter, _reporter
    return previous


@contextmanager
def task(name: str, total: int, unit: str, steps: int = 1, done: int = 0) -> Iterator[Task]:
    """A task that is closed whatever happens: `with task("decode", 60000, "image") as work: work.advance(100)`.

    steps  parts of a unit, where it is advanced by parts (the batches of an epoch)
    done   steps that another process did before, where it goes on from there
    """
    work = _reporter.open(name, total, unit, steps, done)
    try:
        yield work
    finally:
        work.close()


class Aside:
    """A task that nobody is told of before it has lasted EARLY seconds: for work that many runs are through with in a moment."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self.start = 0, time.monotonic()
        self.work: Task | None = None

    def advance(self, steps: int = 1, **figures: float) -> None:
        self.done += steps
        if self.work is not None:
            self.work.advance(steps, **figures)
        elif self.done < self.total and time.monotonic() - self.start >= EARLY:
            self.work = _reporter.open(self.name, self.total, self.unit, 1, self.done)

    def close(self) -> None:
        if self.work is not None:
            self.work.close()


@contextmanager
def aside(name: str, total: int, unit: str) -> Iterator[Task]:
    """A task that is shown once it turns out to be long, and closed whatever happens."""
    work = Aside(name, total, unit)
    try:
        yield work
    finally:
        work.close()


def counted(items: Sequence[Item], name: str, unit: str) -> Iterator[Item]:
    """The items, one after another; each is done when the next is asked for."""
    with task(name, len(items), unit) as work:
        for item in items:
            yield item
            work.advance()


def describe(key: str, value: float) -> str:
    """`loss 0.312`, `1,204 images/s`."""
    if key.endswith("_per_second"):
        return f"{value:,.0f} {key.removesuffix('_per_second')}/s"
    return f"{key} {value:.3f}"


class Unshown(logging.Handler):
    """Warnings before work starts, or where none does: a line on standard error, as an error is told. Whatever else handles
    them shows them better."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger("backdoorbench").handlers == [self]:
            print(f"bdx: {paragraph(record.getMessage())}", file=sys.stderr)


@contextmanager
def logging_on() -> Iterator[None]:
    """This package's log lines are let through; where they go is decided where work starts."""
    package = logging.getLogger("backdoorbench")
    level, propagate, unshown = package.level, package.propagate, Unshown(logging.WARNING)
    package.setLevel(logging.DEBUG)
    package.propagate = False
    package.addHandler(unshown)
    try:
        yield
    finally:
        package.removeHandler(unshown)
        package.setLevel(level)
        package.propagate = propagate


# ---- readers who leave ----------------------------------------------------------------------------------------------

GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # of a pipe, a terminal, a socket that nobody reads any more


class Outlasting:
    """A text stream whose reader may leave: what is printed from then on is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._bearing():
            self.stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        with self._bearing():
            self.stream.writelines(lines)

    def flush(self) -> None:
        with self._bearing():
            self.stream.flush()

    @contextmanager
    def _bearing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise
            with suppress(OSError, ValueError):  # it may have no descriptor
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())  # for what is in its buffer, and for processes to come
                os.close(nowhere)


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """Work inside goes on where the reader of its output leaves (`bdx ... | head -1`, a closed terminal), or was never there."""
    kept = sys.stdout, sys.stderr
    with ExitStack() as opened:

        def outlasting(stream: TextIO | None) -> TextIO:
            if stream is None:  # as Python says that the descriptor is closed
                stream = opened.enter_context(open(os.devnull, "w"))
            return stream if isinstance(stream, Outlasting) else cast(TextIO, Outlasting(stream))

        sys.stdout, sys.stderr = map(outlasting, kept)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = kept
