"""Folders addressed by the settings that made them: names cannot collide or lie. Knows nothing of models.

A folder is written beside its place and renamed into it, under a file lock: what can be read is complete, and two
processes that want the same thing make it once. It carries a digest of each of its files, which is compared when it is read: a
damaged one is set aside and made again.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock, Timeout

from backdoorbench.config.walk import files_below
from backdoorbench.errors import StorageError

if TYPE_CHECKING:  # reports start without torch
    from torch import Tensor

T = TypeVar("T")
log = logging.getLogger(__name__)

DIGESTS = "digests.json"  # in a cached folder: file -> SHA-256
CHECKED = ".checked.json"  # in one that is large: the state of its files when they were last compared
DAY = 86400.0  # seconds for which that is believed
ASIDE = ".damaged-"  # in the name of what was set aside, before the time
TIME = "%Y%m%d-%H%M%S"  # of that time
REFUSALS = (  # what the system says of a place that cannot be written
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG,
)  # fmt: skip
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
    files = sorted((file.relative_to(path).as_posix(), file) for file in files_below(path))
    listed = "".join(f"{name}\0{file_digest(file)}\n" for name, file in files)
    return hashlib.sha256(os.fsencode(listed)).hexdigest()


def obtain(folder: Path, make: Callable[[Path], object], read: Callable[[Path], T], waiting: str) -> tuple[T, bool]:
    """What `read` finds in `folder`, complete, and whether it was there; else `make(temporary folder)` writes it, and it is
    renamed. One that `read` calls Damaged is set aside, and made again.

    waiting  what to say, once, while another process makes it
    """
    with suppress(Damaged):
        if os.path.lexists(folder):
            return _wanted(folder, read), True
    with locked(lock_of(folder), waiting):
        if os.path.lexists(folder):  # another process may have made it meanwhile
            try:
                return _wanted(folder, read), True
            except Damaged as damage:
                set_aside(folder, damage.reason)
        for stale in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        with storage_errors(folder.parent):
            partial.mkdir(parents=True)
        try:
            make(partial)
            seal(partial)
            with storage_errors(folder.parent):
                os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return read(folder), False


def _wanted(folder: Path, read: Callable[[Path], T]) -> T:
    """What `read` finds; the folder's own time says when it was last wanted, where one may write that."""
    with suppress(OSError):
        os.utime(folder)
    return read(folder)


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Holds the file lock at `path`; says `waiting` once where another process holds it."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
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
    if not folder.is_dir():
        return False
    with _seized(lock_of(folder)) as seized:
        if not seized or not folder.is_dir() or folder.stat().st_mtime > before:
            return False
        with storage_errors(folder.parent):
            gone = folder.rename(folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}"))
            shutil.rmtree(gone)
    return True


def _lock(path: Path) -> FileLock:
    """The file lock at `path`, whose file has the permissions that any new file there has: FileLock's own only its owner may
    write."""
    path.open("ab").close()
    return FileLock(path)


@contextmanager
def _seized(path: Path) -> Iterator[bool]:
    """The file lock at `path` without waiting: whether it is ours."""
    try:
        lock = _lock(path)
        lock.acquire(timeout=0)
    except (Timeout, PermissionError):  # what one may not lock may be in use
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


# ---- what was written, and what is read -----------------------------------------------------------------------------


class Damaged(StorageError):
    """Something in the cache that is not what was written there; reason: what of it, in a few words."""

    def __init__(self, place: Path, reason: str) -> None:
        super().__init__(f"{place} is damaged ({reason}). A run that needs it sets it aside and makes it again.")
        self.reason = reason


