"""The command line: quick answers without torch, verbs, exact texts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import QUICK

from backdoorbench.cli.main import VERBS, main
from backdoorbench.config import catalog
from backdoorbench.config.compose import compose, conf_dir
from backdoorbench.config.groups import NAMES
from backdoorbench.pipeline.job import Job
from backdoorbench.sweeps.pool import ended_by_signals

HEAVY = ("torch", "torchvision", "timm", "sklearn", "numpy", "matplotlib")
GUARD = f"""
import sys
class Guard:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {HEAVY!r}:
            raise AssertionError(f"{{name}} was imported")
sys.meta_path.insert(0, Guard())
from backdoorbench.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--help"], 0, "bdx tells whether a backdoor defense works"),
        (["list"], 0, "BadNets, arXiv 1708.06733v2"),
        (["list", "defenses"], 0, "fst"),
        (["show", "defense=fst"], 0, "defense.alpha"),
        (["--cfg", "job", "attack=blended"], 0, "poison_rate: 0.1"),
        (["--version"], 0, "bdx "),
        (["runs"], 2, "'outputs' is no folder; expected one that holds runs"),
        (["cache", "prune", "--help"], 0, "--unreferenced"),
        (["defense=fts"], 2, "defense 'fts' is unknown. Did you mean 'fst' or 'ft'?"),
        (["defense.lrr=1", "defense=fst"], 2, "defense has no setting 'lrr'. Did you mean 'lr'?"),
    ],
)
def test_answers_without_torch(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", GUARD, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert said in (done.stdout if code == 0 else done.stderr)
    assert time.monotonic() - start < 10  # a hang; the real bound (1.5 s) is measured by hand, not by a timed test
    assert not list(tmp_path.iterdir())  # asking leaves nothing behind


def test_importing_the_package_is_cheap() -> None:
    probe = "import sys, backdoorbench; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_the_public_names() -> None:
    import backdoorbench

    assert backdoorbench.__all__ == [
        "build", "compose", "evaluate", "image_set", "infect", "load_dataset", "load_model", "plugin", "purify", "results", "run",
        "withhold",
    ]  # fmt: skip
    assert all(callable(getattr(backdoorbench, name)) for name in backdoorbench.__all__)


def test_list_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for group in NAMES for name in catalog.names(group))


def test_show_prints_every_knob(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "defense=fst"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("FST: feature shift tuning.") and "Paper    arXiv 2310.01875v2" in shown
    for knob in catalog.describe("defense", "fst").knobs:
        assert f"defense.{knob.name}" in shown and knob.default in shown
    assert "  Departs  1. only the last linear layer counts as the classifier" in shown


def test_a_run_prints_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["attack=badnets", "defense=none", *QUICK, "runtime.progress=off"]) == 0
    (entry,) = (tmp_path / "outputs" / "runs").iterdir()
    record = json.loads((entry / "record.json").read_text())
    infect, purify = record["stages"]
    assert infect["scores"] == purify["scores"]
    figures = " ".join(f"{100 * infect['scores'][name]:.2f}" for name in ("ca", "asr", "ra"))
    key = infect["key"]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith("weak infection")] == [
        "digits · demo · badnets → none · seed 0",
        f"infected model: trained {key}",
        f"infect poison rate 10 %, target 0 {lines[2].split()[-1]}",
        f"purify none, holdout 5 % {lines[3].split()[-1]}",
        "CA ASR RA",
        f"infected {figures}",
        f"purified {figures}",
        "percent of 120 clean and 108 triggered test images",
        f"record outputs/runs/{entry.name}/record.json",
    ]
    assert main(["attack=badnets", "defense=none", *QUICK]) == 0
    assert "done before; rerun=true repeats it" in capsys.readouterr().out


@pytest.mark.wide
def test_report(run: Callable[..., Job], outputs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(run("attack=badnets", "defense=ft", *QUICK).folder)
    run_one = str(run("attack=badnets", "defense=ft", "seed=1", *QUICK).folder)
    assert main(["report", folder, run_one]) == 0
    shown = capsys.readouterr().out
    assert "±" in shown and "seeds 0, 1;" in shown
    assert main(["report", folder, run_one, "--output", str(tmp_path / "table.txt")]) == 0
    assert (tmp_path / "table.txt").read_text() == shown and capsys.readouterr().out.startswith("wrote ")
    for kind, first in (
        ("csv", "dataset,model,attack,"),
        ("md", "dataset digits · model demo"),
        ("latex", "% \\usepackage{booktabs}"),
        ("runs-csv", "id,status,dataset,"),
    ):
        assert main(["report", folder, "--format", kind]) == 0
        assert capsys.readouterr().out.startswith(first)
    assert main(["report", str(outputs), "--format", "csv", "--output", str(tmp_path / "table.csv")]) == 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) >= 2


def test_python_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "backdoorbench", "--version"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0 and done.stdout.startswith("bdx ")


