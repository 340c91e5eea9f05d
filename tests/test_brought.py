"""A network brings its recipe along, as a data set does, and against it; what is typed wins over both."""

from pathlib import Path

import pytest
import yaml

from backdoorbench.cli.main import main
from backdoorbench.config import implied, origins
from backdoorbench.config.compose import choices, compose, conf_dir, may_be_brought_by_files, with_brought

CHOSEN = [
    (["model=airbench"], "airbench"),
    (["dataset=cifar10", "model=airbench"], "airbench"),
    (["model=airbench", "dataset=cifar10", "scale=small"], "airbench"),
    (["dataset=cifar10", "model=airbench", "train=paper"], "paper"),
    (["train=fast", "model=airbench"], "fast"),
    (["model=airbench", "model=resnet18", "dataset=cifar10"], "paper"),  # the last one counts
    (["dataset=cifar10"], "paper"),
    (["dataset=cifar10", "model=resnet18"], "paper"),
    (["dataset=cifar10", "model='airbench'"], "airbench"),  # as the shell hands on what was quoted twice
    (["dataset=cifar10", 'model="airbench"'], "airbench"),
    (["dataset=cifar10", "model=airbench "], "airbench"),
    (["dataset=cifar10.yaml", "model=airbench.yaml"], "airbench"),
    (["scale=cpu.yaml"], "airbench"),
    (["dataset=cifar10", "model=airbench", "train={epochs: 3}"], "airbench"),  # sets, and chooses nothing
]


@pytest.mark.wide
@pytest.mark.parametrize(("words", "recipe"), CHOSEN, ids=[" ".join(words) for words, _ in CHOSEN])
def test_which_recipe_a_network_gets(words: list[str], recipe: str) -> None:
    assert compose(words)["train"]["name"] == recipe


def test_a_recipe_that_a_network_brings_is_implied_by_its_name() -> None:
    assert implied.beyond(compose(["dataset=cifar10", "model=airbench"])) == {}
    assert implied.beyond(compose(["dataset=cifar10", "model=airbench", "train=paper"])) == {"train.name": "paper"}


WRITTEN = {  # defaults of a network of one's own -> the recipe that it brings
    "defaults:\n- demo\n- override /train@_global_.train: fast": "fast",
    'defaults:\n  - demo\n  - override /train@_global_.train: "fast"  # quick': "fast",
    "defaults: [demo, {override /train@_global_.train: fast}]": "fast",
    "defaults: [airbench, _self_]": "airbench",
    "defaults: [airbench.yaml, _self_]": "airbench",
    "defaults: [/model/airbench, {override /train@_global_.train: fast}]": "fast",
}


