"""No traceback for a mistake, a kind at a time: Hydra's flags, references, numbers, names, folders, verbs. Terminals that cannot print."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import QUICK
from PIL import Image

from backdoorbench.cli import flags, hydra_run
from backdoorbench.cli.main import main
from backdoorbench.config.compose import conf_dir
from backdoorbench.data.holdout import fitting
from backdoorbench.errors import ConfigError, StorageError, check_name, check_range, first_line, paragraph, shown
from backdoorbench.pipeline import job, plan

MISTAKES: dict[str, list[tuple[list[str], str]]] = {
    "flags": [
        (["-m", "attack=badnets,ctrl", "--cfg", "job"], "--cfg and -m each ask for something else. Give one of them; the runs of a sweep"),
        (["--run", "--info"], "--run and --info each ask for something else."),
        (["--cfg", "nope"], "argument --cfg/-c: invalid choice: 'nope'"),
        (["--cfg"], "argument --cfg/-c: expected one argument. A run is described by settings, KEY=VALUE; the flags beside them are"),
        (["--cfg", "job", "--package", "nope"], "--package is 'nope', which is no part of the configuration. Name a group"),
        (["--package", "attack"], "--package says what part --cfg prints. Add --cfg job, or leave --package out."),
        (["--resolve"], "--resolve says how --cfg prints. Add --cfg job, or leave --resolve out."),
        (["--info", "nope"], "argument --info/-i: invalid choice: 'nope'"),
        (["-sc"], "--shell-completion came with nothing; expected install=SHELL or uninstall=SHELL, of bash, fish and zsh."),
        (["-sc", "install=nope"], "--shell-completion came with install=nope; expected install=SHELL"),
        (["-sc", "query=bash"], "--shell-completion came with query=bash; expected"),
        (["-cd", "nowhere"], "--config-dir is 'nowhere', which is no folder; expected one of your own yaml files. Name another."),
        (["--config-dir=text.txt"], "--config-dir is 'text.txt', which is no folder"),
        (["--help", "--config-dir", "nowhere"], "--config-dir is 'nowhere', which is no folder"),
        (["-cd", "empty", "-cd", "empty"], "--config-dir is given 2 times, and a run takes one."),
        (["--config-name", "x"], "--config-name is 'x', of which there is no yaml file."),
        (["--config-path", "x"], "--config-path is 'x', but bdx always starts from its own yaml files. Add yours with --config-dir DIR"),
        (["--experimental-rerun", "x"], "--experimental-rerun is not for bdx"),
        (["--mutlirun"], "unrecognized arguments: --mutlirun. Did you mean '--multirun' or '--run'?"),
        (["-x", "attack=badnets"], "unrecognized arguments: -x."),
        ([""], "one of the words is empty; expected a verb or settings, KEY=VALUE."),
    ],
    "settings of Hydra": [
        (["hydra.verbose=5"], "Hydra cannot begin with these settings (AssertionError: "),
        (["hydra.sweep.dir=null"], "the configuration cannot be composed: field 'hydra.sweep.dir' is not Optional."),
        (["hydra.run.dir=text.txt"], "Hydra cannot begin with these settings (FileExistsError:"),
        (["hydra.searchpath=[nowhere]"], "Hydra cannot begin with these settings (UserWarning:"),
        (["hydra.callbacks.sweep=null"], "Hydra cannot begin with these settings (UserWarning:"),
        (["+hydra.job.env_copy=[NOPE]"], "Hydra cannot begin with these settings (KeyError:"),
        (["hydra/job_logging=nope"], "hydra/job_logging=nope is not there. Those here: default, disabled, none, stdout."),
        (["hydra/launcher=nope"], "hydra/launcher=nope is not there."),
        (["hydra.mode=nope"], "the configuration cannot be composed: Invalid value 'nope', expected one of [RUN, MULTIRUN]."),
        (["-m", "seed=0,1", "hydra.launcher=null"], "Hydra cannot begin with these settings (RuntimeError: 'Hydra launcher is not conf"),
        (["-m", "seed=0,1", "hydra.sweeper._target_=os.system"], "Hydra cannot begin with these settings (RuntimeError: \"Invalid plugin"),
        (["-m", "seed=0,1", "hydra.sweeper.params=5"], "hydra.sweeper.params is 5; expected settings with their values. Leave it out."),
        (["-m", "seed=0,1", "hydra.sweeper.max_batch_size=0"], "hydra.sweeper.max_batch_size is 0; expected a number at least 1."),
        (["-m", "seed=0,1", "hydra.sweeper.max_batch_size=x"], "hydra.sweeper.max_batch_size is 'x'; expected a whole number."),
        (["plan", "seed=range(0,1000000000)"], "'seed=range(0,1000000000)' holds more than 100,000 numbers, the most that a sweep runs."),
        (["plan", "seed=range(0,inf)"], "'seed=range(0,inf)' never ends: expected finite numbers."),
        (["plan", "seed=range(0,1000)", "train.epochs=range(0,1000)"], "the sweep has 1,000,000 runs; expected at most 100,000."),
        (["plan", "seed=glob(*)"], "'seed' is no group, so 'seed=glob(*)' matches nothing."),
    ],
    "words for Hydra that would not be heard": [
        (["hydra/launcher=pool", "seed=0"], "'hydra/launcher=pool' is for sweeps, and this is a single run. Add -m, or leave hydra/laun"),
        (["hydra/sweeper=basic"], "'hydra/sweeper=basic' is for sweeps, and this is a single run. Add -m, or leave hydra/sweeper out."),
        (["hydra.sweeper.max_batch_size=3"], "'hydra.sweeper.max_batch_size=3' is for sweeps, and this is a single run."),
        (["-m", "hydra/launcher=pool", "hydra.launcher.workers=2.5", "seed=0,1"], "hydra.launcher.workers is 2.5; expected a whole"),
        (["-m", "hydra/launcher=pool", "hydra.launcher.jobs_per_gpu=true", "seed=0,1"], "hydra.launcher.jobs_per_gpu is True; expect"),
        (["-m", "hydra/launcher=pool", "hydra.launcher.grace=long", "seed=0,1"], "hydra.launcher.grace is 'long'; expected a number."),
        (["+hydra.searchpath=[empty]"], "Hydra looks through no folder of '+hydra.searchpath=[empty]'. Say hydra.searchpath=[FOLDER]"),
        (["hydra.searchpath=[empty]", "hydra.searchpath=[empty]"], "hydra.searchpath is given 2 times, --config-dir of a verb included"),
        (["plan", "--config-dir", "empty", "hydra.searchpath=[empty]"], "hydra.searchpath is given 2 times, --config-dir of a verb"),
        (["-m", "hydra.mode=RUN", "seed=0,1"], "Hydra cannot begin with these settings (UserWarning: 'Running Hydra app with --multirun"),
        (["plan", "seed=0,1", "++seed=3"], "'seed=0,1' and '++seed=3' both set seed. Leave one of them out."),
        (["plan", "attack=glob(*)", "defense=glob(*)", "seed=range(1000)"], "the sweep has 1,"),
        (["+experiment=fst"], "'+experiment=fst' adds an option of the group experiment, of which every run has one already. Say exp"),
        (["++attack=blended"], "'++attack=blended' adds an option of the group attack, of which every run has one already. Say attack=bl"),
        (["-m", "+defense=ft,fst"], "'+defense=ft,fst' adds an option of the group defense, of which every run has one already."),
        (["defense=ft/"], "defense is 'ft/'; expected one of its options: abl, ac"),
        (["--config-name", "defense/ft"], "--config-name is 'defense/ft', of which there is no yaml file."),
    ],
    "what a verb was told twice": [
        (["reproduce", "fst", "experiment=pbe"], "bdx reproduce was given 'experiment=pbe', which PAPER, the first word, says too; expect"),
        (["reproduce", "fst", "scale=small"], "bdx reproduce was given 'scale=small', which --scale says too; expected one of the two."),
        (["reproduce", "fst", "++seed=3", "--seeds", "0,1"], "bdx reproduce was given '++seed=3', which --seeds says too;"),
        (["reproduce", "fst", "--attacks", "sig", "attack=blended"], "bdx reproduce was given 'attack=blended', which --attacks says too;"),
    ],
    "one of what an experiment sweeps": [
        (["export", "experiment=fst", "--to", "x"], "experiment=fst is a sweep over attack=badnets,blended,sig,wanet; attack.poison_rate="),
        (["export", "experiment=fst.yaml", "attack=sig", "--to", "x"], "experiment=fst is a sweep over attack.poison_rate=0.1,0.05,"),
        (["preview", "experiment=pbe"], "experiment=pbe is a sweep over attack="),
    ],
    "names of other options": [
        (["attack.name=blended"], "attack.name is 'blended', which attack=blended is called, and the class here is another: backdoorbench.att"),
        (["defense={name: fst}"], "defense.name is 'fst', which defense=fst is called, and the class here is another: "),
        (["detector=strip", "detector.name=none"], "detector.name is 'none', which detector=none is called, and the class here"),
        (["after.name=retune"], "after.name is 'retune', which after=retune is called, and the class here is another: "),
        (["model.name=resnet18"], "model.name is 'resnet18', which model=resnet18 is called, and the class here is another: "),
        (["dataset.name=cifar10"], "dataset.name is 'cifar10', which dataset=cifar10 is called, and the class here is another: "),
    ],
    "a folder that digits do not read": [
        (["dataset.root=empty"], "dataset.root is 'empty', and digits reads no folder: its images come with scikit-learn. Choose"),
    ],
    "references": [
        (["attack.target=${nope}"], "attack.target refers to what cannot be resolved (Interpolation key 'nope' not found). Give a value, or a"),
        (["attack.target=${dataset.nope}"], "attack.target refers to what cannot be resolved (Interpolation key 'dataset.nope' not found)."),
        (["attack.target=${oc.env:NOPE}"], "attack.target refers to what cannot be resolved (KeyError raised while resolving interpolation"),
        (["attack.target=${attack.target}"], "attack.target refers to what cannot be resolved (Recursive interpolation detected)."),
        (["attack.target=${attack}"], "attack.target refers to what cannot be resolved (Interpolation to parent node detected)."),
        (["attack.target=${dataset}"], "attack.target is {'_target_': 'backdoorbench.data.digits.Digits'"),
        (["attack.target=${nope:1}"], "attack.target refers to what cannot be resolved (Unsupported interpolation type nope)."),
        (["attack.target=${"], "'attack.target=${' cannot be read as a setting"),
        (["seed=???"], "seed is '???', which stands for a value that is still to be given. Give one: seed=VALUE."),
        (["attack=${defense}"], "attack is '${defense}'; expected one of its options: "),
        (["--cfg", "job", "--resolve", "attack.target=${nope}"], "a setting refers to what cannot be resolved"),
        (["plan", "attack.target=${nope}", "seed=0,1"], "attack.target refers to what cannot be resolved"),
        (["preview", "attack.target=${nope}"], "attack.target refers to what cannot be resolved"),
        (["show", "attack=badnets", "attack.target=${nope}"], "attack.target refers to what cannot be resolved"),
    ],
    "numbers": [
        (["train.lr=inf"], "train.lr is inf; expected a finite number. Change train.lr."),
        (["train.lr=nan"], "train.lr is nan; expected a finite number."),
        (["train.epochs=99999999999999999999"], "train.epochs is 99999999999999999999; expected a number below 9e+18."),
        (["seed=99999999999999999999"], "seed is 99999999999999999999; expected a number below 9e+18."),
        ([f"train.lr=1{'0' * 400}"], "train.lr is 10000000000000000000000…; expected a number below 9e+18."),
        (["dataset.size=100000"], "dataset.size is 100000; expected a number between 1 and 4096."),
        (["dataset.size=2048"], "dataset.size is 2048, but digits holds all its images in memory"),
        (["dataset.crop=100"], "dataset.crop is 100 with dataset.size=16; the crop is cut out of the stored image, so it has 1 to 16 pixels a side."),
        (["dataset.mean=[1e308,0,0]"], "dataset.mean[0] is 1e+308; expected a number between 0 and 1."),
        (["dataset.std=[0,1,1]"], "dataset.std[0] is 0; expected a number between 0.001 and 10."),
        (["dataset.augment.crop_padding=100000"], "crop_padding is 100000; expected pixels of border, 0 to 4096"),
        (["model.width=1000000"], "model 'demo' has 1,000,000 channels in its first stage; expected at most 256"),
        (["model=wrn_28_10", "model.widen=1000"], "model 'wrn_28_10' has 16,000 channels in its first stage"),
        (["runtime.threads=100000"], "runtime.threads is 100000; expected a number between 1 and 1024."),
        (["attack.version=x"], "attack.version is 'x'; expected a whole number."),
        (["attack=badnets", "attack.version=7"], "attack.version is 7, and badnets is of version 1 here. A version names the code that "
         "runs, so no setting changes it. Leave attack.version out, or `version:` in your yaml file."),
        (["dataset.train_size=11"], "holdout.rate=0.05 of 11 training images is 1; expected at least one image for each of the 10 classes and "
         "fewer than the 11 images they are drawn from. Set holdout.rate=0.9091, or give more images"),
        (["dataset.train_size=10"], "holdout.rate=0.05 of 10 training images is 0; expected at least one image for each of the 10 classes and "
         "fewer than the 10 images they are drawn from. No holdout.rate does: give more images"),
    ],
    "groups and keys": [
        (["~attack.target"], "attack lacks 'target'; add it to the yaml file that describes BadNets. A `~attack.target` deletes it: leave that out."),
        (["~train.lr"], "train lacks 'lr'; add it to the yaml file that describes Recipe. A `~train.lr` deletes it: leave that out."),
        (["~curve"], "the configuration lacks 'curve'"),
        (["~dataset.augment"], "train.augment refers to what cannot be resolved"),
        (["attack=[badnets]"], "attack is '[badnets]'; expected one of its options: "),
        (["attack=5"], "attack is '5'; expected one of its options: "),
        (["train=true"], "train is 'true'; expected one of its options: "),
        (["attack={a:1}"], "attack has no setting 'a'."),
        (["attack@x=badnets"], "'attack@x' is no group or setting."),
        (["++seed=x"], "seed is 'x'; expected a whole number."),
        (["defense._target_=backdoorbench.attacks.none.NoAttack", "defense=none"], "defense._target_ is 'backdoorbench.attacks.none."),
        (["attack._target_=backdoorbench."], "attack has the `_target_` 'backdoorbench.', which names no class, so nothing says what to build."),
    ],
    "names and places": [
        (["dataset.name=a/b"], "dataset.name is 'a/b'; it names folders of the outputs: expected printable characters without / or \\"),
        (["attack.name=../x"], "attack.name is '../x'; it names folders of the outputs"),
        (["defense.name=''"], "defense.name is ''; it names folders of the outputs"),
        (["detector.name=."], "detector.name is '.'; it names folders of the outputs"),
        (["dataset.name='a\nb'"], "dataset.name is 'a\\nb'; it names folders of the outputs"),
        (["dataset.name='a\0b'"], "dataset.name is 'a\\x00b'; it names folders of the outputs"),
        ([f"dataset.name={'a' * 300}"], f"dataset.name is '{'a' * 78}…; it names folders of the outputs, which bears 40 bytes. Rename it."),
        (["dataset.name=nan"], "dataset.name is nan; expected a text."),
        (["runtime.outputs=null"], "runtime.outputs is None; expected a path as a text. Change runtime.outputs."),
        (["runtime.outputs=''"], "runtime.outputs is ''; expected a path of printable characters."),
        (["runtime.outputs=5"], "runtime.outputs is 5; expected a path as a text: \"runtime.outputs='5'\"."),
        (["runtime.outputs='a\0b'"], "runtime.outputs is 'a\\x00b'; expected a path of printable characters."),
        (["runtime.outputs='~nobody-here/x'"], "runtime.outputs is '~nobody-here/x'; expected a path, and nobody of that name has a home"),
        (["runtime.data_root=null"], "runtime.data_root is None; expected a path as a text."),
        (["model.checkpoint=5"], "model.checkpoint is 5; expected a path as a text"),
        (["dataset=folder", "dataset.root=''"], "dataset.root is ''; expected a path of printable characters."),
        (["holdout.kind=foreign", f"holdout.root={'a' * 300}"], "holdout.root is "),
    ],
    "folders": [
        (["dataset=folder", "dataset.root=one", "dataset.size=16", "holdout.rate=0.4"], "folder has one class, 'a'; a classifier needs two"),
        (["dataset=folder", "dataset.root=none"], "{tmp}/none/train has no class folders with images"),
        (["dataset=folder", "dataset.root=unlike"], "{tmp}/unlike/test has 'b', which {tmp}/unlike/train has not"),
        (["dataset=folder", "dataset.root=fewer"], "{tmp}/fewer/test holds no images of 'b'"),
        (["attack.pattern=image", "attack.patch_file=text.txt"], "attack.patch_file is 'text.txt', which cannot be read as an image"),
    ],
    "verbs": [
        (["list", "attack=badnets"], "group 'attack=badnets' is unknown."),
        (["list", "s"], "group 's' is unknown."),
        (["list", ""], "one of the words is empty"),
        (["show", "defense=../attack/badnets"], "defense '../attack/badnets' is unknown."),
        (["show", "defense"], "defense '' is unknown."),
        (["show", "=fst"], "group '' is unknown."),
        (["report", "text.txt"], "'text.txt' is no folder; expected one that holds runs"),
        (["plot", "curves", "nowhere", "--output", "x.svg"], "'nowhere' is no folder"),
        (["plot", "curves", "empty", "--output", "x.jpg"], "'x.jpg' is no name for a plot"),
        (["runs", "text.txt"], "'text.txt' is no folder"),
        (["runs", "--last", "x"], "bdx runs: argument --last: invalid int value: 'x'."),
        (["cache", "list", "--outputs", "text.txt"], "'text.txt' is no folder"),
        (["cache", "--", "list"], "bdx cache list: unrecognized arguments"),
        (["plan", "nope"], "'nope' cannot be read as a setting"),
        (["preview", "badnets"], "'badnets' cannot be read as a setting"),
        (["preview", "--output", "text.txt/x.png"], "text.txt cannot be written (File exists)."),
        (["export", "--to", "text.txt"], "text.txt cannot be written (File exists)."),
        (["export", "--to", "/proc/x"], "/proc/x cannot be written"),
        (["reproduce", "nope"], "experiment 'nope' is unknown."),
        (["reproduce", "fst", "--scale", "nope"], "scale 'nope' is unknown."),
        (["check", "nowhere"], "DIR of bdx check is 'nowhere', which is no folder"),
        (["check", "empty"], "'empty' holds no yaml file; expected some, in folders called as groups are"),
    ],
}  # fmt: skip
CASES = [
    pytest.param(words, said, id=f"{kind}-{' '.join(words)[:60]!a}")
    for kind, cases in MISTAKES.items()
    for words, said in cases
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file, an empty folder, and data sets whose classes do not do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for file in (
        "one/train/a/0", "one/train/a/1", "one/train/a/2", "one/test/a/3", "none/train/0", "none/test/1", "unlike/train/a/0", "unlike/test/b/1",
        "fewer/train/a/0", "fewer/train/b/1", "fewer/test/a/2",
    ):  # fmt: skip
        image = tmp_path / f"{file}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (int(image.stem) * 60,) * 3).save(image)
    return tmp_path


@pytest.mark.wide
@pytest.mark.parametrize(("words", "said"), CASES)
def test_a_mistake_is_a_paragraph(words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*QUICK[:2], "dataset.size=16"] if "=" in words[0] and "dataset=folder" not in words else []
    own = {word.partition("=")[0] for word in words}
    words = [*(setting for setting in settings if setting.partition("=")[0] not in own), *words]
    code = main(words)
    shown = capsys.readouterr().err
    last = shown.splitlines()[-1]
    assert last.startswith(f"bdx: {said.replace('{tmp}', str(place))}"), shown
    assert code == 2 and "Traceback" not in shown and len(last) < 2000


@pytest.mark.wide
@pytest.mark.parametrize(
    "flag", [["--config-dir", "own"], ["hydra.searchpath=[own]"], ["--config-dir=own"]], ids=" ".join
)
@pytest.mark.parametrize(
    "name", ["defense/fst.yaml", "on/defense/fst/digits.yaml", "hydra/launcher/pool.yaml", "config.yaml"]
)
def test_a_file_that_would_not_be_read_is_told(
    name: str, flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, own = conf_dir() / name, tmp_path / "own" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(ours.read_bytes())
    assert main([*flag, "defense=fst", "--cfg", "job"]) == 0  # a copy of the whole folder, say
    capsys.readouterr()
    own.write_text(ours.read_text() + "alpha: 0.9\n")
    for words in (
        [*flag, "defense=fst"],
        ["plan", *flag, "defense=fst"],
        ["export", *flag, "defense=fst", "--to", "x"],
    ):
        assert main(words) == 2, words
        said = f"{name} has the name of a file of bdx itself, which is read instead of yours. Rename yours, and its `name:`"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["seed=1"], ["-m", "seed=1,2"], ["--cfg", "job"], ["plan", "seed=1"]], ids=" ".join)
def test_a_working_directory_that_was_deleted_is_told(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("bdx: the working directory is gone; expected one that is there")


def test_a_variable_that_names_a_plugin_is_called_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BDX_PLUGINS", "/nowhere")
    assert main(["list"]) == 2 and capsys.readouterr().err.startswith(
        "bdx: BDX_PLUGINS is '/nowhere', which is no folder;"
    )


def test_flags_may_stand_among_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack=blended", "--cfg", "job", "seed=7", "--package", "attack"]) == 0
    assert "name: blended" in capsys.readouterr().out


def test_a_part_that_is_not_there_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job", "--package", "nope"]) == 2
    assert capsys.readouterr().err.startswith("bdx: --package is 'nope', which is no part of the configuration.")


@pytest.mark.wide
def test_a_mapping_may_have_numbers_for_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attack=badnets", "dataset.augment={1:2}"]) == 2
    assert capsys.readouterr().err.startswith("bdx: dataset.augment has no setting '1'. ")
    assert main(["show", "defense=fst", "attack=blind", "attack.threshold={1:2}"]) == 0
    assert "defense.alpha" in capsys.readouterr().out


def test_a_sweep_of_one_run_may_name_no_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert flags.folders_among([]) == [] and main(["plan", "-m"]) == 0
    assert "1 run:" in capsys.readouterr().out


def test_a_negative_seed_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []

    def look(config: dict[str, Any]) -> SimpleNamespace:
        planned.append(plan.plan(config).seed)
        return SimpleNamespace(run=None)

    monkeypatch.setattr(hydra_run, "carry_out_run", look)
    monkeypatch.setattr(hydra_run, "objective", lambda _: None)
    assert main(["seed=-1"]) == 0 and planned == [-1]


def test_a_bug_of_ours_within_hydra_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error is Hydra's own only where its last frame is not ours."""
    from backdoorbench.sweeps import grid

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(grid.Grid, "look", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["plan", "seed=0,1"])


