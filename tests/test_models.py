"""The networks: known parameter counts, the shapes each resolution gives, what is refused.

pytest tests/test_models.py
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, conf_dir, option
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.models import checkpoint, layouts, outputs, surgery
from backdoorbench.models.base import Classifier, GlobalAverage, ModelSpec
from backdoorbench.models.heads import make_classifier_linear
from backdoorbench.models.stems import shrink_stem
from backdoorbench.models.timm import TimmSpec, patch
from backdoorbench.models.wide_resnet import WideResNetSpec

OTHERS = ("timm", "torchvision", "module")  # whose networks are somebody else's
OURS = sorted(file.stem for file in (conf_dir() / "model").glob("*.yaml") if file.stem not in OTHERS)


def spec(name: str, **changes: Any) -> ModelSpec:
    """What `model=<name>` builds, with some of its settings changed."""
    return build(option("model", name) | changes, "model")


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("preact_resnet18", 11_171_146),
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        ("vgg11_bn", 9_231_114),
        ("vgg13_bn", 9_416_010),
        ("vgg16_bn", 14_728_266),
        ("vgg19_bn", 20_040_522),
        ("wrn_16_1", 175_626),
        ("wrn_28_10", 36_479_194),
        ("airbench", 1_972_792),  # the paper's 1.97 million
    ],
)
def test_parameters_are_those_of_the_literature_for_cifar10(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(spec(name).net(10, 32)) == count


@pytest.mark.parametrize(("width", "is_last"), [(8, False), (15, False), (16, True)])
def test_no_layout_in_which_torch_writes_beyond_a_gradient(width: int, is_last: bool) -> None:
    model = build(compose([f"model.width={width}"])["model"], "model").classifier(10, 32, (0.5,) * 3, (0.5,) * 3)
    layout = torch.channels_last if is_last else torch.contiguous_format
    assert layouts.layout_of(model, torch.device("cpu")) == layouts.layout_of(model, torch.device("cuda")) == layout
    images = torch.rand(2, 3, 32, 32).contiguous(
        memory_format=torch.channels_last
    )  # as another network may return them
    assert model.normalize(model.crop(images)).is_contiguous(memory_format=layout)


def test_imagenet_stem_counts_as_torchvision_does() -> None:
    with torch.device("meta"):
        assert parameters(spec("resnet18").net(1000, 224)) == 11_689_512
        assert parameters(spec("resnet34").net(1000, 224)) == 21_797_672
        assert parameters(spec("resnet50").net(1000, 224)) == 25_557_032


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("name", OURS)
def test_every_network_reads_every_usual_size(name: str, size: int) -> None:
    with torch.device("meta"):  # shapes only, so the wide ones cost nothing
        net = spec(name).net(7, size)
        last: dict[str, Tensor] = {}
        pool = next(module for module in net.modules() if isinstance(module, GlobalAverage))
        pool.register_forward_pre_hook(lambda _, args: last.update(map=args[0]))
        assert net(torch.zeros(2, 3, size, size)).shape == (2, 7)
    stride = (32 if name.startswith("vgg") else 4 if name.startswith("wrn") else 8) if size < 128 else 32
    stride = 16 if name.startswith("wrn") and size >= 128 else stride
    side = (size - 1) // 8 // 3 if name == "airbench" else size // stride
    assert last["map"].shape[2:] == (side, side)


@pytest.mark.parametrize("name", ["preact_resnet18", "resnet18", "wrn_16_1"])
def test_the_stem_changes_at_128_pixels(name: str) -> None:
    small, large = spec(name).net(10, 127), spec(name).net(10, 128)
    assert isinstance(small, nn.Sequential) and isinstance(large, nn.Sequential)
    assert (small.conv1.kernel_size, small.conv1.stride) == ((3, 3), (1, 1)) and not hasattr(small, "maxpool")
    assert (large.conv1.kernel_size, large.conv1.stride) == ((7, 7), (2, 2)) and hasattr(large, "maxpool")


@pytest.mark.parametrize("name", OURS)
def test_every_parameter_learns_and_no_input_is_changed(name: str) -> None:
    torch.manual_seed(0)
    narrow = {"widen": 1} if name.startswith("wrn") else {"width": 8}
    net = spec(name, **narrow).net(10, 32)
    images = torch.rand(4, 3, 32, 32)
    before = images.clone()
    net(images).square().mean().backward()
    idle = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    expected = {"wrn_16_1": {f"group{group}.0.bn1.{part}" for group in (2, 3) for part in ("weight", "bias")}}
    expected["airbench"] = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert idle == expected.get(name, set())
    assert torch.equal(images, before)
    assert not any(getattr(module, "inplace", False) for module in net.modules())


def test_trap_and_replace_starts_as_described() -> None:
    torch.manual_seed(0)
    net = spec("wrn_16_1").net(10, 32)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None and not module.bias.any()
        if isinstance(module, nn.Conv2d) and module.out_channels == 64:  # Kaiming normal: std = sqrt(2 / fan out)
            fan_out = 64 * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert {module.negative_slope for module in net.modules() if isinstance(module, nn.LeakyReLU)} == {0.1}


def test_both_branches_of_a_widening_block_read_its_raw_input() -> None:
    block = WideResNetSpec("w", None, 16, 1, 16, "trap_and_replace").net(10, 32).group2[0]
    read: list[Tensor] = []
    for layer in (block.conv1, block.shortcut):
        layer.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    x = torch.randn(2, 16, 8, 8)
    block(x)
    assert [inputs is x for inputs in read] == [True, True]


def test_normalisation_and_crop_are_inside() -> None:
    torch.manual_seed(0)
    net = spec("preact_resnet10", width=8).net(10, 32).eval()
    model = Classifier(net, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    images = torch.rand(2, 3, 40, 40)
    assert torch.equal(model(images), net((images[:, :, 4:36, 4:36] - mean) / std))
    assert {"normalize.mean", "normalize.std"} <= model.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "size", "least"),
    [("vgg16_bn", 31, 32), ("preact_resnet18", 7, 8), ("resnet50", 7, 8), ("wrn_16_1", 3, 4), ("airbench", 24, 25)],
)
def test_sizes_that_leave_no_map_are_refused(name: str, size: int, least: int) -> None:
    with pytest.raises(ModelError) as error:
        spec(name).net(10, size)
    assert str(error.value) == (
        f"model '{name}' is to read images of {size} px, but it halves the side until nothing is left; it needs at "
        f"least {least} px. Choose a larger dataset.size, or a network that halves less often."
    )
    assert (
        spec(name, **({} if name == "wrn_16_1" else {"width": 8})).net(10, least)(torch.rand(2, 3, least, least)).ndim
        == 2
    )


def test_width_and_depth_are_checked() -> None:
    with pytest.raises(
        ModelError, match="^model 'resnet18' has width 0; expected at least 1 channel. Raise model.width.$"
    ):
        spec("resnet18", width=0).net(10, 32)
    with pytest.raises(ConfigError, match="^model.depth is 20; expected 10, 18, 34 or 50."):
        spec("preact_resnet18", depth=20)


# --- timm ------------------------------------------------------------------------------------------------------------


def timm_net(name: str, size: int = 32, stem: Any = "auto") -> nn.Module:
    return TimmSpec(name, None, name, False, stem).net(10, size)


@pytest.mark.wide
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_173_962),
        ("resnetv2_18", 11_172_170),
        ("vit_tiny_patch16_224", 5_362_762),
        ("convnext_atto", 3_375_930),
        ("vgg11_bn", 128_812_810),
        ("resnet18.a1_in1k", 11_173_962),
    ],
)
def test_timm_networks_are_rebuilt_for_small_images(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(timm_net(name)) == count


@pytest.mark.wide
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "swin_tiny_patch4_window7_224", "resnet50d"]
)
def test_timm_networks_read_small_images(name: str, size: int) -> None:
    with torch.device("meta"):
        assert timm_net(name, size)(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_timm_stem_as_is_or_forced() -> None:
    assert timm_net("test_resnet", 32, "as_is").maxpool.kernel_size == 3
    assert isinstance(timm_net("test_resnet", 128).maxpool, nn.MaxPool2d)
    assert isinstance(timm_net("test_resnet", 128, "small").maxpool, nn.Identity)


def test_patches_divide_the_image() -> None:
    assert [patch(size) for size in (4, 8, 28, 32, 64, 96)] == [1, 1, 2, 4, 8, 12]


def test_a_standardised_stem_keeps_its_kind_of_convolution() -> None:
    with torch.device("meta"):
        net = timm_net("resnetv2_50x1_bit")
    assert type(net.stem.conv).__name__ == "StdConv2d" and net.stem.conv.kernel_size == (3, 3)


def test_deep_stem_keeps_its_weights() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1))
            self.maxpool = nn.MaxPool2d(3, 2, 1)

    net = Deep()
    first = net.conv1[0]
    shrink_stem(net)
    assert net.conv1[0] is first and net.conv1(torch.rand(1, 3, 8, 8)).shape[2:] == (8, 8)


def test_a_convolutional_classifier_becomes_the_equal_linear_layer() -> None:
    from timm.layers.classifier import ClassifierHead

    net = nn.Module()
    net.head = ClassifierHead(6, 5, "avg", use_conv=True)
    maps = torch.rand(2, 6, 3, 3)
    before = net.head(maps)
    make_classifier_linear(net)
    assert isinstance(net.head.fc, nn.Linear)
    torch.testing.assert_close(net.head(maps), before)


@pytest.mark.wide
@pytest.mark.parametrize(
    "name", ["dla46_c", "dpn48b", "repvit_m0_9", "swiftformer_xs", "deit_tiny_distilled_patch16_224"]
)
def test_a_classifier_that_is_no_linear_layer_becomes_the_equal_one(name: str) -> None:
    import timm

    size = 32
    torch.manual_seed(0)
    theirs = timm.create_model(
        name, num_classes=10, **({"img_size": 32, "patch_size": 4} if "deit" in name else {})
    ).eval()
    torch.manual_seed(0)
    net = timm_net(name, size).eval()
    images = torch.rand(2, 3, size, size)
    torch.testing.assert_close(net(images), theirs(images), rtol=1e-4, atol=1e-4)
    model = Classifier(copy.deepcopy(net), size, (0.0,), (1.0,)).eval()
    head = surgery.classifier_head(model)
    nn.init.zeros_(head.weight)
    assert torch.allclose(model(images), head.bias.expand(2, -1)) and not torch.allclose(net(images), model(images))
    net.train()
    net(images).sum().backward()
    assert all(
        parameter.grad is not None
        for parameter in surgery.classifier_head(Classifier(net, size, (0.0,), (1.0,))).parameters()
    )


def test_unknown_timm_name() -> None:
    with pytest.raises(ModelError) as error:
        timm_net("resnet81")
    assert str(error.value) == (
        "timm knows no model 'resnet81'. Did you mean 'resnet18', 'resnet101' or 'resnet18d'? "
        'All of them: python -c "import timm; print(*timm.list_models())"'
    )


def test_timm_networks_that_cannot_are_refused() -> None:
    with pytest.raises(
        ModelError, match="only ResNet, ResNetV2, ViT, DeiT, Swin and ConvNeXt can be changed so, not 'vgg11'"
    ):
        timm_net("vgg11", 32, "small")
    with pytest.raises(
        ModelError, match=r"^timm's 'test_vit3' with stem=as_is does not read images of 32 px \(Assertion"
    ):
        timm_net("test_vit3", 32, "as_is")


def test_a_timm_network_made_for_one_size_is_told_another() -> None:
    name = "test_vit_relpos"
    assert timm_net(name, 32)(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(
        ModelError, match=r"Choose model.stem=auto, dataset.size=\d{3}, which it is made for, or another model"
    ):
        timm_net(name, 32, "as_is")


def test_a_timm_network_that_cannot_be_told_names_its_size() -> None:
    with pytest.raises(
        ModelError, match=r"\. Choose dataset.size=256, which it is made for, or another model.timm_name\.$"
    ):
        timm_net("bat_resnext26ts", 64)


class Volume(nn.Module):
    """A network with a convolution over three dimensions, as LambdaNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.volume = nn.Conv2d(3, 16, 3), nn.Conv3d(1, 2, (1, 3, 3))
        self.fc = nn.Linear(2, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.volume(self.conv(images)[:, None]).mean((2, 3, 4)))  # type: ignore[no-any-return]


