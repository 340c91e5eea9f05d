"""End to end on digits: records, the cache, resuming, determinism, sweeps."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from safetensors.torch import load_file

import backdoorbench
from backdoorbench.attacks.base import Infection
from backdoorbench.config.compose import compose
from backdoorbench.data.holdout import pick
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import TrainingError
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import after, evaluation, infect, job, plan, purify, watch
from backdoorbench.pipeline.job import Job
from backdoorbench.storage import record, store
from backdoorbench.storage.record import Finding
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import SourceSpecific


def test_a_run_leaves_everything(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", "defense=ft", *QUICK, "curve.every=1")
    assert {entry.name for entry in done.folder.iterdir()} == {
        "record.json", "log.txt", "table.md", "table.csv", "triggered.png", "purified.safetensors", "predictions.safetensors",
    }  # fmt: skip
    content = json.loads((done.folder / "record.json").read_text())
    assert (
        content["status"] == "done"
        and content["id"] in done.folder.name
        and done.folder.name.split("_")[1] == "digits-badnets-ft"
    )
    infect, purify = content["stages"]
    assert (infect["kind"], infect["name"], purify["kind"], purify["name"]) == ("infect", "badnets", "purify", "ft")
    for stage in (infect, purify):
        assert set(stage["scores"]) == {"ca", "asr", "ra", "n_clean", "n_triggered"}
        assert stage["scores"]["n_clean"] == 120 and stage["scores"]["n_triggered"] == 108
        assert stage["scores"]["asr"] + stage["scores"]["ra"] <= 1
    assert "infect" in infect["seconds"] and {"purify", "evaluate"} <= set(purify["seconds"])
    assert content["environment"]["packages"]["torch"] == metadata.version("torch")
    assert content["config"]["train"]["precision"] in ("bf16", "float32")  # what auto meant here
    assert infect["notes"]["poisoned"] == infect["notes"]["requested"] == 38
    assert purify["details"]["plain"] is True  # fine-tuning and nothing else: what `fragile` goes by
    assert [point["epoch"] for point in purify["curve"]] == list(range(1, 21))
    assert record.read(done.folder).purified == done.run.purified


@pytest.mark.wide
def test_a_learning_curve_makes_its_triggered_images_once(
    run: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    triggered = evaluation.triggered
    monkeypatch.setattr(evaluation, "triggered", lambda *parts: made.append(1) or triggered(*parts))
    words = ("attack=badnets", "defense=ft", "defense.epochs=3", "rerun=true", *QUICK, "curve.every=1")
    kept = run(*words).run
    assert len(made) == 1 and len(kept.purification.curve) == 3
    monkeypatch.setattr(watch, "KEPT", 120 * 3 * 32 * 32 * 4 - 1)  # one byte short
    assert run(*words).run.purification.curve == kept.purification.curve and len(made) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_point_of_few_images_has_one_that_the_attacker_acts_on(seed: int, images: ImageSet) -> None:
    labels, rows = images.labels, torch.arange(5, 120)
    target, stream = SourceSpecific(0, (7,)), Stream(seed)
    found = evaluation.few(images, rows, 3, target, stream)
    assert len(found) == 3 and found.tolist() == sorted(found.tolist()) and set(found.tolist()) <= set(rows.tolist())
    assert (labels[found] == 7).any()
    drawn = rows[pick(labels[rows], 30, 10, "uniform", stream)]
    assert (labels[drawn] == 7).any() and torch.equal(evaluation.few(images, rows, 30, target, stream), drawn)
    assert evaluation.few(images, rows, 115, target, stream) is rows


def test_a_curve_and_an_after_attack_are_judged_on_such_images(
    tmp_path: Path, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan.plan(
        compose(
            [
                *QUICK,
                "attack=tact",
                "after=variations",
                "after.images=1",
                "curve.every=1",
                "curve.images=1",
                f"runtime.outputs={tmp_path}",
            ]
        )
    )
    test, target = made.splits.test, made.attack.make_target(10)
    infection = Infection(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)),
        torch.nn.Identity(),
        target,
        None,
        None,
        [],
        {},
    )
    finding = Finding("purify", "ft")
    watch.probe(made, infection, test, finding, lambda stage: None)(infection.model, 0)
    assert finding.curve[0]["n"] == 1 and finding.curve[0]["asr"] is not None
    assert set(finding.seconds) == {"curve"}  # counted apart from the defense's
    stage = after.prepare(made, infection, test)
    assert target is not None and target.is_eligible(stage.test.labels).tolist() == [True]


def test_kept_predictions_give_the_same_figures(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", "defense=ft", *QUICK)
    calls = load_file(done.folder / "predictions.safetensors")
    _, test = backdoorbench.load_dataset("digits", test_size=120)
    eligible = test.labels != 0
    asr = (calls["purified_triggered"][eligible] == 0).float().mean()
    assert done.run.purified is not None and float(asr) == pytest.approx(done.run.purified.asr)


def test_the_purified_model_can_be_used(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", "defense=ft", *QUICK)
    model = backdoorbench.load_model(done.folder)
    _, test = backdoorbench.load_dataset("digits", test_size=120)
    images, labels = next(iter(test.batches(120)))
    assert done.run.purified is not None
    with torch.no_grad():
        ca = (model(images).argmax(1) == labels).float().mean()
    assert float(ca) == pytest.approx(done.run.purified.ca, abs=0.02)  # float32 here


@pytest.mark.wide
def test_a_second_defense_finds_the_infection(run: Callable[..., Job]) -> None:
    first, second = run("attack=badnets", "defense=ft", *QUICK).run, run("attack=badnets", "defense=fst", *QUICK).run
    assert second.infection.cached and second.infection.key == first.infection.key
    assert second.infected == first.infected and second.purified != first.purified
    assert second.infection.seconds["infect"] < 2


@pytest.mark.wide
def test_a_finished_run_is_not_repeated(run: Callable[..., Job]) -> None:
    first, second = run("attack=badnets", "defense=ft", *QUICK), run("attack=badnets", "defense=ft", *QUICK)
    assert second.repeated and second.folder == first.folder
    again = run("attack=badnets", "defense=ft", "rerun=true", *QUICK)
    assert not again.repeated and again.folder != first.folder


@pytest.mark.wide
def test_two_runs_from_nothing_are_bit_equal(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        overrides = [f"runtime.outputs={tmp_path / name}", "runtime.threads=1", "attack=blended", "defense=fst", *QUICK]
        folders.append(job.carry_out(compose(overrides)).folder)
    first, second = (load_file(folder / "purified.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = [timeless(json.loads((folder / "record.json").read_text())) for folder in folders]
    assert records[0] == records[1]
    assert (folders[0] / "triggered.png").read_bytes() == (folders[1] / "triggered.png").read_bytes()


def timeless(content: object) -> object:
    """A record without what differs by nature: times, memory, and the folder it was written to."""
    if isinstance(content, dict):
        return {
            k: timeless(v)
            for k, v in content.items()
            if k not in ("seconds", "cost", "spent", "started", "images_per_second", "outputs")
        }
    return [timeless(item) for item in content] if isinstance(content, list) else content


@pytest.mark.wide
def test_a_loaded_infection_is_the_saved_one(outputs: Path) -> None:
    """Rows, mask, trigger and weights survive the cache bit for bit, appended rows too."""
    for mode in ("replace", "append"):
        settings = [f"runtime.outputs={outputs}", "attack=badnets", f"attack.mode={mode}", *QUICK, "train.epochs=1"]
        made = plan.plan(compose(settings))
        fresh = infect.infect(made, None)
        loaded, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))
        assert (
            fresh.train is not None
            and loaded.train is not None
            and fresh.poisoned is not None
            and loaded.poisoned is not None
        )
        assert torch.equal(fresh.train.images, loaded.train.images) and torch.equal(
            fresh.train.labels, loaded.train.labels
        )
        assert torch.equal(fresh.poisoned, loaded.poisoned)
        assert all(torch.equal(v, loaded.model.state_dict()[k]) for k, v in fresh.model.state_dict().items())
        images = next(iter(made.splits.test.batches(16)))[0]
        assert fresh.trigger is not None and loaded.trigger is not None
        assert torch.equal(fresh.trigger(images), loaded.trigger(images))


@pytest.mark.wide
def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while purifying: the infection is kept, the record says so, the same command finishes."""
    settings = [f"runtime.outputs={tmp_path}", "attack=badnets", "defense=ft", *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr(purify, "purify", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job.carry_out(compose(settings))
    (ended,) = record.find(tmp_path)
    assert record.read(ended).status == "interrupted" and record.read(ended).error == "KeyboardInterrupt"
    done = job.carry_out(compose(settings)).run
    assert done.status == "done" and done.infection.cached


def test_a_broken_infection_is_refused_unless_forced(tmp_path: Path) -> None:
    settings = [
        f"runtime.outputs={tmp_path}",
        "attack=badnets",
        "defense=ft",
        *QUICK,
        "train.epochs=0",
        "defense.epochs=1",
    ]
    with pytest.raises(
        TrainingError, match="^the infection is broken: .*or add force=true to purify it all the same.$"
    ):
        job.carry_out(compose(settings))
    forced = job.carry_out(compose([*settings, "force=true"])).run
    assert forced.status == "done" and forced.infection.status == "broken" and forced.infection.reasons


@pytest.mark.wide
def test_a_weak_infection_is_marked(run: Callable[..., Job]) -> None:
    weak = run("attack=badnets", "attack.poison_rate=0.003", "defense=none", *QUICK).run  # a row
    assert weak.infection.status == "weak" and "below 0.5" in weak.infection.reasons[-1]


@pytest.mark.wide
def test_a_model_one_did_not_train_can_be_purified(run: Callable[..., Job]) -> None:
    given = run("attack=badnets", "defense=none", *QUICK)
    settings = [f"model.checkpoint={given.folder / 'purified.safetensors'}", *QUICK, "train.epochs=0"]
    clean = run("attack=none", "defense=ft", *settings).run
    assert clean.infected == Scores(given.run.infected.ca, None, None, 120, 0) and clean.infection.status == "clean"  # type: ignore[union-attr]
    known = run("attack=badnets", "defense=fst", *settings).run  # the same model, judged by a trigger one suspects
    assert known.infected == given.run.infected


@pytest.mark.slow
def test_the_control_stands_beside_an_infection(run: Callable[..., Job]) -> None:
    quick = [*(setting for setting in QUICK if not setting.startswith("control")), "seed=17"]  # no other test's
    assert run("attack=badnets", "defense=none", *quick).run.infection.control is None  # none was cached
    trained = run("attack=badnets", "defense=none", "control=train", *quick).run
    assert (
        trained.infection.control is not None
        and trained.infection.control.asr is not None
        and trained.infection.control.asr < 0.3
    )
    cached = run("attack=blended", "defense=none", *quick).run
    assert cached.infection.control is not None and cached.infection.control.ca == trained.infection.control.ca


@pytest.mark.parametrize(("kind", "split"), [("reserved", "train"), ("seen", "train"), ("reserved", "test")])
def test_holdouts_are_disjoint_from_the_test_set(
    kind: str, split: str, images: backdoorbench.data.images.ImageSet
) -> None:  # type: ignore[name-defined]
    from backdoorbench.data.holdout import Holdout
    from backdoorbench.streams import Stream

    for draw in ("stratified", "balanced", "uniform"):
        holdout = Holdout("x", kind, split, 0.25, None, draw, None, 0.0)  # type: ignore[arg-type]
        parts = holdout.divide(images, images, Stream(0))
        assert parts.holdout is not None and len(parts.holdout) == 30
        assert len(parts.train) == (90 if (kind, split) == ("reserved", "train") else 120)
        assert len(parts.test_rows) == (90 if split == "test" else 120)
        kept = {
            image.numpy().tobytes()
            for image in (
                parts.train if (kind, split) == ("reserved", "train") else images.subset(parts.test_rows)
            ).images
        }
        overlap = sum(image.numpy().tobytes() in kept for image in parts.holdout.images)
        assert overlap == (30 if kind == "seen" else 0)
        again = holdout.divide(images, images, Stream(0)).holdout
        assert again is not None and torch.equal(again.images, parts.holdout.images)


def bdx(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backdoorbench", *words], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )  # fmt: skip


@pytest.mark.wide
def test_a_sweep_ends_in_one_table_and_shares_infections(tmp_path: Path) -> None:
    words = ["-m", "attack=badnets", "attack.poison_rate=0.05,0.1", "defense=none,ft", *QUICK]
    swept = bdx(*words, folder=tmp_path)
    assert swept.returncode == 0, swept.stderr
    assert swept.stdout.count("infected model: trained") == 2 and swept.stdout.count("infected model: cached") == 2
    table = swept.stdout[swept.stdout.rindex("CA after") :]
    named = [line.split() for line in table.splitlines()[1:5]]
    assert [[word for word in words if word in ("5", "10", "none", "ft")] for words in named] == [
        ["5", "none"], ["5", "ft"], ["10", "none"], ["10", "ft"],
    ]  # fmt: skip
    assert len(list((tmp_path / "outputs" / "runs").glob("*/record.json"))) == 4
    again = bdx(*words, folder=tmp_path)
    assert again.returncode == 0 and again.stdout.count("done before") == 4


@pytest.mark.slow
def test_a_failing_job_leaves_the_others_alone(tmp_path: Path) -> None:
    """A network that learns nothing: recorded as the sweep's failure, the other job runs; fail_fast stops before it."""
    words = ["-m", "attack=badnets", "defense=ft", "defense.epochs=1", *QUICK, "train.epochs=0,6"]
    swept = bdx(*words, folder=tmp_path)
    assert swept.returncode == 2 and "Traceback" not in swept.stderr
    assert "1 of 2 jobs failed; the same command repeats only those" in swept.stdout
    assert "job 0 (train.epochs=0): TrainingError: the infection is broken" in swept.stdout
    again = [
        "attack=badnets",
        "defense=ft",
        "defense.epochs=1",
        *(word.replace("epochs=6", "epochs=0") for word in QUICK),
    ]
    assert f"these alone:\n  bdx -m {' '.join(again)}\n" in swept.stdout
    assert sorted(record.read(folder).status for folder in record.find(tmp_path / "outputs")) == ["done", "failed"]
    stopped = bdx(*words, "fail_fast=true", folder=tmp_path)
    assert stopped.returncode == 2 and "done before" not in stopped.stdout


@pytest.mark.slow
def test_a_training_killed_hard_resumes(tmp_path: Path) -> None:
    """SIGKILL in the middle of a training: the same command goes on from the last epoch, to the same weights."""
    words = [
        "attack=badnets",
        "defense=none",
        *QUICK,
        "train.epochs=40",
        "runtime.snapshot_seconds=0",
        "runtime.threads=1",
    ]
    process = subprocess.Popen([sys.executable, "-m", "backdoorbench", *words], cwd=tmp_path)
    snapshots = tmp_path / "outputs" / "cache" / "snapshots"
    while process.poll() is None and not list(snapshots.glob("*.pt")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert list(snapshots.glob("*.pt")) and not list((tmp_path / "outputs/cache/infection").glob("badnets-*[0-9a-f]/"))
    resumed = bdx(*words, folder=tmp_path)
    assert resumed.returncode == 0 and "training resumes after epoch" in resumed.stdout, resumed.stderr
    (tmp_path / "whole").mkdir()
    assert bdx(*words, folder=tmp_path / "whole").returncode == 0
    first, second = (
        load_file(next(place.glob("outputs/cache/infection/*/model.safetensors")))
        for place in (tmp_path, tmp_path / "whole")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_the_demo_keeps_its_promise(run: Callable[..., Job]) -> None:
    """The mean of three seeds, as the README has it: one of them leaves 28 % where one thread rounds the sums."""
    left = []
    for seed in range(3):
        found = run("attack=badnets", "defense=fst", f"seed={seed}").run
        assert found.infected is not None and found.purified is not None
        assert found.infected.ca >= 0.96 and (found.infected.asr or 0) >= 0.92
        assert found.purified.ca >= 0.90 and found.purified.asr is not None
        left.append(found.purified.asr)
    assert sum(left) / len(left) <= 0.15


@pytest.mark.wide
def test_two_processes_train_an_infection_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "backdoorbench", "attack=badnets", *QUICK]
    jobs = [
        subprocess.Popen(
            [*words, f"defense={name}"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in ("none", "ft")
    ]
    said = [process.communicate(timeout=300)[0] for process in jobs]
    assert [process.returncode for process in jobs] == [0, 0]
    assert sorted("infected model: trained" in text for text in said) == [False, True]
    assert len([entry for entry in (tmp_path / "outputs/cache/infection").iterdir() if entry.is_dir()]) == 1


def test_a_cache_key_of_the_demo_has_not_moved() -> None:
    """A moved key retrains everybody's infections: move it only with a version, and say so in the commit."""
    resolved = compose(["attack=badnets", "defense=fst", "train.precision=float32"])
    settings = plan.run_settings(resolved, "digest")
    assert store.key("run", settings) == "e214d0b93eda"
