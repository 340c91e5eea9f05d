"""Surgery on networks: heads, maps, pairs, cuts, and what is refused with which words.

pytest tests/test_surgery.py
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoorbench.errors import ModelError
from backdoorbench.models import surgery
from backdoorbench.models.airbench import Airbench
from backdoorbench.models.base import Classifier, GlobalAverage
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.models.resnet import ResNet
from backdoorbench.models.timm import TimmSpec
from backdoorbench.models.vgg import VGG
from backdoorbench.models.wide_resnet import WideResNet

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
NETS: dict[str, Callable[[], nn.Module]] = {
    "preact10": lambda: PreActResNet(10, 8, 10, 32),
    "preact18": lambda: PreActResNet(18, 8, 10, 32),
    "preact50": lambda: PreActResNet(50, 8, 10, 32),
    "resnet18": lambda: ResNet(18, 8, 10, 32),
    "resnet34": lambda: ResNet(34, 8, 10, 32),
    "resnet50": lambda: ResNet(50, 8, 10, 32),
    "vgg11": lambda: VGG(11, 16, 10),
    "vgg13": lambda: VGG(13, 16, 10),
    "vgg16": lambda: VGG(16, 16, 10),
    "vgg19": lambda: VGG(19, 16, 10),
    "wrn_16_1": lambda: WideResNet(16, 1, 16, "trap_and_replace", 10, 32),
    "wrn_16_2": lambda: WideResNet(16, 2, 16, "standard", 10, 32),
    "airbench": lambda: whitened(Airbench(8, 10)),
    "timm_resnet": lambda: TimmSpec("t", None, "test_resnet", False, "auto").net(10, 32),
    "timm_convnext": lambda: TimmSpec("t", None, "test_convnext", False, "auto").net(10, 32),
    "timm_vit": lambda: TimmSpec("t", None, "test_vit", False, "auto").net(10, 32),
    "timm_resnetv2": lambda: small_resnetv2(),
}
WITH_NORMS = [name for name in NETS if name not in ("timm_convnext", "timm_vit")]


def small_resnetv2() -> nn.Module:
    """timm's pre-activation ResNet, narrow, as TimmSpec rebuilds it."""
    from timm.models.resnetv2 import ResNetV2

    from backdoorbench.models.timm import make_classifier_linear, shrink_stem

    def convolution(inputs: int, outputs: int, kernel_size: int, **options: Any) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False, **options)

    net = ResNetV2(
        (1, 1, 2, 2), (8, 8, 16, 16), 10, stem_chs=8, basic=True, norm_layer="batchnorm2d", conv_layer=convolution
    )
    shrink_stem(net)
    make_classifier_linear(net)
    return net


def whitened(net: Airbench) -> Airbench:
    """The network, started from noise."""
    net.start([torch.randn(8, 3, 32, 32)])
    return net


def wrap(net: nn.Module, size: int = 32) -> Classifier:
    return Classifier(net, size, MEAN, STD)


@cache
def built(name: str) -> Classifier:
    """The network in train mode, its batch norms moved off their starting values. Shared: tests leave it as it was."""
    torch.manual_seed(0)
    model = wrap(NETS[name]())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def evaluated() -> Iterator[Callable[[str], Classifier]]:
    """built(name) in evaluation mode for the length of a test."""
    used: list[Classifier] = []

    def get(name: str) -> Classifier:
        used.append(built(name).eval())
        return used[-1]

    yield get
    for model in used:
        model.train()


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as error:
        action()
    return str(error.value)


# --- the toolkit's own rules -----------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("name", NETS)
def test_nothing_is_left_behind(name: str) -> None:
    model = built(name)
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d | nn.LayerNorm)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    for look in (surgery.classifier_head, surgery.split_head, surgery.stages, surgery.batch_norms, surgery.stem_cut,
                 surgery.conv_norm_pairs, surgery.prunable_channels):  # fmt: skip
        try:
            look(model)
        except ModelError:
            assert name in ("timm_vit", "timm_convnext")
    assert hooks(model) == 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    frozen.train()