def test_a_network_with_five_dimensional_weights_lies_channel_by_channel() -> None:
    """torch lays no such weight out channels last: it raises."""
    model = Classifier(Volume(), 32, (0.0,) * 3, (1.0,) * 3)
    outputs.settle_layout(model, "volume")
    layout = layouts.layout_of(model, torch.device("cpu"))
    assert (
        layout == torch.contiguous_format
        and layouts.layout_of(nn.Conv2d(16, 3, 3), torch.device("cpu")) == torch.channels_last
    )
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    assert model.to(memory_format=layout)(images).shape == (2, 10)
    assert model.crop(images).is_contiguous()


def test_pretrained_weights_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def offline(*args: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError) as error:
        TimmSpec("t", None, "resnet18", True, "auto").net(10, 32)
    assert str(error.value) == (
        "The pretrained weights of timm's 'resnet18' could not be loaded (OSError: no route to host). They need a network "
        "connection and a name that has weights. Without them set model.pretrained=false; to start from weights on this "
        "machine, also pass their file as model.checkpoint."
    )


@pytest.mark.wide
@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224"])
def test_weights_that_are_loaded_between_two_passes_are_all_used(name: str) -> None:
    """timm's own networks of these families go on with the attention biases of the first pass."""
    spec = build(compose(["model=timm", f"model.timm_name={name}", "model.stem=as_is"])["model"], "model")
    images = torch.linspace(0, 1, 2 * 3 * 224 * 224).view(2, 3, 224, 224)
    first, second = (spec.net(10, 224).eval() for _ in range(2))
    with torch.no_grad():
        for scale, net in ((0.1, first), (0.3, second)):
            for parameter in net.parameters():
                parameter.add_(scale * torch.sin(torch.arange(parameter.numel()).float()).view_as(parameter))
        expected = second(images)
        first(images)
        first.load_state_dict(second.state_dict())
        assert torch.equal(first(images), expected)
    copied = copy.deepcopy(first)
    first(images).sum().backward()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
        assert not torch.equal(copied(images), expected)  # its biases are its own
        assert torch.equal(first(images), expected)
    copy.deepcopy(first)


