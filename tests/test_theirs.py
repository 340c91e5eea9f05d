"""`bdx inspect` and `bdx clean`: a model that somebody else trained, a folder of images, no line of Python."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import QUICK
from PIL import Image
from safetensors.torch import load_file, save_file

from backdoorbench.api import load_dataset
from backdoorbench.cli.main import main
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting import inspection
from backdoorbench.storage import record

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
    key = run("attack=badnets", "defense=none", *QUICK).run.infection.key
    weights = load_file(next(outputs.glob(f"cache/infection/*{key}/model.safetensors")))
    bare = {f"module.{name.removeprefix('net.')}": value for name, value in weights.items() if name.startswith("net.")}
    file = tmp_path_factory.mktemp("theirs") / "theirs.pth"
    torch.save({"state_dict": bare, "epoch": 6}, file)
    return file


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
    assert "folder · demo · given → fst" in said and f"weights     {to}" in said
    before, after = torch.load(model, weights_only=True), torch.load(to, weights_only=True)
    assert list(after) == list(before) and after["epoch"] == 6
    assert {name: value.shape for name, value in after["state_dict"].items()} == {
        name: value.shape for name, value in before["state_dict"].items()
    }
    assert not torch.equal(after["state_dict"]["module.linear.weight"], before["state_dict"]["module.linear.weight"])
    card = (tmp_path / "cleaned" / "better.pth.model-card.md").read_text()
    done = next(run for run in map(record.read, tmp_path.glob("runs/*")) if run.config["defense"]["name"] == "fst")
    assert done.purified is not None and done.purified.asr is not None
    assert done.config["defense"]["strength"] == 1.5 and done.config["holdout"]["rate"] == 1.0
    assert f"| {100 * done.purified.ca:.2f} |" in card and "attack success rate" in card
    assert main(["clean", str(to), *words[2:], "defense.epochs=1"]) == 0  # what was written is read


def test_a_model_is_inspected(digits: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", str(model), "--data", str(digits), *NETWORK, f"runtime.outputs={tmp_path}"]
    assert main([*words, "--detectors", "signature,latent_tac"]) == 0
    said = capsys.readouterr().out
    done = {run.detection.name: run for run in (record.read(folder) for folder in tmp_path.glob("runs/*"))}
    assert set(done) == {"", "signature", "latent_tac"}  # the first judges the model
    for name, run in list(done.items()):
        if not name:
            continue
        assert f"anomaly index {run.detection.figures['anomaly_index']:.2f}" in said, name
    assert "test images" in said and "is no proof" in " ".join(said.split())
    assert main([*words, "--detectors", "nc", "detector.units=3", "detector.success=0.2"]) == 0
    assert "reversed_triggers.png" in capsys.readouterr().out


def test_without_images_the_last_layer_alone_is_looked_at(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model)]) == 0
    said = capsys.readouterr().out
    assert "epoch 6" in said and "under state_dict" in said and "model=demo model.width=8, for 10 classes" in said
    assert "flagged, anomaly index" in said and "Add --data DIR." in said


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
    indices = inspection.clean_indices([infected, clean, clean], "signature", "demo")
    assert indices == [pytest.approx(clean.detection.figures["anomaly_index"])]
    assert inspection.clean_indices([clean], "signature", "resnet18") == []
    said = inspection.line(infected, indices)
    assert f"clean models of this network here: {indices[0]:.2f}, n = 1, " in said and said.endswith("(few)")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clean", "nowhere.pth", "--data", "DIR"], "nowhere.pth"),
        (["inspect", "nowhere.pth"], "nowhere.pth"),
        (["inspect", "DIR"], " is no file; expected"),
        (["clean", "MODEL"], "a model is cleaned by images that it should know. Add --data DIR"),
        (["clean", "MODEL", "--data", "DIR", "--target", "3"], "--target says where a trigger leads, and there is none"),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "grid3"], "--trigger is 'grid3', and nothing says what it makes"),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "x.png", "--target", "0"], "attack.file is 'x.png', which is no file"),
        (["clean", "MODEL", "--data", "DIR", "--trigger", "m:f", "--target", "0"], "only code of these packages is run"),
        (["clean", "MODEL", "--data", "DIR", "--target", "x"], "argument --target: invalid int value: 'x'"),
        (["clean", "MODEL", "--data", "DIR", "--defense", "fts"], "Did you mean"),
        (["clean", "MODEL", "--data", "DIR", "train.epochs=3"], "train.epochs is set by this command"),
        (["clean", "MODEL", "--data", "DIR", "attack=badnets"], "attack is set by this command"),
        (["inspect", "MODEL", "--data", "DIR", "--detectors", "strip"], "--detectors names 'strip'; expected some of latent_tac, nc"),
        (["inspect", "MODEL", "--data", "nowhere"], "nowhere, which does not exist"),
        (["inspect", "MODEL", "--data", "DIR", "model.width=4"], "model.checkpoint="),
        (["inspect", "TEXT", "--data", "DIR"], "model.checkpoint="),
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
    (tmp_path / "text.pth").write_text("no weights")
    named = {"MODEL": str(model), "DIR": str(digits), "TEXT": "text.pth"}
    network = [word for word in NETWORK if not any(word.split("=")[0] == own.split("=")[0] for own in words)]
    code = main([*(named.get(word, word) for word in words), *network])
    captured = capsys.readouterr()
    assert code == 2 and said in captured.err, captured.err