def test_hooks_go_even_when_the_network_fails() -> None:
    model = built("preact10")
    with pytest.raises(RuntimeError):
        surgery.trace(model, torch.rand(2, 5, 32, 32))
    with pytest.raises(RuntimeError), surgery.activations(model, ["net.layer1"]):
        model(torch.rand(2, 5, 32, 32))
    assert hooks(model) == 0 and model.training


def test_trace_lists_modules_as_they_end(images: Tensor) -> None:
    calls = surgery.trace(built("preact10"), images)
    names = [call.name for call in calls]
    assert names[:6] == ["crop.0", "crop.1", "crop", "normalize", "net.conv1", "net.layer1.0.bn1"]
    assert names[-3:] == ["net.linear", "net", ""] and calls[-1].caller is None and calls[-2].caller == ""
    assert calls[2].output is calls[3].input and calls[4].reads(calls[3]) and calls[-2].returns(calls[-3])


# --- classifier ------------------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("name", NETS)
def test_head_of_features_is_the_model(name: str, images: Tensor, evaluated: Callable[[str], Classifier]) -> None:
    model = evaluated(name)
    logits = model(images)
    features, head = surgery.split_head(model)
    assert head is surgery.classifier_head(model) is model.get_submodule(surgery.classifier_name(model))
    torch.testing.assert_close(head(features(images)), logits, rtol=0, atol=1e-5)
    x = surgery.penultimate(model, images)
    torch.testing.assert_close(F.linear(x, head.weight, head.bias), logits, rtol=0, atol=1e-5)
    shared = {id(parameter) for parameter in features.parameters()} | {id(parameter) for parameter in head.parameters()}
    idle = [key for key, parameter in model.named_parameters() if id(parameter) not in shared]
    assert idle == []


def test_features_follow_the_model_and_lead_it(images: Tensor) -> None:
    torch.manual_seed(0)
    model = wrap(PreActResNet(10, 8, 10, 32))
    features, head = surgery.split_head(model)
    features.requires_grad_(False)
    assert [key for key, parameter in model.named_parameters() if parameter.requires_grad] == [
        "net.linear.weight",
        "net.linear.bias",
    ]
    mean = model.net.layer1[0].bn1.running_mean
    before = mean.clone()
    model.eval()
    features(images)
    assert torch.equal(mean, before)  # the parts are in the model's mode
    features.train()
    features(images)
    assert not torch.equal(mean, before)
    head.reset_parameters()
    model.eval()
    torch.testing.assert_close(head(features(images)), model(images))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), GlobalAverage())
        self.one, self.two = nn.Linear(4, 10), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return (self.one(x) + self.two(x)) / 2


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (nn.Sequential(nn.Conv2d(3, 10, 1), GlobalAverage()), "its last layer, 'net.0', is a Conv2d"),
        (TwoHeads(), "its last layer, 'net.two', does not return the logits alone"),
        (nn.Sequential(GlobalAverage()), "it has no linear layer"),
        (
            nn.Sequential(nn.Flatten(2), nn.Linear(1024, 10), nn.Flatten()),
            "its last layer, 'net.1', does not read (N, D) features",
        ),
    ],
)
def test_networks_without_one_linear_classifier(net: nn.Module, found: str) -> None:
    assert refused(lambda: surgery.classifier_head(wrap(net))) == (
        f"{type(net).__name__} does not end in one linear classifier: {found}. Methods that read or redraw the "
        f"classifier need an nn.Linear that turns (N, D) features into logits. Choose a method that does "
        f"neither, or another network, such as preact_resnet18."
    )


def test_a_bare_network_is_refused() -> None:
    assert refused(lambda: surgery.stages(PreActResNet(10, 8, 10, 32))) == (
        "PreActResNet has no `size`, the side of the images it reads, so it cannot be examined. Wrap the network in "
        "backdoorbench.models.base.Classifier."
    )


# --- batch norms and convolutions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_NORMS)
def test_batch_norms_scaled_by_one_change_nothing(
    name: str, images: Tensor, evaluated: Callable[[str], Classifier]
) -> None:
    model = evaluated(name)
    norms = surgery.batch_norms(model)
    scaled = {f"{key}.weight": norm.weight * torch.ones_like(norm.weight) for key, norm in norms.items()}
    assert torch.equal(torch.func.functional_call(model, scaled, (images,)), model(images))
    idle = 2 if name == "wrn_16_1" else 0  # the raw blocks' first batch norms never run
    assert len(norms) + idle == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", WITH_NORMS)
