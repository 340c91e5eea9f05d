"""Progress as plain lines: one each fifth, at the end of a unit, with its figures."""

import io
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from backdoorbench import progress, screen
from backdoorbench.sweeps import worker


def test_a_line_each_fifth(caplog: pytest.LogCaptureFixture) -> None:
    package = logging.getLogger("backdoorbench")
    package.propagate, kept = True, progress.install(progress.LogReporter())
    try:
        with caplog.at_level(logging.INFO, "backdoorbench"), progress.task("fast", 10, "epoch", 3) as work:
            for epoch in range(10):
                work.advance()
                work.advance()
                work.advance(loss=1 / (epoch + 1), images_per_second=1234.5)
    finally:
        progress.install(kept)
    shown = [entry.message.rsplit(",", 2)[0] for entry in caplog.records]
    assert shown == [
        "fast: epoch 2/10, loss 0.500, 1,234 images/s",
        "fast: epoch 4/10, loss 0.250, 1,234 images/s",
        "fast: epoch 6/10, loss 0.167, 1,234 images/s",
        "fast: epoch 8/10, loss 0.125, 1,234 images/s",
        "fast: epoch 10/10, loss 0.100, 1,234 images/s",
    ]
    assert all(entry.message.endswith("s left") for entry in caplog.records)


def test_a_long_task_says_early_how_long_it_takes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = logging.getLogger("backdoorbench")
    monkeypatch.setattr(package, "propagate", True)
    monkeypatch.setattr(progress, "EARLY", 0.0)
    with caplog.at_level(logging.INFO, "backdoorbench"):
        work = progress.LoggedTask("long", 100, "pass", 2)
        for _ in range(50):
            work.advance()
    shown = [entry.message.rsplit(",", 2)[0] for entry in caplog.records]
    assert shown == ["long: in pass 1/100", "long: pass 1/100", "long: pass 20/100"]


def test_what_is_over_in_a_moment_is_not_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten images in nine seconds: not a word. In forty: from the eleventh second on, and no more than its fifths."""
    monkeypatch.setattr(logging.getLogger("backdoorbench"), "propagate", True)
    kept = progress.install(progress.LogReporter())
    told = []
    try:
        for seconds in (0.9, 4.0):
            now = iter(range(100))
            monkeypatch.setattr(progress.time, "monotonic", lambda now=now, seconds=seconds: next(now) * seconds)
            caplog.clear()
            with caplog.at_level(logging.INFO, "backdoorbench"), progress.aside("judge", 10, "image") as work:
                for _ in range(10):
                    work.advance()
            told.append([entry.message for entry in caplog.records])
    finally:
        progress.install(kept)
    assert told == [
        [],
        [
            "judge: image 4/10, 4 s, 24 s left",
            "judge: image 6/10, 12 s, 16 s left",
            "judge: image 8/10, 20 s, 8 s left",
            "judge: image 10/10, 28 s, 0 s left",
        ],
    ]


def test_a_bar_within_a_bar_is_none() -> None:
    """A terminal has one live line: rich 14.0 raised where a second began."""
    reporter = screen.BarReporter(Console(file=io.StringIO(), force_terminal=True))
    outer = reporter.open("variations", 40, "trial", 1, 0)
    inner = reporter.open("judge", 1000, "image", 1, 0)
    inner.advance()
    inner.close()
    outer.advance()
    outer.close()
    assert isinstance(inner, screen.Silent) and isinstance(reporter.open("judge", 9, "image", 1, 0), screen.Bar)
    reporter.bar.close()


def test_counted_items_are_done_when_the_next_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    package = logging.getLogger("backdoorbench")
    package.propagate, kept = True, progress.install(progress.LogReporter())
    try:
        with caplog.at_level(logging.INFO, "backdoorbench"):
            assert list(progress.counted(range(5), "search", "step")) == [0, 1, 2, 3, 4]
    finally:
        progress.install(kept)
    assert [entry.message.partition(",")[0] for entry in caplog.records] == [f"search: step {n}/5" for n in range(1, 6)]


def test_what_another_process_did_is_no_measure_of_the_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten epochs of two steps seven were in a snapshot: the eighth takes 4 s, so that two more take 8."""
    monkeypatch.setattr(logging.getLogger("backdoorbench"), "propagate", True)
    clock = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    kept = progress.install(progress.LogReporter())
    try:
        with caplog.at_level(logging.INFO, "backdoorbench"), progress.task("resumed", 10, "epoch", 2, 14) as work:
            work.advance()
            work.advance(loss=0.5)
    finally:
        progress.install(kept)
    assert [entry.message for entry in caplog.records] == ["resumed: epoch 8/10, loss 0.500, 4 s, 8 s left"]


def test_a_bar_and_a_launcher_start_where_the_work_does(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = screen.Bar(Console(file=io.StringIO()), "resumed", 10, "epoch", 2, 14)
    assert bar.progress.tasks[0].completed == 14 and bar.progress.tasks[0].total == 20
    bar.close()
    sent: list[dict[str, Any]] = []
    clock = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock))
    link: Any = SimpleNamespace(send=lambda **told: sent.append(told))
    told = worker.Reporter(screen.Silent(), link).open("resumed", 10, "epoch", 2, 14)
    told.advance()
    told.advance()
    assert [(each["part"], each["left"]) for each in sent] == [
        ("resumed epoch 8/10", 10.0),
        ("resumed epoch 9/10", 8.0),
    ]
