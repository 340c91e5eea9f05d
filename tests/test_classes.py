"""Figures by class: a line a class of a run, and a plot of them."""

import csv
import io
from pathlib import Path

import pytest
from test_statistics import run

from backdoorbench.cli import main as cli
from backdoorbench.errors import DataError
from backdoorbench.reporting.plots.classes import by_class
from backdoorbench.storage import record
from backdoorbench.storage.record import Run

CLASSES = ["cat", "dog", "eel"]


def judged(defense: str, seed: int, asr: list[float | None]) -> Run:
    made = run("badnets", defense, seed, 0.5)
    made.environment["data"] = {"classes": CLASSES}
    made.infection.details = {
        "ca_per_class": [1.0, 0.9, 0.8],
        "asr_per_class": [None, 1.0, 0.9],
        "ra_per_class": [None, 0.0, 0.1],
    }
    made.purification.details |= {
        "ca_per_class": [0.9, 0.8, 0.7],
        "asr_per_class": asr,
        "ra_per_class": [None, 0.5, 0.5],
    }
    return made


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for made in (
        judged("ft", 0, [None, 0.5, 0.1]),
        judged("ft", 1, [None, 0.7, 0.3]),
        judged("fst", 0, [None, 0.0, 0.0]),
    ):
        folder = tmp_path / "outputs" / "runs" / made.id
        folder.mkdir(parents=True)
        record.write(made, folder)
    return Path("outputs")


def test_a_line_a_class_of_a_run(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "outputs", "--format", "classes-csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(lines) == 9
    ft = [line for line in lines if (line["defense"], line["seed"]) == ("ft", "1")]
    assert [(line["class"], line["class_name"], line["infected_ca"], line["purified_asr"]) for line in ft] == [
        ("0", "cat", "1.0", ""), ("1", "dog", "0.9", "0.7"), ("2", "eel", "0.8", "0.3"),
    ]  # fmt: skip


def test_a_plot_has_means_over_seeds_of_each_class_that_counts(outputs: Path) -> None:
    figure = by_class([judged("ft", 0, [None, 0.5, 0.1]), judged("ft", 1, [None, 0.7, 0.3])])
    ca, asr = figure.axes
    assert [round(float(y)) for y in ca.lines[-1].get_ydata()] == [90, 80, 70]
    assert [round(float(y)) for y in asr.lines[-1].get_ydata()] == [60, 20]  # the target's class has no ASR
    assert [text.get_text() for text in asr.get_xticklabels()] == CLASSES
    assert cli.main(["plot", "classes", "outputs", "--metric", "asr", "--output", "classes.svg"]) == 0


def test_nothing_by_class_is_a_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="1 of 1 run finished, none with figures by class"):
        by_class([run("badnets", "ft", 0, 0.5)])


def test_a_plain_report_reads_none_of_them(outputs: Path) -> None:
    assert all("asr_per_class" not in made.purification.details for made in record.collect([outputs]).values())
