"""bdx runs and bdx cache: what they print, exactly; who is running; what a prune takes and what it never does."""

import functools
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK
from filelock import FileLock
from rich.console import Console

from backdoorbench.cli import cache as cache_verb
from backdoorbench.cli import runs as runs_verb
from backdoorbench.cli.main import main
from backdoorbench.config.compose import Plain, compose
from backdoorbench.pipeline import job, plan
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting import cached, ledger
from backdoorbench.storage import store
from backdoorbench.storage.record import Finding

NOW = 1_800_000_000.0  # seconds since the epoch
DAY = 86400.0
GROUPS = ("format", "dataset", "model", "train", "attack", "seed", "holdout")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe's width, whatever runs the tests."""
    for verb in (runs_verb, cache_verb):
        monkeypatch.setattr(verb, "make_console", lambda: Console(width=140, highlight=False))


@functools.cache
def composed(*settings: str) -> Plain:
    return compose(settings)


def put_run(outputs: Path, number: int, *settings: str, status: str = "done", **content: Any) -> Path:
    """The record of a run as it would lie there; `number` is the second it started, and its key's last digit."""
    resolved = composed(*settings)
    label = "-".join(resolved[group]["name"] for group in ("dataset", "attack", "defense"))
    key = content.pop("id", f"00000000000{number}")
    folder = outputs / "runs" / f"20260101-00000{number}_{label}_{key}"
    folder.mkdir(parents=True)
    infect = Finding("infect", resolved["attack"]["name"], key=content.pop("infection", {}).get("key", ""))
    purify = Finding("purify", resolved["defense"]["name"], seconds=content.pop("seconds", {}))
    stages = [asdict(infect), asdict(purify) | {"scores": content.pop("purified", None)}]
    made = {"id": key, "status": status, "config": resolved, "stages": stages, "error": None}
    made |= {"started": "2027-01-15T07:59:00+00:00"} | content  # a minute before NOW
    (folder / "record.json").write_text(json.dumps(made))
    return folder


def put_infection(outputs: Path, *settings: str, days: float = 2.0, size: int = 1000) -> str:
    """An infection in the cache, last used so many days ago; its key."""
    resolved = composed(*settings) | {"format": 1}
    kept = {group: resolved[group] for group in GROUPS}
    key = store.key("infection", kept)
    folder = outputs / "cache" / "infection" / f"{kept['attack']['name']}-{kept['dataset']['name']}-{key}"
    folder.mkdir(parents=True)
    described = json.dumps({"settings": kept, "seconds": {"infect": 125.0}})
    (folder / "infection.json").write_text(described)
    (folder / "model.safetensors").write_bytes(bytes(size - len(described)) if size > len(described) else b"")
    os.utime(folder, (time.time() - days * DAY,) * 2)
    return key


