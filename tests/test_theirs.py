"""`bdx inspect` and `bdx clean`: a model that somebody else trained, a folder of images, no line of Python."""

import io
import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK
from PIL import Image
from records import made_run
from rich.console import Console
from safetensors.torch import load_file, save_file

from backdoorbench.api import load_dataset
from backdoorbench.cli import theirs
from backdoorbench.cli.clean import class_number
from backdoorbench.cli.main import main
from backdoorbench.metrics import Scores
from backdoorbench.models import beside, reading
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting import card, inspection
from backdoorbench.storage import record
from backdoorbench.storage.record import Run

READ = ("dataset.mean=[0.485,0.456,0.406]", "dataset.std=[0.229,0.224,0.225]")  # as dataset=folder reads it again
NETWORK = ("model=demo", "model.width=8", "runtime.threads=1")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 and 100 digits as pictures in class folders."""
    root = tmp_path_factory.mktemp("digits")
    for split, images, count in zip(("train", "test"), load_dataset("digits"), (300, 100), strict=True):
        for row in range(count):
            file = root / split / str(int(images.labels[row])) / f"{row}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[row].permute(1, 2, 0).numpy()).save(file)
    return root


@pytest.fixture(scope="module")
def model(run: Callable[..., Job], outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that BadNets infected, its weights under a wrapper's names."""
    key = run("attack=badnets", "defense=none", *QUICK, *READ).run.infection.key
    weights = load_file(next(outputs.glob(f"cache/infection/*{key}/model.safetensors")))
    bare = {f"module.{name.removeprefix('net.')}": value for name, value in weights.items() if name.startswith("net.")}
    file = tmp_path_factory.mktemp("theirs") / "theirs.pth"
    moments = {number: {"exp_avg": value, "step": torch.tensor(6)} for number, value in enumerate(bare.values())}
    beside = {"epoch": 6, "optimizer": {"state": moments, "lr": 0.1}, "generator": {"mask": torch.ones(3, 5)}}
    torch.save({"state_dict": bare, "state_dict_ema": bare, **beside}, file)
    return file


@pytest.mark.wide
def test_a_model_is_cleaned_and_written_as_it_was_read(
    digits: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "clean",
        str(model),
        "--data",
        str(digits),
        "--trigger",
        "white3",
        "--target",
        "0",
        "--no-reversal",
        *NETWORK,
    ]
    to = tmp_path / "cleaned" / "better.pth"
    words += ["exact.epochs=0", f"runtime.outputs={tmp_path}", "force=true"]
    assert main([*words, "defense.epochs=2", "--to", str(to)]) == 0
    said = capsys.readouterr().out
    assert "cleaned     by fst, with 300 clean images, in " in said and f"weights     {to} (in a new folder)" in said
    assert "infected" not in said and "holdout" not in said  # a run's words
    assert [line for line in said.splitlines() if line != line.rstrip()] == []
    before, after = torch.load(model, weights_only=True), torch.load(to, weights_only=True)
    assert list(after) == ["state_dict", "epoch", "generator"] and after["epoch"] == 6  # nothing of the old weights
    assert {name: value.shape for name, value in after["state_dict"].items()} == {
        name: value.shape for name, value in before["state_dict"].items()
    }
    assert not torch.equal(after["state_dict"]["module.linear.weight"], before["state_dict"]["module.linear.weight"])
    card = (tmp_path / "cleaned" / "better.pth.model-card.md").read_text()
    for words_of_card in (
        "the trigger hardly acted on", f"- read: `{model.name}`, SHA-256 ", "- network: demo, model.depth 10, model.width 8; images of 32 px",
        "pixels from 0 to 1, red first; less the mean (0.485, 0.456, 0.406)", "outputs: 0, 1, 2,", "; bdx ", "with 300 clean",
        "judged by 100 test images", "- as given: trigger white3, opacity 1.0, stored True\n- it leads to: class 0, called '0'\n",
        "## Whether it comes back\n\nAttacked again by retune, rate 0.02", "- no control beside it: exact.epochs=5 adds",
        "epoch 6", "the weights that were read: state_dict_ema, optimizer",
    ):  # fmt: skip
        assert words_of_card in card, card
    done = next(run for run in map(record.read, tmp_path.glob("runs/*")) if run.config["defense"]["name"] == "fst")
    assert done.purified is not None and done.purified.asr is not None
    assert done.config["defense"]["strength"] == 1.5 and done.config["holdout"]["rate"] == 1.0
    assert f"| {100 * done.purified.ca:.2f} |" in card and "attack success rate" in card
    assert main(["clean", str(to), *words[2:], "defense.epochs=1"]) == 0  # what was written is read


