"""What a training says of the machine: that other work keeps its threads waiting."""

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from backdoorbench import device
from backdoorbench.device import Crowding
from backdoorbench.errors import DeviceError
from backdoorbench.training import recipe

CPU = torch.device("cpu")


@pytest.mark.parametrize("said", ["", "0", "abc", "-1", "2.5", ","])
def test_a_number_of_threads_that_is_none_is_told(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """libgomp takes all cores then."""
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    with pytest.raises(DeviceError, match=f"OMP_NUM_THREADS is '{said}', which says no number of threads"):
        device.prepare(CPU, None)
    device.prepare(CPU, 1)
    for right in ("1", " 4", "2,1"):
        monkeypatch.setenv("OMP_NUM_THREADS", right)
        device.prepare(CPU, None)


@pytest.mark.wide
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is kept by glibc's switches")
def test_what_is_kept_goes_back_before_a_model_is_judged() -> None:
    """Without it the pages of a training stay beside those of the evaluation behind it."""
    script = """
import torch
from backdoorbench import device
def held(): return int(open("/proc/self/statm").read().split()[1]) * 4096
device.keep_memory()
maps, above = [torch.ones(2**20) for _ in range(100)], torch.ones(2**20)
full = held()
del maps
kept = held()
device.return_memory(torch.device("cpu"))
print((full - kept) >> 20, (kept - held()) >> 20)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) < 10  # MiB
    assert int(said[1]) > 350


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """looked(threads, seconds, busy, switches): what is said after so many seconds on the clock and of the processor."""

    def look(threads: int, seconds: float, busy: float, switches: int) -> list[str]:
        told: list[str] = []
        now = [0.0, 0.0, 0.0]
        monkeypatch.setattr(Crowding, "is_told", False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        used = SimpleNamespace(
            RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_utime=now[1], ru_stime=0.0, ru_nivcsw=now[2])
        )
        monkeypatch.setattr(device, "resource", used)
        monkeypatch.setattr(device, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(device.log, "warning", told.append)
        crowding = Crowding(CPU)
        crowding.look()
        now[:] = [seconds, busy, switches]
        for _ in range(3):
            crowding.look()
            Crowding(CPU).look()
        return told

    return look


def test_a_training_whose_threads_are_kept_waiting_says_so_once(looked: Callable[..., list[str]]) -> None:
    """The figures of one busy process on two cores, where the demo took 90 seconds instead of 2."""
    assert looked(2, 90.6, 90.6, 259 * 90) == [
        "other work keeps the cores busy: of 2 threads' time this training got 1.0, and threads that wait for each other can be "
        "many times slower than fewer; runtime.threads=1 is faster meanwhile"
    ]


@pytest.mark.parametrize(
    ("threads", "seconds", "busy", "switches"),
    [
        (2, 8.0, 13.8, 400),  # alone: 1.72 of two threads
        (1, 90.0, 45.0, 90_000),  # one thread waits for none
        (16, 60.0, 300.0, 600),  # small batches keep 16 threads idle, but nobody takes a core away
        (2, 4.9, 4.9, 1300),  # too soon to tell
    ],
)
def test_what_is_no_crowd_is_silent(
    threads: int, seconds: float, busy: float, switches: int, looked: Callable[..., list[str]]
) -> None:
    assert looked(threads, seconds, busy, switches) == []


@pytest.mark.parametrize("flags", ["flags : fma avx2", "flags : avx2 avx512_bf16", "Features : asimd bf16", None])
def test_bf16_is_taken_where_there_are_instructions_for_it_and_told_where_there_are_none(
    flags: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cpu, has = torch.device("cpu"), "bf16" in (flags or "")
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(recipe, "CPU_INFO", tmp_path / "cpuinfo")
    recipe.say_that_bf16_is_slow.cache_clear()
    assert recipe.resolve_precision("auto", cpu) == ("bf16" if has else "float32")
    assert recipe.resolve_precision("float32", cpu) == "float32" and not caplog.messages
    assert [recipe.resolve_precision("bf16", cpu) for _ in range(2)] == ["bf16", "bf16"]
    assert caplog.messages == ([] if has else [
        "precision bf16: this cpu device has no instructions for bfloat16, as far as is known, and computes it many times slower "
        "than float32; precision=auto takes float32 here"
    ])  # fmt: skip