@contextmanager
def held(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def printed(width: int, show: Callable[[Console], None]) -> list[str]:
    out = io.StringIO()
    show(Console(width=width, file=out, highlight=False))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def names(outputs: Path) -> set[str]:
    return {folder.name.rpartition("-")[2] for folder in (outputs / "cache" / "infection").iterdir() if folder.is_dir()}


# ---- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def five(tmp_path: Path) -> Path:
    """Runs in every state."""
    scores = {"ca": 0.9, "asr": 0.015, "ra": 0.8875, "n_clean": 360, "n_triggered": 324}
    put_run(tmp_path, 1, "defense=fst", purified=scores, seconds={"infect": 61.0, "purify": 4.2})
    put_run(
        tmp_path,
        2,
        "defense=fst",
        "defense.alpha=0.2",
        purified=scores | {"asr": None, "ra": None},
        seconds={"purify": 3700},
    )
    put_run(
        tmp_path,
        3,
        "defense=ft",
        "seed=1",
        status="failed",
        error="TrainingError: the loss is nan\nand more",
        seconds={"load": 1},
    )
    put_run(tmp_path, 4, "attack=none", status="running")
    put_run(tmp_path, 5, "attack=blended", "attack.poison_rate=0.05", "defense=ft", status="running")
    broken = tmp_path / "runs" / "20260101-000006_digits-badnets-ft_000000000006"
    broken.mkdir()
    (broken / "record.json").write_text("{")
    return tmp_path


def test_runs_at_140_columns(five: Path) -> None:
    with held(five / "cache" / "locks" / "000000000005.lock"):
        found = ledger.entries(five)
    assert printed(140, lambda out: runs_verb.print_runs(out, found, ledger.STATUSES, NOW)) == [
        " digits · demo · train=demo · holdout=standard",
        " status       key           settings                                            CA   ASR     RA     time  started",
        " done         000000000001  badnets 10 % → fst · seed 0 · defense.alpha=0.1  90.00  1.50  88.75     1:05  20260101-000001",
        " done         000000000002  badnets 10 % → fst · seed 0 · defense.alpha=0.2  90.00     –      –  1:01:40  20260101-000002",
        " failed       000000000003  badnets 10 % → ft · seed 1                           –     –      –     0:01  20260101-000003",
        "                            TrainingError: the loss is nan",
        " interrupted  000000000004  none → none · seed 0                                 –     –      –        –  20260101-000004",
        " running      000000000005  blended 5 % → ft · seed 0                            –     –      –     1:00  20260101-000005",
        " damaged      000000000006  record.json cannot be read                           –     –      –        –  20260101-000006",
        "  6 runs: 1 running, 1 interrupted, 1 failed, 2 done, 1 damaged; figures of the purified models, percent",
        f"  folders: {five}/runs/STARTED_*_KEY",
    ]


def test_runs_at_80_columns(five: Path) -> None:
    found = ledger.entries(five)
    assert printed(80, lambda out: runs_verb.print_runs(out, found, ["failed", "interrupted"], NOW)) == [
        " digits · demo · train=demo · holdout=standard",
        " status       key           settings                        CA  ASR  RA  time",
        " failed       000000000003  badnets 10 % → ft · seed 1       –    –   –  0:01",
        "                            TrainingError: the loss is nan",
        " interrupted  000000000004  none → none · seed 0             –    –   –     –",
        " interrupted  000000000005  blended 5 % → ft · seed 0        –    –   –     –",
        "  6 runs: 2 interrupted, 1 failed, 2 done, 1 damaged; figures of the purified models, percent",
        f"  folders: {five}/runs/*_KEY",
    ]


def test_what_few_runs_have_of_their_own_is_all_they_say(tmp_path: Path) -> None:
    for number in range(6):
        put_run(tmp_path, number, "defense=ft", *(["train=fast"] if number == 5 else []))
    title, told = ledger.told_apart([entry.content["config"] for entry in ledger.entries(tmp_path)])
    assert title == "where not said otherwise: digits · demo · seed 0 · train=demo · holdout=standard"
    assert told == ["badnets 10 % → ft"] * 5 + ["badnets 10 % → ft · train=fast"]


def test_a_dead_run_of_a_key_that_runs_again_stays_interrupted(tmp_path: Path) -> None:
    for number in (1, 2):
        put_run(tmp_path, number, status="running", id="0123456789ab")
    with held(tmp_path / "cache" / "locks" / "0123456789ab.lock"):
        assert [entry.status for entry in ledger.entries(tmp_path)] == ["interrupted", "running"]
    assert [entry.status for entry in ledger.entries(tmp_path)] == ["interrupted", "interrupted"]


def test_a_run_counts_as_running_while_it_runs(tmp_path: Path) -> None:
    """The lock that job.py takes is the one that is asked."""
    seen: list[str] = []
    settings = [f"runtime.outputs={tmp_path}", "defense=none", *QUICK, "train.epochs=0", "force=true"]
    job.carry_out(compose(settings), lambda *_: seen.extend(entry.status for entry in ledger.entries(tmp_path)))
    assert seen == ["running"] * 3 and [entry.status for entry in ledger.entries(tmp_path)] == ["done"]


def test_runs_on_the_command_line(five: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(five), "--status", "done"]) == 0
    shown = capsys.readouterr().out
    assert "000000000002" in shown and "000000000003" not in shown
    assert main(["runs", str(five), "--last", "2", "--status", "done,failed"]) == 0
    shown = capsys.readouterr().out
    assert "000000000003" in shown and "000000000002" in shown and "000000000001" not in shown
    assert main(["runs", str(five), "--status", "running"]) == 0  # none is
    assert capsys.readouterr().out == (
        "  6 runs: 2 interrupted, 1 failed, 2 done, 1 damaged; figures of the purified models, percent\n"
    )