@pytest.mark.parametrize(("written", "recipe"), WRITTEN.items(), ids=[text.replace("\n", " ") for text in WRITTEN])
def test_a_recipe_is_brought_however_the_defaults_are_written(written: str, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(f"{written}\nname: mine\n")
    assert with_brought(["model=mine"], [str(tmp_path)]) == ["model=mine", f"train={recipe}"]


def test_a_network_of_ones_own_brings_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    mine = "defaults:\n  - demo\n  - override /train@_global_.train: fast\nname: mine\n"
    (tmp_path / "model" / "mine.yaml").write_text(mine)
    assert compose(["model=mine", "dataset=cifar10"], [str(tmp_path)])["train"]["name"] == "fast"
    assert with_brought(["model=mine"]) == ["model=mine"]  # where its folder is not named


MINE = "# @package _global_\ndefaults:\n"
FAST, DEMO = "  - override /train: fast\n", "  - override /model: demo\n"
CIFAR, AIRBENCH = "  - override /dataset: cifar10\n", "  - override /model: airbench\n"
IN_A_DATA_SET = "defaults:\n  - cifar10\n  - override /model@_global_.model: airbench\n"
EXTENDED = "# @package _global_\ndefaults:\n  - /experiment/base\n  - _self_\n"
IN_FILES = {  # the user's files, what is typed -> the recipe
    "an experiment's": ({"experiment/mine": MINE + CIFAR + AIRBENCH}, "experiment=mine", "airbench"),
    "beside a data set that is typed": ({"experiment/mine": MINE + AIRBENCH}, "experiment=mine dataset=gtsrb", "airbench"),
    "the file names a recipe": ({"experiment/mine": MINE + CIFAR + AIRBENCH + FAST}, "experiment=mine", "fast"),
    "a recipe is typed": ({"experiment/mine": MINE + AIRBENCH}, "experiment=mine train=paper", "paper"),
    "a network is typed": ({"experiment/mine": MINE + CIFAR + AIRBENCH}, "experiment=mine model=resnet18", "paper"),
    "a scale's network and recipe win": ({"experiment/mine": MINE + CIFAR + AIRBENCH}, "experiment=mine scale=small", "fast"),
    "a scale's": ({"scale/mine": MINE + AIRBENCH}, "dataset=cifar10 scale=mine", "airbench"),
    "a scale's, beside an experiment": ({"scale/mine": MINE + AIRBENCH}, "experiment=fst scale=mine hydra.mode=RUN", "airbench"),
    "a scale names a recipe alone": (
        {"experiment/mine": MINE + AIRBENCH, "scale/mine": MINE + FAST}, "experiment=mine scale=mine", "fast"),
    "a data set's": ({"dataset/mine": IN_A_DATA_SET}, "dataset=mine", "airbench"),
    "of what an experiment extends": ({"experiment/base": MINE + CIFAR + AIRBENCH, "experiment/mine": EXTENDED}, "experiment=mine", "airbench"),
    "what extends it names another network": (
        {"experiment/base": MINE + CIFAR + AIRBENCH, "experiment/mine": EXTENDED + DEMO}, "experiment=mine", "paper"),
}  # fmt: skip


def written(files: dict[str, str], folder: Path) -> list[str]:
    """The user's folder with these yaml files, as `compose` takes it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    return [str(folder)]


@pytest.mark.wide
@pytest.mark.parametrize(("files", "words", "recipe"), IN_FILES.values(), ids=IN_FILES)
def test_which_recipe_a_network_gets_that_a_file_chooses(
    files: dict[str, str], words: str, recipe: str, tmp_path: Path
) -> None:
    assert compose(words.split(), written(files, tmp_path))["train"]["name"] == recipe


def recipe_of(printed: str) -> str:
    return str(yaml.safe_load(printed)["name"])


def test_a_run_and_one_that_is_printed_bring_what_a_file_chooses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder,) = written({"experiment/mine": MINE + CIFAR + AIRBENCH}, tmp_path)
    assert main(["--config-dir", folder, "experiment=mine", "--cfg", "job", "--package", "train"]) == 0
    assert recipe_of(capsys.readouterr().out) == "airbench"


def test_a_primary_file_of_ones_own_brings_its_networks_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = (
        (conf_dir() / "config.yaml").read_text().replace("  - override hydra/job", f"{AIRBENCH}  - override hydra/job")
    )
    (folder,) = written({"primary": mine.replace("override /model", "override model")}, tmp_path)
    assert main(["--config-dir", folder, "-cn", "primary", "--cfg", "job", "--package", "train"]) == 0
    assert recipe_of(capsys.readouterr().out) == "airbench"


@pytest.mark.wide
def test_each_run_of_a_sweep_brings_what_its_own_files_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      scale: full,digits\n"
    folders = written({"experiment/mine": MINE + AIRBENCH + sweep}, tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--config-dir", *folders, "experiment=mine"]) == 0
    full, digits = (line.split("  ") for line in capsys.readouterr().out.splitlines() if "scale=" in line)
    assert "scale=full train=airbench" in full
    assert "scale=digits" in digits  # whose file names the network and the recipe


@pytest.mark.wide
def test_what_is_traced_is_what_is_composed(tmp_path: Path) -> None:
    folders = written({"experiment/mine": MINE + CIFAR + AIRBENCH}, tmp_path)
    assert origins.trace(["experiment=mine"], folders).values["train.name"] == "airbench"


def test_every_file_of_ours_that_chooses_a_network_names_its_recipe() -> None:
    chosen = {file: dict(choices(file.read_text())) for file in conf_dir().rglob("*.yaml")}
    assert [file for file, groups in chosen.items() if "model" in groups and "train" not in groups] == []


def test_what_composing_twice_is_for_is_told_by_the_words() -> None:
    assert may_be_brought_by_files(["scale=cpu", "experiment=fst"], [])
    assert may_be_brought_by_files(["scale=cpu.yaml"], [])
    assert may_be_brought_by_files(["attack=badnets"], ["own"])
    assert may_be_brought_by_files(["attack=badnets"], [], "mine")
    assert not may_be_brought_by_files(["experiment=fst", "dataset=cifar10", "seed=3", "scale=small"], [])