@pytest.mark.wide
def test_a_model_is_inspected(digits: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", str(model), "--data", str(digits), *NETWORK, f"runtime.outputs={tmp_path}"]
    assert main([*words, "--detectors", "signature,latent_tac"]) == 0
    said = capsys.readouterr().out
    done = {run.detection.name: run for run in (record.read(folder) for folder in tmp_path.glob("runs/*"))}
    assert set(done) == {"", "signature", "latent_tac"}  # the first judges the model
    assert "training" not in said and "purified" not in said and "asking signature; cost: none" in said
    assert "(95 % interval " in said and "No figure of a clean model of this network" in said
    assert done[""].infection.notes["training"] == "as given: nothing was trained"
    for name, run in list(done.items()):
        if not name:
            continue
        assert f"anomaly index {run.detection.figures['anomaly_index']:.2f}" in said, name
    assert "test images" in said and "is no proof" in " ".join(said.split())
    assert main([*words, "--detectors", "nc", "detector.units=3", "detector.success=0.2"]) == 0
    assert "reversed_triggers.png" in capsys.readouterr().out


@pytest.mark.wide
def test_without_images_the_last_layer_alone_is_looked_at(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    said = capsys.readouterr().out
    assert "epoch 6" in said and "under state_dict" in said and "model=demo model.width=8, for 10 classes" in said
    assert "flagged, anomaly index" in said and "Add --data DIR." in said


@pytest.mark.wide
def test_without_images_it_is_said_which_of_two_sets_of_weights_is_looked_at(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = torch.load(model, weights_only=False)["state_dict"]
    averaged = {name: value / 2 if value.is_floating_point() else value for name, value in held.items()}
    torch.save({"state_dict": held, "state_dict_ema": averaged}, file := tmp_path / "both.pth")
    for words in ([], ["model=demo", "model.width=8"]):
        assert main(["inspect", str(file), *words]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "one is an average, by their names that under state_dict_ema" in said
        assert "those under state_dict are read" in said and "flagged, anomaly index" in said


OWN = """
from torch import nn
import torch.nn.functional as F

class Own(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.early, self.late = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.last = nn.Linear(16, num_classes)

    def forward(self, x):
        maps = F.relu(self.late(F.relu(self.early(x))))
        return self.last(maps.view(maps.size(0), 16, -1).mean(2))
"""


@pytest.mark.wide
def test_without_images_a_network_that_is_named_is_believed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_of_theirs.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    import own_of_theirs  # type: ignore[import-not-found]

    torch.save(own_of_theirs.Own(7).state_dict(), file := tmp_path / "own.pth")
    assert main(["inspect", str(file)]) == 0
    assert "none here that they fit; name it by model=" in " ".join(capsys.readouterr().out.split())
    named = ["model=module", "model.target=own_of_theirs:Own", "plugins=[own_of_theirs]"]
    assert main(["inspect", str(file), *named]) == 0
    said = capsys.readouterr().out
    assert "module, as it was named: the weights are its" in said and "flagged, anomaly index" in said
    assert main(["inspect", str(model), *named]) == 2
    assert "holds the weights of another network than module for 10 classes at 32 pixels" in capsys.readouterr().err


CONVOLUTION_LAST = """
from torch import nn

def squeezed(num_classes=10):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.mark.wide
def test_a_detector_that_cannot_read_a_network_is_left_out_alone(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As SqueezeNet, which ends in a convolution: whoever was handed a model cannot choose another."""
    (tmp_path / "own_of_squeezed.py").write_text(CONVOLUTION_LAST)
    monkeypatch.syspath_prepend(tmp_path)
    import own_of_squeezed  # type: ignore[import-not-found]

    torch.save(own_of_squeezed.squeezed().state_dict(), file := tmp_path / "own.pth")
    words = ["inspect", str(file), "model=module", "model.target=own_of_squeezed:squeezed", "plugins=[own_of_squeezed]"]
    assert main(words) == 0
    assert "signature cannot be asked: Sequential does not end in one" in " ".join(capsys.readouterr().out.split())
    words += ["--data", str(digits), "force=true", f"runtime.outputs={tmp_path}", "--detectors"]
    assert main([*words, "nc", "detector.units=3", "detector.success=0.2"]) == 0
    assert "reversed_triggers.png" in capsys.readouterr().out
    assert main([*words, "signature,latent_tac"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "signature cannot be asked: Sequential does not" in said and "latent_tac cannot be asked: Sequential" in said
    assert "verdict none: no detector could be asked" in said


@pytest.mark.slow
def test_without_images_a_stem_of_large_ones_is_named_for_either_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18(num_classes=3).state_dict(), file := tmp_path / "theirs.pth")
    assert main(["inspect", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "model=resnet18, for 3 classes" in said
        and "so for images of 128 px and more; for smaller ones it is model=torchvision" in said
    )
    assert main(["inspect", str(file), "dataset.size=32"]) == 0
    assert "model.architecture=resnet18 model.stem=as_is, for 3 classes" in " ".join(capsys.readouterr().out.split())


def test_an_optimizers_state_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"optimizer": {"state": {0: {"m": torch.zeros(3)}}, "param_groups": []}}, file := tmp_path / "only.pth")
    assert main(["inspect", str(file)]) == 2
    assert "holds the state of an optimizer (optimizer) and no weights" in capsys.readouterr().err


@pytest.mark.wide
def test_a_model_that_knows_nothing_gets_no_verdict(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    from backdoorbench.config.build import build
    from backdoorbench.config.compose import compose

    net = build(compose(["model=demo", "model.width=8"])["model"], "model").net(10, 32)
    save_file(net.state_dict(), file := tmp_path / "fresh.safetensors")
    words = [str(file), "--data", str(digits), *NETWORK, f"runtime.outputs={tmp_path}"]
    assert main(["inspect", *words, "--detectors", "signature"]) == 2
    captured = capsys.readouterr()
    assert (
        "fresh.safetensors cannot be judged on these images: CA is 0.100, near chance, and no usual way" in captured.err
        and "verdict" not in captured.out
    )
    assert "images 32 px, red first, less a mean of 0.485, 0.456, 0.406" in " ".join(captured.out.split())
    assert main(["inspect", *words, "--detectors", "signature", "force=true"]) == 0
    assert "verdict" in capsys.readouterr().out


def test_of_a_file_that_no_network_fits_only_what_it_holds_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a.weight": torch.ones(3, 5)}, tmp_path / "odd.safetensors")
    assert main(["inspect", str(tmp_path / "odd.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "15 numbers in 1 tensors" in said and "none here that they fit" in said and "flagged" not in said


def test_clean_models_stand_beside(run: Callable[..., Job]) -> None:
    infected = run("attack=badnets", "detector=signature", *QUICK).run
    clean = run("attack=none", "detector=signature", *QUICK).run
    assert infected.config["model"]["name"] == "demo"
    network = clean.config["model"]
    indices = inspection.clean_indices(
        [infected, clean, clean], "signature", {**network, "checkpoint": "x.pth", "mean": 0.5}
    )
    assert indices == [pytest.approx(clean.detection.figures["anomaly_index"])]
    for other in ({"name": "resnet18"}, {"width": 3}, {"target": "mine:Net"}):  # all of one's own are called module
        assert inspection.clean_indices([clean], "signature", {**network, **other}) == []
    said = inspection.line(infected, indices)
    assert f"clean models of this network here: {indices[0]:.2f}, n = 1, " in said and said.endswith("(few)")


@pytest.mark.wide
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clean", "nowhere.pth", "--data", "DIR"], "nowhere.pth"),
        (["inspect", "nowhere.pth"], "nowhere.pth"),
        (["inspect", "DIR"], " is a folder; expected a file of weights"),
        (["clean", "MODEL"], "a model is cleaned by images that it should know. Add --data DIR"),
        (["clean", "MODEL", "--data", "DIR", "--target", "3"], "--target says where a trigger leads, and there is none"),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "grid3"], "--trigger is 'grid3', and nothing says what it makes"),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "x.png", "--target", "0"], "attack.file is 'x.png', which is no file"),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "m:f", "--target", "0"], "only code of plugins is run"),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "grid3", "--target", "three"], "--target is 'three'; expected the name of a class (0, 1, 2, 3, 4, 5, 6, 7, 8, 9) or its number from 0 to 9."),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "grid3", "--target", "10"], "--target is '10'; expected the name of a class"),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "small.png", "--target", "0"], "of 2x3 pixels (rows x columns), and images have 32x32; nothing says where it lies. Set attack.position=[row,column] of its upper left corner, from 0, or from the far edge where negative: [0,0], [0,-3], [-2,0] or [-2,-3] for"),
        (["clean", "MODEL", "--data", "DIR", "--to", "small.png"], "--to is 'small.png', and 'small.png' exists already. Name another file, or add --overwrite"),
        (["clean", "MODEL", "--data", "DIR", "--to", "made"], "--to is 'made', and 'made.model-card.md' exists already"),
        (["clean", "MODEL", "--data", "DIR", "--to", "."], "--to is '.', a folder; expected the file"),
        (["clean", "MODEL", "--data", "DIR", "--to", "new/"], "--to is 'new/', a folder; expected the file"),
        (["clean", "MODEL", "--data", "DIR", "--to", "new.safetensors"], "of another format; what is cleaned is written in the format of what was read. Name a file that ends in '.pth'"),
        (["clean", "MODEL", "--data", "DIR", "--to", "small.png/x.pth"], "is no folder that can be written to"),
        (["clean", "MODEL", "--data", "DIR", "--to", "LINK", "--overwrite"], "the model that was read. Name another file: it is not overwritten."),
        (["clean", "MODEL", "--data", "DIR", "plugins=[mine]"], "plugins names 'mine', and no option of these 2 runs comes from it"),
        (["clean", "MODEL", "--data", "DIR", "--defense", "ft", "defense.strength=1"], "strength"),
        (["clean", "MODEL", "--data", "DIR", "--defense", "fts"], "Did you mean"),
        (["clean", "MODEL", "--data", "DIR", "--defense", "npd"], "npd gives the network more layers, so that its weights no longer fit"),
        (["clean", "MODEL", "--data", "DIR", "train.epochs=3"], "train.epochs is set by this command"),
        (["clean", "MODEL", "--data", "DIR", "attack=badnets"], "attack is set by this command"),
        (["inspect", "MODEL", "--data", "DIR", "--detectors", "strip"], "--detectors names 'strip'; expected some of latent_tac, nc"),
        (["inspect", "MODEL", "--data", "nowhere"], "nowhere, which does not exist"),
        (["inspect", "MODEL", "--data", "DIR", "model.width=4"], "model.checkpoint="),
        (["inspect", "TEXT", "--data", "DIR"], "text.pth is a text file; expected weights of PyTorch"),
        (["clean", "MODEL", "--data", "DIR", "--to", "MODEL", "--no-reversal", "defense.epochs=1", "force=true"], "the model that was read"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(
    words: list[str],
    said: str,
    digits: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "made.model-card.md").write_text("of another model")
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "link.pth").symlink_to(model)
    Image.new("RGB", (3, 2)).save(tmp_path / "small.png")
    named = {"MODEL": str(model), "DIR": str(digits), "TEXT": "text.pth", "LINK": "link.pth"}
    network = [word for word in NETWORK if not any(word.split("=")[0] == own.split("=")[0] for own in words)]
    code = main([*(named.get(word, word) for word in words), *network])
    captured = capsys.readouterr()
    assert code == 2 and said in captured.err, captured.err
    if said != "model.checkpoint=":  # whatever is typed is checked before any work
        assert not (tmp_path / "outputs/runs").exists()