def test_a_pair_is_a_convolution_and_the_batch_norm_of_its_very_output(name: str, images: Tensor) -> None:
    model = built(name)
    left: dict[str, Tensor] = {}
    entered: dict[str, Tensor] = {}
    handles = []
    for key, module in model.named_modules():  # copies, so that later writing in place cannot fake a match
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda _, args, out, key=key: left.update({key: out.clone()})))
        if isinstance(module, nn.BatchNorm2d):
            handles.append(
                module.register_forward_pre_hook(lambda _, args, key=key: entered.update({key: args[0].clone()}))
            )
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    model.train()
    expected = {
        (conv, norm)
        for norm, x in entered.items()
        for conv, out in left.items()
        if x.shape == out.shape and torch.equal(x, out)
    }
    pairs = surgery.conv_norm_pairs(model)
    assert {(pair.conv_name, pair.norm_name) for pair in pairs} == expected
    assert all(pair.conv.out_channels == pair.norm.num_features for pair in pairs)


def test_pairs_of_preact_resnet_are_its_second_norms_and_the_very_first() -> None:
    blocks = [f"net.layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [(pair.conv_name, pair.norm_name) for pair in surgery.conv_norm_pairs(built("preact18"))] == [
        ("net.conv1", "net.layer1.0.bn1"),
        *((f"{block}.conv1", f"{block}.bn2") for block in blocks),
    ]
    assert len(surgery.conv_norm_pairs(built("resnet18"))) == 20
    assert len(surgery.conv_norm_pairs(built("vgg16"))) == 13


def test_pairs_of_airbench_are_its_second_convolutions_since_pooling_stands_behind_the_first() -> None:
    assert [(pair.conv_name, pair.norm_name) for pair in surgery.conv_norm_pairs(built("airbench"))] == [
        (f"net.group{number}.conv2", f"net.group{number}.norm2") for number in (1, 2, 3)
    ]
    assert surgery.classifier_name(built("airbench")) == "net.linear"