def seal(folder: Path) -> None:
    """Writes down the digests of all files below `folder`: the last that is written there."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    write_text(folder / DIGESTS, _digests({name: file_digest(folder / name) for name in names if name != CHECKED}))


def _digests(found: Mapping[str, str]) -> str:
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def check(folder: Path, once_a_day: bool = False) -> bool:
    """Compares every file below `folder` with its digest. False where the folder has none, being from before there were any.

    once_a_day  for large ones: files of the size and times that they had when they were last compared, less than a day ago,
                are believed

    Raises Damaged where one differs or is missing."""
    if not folder.is_dir():
        raise Damaged(folder, "it is no folder")
    if not os.path.lexists(folder / DIGESTS):
        log.debug(f"{folder} is from before there were digests; it is read unchecked")
        return False
    with _readable(folder):
        try:
            text = (folder / DIGESTS).read_bytes().decode()
            listed = json.loads(text)
            is_whole = isinstance(listed, dict) and _digests(listed) == text
        except (ValueError, IsADirectoryError):
            is_whole = False
        if not is_whole:
            raise Damaged(folder, f"{DIGESTS} is not as it was written")
        state = _state(folder, [DIGESTS, *listed]) if once_a_day else None
        if state is not None and _believed(folder / CHECKED, state):
            return True
        for name, digest in listed.items():
            try:
                if file_digest(folder / name) == digest:
                    continue
                reason = "is not as it was written"
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
                reason = "is missing"
            raise Damaged(folder, f"{name} {reason}")
    if state is not None:
        with suppress(StorageError):  # who may only read compares each time
            write_text(folder / CHECKED, state)
    return True


def _state(folder: Path, names: Iterable[str]) -> str | None:
    """Size and times of the files, as JSON; None where one is missing. A change moves the ctime, which nobody can set."""
    try:
        stats = {name: (folder / name).stat() for name in names}
    except (OSError, ValueError):
        return None
    return json.dumps({name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in stats.items()})


def _believed(file: Path, state: str) -> bool:
    try:
        return 0 <= time.time() - file.stat().st_mtime < DAY and file.read_bytes() == state.encode()
    except OSError:
        return False


@contextmanager
def reading(folder: Path, once_a_day: bool = False) -> Iterator[None]:
    """What is read inside comes from a folder that `check` has passed. Raises Damaged, too, where one without digests cannot be
    read, or where the folder goes away meanwhile."""
    is_sealed = check(folder, once_a_day)
    try:
        with _readable(folder):
            yield
    except (OSError, ValueError, KeyError) as error:
        if is_sealed and folder.is_dir():
            raise
        said = str(error).partition("\n")[0]
        raise Damaged(folder, f"it has no {said}" if isinstance(error, KeyError) else said) from None


@contextmanager
def _readable(place: Path) -> Iterator[None]:
    """Turns "permission denied" into a StorageError: what one may not read need not be damaged."""
    try:
        yield
    except PermissionError as error:
        raise StorageError(
            f"{error.filename or place} may not be read. Ask its owner for the permission (chmod -R g+rX), or set "
            f"runtime.outputs to a folder of your own."
        ) from None


def set_aside(place: Path, reason: str) -> None:
    """Renames something damaged out of the way, and says so. It is kept."""
    name = f"{place.name}{ASIDE}{time.strftime(TIME)}"
    aside, number = place.with_name(name), 0
    while os.path.lexists(aside):
        number += 1
        aside = place.with_name(f"{name}.{number}")
    with storage_errors(place.parent):
        os.rename(place, aside)
    log.warning(f"{place} is damaged ({reason}): set aside as {aside.name}, and made again")


def aside_since(place: Path) -> float:
    """When that was set aside, as its name says (seconds since the epoch); of a name without a time, when it was last changed."""
    try:
        return time.mktime(time.strptime(place.name.rpartition(ASIDE)[2].partition(".")[0], TIME))
    except ValueError:
        return place.lstat().st_mtime


def remove(place: Path) -> None:
    """Deletes a file or a folder with all that it holds."""
    with storage_errors(place.parent):
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def write_answer(path: Path, answer: Mapping[str, Any]) -> None:
    """A JSON file with its own digest inside."""
    write_text(path, _answer(answer))


def _answer(answer: Mapping[str, Any]) -> str:
    plain = json.dumps(answer, allow_nan=False)
    return json.dumps({**answer, "digest": hashlib.sha256(plain.encode()).hexdigest()}, indent=2) + "\n"


def read_answer(path: Path, names: Collection[str]) -> dict[str, Any] | None:
    """What `write_answer` wrote, an object of these names; None where there is none, or a damaged one, which is set aside. One
    from before there were digests is believed."""
    if not os.path.lexists(path):
        return None
    with _readable(path):
        try:
            text = path.read_bytes().decode()
            content: dict[str, Any] = json.loads(text)
            digest = content.pop("digest", None)
            if set(content) == set(names) and (digest is None or _answer(content) == text):
                return content
            reason = "it is not as it was written"
        except (OSError, ValueError, AttributeError, TypeError) as error:
            if isinstance(error, PermissionError):
                raise
            reason = str(error)
    set_aside(path, reason)
    return None


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


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None) -> None:
    """A safetensors file of the permissions that any new file there has; safetensors itself gives none but to its owner."""
    from safetensors.torch import save_file

    with storage_errors(path.parent):
        path.open("ab").close()
        mode = stat.S_IMODE(path.stat().st_mode)
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, path, metadata)
        path.chmod(mode)


def write_pickled(path: Path, content: Any, **how: Any) -> None:
    """A file of torch.save, whole or not at all; how: what else torch.save is told."""
    import torch

    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                torch.save(content, file, **how)
            os.replace(partial, path)
        except RuntimeError as error:  # torch's own, which does not say why a write failed
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        finally:
            partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """The content of a safetensors file; ValueError where it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(path)
        return found
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def link(existing: Path, place: Path) -> bool:
    """Makes `place` another name of the file `existing`, which nobody may write any more: by one name he would change the
    other. False where the file system, or who owns the file, allows no such thing."""
    try:
        os.link(existing, place)
    except OSError:
        return False
    try:
        existing.chmod(stat.S_IMODE(existing.stat().st_mode) & ~0o222)
    except OSError:
        place.unlink()
        return False
    return True


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns "no space left" and "not writable" into a StorageError that names `folder`."""
    try:
        yield
    except Exception as error:  # safetensors wraps the system's error in its own type
        number, said = getattr(error, "errno", None), str(error)
        cut_off = isinstance(error, OSError) and number is None and said.endswith(" written")  # as numpy says it
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in said or cut_off
        refused = number in REFUSALS
        if number == errno.EFBIG or os.strerror(errno.EFBIG) in said:
            raise StorageError(
                f"{folder} takes no file as large as this run has to write there ({os.strerror(errno.EFBIG)}). Nothing finished "
                f"was lost; raise what limits files (ulimit -f, or that disk's own limit) or set runtime.outputs to another "
                f"disk, then repeat the command: it goes on where it stopped."
            ) from None
        if full:
            raise StorageError(
                f"no space is left on the disk of {folder}. Nothing finished was lost; free some space (infected models "
                f"lie in cache/infection/ of the outputs folder) or set runtime.outputs to another disk, then repeat the "
                f"command: it goes on where it stopped."
            ) from None
        if refused:
            raise StorageError(
                f"{folder} cannot be written ({os.strerror(number or errno.EACCES)}). Name a place that you may write to; what "
                f"runs leave goes where runtime.outputs says."
            ) from None
        raise
