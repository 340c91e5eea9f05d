"""The cache: what moves a key and what does not; nothing half-written is ever read; two processes make a thing once."""

import errno
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoorbench.errors import StorageError
from backdoorbench.storage import store


def is_found(folder: Path, make: Callable[[Path], object]) -> bool:
    """Whether a folder that nobody reads was there."""
    return store.obtain(folder, make, lambda found: None, "waiting")[1]


def test_a_key_depends_on_values_not_on_order_or_spelling() -> None:
    assert store.key("a", {"x": 1, "y": {"z": [0.5, None]}}) == store.key("a", {"y": {"z": (0.5, None)}, "x": 1.0})
    assert store.key("a", {"x": 1}) != store.key("b", {"x": 1}) != store.key("b", {"x": 2})
    assert store.key("infection", {"x": 1}) == "3d7fef43cb39"  # golden: an old cache stays readable


def test_a_failed_making_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        is_found(tmp_path / "thing", fail)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing.lock"]
    assert not is_found(tmp_path / "thing", lambda folder: (folder / "whole").write_text("whole"))
    assert is_found(tmp_path / "thing", fail)  # found: not made again
    assert sorted(entry.name for entry in (tmp_path / "thing").iterdir()) == ["digests.json", "whole"]


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    stale = tmp_path / ".thing.0123abcd"
    stale.mkdir()
    (stale / "half").write_text("half")
    is_found(tmp_path / "thing", lambda folder: None)
    assert not stale.exists()


def _slowly(folder: str, counter: str) -> None:
    def make(partial: Path) -> None:
        with open(counter, "a") as file:
            file.write("made\n")
        time.sleep(0.3)

    is_found(Path(folder), make)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_slowly, args=(str(tmp_path / "thing"), str(tmp_path / "count"))) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert (tmp_path / "count").read_text() == "made\n"


def test_what_is_wanted_is_young_again(tmp_path: Path) -> None:
    is_found(tmp_path / "thing", lambda folder: None)
    os.utime(tmp_path / "thing", (1000.0, 1000.0))
    assert is_found(tmp_path / "thing", lambda folder: None)
    assert time.time() - (tmp_path / "thing").stat().st_mtime < 60


def test_only_what_nobody_wants_is_discarded(tmp_path: Path) -> None:
    thing = tmp_path / "thing"
    assert not store.discard(thing, time.time())  # there is none
    is_found(thing, lambda folder: (folder / "whole").write_text("whole"))
    assert not store.discard(thing, thing.stat().st_mtime - 1) and (thing / "whole").is_file()  # too young
    with store.locked(store.lock_of(thing), ""):
        assert store.is_held(store.lock_of(thing)) and not store.discard(thing, time.time() + 1)
    assert not store.is_held(store.lock_of(thing)) and store.discard(thing, time.time() + 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing.lock"]
    assert not store.is_held(tmp_path / "other.lock") and not (tmp_path / "other.lock").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space is left on the disk of {folder}. Nothing finished was lost;"),
        (
            errno.EROFS,
            "{folder} cannot be written (Read-only file system). Name a place that you may write to; what runs leave goes where runtime.outputs says.",
        ),
    ],
)
def test_storage_errors_are_said_plainly(tmp_path: Path, monkeypatch: Any, number: int, said: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "os text")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StorageError) as caught:
        store.write_json(tmp_path / "record.json", {"a": 1})
    assert str(caught.value).startswith(said.format(folder=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["pickled", "legacy", "tensors", "text"])
def test_a_limit_on_files_is_said_plainly_whoever_writes(tmp_path: Path, kind: str) -> None:
    """torch's own writer says `unexpected pos 576 vs 534`, and nothing of the system's reason."""
    resource = pytest.importorskip("resource")
    large, file = {"a": torch.zeros(100_000)}, tmp_path / "state.pt"
    writers: dict[str, Callable[[], object]] = {
        "pickled": lambda: store.write_pickled(file, large),
        "legacy": lambda: store.write_pickled(file, large, _use_new_zipfile_serialization=False),
        "tensors": lambda: store.write_tensors(file, large),
        "text": lambda: store.write_text(file, "x" * 400_000),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError) as caught:
            writers[kind]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value).startswith(
        f"{tmp_path} takes no file as large as this run has to write there (File too large). Nothing finished was lost; raise "
        f"what limits files (ulimit -f, or that disk's own limit)"
    )
    assert kind == "tensors" or not list(tmp_path.iterdir())  # those are written in a folder that goes away


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_full_disk_is_no_bug_of_torchs(tmp_path: Path, legacy: bool) -> None:
    (tmp_path / ".state.pt.partial").symlink_to("/dev/full")
    with pytest.raises(
        StorageError, match=rf"^no space is left on the disk of {tmp_path}\. Nothing finished was lost;"
    ):
        store.write_pickled(
            tmp_path / "state.pt", {"a": torch.zeros(100_000)}, _use_new_zipfile_serialization=not legacy
        )
    assert not list(tmp_path.iterdir())


def test_a_file_that_numpy_could_not_finish_is_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=f"^no space is left on the disk of {tmp_path}"),
        store.storage_errors(tmp_path),
    ):
        raise OSError("100000 requested and 12484 written")


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        store.write_json(tmp_path / "record.json", {"a": float("nan")})
