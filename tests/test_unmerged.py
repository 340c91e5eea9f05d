"""Files that do not hold a network's weights but what they are made of: refused, each with what puts them together.

pytest tests/test_unmerged.py
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx.experimental.optimization
from scenes import given
from test_reading import bare, classifier, load, same
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from backdoorbench.cli.main import main
from backdoorbench.errors import ModelError
from backdoorbench.models import checkpoint, reading, unmerged
from backdoorbench.models.base import Classifier

Weights = dict[str, Tensor]


def convolutions(model: Classifier) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def of_each(make: Callable[[nn.Module], Any]) -> Callable[[Classifier], list[Any]]:
    return lambda model: [make(module) for module in convolutions(model)]


def unparametrised(module: nn.Module) -> Any:
    return parametrize.remove_parametrizations(module, "weight")


MADE: dict[str, tuple[Callable[[Classifier], list[Any]], Callable[[Classifier], list[Any]], str]] = {  # apart; together; what is said
    "pruned": (
        of_each(lambda module: prune.l1_unstructured(module, "weight", 0.5)),
        of_each(lambda module: prune.remove(module, "weight")),
        "pruned weights apart from their masks (conv1.weight_orig, conv1.weight_mask); expected the weights that the network computes "
        "with. Where the network runs, call torch.nn.utils.prune.remove(module, 'weight') for each pruned module, then torch.save(",
    ),
    "spectral norm, as it was": (
        of_each(nn.utils.spectral_norm), of_each(nn.utils.remove_spectral_norm),
        "weights before their spectral normalisation (conv1.weight_orig, conv1.weight_u); expected the weights that the network "
        "computes with. Where the network runs, call torch.nn.utils.remove_spectral_norm(module) for each such module, then",
    ),
    "spectral norm": (
        of_each(parametrizations.spectral_norm), of_each(unparametrised),
        "what torch.nn.utils.parametrize computes weights of (conv1.parametrizations.weight.original, conv1.parametrizations",
    ),
    "weight norm": (
        of_each(parametrizations.weight_norm), of_each(unparametrised),
        "call torch.nn.utils.parametrize.remove_parametrizations(module, 'weight') for each such module, then torch.save(",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE)
def test_what_weights_are_made_of_is_not_taken_for_weights(kind: str, tmp_path: Path) -> None:
    apart, together, said = MADE[kind]
    apart(model := classifier())
    torch.save(bare(model), file := tmp_path / "theirs.pth")
    with pytest.raises(ModelError) as refused:
        load(classifier(seed=1), file)
    assert said in str(refused.value) and "Choose the model" not in str(refused.value)
    model(torch.rand(2, 3, 8, 8))  # what is computed before each pass
    together(model)
    torch.save(bare(model), file)
    load(read := classifier(seed=1), file)
    assert same(read, model)


def test_weight_norm_of_old_is_told() -> None:
    weights = {"conv1.weight_g": torch.ones(4, 1, 1, 1), "conv1.weight_v": torch.ones(4, 3, 3, 3)}
    assert unmerged._of_names(weights) is not None
    assert "remove_weight_norm(module)" in str(unmerged._of_names(weights))
    assert unmerged._of_names(weights | {"conv1.weight": torch.ones(4, 3, 3, 3)}) is None  # it has its weight


def lora(weights: Weights) -> Weights:
    return {name: value for name, value in weights.items() if "linear" not in name} | {
        "linear.base_layer.weight": weights["linear.weight"], "linear.base_layer.bias": weights["linear.bias"],
        "linear.lora_A.default.weight": torch.ones(2, 16), "linear.lora_B.default.weight": torch.ones(5, 2),
    }  # fmt: skip


OTHERS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "an adapter inside": (lora, "holds an adapter (linear.lora_A.default.weight, linear.lora_B.default.weight), whose weights are added"),
    "an adapter alone": (
        lambda _: {"base_model.model.fc.lora_A.weight": torch.ones(2, 16), "base_model.model.fc.lora_B.weight": torch.ones(5, 2)},
        "Merge them where it runs, with peft by model.merge_and_unload(), then torch.save(model.state_dict(), FILE).",
    ),
    "an adapter beside a weight": (
        lambda weights: weights | {"linear.lora_A": torch.ones(2, 16), "linear.lora_B": torch.ones(5, 2)},
        "holds an adapter (linear.lora_A, linear.lora_B)",
    ),
    "quantised": (
        lambda weights: {name: value for name, value in weights.items() if "linear" not in name}
        | {"linear.scale": torch.tensor(1.0), "linear.zero_point": torch.tensor(0)},
        "holds a quantised network (linear.zero_point); expected weights that are fractions",
    ),
    "of one process": (
        lambda weights: {name: torch.empty(0) for name in weights},
        "weights without a number in them (conv1.weight, ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_that_lack_something_are_told_by_their_names(kind: str, tmp_path: Path) -> None:
    make, said = OTHERS[kind]
    torch.save({"state_dict": make(dict(bare(classifier())))}, file := tmp_path / "theirs.pth")
    with pytest.raises(ModelError) as refused:
        load(classifier(seed=1), file)
    assert said in str(refused.value)


ORDINARY: dict[str, dict[str, Tensor]] = {
    "a layer called base_layer, as in timm's DLA": {"module.base_layer.0.weight": torch.ones(2, 3, 3, 3)},
    "an empty buffer": {"conv.weight": torch.ones(2, 3, 3, 3), "queue": torch.empty(0)},
    "a layer of no outputs": {"conv.weight": torch.ones(2, 3, 3, 3), "none.weight": torch.empty(0, 2)},
    "steps of its own beside fractions": {"conv.weight": torch.ones(2, 3, 3, 3), "conv.zero_point": torch.tensor(0)},
}  # fmt: skip


@pytest.mark.parametrize("kind", ORDINARY)
def test_weights_that_are_whole_are_not_told_to_be_parts(kind: str, tmp_path: Path) -> None:
    torch.save(ORDINARY[kind], file := tmp_path / "theirs.pth")
    assert unmerged.told(reading.read(file)) is None


def test_a_network_that_was_trained_as_if_quantised(tmp_path: Path) -> None:
    """Its own weights, once those are left out by which it rounds; a network that rounds itself is told what else it lacks."""
    rounds = {
        "conv1.weight_fake_quant.scale": torch.ones(1), "conv1.weight_fake_quant.fake_quant_enabled": torch.tensor([1]), "conv1.weight_fake_quant.zero_point": torch.tensor([0]),
        "conv1.activation_post_process.fake_quant_enabled": torch.tensor([1]), "activation_post_process_0.scale": torch.ones(1),
    }  # fmt: skip
    weights = dict(bare(classifier()))
    torch.save(weights | rounds, file := tmp_path / "theirs.pth")
    with pytest.raises(ModelError) as refused:
        load(classifier(seed=1), file)
    assert "holds a network trained as if it were quantised (conv1.weight_fake_quant.scale, " in str(refused.value)
    kept = {
        name: value
        for name, value in torch.load(file).items()
        if "fake_quant" not in name and "activation_post_process" not in name
    }
    assert kept.keys() == weights.keys()
    assert unmerged.told(reading.read(file), rounds) is None


def test_a_traced_network_is_read(tmp_path: Path) -> None:
    torch.save(torch.fx.symbolic_trace((theirs := classifier()).net), file := tmp_path / "theirs.pth")
    load(read := classifier(seed=1), file)
    assert same(read, theirs)


@pytest.mark.parametrize(
    "name", ["a.lora_A.default.weight", "a.boft_R.default", "lora_unet_a", "a.modules_to_save.default.weight"]
)
def test_adapters_are_told_by_names(name: str, tmp_path: Path) -> None:
    torch.save({"a.base_layer.weight": torch.ones(2, 2), name: torch.ones(2, 2)}, file := tmp_path / "theirs.pth")
    assert f"holds an adapter ({name})" in str(unmerged.told(reading.read(file)))


class Packed(Tensor):
    """As quantised and sharded tensors are: a wrapper without values of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Packed":
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(function)