@pytest.mark.wide
@pytest.mark.parametrize("name", ["repvit_m0_9", "deit_tiny_distilled_patch16_224"])
def test_two_heads_that_are_one_layer_here_are_two_in_files(name: str) -> None:
    """Whatever is tuned here is read by timm's own network, and the other way round."""
    import timm

    size = 32 if name.startswith("repvit") else 224
    theirs, ours = timm.create_model(name, num_classes=10).eval(), timm_net(name, size, "as_is").eval()
    images = torch.linspace(0, 1, 3 * size * size).view(1, 3, size, size)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.sin(torch.arange(weight.numel()).float()).view_as(weight))
        whole = nn.ModuleDict({"net": copy.deepcopy(ours)})
        whole.load_state_dict({f"net.{key}": value for key, value in theirs.state_dict().items()})
        assert torch.allclose(whole["net"](images), expected := theirs(images), atol=1e-4)
        classifier = surgery.classifier_head(Classifier(whole["net"], size, (0.0,) * 3, (1.0,) * 3))
        classifier.bias.add_(1.0)
        theirs.load_state_dict(whole["net"].state_dict())
        assert torch.allclose(theirs(images), expected + 1, atol=1e-4)
    again = copy.deepcopy(ours)
    again.load_state_dict(whole["net"].state_dict())
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in whole["net"].state_dict().items())


