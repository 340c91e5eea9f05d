"""Networks that somebody else wrote, and what a network reads: made to fit what every method here expects, or refused.

pytest tests/test_networks.py
"""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoorbench.cli.main import main
from backdoorbench.config import groups, plugins
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, option
from backdoorbench.errors import BdxError, ConfigError, ModelError
from backdoorbench.models import checkpoint, outputs, surgery
from backdoorbench.models.base import Classifier, ModelSpec
from backdoorbench.pipeline import plan

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.4)
SOURCE = '''
from collections import namedtuple
import types
import torch
from torch import nn
import torch.nn.functional as F

Answer = namedtuple("Answer", "features logits")

class Bare(nn.Module):
    """Two convolutions, and what `kind` makes of their logits."""

    def __init__(self, num_classes=5, kind="plain", in_channels=3, width=4):
        super().__init__()
        self.kind = kind
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        self.last = {"softmax layer": nn.Softmax(1), "log-softmax layer": nn.LogSoftmax(1)}.get(kind, nn.Identity())

    def forward(self, x):
        first = F.relu(self.bn1(self.conv1(x)))
        second = F.relu(self.bn2(self.conv2(first)))
        features = second.mean((2, 3))
        logits = self.last(self.fc(features))
        return {
            "tuple": lambda: (first, second, features, logits), "dict": lambda: {"features": features, "logits": logits},
            "named": lambda: Answer(features, logits), "two": lambda: (logits, 2 * logits), "none": lambda: (first, features),
            "softmax": lambda: logits.softmax(1), "log-softmax": lambda: F.log_softmax(logits, 1), "map": lambda: second,
            "list of softmax": lambda: [features, logits.softmax(1)],
        }.get(self.kind, lambda: logits)()

class Viewing(Bare):
    """One whose code assumes that maps, and the weights that it standardises, lie channel by channel."""

    def forward(self, x):
        weight = self.conv1.weight
        mean = weight.view(weight.size(0), -1).mean(1).view(-1, 1, 1, 1)
        maps = F.relu(self.bn1(F.conv2d(x, weight - mean, padding=1)))
        maps = F.relu(self.bn2(self.conv2(maps)))
        return self.fc(maps.view(maps.size(0), maps.size(1), -1).mean(2))

def bare(classes, size, kind="plain"):
    return Bare(classes, kind)

def fixed():
    return Bare(5)

def patched():
    net = Bare(5)
    inner = net.forward
    net.forward = lambda x: inner(x.clamp(0, 1))
    return net

def patched_layer():
    net = Bare(5)
    net.conv2.forward = lambda x: F.conv2d(x, net.conv2.weight, net.conv2.bias, padding=1)
    return net

def compiled():
    return torch.compile(Bare(5), backend="eager")

def bound():
    net = Bare(5)
    net.forward = types.MethodType(lambda self, x: type(self).forward(self, x.clamp(0, 1)), net)
    return net

class Detached(Bare):
    """One of which no gradient, or with `kind` its last layer's alone, can be had."""

    @torch.no_grad()
    def features(self, x):
        return self.conv1(x).mean((2, 3))

    def forward(self, x):
        logits = self.fc(self.features(x))
        return logits if self.kind == "head" else logits.detach()

def broken(classes):
    raise RuntimeError("no such\\nlayer")

def nothing(classes):
    return 3

def by_keras(classes):
    layer = type("Dense", (nn.Linear,), {"__module__": "keras.src.layers.core.dense"})
    return nn.Sequential(nn.Flatten(), type("Own", (layer,), {})(192, classes))

CONSTANT = 4
'''


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of somebody's own on Python's path; nothing said yet."""
    (tmp_path / "theirs_of_test").mkdir()
    (tmp_path / "theirs_of_test" / "__init__.py").touch()
    (tmp_path / "theirs_of_test" / "nets.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    outputs.say.cache_clear()
    plugins.files.cache_clear()
    yield
    for name in [name for name in sys.modules if name.startswith("theirs_of_test")]:
        del sys.modules[name]


def spec(model: str = "module", plugins: tuple[str, ...] = ("theirs_of_test",), **changes: Any) -> ModelSpec:
    target = {"target": "theirs_of_test.nets:Bare"} if model == "module" else {}
    made: ModelSpec = build({**compose([f"model={model}"])["model"], **target, **changes}, "model", plugins)
    return made


def classifier(kind: str = "plain", classes: int = 5, size: int = 8, **changes: Any) -> Classifier:
    torch.manual_seed(0)
    options = {"kind": kind} | changes.pop("options", {})
    return spec(options=options, **changes).classifier(classes, size, MEAN, STD).eval()


def images(count: int = 3, size: int = 8) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# --- model=module -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "theirs_of_test.nets:Bare",
        "theirs_of_test.nets:bare",
        "theirs_of_test.nets:fixed",
        pytest.param("theirs_of_test.nets:compiled", marks=pytest.mark.wide),
    ],
)
def test_a_network_of_ones_own_is_built(target: str) -> None:
    model = spec(target=target).classifier(5, 8, MEAN, STD)
    assert model(images()).shape == (3, 5) and surgery.classifier_name(model) == "net.fc"


def test_options_reach_the_factory() -> None:
    assert classifier(options={"width": 7}).net.conv1.out_channels == 7


@pytest.mark.wide
def test_a_network_that_calls_view_runs_wherever_any_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "model=module", "model.target=theirs_of_test.nets:Viewing", "plugins=[theirs_of_test]", "train=demo", "train.epochs=1",
        "dataset.train_size=60", "dataset.test_size=30", "curve.every=0", "detector.units=1", "holdout.rate=0.2",
        "detector.images=20", f"runtime.outputs={tmp_path}", "force=true",
    ]  # fmt: skip
    for methods in (
        ["defense=ft", "defense.epochs=1", "detector=nc", "after=retune", "after.rate=0.2", "exact.epochs=0"],
        ["defense=none", "detector=nc"],
    ):
        assert main(["attack=badnets", *methods, *words]) == 0
    assert capsys.readouterr().out.count("model 'module' cannot read maps that lie channels last") == 1
    model = spec(target="theirs_of_test.nets:Viewing").classifier(5, 8, MEAN, STD).eval()
    stem, head = surgery.split_head(model)
    assert torch.allclose(head(stem(images())), model(images()))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no target": ({"target": None}, "model.target is null; expected package.module:factory, a class or function that returns"),
    "another package": (
        {"target": "os:system"},
        "model.target is 'os:system', outside theirs_of_test; only code of plugins is run. If you trust that code, "
        "add --plugin DIR, the folder that holds it (in Python, backdoorbench.plugin(\"DIR\")); a run takes plugins=[os] too.",
    ),
    "no such module": (
        {"target": "theirs_of_test.net:Bare"},
        "model.target is 'theirs_of_test.net:Bare', which cannot be imported (ModuleNotFoundError: No module named 'theirs_of_test.net'); expected",
    ),
    "no such factory": ({"target": "theirs_of_test.nets:Bar"}, "model.target is 'theirs_of_test.nets:Bar', which cannot be imported (AttributeError: "),
    "no factory": (
        {"target": "theirs_of_test.nets:CONSTANT"},
        "model.target is 'theirs_of_test.nets:CONSTANT', an object of type int; expected a class or function that returns the network.",
    ),
    "a factory that fails": (
        {"target": "theirs_of_test.nets:broken"},
        "model.target=theirs_of_test.nets:broken could not be called with (classes=5): RuntimeError: no such. Give what it needs: ",
    ),
    "a factory of something else": (
        {"target": "theirs_of_test.nets:nothing"},
        "model.target=theirs_of_test.nets:nothing returned a int; expected an nn.Module.",
    ),
    "layers of Keras": (
        {"target": "theirs_of_test.nets:by_keras"},
        "model.target=theirs_of_test.nets:by_keras returned a network with layers of Keras (Own), which train() and eval() do not set: ",
    ),
    "options that are none": ({"options": [1]}, 'model.options is [1]; expected names and values. Write "model.options={depth: 16}".'),
    "other classes": (
        {"target": "theirs_of_test.nets:fixed", "classes": 7},
        "model 'module' returns (5,) for each image; expected (7,), a logit for each class. Choose a network for 7 classes.",
    ),
    "a map": (
        {"options": {"kind": "map"}},
        "model 'module' returns (4, 8, 8) for each image; expected (5,), a logit for each class.",
    ),
    "no logits": (
        {"options": {"kind": "none"}},
        "model 'module' returns, for each image, 0: (4, 8, 8) and 1: (4,); expected 5 logits, and 0 of these can be those. Choose a "
        "network for 5 classes.",
    ),
    "two that could be": (
        {"options": {"kind": "two"}},
        "model 'module' returns, for each image, 0: (5,) and 1: (5,); expected 5 logits, and 2 of these can be those. Say which: "
        "model.output=PLACE.",
    ),
    "a place that is none": (
        {"options": {"kind": "tuple"}, "output": 2},
        "model.output is 2, but model 'module' returns, for each image, 0: (4, 8, 8), 1: (4, 8, 8), 2: (4,) and 3: (5,); expected the "
        "place or the name of what has 5 numbers. Change model.output.",
    ),
    "a place of one tensor": (
        {"output": 0},
        "model.output is 0, but model 'module' returns one tensor alone. Leave model.output out.",
    ),
    "a forward that holds its module": (
        {"target": "theirs_of_test.nets:patched"},
        "a copy of model 'module' computes with the weights of the one it was copied from, as where a forward was replaced by a function ",
    ),
    "a layer's forward that holds its module": (
        {"target": "theirs_of_test.nets:patched_layer"},
        "a copy of model 'module' computes with the weights of the one it was copied from, as where a forward was replaced by a function ",
    ),
    "logits without a gradient": (
        {"target": "theirs_of_test.nets:Detached"},
        "no gradient leads from the logits of model 'module' to any of its weights, so that nothing can be trained; expected some. ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_network_is_refused_in_a_paragraph(kind: str) -> None:
    changes, said = REFUSED[kind]
    with pytest.raises(BdxError) as caught:
        spec(**{key: value for key, value in changes.items() if key != "classes"}).classifier(
            changes.get("classes", 5), 8, MEAN, STD
        )
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_forward_that_is_bound_to_its_module_is_copied_with_it() -> None:
    model = spec(target="theirs_of_test.nets:bound").classifier(5, 8, MEAN, STD).eval()
    assert model(images()).shape == (3, 5)


def test_weights_that_no_gradient_reaches_are_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    spec(target="theirs_of_test.nets:Detached", options={"kind": "head"}).classifier(5, 8, MEAN, STD)
    assert caplog.messages == [
        "no gradient reaches 8 of 10 weights of model 'module': what trains leaves these as they are."
    ]


def test_the_package_that_a_target_names_is_one_of_the_plugins_used() -> None:
    node = compose(["model=module", "model.target=theirs_of_test.nets:Bare"])["model"]
    assert "theirs_of_test.nets.Bare" in plan.code_of("model", node, ["theirs_of_test"])


def test_an_edited_network_is_another_infection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = compose(["model=module", "model.target=theirs_of_test.nets:Bare"])["model"]
    before = plan.digested("model", node, ["theirs_of_test"])
    (tmp_path / "theirs_of_test" / "nets.py").write_text(SOURCE + "# changed\n")
    assert before.keys() == {"target"} and plan.digested("model", node, ["theirs_of_test"]) != before


@pytest.mark.wide
def test_a_run_with_a_network_of_ones_own_and_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "model=module", "model.target=theirs_of_test.nets:Bare", "plugins=[theirs_of_test]", "model.options={kind: tuple}",
        f"runtime.outputs={tmp_path / 'out'}", "dataset.train_size=200", "holdout.rate=0.2", "dataset.test_size=40", "train.epochs=1", "control=off",
        "curve.every=0", "runtime.threads=1", "attack=none", "force=true",
    ]  # fmt: skip
    assert main([*words, "defense=fst", "defense.epochs=1"]) == 0, capsys.readouterr().err
    (weights,) = (tmp_path / "out").glob("runs/*/purified.safetensors")
    assert main([*words, f"model.checkpoint={weights}", "train.epochs=0", "defense=none"]) == 0, capsys.readouterr().err
    from backdoorbench.api import load_model

    assert load_model(weights.parent, ["theirs_of_test"])(images(2, 32)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"only code of plugins is run"):
        load_model(weights.parent)


# --- several results, and a softmax -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "chosen"), [
    ("tuple", None), ("tuple", 3), ("dict", None), ("dict", "logits"), ("named", None), ("named", "logits"), ("two", 0),
])  # fmt: skip
def test_the_logits_are_found_among_several_results(kind: str, chosen: Any) -> None:
    model, plain = classifier(kind, output=chosen), classifier()
    assert torch.equal(model(images()), plain(images()))
    assert model.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    "kind", ["tuple", "dict", "named", "softmax layer", "log-softmax layer", "log-softmax", "softmax"]
)
def test_surgery_works_on_the_network_as_on_any(kind: str) -> None:
    model = classifier(kind)
    assert surgery.classifier_name(model) == "net.fc"
    features, head = surgery.split_head(model)
    rows = (head(features(images())) - model(images())).detach()
    assert torch.allclose(rows, rows[:, :1], atol=1e-4)  # equal up to a constant of each row
    assert [pair.conv_name for pair in surgery.conv_norm_pairs(model)] == ["net.conv1", "net.conv2"]
    assert surgery.penultimate(model, images()).shape == (3, 4)


@pytest.mark.parametrize("kind", ["softmax layer", "log-softmax layer"])
def test_a_softmax_layer_is_taken_out_and_that_is_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, plain = classifier(kind), classifier()
    assert torch.equal(model(images()), plain(images()))
    word = kind.removesuffix(" layer")
    assert (
        f"model 'module' ends in a {word} layer, which was taken out: losses and defenses here work on logits."
        in caplog.text
    )
    classifier(kind)
    assert len(caplog.records) == 1  # once, however often it is built


@pytest.mark.parametrize("kind", ["softmax", "list of softmax"])
def test_probabilities_become_logits_with_the_same_loss(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, plain, labels = classifier(kind), classifier(), torch.tensor([0, 1, 2])
    loss = nn.CrossEntropyLoss()
    assert loss(model(images()), labels).item() == pytest.approx(loss(plain(images()), labels).item(), abs=1e-5)
    assert "model 'module' returns probabilities; their logarithms are taken for logits." in caplog.text


def test_a_copy_of_the_network_returns_its_logits_too() -> None:
    import copy

    model = classifier("list of softmax")
    assert torch.equal(copy.deepcopy(model)(images()), model(images()))


# --- what a network reads ---------------------------------------------------------------------------------------------


def seen(**changes: Any) -> Tensor:
    """What the network is shown of an image."""
    model = spec("demo", width=4, **changes).classifier(5, 8, MEAN, STD).eval()
    shown: list[Tensor] = []
    model.net.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    model(images())
    return shown[0]


def planes(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


SEEN: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "as the data set says": ({}, lambda x: (x - planes(*MEAN)) / planes(*STD)),
    "one's own": ({"mean": [0.1, 0.2, 0.3], "std": [1, 2, 4]}, lambda x: (x - planes(0.1, 0.2, 0.3)) / planes(1, 2, 4)),
    "one number": ({"mean": 0.5, "std": 0.5}, lambda x: (x - 0.5) / 0.5),
    "a mean alone": ({"mean": 0.5}, lambda x: (x - 0.5) / planes(*STD)),
    "nothing": ({"mean": "none", "std": "none"}, lambda x: x),
    "white is 255": ({"range": 255}, lambda x: 255 * x),
    "white is 255, normalised": ({"range": 255, "mean": [104, 117, 123], "std": 58}, lambda x: (255 * x - planes(104, 117, 123)) / 58),
    "grey": (
        {"channels": 1},
        lambda x: (luma(x) - luma(planes(*MEAN)[None])) / luma(planes(*STD)[None]),
    ),
    "grey, one's own": ({"channels": 1, "mean": 0.1307, "std": [0.3081]}, lambda x: (luma(x) - 0.1307) / 0.3081),
    "grey to 255": ({"channels": 1, "range": 255}, lambda x: 255 * luma(x)),
}  # fmt: skip


def luma(x: Tensor) -> Tensor:
    return (x * planes(0.299, 0.587, 0.114)).sum(1, keepdim=True)


@pytest.mark.parametrize("kind", SEEN)
def test_what_a_network_is_shown(kind: str) -> None:
    changes, wanted = SEEN[kind]
    torch.testing.assert_close(seen(**changes), wanted(images()), rtol=1e-4, atol=1e-4)


def test_a_network_of_three_colours_turned_grey_is_the_same_on_grey_pictures() -> None:
    torch.manual_seed(0)
    colours = spec("demo", mean=0.5, std=0.2).classifier(5, 8, MEAN, STD).eval()
    torch.manual_seed(0)
    grey = spec("demo", mean=0.5, std=0.2, channels=1).classifier(5, 8, MEAN, STD).eval()
    pictures = images()[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(grey(pictures), colours(pictures), rtol=1e-4, atol=1e-4)
    assert grey.net.conv1.weight.shape[1] == 1


def test_a_grey_network_of_ones_own_reads_one_channel(tmp_path: Path) -> None:
    model = classifier(channels=1)
    assert model.net.conv1.in_channels == 1 and model(images()).shape == (3, 5)
    torch.save(model.net.state_dict(), tmp_path / "grey.pt")
    other = classifier(channels=1, options={})
    checkpoint.load_given(other, str(tmp_path / "grey.pt"), "tiny")
    assert torch.equal(other(images()), model(images()))
    assert surgery.stages(model) and surgery.classifier_name(model) == "net.fc"


@pytest.mark.parametrize(("changes", "said"), [
    ({"std": 0}, "model.std is 0, and pixels are divided by it; expected numbers above 0. Change model.std."),
    ({"std": [1, -1, 1]}, "model.std is -1, and pixels are divided by it; expected numbers above 0. Change model.std."),
    ({"mean": [0.5, 0.5]}, "model.mean has 2 numbers; expected one number, or one for each of 3 channels. Change model.mean."),
    ({"channels": 1, "mean": [0.5, 0.5, 0.5]}, "model.mean has 3 numbers; expected one number. Change model.mean."),
    ({"range": 256}, "model.range is 256; expected 1 or 255."),
    ({"channels": 4}, "model.channels is 4; expected 1 or 3."),
])  # fmt: skip
def test_input_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        spec("demo", **changes)
    assert str(caught.value).startswith(said)


def test_a_network_without_a_convolution_of_colours_cannot_turn_grey() -> None:
    with pytest.raises(
        ModelError, match="model.channels is 1, but 'airbench' does not open with a convolution of three colours"
    ):
        spec("airbench", channels=1).classifier(5, 32, MEAN, STD)


def test_input_as_usual_leaves_keys_and_older_files_as_they_were() -> None:
    node = option("model", "demo")
    usual = groups.LATER["model"]
    older = {key: value for key, value in node.items() if key not in usual}
    assert groups.as_keyed("model", node) == older and build(older, "model") == build(node, "model")
    for key, value in {"mean": "none", "std": 0.5, "range": 255, "channels": 1}.items():
        assert groups.as_keyed("model", {**node, key: value}) == {**older, key: value}


# --- torchvision ------------------------------------------------------------------------------------------------------


def test_torchvisions_networks_by_name() -> None:
    from torchvision import models

    net = spec("torchvision").net(7, 224)
    assert net.state_dict().keys() == models.resnet18(num_classes=7).state_dict().keys()
    assert isinstance(net.maxpool, nn.MaxPool2d)


def test_a_resnets_stem_suits_small_images() -> None:
    small = spec("torchvision").net(7, 32)
    assert small.conv1.kernel_size == (3, 3) and isinstance(small.maxpool, nn.Identity)
    assert spec("torchvision", stem="as_is").net(7, 32).conv1.kernel_size == (7, 7)
    with pytest.raises(ModelError, match="only ResNets can be changed so, not 'mobilenet_v2'. Set model.stem=as_is"):
        spec("torchvision", architecture="mobilenet_v2", stem="small").net(7, 32)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match="torchvision knows no classifier 'resnet81'. Did you mean 'resnet18'"):
        spec("torchvision", architecture="resnet81").net(7, 32)


def test_a_transformer_of_another_size_of_images_is_told_the_size(tmp_path: Path) -> None:
    from torchvision.models import VisionTransformer

    def vit(side: int) -> Classifier:
        net = VisionTransformer(side, 8, 1, 2, 16, 16, num_classes=4)
        return Classifier(net, side, (0.0,) * 3, (1.0,) * 3)

    torch.save(vit(32).net.state_dict(), file := tmp_path / "theirs.pth")
    with pytest.raises(ModelError) as caught:
        checkpoint.load_given(vit(48), str(file), "vit for 4 classes at 48 pixels")
    assert str(caught.value) == (
        f"model.checkpoint={file} is of vit for 4 classes for images of another size: encoder.pos_embedding is (1, 17, 16) there and "
        f"(1, 37, 16) here, and a network has as many positions as its images have patches. Say at which size it was trained: "
        f"dataset.size=N."
    )


def test_a_maker_of_another_library_is_called_with_options_of_ones_own(tmp_path: Path) -> None:
    """So a transformer of timm whose patches are as large as timm has them reads small images."""
    words = ["model=module", "model.target=timm:create_model", "plugins=[timm]"]
    options = "model.options={model_name: test_vit, img_size: 64, num_classes: 4}"
    made = build(compose([*words, options])["model"], "model", ["timm"]).classifier(4, 64, (0.0,) * 3, (1.0,) * 3)
    assert made.net.patch_embed.proj.kernel_size == (16, 16) and made(torch.rand(2, 3, 64, 64)).shape == (2, 4)