class DTensor(Packed):
    """Called as that of torch."""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            Packed,
            "2 weights as objects of another library (conv1.weight is a test_unmerged.Packed), which bdx does not build",
        ),
        (
            DTensor,
            "spread over several processes (conv1.weight is a test_unmerged.DTensor), of which each file has a part",
        ),
    ],
)
@pytest.mark.parametrize("most", [True, False], ids=["all", "two"])
def test_tensors_of_another_kind_are_told(kind: type[Packed], said: str, most: bool, tmp_path: Path) -> None:
    weights = dict(bare(classifier()))
    names = ("conv1.weight", "linear.weight")
    other = {name: kind(weights[name]) for name in names}
    torch.save({"model": other if most else weights | other}, file := tmp_path / "theirs.pth")
    with pytest.raises(ModelError) as refused:
        load(classifier(seed=1), file)
    assert said in str(refused.value)


def test_torchs_own_reader_gives_plain_tensors_alone(tmp_path: Path) -> None:
    """One that torch itself builds would be copied as a whole one, or fail in the middle of it."""
    torch.save({"a.weight": Packed(torch.ones(2, 3)), "b.weight": torch.ones(3)}, file := tmp_path / "theirs.pth")
    with torch.serialization.safe_globals([Packed, torch._utils._rebuild_wrapper_subclass]):
        found = reading.read(file)
    assert [list(state.weights) for state in found.states] == [["b.weight"]] and list(found.unread) == ["a.weight"]


def test_a_network_that_has_its_weights_in_parts_itself_is_read(tmp_path: Path) -> None:
    """Names decide only where nothing fits."""
    of_each(parametrizations.weight_norm)(model := classifier())
    torch.save(bare(model), file := tmp_path / "theirs.pth")
    of_each(parametrizations.weight_norm)(other := classifier(seed=1))
    load(other, file)
    assert same(other, model)


