"""Sweeps before and around their runs: composition, mistakes, plans, schedules, rerun commands, what a pool shows."""

import copy
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import QUICK
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from rich.console import Console

from backdoorbench.cli import hydra_run
from backdoorbench.cli.main import main
from backdoorbench.config.compose import Plain, compose, conf_dir
from backdoorbench.errors import ConfigError, PairingError
from backdoorbench.pipeline import job, plan
from backdoorbench.pipeline.job import Job
from backdoorbench.storage import record, store
from backdoorbench.storage.outputs import Outputs
from backdoorbench.storage.record import Finding, Run
from backdoorbench.sweeps import forecast, hydra_errors, link, listing, schedule, sweep
from backdoorbench.sweeps.board import Board, Row
from backdoorbench.sweeps.compose import left_to_jobs, varying
from backdoorbench.sweeps.schedule import Slot, Waiting

NOWHERE = Path("nowhere")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[forecast.Ahead]]:
    """The runs that `bdx plan <words>` looks over; 2 where a sweep of them would not begin."""

    def look(*words: str) -> list[forecast.Ahead]:

        kept: list[list[forecast.Ahead]] = []
        monkeypatch.setattr(listing, "print_plan", lambda _, runs, ahead: kept.append(list(runs)))
        code = main(["plan", *words])
        assert code == (2 if all(run.error is not None for run in kept[-1]) else 0)
        return kept[-1]

    return look


# ---- composition and mistakes ---------------------------------------------------------------------------------------


@pytest.mark.wide
def test_a_sweep_over_networks_says_it_job_by_job(looked: Callable[..., list[forecast.Ahead]], tmp_path: Path) -> None:
    runs = looked("model=airbench,demo", "train.epochs=1", f"runtime.outputs={tmp_path}")
    assert [run.config["train"]["name"] for run in runs] == ["airbench", "demo"]
    assert [run.overrides for run in runs][0] == (
        "model=airbench", "train.epochs=1", f"runtime.outputs={tmp_path}", "train=airbench",
    )  # fmt: skip


