"""A sweep knows its jobs: one table and one exit code over all that were planned, whatever becomes of each; closed pipes."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK
from hydra.core.plugins import Plugins
from records import made_run

from backdoorbench.cli.main import main
from backdoorbench.config.compose import Plain, compose
from backdoorbench.errors import TrainingError
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import job, plan
from backdoorbench.pipeline.job import Job
from backdoorbench.progress import outlasting_readers
from backdoorbench.storage import record
from backdoorbench.storage.store import read_json

SCORES = Scores(ca=0.9, asr=0.8, ra=0.1, n_clean=100, n_triggered=90)
Told = tuple[int, str, str]


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[int, BaseException]:
    """Runs that train nothing, in a folder of their own. Those of a seed that is put in here end so."""
    ends: dict[int, BaseException] = {}

    def carry_out(resolved: Plain, announce: Callable[..., None], **_: Any) -> Job:
        seed = resolved["seed"]
        if seed in ends:
            raise ends[seed]
        folder = Path(resolved["runtime"]["outputs"]) / "runs" / f"x_{resolved['attack']['name']}_{seed}"
        run = made_run(f"{resolved['attack']['name']}{seed}", resolved, SCORES, SCORES)
        folder.mkdir(parents=True, exist_ok=True)
        record.write(run, folder)
        return Job(run, folder, repeated=False)

    monkeypatch.setattr(job, "carry_out", carry_out)
    monkeypatch.chdir(tmp_path)
    return ends


@pytest.fixture
def basic() -> Any:
    """The launcher that is used, which is another class than its module's: Hydra's scan for plugins executes that anew."""
    main(["--cfg", "job"])
    return Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]


@pytest.fixture
def bdx(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    """Exit code, output and errors of `bdx <words>`."""

    def call(*words: str) -> Told:
        code = main(words)
        return code, *capsys.readouterr()

    return call


def sweeps(where: str = "outputs") -> list[Any]:
    return [read_json(file) for file in sorted(Path(where).glob("sweeps/*/sweep.json"))]


# ---- one table over every planned job -------------------------------------------------------------------------------


@pytest.mark.wide
def test_jobs_of_several_outputs_folders_are_one_sweep(
    bdx: Callable[..., Told], trained: dict[int, BaseException]
) -> None:
    trained[2] = RuntimeError("it broke")
    code, out, _ = bdx("-m", "runtime.outputs=out-${attack.name}", "attack=ctrl,badnets,blended", "seed=0,1,2,3")
    assert code == 1
    table = [line.split() for line in out.splitlines() if line.startswith((" badnets", " ctrl", " blended"))]
    assert [(cells[0], cells[cells.index("none") + 1]) for cells in table] == [
        (each, "3") for each in ("ctrl", "badnets", "blended")
    ]
    assert "  3 of 12 jobs failed; the same command repeats only those" in out
    for number, attack in ((2, "ctrl"), (6, "badnets"), (10, "blended")):
        assert f"  job {number} (attack={attack} seed=2): RuntimeError: it broke" in out
    (sweep,) = sweeps("out-ctrl")  # the first job's
    assert len(sweep["jobs"]) == 12 and not Path("out-badnets", "sweeps").exists()


@pytest.mark.wide
def test_a_folder_used_before_counts_for_nothing(bdx: Callable[..., Told], trained: dict[int, BaseException]) -> None:
    trained[1] = RuntimeError("it broke")
    assert bdx("-m", "hydra.sweep.dir=sw", "seed=0,1")[0] == 1
    code, out, _ = bdx("-m", "hydra.sweep.dir=sw", "seed=3")
    assert code == 0 and "seed 3;" in out and "failed" not in out
    assert [job[-1] for job in read_json(Path("sw/sweep.json"))["jobs"]] == ["seed=3"]
    trained.clear()
    code, out, _ = bdx("-m", "hydra.sweep.dir=sw", "seed=0,1")
    assert code == 0 and "seeds 0, 1;" in out


FOLDERS = (
    ["hydra.sweep.subdir=always_the_same"],
    ["hydra.sweep.subdir={tmp}/elsewhere/${hydra.job.num}"],
    ["hydra.job.chdir=true", "hydra.sweep.subdir=a/${seed}"],
    ["hydra.job.chdir=true", "runtime.outputs=here"],
    ["hydra.sweep.dir='it\\'s, {here}'"],
    ["hydra/sweeper=basic"],
    ["~hydra.callbacks.sweep"],
    ["+hydra.job.env_set.BDX_SWEEP=nonsense"],
)
MORE_FOLDERS = (
    ["hydra.sweep.subdir=deep/${attack.name}/${seed}"],
    ["hydra.sweep.subdir=${hydra.job.override_dirname}"],
    ["hydra.sweep.subdir=1"],
    ["hydra.job.name=mine"],
    ["hydra.sweep.dir=of-${seed}"],
    ["hydra.run.dir=of-${hydra.job.num}", "hydra.sweep.subdir=${hydra.job.id}"],
    ["hydra.output_subdir=.hydra"],
    ["hydra.sweeper.max_batch_size=1"],
)


@pytest.mark.wide
@pytest.mark.parametrize(
    "settings", [*FOLDERS, *(pytest.param(words, marks=pytest.mark.slow) for words in MORE_FOLDERS)], ids=" ".join
)
def test_no_folder_of_hydra_hides_a_job(
    settings: list[str], bdx: Callable[..., Told], trained: dict[int, BaseException], tmp_path: Path
) -> None:
    trained[1] = RuntimeError("it broke")
    words = [word.replace("{tmp}", str(tmp_path)) for word in settings]
    code, out, err = bdx("-m", *words, "seed=0,1,2")
    assert code == 1, out + err
    assert "  1 of 3 jobs failed; the same command repeats only those\n  job 1 (seed=1): RuntimeError: it broke" in out
    assert "seeds 0, 2;" in out
    here = "here" if "runtime.outputs=here" in words else "outputs"
    assert sorted(folder.name for folder in Path(here, "runs").iterdir()) == ["x_badnets_0", "x_badnets_2"]


@pytest.mark.slow
def test_shuffled_values_run_as_planned(bdx: Callable[..., Told]) -> None:
    assert bdx("-m", "seed=shuffle(range(0,20))")[0] == 0
    (sweep,) = sweeps()
    (folder,) = Path("outputs/sweeps").iterdir()
    assert [read_json(folder / str(number) / "job.json")["overrides"] for number in range(20)] == sweep["jobs"]


@pytest.mark.wide
def test_an_absolute_path_leads_to_each_record(bdx: Callable[..., Told]) -> None:
    assert bdx("-m", "seed=0", "runtime.outputs=./rel/../rel")[0] == 0
    (word,) = Path("rel/sweeps").glob("*/0/job.json")
    assert Path(read_json(word)["record"]).is_absolute()


# ---- jobs that do not end well --------------------------------------------------------------------------------------


@pytest.mark.wide
def test_a_launcher_that_gives_up_leaves_jobs_lost_and_unstarted(
    basic: Any, bdx: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As joblib does where a worker is killed."""
    whole = basic.launch

    def launch(self: Any, jobs: Any, initial_job_idx: int) -> Any:
        whole(self, jobs[:1], initial_job_idx)
        place = Path(self.config.hydra.job.env_set.BDX_SWEEP) / "1"
        place.mkdir()
        (place / "job.json").write_text('{"overrides": [], "status": "begun"}')
        raise MemoryError("a worker was killed")

    monkeypatch.setattr(basic, "launch", launch)
    code, out, err = bdx("-m", "seed=range(0,9)")
    assert code == 1 and err == "bdx: the launcher gave up: MemoryError: a worker was killed\n"
    assert "seed 0;" in out
    assert "  1 of 9 jobs failed, 7 never started; the same command repeats only those" in out
    assert "  job 1 (seed=1): ended without a word: it was killed, or ran out of memory" in out
    assert "  never started, as the launcher gave up: jobs 2 to 8" in out


