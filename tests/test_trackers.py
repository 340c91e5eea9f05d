"""Trackers: told everything, finished whatever happens, unable to change or cost a run; and what the real ones wrote.

The tests of a real tracker are skipped where its package is missing: pip install 'bdx[tensorboard,mlflow,wandb]'."""

import dataclasses
import json
import logging
import multiprocessing
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK

from backdoorbench.cli.main import main
from backdoorbench.config import catalog
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, flat
from backdoorbench.errors import ConfigError
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import job, plan, purify
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting import rows
from backdoorbench.storage import record
from backdoorbench.storage.record import Finding, Run
from backdoorbench.trackers import base
from backdoorbench.trackers.base import FINAL, Journal, Tracker, tracked
from backdoorbench.trackers.none import NoTracker

MINI = [*QUICK, "train.epochs=2", "force=true"]
NAMES = catalog.names("tracker")
INFECTED, PURIFIED = Scores(0.9, 0.8, 0.1, 100, 90), Scores(0.875, 0.0, 0.75, 100, 90)
SCALARS = {  # of the run below, by name: (epoch, value)
    "infection/loss": [(1, 2.5), (2, 0.5)],
    "infection/seconds": [(1, 1.0), (2, 1.0)],
    "infection/images_per_second": [(1, 400.0), (2, 400.0)],
    "infected/ca": [(0, 0.9)],
    "infected/asr": [(0, 0.8)],
    "infected/ra": [(0, 0.1)],
    "defense/ca": [(1, 0.5), (3, 0.875)],
    "defense/asr": [(1, 0.25), (3, 0.0)],
    "defense/ra": [(1, 0.5), (3, 0.75)],
    "purified/ca": [(0, 0.875)],
    "purified/asr": [(0, 0.0)],
    "purified/ra": [(0, 0.75)],
}


def carried_out(tracker: str, outputs: Path, *, fails: bool = False) -> Path:
    """A run that trains nothing, told to the tracker stage by stage as a job does; the folder it would have left."""
    resolved = compose([f"runtime.outputs={outputs}", *tracker.split()])
    folder = outputs / "runs" / "20260101-000000_digits-badnets-ft_0123456789ab"
    folder.mkdir(parents=True, exist_ok=True)
    run = Run("0123456789ab", "running", "digits-badnets-ft", resolved)
    infect, purify = Finding("infect", "badnets", scores=INFECTED), Finding("purify", "ft")
    run.stages += [infect, purify]
    infect.history = [{"loss": loss, "seconds": 1.0, "images_per_second": 400.0} for loss in (2.5, 0.5)]
    built: Tracker = build(resolved["tracker"], "tracker")
    crash = pytest.raises(RuntimeError, match="a bug in the defense") if fails else nullcontext()
    with crash, tracked(built, run, folder) as tell:
        tell("infect")
        for epoch, ca, asr, ra in ((1, 0.5, 0.25, 0.5), (3, 0.875, 0.0, 0.75)):
            purify.curve.append({"epoch": epoch, "ca": ca, "asr": asr, "ra": ra, "n": 100})
            tell("curve")
        if fails:
            raise RuntimeError("a bug in the defense")
        purify.scores = PURIFIED
        tell("purify")
    return folder


class Remembered(Journal):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def log(self, epoch: int | None, values: Mapping[str, float]) -> None:
        self.told.append((epoch, dict(values)))

    def finish(self, done: bool) -> None:
        self.told.append(done)


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Remembered:
    """What the default tracker would have written, had it written."""
    kept = Remembered()
    monkeypatch.setattr(NoTracker, "start", lambda *_: kept)
    return kept


@contextmanager
def heard() -> Iterator[list[str]]:
    """The package's warnings, as they come."""
    package, said = logging.getLogger("backdoorbench"), []

    class Ear(logging.Handler):
        def emit(self, entry: logging.LogRecord) -> None:
            said.append(entry.getMessage())

    ear = Ear(logging.WARNING)
    package.addHandler(ear)
    try:
        yield said
    finally:
        package.removeHandler(ear)


# ---- any tracker ----------------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("name", NAMES)
def test_every_tracker_matches_its_class_and_is_explained(name: str) -> None:
    node = compose([f"tracker={name}"])["tracker"]
    built = build(node, "tracker")
    assert isinstance(built, Tracker) and built.name == node["name"] == name
    assert {field.name for field in dataclasses.fields(built)} == set(node) - {"_target_"}
    option = catalog.describe("tracker", name)
    assert option.command.startswith("bdx tracker=") and option.summary and all(knob.comment for knob in option.knobs)


def test_none_is_the_default() -> None:
    assert compose([])["tracker"]["name"] == "none"