@pytest.mark.wide
def test_one_value_is_set_in_all_options_that_are_swept(
    looked: Callable[..., list[forecast.Ahead]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the usual option, defense=none, has no such setting."""
    words = ["attack=badnets", "defense=ft,fst", f"runtime.outputs={tmp_path}"]
    runs = looked(*words, "defense.epochs=3", "defense.bn_mode='eval'")
    assert [(run.config["defense"]["epochs"], run.config["defense"]["bn_mode"]) for run in runs] == [(3, "eval")] * 2
    assert "defense.epochs=3" in runs[0].overrides
    runs = looked(
        "experiment=fst", "dataset=digits", "attack=badnets", "defense.epochs=3", f"runtime.outputs={tmp_path}"
    )
    assert {run.config["defense"]["epochs"] for run in runs if run.error is None} == {3}
    capsys.readouterr()
    assert main(["plan", *words, "defense.epoch=3"]) == 2
    assert capsys.readouterr().err.startswith("bdx: defense has no setting 'epoch'. Did you mean 'epochs'?")


def test_a_search_over_networks_takes_one_recipe() -> None:
    def brought(*words: str) -> tuple[str, ...]:
        return hydra_run.brought_in_search(words, [], "config")

    assert brought("model=airbench,demo") == brought("model=airbench,demo", "hydra/sweeper=grid") == ()
    assert brought("hydra/sweeper=tune", "defense=ft,fst") == ()
    assert brought("hydra/sweeper=tune", "model=airbench,demo", "train=fast") == ()
    assert brought("hydra/sweeper=tune", "model=choice(airbench)") == ("train=airbench",)
    assert brought("hydra/sweeper=tune", "model=demo,resnet18", "defense.lr=tag(log,interval(1e-4,1e-1))") == ()


def test_a_search_over_networks_of_several_recipes_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "hydra/sweeper=tune", "model=airbench,demo", "attack=badnets"]) == 2
    assert capsys.readouterr().err == (
        "bdx: hydra/sweeper=tune makes all its runs by one recipe, and what it is to choose from brings several: model=airbench brings "
        "train=airbench; model=demo brings none. Say which, as train=fast, search for one of them at a time, or leave hydra/sweeper "
        "out: a grid gives each run its own.\n"
    )


def test_other_words_of_a_sweep_stay_as_they_are() -> None:
    words = [
        "defense=ft",
        "seed=0,1",
        "defense.epochs=3",
        "attack=badnets,sig",
        "attack.target=1,2",
        "~attack.mode",
        "curve=[1",
    ]
    assert left_to_jobs(words) == words


@pytest.mark.wide
def test_jobs_compose_as_hydra_would(looked: Callable[..., list[forecast.Ahead]], tmp_path: Path) -> None:
    """Values that are put in afterwards and those that need the whole composition: floats, texts, null, interpolations."""
    words = [
        f"runtime.outputs={tmp_path}", "defense=ft,fst", "seed=0,3", "train.lr=1e-3", "attack.position=null,[1,2]", "runtime.data_root=/x",
        "dataset.augment.crop_padding=1", "attack.pattern='white4'", "train.epochs=${seed}", "+holdout.extra=1",
    ]  # fmt: skip
    runs = looked(*words)
    assert len(runs) == 8
    for run in runs:
        assert run.config == compose(list(run.overrides))
    assert runs[0].config["train"]["augment"]["crop_padding"] == 1  # an interpolation of the data set's
    assert str(runs[0].error) == (
        "holdout has no setting 'extra'. It knows draw, kind, name, per_class, rate, root, split and validate."
    )


@pytest.mark.wide
def test_the_runs_of_an_experiment(looked: Callable[..., list[forecast.Ahead]], tmp_path: Path) -> None:
    runs = looked("experiment=fst", "scale=digits", "defense=ft,fst", f"runtime.outputs={tmp_path}", "seed=0")
    able = [run for run in runs if run.error is None]
    assert len(able) > 4 and len({run.key for run in able}) == len(able)
    assert all(
        "asks for" in str(run.error) for run in runs if run not in able
    )  # a rate that the digits' classes cannot fill
    assert able[0].key == plan.plan(compose(list(able[0].overrides))).key
    forecast.refuse_mistakes(runs)


@pytest.mark.wide
def test_a_yaml_file_that_is_edited_meanwhile_changes_no_job_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are what was looked over before the first one began, as a pool's are."""
    file, epochs = tmp_path / "experiment" / "mine.yaml", []
    file.parent.mkdir()
    file.write_text("# @package _global_\ntrain:\n  epochs: 1\n")

    def carry_out(resolve: Callable[[], Plain], place: Path, overrides: Sequence[str]) -> None:
        epochs.append((resolve()["train"]["epochs"], resolve()["seed"]))
        file.write_text("# @package _global_\ntrain:\n  epochs: 2\n")
        sweep.leave(place, overrides, "failed", error="as asked", mistake=True)

    monkeypatch.setattr(hydra_run, "carry_out_job", carry_out)
    words = ["-m", "--config-dir", str(tmp_path), "experiment=mine", "seed=0,1", f"runtime.outputs={tmp_path / 'out'}"]
    assert main(words) == 2 and epochs == [(1, 0), (1, 1)]


@pytest.mark.wide
def test_a_mistake_anywhere_stops_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", "attack=badnets", "attack.poison_rate=0.05,10,20", "seed=0", "defense=ft", *QUICK]
    assert main([*words, f"runtime.outputs={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        "bdx: attack.poison_rate is 10; expected a number between 0 and 1. Change attack.poison_rate. This is run 1 of the sweep "
        "(attack.poison_rate=10) and 1 more of its runs; none of the 3 was started.\n"
    )
    assert not (tmp_path / "runs").exists() and not (tmp_path / "sweeps").exists()


@pytest.mark.wide
def test_an_impossible_pair_does_not_stop_the_sweep(
    looked: Callable[..., list[forecast.Ahead]], tmp_path: Path
) -> None:
    runs = looked("attack=badnets,wanet", "defense=trap_and_replace", f"runtime.outputs={tmp_path}", *QUICK)
    forecast.refuse_mistakes(runs)
    assert [run.error is None for run in runs] == [True, False]
    assert forecast.forecast(runs).states == ["trains its infection", "cannot be"]
    with pytest.raises(PairingError, match="none of the 2 was started.$"):
        forecast.refuse_mistakes([runs[1], runs[1]])


def test_a_device_elsewhere_is_not_looked_for(tmp_path: Path) -> None:
    composed = compose(["runtime.device=cuda:77", f"runtime.outputs={tmp_path}", *QUICK])
    assert forecast.look([["seed=0"]], [composed], here=False)[0].error is None
    assert "cuda:77" in str(forecast.look([["seed=0"]], [composed], here=True)[0].error)


OF_HYDRA = [f"{file.parent.name}/{file.stem}" for file in sorted((conf_dir() / "hydra").glob("*/*.yaml"))]


@pytest.mark.wide
@pytest.mark.parametrize("option", OF_HYDRA)
def test_our_launchers_and_sweepers_may_be_named_as_those_that_plugins_of_hydra_register(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As hydra-joblib-launcher does with `joblib`: Hydra warns of it, and a warning of Hydra's once stopped the sweep."""
    Plugins.instance()  # what is installed registers itself once, and for good
    registered = ConfigStore.instance()
    monkeypatch.setattr(registered, "repo", copy.deepcopy(registered.repo))
    group, _, name = option.partition("/")
    for each in (name, "submitit_slurm", "optuna"):
        registered.store(group=f"hydra/{group}", name=each, node={})
    assert main(["--cfg", "hydra", f"hydra/{group}={name}"]) == 0
    said = capsys.readouterr()
    assert "_target_" in said.out and "Warning" not in said.err


def test_a_launchers_worker_does_not_warn_of_it_either() -> None:
    """Hydra composes a job there after the function was unpickled, and before it is called."""
    said = "\n'hydra/launcher/joblib' is validated against ConfigStore schema with the same name.\nThis behavior is deprecated"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert not pickle.loads(pickle.dumps(hydra_run.Task())).started
        warnings.warn(said, UserWarning, stacklevel=1)
        warnings.warn("of something else", UserWarning, stacklevel=1)
    assert [str(each.message) for each in heard] == ["of something else"]


def test_a_folder_of_yaml_files_that_is_not_there_is_a_mistake_although_hydra_merely_warns_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*QUICK, "hydra.searchpath=[file:///nowhere]"]) == 2
    assert "path=/nowhere is not available" in capsys.readouterr().err


def test_a_missing_plugin_names_its_extra() -> None:
    unknown = RuntimeError(
        "Unknown plugin class : 'hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher'"
    )
    assert str(hydra_errors.explained(unknown, [])) == (
        "the sweep needs Hydra's joblib plugin, which is not installed. Add it: pip install 'bdx[joblib]'; or take "
        "hydra/launcher=pool, which needs nothing more."
    )


@pytest.mark.wide
@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("range(0.01,0.1,0.01)", ["0.01", "0.02", "0.03", "0.04", "0.05", "0.06", "0.07", "0.08", "0.09"]),
        ("range(0.1,0.5,0.1)", ["0.1", "0.2", "0.3", "0.4"]),
        ("range(0.3,0,-0.1)", ["0.3", "0.2", "0.1"]),
        ("range(0.1,1,0.3)", ["0.1", "0.4", "0.7"]),
    ],
)
def test_a_range_is_the_numbers_it_says(
    said: str, meant: list[str], looked: Callable[..., list[forecast.Ahead]], tmp_path: Path
) -> None:
    """Hydra 1.3.8 adds steps up in binary: ten values for the first, one of them 0.060000000000000005."""
    runs = looked(f"attack.poison_rate={said}", f"runtime.outputs={tmp_path}", *QUICK)
    assert [run.overrides[0] for run in runs] == [f"attack.poison_rate={value}" for value in meant]
    listed = looked(f"attack.poison_rate={','.join(meant)}", f"runtime.outputs={tmp_path}", *QUICK)
    assert [run.key for run in runs] == [run.key for run in listed]