CLEAN = ("--no-reversal", "defense.epochs=1", "exact.epochs=0", *NETWORK)


@pytest.mark.wide
def test_a_trigger_that_does_not_act_stops_before_anything_is_cleaned(
    digits: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (3, 3), "white").save(tmp_path / "patch.png")
    words = ["clean", str(model), "--data", str(digits), "--trigger", str(tmp_path / "patch.png"), "--target", "7"]
    words += [*CLEAN, f"runtime.outputs={tmp_path}", "gates.asr_floor=0.9"]
    assert main([*words, "attack.position=[0,0]"]) == 2
    captured = capsys.readouterr()
    (judged,) = tmp_path.glob("runs/*")
    said = captured.err
    assert (
        "the trigger does not act on theirs.pth: " in said and "called class 7, below 90.00 % (gates.asr_floor)" in said
    )
    assert "(attack.position=[row,column], now [0, 0])" in said and f"Look at {judged / 'triggered.png'}" in said
    assert (judged / "triggered.png").is_file() and record.read(judged).config["defense"]["name"] == "none"
    assert "force=true" in said and "model card" not in captured.out


@pytest.mark.wide
def test_a_model_that_knows_no_image_is_not_judged(
    digits: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(model, weights_only=True)
    weights = {name: torch.zeros_like(value) for name, value in content["state_dict"].items()}
    torch.save(weights, tmp_path / "blank.pth")
    words = [str(tmp_path / "blank.pth"), "--data", str(digits), *NETWORK, f"runtime.outputs={tmp_path}"]
    for verb in (["inspect"], ["clean", "--trigger", "white3", "--target", "0"]):
        assert main([*verb, *words]) == 2
        said = capsys.readouterr()
        assert (
            "blank.pth cannot be judged on these images: the network calls 100% of the clean test images the same"
            in said.err
        )
        assert "verdict" not in said.out and "does not act" not in said.err


@pytest.mark.wide
def test_a_function_is_a_trigger_though_the_network_needs_no_plugin(
    digits: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a copy of the model under another name finds the run done, and is named in its own card."""
    (tmp_path / "own_stamp.py").write_text("def stamp(images):\n    images[..., -3:, -3:] = 1\n    return images\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--data", str(digits), "--trigger", "own_stamp:stamp", "--target", "0", "plugins=[own_stamp]", *CLEAN]
    words += [f"runtime.outputs={tmp_path}", "force=true"]
    assert main(["clean", str(model), *words]) == 0, capsys.readouterr().err
    (copied := tmp_path / "copied.pth").write_bytes(model.read_bytes())
    capsys.readouterr()
    assert main(["clean", str(copied), *words, "--to", str(to := tmp_path / "to.pth")]) == 0
    said = capsys.readouterr().out
    assert "done before" in said and "(in a new folder)" not in said and copied.read_bytes() == model.read_bytes()
    card = (tmp_path / "to.pth.model-card.md").read_text()
    assert "- read: `copied.pth`" in card and "- as given: trigger function, function own_stamp:stamp" in card
    first = to.read_bytes()
    assert main(["clean", str(copied), *words, "--to", str(to)]) == 2 and to.read_bytes() == first
    assert main(["clean", str(copied), *words, "--to", str(to), "--overwrite"]) == 0


def test_a_class_is_named_by_its_name_before_its_number() -> None:
    assert class_number("cat", ("dog", "cat")) == class_number("1", ("dog", "cat")) == 1
    assert class_number("1", ("1", "2", "10")) == 0  # as folders are called, not where they stand


def test_images_are_normalised_as_a_file_beside_the_weights_says(digits: Path, tmp_path: Path) -> None:
    said = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    torch.save(weights := {"1.weight": torch.ones(2, 3)}, file := tmp_path / "theirs.pth")
    chosen = Namespace(model=str(file), data=str(digits), settings=["model=demo"], config_dirs=[])
    out = Console(file=io.StringIO())
    assert theirs.words(chosen, out)[-2:] == ["model.mean=[0.5,0.5,0.5]", "model.std=[0.25,0.25,0.25]"]
    torch.save(
        {"0.mean": torch.tensor([0.4]), "0.std": torch.tensor([0.2]), **weights}, file
    )  # which the file itself says
    assert "model.mean" not in " ".join(theirs.words(chosen, out))
    torch.save({"state_dict": weights, "args": Namespace(mean=[0.1], std=(0.2,))}, file)
    assert theirs.words(chosen, out)[-2:] == ["model.mean=[0.1]", "model.std=[0.2]"]
    torch.save(weights, file)
    chosen.settings.append("model.mean=none")
    assert "model.mean" not in " ".join(theirs.words(chosen, out))


@pytest.mark.parametrize(
    ("args", "mean"),
    [
        (Namespace(mean=[0.1, 0.2, 0.3], std=[1.0, 1.0, 0.5]), (0.1, 0.2, 0.3)), ({"mean": 0.5, "std": 0.5}, (0.5,)),
        (Namespace(mean=None, std=None), None), ({"mean": [104.0], "std": [1.0]}, None), ("text", None), (None, None),
    ],
)  # fmt: skip
def test_the_settings_of_a_training_say_how_images_were_normalised(args: Any, mean: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2, 2)}, "args": args}, file := tmp_path / "last.pth.tar")
    found = beside.inside(reading.read(file).tree)
    assert found.mean == mean and (found.source == "args in the file say") == (mean is not None)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"id2label": {"0": "Cat", "1": "sea_lion"}}, ""),
        ({"label_names": ["sea lion", "cat"]}, "has the same classes in another order, so that labels mean other classes: cat is 0 in "
         "the images and 1 there, sea lion is 1 in the images and 0 there"),
        ({"id2label": {"1": "cat", "0": "dog"}}, "has classes of the images in another order, so that labels mean other classes: cat "
         "is 0 in the images and 1 there"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "names 3 classes, and the images have 2"),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, ""),  # as transformers writes where nobody says
        ({"id2label": {"0": "n0144", "1": "n0145"}}, ""), ({"id2label": {"0": "cat", "2": "dog"}}, ""), ({"label_names": 3}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_classes_that_contradict_those_of_the_images_are_told(config: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    chosen, out = Namespace(model=str(tmp_path / "model.safetensors")), Console(file=io.StringIO(), width=400)
    assert beside.unlike(beside.read(Path(chosen.model)).classes, classes := ("cat", "sea lion")) == said
    theirs.tell_classes(theirs.Subject(chosen, [], [], classes), out)
    told = (
        f"classes     config.json beside the weights {said}. Give images of its classes, or their names in its order: "
    )
    assert out.file.getvalue().strip() == (f"{told}dataset.class_names=FILE" if said else "")


def test_images_that_are_scaled_are_remarked_upon(capsys: pytest.CaptureFixture[str]) -> None:
    out = Console(width=140)
    theirs.tell_scaled(32, ["dataset.size=64"], out)
    assert "the files have 32 px, and dataset.size=64 scales them" in " ".join(capsys.readouterr().out.split())
    theirs.tell_scaled(32, ["dataset.size=32"], out)
    theirs.tell_scaled(None, ["dataset.size=64"], out)
    assert capsys.readouterr().out == ""


def flagging(run: Run, name: str, classes: list[int], index: float | None = 2.5) -> Run:
    """The run of a detector that flags these classes."""
    figures = {"anomaly_index": index}
    finding = replace(run.detection, name=name, details={"flagged_classes": classes}, figures=figures)
    stages = [finding if stage.kind == "detect" else stage for stage in run.stages]
    return replace(run, stages=stages, environment={"data": {"classes": ["0", "cat", "2", "3"]}})


def test_classes_that_several_detectors_flag_come_first_and_alone(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", "detector=signature", *QUICK).run

    def said(**flagged: list[int]) -> list[str]:
        return inspection.verdict([flagging(done, name, classes) for name, classes in flagged.items()])

    assert said(a=[3, 1], b=[1], c=[]) == [
        "it looks backdoored: towards class 1 (cat) (a and b)",
        "weak signs, each by one detector alone: class 3 (a)",
    ]
    assert said(a=[3], b=[1]) == [
        "suspicious, but no two detectors flag the same class: class 1 (cat) (b) and class 3 (a)"
    ]
    assert said(a=[3, 2], b=[]) == ["suspicious, by one detector alone of a and b: towards class 2 (a) and class 3 (a)"]
    assert said(a=[], b=[]) == ["no sign of a backdoor, by a and b"]


def test_detectors_that_cannot_tell_give_no_verdict(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", "detector=signature", *QUICK).run

    def said(**indices: float | None) -> list[str]:
        return inspection.verdict([flagging(done, name, [], index) for name, index in indices.items()])

    assert said(a=0.9, b=None) == ["no sign of a backdoor, by a; b could tell nothing"]
    first, why = said(a=None, b=None)
    assert first == "none: a and b could tell nothing" and "(of two, neither ever does), backdoor or not" in why
    assert inspection.line(flagging(done, "a", [], None), []).startswith("nothing: no class stands out in a way that")


def test_pictures_of_several_sizes_are_scaled_as_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None of them is judged at the data set's default without a word."""

    def side(*sizes: tuple[int, int], stem: int = 3, **of_all: str) -> int:
        save_file({"conv1.weight": torch.zeros(4, 3, stem, stem)}, file := tmp_path / "theirs.safetensors")
        common = theirs.common_side(sizes)
        return common or theirs.scaled_side(sizes, 32, str(file), Console(width=140))

    assert side((28, 28), (28, 28)) == 28 and side((64, 64)) == 64 and capsys.readouterr().out == ""
    assert side((60, 50), (40, 44), (20, 30)) == 32
    said = " ".join(capsys.readouterr().out.split())
    assert "images of 60x50, 40x44, 20x30 pixels: scaled to 32 px a side" in said and "Say dataset.size=N" in said
    assert side((500, 375), (640, 480)) == side((1024, 1024)) == side((60, 50), stem=7) == 224


@pytest.mark.parametrize("layout", ["tree", "arrays"])
def test_pictures_are_measured_wherever_they_lie(layout: str, tmp_path: Path) -> None:
    """In an archive, too, and not only the first of them."""
    root = tmp_path / "set"
    if layout == "arrays":
        images, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40) % 2
        root = tmp_path / "set.npz"
        np.savez(root, x_train=images, y_train=labels, x_test=images, y_test=labels)
    else:
        for number in range(80):
            file = root / ("train", "test")[number % 2] / str(number // 40) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28) if number < 79 else (30, 28)).save(file)
        (root / "train" / "0" / "odd.png").write_bytes(b"no picture")
    sizes, usual = theirs.sizes_of(["experiment=given", "model.checkpoint=nowhere", f"dataset.root={root}"], [])
    assert set(sizes) == {(28, 28)} and 20 <= len(sizes) <= theirs.PROBED and usual == 32


@pytest.mark.parametrize(("left", "is_told"), [(0.9177, False), (0.9176, True)])
def test_a_defense_that_costs_much_is_told(left: float, is_told: bool) -> None:
    """Three points of accuracy, as tables print them, are what a defense may cost."""
    config = {"attack": {"name": "none"}, "defense": {"name": "fst"}, "gates": {"asr_floor": 0.5}}
    run = made_run("a", config, Scores(0.9477, None, None, 172, 0), Scores(left, None, None, 172, 0))
    said = (
        "fst took 3.01 points of accuracy (of 172 images), and a defense that costs more than 3 counts as failed in tables. Weaker settings "
        "of it (bdx show defense=fst) or another (--defense; bdx list defense) may cost less."
    )
    assert card.warnings(run) == [said] * is_told
