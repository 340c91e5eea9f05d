"""Folders addressed by the settings that made them: names cannot collide or lie. Knows nothing of models.

A folder is written beside its place and renamed into it, under a file lock: what can be read is complete, and two
processes that want the same thing make it once.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from backdoorbench.errors import StorageError

log = logging.getLogger(__name__)

KEY_LENGTH = 12  # hexadecimal digits of a SHA-256: one in 2**48


def key(kind: str, settings: Mapping[str, Any]) -> str:
    """The address of what `settings` make: the start of a SHA-256 over their sorted JSON. 1 and 1.0 are the same number."""
    text = json.dumps([kind, canonical(settings)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def canonical(value: Any) -> Any:
    """`value` with its numbers written one way: a float without a fraction is a whole number."""
    if isinstance(value, Mapping):
        return {str(name): canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(path: Path) -> str:
    """SHA-256 over the names and bytes of the files at or below a folder, hexadecimal."""
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    listed = "".join(f"{name}\0{file_digest(file)}\n" for name, file in files)
    return hashlib.sha256(os.fsencode(listed)).hexdigest()


def obtain(folder: Path, make: Callable[[Path], None], waiting: str) -> bool:
    """`folder`, complete: found, or written by `make(temporary folder)` and renamed. Returns whether it was found.

    waiting  what to say, once, while another process makes it
    """
    if folder.is_dir():
        with suppress(OSError):  # its own time says when it was last wanted, where one may write that
            os.utime(folder)
        return True
    with locked(lock_of(folder), waiting):
        if folder.is_dir():
            return True
        for stale in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        with storage_errors(folder.parent):
            partial.mkdir(parents=True)
        try:
            make(partial)
            with storage_errors(folder.parent):
                os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return False


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Holds the file lock at `path`; says `waiting` once where another process holds it."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info(waiting)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_of(folder: Path) -> Path:
    """The lock file of what `obtain` makes."""
    return folder.with_name(folder.name + ".lock")


def is_held(path: Path) -> bool:
    """Whether a process holds the file lock at `path`; nothing is made where there is none."""
    if not path.is_file():
        return False
    with _seized(path) as seized:
        return not seized


def discard(folder: Path, before: float) -> bool:
    """Removes what `obtain` made, unless a process makes it now or wanted it after `before` (seconds since the epoch).

    Returns whether it is gone. It is renamed first, so that nobody reads half of it."""
    with _seized(lock_of(folder)) as seized:
        if not seized or not folder.is_dir() or folder.stat().st_mtime > before:
            return False
        with storage_errors(folder.parent):
            gone = folder.rename(folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}"))
            shutil.rmtree(gone)
    return True


@contextmanager
def _seized(path: Path) -> Iterator[bool]:
    """The file lock at `path` without waiting: whether it is ours."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, PermissionError):  # what one may not lock may be in use
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_text(path: Path, text: str) -> None:
    """`text` in the file at `path`, whole or not at all."""
    with storage_errors(path.parent):
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, whole or not at all; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def link(existing: Path, place: Path) -> bool:
    """Makes `place` another name of the file `existing`; False where the file system cannot."""
    try:
        os.link(existing, place)
    except OSError:
        return False
    return True


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns "no space left" and "not writable" into a StorageError that names `folder`."""
    try:
        yield
    except Exception as error:  # safetensors wraps the system's error in its own type
        number = getattr(error, "errno", None)
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        refused = number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
        if full:
            raise StorageError(
                f"no space is left on the disk of {folder}. Nothing finished was lost; free some space (infected models "
                f"lie in cache/infection/ of the outputs folder) or set runtime.outputs to another disk, then repeat the "
                f"command: it goes on where it stopped."
            ) from None
        if refused:
            raise StorageError(
                f"{folder} cannot be written ({os.strerror(number or errno.EACCES)}). Set runtime.outputs to a folder you "
                f"may write to."
            ) from None
        raise