@pytest.mark.wide
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "seed=range(3,3)",
            "'seed=range(3,3)' holds no number: the stop is left out. Raise the stop, or list values with commas.",
        ),
        ("train.lr=range(0.1,1,0)", "'train.lr=range(0.1,1,0)' never ends: its step is 0. Give another step."),
        (
            "train.lr=interval(0.01,0.1)",
            "'train.lr=interval(0.01,0.1)' draws numbers from an interval, and a grid takes listed ones. List values "
            "(train.lr=0.01,0.05 or a range), or search with hydra/sweeper=tune.",
        ),
    ],
)
def test_what_is_no_list_of_numbers_is_refused(said: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["plan", said], ["-m", said]):
        assert main(words) == 2 and capsys.readouterr().err == f"bdx: {told}\n"


# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_a_plan_says_what_is_done_and_cached(
    run: Callable[..., Job], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run("attack=badnets", "defense=ft", *QUICK)
    words = [
        "plan",
        "attack=badnets",
        "defense=ft,none",
        "seed=0,7",
        *QUICK,
        f"runtime.outputs={outputs}",
        "attack.target=0",
    ]
    assert main([*words, "attack.poison_rate=0.1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    lines = [" ".join(line.split()) for line in shown if line.strip()]
    assert lines[0] == f"0 {done.run.id} defense=ft seed=0 done"
    assert lines[1].startswith("1 ") and "defense=ft seed=7 trains its infection 0:" in lines[1]
    assert "defense=none seed=0" in lines[2] and ("infection cached" in lines[2] or lines[2].endswith("done"))
    assert "defense=none seed=7 infection of run 1" in lines[3]
    assert lines[4].startswith("4 runs: ") and lines[5].startswith("models to train first: 1; found in the cache: ")
    assert lines[6].startswith("about 0:") and " one after another, by " in lines[6]


def test_an_estimate_goes_by_runs_alike(tmp_path: Path) -> None:
    base = compose(["attack=badnets", "defense=ft"])
    for number, seconds in enumerate((10.0, 20.0, 60.0)):
        folder = tmp_path / "runs" / f"2026010{number}-000000_x_{number}"
        folder.mkdir(parents=True)
        stages = [
            Finding("infect", "badnets", cost={"infect": seconds}),
            Finding("purify", "ft", seconds={"purify": seconds / 10}),
        ]
        done = Run(str(number), "done", "x", base, stages)
        record.write(done, folder)
    past = forecast.Past(Outputs(tmp_path))
    assert past.estimate(compose(["attack=badnets", "defense=ft", "seed=5"])) == {"infect": 20.0, "purify": 2.0}
    other = past.estimate(compose(["attack=blended", "defense=ft", "defense.epochs=99"]))
    assert other == {"infect": 20.0, "purify": 2.0}  # the same recipe; the same defense
    assert past.estimate(compose(["train.epochs=99", "defense=fst"])) == {}
    assert "purify" in past.estimate(compose(["train.epochs=99", "defense=ft"]))


def test_a_plan_counts_no_purification_that_a_sweep_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One plain run, one with another control, and after-attacks on the same purified model."""
    costs = {"infect": 1.0, "detect": 2.0, "purify": 4.0, "after": 8.0}
    monkeypatch.setattr(forecast.Past, "estimate", lambda *_: costs)
    where = {"outputs": Outputs(tmp_path), "infection": tmp_path, "purified": tmp_path / "p", "verdict": tmp_path / "v"}

    def ahead(key: str, *alike: str, after: bool = False, detects: bool = False) -> forecast.Ahead:
        return forecast.Ahead(
            0, (), {}, key=key, alike=alike, is_attacked_after=after, detects=detects, **where
        )  # fmt: skip

    runs = [
        ahead("a", "a", "b"),
        ahead("b", "b", "a"),
        ahead("c", "a", "b", after=True),
        ahead("d", after=True),  # the folder that the run before leaves
        ahead("e", detects=True),  # as with rerun=true: the folder that this sweep made
        ahead("f", detects=True),
    ]
    said = forecast.forecast(runs)
    assert [[*run.seconds] for run in runs] == [["purify"], [], ["after"], ["after"], ["detect"], []]
    assert said.states == ["infection cached", *["infection cached, purified already"] * 5] and said.seconds == 22.0
    apart = [ahead("a", "a", after=True), ahead("b", "b")]
    apart[1].purified = tmp_path / "q"
    assert forecast.forecast(apart).states == ["infection cached"] * 2


@pytest.mark.parametrize("rerun", [False, True])
def test_a_plan_finds_what_a_finished_run_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rerun: bool) -> None:
    made: Any = SimpleNamespace(
        key="a", outputs=Outputs(tmp_path), infection_folder=tmp_path, detects=False, plugins=[], is_attacked_after=True,
        config={"rerun": rerun, "control": "off"}, attack=SimpleNamespace(needs_surrogate=False), purified_alike=["b", "c"],
        purification_folder=tmp_path / "none",
    )  # fmt: skip
    statuses = {"one": "failed", "two": "done"}
    monkeypatch.setattr(record, "status_of", lambda folder: statuses[folder.name])
    for folders, is_there in (({"b": ["one"]}, False), ({"b": ["one"], "c": ["two"]}, True), ({"x": ["two"]}, False)):
        run = forecast.Ahead(0, (), {})
        forecast.describe(run, made, {key: [Path(name) for name in names] for key, names in folders.items()})
        assert run.is_purified == (is_there and not rerun)
        assert run.alike == (() if rerun else ("b", "c"))


def test_a_record_of_a_killed_run_says_so(run: Callable[..., Job], tmp_path: Path) -> None:
    done = run("attack=badnets", "defense=ft", *QUICK)
    folder = tmp_path / "runs" / f"20260101-000000_x_{done.run.id}"
    folder.mkdir(parents=True)
    killed = record.read(done.folder)
    killed.status = "running"
    record.write(killed, folder)
    job.mark_lost(Outputs(tmp_path), done.run.id, "gone")
    assert (record.read(folder).status, record.read(folder).error) == ("failed", "gone")


# ---- schedule -------------------------------------------------------------------------------------------------------


def waiting(number: int, *trains: str, key: str = "") -> Waiting:
    return Waiting(number, key or str(number), tuple(Path(name) for name in trains))


def test_a_job_that_would_wait_is_put_behind() -> None:
    queue = [waiting(0, "a"), waiting(1, "a"), waiting(2, "b"), waiting(3, "clean", "c"), waiting(4, "clean", "d")]
    ready: set[Path] = set()

    def chosen(*running: Waiting) -> int | None:
        left = [one for one in queue if one not in running]
        found = schedule.next_job(left, running, ready.__contains__)
        return None if found is None else found.number

    assert chosen() == 0
    assert chosen(queue[0]) == 2  # not 1: job 0 trains its infection
    assert chosen(queue[0], queue[2]) == 3
    assert chosen(queue[0], queue[2], queue[3]) is None  # the clean model of 4 is being trained too
    ready.add(Path("a"))
    assert chosen(queue[0], queue[2], queue[3]) == 1  # trained by now, though job 0 goes on
    ready.update({Path("clean"), Path("c")})
    assert chosen(queue[0], queue[1], queue[2], queue[3]) == 4


def test_the_same_run_twice_waits_for_itself() -> None:
    twin = waiting(1, key="0")
    assert schedule.next_job([twin, waiting(2)], [waiting(0)], lambda _: True) == waiting(2)
    assert schedule.next_job([twin], [], lambda _: True) is twin


def test_slots_and_threads() -> None:
    assert [slot.gpu for slot in schedule.make_slots(["0", "2"], 2, None, 16)] == ["0", "2", "0", "2"]
    assert schedule.make_slots([], 1, 2, 16) == [Slot("worker 0", None), Slot("worker 1", None)]
    assert len(schedule.make_slots([], 1, None, 2)) == 2 and len(schedule.make_slots([], 1, None, 64)) == 8
    assert [schedule.threads_each(*pair) for pair in ((16, 4), (2, 8))] == [4, 1]


def test_gpus_of_a_pool() -> None:
    assert schedule.choose_gpus("auto", "auto", ["0", "1"]) == ["0", "1"]
    assert schedule.choose_gpus([1], "cuda", ["0", "1"]) == ["1"]
    assert schedule.choose_gpus("auto", "cpu", ["0"]) == schedule.choose_gpus([], "auto", ["0"]) == []
    for wanted, device, said in (
        ([3], "auto", "hydra.launcher.gpus names 3, but this process sees 0. Name those, or leave auto."),
        ("all", "auto", "hydra.launcher.gpus is 'all'; expected auto or a list such as [0,1]."),
        ("auto", "cuda:1", "runtime.device is cuda:1, but a pool hands each job its own device. Leave it at auto, and choose GPUs "
         "with hydra.launcher.gpus=[1]."),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            schedule.choose_gpus(wanted, device, ["0"])
        assert str(caught.value) == said


# ---- what is left and repeated --------------------------------------------------------------------------------------


def begun(folder: Path, *jobs: list[str], words: Sequence[str] = (), search: bool = False) -> sweep.Sweep:
    """A sweep of these jobs that has just begun in a folder."""
    hydra = {"sweep": {"dir": ""}, "job": {"env_set": {}}, "overrides": {"hydra": list(words)}}
    swept = sweep.Sweep(["--config-dir=mine"])
    runs = [forecast.Ahead(number, tuple(job), {}) for number, job in enumerate(jobs)]
    swept.begin(OmegaConf.create({"hydra": hydra}), str(folder), None if search else runs)
    return swept


def test_every_planned_job_is_accounted_for(tmp_path: Path) -> None:
    """Done, failed, killed, interrupted, still running, or never begun."""
    jobs = [["a=1", f"seed={seed}"] for seed in range(6)]
    swept = begun(tmp_path, *jobs)
    assert {left.status for left in swept.jobs().values()} == {"unstarted"} and not swept.has_started()
    assert swept.runs is not None
    swept.runs[4].outputs, swept.runs[4].key = Outputs(tmp_path), "0123456789ab"
    sweep.leave(tmp_path / "0", jobs[0], "done", record=Path("somewhere"), objective=0.5)
    sweep.leave(tmp_path / "1", jobs[1], "failed", error="it broke", mistake=True)
    sweep.leave(tmp_path / "2", jobs[2], "begun")
    sweep.leave(tmp_path / "3", jobs[3], "interrupted", error="was interrupted")
    sweep.leave(tmp_path / "4", jobs[4], "begun")
    lock = Outputs(tmp_path).lock("0123456789ab")
    with store.locked(lock, ""):
        found = swept.jobs()
    assert [left.status for left in found.values()] == [
        "done",
        "failed",
        "failed",
        "interrupted",
        "running",
        "unstarted",
    ]
    assert [list(left.overrides) for left in found.values()] == jobs
    assert found[0].record == str(Path("somewhere").absolute()) and found[2].error == sweep.LOST
    assert sweep.summary(found) == "2 of 6 jobs failed, 1 was interrupted, 1 still runs, 1 never started"
    assert sweep.told(found, "") == [
        "job 1 (seed=1): it broke",
        "job 2 (seed=2): ended without a word: it was killed, or ran out of memory",
        "job 3 (seed=3): was interrupted",
        "job 4 (seed=4): still runs",
        "job 5 (seed=5): never started",
    ]
    assert sweep.told(found, "the launcher gave up")[-1] == "never started, as the launcher gave up: job 5"
    assert swept.jobs()[4].error == sweep.LOST  # nobody holds the lock


def test_a_folder_used_before_holds_no_words_of_this_sweep(tmp_path: Path) -> None:
    first = begun(tmp_path, ["seed=0"], ["seed=1"])
    assert first.place == tmp_path
    for number in (0, 1):
        sweep.leave(first.place / str(number), [f"seed={number}"], "done")
    second, third = begun(tmp_path, ["seed=3"]), begun(tmp_path, ["seed=4"])  # at the same time
    sweep.leave(second.place / "0", ["seed=3"], "done")
    assert {number: (left.overrides, left.status) for number, left in second.jobs().items()} == {
        0: (("seed=3",), "done")
    }
    assert third.jobs()[0].status == "unstarted" and len(first.jobs()) == 2
    assert store.read_json(tmp_path / "sweep.json")["jobs"] == [["seed=4"]]  # the latest


def test_words_of_a_sweep_that_wrote_no_list_are_left_alone(tmp_path: Path) -> None:
    sweep.leave(tmp_path / "0", ["seed=0"], "done")
    assert begun(tmp_path, ["seed=1"]).jobs()[0].status == "unstarted"


def test_rerun_commands_cover_just_the_failed(tmp_path: Path) -> None:
    def left(*overrides: str) -> sweep.Left:
        return sweep.Left(overrides, "failed")

    swept = begun(tmp_path, words=["hydra.mode=MULTIRUN", "hydra/launcher=pool"])
    start = "bdx -m --config-dir=mine hydra/launcher=pool"
    grid = [left("d=ft", "seed=0", "m=[1,2]"), left("d=ft", "seed=1", "m=[1,2]")]
    assert swept.rerun_commands(grid) == [f"{start} d=ft seed=0,1 'm=[1,2]'"]
    ragged = [left("d=ft", "seed=0"), left("d=fst", "seed=1")]
    assert swept.rerun_commands(ragged) == [f"{start} d=ft seed=0", f"{start} d=fst seed=1"]
    many = [left(f"d={number}", f"seed={number}") for number in range(21)]
    assert swept.rerun_commands(many) == []
    search = begun(tmp_path, words=["hydra/sweeper=tune", "hydra.sweeper.n_trials=9"], search=True)
    assert search.rerun_commands([left("seed=0")]) == ["bdx -m --config-dir=mine seed=0"]


def test_a_search_of_no_trial_is_a_mistake(tmp_path: Path) -> None:
    config = OmegaConf.create({"hydra": {"sweeper": {"_target_": "elsewhere.Search", "n_trials": 0}}})
    with pytest.raises(sweep.SweepStopped) as stopped:
        sweep.SweepCallback().on_multirun_start(config)
    assert str(stopped.value.__cause__) == (
        "hydra.sweeper.n_trials is 0; expected a number at least 1. Change hydra.sweeper.n_trials."
    )


def test_numbers_of_jobs_in_a_line() -> None:
    assert sweep.spans([0, 2, 3, 7, 8, 9]) == "0, 2, 3, 7 to 9" and sweep.spans([4]) == "4"


def test_what_varies() -> None:
    assert varying([["a=1", "b=1"], ["a=1", "b=2"]]) == [["b=1"], ["b=2"]]
    assert varying([["a=1"]]) == [["a=1"]]


# ---- the pool's line and table --------------------------------------------------------------------------------------


def test_messages_arrive_whole() -> None:
    ours, theirs = socket.socketpair()
    lines, told = link.Lines(ours), link.Link(theirs)
    assert lines.read() == []
    told.send(stage="infect")
    theirs.sendall(b'{"part": "demo')
    assert lines.read() == [{"stage": "infect"}]
    theirs.sendall(b' epoch 1/2"}\n')
    assert lines.read() == [{"part": "demo epoch 1/2"}]
    lines.close()
    told.send(stage="purify")  # nobody listens any more
    theirs.close()


def test_the_table_of_a_pool() -> None:
    rows = [Row(number, f"seed={number}") for number in range(6)]
    out = Console(width=100, height=10, force_terminal=True, color_system=None, highlight=False)
    board = Board(out, rows, "auto")
    rows[0].end("found")
    rows[1].start()
    assert rows[1].hear({"stage": "infect", "scores": {}}) == "infect"
    assert rows[1].hear({"part": "demo epoch 3/20", "left": 61.0}) is None
    rows[2].start()
    rows[2].hear({"stage": "purify", "scores": {"ca": 0.97, "asr": 0.5, "ra": None}})
    rows[3].end("failed", "it broke")
    with out.capture() as captured:
        out.print(board.render())
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert lines == [
        "1 of 6 done, 1 failed, 2 running, 0:00",
        "run settings stage left CA ASR RA",
        "1 seed=1 infect demo epoch 3/20 1:01",
        "2 seed=2 purify 97.00 50.00 –",
        "3 seed=3 failed",
        "0 seed=0 done before",
        "… and 2 more",
    ]


def test_lines_in_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row(0, "seed=0"), Row(1, "seed=1")]
    with Board(Console(width=100), rows, "auto") as board:
        board.say(rows[0], rows[0].hear({"stage": "purify", "scores": {"ca": 0.97, "asr": 0.5, "ra": 0.4}}) or "")
        rows[0].end("done")
        board.say(rows[0], "done")
    with Board(Console(width=100), rows, "off") as board:
        board.say(rows[0], "nothing")
    assert capsys.readouterr().out.splitlines() == [
        "  0/2  run 0  seed=0: purify, CA 97.00 ASR 50.00 RA 40.00",
        "  1/2  run 0  seed=0: done",
    ]


def test_what_the_environment_of_jobs_says_is_planned(
    tmp_path: Path, looked: Callable[..., list[forecast.Ahead]]
) -> None:
    """Hydra sets it while the job runs, and the job is what was planned."""
    words = ["attack=badnets", "defense=ft", "seed=0,1", "train.precision=${oc.env:BDX_ASKED,auto}"]
    runs = looked(*words, f"runtime.outputs={tmp_path}", "+hydra.job.env_set.BDX_ASKED=float32")
    assert [run.config["train"]["precision"] for run in runs] == ["float32"] * 2
    assert "BDX_ASKED" not in os.environ
