"""hydra/launcher=pool with real processes: killed at random moments and repeated, a plugin that raises, Ctrl-C."""

import json
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backdoorbench.reporting import rows
from backdoorbench.storage import record

CHECKOUT = Path(__file__).resolve().parents[1]
TINY = (
    "dataset.train_size=300", "dataset.test_size=60", "model.width=8", "train.epochs=8", "train.batch_size=32", "control=off",
    "runtime.threads=1", "force=true",
)  # fmt: skip
POOL = ("-m", "hydra/launcher=pool", "hydra.launcher.workers=2")
SWEEP = (
    *POOL, "attack=badnets,blended", "attack.poison_rate=0.05,0.1,0.2", "defense=none,ft", "seed=0,1", *TINY,
    "runtime.snapshot_seconds=0",
)  # fmt: skip

RAISES = """
from dataclasses import dataclass
from pathlib import Path
from backdoorbench.defenses.base import Defense

@dataclass(frozen=True)
class Raises(Defense):
    def purify(self, scenario):
        if not Path("raised").exists():
            Path("raised").touch()
            raise RuntimeError("the plugin broke")
        return scenario.model
"""


PICKY = """
import os
from dataclasses import dataclass
from backdoorbench.defenses.base import Defense

@dataclass(frozen=True)
class Picky(Defense):
    when: str
    dies: bool

    def purify(self, scenario):
        if self.when == "ctrl-1":
            if self.dies:
                os._exit(0)
            raise RuntimeError(f"broke at {self.when}")
        return scenario.model
"""
PICKY_YAML = "_target_: mine.Picky\nversion: 1\nname: picky\nwhen: ${attack.name}-${seed}\ndies: false\n"