@pytest.mark.wide
def test_a_launcher_that_drops_a_job_is_found_out(
    basic: Any, bdx: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = basic.launch
    monkeypatch.setattr(basic, "launch", lambda self, jobs, initial_job_idx: whole(self, jobs[:2], 0))
    code, out, _ = bdx("-m", "seed=0,1,2")
    assert code == 1 and "  1 of 3 jobs never started; the same" in out and "  job 2 (seed=2): never started" in out


@pytest.mark.wide
def test_a_mistake_of_the_launcher_comes_before_any_table(
    bdx: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code, out, err = bdx("-m", "hydra/launcher=pool", "hydra.launcher.gpus=[7]", "seed=0,1")
    assert (code, out) == (2, "") and err.startswith("bdx: hydra.launcher.gpus names 7, but this process sees 0.")


@pytest.mark.wide
@pytest.mark.parametrize("code", [0, 3, "enough"])
def test_a_method_that_calls_exit_fails_alone(
    code: int | str, bdx: Callable[..., Told], trained: dict[int, BaseException]
) -> None:
    trained[1] = SystemExit(code)
    ended, out, _ = bdx("-m", "seed=0,1,2")
    assert ended == 1 and f"  job 1 (seed=1): SystemExit: {code}" in out and "seeds 0, 2;" in out
    with pytest.raises(RuntimeError, match="the run ended itself by sys.exit"):  # a bug keeps its traceback
        main(["seed=1"])


@pytest.mark.wide
@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("it broke"), 1), (TrainingError("the loss is nan"), 2)], ids=["bug", "mistake"]
)
def test_what_fail_fast_stops_is_said_to_have_never_started(
    error: Exception, code: int, bdx: Callable[..., Told], trained: dict[int, BaseException]
) -> None:
    trained[1] = error
    ended, out, _ = bdx("-m", "fail_fast=true", "seed=range(0,6)")
    assert ended == code
    assert "  1 of 6 jobs failed, 4 never started; the same command repeats only those" in out
    assert "  never started, as fail_fast=true stopped the sweep: jobs 2 to 5" in out


