"""What a person looks at: one console, progress bars, times. The same on a terminal and in a file, minus colour and motion."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Task as BarTask
from rich.text import Text

from backdoorbench import progress
from backdoorbench.progress import forgive_terminals

PIPED_WIDTH = 140  # a pipe has no width of its own


def make_console() -> Console:
    """The console on standard output; wide where nobody's window limits it."""
    forgive_terminals()
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


class ConsoleHandler(logging.Handler):
    """Log lines through the console, so that they do not tear a live bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, entry: logging.LogRecord) -> None:
        mark = "" if entry.levelno < logging.WARNING else f"{entry.levelname.lower()}: "
        self.console.print(Text(f"  {mark}{entry.getMessage()}"), style="dim" if not mark else "yellow")


class BarReporter:
    """Tasks as bars, with time left and the latest figures; a bar leaves when its task ends. There is one at a time: a task that
    begins within another is a part of it, and has none."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar: Bar | None = None

    def open(self, name: str, total: int, unit: str, steps: int, done: int) -> progress.Task:
        if self.bar is not None and self.bar.is_open:
            return Silent()
        self.bar = Bar(self.console, name, total, unit, steps, done)
        return self.bar


class Bar:
    def __init__(self, console: Console, name: str, total: int, unit: str, steps: int, done: int = 0) -> None:
        self.steps, self.total, self.unit = steps, total, unit
        columns: list[ProgressColumn] = [
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            _Count(self),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        ]
        self.progress = Progress(*columns, console=console, transient=True)
        self.task = self.progress.add_task(name, total=total * steps, completed=done, figures="")
        self.progress.start()
        self.is_open = True

    def advance(self, steps: int = 1, **figures: float) -> None:
        if figures:
            shown = ", ".join(progress.describe(key, value) for key, value in figures.items())
            self.progress.update(self.task, advance=steps, figures=shown)
        else:
            self.progress.update(self.task, advance=steps)

    def close(self) -> None:
        self.progress.stop()
        self.is_open = False


class _Count(ProgressColumn):
    """`epoch 3/20`."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: BarTask) -> Text:
        return Text(f"{self.bar.unit} {int(task.completed) // self.bar.steps}/{self.bar.total}")


class Silent:
    """Tasks that nobody watches."""

    def open(self, name: str, total: int, unit: str, steps: int, done: int) -> progress.Task:
        return self

    def advance(self, steps: int = 1, **figures: float) -> None:
        return

    def close(self) -> None:
        return


def install(console: Console, style: str) -> None:
    """Shows progress as `style` says: auto (bars on a terminal, lines elsewhere), lines, off."""
    if style == "off":
        progress.install(Silent())
    elif style == "auto" and console.is_terminal:
        progress.install(BarReporter(console))
    else:
        progress.install(progress.LogReporter())


@contextmanager
def showing(console: Console, style: str) -> Iterator[ConsoleHandler]:
    """This package's log lines and the progress of work inside, on the console; style: as `install` has it."""
    install(console, style)
    package, handler = logging.getLogger("backdoorbench"), ConsoleHandler(console)
    package.addHandler(handler)
    try:
        yield handler
    finally:
        package.removeHandler(handler)


def clock(seconds: float) -> str:
    """`0:07`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