# ---- cache ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def four(tmp_path: Path) -> dict[str, str]:
    """Infections: one that two records need, its clean control, an old one and a large one; their keys."""
    keys = {
        "needed": put_infection(tmp_path, size=20_000),
        "old": put_infection(tmp_path, "seed=1", days=40, size=30_000),
        "large": put_infection(tmp_path, "attack=blended", "attack.poison_rate=0.01", days=0.5, size=5_000_000),
        "control": put_infection(tmp_path, "attack=none", days=9, size=10_000),
    }
    for number, defense in enumerate(("ft", "fst")):
        put_run(tmp_path, number, f"defense={defense}", infection={"key": keys["needed"]})
    return keys


def bdx(capsys: pytest.CaptureFixture[str], outputs: Path, *words: str) -> list[str]:
    """What `bdx cache <words>` prints."""
    assert main(["cache", *words, "--outputs", str(outputs)]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_cache_lists(four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"snapshots": 1500, "purification": 2500, "exact": 3500, "network": 4500}
    for name, size in sizes.items():
        (tmp_path / "cache" / name).mkdir()
        (tmp_path / "cache" / name / "0123456789ab").write_bytes(bytes(size))
    listed = bdx(capsys, tmp_path)
    assert listed == [
        " digits · demo · train=demo · holdout=standard",
        " key           settings                  size  unused  training  runs",
        *sorted(
            [
                f" {four['needed']}  badnets 10 % · seed 0  20.0 kB     2 d      2:05     2",
                f" {four['old']}  badnets 10 % · seed 1  30.0 kB    40 d      2:05     0",
            ]
        ),
        f" {four['large']}  blended 1 % · seed 0    5.0 MB    12 h      2:05     0",
        f" {four['control']}  none · seed 0          10.0 kB     9 d      2:05     0",
        "  4 infections, 5.1 MB; snapshots 1.5 kB; purified models 2.5 kB; exact purifications 3.5 kB; networks of triggers 4.5 kB",
    ]
    assert bdx(capsys, tmp_path, "list") == listed


def test_why_two_keys_differ(four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, third = four["needed"], four["old"], four["large"]
    assert bdx(capsys, tmp_path, "why", one[:6], other) == [
        f" setting  {one}  {other}",
        " seed     0             1",
    ]
    assert bdx(capsys, tmp_path, "why", one, third) == [
        f" setting              {one}  {third}",
        " attack.name          badnets       blended",
        " attack.poison_rate   0.1           0.01",
        " attack.pattern       white3        –",
        " attack.patch_file    null          –",
        " attack.patch_size    3             –",
        " attack.position      null          –",
        " attack.picture       –             smooth_noise",
        " attack.picture_file  –             null",
        " attack.match_stats   –             True",
        " attack.train_ratio   –             0.2",
        " attack.test_ratio    –             0.2",
    ]


def test_pruning_only_says_what_it_would_do(
    four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bdx(capsys, tmp_path, "prune", "--unreferenced") == [
        " digits · demo · seed 1 · train=demo · holdout=standard",
        " key           settings         size  unused  training  runs",
        f" {four['old']}  badnets 10 %  30.0 kB    40 d      2:05     0",
        "  would delete 1 infection, 30.0 kB",
        "  kept 3: 2 needed by a record, 1 younger than 1d",
        "  nothing is deleted yet; --yes does it",
    ]
    assert names(tmp_path) == set(four.values())


@pytest.mark.parametrize(
    ("words", "gone", "kept"),
    [
        (["--older-than", "5d"], {"old", "control"}, "2 younger than 5d"),
        (["--older-than", "1h", "--unreferenced"], {"old", "large"}, "2 needed by a record"),
        (["--older-than", "1h", "--max-size", "5.03MB"], {"old"}, "3 within the size"),
        (["--older-than", "1h", "--max-size", "1kB"], {"old", "control", "needed", "large"}, ""),
        (["--older-than", "20w"], set(), "4 younger than 20w"),
    ],
)
def test_pruning(
    words: list[str], gone: set[str], kept: str, four: dict[str, str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    said = bdx(capsys, tmp_path, "prune", *words, "--yes")
    assert names(tmp_path) == {key for name, key in four.items() if name not in gone}
    infections = tmp_path / "cache" / "infection"
    assert not [entry for entry in infections.iterdir() if entry.name.startswith(".")]  # nothing half deleted
    noun = "infection" if len(gone) == 1 else "infections"
    assert [line.startswith(f"  deleted {len(gone)} {noun}, ") for line in said if "deleted" in line] == [True]
    assert said[-1] == f"  kept {4 - len(gone)}: {kept}" or not kept


EXACT = "exact purifications: 1, 900 bytes"
BESIDE = ["purified models: 1, 700 bytes", "verdicts: 1, 40 bytes"]


@pytest.mark.parametrize(
    ("lock", "gone"),
    [("none", [EXACT, *BESIDE]), ("exact/1", BESIDE), ("locks/000000000009", [])],
    ids=["nobody", "who makes it", "a running run"],
)
def test_what_was_made_of_infections_goes_unless_somebody_may_want_it(
    lock: str, gone: list[str], four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_run(tmp_path, 9, "attack=sig", status="running")
    made = {
        "detection/nc-1": (9, 40),
        "purification/ft-1": (9, 700),
        "purification/ft-2": (0.1, 60),
        "exact/1": (9, 900),
    }
    for name, (days, size) in made.items():
        folder = tmp_path / "cache" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(size))
        os.utime(folder, (time.time() - days * DAY,) * 2)
    with held(tmp_path / "cache" / f"{lock}.lock"):
        said = bdx(capsys, tmp_path, "prune", "--older-than", "1d", "--unreferenced", "--yes")
    told = [line.removeprefix("  deleted ") for line in said if line.startswith("  deleted ")]
    assert told == ["1 infection, 30.0 kB", *gone]
    left = [name for name in made if (tmp_path / "cache" / name).is_dir()]
    assert len(left) == len(made) - len(gone) and "purification/ft-2" in left


def test_a_live_run_keeps_the_infections_it_may_want(
    four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_run(tmp_path, 5, "defense=ft", status="running")
    with held(tmp_path / "cache" / "locks" / "000000000005.lock"):
        said = bdx(capsys, tmp_path, "prune", "--older-than", "1h", "--yes")
    assert said[-2:] == ["  deleted 1 infection, 5.0 MB", "  kept 3: 3 in use"]
    assert names(tmp_path) == {four["needed"], four["old"], four["control"]}
    assert bdx(capsys, tmp_path, "prune", "--older-than", "1h", "--yes")[-1] == "  deleted 3 infections, 60.0 kB"


def test_a_locked_infection_stays(four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cache" / "infection" / f"badnets-digits-{four['old']}"
    with held(store.lock_of(folder)):
        assert bdx(capsys, tmp_path, "prune", "--older-than", "30d", "--yes") == [
            "  deleted 0 infections, 0 bytes",
            "  kept 4: 1 in use, 3 younger than 30d",
        ]
    assert names(tmp_path) == set(four.values())


def test_what_is_wanted_between_the_look_and_the_deed_stays(
    four: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(*_: object) -> set[str]:  # a run finds it in the cache just after this
        os.utime(tmp_path / "cache" / "infection" / f"badnets-digits-{four['old']}")
        return set()

    monkeypatch.setattr(cached, "in_use", look)
    said = bdx(capsys, tmp_path, "prune", "--older-than", "30d", "--yes")
    assert said == ["  deleted 0 infections, 0 bytes", "  kept 4: 3 younger than 30d, 1 in use"]
    assert names(tmp_path) == set(four.values())


def test_the_control_of_an_infection_is_the_pipelines(run: Callable[..., Job], outputs: Path) -> None:
    settings = ["attack=badnets", "defense=none", *QUICK, "train.epochs=0", "force=true"]
    run(*settings)
    made = plan.plan(compose([f"runtime.outputs={outputs}", *settings]))
    assert cached.control_key(made.infection_settings) == plan.clean_plan(made).infection_key
    stored = {one.key: one for one in cached.infections(outputs, ledger.entries(outputs))}
    assert stored[made.infection_key].settings == made.infection_settings and stored[made.infection_key].needed


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs", "nowhere"], "'nowhere' is no folder; expected one that holds runs, such as outputs/. Name another."),
        (
            ["runs", "empty"],
            "no record.json lies below empty; expected at least one run. Run something first: bdx attack=badnets defense=fst.",
        ),
        (
            ["runs", ".", "--status", "fialed"],
            "--status is 'fialed'; expected running, interrupted, failed, done or damaged. Did you mean 'failed'?",
        ),
        (["runs", ".", "--last", "0"], "--last is 0; expected how many runs to list, at least 1."),
        (
            ["cache", "prun"],
            "bdx cache cannot 'prun'. Did you mean 'prune'? It can list, why KEY KEY, and prune; bdx cache prune --help says more.",
        ),
        (
            ["cache", "--outputs", "empty"],
            "no infection lies in empty/cache/infection; expected at least one. Name another outputs folder with --outputs DIR, or "
            "run something first: bdx attack=badnets defense=none.",
        ),
        (
            ["cache", "why", "{old}"],
            "bdx cache why: the following arguments are required: KEY. Expected: bdx cache why [-h] [--config-dir DIR] [--plugin DIR] [--outputs DIR] KEY KEY.",
        ),
        (
            ["cache", "why", "{old}", "xyz"],
            "'xyz' is no infection's key; expected one infection. bdx cache lists their keys.",
        ),
        (
            ["cache", "why", "{old}", ""],
            "one of the words is empty; expected a verb or settings, KEY=VALUE. Leave it out: an unset variable?",
        ),
        (
            ["cache", "why", "{old}", "{old}"],
            "both keys are {old}, one infection; expected two. bdx cache lists their keys.",
        ),
        (
            ["cache", "prune"],
            "bdx cache prune does not know what to prune. Say at least one of --older-than AGE, --unreferenced and --max-size SIZE; "
            "nothing is deleted without --yes.",
        ),
        (
            ["cache", "prune", "--older-than", "30"],
            "--older-than is '30'; expected an age such as 45m, 12h, 30d or 4w. Correct it.",
        ),
        (
            ["cache", "prune", "--max-size", "lots"],
            "--max-size is 'lots'; expected a size such as 500MB or 20GB. Correct it.",
        ),
    ],
)
def test_mistakes(
    words: list[str], said: str, four: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "outputs").mkdir()  # the default place
    for folder in ("runs", "cache"):
        (tmp_path / folder).rename(tmp_path / "outputs" / folder)
    keys = [folder.name.rpartition("-")[2] for folder in sorted((tmp_path / "outputs/cache/infection").iterdir())]
    named = {"old": four["old"], "all": f"{', '.join(keys[:-1])} and {keys[-1]}"}
    assert main([word.format(**named) for word in words]) == 2
    assert capsys.readouterr().err == f"bdx: {said.format(**named)}\n"


@pytest.mark.parametrize("text", ["{}", "", "[]", '{"settings": [], "seconds": {}}', None])
def test_an_infection_that_describes_nothing_is_left_out(
    text: str | None, four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cache" / "infection" / f"badnets-digits-{four['old']}" / "infection.json"
    file.unlink() if text is None else file.write_text(text)
    assert main(["cache", "--outputs", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "  3 infections, 5.0 MB" in shown.out and four["old"] not in shown.out
    assert shown.err.startswith(f"bdx: an infection is left out: {file.parent} (")
    assert (
        shown.err.endswith("; a run that needs it sets it aside and trains it again\n") and shown.err.count("\n") == 1
    )


def test_what_was_set_aside_is_counted(
    four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache" / "infection" / f"badnets-digits-{four['old']}"
    store.set_aside(folder, "model.safetensors is missing")
    answers = tmp_path / "cache" / "control" / "0123456789ab.json"
    answers.parent.mkdir()
    answers.write_text("{")
    assert store.read_answer(answers, ("scores",)) is None
    capsys.readouterr()
    said = bdx(capsys, tmp_path)
    assert said[-2] == "  3 infections, 5.0 MB"
    assert said[-1].startswith(
        f"  set aside as damaged: 2, 30.0 kB, the first {tmp_path}/cache/control/0123456789ab.json.damaged-"
    )
    assert said[-1].endswith("; nothing reads them, and bdx cache prune deletes them")
    assert bdx(capsys, tmp_path, "prune", "--older-than", "1h", "--yes")[0].startswith(" ")
    assert folder.name in "".join(entry.name for entry in folder.parent.iterdir())  # kept: it is no infection


def put_aside(outputs: Path, name: str, time: str, size: int | None = None) -> Path:
    """Something set aside in the cache: a folder with a file of 1 kB in it, or a file of that size."""
    place = outputs / "cache" / f"{name}.damaged-{time}"
    place.parent.mkdir(parents=True, exist_ok=True)
    if size is None:
        place.mkdir()
        (place / "model.safetensors").write_bytes(bytes(1000))
    else:
        place.write_bytes(bytes(size))
    return place


def test_pruning_takes_what_was_set_aside(
    four: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [
        put_aside(tmp_path, "control/0123456789ab.json", "20200101-120000", 500),
        put_aside(tmp_path, "data/folder-0123456789ab", "20200101-120000"),
        put_aside(tmp_path, "infection/badnets-digits-0123456789ab", "20200101-120000.2"),
        put_aside(tmp_path, "network/ssba-digits-0123456789ab", "20200101-120000"),
    ]
    young = put_aside(tmp_path, "infection/sig-digits-0123456789ab", "29990101-120000")
    listed = [
        *(f"  {place}  {'500 bytes' if place.is_file() else '1.0 kB'}" for place in old),
        "  would delete 4 set aside as damaged, 3.5 kB",
    ]
    said = bdx(capsys, tmp_path, "prune", "--older-than", "20w")
    assert said == [
        "  would delete 0 infections, 0 bytes",
        *listed,
        "  kept 4: 4 younger than 20w",
        "  nothing is deleted yet; --yes does it",
    ]
    assert all(place.exists() for place in old)
    said = bdx(capsys, tmp_path, "prune", "--older-than", "20w", "--yes")
    assert said[-2:] == ["  deleted 4 set aside as damaged, 3.5 kB", "  kept 4: 4 younger than 20w"]
    assert not any(place.exists() for place in old) and young.exists()
    assert names(tmp_path) - {"20200101"} >= set(four.values())


def test_pruning_where_nothing_but_damage_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = put_aside(tmp_path, "infection/badnets-digits-0123456789ab", "20200101-120000")
    assert bdx(capsys, tmp_path)[0] == "  0 infections, 0 bytes"
    assert bdx(capsys, tmp_path, "prune", "--unreferenced", "--yes") == [
        "  deleted 0 infections, 0 bytes",
        f"  {place}  1.0 kB",
        "  deleted 1 set aside as damaged, 1.0 kB",
    ]
    assert not place.exists()


def test_a_name_without_a_time_goes_by_its_last_change(tmp_path: Path) -> None:
    place = put_aside(tmp_path, "data/folder-0123456789ab", "someday")
    os.utime(place, (1000, 1000))
    assert store.aside_since(place) == 1000
    link = place.with_name("link.damaged-20200101-120000")
    link.symlink_to(place)
    store.remove(link)  # and not what it leads to
    assert place.is_dir() and not link.is_symlink()