# ---- what messages are made of --------------------------------------------------------------------------------------


def test_values_are_quoted_short_and_on_one_line() -> None:
    assert shown("a\nb") == "'a\\nb'" and shown("a" * 100) == f"'{'a' * 78}…"
    assert paragraph("a\nb\tc\x1b[0m é") == "a\\nb\\tc\\x1b[0m é"
    assert first_line(ValueError("first:\n  second\nthird")) == "first: second" and first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63, float("nan"), float("inf")])
def test_a_range_refuses_whatever_lies_outside(value: float) -> None:
    with pytest.raises(ConfigError, match=r"x is .{1,30}; expected a number between 0 and 1\. Change x\."):
        check_range("x", value, 0, 1)


@pytest.mark.parametrize("name", ["a", "ResNet-18", "naïve", "a b", "模型", "a.b"])
def test_a_name_may_be_any_word(name: str) -> None:
    check_name("x", name)


@pytest.mark.parametrize(
    ("least", "most", "whole", "said"),
    [
        (10, 399, 400, "Set holdout.rate between 0.025 and 0.9975."),
        (10, 10, 11, "Set holdout.rate=0.9091, or give more images, with dataset.train_size or dataset.test_size."),
        (10, 9, 10, "No holdout.rate does: give more images, with dataset.train_size or dataset.test_size."),
    ],
)
def test_the_share_that_a_holdout_may_have(least: int, most: int, whole: int, said: str) -> None:
    assert fitting(least, most, whole) == said


