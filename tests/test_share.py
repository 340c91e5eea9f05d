"""A run's models for others: read from Python, and exported so that a process without bdx gets the same logits."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK
from PIL import Image
from records import made_run

import backdoorbench as bb
from backdoorbench.cli import main
from backdoorbench.config.compose import compose
from backdoorbench.data import store as store_of_data
from backdoorbench.data.base import Reading
from backdoorbench.errors import ModelError
from backdoorbench.metrics import Scores
from backdoorbench.models import checkpoint
from backdoorbench.pipeline import environment, share
from backdoorbench.pipeline.job import Job
from backdoorbench.storage import store
from backdoorbench.storage.outputs import outputs_of

Run = Callable[..., Job]

ELSEWHERE = """
import sys
sys.path = [entry for entry in sys.path if entry not in ("", "{checkout}")]
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("backdoorbench", "hydra_plugins"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
import runpy, torch
from safetensors.torch import load_file, save_file
model = runpy.run_path("load.py")["model"]
images = load_file("../images.safetensors")["images"]
weights = model.state_dict()
assert all(torch.equal(value, weights[name]) for name, value in load_file("model.safetensors").items())
save_file({{"logits": model(images).detach(), "one": model(images[:1]).detach()}}, "../logits.safetensors")
assert model.eval() is model and torch.equal(torch.nn.Sequential(model).eval()(images), model(images))
try:
    torch.nn.Sequential(model).train()
except NotImplementedError:
    print("eval mode,")
try:
    import backdoorbench
except ModuleNotFoundError:
    print("without bdx")
"""


@pytest.fixture
def done(run: Run) -> Job:
    return run("attack=badnets", "defense=fst", "defense.epochs=1", *QUICK, "force=true")


@pytest.mark.wide
@pytest.mark.parametrize("infected", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_export_gives_the_same_logits_where_bdx_cannot_be_imported(
    infected: bool, done: Job, tmp_path: Path
) -> None:
    words = [
        "export",
        "model",
        str(done.folder),
        "--to",
        str(tmp_path / "shared"),
        *(["--infected"] if infected else []),
    ]
    assert main.main(words) == 0
    images = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    store.write_tensors(tmp_path / "images.safetensors", {"images": images})
    checkout = Path(share.__file__).parents[2]
    call = [sys.executable, "-P", "-c", ELSEWHERE.format(checkout=checkout)]
    there = subprocess.run(call, cwd=tmp_path / "shared", capture_output=True, text=True, timeout=300)
    assert there.stdout.split("\n") == ["eval mode,", "without bdx", ""], there.stderr
    found = store.read_tensors(tmp_path / "logits.safetensors")
    with torch.no_grad():
        ours = bb.load_model(done.folder, infected=infected)(images)
    torch.testing.assert_close(found["logits"], ours, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["one"], ours[:1], atol=1e-4, rtol=1e-4)  # any number of images
    again = bb.load_model(tmp_path / "shared")
    assert all(
        torch.equal(value, again.state_dict()[name])
        for name, value in bb.load_model(done.folder, infected=infected).state_dict().items()
    )


@pytest.mark.wide
def test_the_card_says_what_it_is(done: Job, tmp_path: Path) -> None:
    files = share.export(done.folder, tmp_path / "shared", infected=True)
    assert files == [
        "README.md",
        "load.py",
        "model.pt2",
        "model.safetensors",
        "settings.yaml",
        "trigger.safetensors",
        "triggered.png",
    ]
    card = (tmp_path / "shared" / "README.md").read_text()
    assert done.run.infected is not None and f"| infected (this one) | {100 * done.run.infected.ca:.2f} |" in card
    assert (
        "**This model carries a backdoor**" in card
        and "badnets, target 0, poison rate 10 %; `triggered.png` shows it" in card
    )
    assert "applied by `backdoorbench.triggers.patch.Patch`: A patch pasted over the image: x (1 - m) + p m" in card
    for words, missing in (([], "IMAGE.png"), (["no.png"], "no.png")):
        ran = subprocess.run(
            [sys.executable, "load.py", *words], cwd=tmp_path / "shared", capture_output=True, text=True
        )
        assert ran.returncode == 1
        assert ran.stderr == f"usage: python load.py IMAGE.png ...    (there is no file {missing})\n"
    assert "alpha" in (tmp_path / "shared" / "settings.yaml").read_text()
    assert len((tmp_path / "shared" / "load.py").read_text().splitlines()) <= 18
    share.export(done.folder, tmp_path / "clean", infected=False)
    assert "carries a backdoor" not in (tmp_path / "clean" / "README.md").read_text()


@pytest.mark.parametrize(
    ("attack", "infected", "asrs", "said"),
    [
        (
            "badnets",
            True,
            (0.9, 0.05),
            "**This model carries a backdoor**, planted on purpose (badnets). Deploy it nowhere.",
        ),
        ("none", True, (None, None), ""),
        ("badnets", False, (0.9, 0.0999), ""),
        (
            "badnets",
            False,
            (0.9, 0.9),
            "**The trigger still works on this model** (badnets: ASR 90.00 % after ft). Deploy it nowhere.",
        ),
        ("none", False, (None, None), ""),
    ],
)
def test_a_card_warns_of_a_model_that_its_trigger_works_on(
    attack: str, infected: bool, asrs: tuple[float | None, float | None], said: str
) -> None:
    before, after = (Scores(0.9, asr, None if asr is None else 1 - asr, 100, 90) for asr in asrs)
    run = made_run("abc", compose([f"attack={attack}", "defense=ft"]), before, after)
    card = share.card(run, "Title", infected, ["a", "b"], 32, {})
    assert card.partition("| model |")[0].split() == f"# Title {said}".split()


@pytest.mark.wide
@pytest.mark.parametrize("fit", [store_of_data.stretch, store_of_data.centre])
def test_a_loader_brings_pictures_to_their_size_as_the_data_set_did(fit: store_of_data.Fit) -> None:
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    picture = Image.fromarray(np.arange(30 * 50 * 3).reshape(30, 50, 3).astype(np.uint8)).resize((40, 60))
    places = {"image": pil_to_tensor(picture), "resize": resize, "center_crop": center_crop}
    loaded = eval(share.FITS[fit.__name__][0].format(size=20), places)
    assert (loaded.int() - pil_to_tensor(fit(picture, 20)).int()).abs().max() <= 1


def test_what_is_told_of_pictures_is_what_the_run_did() -> None:
    splits = SimpleNamespace(
        train=SimpleNamespace(classes=("a",)), facts={}, reading=Reading(store_of_data.centre, "white")
    )
    made: Any = SimpleNamespace(splits=splits, parts=SimpleNamespace(facts={}), device=torch.device("cpu"))
    found = environment.environment(made)
    assert found["data"] == {"classes": ["a"], "fit": "centre"}
    scores = Scores(0.9, None, None, 100, 0)
    run = made_run("abc", compose(["attack=none", "defense=ft"]), scores, scores, environment=found)
    assert "to it: the shorter side resized bilinearly, then the centred square.\n" in share.card(
        run, "", False, ["a"], 32, {}
    )
    found["data"]["fit"] = "inset3"
    assert "the run's own came to it by `inset3`, so cut yours alike.\n" in share.card(run, "", False, ["a"], 32, {})


def test_the_infected_model_is_found_and_says_what_the_purified_one_does(done: Job) -> None:
    file, said = share.weights_of(done.folder, infected=True)
    assert file.parent.parent.name == "infection"
    other = checkpoint.description(done.folder / "purified.safetensors")
    assert other is not None and {**said, "run": ""} == {**other, "run": ""}  # one infection serves several runs
    _, test = bb.load_dataset("digits", test_size=120)
    images, labels = next(iter(test.batches(120)))
    with torch.no_grad():
        ca = (bb.load_model(done.folder, infected=True)(images).argmax(1) == labels).float().mean()
    assert done.run.infected is not None and float(ca) == pytest.approx(done.run.infected.ca, abs=0.02)


def test_a_run_is_named_by_its_key_too(
    done: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = outputs_of(done.folder).root
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").symlink_to(outputs)
    assert main.main(["export", "model", done.run.id[:10], "--to", "shared"]) == 0
    assert main.main(["export", "model", done.run.id[:10], "--to", "shared"]) == 2
    assert "'shared' is not empty; expected a new folder" in capsys.readouterr().err
    assert main.main(["export", "model", "abcdefabcdef", "--to", "other"]) == 2
    assert "holds no record.json and is no key of a run in outputs/" in capsys.readouterr().err


def test_what_cannot_be_shared_is_told(run: Run, done: Job, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="does not say what network its weights belong to"):
        bb.load_model(tmp_path / "empty")
    lost = tmp_path / "runs" / "2026_digits_abc"
    lost.mkdir(parents=True)
    (lost / "record.json").write_text(json.dumps(json.loads((done.folder / "record.json").read_text())))
    with pytest.raises(ModelError, match="the infected model .* is not there: it was pruned. .* with rerun=true"):
        bb.load_model(lost, infected=True)


def test_a_network_that_torch_export_cannot_follow_is_told() -> None:
    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) if float(images.sum()) > 0 else images.sum((2, 3))

    with pytest.raises(ModelError, match="torch.export cannot follow the network's code"):
        share.exported(Odd(), 8)
