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

LEAST = 4  # pieces from which processes are worth their start


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
    context = multiprocessing.get_context("fork")
    turn = context.Value("l", 0)
    running: dict[Any, Any] = {}
    try:
        for _ in range(cores):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=report, args=(work, pieces, turn, theirs), daemon=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the fork never touches
                process.start()
            theirs.close()  # so that the line ends when the process does
            running[ours] = process
        while running:
            for line in connection.wait(list(running)):
                assert isinstance(line, connection.Connection)
                try:
                    yield line.recv()
                except EOFError:
                    ended = running.pop(line)
                    ended.join()
                    refuse_end(ended.exitcode)
    finally:
        for process in running.values():
            process.kill()
            process.join()


def report(work: Callable[[int], Said], pieces: Sequence[int], turn: Any, line: connection.Connection) -> None:
    """Carries out pieces, the next one that nobody has, and says so; ends when nobody listens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the one who forked
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        while True:
            with turn.get_lock():
                number = turn.value
                turn.value = number + 1
            if number >= len(pieces):
                return
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