@pytest.mark.wide
def test_an_interrupted_sweep_tells_what_it_did(bdx: Callable[..., Told], trained: dict[int, BaseException]) -> None:
    trained[1] = KeyboardInterrupt()
    code, out, err = bdx("-m", "seed=0,1,2,3")
    assert code == 130 and err == "bdx: interrupted; the same command goes on where it stopped\n"
    assert "seed 0;" in out
    assert "  1 of 4 jobs was interrupted, 2 never started; the same command repeats only those" in out
    assert "  job 1 (seed=1): was interrupted\n  never started, as the sweep was interrupted: jobs 2, 3" in out


@pytest.mark.wide
def test_mistakes_alone_are_exit_code_2(bdx: Callable[..., Told], trained: dict[int, BaseException]) -> None:
    trained[0] = TrainingError("the loss is nan")
    assert bdx("-m", "seed=0,1")[0] == 2
    trained[1] = RuntimeError("it broke")
    assert bdx("-m", "seed=0,1")[0] == 1


# ---- what an interrupt leaves ---------------------------------------------------------------------------------------


@pytest.mark.wide
def test_an_interrupted_run_is_told_as_such(bdx: Callable[..., Told]) -> None:
    """By runs, reports and plans, apart from a failed one."""
    words = ["runtime.outputs=outputs", *QUICK]
    for seed, status, error in (
        (4, "interrupted", "KeyboardInterrupt"),
        (5, "failed", "it broke"),
        (6, "running", None),
    ):
        resolved = compose([*words, f"seed={seed}"])
        key = plan.plan(resolved).key
        folder = Path("outputs/runs") / f"20260101-00000{seed}_digits-badnets-none_{key}"
        folder.mkdir(parents=True)
        started = "2026-01-01T00:00:00+00:00"
        record.write(made_run(key, resolved, None, None, status=status, error=error, started=started), folder)
    shown = bdx("report", "outputs")[1]
    assert "  1 run interrupted: the same command goes on where it stopped " in shown
    assert "  1 run without an end: killed, or still going " in shown and shown.count("failed: ") == 1
    assert bdx("report", "outputs", "--format", "runs-csv")[1].count(",interrupted,") == 1
    assert bdx("report", "outputs", "--format", "html", "--output", "page.html")[0] == 0
    assert "<b>1</b><span>interrupted</span>" in Path("page.html").read_text()
    listed = bdx("runs", "outputs", "--status", "interrupted")[1]
    assert listed.count(" interrupted ") == 2 and "KeyboardInterrupt" not in listed  # the killed one too
    assert "  3 runs: 2 interrupted, 1 failed;" in listed
    code, shown, _ = bdx("plan", "seed=4,5,6,7", *words)
    assert code == 0 and "4 runs: 0 done, 4 to do (2 interrupted before) (1 failed before)" in shown
    assert [line.split(" infection")[1].strip() for line in shown.splitlines() if "trains its" in line] == [
        ", interrupted before", ", failed before", ", interrupted before", "",
    ]  # fmt: skip


