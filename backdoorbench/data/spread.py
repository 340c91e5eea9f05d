"""Work on many small pieces from all cores: in processes where there is much of it, in threads else.

Pillow holds Python's lock for most of a small image's time, so that two threads decode no more of them than one. A process is
forked, works on numbered pieces until none is left, writes what it makes into memory that it shares, and reports each.
"""

import mmap
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from typing import Any, TypeVar

import numpy as np

from backdoorbench.data.raw import Pixels
from backdoorbench.errors import DataError

Said = TypeVar("Said")

LEAST = 24  # pieces from which processes are worth their start


def shared(shape: tuple[int, ...]) -> Pixels:
    """Memory that forked processes fill for the one that forked them."""
    return np.frombuffer(mmap.mmap(-1, max(1, int(np.prod(shape)))), np.uint8, int(np.prod(shape))).reshape(shape)


def spread(work: Callable[[int], Said], pieces: Sequence[int], cores: int) -> Iterator[tuple[int, Said]]:
    """(number, work(piece)) of each piece, as they are done.

    work  writes into `shared` or mapped memory, catches what goes wrong with a piece, and returns what can be pickled"""
    if cores > 1 and len(pieces) >= LEAST and can_fork():
        return by_processes(work, pieces, min(cores, len(pieces)))
    return by_threads(work, pieces, cores)


def can_fork() -> bool:
    """Whether a forked process is sound: not on macOS, nor where this is one whose children nobody would end."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def by_threads(work: Callable[[int], Said], pieces: Sequence[int], cores: int) -> Iterator[tuple[int, Said]]:
    with ThreadPoolExecutor(cores) as pool:
        try:
            yield from enumerate(pool.map(work, pieces))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a stop must not wait for the rest
            raise


def by_processes(work: Callable[[int], Said], pieces: Sequence[int], cores: int) -> Iterator[tuple[int, Said]]:
    """This process works too; the others report to it."""
    context = multiprocessing.get_context("fork")
    turns = Turns(context.Value("l", 0), len(pieces))
    running: dict[Any, Any] = {}
    try:
        for _ in range(cores - 1):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=report, args=(work, pieces, turns, theirs), daemon=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, none of which the fork needs
                process.start()
            theirs.close()  # so that the line ends when the process does
            running[ours] = process
        for number in turns:
            yield number, work(pieces[number])
            yield from heard(running, 0)
        while running:
            yield from heard(running, None)
    finally:
        for process in running.values():
            process.kill()
            process.join()


class Turns:
    """The numbers of pieces, each of which one process gets."""

    def __init__(self, counter: Any, count: int) -> None:
        self.counter, self.count = counter, count

    def __iter__(self) -> Iterator[int]:
        while True:
            with self.counter.get_lock():
                number = self.counter.value
                self.counter.value = number + 1
            if number >= self.count:
                return
            yield number


def heard(running: dict[Any, Any], timeout: float | None) -> Iterator[Any]:
    """What processes have reported; those that have ended are taken out. timeout: seconds to wait; None: until one does"""
    for line in connection.wait(list(running), timeout):
        assert isinstance(line, connection.Connection)
        try:
            yield line.recv()
        except EOFError:
            ended = running.pop(line)
            ended.join()
            refuse_end(ended.exitcode)


def report(work: Callable[[int], Said], pieces: Sequence[int], turns: Turns, line: connection.Connection) -> None:
    """Carries out pieces and says what came of each; ends when nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the one who forked
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        for number in turns:
            line.send((number, work(pieces[number])))
    except BrokenPipeError:
        return


def refuse_end(code: int | None) -> None:
    """Raises DataError where a process was ended before its work was."""
    if code is not None and code < 0:
        raise DataError(
            f"a process that decodes images was ended by signal {-code}, as happens where memory runs out. Run again with more "
            f"memory left, or with fewer other processes."
        )
    if code:
        raise RuntimeError(f"a process that decodes images ended with code {code}; its traceback is above")
