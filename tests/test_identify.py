"""Which network a file of weights is of, where the user does not say.

pytest tests/test_identify.py
"""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from test_reading import as_nad, headed, renamed
from torch import Tensor, nn

from backdoorbench.cli import theirs
from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.errors import ModelError
from backdoorbench.models import beside, reading
from backdoorbench.models.identify import REPLACED, Unfilled, class_counts, identify, refusing
from backdoorbench.models.reading import State

Weights = dict[str, Tensor]


def weights(name: str, classes: int = 10, size: int = 32, **changes: Any) -> Weights:
    net = build(option("model", name) | changes, "model").net(classes, size)
    return dict(net.state_dict())


def kuangliu(found: Weights) -> Weights:
    return headed("module.")(renamed("downsample", "shortcut")(renamed("fc.", "linear.")(found)))


FILES: dict[str, tuple[Any, list[str], int, int, str]] = {  # content -> words, size, classes, how
    "one of ours": (lambda: weights("demo"), ["model=demo"], 32, 10, "54 weights by names"),
    "a whole classifier of ours, which says how it is normalised": (
        lambda: headed("net.")(weights("demo")) | {"normalize.mean": torch.zeros(3, 1, 1), "normalize.std": torch.ones(3, 1, 1)},
        ["model=demo"], 32, 10, "56 weights by names",
    ),
    "narrow": (lambda: weights("resnet18", width=8), ["model=resnet18", "model.width=8"], 32, 10, "122 weights by names"),
    "for large images": (lambda: weights("resnet18", 12, 224, width=64), ["model=resnet18"], 128, 12, "122 weights by names"),
    "grey": (
        lambda: weights("demo") | {"conv1.weight": torch.zeros(16, 1, 3, 3)},
        ["model=demo", "model.channels=1"], 32, 10, "54 weights by names",
    ),
    "a benchmark's": (
        lambda: {"model": weights("preact_resnet18", 43), "model_name": "preactresnet18", "num_classes": 43},
        ["model=preact_resnet18"], 32, 43, "102 weights by names",
    ),
    "NAD's": (
        lambda: {"state_dict": as_nad(weights("wrn_16_1", style="standard"))},
        ["model=wrn_16_1", "model.style=standard"], 32, 10, "82 weights by execution order and shapes",
    ),
    "the usual CIFAR ResNet": (
        lambda: {"net": kuangliu(weights("resnet18")), "acc": 93.1},
        ["model=resnet18"], 32, 10, "122 weights by execution order and shapes",
    ),
    "timm's, which its trainer names": (
        lambda: {"arch": "test_resnet", "state_dict": timms("test_resnet")},
        ["model=timm", "model.timm_name=test_resnet"], 32, 10, "92 weights by names",
    ),
}  # fmt: skip


def timms(name: str) -> Weights:
    import timm

    return dict(timm.create_model(name, num_classes=10).state_dict())


@pytest.mark.wide
@pytest.mark.parametrize("kind", FILES)
def test_a_file_tells_its_network(kind: str, tmp_path: Path) -> None:
    make, words, size, classes, how = FILES[kind]
    torch.save(make(), tmp_path / "given.pt")
    first, *_ = identify(reading.read(tmp_path / "given.pt"))
    assert (first.words, first.size, first.classes, first.how) == (words, size, classes, how)


def test_a_file_without_a_convolution_is_of_no_network_that_is_known(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(3, 3)}, tmp_path / "given.pt")
    assert identify(reading.read(tmp_path / "given.pt")) == []


@pytest.mark.wide
def test_a_stem_of_large_images_is_known_at_small_ones(tmp_path: Path) -> None:
    found = weights("torchvision", architecture="resnet18", stem="as_is")
    torch.save(found, tmp_path / "theirs.pth")
    first = identify(reading.read(tmp_path / "theirs.pth"), 32)[0]
    assert first.words == ["model=torchvision", "model.architecture=resnet18", "model.stem=as_is"] and first.size == 32


