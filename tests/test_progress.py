"""Progress as plain lines: one each fifth, at the end of a unit, with its figures."""

import logging

import pytest

from backdoorbench import progress


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
    assert [entry.message.rsplit(",", 2)[0] for entry in caplog.records] == ["long: pass 1/100", "long: pass 20/100"]