# ---- settings and where they come from ------------------------------------------------------------------------------


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What a verb prints, blanks folded."""
    assert main(words) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_show_names_every_refinement_and_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, "show", "defense=ft")
    assert "with experiment=fst: keep_head_norm true (in/defense/ft/fst.yaml)" in said
    assert "with scale=small: batch_size dataset.tuning.batch_size (at/defense/ft/small.yaml)" in said
    assert "with dataset=gtsrb: alpha 0.1 (on/defense/fst/gtsrb.yaml)" in shown(capsys, "show", "defense=fst")


@pytest.mark.wide
def test_show_prints_what_holds_elsewhere_and_the_file_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, "show", "defense=fst", "dataset=gtsrb", "scale=small", "defense.lr=0.3")
    assert said[-17:-10] == [
        "defense.alpha 0.1 on/defense/fst/gtsrb.yaml",
        "defense.strength null defense/fst.yaml",
        "defense.reinit true defense/fst.yaml",
        "defense.project true defense/fst.yaml",
        "defense.trainable all defense/fst.yaml",
        "defense.epochs 15 dataset/gtsrb.yaml, by dataset.tuning.epochs",
        "defense.batch_size 32 scale/small.yaml, by dataset.tuning.batch_size",
    ]
    assert "defense.lr 0.3 the command line" in said
    assert "defense.augment.crop null dataset/gtsrb.yaml, by dataset.augment.crop" in said
    held = shown(capsys, "show", "attack=ftrojan", "dataset=gtsrb")
    assert "attack.target 1 dataset/gtsrb.yaml, by dataset.target" in held


def test_show_explains_one_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "defense=fst", "defense=ft"]) == 2
    assert capsys.readouterr().err.startswith("bdx: bdx show was given defense=fst and defense=ft; expected one option")


@pytest.mark.parametrize("words", [["plot", "curves", "."], ["preview", "attack=badnets"]], ids=lambda words: words[0])
def test_a_folder_is_no_file_to_draw_into(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place := tmp_path / "x.svg").mkdir()
    assert main([*words, "--output", str(place)]) == 2
    assert f"--output is '{place}', a folder; expected the file that is to be written" in capsys.readouterr().err


def test_show_prints_of_a_scale_and_an_experiment_what_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, "show", "scale=small")
    assert "Chooses model=demo, train=fast" in said and any(
        line.startswith("dataset.train_size 12000") for line in said
    )
    assert not any("scale.dataset" in line for line in said)
    said = shown(capsys, "show", "experiment=fst")
    assert (
        "Sweeps defense=ft,lp,fe_tuning,ft_init,fst" in said
        and "Chooses dataset=cifar10, model=resnet18, train=paper, holdout=fst" in said
    )
    assert not any("experiment.hydra" in line or "hydra.sweeper" in line for line in said)
    for name in catalog.names("experiment"):  # all that it prints can be set
        for knob in catalog.describe("experiment", name).knobs:
            compose([f"experiment={name}", "hydra.mode=RUN", f"{knob.name}={knob.default}"])


def test_help_lists_what_a_user_chooses_and_no_refinement(capsys: pytest.CaptureFixture[str]) -> None:
    said = "\n".join(shown(capsys, "--help"))
    assert all(group in said for group in NAMES) and "trap_and_replace" in said and "strip" in said
    assert "on/" not in said and "_on" not in said and "listing" not in said
    assert len(said.splitlines()) < 45


@pytest.mark.wide
def test_a_folder_of_ones_own_serves_every_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, outputs = tmp_path / "own", tmp_path / "out"
    (own / "defense").mkdir(parents=True)
    (own / "on" / "defense" / "mine").mkdir(parents=True)
    (own / "experiment").mkdir()
    text = (conf_dir() / "defense" / "ft.yaml").read_text().replace("name: ft", "name: mine")
    (own / "defense" / "mine.yaml").write_text(text)
    (own / "on" / "defense" / "mine" / "digits.yaml").write_text("momentum: 0.5\n")
    (own / "experiment" / "try.yaml").write_text("# @package _global_\n# bdx experiment=try\n# Mine.\nseed: 3\n")
    flag = ("--config-dir", str(own))
    assert any(line.startswith("mine ") for line in shown(capsys, "list", "defenses", *flag))
    assert "with dataset=digits: momentum 0.5 (on/defense/mine/digits.yaml)" in shown(
        capsys, "show", "defense=mine", *flag
    )
    held = shown(capsys, "show", "defense=mine", "seed=0", *flag)
    assert any(line.startswith("defense.momentum 0.5") for line in held)
    settings = ("attack=badnets", f"runtime.outputs={outputs}", "dataset.train_size=200", "dataset.test_size=50")
    said = shown(capsys, "plan", "defense=mine,ft", *settings, *flag)
    assert any("defense=mine" in line and "trains its infection" in line for line in said)
    assert any("PSNR" in line for line in shown(capsys, "preview", "defense=mine", *settings, *flag))
    assert any("wrote" in line for line in shown(capsys, "export", *settings, "--to", str(tmp_path / "set"), *flag))
    assert main(["reproduce", "tri", *flag]) == 2 and "Did you mean 'try'" in capsys.readouterr().err
    assert "mine" in "\n".join(shown(capsys, "--help", *flag))
    for verb in ("runs", "report", "cache"):
        assert main([verb, "--help", *flag]) == 0
    assert main(["list", "--config-dir", str(tmp_path / "nowhere")]) == 2
    assert "which is no folder; expected one of your own yaml files" in capsys.readouterr().err


def test_help_names_every_verb_and_every_verb_where_plugins_lie(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert [verb for verb in VERBS if f"bdx {verb} " not in told] == []
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert "--plugin DIR" in capsys.readouterr().out, verb
    assert main(["cache", "--help"]) == 0
    assert "{list,why,prune}" in capsys.readouterr().out


@pytest.mark.parametrize(("before", "ends"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_terminated_run_is_an_interrupted_one_unless_the_signal_is_ignored(
    before: signal.Handlers, ends: bool
) -> None:
    """As `kill` and schedulers end a run; `nohup` has some ignored."""
    kept = signal.signal(signal.SIGTERM, before)
    try:
        with pytest.raises(KeyboardInterrupt) if ends else nullcontext(), ended_by_signals(signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, kept)