class InPlace(nn.Module):
    """Adds its input onto a convolution's output in place: the object stays, its content is a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x))
        out += x
        return self.linear(F.relu_(self.norm(out)).mean((2, 3)))


def test_a_batch_norm_of_an_in_place_sum_has_no_partner() -> None:
    assert refused(lambda: surgery.conv_norm_pairs(wrap(InPlace()))) == (
        "InPlace has no convolution that feeds a batch norm directly, but this method needs such pairs. Choose a network "
        "that has them, such as preact_resnet18 or vgg16_bn."
    )


@pytest.mark.parametrize("name", ["timm_vit", "timm_convnext"])
def test_networks_without_batch_norm(name: str) -> None:
    kind = {"timm_vit": "VisionTransformer", "timm_convnext": "ConvNeXt"}[name]
    for look in (surgery.batch_norms, surgery.conv_norm_pairs):
        assert refused(lambda look=look: look(built(name))) == (
            f"{kind} has no batch-norm layer, but this method works on the scales and statistics of batch norms. Choose a "
            f"network that has them, such as preact_resnet18 or vgg16_bn."
        )


@pytest.mark.parametrize(
    ("name", "maps"),
    [("preact18", 4800 // 8), ("resnet18", 4800 // 8), ("resnet34", 8512 // 8), ("vgg11", 2752 // 4), ("vgg13", 2944 // 4),
     ("vgg16", 4224 // 4), ("vgg19", 5504 // 4)],
)  # fmt: skip
def test_prunable_maps_are_as_published(name: str, maps: int) -> None:
    assert sum(layer.channels for layer in surgery.prunable_channels(built(name))) == maps


def test_prunable_convolutions_come_as_they_run_with_their_norms() -> None:
    layers = surgery.prunable_channels(built("preact18"))
    assert sum(layer.channels for layer in surgery.prunable_channels(wrap(PreActResNet(18, 64, 10, 32)))) == 4800
    assert [layer.name for layer in layers[5:8]] == [
        f"net.layer2.0.{part}" for part in ("conv1", "conv2", "shortcut.0")
    ]
    assert [layer.norm is not None for layer in layers[5:8]] == [True, False, False]
    convnext = built("timm_convnext")
    convolutions = sum(isinstance(module, nn.Conv2d) for module in convnext.modules())
    assert len(surgery.prunable_channels(convnext)) == convolutions  # its patches are of one pixel, so the stem counts


def test_networks_without_maps_to_prune() -> None:
    assert refused(lambda: surgery.prunable_channels(built("timm_vit"))) == (
        "VisionTransformer has no feature maps to prune: its only convolution cuts the image into patches. Choose a "
        "convolutional network, such as preact_resnet18."
    )
    classify = nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten())
    assert "has no feature maps to prune: no convolution in it returns maps." in refused(
        lambda: surgery.prunable_channels(wrap(classify))
    )


# --- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("preact10", [("net.layer1", 8, 32), ("net.layer2", 16, 16), ("net.layer3", 32, 8), ("net.layer4", 64, 4)]),
        ("resnet50", [("net.layer1", 32, 32), ("net.layer2", 64, 16), ("net.layer3", 128, 8), ("net.layer4", 256, 4)]),
        ("wrn_16_1", [("net.group1", 16, 32), ("net.group2", 32, 16), ("net.group3", 64, 8)]),
        (
            "airbench",
            [("net.group1.conv1", 8, 31), ("net.group2.conv1", 32, 15), ("net.group3.conv1", 32, 7), ("net.group3.act2", 32, 3)],
        ),
        (
            "vgg11",
            [("net.features.2", 16, 32), ("net.features.6", 32, 16), ("net.features.13", 64, 8),
             ("net.features.20", 128, 4), ("net.features.27", 128, 2)],
        ),
        ("timm_resnet", [("net.layer1", 32, 32), ("net.layer2", 48, 16), ("net.layer3", 192, 8), ("net.layer4", 96, 4)]),
        (
            "timm_convnext",
            [("net.stages.0", 24, 32), ("net.stages.1", 32, 16), ("net.stages.2", 48, 8), ("net.stages.3", 64, 4)],
        ),
        (
            "timm_resnetv2",
            [("net.stages.0", 8, 32), ("net.stages.1", 8, 16), ("net.stages.2", 16, 8), ("net.stages.3", 16, 4)],
        ),
    ],
)  # fmt: skip
def test_stages(name: str, expected: list[tuple[str, int, int]], images: Tensor) -> None:
    model = built(name)
    stages = surgery.stages(model)
    assert [(stage.name, stage.channels, stage.side) for stage in stages] == [(n, c, (s, s)) for n, c, s in expected]
    with surgery.activations(model.eval(), [stage.name for stage in stages]) as seen:
        model(images)
    model.train()
    assert [tuple(seen[stage.name].shape) for stage in stages] == [(3, s.channels, *s.side) for s in stages]


def test_stages_of_large_images_leave_the_stem_out() -> None:
    model = wrap(ResNet(18, 8, 10, 128), 128)
    assert [(stage.name, stage.side[0]) for stage in surgery.stages(model)] == [
        ("net.layer1", 32), ("net.layer2", 16), ("net.layer3", 8), ("net.layer4", 4)
    ]  # fmt: skip


def test_transformers_have_no_stages() -> None:
    assert refused(lambda: surgery.stages(built("timm_vit"))) == (
        "VisionTransformer has no stage that returns a convolutional (N, C, H, W) map, which this method needs "
        "(transformers pass tokens). Choose a convolutional network, such as preact_resnet18."
    )


def test_tokens_as_a_map() -> None:
    tokens = torch.arange(2 * 65 * 5).view(2, 65, 5)
    laid_out = surgery.as_map(built("timm_vit"), tokens)
    assert laid_out.shape == (2, 5, 8, 8)
    assert torch.equal(laid_out[1, :, 2, 3], tokens[1, 1 + 2 * 8 + 3])  # one class token in front
    assert "form no map" in refused(lambda: surgery.as_map(built("timm_vit"), tokens.repeat(1, 2, 1)))
    maps = torch.rand(2, 5, 4, 4)
    assert surgery.as_map(built("timm_vit"), maps) is maps
    assert torch.equal(surgery.as_map(built("timm_vit"), maps.permute(0, 2, 3, 1)), maps)
    assert refused(lambda: surgery.as_map(built("timm_vit"), tokens[:, :60])) == (
        "Features of shape (2, 60, 5) in VisionTransformer form no map; expected (N, C, H, W), or (N, T, C) with one token "
        "a patch. Cut the network at another module."
    )


# --- listening -------------------------------------------------------------------------------------------------------


def test_activations_are_the_tensors_themselves(images: Tensor, evaluated: Callable[[str], Classifier]) -> None:
    model = evaluated("preact10")
    with surgery.activations(model, ["net.layer3", "net.linear"]) as seen:
        logits = model(images)
        assert seen["net.linear"] is logits
        grad = torch.autograd.grad(logits.sum(), seen["net.layer3"])[0]
    assert grad.shape == (3, 32, 8, 8) and grad.abs().sum() > 0
    with surgery.activations(model, ["net.layer4"], "input") as inputs:
        model(images)
    assert torch.equal(inputs["net.layer4"], seen["net.layer3"])
    with torch.inference_mode(), surgery.activations(model, ["net.layer4"]) as seen:
        model(images)
    assert hooks(model) == 0


def test_an_activation_that_does_not_exist() -> None:
    model = built("preact10")
    with pytest.raises(ModelError) as error, surgery.activations(model, ["net.layr3"]):
        pass
    assert str(error.value) == (
        "PreActResNet has no module 'net.layr3'. Did you mean 'net.layer3', 'net.layer1' or 'net.layer2'? The names are "
        "those of model.named_modules()."
    )
    assert hooks(model) == 0


def test_an_activation_that_was_overwritten(images: Tensor) -> None:
    model = wrap(InPlace())
    with pytest.raises(ModelError) as error, surgery.activations(model, ["net.norm"]):
        model(images)
    assert str(error.value) == (
        "The output of 'net.norm' was overwritten in place after it was captured, so it is not what the name says. Capture "
        "the output of the layer that overwrites it, or the input of 'net.norm'."
    )
    with surgery.activations(model, ["net.norm"], "input"):
        model(images)


# --- two halves ------------------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize(
    ("name", "features", "share"),
    [
        ("preact18", (64, 4, 4), 0.42),
        ("resnet18", (64, 4, 4), 0.42),
        ("resnet34", (64, 4, 4), 0.22),
        ("resnet50", (256, 4, 4), 0.19),
        ("preact10", (32, 8, 8), 0.75),
        ("vgg11", (128, 2, 2), 0.51),
        ("vgg13", (128, 2, 2), 0.50),
        ("vgg16", (128, 2, 2), 0.32),
        ("vgg19", (128, 2, 2), 0.24),
        ("wrn_16_1", (64, 8, 8), 0.43),
        ("airbench", (32, 7, 7), 0.57),
        ("timm_resnet", (192, 8, 8), 0.72),
        ("timm_resnetv2", (16, 4, 4), 0.21),
        ("timm_convnext", (64, 4, 4), 0.18),
        ("timm_vit", (65, 64), 0.16),
    ],
)
def test_the_usual_cut(
    name: str, features: tuple[int, ...], share: float, images: Tensor, evaluated: Callable[[str], Classifier]
) -> None:
    model = evaluated(name)
    stem, head = surgery.stem_cut(model)
    between = stem(images)
    assert between.shape == (3, *features)
    torch.testing.assert_close(head(between), model(images), rtol=0, atol=1e-5)
    assert surgery.parameter_share(head, model) == pytest.approx(share, abs=0.01)
    state = model.state_dict()
    for part in (stem, head):
        assert part.state_dict().keys() <= state.keys()
        assert all(value.data_ptr() == state[key].data_ptr() for key, value in part.state_dict().items())


def test_the_cut_of_trap_and_replace() -> None:
    model = built("wrn_16_1")
    counts = {}
    for until in (None, "net.group2", "net.group3.0", "net.group3"):
        _, head = surgery.stem_cut(model, until)
        counts[until] = sum(parameter.numel() for parameter in head.parameters())
    assert counts == {None: 74_890, "net.group2": 132_618, "net.group3.0": 74_890, "net.group3": 778}
    # VGG-16 ends its stem after the first convolution of the last stage, its batch norm and its activation
    _, head = surgery.stem_cut(built("vgg16"))
    assert [key for key, _ in head.named_children()] == ["net"] and "net.features.37.weight" in head.state_dict()


def test_at_224_pixels_resnet34_is_cut_before_its_last_block() -> None:
    model = wrap(ResNet(34, 4, 12, 224), 224).eval()
    stem, head = surgery.stem_cut(model)
    x = torch.rand(1, 3, 256, 256)  # the crop is in the stem
    with torch.no_grad():
        assert stem(x).shape == (1, 32, 7, 7)
        torch.testing.assert_close(head(stem(x)), model(x))
    assert {name.split(".")[2] for name, _ in head.named_parameters() if "layer" in name} == {"2"}
    assert surgery.parameter_share(head, model) == pytest.approx(0.22, abs=0.01)


def test_training_the_head_trains_the_model(images: Tensor) -> None:
    torch.manual_seed(0)
    model = wrap(WideResNet(16, 1, 16, "trap_and_replace", 10, 32))
    stem, head = surgery.stem_cut(model)
    stem.eval().requires_grad_(False)
    head.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    F.cross_entropy(head(stem(images)), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed <= head.state_dict().keys()
    assert "net.linear.weight" in changed and "net.group3.1.bn1.running_mean" in changed
    x = images.clone().requires_grad_()
    head(stem(x)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0  # through the frozen stem, down to the pixels


class Twice(nn.Module):
    """Runs one convolution twice, and branches on its input in one mode."""

    def __init__(self, branches: bool) -> None:
        super().__init__()
        self.conv, self.linear, self.branches = nn.Conv2d(3, 3, 1), nn.Linear(3, 10), branches

    def forward(self, x: Tensor) -> Tensor:
        if self.branches and x.mean() > 100:
            x = -x
        return self.linear(self.conv(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "until", "message"),
    [
        (
            lambda: built("preact10"), "net.layer2.0.conv1",
            "PreActResNet cannot be cut after 'net.layer2.0.conv1': more than one tensor crosses there, as inside a "
            "residual block. Name a module outside of it.",
        ),
        (
            lambda: built("preact10"), "net.layer5",
            "PreActResNet has no module 'net.layer5'. Did you mean 'net.layer1', 'net.layer2' or 'net.layer3'? The names "
            "are those of model.named_modules().",
        ),
        (
            lambda: built("preact10"), "net.linear",
            "PreActResNet cannot be cut after 'net.linear': nothing that could learn follows. Name an earlier module.",
        ),
        (
            lambda: wrap(Twice(False)), "net.conv",
            "Twice cannot be cut after 'net.conv': it runs 2 times in one pass, not once. Name a module that runs once.",
        ),
        (
            lambda: wrap(Twice(True)), "net.conv",
            "Twice cannot be cut after 'net.conv': a module around it decides by its input what to do (TraceError: "
            "symbolically traced variables cannot be used as inputs to control flow). Name another module, or choose "
            "another network.",
        ),
        (
            lambda: wrap(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))), None,
            "Sequential has no blocks and fewer than two convolutions, so there is no usual place to cut it. Name the "
            "module that ends the stem.",
        ),
    ],
)  # fmt: skip
def test_cuts_that_are_refused(build: Callable[[], Classifier], until: str | None, message: str) -> None:
    assert refused(lambda: surgery.stem_cut(build(), until)) == message


class WritesBack(nn.Module):
    """Its second part overwrites what the first returned."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.linear = nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.act(self.conv(x)).mean((2, 3)))


def test_a_head_that_overwrites_the_features_is_refused() -> None:
    message = refused(lambda: surgery.stem_cut(wrap(WritesBack()), "net.conv"))
    assert re.match("WritesBack cannot be cut after 'net.conv': the two halves do not give", message)
    stem, _ = surgery.stem_cut(wrap(WritesBack()), "net.act")
    assert stem(torch.rand(1, 3, 32, 32)).min() >= 0