def test_a_tracker_moves_no_key_and_no_row_of_a_table() -> None:
    chosen = [compose([f"tracker={name}"]) for name in NAMES]
    settings = [plan.run_settings(resolved, "digest") for resolved in chosen]
    assert all(other == settings[0] and "tracker" not in other for other in settings)
    assert (
        len({rows.identity(resolved) for resolved in chosen}) == 1
        and rows.differing([rows.compared(each) for each in chosen]) == []
    )


@pytest.mark.wide
@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_a_missing_package_names_its_extra_before_anything_is_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda _: None)
    assert main([f"tracker={name}", f"runtime.outputs={tmp_path}", *MINI]) == 2
    assert capsys.readouterr().err == (
        f"bdx: tracker={name} needs {name}, which is not installed. Add it: pip install 'bdx[{name}]'.\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.wide
def test_a_run_tells_its_journal_what_its_record_holds(run: Callable[..., Job], journal: Remembered) -> None:
    done = run("attack=badnets", "defense=ft", *MINI, "defense.epochs=4", "curve.every=2").run
    assert journal.told == [
        *((n, {f"infection/{k}": v for k, v in e.items()}) for n, e in enumerate(done.infection.history, 1)),
        (None, {f"infected/{name}": getattr(done.infected, name) for name in ("ca", "asr", "ra")}),
        *((p["epoch"], {f"defense/{name}": p[name] for name in ("ca", "asr", "ra")}) for p in done.purification.curve),
        (None, {f"purified/{name}": getattr(done.purified, name) for name in ("ca", "asr", "ra")}),
        True,
    ]
    assert [point["epoch"] for point in done.purification.curve] == [2, 4]
    assert run("attack=badnets", "defense=ft", *MINI, "defense.epochs=4", "curve.every=2").repeated
    assert journal.told.count(True) == 1  # a finished run is not tracked again


def test_a_purified_model_that_was_found_has_its_curve_told(tmp_path: Path, journal: Remembered) -> None:
    run = Run("0123456789ab", "running", "digits-badnets-ft-retune", compose(["after=retune", "defense=ft"]))
    points = [{"epoch": epoch, "ca": 0.5, "asr": None, "ra": 0.5, "n": 100} for epoch in (1, 3)]
    run.stages.append(Finding("purify", "ft", scores=PURIFIED, curve=points))
    with tracked(NoTracker("none"), run, tmp_path) as tell:
        tell("purify")
        run.purification.cached = True
        tell("purify")
    final = (None, {"purified/ca": 0.875, "purified/asr": 0.0, "purified/ra": 0.75})
    curve = [(epoch, {"defense/ca": 0.5, "defense/ra": 0.5}) for epoch in (1, 3)]
    assert journal.told == [final, *curve, final, True]  # what was drawn point by point was told so


@pytest.mark.wide
def test_without_an_attack_there_is_only_ca_to_tell(run: Callable[..., Job], journal: Remembered) -> None:
    done = run("attack=none", "defense=none", *MINI).run
    assert journal.told[-3:] == [
        (None, {"infected/ca": done.infected.ca}),  # type: ignore[union-attr]
        (None, {"purified/ca": done.purified.ca}),  # type: ignore[union-attr]
        True,
    ]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_journal_is_finished_in_a_crash_too(
    kind: type[BaseException],
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    journal: Remembered,
    run: Callable[..., Job],
) -> None:
    run("attack=badnets", "defense=none", *MINI)
    journal.told.clear()
    monkeypatch.setattr(purify, "purify", lambda *_: (_ for _ in ()).throw(kind("now")))
    settings = [f"runtime.outputs={outputs}", "attack=badnets", "defense=ft", *MINI, "defense.epochs=3"]
    with pytest.raises(kind, match="now"):
        job.carry_out(compose(settings))
    assert journal.told[-1] is False and journal.told.count(False) == 1
    assert journal.told[-2][1].keys() == {"infected/ca", "infected/asr", "infected/ra"}


def test_a_journal_that_fails_costs_a_warning_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: Remembered
) -> None:
    def full(*_: object) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(Remembered, "log", full)
    with heard() as said:
        carried_out("tracker=none", tmp_path)
    assert said == ["tracker=none failed (ConnectionError: the server is gone); the run goes on without it"]
    assert journal.told == []  # not asked again


def test_a_tracker_that_does_not_start_stops_the_run_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(NoTracker, "start", refuse)
    with pytest.raises(ConfigError) as caught:
        job.carry_out(compose([f"runtime.outputs={tmp_path}", *MINI]))
    assert str(caught.value) == (
        "tracker=none does not start (ConnectionError: no route to host). Correct its settings (bdx show tracker=none), or "
        "run without it: tracker=none."
    )
    (folder,) = record.find(tmp_path)
    assert record.read(folder).status == "failed" and not (tmp_path / "cache" / "infection").exists()