def start(*words: str, folder: Path) -> subprocess.Popen[str]:
    imports = os.pathsep.join([str(CHECKOUT), str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": imports, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "backdoorbench", *words], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def bdx(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    process = start(*words, folder=folder)
    out, err = process.communicate(timeout=1500)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def workers(folder: Path) -> dict[int, Path]:
    """Processes of jobs whose outputs lie below `folder`, template included (its folder is the sweeps')."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                said = (entry / "cmdline").read_bytes()
                if b"backdoorbench.sweeps.worker" in said and os.readlink(entry / "cwd") == str(folder):
                    found[int(entry.name)] = Path(os.readlink(entry / "fd" / "1")).parent
            except OSError:
                continue
    return found


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + 60  # a template notices when its imports are over
    while workers(folder):
        assert time.monotonic() < deadline, "jobs outlived their launcher"
        time.sleep(0.05)


def statuses(outputs: Path) -> list[str]:
    return [record.read(folder).status for folder in record.find(outputs)]


def done(outputs: Path) -> dict[str, float]:
    """Key of every finished run, and when its record was written."""
    folders = [folder for folder in record.find(outputs) if record.read(folder).status == "done"]
    assert len({folder.name.rpartition("_")[2] for folder in folders}) == len(folders)  # no run done twice
    return {folder.name.rpartition("_")[2]: (folder / "record.json").stat().st_mtime for folder in folders}


def logs(outputs: Path) -> str:
    return "\n".join(file.read_text(errors="replace") for file in sorted(outputs.glob("sweeps/*/*/log.txt")))


@pytest.mark.slow
def test_a_sweep_killed_five_times_finishes(tmp_path: Path) -> None:
    """SIGKILL to the launcher, and with it to its workers or not, at five random moments; then the same command once more."""
    outputs, draw = tmp_path / "outputs", random.Random(5)
    interrupted: set[str] = set()
    finished: dict[str, float] = {}
    for attempt in range(5):
        process = start(*SWEEP, folder=tmp_path)
        assert process.stdout is not None
        for _ in range(draw.randint(3, 14)):  # that many lines of progress, of a hundred
            process.stdout.readline()
        time.sleep(draw.random())
        while attempt == 0 and not list(outputs.glob("cache/snapshots/*.pt")):  # one of them surely in a training
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        victims = list(workers(tmp_path)) if attempt % 2 == 0 else []  # else they must notice by themselves
        process.kill()
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        process.communicate()
        wait_until_gone(tmp_path)
        now = done(outputs) if (outputs / "runs").is_dir() else {}
        assert {key: now[key] for key in finished} == finished  # what was done is not touched
        finished = now
        trained = {folder.name.rpartition("-")[2] for folder in outputs.glob("cache/infection/*[0-9a-f]/")}
        snapshots = {file.stem for file in outputs.glob("cache/snapshots/*.pt") if not file.name.startswith(".")}
        interrupted |= snapshots - trained
    swept = bdx(*SWEEP, folder=tmp_path)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert swept.stdout.count("done before; rerun=true repeats it") == len(finished)
    after = done(outputs)
    assert len(after) == 24 and {key: after[key] for key in finished} == finished
    runs = [run for folder in record.find(outputs) if (run := record.read(folder)).status == "done"]
    assert sum(row.n for row in rows.aggregate(runs)) == 24
    listed = bdx("report", "outputs", "--format", "runs-csv", folder=tmp_path).stdout.splitlines()[1:]
    assert len(listed) == 24 and all(",done," in row for row in listed)
    assert "running" not in statuses(outputs)

    said = logs(outputs)
    assert len(list(outputs.glob("cache/infection/*[0-9a-f]/"))) == 12
    trainings = re.findall(r"infected model: trained (\w+)", said)
    assert len(trainings) == len(set(trainings))
    assert interrupted, "no kill fell into a training: choose another seed"
    assert said.count("training resumes after epoch") >= len(interrupted)
    assert not list(outputs.glob("cache/snapshots/*.pt")) and not list(outputs.glob("cache/infection/.*"))
    assert "waiting for it" not in said  # no worker stood at a lock

    again = bdx(*SWEEP, folder=tmp_path)
    assert again.returncode == 0 and again.stdout.count("done before") == 24


@pytest.mark.slow
def test_a_plugin_that_raises_costs_itself_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RAISES)
    option = tmp_path / "conf" / "defense"
    option.mkdir(parents=True)
    (option / "raises.yaml").write_text("_target_: mine.Raises\nversion: 1\nname: raises\n")
    sweep_words = [word.replace("defense=none,ft", "defense=none,raises") for word in SWEEP]
    swept = bdx(f"--config-dir={tmp_path / 'conf'}", *sweep_words, "plugins=[mine]", folder=tmp_path)
    assert swept.returncode == 1, swept.stdout + swept.stderr
    assert "1 of 24 jobs failed; the same command repeats only those" in swept.stdout
    assert sorted(statuses(tmp_path / "outputs")) == ["done"] * 23 + ["failed"]
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    logs_of_jobs = [file.read_text() for file in sweep.glob("*/log.txt")]
    (failed,) = [text for text in logs_of_jobs if "RuntimeError: the plugin broke" in text]
    assert "Traceback (most recent call last)" in failed
    (broken,) = [folder for folder in record.find(tmp_path / "outputs") if record.read(folder).status == "failed"]
    assert record.read(broken).error == "RuntimeError: the plugin broke"
    assert "Traceback" in (broken / "log.txt").read_text()
    told = bdx("report", "outputs", folder=tmp_path)
    assert told.returncode == 0 and "RuntimeError: the plugin broke" in told.stdout and broken.name in told.stdout
    command = next(line.strip() for line in swept.stdout.splitlines() if line.startswith("  bdx "))
    repeated = bdx(*shlex.split(command)[1:], folder=tmp_path)
    assert repeated.returncode == 0, repeated.stdout + repeated.stderr
    assert statuses(tmp_path / "outputs").count("done") == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "dies", "said"),
    [
        ("basic", False, "RuntimeError: broke at ctrl-1"),
        ("pool", False, "RuntimeError: broke at ctrl-1"),
        ("pool", True, "the process ended with exit code 0 before its run was over. Its log: "),
        ("joblib", False, "RuntimeError: broke at ctrl-1"),
        ("submitit_local", False, "RuntimeError: broke at ctrl-1"),
        ("submitit_local", True, "ended without a word: it was killed, or ran out of memory"),
    ],
)
def test_every_launcher_accounts_for_every_job(launcher: str, dies: bool, said: str, tmp_path: Path) -> None:
    """Into an outputs folder an attack, one job failing or ended by os._exit."""
    if launcher == "submitit_local":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "mine.py").write_text(PICKY)
    (tmp_path / "conf" / "defense").mkdir(parents=True)
    (tmp_path / "conf" / "defense" / "picky.yaml").write_text(PICKY_YAML)
    words = ["attack=badnets,ctrl", "seed=0,1", "runtime.outputs=out-${attack.name}", *TINY, "train.epochs=0"]
    swept = bdx(
        "-m", f"--config-dir={tmp_path / 'conf'}", f"hydra/launcher={launcher}", "plugins=[mine]", "defense=picky",
        f"defense.dies={dies}", *words, folder=tmp_path,
    )  # fmt: skip
    assert swept.returncode == 1, swept.stdout + swept.stderr
    assert (
        f"  1 of 4 jobs failed; the same command repeats only those\n  job 3 (attack=ctrl seed=1): {said}"
        in swept.stdout
    )
    assert len(done(tmp_path / "out-badnets")) == 2 and len(done(tmp_path / "out-ctrl")) == 1


@pytest.mark.slow
def test_an_interrupt_ends_the_jobs(tmp_path: Path) -> None:
    process = start(*POOL, "attack=badnets", "defense=none", "seed=0,1", *TINY, "train.epochs=2000", folder=tmp_path)
    deadline = time.monotonic() + 120
    while statuses(tmp_path / "outputs").count("running") < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        "  2 of 2 jobs were interrupted; the same command repeats only those\n  job 0 (seed=0): was interrupted" in out
    )
    assert err == "bdx: interrupted; the same command goes on where it stopped\n"
    assert not workers(tmp_path)
    assert statuses(tmp_path / "outputs") == ["interrupted", "interrupted"]
    errors = {record.read(folder).error for folder in record.find(tmp_path / "outputs")}
    assert errors <= {"KeyboardInterrupt", "interrupted"}  # the latter where it took longer than `grace`


@pytest.mark.slow
def test_a_killed_job_costs_itself_alone(tmp_path: Path) -> None:
    process = start(*POOL, "attack=badnets", "defense=none", "seed=0,1", *TINY, "train.epochs=8,2000", folder=tmp_path)
    outputs, killed = tmp_path / "outputs", 0
    deadline = time.monotonic() + 300
    while killed < 2 and process.poll() is None and time.monotonic() < deadline:
        for victim, place in workers(tmp_path).items():
            settings = json.loads(file.read_text())["overrides"] if (file := place / "config.json").is_file() else []
            if "train.epochs=2000" in settings and "running" in statuses(outputs):
                os.kill(victim, signal.SIGKILL)
                killed += 1
        time.sleep(0.5)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert killed == 2 and "2 of 4 jobs failed" in out
    assert "the process was killed by SIGKILL before its run was over; memory may have run out. Its log: " in out
    assert "running" not in statuses(outputs) and statuses(outputs).count("done") == 2


@pytest.mark.slow
def test_fifty_rates_and_seeds_of_each_pair_are_planned_at_the_cost_of_a_few(tmp_path: Path) -> None:
    """Options are composed once for a pair of attack and defense; of 50 runs of each a plan took 2.3 times as long as of one."""
    pairs = ("plan", "attack=badnets,blended,sig,wanet,ftrojan", "defense=none,ft,fst,aft")

    def seconds(runs: str, *words: str) -> float:
        """Of the processor: others may use it, too."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        planned = bdx(*pairs, *words, folder=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert planned.returncode == 0 and f"{runs} runs: 0 done, {runs} to do" in planned.stdout
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    one = seconds("20")
    assert seconds("1,000", "attack.poison_rate=0.002,0.005,0.01,0.02,0.05", "seed=range(0,10)") < 5 * one