@pytest.mark.wide
def test_what_lies_beside_a_file_names_its_network(tmp_path: Path) -> None:
    """As timm's for the hub does."""
    save_file(timms("test_resnet"), file := tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet", "num_classes": 10}')
    first, *_ = identify(reading.read(file), 32, beside.read(file).names)
    assert first.words == ["model=timm", "model.timm_name=test_resnet"] and first.fit.by == "names"


def test_the_last_layer_is_the_outermost_of_those_that_are_called_so() -> None:
    """As in transformers, whose attention has outputs, in the order of safetensors files."""
    names = {
        "classifier.weight": (10, 64),
        "encoder.0.attention.output.dense.weight": (64, 64),
        "encoder.0.mlp.weight": (128, 64),
    }
    state = State((), {name: torch.zeros(shape) for name, shape in names.items()})
    assert class_counts(state) == [10, 64, 128]
    chain = {"module.classifier.0.weight": (64, 64), "module.classifier.3.weight": (7, 64)}
    assert class_counts(State((), {name: torch.zeros(shape) for name, shape in chain.items()})) == [7]


TRANSFORMERS = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25] * 3,
}
TIMM = {
    "architecture": "convnext_atto",
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "mean": [0, 0, 0],
}
HALVES = ["model.mean=[0.5,0.5,0.5]", "model.std=[0.25,0.25,0.25]"]
SAID: dict[str, tuple[dict[str, Any], list[str]]] = {  # files beside the weights -> how images are normalised
    "transformers": ({"preprocessor_config.json": TRANSFORMERS}, HALVES),
    "transformers, not normalised": (
        {"preprocessor_config.json": TRANSFORMERS | {"do_normalize": False}}, ["model.mean=none", "model.std=none"],
    ),
    "transformers, of other pixels": ({"preprocessor_config.json": TRANSFORMERS | {"rescale_factor": 1 / 127.5}}, []),
    "timm": ({"config.json": TIMM}, HALVES),
    "timm, as it was": ({"config.json": {"architecture": "resnet18", "mean": [0.5], "std": [0.25]}}, ["model.mean=[0.5]", "model.std=[0.25]"]),
    "somebody else's": ({"config.json": {"mean": [0.5] * 3, "std": [0.25] * 3, "pretrained_cfg": 3}}, []),
    "no numbers": ({"config.json": TIMM | {"pretrained_cfg": {"mean": "imagenet", "std": None}}}, []),
    "to the last digit": (
        {"config.json": TIMM | {"pretrained_cfg": {"mean": 0.48145466, "std": 0.26862954}}},
        ["model.mean=[0.48145466]", "model.std=[0.26862954]"],
    ),
    **{
        f"no pixels in [0, 1]: {str(mean)[:20]}, {std}": ({"config.json": TIMM | {"pretrained_cfg": {"mean": mean, "std": std}}}, [])
        for mean, std in (
            ([123.7, 116.3, 103.5], [58.4, 57.1, 57.4]), ([0.5] * 3, [0] * 3), ([0.5] * 3, [-1] * 3), (float("nan"), 1),
            (0.5, float("inf")), (10**400, 1), (0.5, [0.5] * 3), (True, True),
        )
    },
    "no object": ({"config.json": [1], "preprocessor_config.json": "a"}, []),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAID)
def test_files_beside_the_weights_say_how_images_are_normalised(kind: str, tmp_path: Path) -> None:
    files, words = SAID[kind]
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    out, file = Console(file=io.StringIO(), width=300), tmp_path / "model.safetensors"
    save_file({"fc.weight": torch.ones(2, 3)}, file)
    assert theirs.normalised(str(file), ["model=demo"], out) == words
    assert theirs.normalised(str(file), ["dataset.mean=[0,0,0]"], out) == []  # somebody said it
    if words:
        assert f"normalised as {next(iter(files))} beside the weights says: {' '.join(words)}" in out.file.getvalue()  # type: ignore[attr-defined]


def test_a_broken_file_beside_the_weights_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"')
    (tmp_path / "preprocessor_config.json").mkdir()
    assert beside.read(tmp_path / "model.safetensors") == beside.Beside()


def test_a_network_is_not_built_further_than_it_can_fit() -> None:
    """Of weights that a file does not have, as often, some may be replaced later on; more end the construction."""
    there, built = Counter({(2, 2): 1}), 0
    with pytest.raises(ModelError, match="weight of shape \\(2, 2\\) has no place"), refusing(there):
        for _ in range(100):
            nn.Linear(2, 2, bias=False)
            built += 1
    assert built == 1 + REPLACED and there == {(2, 2): 1}
    with refusing(there):
        nn.Conv2d(2, 2, 1, bias=False)  # which counts as a linear layer
    assert nn.Linear(3, 3).weight.shape == (3, 3)  # nothing is refused afterwards


def test_weights_without_memory_are_not_drawn() -> None:
    with Unfilled():
        assert torch.equal(nn.init.ones_(torch.empty(2)), torch.ones(2))
        with torch.device("meta"):
            layer = nn.BatchNorm2d(4)
        assert nn.init.trunc_normal_(layer.weight).is_meta and layer.weight.shape == (4,)