# ---- the real ones --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the packages' own making
@pytest.mark.parametrize("fails", [False, True])
def test_tensorboard(fails: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    carried_out("tracker=tensorboard", tmp_path, fails=fails)
    (folder,) = (tmp_path / "runs").iterdir()  # one folder, whatever is in it
    assert [file.name.split(".")[2] for file in folder.iterdir()] == ["tfevents"]
    events = EventAccumulator(str(folder))
    events.Reload()
    kept = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    wanted = {name: points for name, points in SCALARS.items() if not (fails and name.startswith("purified"))}
    assert kept == {name: [(epoch, pytest.approx(value)) for epoch, value in points] for name, points in wanted.items()}
    (said,) = events.Tensors("status/text_summary")
    assert said.tensor_proto.string_val[0] == (b"failed" if fails else b"done")
    settings = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"attack.poison_rate" in settings and b"defense.name" in settings
    declared = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    assert all(name.encode() in declared for name in FINAL)


@pytest.mark.slow  # it makes the store's tables
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    settings = ["tracker=mlflow", "tracker.experiment=mine", "defense=trap_and_replace"]
    for fails in (False, True):
        carried_out(" ".join(settings), tmp_path, fails=fails)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mine")
    runs = {run.info.status: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"FINISHED", "FAILED"}
    resolved = flat(compose([f"runtime.outputs={tmp_path}", *settings]))
    assert len(resolved) > 100  # more than a request takes
    for status, run in runs.items():
        assert run.info.run_name == "20260101-000000_digits-badnets-ft_0123456789ab"
        assert run.data.params == {key: str(value) for key, value in resolved.items()}
        wanted = {k: v for k, v in SCALARS.items() if not (status == "FAILED" and k.startswith("purified"))}
        kept = {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in wanted}
        assert kept == wanted and set(run.data.metrics) == set(wanted)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fails", [False, True])
def test_wandb_offline(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there, and nobody is asked
    carried_out("tracker=wandb tracker.mode=offline", tmp_path, fails=fails)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while wandb_file(file)[3] < 0 and time.monotonic() < deadline:
        time.sleep(0.1)  # a process of its own writes the file, and finish() does not wait for it
    started, history, summary, code = wandb_file(file)
    assert started.project == "bdx" and started.display_name == "20260101-000000_digits-badnets-ft_0123456789ab"
    settings = {item.key: item.value_json for item in started.config.update}
    assert settings["seed"] == "0" and '"poison_rate":0.1' in settings["attack"].replace(" ", "")
    by_epoch = {name: points for name, points in SCALARS.items() if points[0][0]}
    assert {
        name: [(row[f"{name.split('/')[0]}/epoch"], row[name]) for row in history if name in row] for name in by_epoch
    } == by_epoch
    finals = {name: points[0][1] for name, points in SCALARS.items() if not points[0][0]}
    wanted = {name: value for name, value in finals.items() if not (fails and name.startswith("purified"))}
    assert {name: value for name, value in summary.items() if name in finals} == wanted
    assert code == (1 if fails else 0)


def wandb_file(file: Path) -> tuple[Any, list[dict[str, float]], dict[str, float], int]:
    """The run as started, history rows, summary and exit code of an offline run: LevelDB's log format, records of protobuf."""
    from wandb.proto import wandb_internal_pb2

    content, start, whole, place = file.read_bytes(), None, b"", 7  # a header of 7 bytes
    history, summary, code = [], {}, -1
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:  # no header crosses a block
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(whole)
            whole = b""
            if entry.HasField("run"):
                start = entry.run
            history += [values(entry.history.item)] if entry.HasField("history") else []
            summary |= values(entry.summary.update) if entry.HasField("summary") else {}
            code = entry.exit.exit_code if entry.HasField("exit") else code
    return start, history, summary, code


def values(items: Any) -> dict[str, float]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_jobs_that_start_together_share_one_mlflow_store(tmp_path: Path) -> None:
    """Three processes open a store that does not exist yet."""
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=carried_out, args=(f"tracker=mlflow seed={n}", tmp_path)) for n in range(3)]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join()
    assert [process.exitcode for process in jobs] == [0, 0, 0]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("bdx").experiment_id])
    assert sorted(run.data.params["seed"] for run in found) == ["0", "1", "2"]
    assert {run.info.status for run in found} == {"FINISHED"}
    assert not [name for name in ("mlruns", "mlartifacts") if (tmp_path / name).exists()]