@pytest.mark.wide
def test_an_inception_trains_at_224_pixels_and_keeps_its_second_head() -> None:
    """That head, which nobody reads, has a kernel of 5 pixels for a map of 3 there."""
    model = build(compose(["model=torchvision", "model.architecture=inception_v3"])["model"], "model")
    own = model.classifier(10, 224, (0.0,) * 3, (1.0,) * 3)
    assert copy.deepcopy(own).train()(torch.rand(2, 3, 224, 224)).shape == (2, 10)
    assert sum(name.startswith("net.AuxLogits.") for name in own.state_dict()) == 14


@pytest.mark.wide
@pytest.mark.parametrize("has_aux", [True, False])
def test_what_googlenet_has_for_its_training_alone_may_be_missing(has_aux: bool, tmp_path: Path) -> None:
    from torchvision.models import googlenet

    torch.save(
        googlenet(num_classes=10, aux_logits=has_aux, init_weights=False).state_dict(), file := tmp_path / "theirs.pth"
    )
    spec = build(compose(["model=torchvision", "model.architecture=googlenet"])["model"], "model")
    model = spec.classifier(10, 32, (0.0,) * 3, (1.0,) * 3)
    fit = checkpoint.load_given(model, str(file), "googlenet")
    assert torch.equal(model.net.fc.weight, torch.load(file)["fc.weight"])
    checkpoint.save_as(fit, model, tmp_path / "cleaned.pth")
    assert torch.load(tmp_path / "cleaned.pth").keys() == torch.load(file).keys()