# ---- terminals ------------------------------------------------------------------------------------------------------

RUN = [
    *QUICK[:3],
    "train.epochs=1",
    "train.batch_size=32",
    "curve.every=0",
    "control=off",
    "force=true",
    "runtime.threads=1",
]
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
BARE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def bdx(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[bytes]"]:
    """Carries out `bdx` in a process of its own, with other environment variables."""

    def carry_out(words: list[str], extra: dict[str, str], **options: object) -> "subprocess.CompletedProcess[bytes]":
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))
        }
        command = [sys.executable, "-m", "backdoorbench", *words]
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.run(command, env=environment | extra, cwd=tmp_path, timeout=120, **given)  # type: ignore[call-overload,no-any-return]

    return carry_out


@pytest.mark.wide
@pytest.mark.parametrize(
    "terminal",
    [
        pytest.param(ASCII, marks=pytest.mark.slow, id="ascii"),
        pytest.param(BARE, id="C"),
        pytest.param({"TERM": "dumb", "COLUMNS": "1", "NO_COLOR": "1"}, marks=pytest.mark.slow, id="narrow"),
    ],
)
def test_a_run_ends_whatever_the_terminal_can_print(
    terminal: dict[str, str], bdx: Callable[..., "subprocess.CompletedProcess[bytes]"]
) -> None:
    done = bdx(RUN, terminal)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert (b"badnets ? none" in done.stdout) == ("LC_ALL" in terminal)  # the arrow


