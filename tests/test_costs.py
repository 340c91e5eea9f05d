"""What stages cost: measured, recorded, and in every table that is asked for it."""

import mmap
import os
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from test_statistics import run

from backdoorbench import api
from backdoorbench.pipeline import costs
from backdoorbench.reporting import formats, page, report, rows, terminal
from backdoorbench.storage import record
from backdoorbench.storage.record import Finding, Run
from backdoorbench.training.fit import Epoch

MIB = 2**20


def costly(defense: str, seed: int, seconds: float, memory: float, **spent: float) -> Run:
    made = run("badnets", defense, seed, 0.1)
    made.purification.seconds = {"purify": seconds, "evaluate": 99.0}
    made.purification.spent = {"memory": memory * MIB, **spent}
    return made


def made(runs: list[Run], *figures: str) -> report.Report:
    return report.make({Path(one.id): one for one in runs}, figures, (), ())


def test_peak_memory_is_that_of_what_ran_inside() -> None:
    large, small = Finding("purify", "ft"), Finding("purify", "ft")
    with costs.metered(large, torch.device("cpu")), mmap.mmap(-1, 200 * MIB) as held:
        held.write(b"1" * 200 * MIB)
    with costs.metered(small, torch.device("cpu")):
        pass
    assert large.spent["memory"] > 200 * MIB
    if os.access(costs.PEAK, os.W_OK) and costs.STATUS.exists():  # elsewhere a peak is never forgotten
        assert large.spent["memory"] - small.spent["memory"] > 100 * MIB
    assert set(large.spent) == {"memory"}  # no device, no training


def test_the_pace_of_a_training_is_images_over_seconds() -> None:
    assert costs.pace([Epoch(1.0, 1.0, 100.0), Epoch(1.0, 3.0, 200.0)]) == 175
    assert costs.pace([]) is None


@pytest.mark.wide
def test_a_run_records_what_its_stages_cost(tmp_path: Path) -> None:
    done = api.run(*QUICK, "attack=badnets", "defense=ft", f"runtime.outputs={tmp_path}")
    infection, purification = done.infection.spent, done.purification.spent
    assert infection["memory"] > 50 * MIB and purification["memory"] > 50 * MIB
    assert infection["images_per_second"] > 0 and purification["images_per_second"] > 0
    again = api.run(*QUICK, "attack=badnets", "defense=none", f"runtime.outputs={tmp_path}")
    assert set(again.infection.spent) == {"images_per_second"}  # found in the cache
    (read,) = [found for found in record.collect([tmp_path]).values() if found.id == done.id]
    assert read.purification.spent == purification


def test_costs_are_figures_of_tables() -> None:
    found = made(
        [costly("ft", 0, 1.0, 500), costly("ft", 1, 3.0, 700, joules=8.0)], "asr", "seconds", "memory", "energy"
    )
    text = [" ".join(line.split()) for line in terminal.as_text(found).splitlines()]
    assert "attack defense n ASR ASR after seconds memory, MiB energy, J" in text
    assert "badnets ft 2 100.00 ± 0.00 10.00 ± 0.00 2.00 ± 1.41 600.00 ± 141.42 8.00 (n 1)" in text
    assert "seconds: of the defense, its learning curve apart." in " ".join(text)
    assert r"seconds $\downarrow$ & memory, MiB" in report.latex(found)
    header, line = formats.as_csv(found.rows).splitlines()
    named = dict(zip(header.split(","), line.split(","), strict=True))
    assert (named["seconds"], named["memory"], named["device_memory"]) == ("2.000000", "600.000000", "")


def test_the_page_has_a_section_of_what_is_known(tmp_path: Path) -> None:
    text = page.render(made([costly("ft", 0, 1.0, 500)], "asr"), ["outputs"], tmp_path / "page.html", ["asr"], [])
    assert '<section id="costs">' in text and "memory, MiB" in text and "energy, J" not in text


def test_records_from_before_have_dashes() -> None:
    old = run("badnets", "ft", 0, 0.1)
    assert all(value is None for value in rows.cost(old).values())
    assert "–" in terminal.as_text(made([old], "memory"))


@pytest.mark.parametrize("wrong", [{"memory": "much"}, {"memory": None}])
def test_a_record_whose_costs_are_no_numbers_is_damaged(wrong: dict[str, object], tmp_path: Path) -> None:
    one = run("badnets", "ft", 0, 0.1)
    one.purification.spent = wrong  # type: ignore[assignment]
    record.write(one, tmp_path)
    with pytest.raises(Exception, match="its spent are no numbers"):
        record.read(tmp_path)


def test_what_was_found_has_the_seconds_that_it_once_took() -> None:
    again = costly("fst", 0, 12.0, 100.0)
    again.purification.seconds, again.purification.cost = {}, {"purify": 12.0}
    assert rows.cost(again)["seconds"] == 12.0


@pytest.mark.wide
def test_costs_of_runs_that_shared_machine_or_process_otherwise_are_marked() -> None:
    runs = [costly("ft", 0, 1.0, 500), costly("fst", 0, 1.0, 500)]
    for each, at_once, is_fresh in zip(runs, (1, 2), (False, True), strict=True):
        each.environment = {**each.environment, "company": {"at_once": at_once, "fresh": is_fresh}}
    said = (
        "costs are not all comparable, since runs shared machine and process differently: 1 run alone, in a process that had done "
        "others; 1 run 2 at a time, in a fresh process"
    )
    assert said in made(runs, "seconds").notes and said not in made(runs, "asr").notes
    assert said not in made(runs[:1], "seconds").notes
    assert said[0].upper() + said[1:] in report.latex(made(runs, "seconds"))
    section = report.costs(made(runs, "asr"))
    assert section is not None and said in section.notes


def test_a_run_records_what_it_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "RUNS", iter([0, 1]))
    monkeypatch.delenv(record.AT_ONCE, raising=False)
    assert costs.company() == {"at_once": 1, "fresh": True}
    monkeypatch.setenv(record.AT_ONCE, "2")
    assert costs.company() == {"at_once": 2, "fresh": False}
