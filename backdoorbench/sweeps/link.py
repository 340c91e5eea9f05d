"""The line between a pool and one of its jobs: a socket that carries JSON lines up, and whose end is the end of the job.

A job whose launcher is gone, SIGKILL included, reads the end of the line and takes its process group with it. Between the
pool and the template that its jobs are forked from (see `backdoorbench.worker`) runs a line of the same kind.
"""

import contextlib
import json
import os
import select
import signal
import socket
import threading
from typing import Any

VARIABLE = "BDX_POOL"  # file descriptor of a template's end


class Link:
    """A job's end of the line."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end

    def send(self, **facts: Any) -> None:
        """Tells the launcher; a launcher that is gone is no matter of the job's."""
        with contextlib.suppress(OSError):
            self.end.sendall(json.dumps(facts).encode() + b"\n")

    def watch(self) -> None:
        """From now on this process, with its children, ends when the launcher does."""

        def wait() -> None:
            with contextlib.suppress(OSError):
                while self.end.recv(64):
                    pass
            os.killpg(0, signal.SIGKILL)

        threading.Thread(target=wait, name="launcher watch", daemon=True).start()


class Lines:
    """The launcher's end: what has arrived, line by line. `closed` once the other end is."""

    def __init__(self, end: socket.socket) -> None:
        self.end, self.rest, self.closed = end, b"", False
        end.setblocking(False)

    def read(self, wait: float = 0.0) -> list[dict[str, Any]]:
        """The messages that have arrived since the last call; waits up to `wait` seconds where there are none."""
        if wait:
            select.select([self.end], [], [], wait)
        try:
            while part := self.end.recv(1 << 16):
                self.rest += part
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:  # reset: the other end died with words unread
            self.closed = True
        *lines, self.rest = self.rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        self.end.close()
