"""What lies beside a network in its file: the network once more, what images are normalised by, parts of other files."""

import json
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scenes import given
from torch import Tensor, nn

from backdoorbench.errors import ModelError
from backdoorbench.models import checkpoint, reading
from backdoorbench.models.base import Classifier
from backdoorbench.models.identify import identify
from backdoorbench.pipeline import cleaned

Weights = dict[str, Tensor]


def headed(head: str, seed: int) -> Weights:
    return {f"{head}{name}": value.clone() for name, value in given(seed).net.state_dict().items()}


COPIES: dict[str, tuple[Weights, str]] = {  # a state dict, and the head that is read: that of seed 1
    "an average": (headed("model.", 1) | headed("ema_model.", 2), "ema_model."),
    "an average of a shorter name, first": (headed("ema.", 2) | headed("model.", 1), "ema."),
    "an average beside bare names": (headed("", 1) | headed("swa.module.", 2), "swa.module."),
    "the same network, as MadryLab's robustness registers it": (
        headed("module.model.", 1) | headed("module.attacker.model.", 1), "attacker.model.",
    ),
    "a part of it": (headed("net.", 1) | {"key.conv1.weight": torch.ones(4, 3, 3, 3), "key.head.bias": torch.ones(2)}, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_network_that_lies_there_twice_is_read_by_its_own_head_and_written_to_both(
    kind: str, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a loader that takes the second would have the backdoor back."""
    weights, other = COPIES[kind]
    file, to = tmp_path / f"theirs.{ending}", tmp_path / f"cleaned.{ending}"
    torch.save(weights, file) if ending == "pth" else save_file(weights, file)
    model = given(0)
    fit = checkpoint.load_given(model, str(file), "tiny")
    assert torch.equal(model.net.head.weight, given(1).net.head.weight) and list(fit.copies) == [other] * bool(other)
    is_other = bool(other) and "attacker" not in other
    assert ("too, with other weights than those that are read" in caplog.text) == is_other
    checkpoint.save_as(fit, given(3), to)
    written = reading.read(to).states[0].weights
    assert written.keys() == weights.keys()
    for name, value in written.items():
        inner = name.removeprefix("module.").removeprefix(other)
        wanted = given(3).net.state_dict().get(inner.removeprefix("model.").removeprefix("net."))
        assert torch.equal(value, wanted if wanted is not None else weights[name]), name


GREYS = {"one": torch.tensor(0.3), "three": torch.full((3,), 0.3), "maps": torch.full((1, 3, 1, 1), 0.3)}


@pytest.mark.parametrize(
    ("mean", "std", "head"),
    [
        ("0.mean", "0.std", "1."), ("normalize.mean", "normalize.std", ""), ("mean", "std", "model."),
        ("module.normalizer.new_mean", "module.normalizer.new_std", "module.model."), ("mu", "sigma", ""),
        ("pixel_mean", "pixel_std", "backbone."),
    ],
)  # fmt: skip
def test_what_a_file_says_of_normalisation_is_followed_unless_somebody_says_otherwise(
    mean: str, std: str, head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for grey in GREYS.values():
        file, model = tmp_path / "theirs.pth", given(0)
        torch.save({mean: grey, std: grey / 2, **headed(head, 1)}, file)
        fit = checkpoint.load_given(model, str(file), "tiny")
        assert fit.by == "names" and f"normalised by, in {mean} and {std}, which is followed" in caplog.text
        assert torch.allclose(model.normalize.mean, torch.tensor(0.3)) and torch.allclose(
            model.normalize.std, torch.tensor(0.15)
        )
        checkpoint.save_as(fit, given(3), tmp_path / "cleaned.pth")
        assert torch.equal(torch.load(tmp_path / "cleaned.pth")[mean], grey)  # as it was
        checkpoint.load_given(said := given(0), str(file), "tiny", normalised=True)
        assert torch.allclose(said.normalize.mean, torch.tensor(0.5)) and "and so do the settings" in caplog.text
        assert "left out" not in caplog.text
        caplog.clear()


def test_means_above_one_are_of_pixels_up_to_255(tmp_path: Path) -> None:
    mean = torch.tensor([103.94, 116.78, 123.68]).view(3, 1, 1)
    torch.save(
        {"pixel_mean": mean, "pixel_std": torch.ones(3, 1, 1), **headed("backbone.", 1)}, tmp_path / "theirs.pth"
    )
    checkpoint.load_given(model := given(0), str(tmp_path / "theirs.pth"), "tiny")
    assert torch.allclose(model.normalize.mean * 255, mean) and torch.allclose(
        model.normalize.std * 255, torch.ones(3, 1, 1)
    )


def test_what_is_no_normalisation_is_none(tmp_path: Path) -> None:
    for mean, std in (
        (torch.zeros(5), torch.ones(5)),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(3), torch.ones(1)),
    ):
        torch.save({"a.mean": mean, "a.std": std, **headed("net.", 1)}, tmp_path / "theirs.pth")
        assert checkpoint.load_given(given(0), str(tmp_path / "theirs.pth"), "tiny").colours is None


def test_a_classifier_of_ours_follows_the_settings_where_they_say_more(tmp_path: Path) -> None:
    theirs = given(1)
    theirs.normalize.mean.fill_(0.1)
    torch.save(theirs.state_dict(), file := tmp_path / "ours.pth")
    for is_said, mean in ((False, 0.1), (True, 0.5)):
        checkpoint.load_given(model := given(0), str(file), "tiny", normalised=is_said)
        assert torch.allclose(model.normalize.mean, torch.tensor(mean)), is_said


@pytest.mark.wide
def test_a_network_is_known_by_its_weights_whatever_lies_beside(
    weights: Callable[..., Weights], tmp_path: Path
) -> None:
    own = weights("demo")
    beside = {
        "normalizer.mean": torch.full((1, 3, 1, 1), 0.5), "normalizer.std": torch.full((1, 3, 1, 1), 0.5), "criterion.weight": torch.ones(10),
    }  # fmt: skip
    copies = {f"{head}{name}": value for head in ("model.", "ema.") for name, value in own.items()}
    torch.save(beside | copies, file := tmp_path / "theirs.pth")
    first = identify(reading.read(file), 32)[0]
    assert first.words == ["model=demo"] and first.fit.colours == ("normalizer.mean", "normalizer.std")
    assert list(first.fit.copies) == ["ema."]


@pytest.fixture
def weights() -> Callable[..., Weights]:
    from backdoorbench.config.build import build
    from backdoorbench.config.compose import compose

    def made(name: str) -> Weights:
        return dict(build(compose([f"model={name}"])["model"], "model").net(10, 32).state_dict())

    return made


def test_numbers_that_the_files_precision_does_not_reach_are_not_written_as_infinite(tmp_path: Path) -> None:
    torch.save({name: value.half() for name, value in headed("", 1).items()}, file := tmp_path / "theirs.pth")
    fit = checkpoint.load_given(model := given(0), str(file), "tiny")
    model.net.bn1.running_var.fill_(70_000)
    with pytest.raises(
        ModelError, match=r"bn1.running_var in float16, which does not reach as far .* Save it in float32"
    ):
        checkpoint.save_as(fit, model, tmp_path / "cleaned.pth")
    assert not (tmp_path / "cleaned.pth").exists()


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_one_of_several_files_is_refused_with_the_way_to_join_them(ending: str, tmp_path: Path) -> None:
    own = list(headed("", 1).items())
    for number, part in enumerate((dict(own[:4]), dict(own[4:])), 1):
        file = tmp_path / f"model-{number:05}-of-00002.{ending}"
        save_file(part, file) if ending == "safetensors" else torch.save(part, file)
    index = tmp_path / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {name: file.name for name, _ in own}}))
    for named, what in ((file, "one of several files"), (index, "the index of several files")):
        with pytest.raises(
            ModelError, match=f"is {what} of a network's weights; expected all of them in one. Join"
        ) as caught:
            reading.read(named)
    import glob
    import os

    code = str(caught.value).partition('python -c "')[2].removesuffix('"')
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        exec(code, {"glob": glob})
    finally:
        os.chdir(before)
    assert checkpoint.load_given(given(0), str(tmp_path / f"whole.{ending}"), "tiny").by == "names"
    single = tmp_path / f"model-00001-of-00001.{ending}"
    (tmp_path / f"whole.{ending}").rename(single)
    assert reading.read(single).states


def test_the_old_weights_are_left_out_beside_those_of_copies(tmp_path: Path) -> None:
    content = {"state_dict": headed("model.", 1) | headed("ema.", 2), "state_dict_ema": headed("", 2), "epoch": 3}
    torch.save(content, file := tmp_path / "theirs.pth")
    fit, dropped = cleaned.without_the_old(checkpoint.load_given(given(0), str(file), "tiny"))
    assert dropped == ["state_dict_ema"] and list(fit.copies) == ["ema."]


class Versioned(nn.Module):
    """A layer that wants to know of which version its weights are, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.weight.view(3, 1, 1)

    def _load_from_state_dict(self, state: Weights, prefix: str, metadata: dict[str, int], *rest: Any) -> None:
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def versioned() -> Classifier:
    return Classifier(nn.Sequential(Versioned(), nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), 8, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("kind", ["state dict", "wrapped", "module", "pickled with more", "legacy"])
def test_what_is_written_loads_where_what_was_read_did(kind: str, tmp_path: Path) -> None:
    """Some layers ask for their version, which torch keeps beside the tensors of a state dict."""
    file, to, theirs = tmp_path / "theirs.pth", tmp_path / "cleaned.pth", versioned().net
    state = nn.ModuleDict({"module": theirs}).state_dict() if kind == "module" else theirs.state_dict()
    beside = {"args": Namespace(lr=0.1)} if kind == "pickled with more" else {"epoch": 3}
    torch.save(state if kind in ("state dict", "module", "legacy") else {"model": state, **beside}, file,
               _use_new_zipfile_serialization=kind != "legacy")  # fmt: skip
    fit = checkpoint.load_given(model := versioned(), str(file), "versioned")
    model.net[0].weight.data.fill_(7)
    checkpoint.save_as(fit, model, to)
    written = torch.load(to)
    written = written.get("model", written)
    assert type(written) is OrderedDict
    (nn.ModuleDict({"module": theirs}) if kind == "module" else theirs).load_state_dict(written)
    assert theirs[0].weight[0] == 7


def test_a_plain_dict_is_loaded_by_a_network_that_asks_for_versions(tmp_path: Path) -> None:
    model = versioned()
    checkpoint.save(model, tmp_path / "ours.safetensors")  # which keeps tensors alone
    checkpoint.restore(other := versioned(), tmp_path / "ours.safetensors")
    assert torch.equal(other.net[0].weight, model.net[0].weight)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"net.0.weight": torch.ones(3)})
