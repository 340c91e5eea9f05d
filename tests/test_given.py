"""A given checkpoint: names that wrappers changed, counters that old versions lacked, values that are no numbers."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from safetensors.torch import save_file
from scenes import given
from torch import Tensor

from backdoorbench.cli.main import main
from backdoorbench.config.compose import compose
from backdoorbench.errors import ModelError
from backdoorbench.models import checkpoint
from backdoorbench.pipeline import plan
from backdoorbench.pipeline.job import Job

Weights = dict[str, Tensor]


def bare(weights: Weights) -> Weights:
    return {name.removeprefix("net."): value for name, value in weights.items() if name.startswith("net.")}


def headed(head: str) -> Callable[[Weights], Weights]:
    return lambda weights: {f"{head}{name}": value for name, value in bare(weights).items()}


def without_counters(weights: Weights) -> Weights:
    return {name: value for name, value in bare(weights).items() if not name.endswith("num_batches_tracked")}


READ: dict[str, Callable[[Weights], Weights]] = {
    "the whole classifier": dict,
    "the bare network": bare,
    "of DataParallel": headed("module."),
    "of torch.compile": headed("_orig_mod."),
    "compiled, then parallel": headed("module._orig_mod."),
    "parallel, then compiled": headed("_orig_mod.module."),
    "parallel twice": headed("module.module."),
    "a compiled classifier": lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    "a classifier with a compiled net": lambda weights: {
        name.replace("net.", "net._orig_mod."): value for name, value in weights.items()
    },
    "one compiled layer": lambda weights: {
        name.replace("conv1.", "conv1._orig_mod."): value for name, value in bare(weights).items()
    },
    "some names with a prefix": lambda weights: {
        f"module.{name}" if name.startswith("conv1") else name: value for name, value in bare(weights).items()
    },
    "no counters": without_counters,
    "no counters, with a prefix": lambda weights: headed("module.")(
        {f"net.{name}": value for name, value in without_counters(weights).items()}
    ),
    "half precision": lambda weights: {name: value.half() for name, value in bare(weights).items()},
    "double precision": lambda weights: {name: value.double() for name, value in bare(weights).items()},
    "no normalisation": lambda weights: {n: v for n, v in weights.items() if not n.startswith("normalize.")},
}


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("kind", READ)
def test_a_checkpoint_is_read(kind: str, ending: str, tmp_path: Path) -> None:
    theirs, ours, file = given(1), given(0), tmp_path / f"given.{ending}"
    weights = {name: value.clone() for name, value in READ[kind](theirs.state_dict()).items()}
    save_file(weights, file) if ending == "safetensors" else torch.save({"state_dict": weights}, file)
    checkpoint.load_given(ours, str(file), "tiny")
    for name, value in ours.state_dict().items():
        wanted = theirs.state_dict()[name]
        assert torch.allclose(value, wanted, atol=1e-3 if kind == "half precision" else 0), name


@pytest.mark.parametrize(("name", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_a_trainers_file_is_read_and_its_averaged_weights_are_said(
    name: str, averaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As timm's and torchvision's write it: options in a Namespace, and an average of the weights beside the last ones."""
    last, average, file = given(1), given(2), tmp_path / "last.pth.tar"
    content = {"epoch": 3, "arch": "tiny", "args": Namespace(lr=0.1, opt="sgd"), name: bare(last.state_dict())}
    torch.save({**content, averaged: bare(average.state_dict())}, file)
    ours = given(0)
    checkpoint.load_given(ours, str(file), "tiny")
    assert torch.equal(ours.state_dict()["net.head.weight"], last.state_dict()["net.head.weight"])
    assert (
        f"by their names that under {averaged} (timm's loaders take the average, and mmengine exchanges the two): those under {name} are read"
        in caplog.text
    )
    caplog.clear()
    torch.save(content, file)
    checkpoint.load_given(given(0), str(file), "tiny")
    assert not caplog.records


def edited(head: str, name: str, value: Tensor | None) -> Callable[[Weights], Weights]:
    """The bare network under such a head with one weight changed, or left out."""

    def edit(weights: Weights) -> Weights:
        found = headed(head)(weights)
        found.pop(head + name, None)
        return found | ({head + name: value} if value is not None else {})

    return edit


