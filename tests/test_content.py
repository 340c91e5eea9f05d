"""What tells runs of equal settings apart: content, of finished runs alone; and how a setting is printed that most do not name."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from records import made_run

import backdoorbench as bb
from backdoorbench.cli import main
from backdoorbench.config.compose import compose
from backdoorbench.metrics import Scores
from backdoorbench.reporting import grids, report, rows
from backdoorbench.reporting.content import tell_apart_by_content
from backdoorbench.storage import record
from backdoorbench.storage.record import Run

SCORES = Scores(0.9, 0.8, 0.1, 100, 90)
CODE = "defense.source code"
OLD, NEW = "a" * 64, "b" * 64


def run(id: str, digest: str, *words: str, **more: Any) -> Run:
    return made_run(
        id, compose(["attack=badnets", *words]), SCORES, SCORES, content={CODE: digest} if digest else {}, **more
    )


def labels(*runs: Run) -> list[str]:
    made = rows.aggregate(tell_apart_by_content({Path(each.id): each for each in runs}).values())
    return grids.labels(made, "defense", ("attack", "rate"))


def test_a_failed_run_of_other_code_splits_nothing() -> None:
    runs = [run("1", OLD, "defense=ft"), run("2", OLD, "defense=ft", "defense.epochs=1")]
    for status in ("failed", "interrupted", "running"):
        other = run("3", NEW, "defense=ft", "seed=1", status=status)
        assert labels(*runs, other) == labels(*runs) == ["ft, epochs 20", "ft, epochs 1"]


def test_where_code_differs_all_runs_of_the_method_say_theirs() -> None:
    """No dash for a digest that is known, though it is the same for all runs of these settings."""
    runs = [
        run("1", OLD, "defense=ft"),
        run("2", NEW, "defense=ft", "seed=1"),
        run("3", NEW, "defense=ft", "defense.epochs=1"),
        run("4", "", "defense=ft", "defense.epochs=1", "seed=1"),  # from before: counts as one of its like
        run("5", "", "defense=fst"),
    ]
    said = labels(*runs)
    assert said == [
        "ft, epochs 20, content of defense.source code aaaaaaaa",
        "ft, epochs 20, content of defense.source code bbbbbbbb",
        "ft, epochs 1, content of defense.source code bbbbbbbb",
        "fst",
    ]


def test_code_that_was_edited_between_runs_of_other_settings_is_told() -> None:
    """What else differs would be taken for the cause. Another function that a setting names is told by its name."""
    runs = [run("1", OLD, "defense=ft"), run("2", NEW, "defense=ft", "defense.epochs=1")]
    assert labels(*runs) == [
        "ft, epochs 20, content of defense.source code aaaaaaaa",
        "ft, epochs 1, content of defense.source code bbbbbbbb",
    ]
    for each, said in zip(runs, (f"mine:one of {OLD}", f"mine:two of {NEW}"), strict=True):
        each.content = {"defense.loss": said}
    assert labels(*runs) == ["ft, epochs 20", "ft, epochs 1"]


def test_runs_that_were_not_chosen_make_no_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda rows: rows[0]))
    for each in (run("1", OLD, "defense=ft"), run("2", NEW, "defense=ft", "seed=1")):
        folder = tmp_path / "runs" / f"2026_{each.id}"
        folder.mkdir(parents=True)
        record.write(each, folder)
    assert main.main(["report", str(tmp_path)]) == 0
    assert "source" in capsys.readouterr().out
    assert main.main(["report", str(tmp_path), "--where", "seed=0"]) == 0
    assert "source" not in capsys.readouterr().out
    for where, is_there in (("", True), ("seed=0", False)):
        assert ("content of defense.source code" in bb.results(tmp_path, where=where)) is is_there


def test_a_usual_setting_is_printed_as_it_is_beside_another(tmp_path: Path) -> None:
    """`holdout.validate` is 0 as shipped, which no dash may stand for; a record from before it has the same."""
    shipped, tuned, old = (
        run(str(n), "", "defense=ft", *more) for n, more in enumerate(([], ["holdout.validate=0.2"], []))
    )
    del old.config["holdout"]["validate"]
    titles = [
        [grid.title for grid in report.make({Path(each.id): each for each in pair}, ("asr",), (), ()).grids]
        for pair in ((shipped, tuned), (old, tuned))
    ]
    assert titles[0] == titles[1] and "holdout.validate 0 " in titles[0][0] and "holdout.validate 0.2 " in titles[0][1]
    assert {row.names["holdout.validate"] for row in rows.aggregate([old, tuned])} == {"0", "0.2"}