def test_the_number_of_an_averages_parts_is_no_weight(tmp_path: Path) -> None:
    model = given(1)
    torch.save(torch.optim.swa_utils.AveragedModel(model.net).state_dict(), file := tmp_path / "swa.pth")
    fit = checkpoint.load_given(other := given(2), str(file), "tiny")
    assert same(other, model)
    checkpoint.save_as(fit, other, tmp_path / "clean.pth")
    written = torch.load(tmp_path / "clean.pth", weights_only=True)
    assert written["n_averaged"] == 0 and list(written) == list(torch.load(file, weights_only=True))


@pytest.mark.parametrize("head", ["", "their_"], ids=["by names", "by order"])
def test_what_a_network_costs_is_no_weight(head: str, tmp_path: Path) -> None:
    """As thop leaves it in all modules, or in the outermost alone."""
    model = classifier()
    weights: dict[str, Tensor] = {}
    for name, value in bare(model).items():
        module = f"{head}{name.rpartition('.')[0]}.".lstrip(".")
        weights |= {f"{module}{cost}": torch.zeros(1, dtype=torch.float64) for cost in ("total_ops", "total_params")}
        weights[f"{module}{name.rpartition('.')[2]}"] = value
    torch.save(weights | {"total_ops": torch.ones(1, dtype=torch.float64)}, file := tmp_path / "counted.pth")
    fit = checkpoint.load_given(other := classifier(seed=1), str(file), "tiny")
    assert same(other, model)
    checkpoint.save_as(fit, other, tmp_path / "clean.pth")
    assert list(torch.load(tmp_path / "clean.pth", weights_only=True)) == list(torch.load(file, weights_only=True))


def test_inspect_says_so_before_it_says_that_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(
        {"fc.weight_orig": torch.ones(5, 3), "fc.weight_mask": torch.ones(5, 3)}, file := tmp_path / "theirs.pth"
    )
    for words in ([], ["model=demo"]):
        assert main(["inspect", str(file), *words]) == 2
        assert "pruned weights apart from their masks (fc.weight_orig, fc.weight_mask)" in capsys.readouterr().err


def test_files_of_a_distributed_checkpoint_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder := tmp_path / "step_10").mkdir()
    for name in ("__0_0.distcp", ".metadata"):
        torch.save(torch.ones(3), content := io.BytesIO())
        (file := folder / name).write_bytes(content.getvalue())
        with pytest.raises(
            ModelError, match=r"Join them: torch\.distributed\.checkpoint\.format_utils\.dcp_to_torch_save"
        ):
            reading.read(file)
    assert main(["inspect", str(folder)]) == 2
    assert (
        "is a folder of torch.distributed.checkpoint; expected a file of weights, such as safetensors, .pt or .pth. Join its files: "
        in (capsys.readouterr().err)
    )


def normed(depth: int = 4) -> nn.Sequential:
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, bias=False), nn.BatchNorm2d(3)) for _ in range(depth)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)).eval()


def fused(depth: int = 4) -> nn.Module:
    folded: nn.Module = torch.fx.experimental.optimization.fuse(normed(depth))
    return folded


def judging(net: nn.Module) -> Classifier:
    return Classifier(net, 16, (0.5,) * 3, (0.5,) * 3)


def test_batch_norms_that_were_folded_are_told_and_a_folded_network_is_read(tmp_path: Path) -> None:
    torch.save((folded := fused()).state_dict(), file := tmp_path / "fused.pth")
    with pytest.raises(ModelError) as refused:
        load(judging(normed()), file)
    assert str(refused.value) == (
        f"model.checkpoint={file} holds a network whose batch norms were folded into its convolutions for use (all 4 have biases, such as "
        "0.0.bias, and nothing normalises), as torch.fx's fuse and timm's reparameterize_model do; expected one with its batch "
        "norms. Choose the file from before that, or name a function of yours that returns the folded network: model=module "
        "model.target=PACKAGE.MODULE:FACTORY, as docs/your-model.md says."
    )
    load(read := judging(fused()), file)
    assert same(read, judging(folded))
    with pytest.raises(
        ModelError, match="does not fit tiny: 5.bias is missing"
    ):  # two networks without norms differ in something else
        load(judging(fused(3)), file)


@pytest.mark.parametrize("name", ["stages.0.0.reparam_conv.weight", "module.stage1.0.rbr_reparam.weight"])
def test_what_timm_and_repvgg_fold_is_told_by_its_name(name: str) -> None:
    weights = {name: torch.ones(4, 3, 3, 3), "bn.weight": torch.ones(4), "bn.running_mean": torch.ones(4)}
    assert f"for use ({name})" in str(unmerged._of_folded(weights))
    assert unmerged._of_folded({"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.ones(4)}) is None