REFUSED: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "a shape": (
        edited("_orig_mod.", "head.weight", torch.zeros(5, 4)),
        "does not fit tiny: _orig_mod.head.weight is (5, 4) there and (2, 4) here. Choose the model",
    ),
    "a shape behind two heads": (
        edited("module._orig_mod.", "head.weight", torch.zeros(5, 4)),
        "does not fit tiny: module._orig_mod.head.weight is (5, 4) there and (2, 4) here. Choose the model",
    ),
    "one too many": (
        edited("module.", "fc.weight", torch.zeros(5, 4)),
        "does not fit tiny: module.fc.weight has no place. Choose the model",
    ),
    "one too few": (
        edited("module.", "head.bias", None),
        "does not fit tiny: module.head.bias is missing. Choose the model",
    ),
    "one too few without a head": (edited("", "head.bias", None), "does not fit tiny: head.bias is missing. Choose"),
    "one too few of a classifier": (
        lambda weights: {name: value for name, value in weights.items() if name != "net.head.bias"},
        "does not fit tiny: net.head.bias is missing. Choose",
    ),
    "a running mean too few": (edited("", "bn1.running_mean", None), "does not fit tiny: bn1.running_mean is missing."),
    "twice": (
        lambda weights: bare(weights) | {"module.head.bias": torch.zeros(2)},
        "holds both head.bias and module.head.bias, which are the same weight; expected each once. Save",
    ),
    "NaN": (
        edited("module.", "bn1.weight", torch.tensor([1.0, float("nan"), 1.0, float("nan")])),
        "holds 2 values that are NaN or infinite, 2 of them in module.bn1.weight; expected finite numbers. The training that left "
        "it went astray, or the file is damaged: choose another.",
    ),
    "an infinite running variance": (
        edited("", "bn1.running_var", torch.tensor([1.0, float("inf"), 1.0, 1.0])),
        "holds 1 values that are NaN or infinite, 1 of them in bn1.running_var; expected finite numbers.",
    ),
    "double precision beyond single": (
        edited("", "head.bias", torch.tensor([1e300, 0.0], dtype=torch.float64)),
        "holds 1 values that are NaN or infinite, 1 of them in head.bias",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_is_refused_by_the_names_it_has(kind: str, tmp_path: Path) -> None:
    change, said = REFUSED[kind]
    file, model = tmp_path / "given.safetensors", given(0)
    save_file({name: value.clone() for name, value in change(given(1).state_dict()).items()}, file)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        checkpoint.load_given(model, str(file), "tiny")
    assert str(caught.value).startswith(f"model.checkpoint={file} {said}")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.wide
def test_values_that_are_no_numbers_are_not_blamed_on_the_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"runtime.outputs={tmp_path}", "dataset.train_size=200", "dataset.test_size=40", "model.width=4",
        "train.batch_size=32", "runtime.threads=1", "control=off",
    ]  # fmt: skip
    assert main(["attack=none", "defense=none", "train.epochs=1", *words]) == 0
    (weights,) = tmp_path.glob("runs/*/purified.safetensors")
    state = checkpoint.read_weights(weights, "")
    state["net.linear.bias"] = torch.full_like(state["net.linear.bias"], float("nan"))
    save_file(state, tmp_path / "nan.safetensors")
    for more in (
        ["train.epochs=0", "defense=none"],
        ["train.epochs=1", "defense=none"],
        ["train.epochs=0", "defense=ft"],
    ):
        capsys.readouterr()
        assert main(["attack=badnets", *words, f"model.checkpoint={tmp_path / 'nan.safetensors'}", *more]) == 2
        said = capsys.readouterr().err
        assert "nan.safetensors holds 10 values that are NaN or infinite, 10 of them in net.linear.bias" in said
        assert "lr" not in said


def test_only_what_was_made_of_given_files_is_made_anew_once_they_are_read_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file(given().net.state_dict(), file)

    def keys(*words: str) -> tuple[str, str]:
        made = plan.sketch(compose([f"runtime.outputs={tmp_path}", *words]), plan.Shared())
        return made.infection_key, made.key

    named = f"model.checkpoint={file}"
    before, ours = keys(named), keys()
    monkeypatch.setattr(checkpoint, "READING", checkpoint.READING + 1)
    assert keys() == ours
    assert not set(keys(named)) & set(before)


@pytest.mark.wide
def test_a_given_model_is_trained_on_only_with_a_word(
    run: Callable[..., Job], caplog: pytest.LogCaptureFixture
) -> None:
    file = run("attack=none", "defense=none", *QUICK, "train.epochs=1").folder / "purified.safetensors"
    words = ("attack=given", "defense=none", f"model.checkpoint={file}", *QUICK)
    run(*words, "train.epochs=1")
    said = "the weights of purified.safetensors are trained on (train.epochs=1); train.epochs=0 judges and purifies them as they are."
    assert said in caplog.text
    caplog.clear()
    run(*words, "train.epochs=0")
    assert "are trained on" not in caplog.text