@pytest.mark.wide
@pytest.mark.parametrize(
    ("rates", "code", "said"),
    [
        ("0.05,0.5", 0, "2 runs: 0 done, 1 to do, 1 that cannot be"),
        ("0.5,0.6", 2, "2 runs: 0 done, 0 to do, 2 that cannot be"),
        ("0.05,7", 2, "2 runs: 0 done, 1 to do, 1 that cannot be"),
    ],
    ids=["some", "all", "a mistake"],
)
def test_the_code_of_a_plan_says_whether_a_sweep_would_begin(
    rates: str, code: int, said: str, bdx: Callable[..., Told]
) -> None:
    words = ["attack=sig", f"attack.poison_rate={rates}"]
    ended, out, err = bdx("plan", *words)
    assert ended == code and said in out and bool(err) == bool(code)
    swept = bdx("-m", *words)
    assert swept[0] == code and swept[2] == err


# ---- sweeps of nothing ----------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["detector=glob(zz*)"], "'detector=glob(zz*)' matches no option, so the sweep has no run. The options of detector are ac, latent_tac, "),
        (["atack=glob(*)"], "'atack' is no group, so 'atack=glob(*)' matches nothing. Did you mean 'attack'? The groups are "),
        (["seed=range(3,3)"], "'seed=range(3,3)' holds no number: the stop is left out."),
        (["seed=shuffle(range(2,1))"], "'seed=shuffle(range(2,1))' holds no number: the stop is left out."),
        (["seed=0,1", "hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size is 0; expected a number at least 1."),
        (["seed=0,1", "hydra.sweeper.max_batch_size=all"], "hydra.sweeper.max_batch_size is 'all'; expected a whole number."),
        (["train.lr=interval(0.1,1)", "hydra/sweeper=basic"], "'train.lr=interval(0.1,1)' draws numbers from an interval, and "),
    ],
)  # fmt: skip
def test_a_sweep_of_no_run_is_a_mistake(words: list[str], said: str, bdx: Callable[..., Told]) -> None:
    code, out, err = bdx("-m", *words)
    assert (code, out) == (2, "") and err.startswith(f"bdx: {said}") and err.count("\n") == 1
    if "hydra/sweeper=basic" not in words:
        assert not Path("outputs").exists()
        assert bdx("plan", *words)[0] == 2


# ---- nobody reads ---------------------------------------------------------------------------------------------------


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Lets nobody read what is printed from then on."""
    with ExitStack() as streams:

        def close() -> None:
            for name in ("stdout", "stderr"):
                reader, writer = os.pipe()
                os.close(reader)
                monkeypatch.setattr(sys, name, streams.enter_context(open(writer, "w")))

        yield close


@pytest.mark.wide
@pytest.mark.parametrize(
    "words", [["list"], ["show", "defense=ft"], ["report", "outputs"], ["runs", "outputs"], ["nonsense"]]
)
def test_verbs_bear_a_closed_pipe(words: list[str], bdx: Callable[..., Told], closed: Callable[[], None]) -> None:
    bdx("seed=0")
    closed()
    assert main(words) == (2 if words == ["nonsense"] else 0)
    sys.stdout.flush()  # as Python does at its end
    sys.stderr.flush()


@pytest.mark.wide
def test_a_closed_pipe_ends_no_sweep(trained: dict[int, BaseException], closed: Callable[[], None]) -> None:
    closed()
    assert main(["-m", "seed=0,1,2"]) == 0
    assert main(["seed=7"]) == 0
    assert sorted(folder.name for folder in Path("outputs/runs").iterdir()) == [
        f"x_badnets_{seed}" for seed in (0, 1, 2, 7)
    ]
    trained[1] = RuntimeError("it broke")
    assert main(["-m", "seed=0,1,2"]) == 1


def test_streams_that_were_never_there_take_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["list"]) == 0 and main(["seed=0"]) == 0 and sys.stdout is None


def test_a_full_disk_is_no_reader_who_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space left"), outlasting_readers():
        print("x")
