"""Which network a file of weights is of, where the user does not say.

pytest tests/test_identify.py
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_reading import as_nad, headed, renamed
from torch import Tensor

from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.models import reading
from backdoorbench.models.identify import identify

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


@pytest.mark.parametrize("kind", FILES)
def test_a_file_tells_its_network(kind: str, tmp_path: Path) -> None:
    make, words, size, classes, how = FILES[kind]
    torch.save(make(), tmp_path / "given.pt")
    first, *_ = identify(reading.read(tmp_path / "given.pt"))
    assert (first.words, first.size, first.classes, first.how) == (words, size, classes, how)


def test_a_file_without_a_convolution_is_of_no_network_that_is_known(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(3, 3)}, tmp_path / "given.pt")
    assert identify(reading.read(tmp_path / "given.pt")) == []


def test_a_stem_of_large_images_is_known_at_small_ones(tmp_path: Path) -> None:
    found = weights("torchvision", architecture="resnet18", stem="as_is")
    torch.save(found, tmp_path / "theirs.pth")
    first = identify(reading.read(tmp_path / "theirs.pth"), 32)[0]
    assert first.words == ["model=torchvision", "model.architecture=resnet18", "model.stem=as_is"] and first.size == 32
