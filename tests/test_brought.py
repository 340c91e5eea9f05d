"""A network brings its recipe along, as a data set does, and against it; what is typed wins over both."""

from pathlib import Path

import pytest

from backdoorbench.config import implied
from backdoorbench.config.compose import compose, with_brought

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
    (["dataset=cifar10", "model=airbench", "train={epochs: 3}"], "airbench"),  # sets, and chooses nothing
]


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