@pytest.mark.wide
@pytest.mark.parametrize(
    "words", [["list", "holdout"], ["show", "defense=fst"], ["--cfg", "job"]], ids=lambda words: words[0]
)
def test_answers_whatever_the_terminal_can_print(
    words: list[str], bdx: Callable[..., "subprocess.CompletedProcess[bytes]"]
) -> None:
    assert bdx(words, BARE).returncode == 0


@pytest.mark.wide
@pytest.mark.skipif(not hasattr(os, "fork"), reason="closes a descriptor between fork and exec")
@pytest.mark.parametrize("words", [["list", "holdout"], ["--cfg", "job"], RUN], ids=["list", "cfg", "run"])
def test_nobody_need_listen(words: list[str], bdx: Callable[..., "subprocess.CompletedProcess[bytes]"]) -> None:
    done = bdx(words, {}, stdout=None, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_standard_output_is_a_sentence(bdx: Callable[..., "subprocess.CompletedProcess[bytes]"]) -> None:
    with open("/dev/full", "wb") as full:
        done = bdx(["list", "holdout"], {}, stdout=full)
    assert done.returncode == 2
    assert (
        done.stderr == b"bdx: standard output cannot be written (No space left on device); what was finished is kept\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_on_a_full_disk_hides_no_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file := tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="no space is left"), job.log_file(file):
        for _ in range(3):
            logging.getLogger("backdoorbench").warning("a line")
        raise StorageError("no space is left")
    assert "Traceback" not in capsys.readouterr().err


def test_a_line_of_a_log_that_cannot_be_made_is_a_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[BaseException | None] = []
    monkeypatch.setattr(logging.FileHandler, "handleError", lambda *_: told.append(sys.exception()))
    handler = job.LogFile(tmp_path / "log.txt")
    handler.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, "%d", ("a word",), None))
    handler.close()
    assert [type(error) for error in told] == [TypeError]
