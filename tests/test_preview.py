"""bdx preview and bdx export: what an attack does, seen and written without training."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK
from PIL import Image
from torchvision.datasets import ImageFolder

from backdoorbench.attacks.base import DataAttack, PoisonedSet
from backdoorbench.cli.main import main
from backdoorbench.cli.preview import each_of
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline import export, infect, preview
from backdoorbench.pipeline import plan as plans
from backdoorbench.pipeline.plan import Plan
from backdoorbench.reporting import picture
from backdoorbench.storage.record import Finding
from backdoorbench.tensors import similarity

SMALL = ["runtime.threads=1", *QUICK]


def plan(outputs: Path, *words: str) -> Plan:
    return plans.plan(compose([f"runtime.outputs={outputs}", *SMALL, *words]))


def run(verb: str, outputs: Path, *words: str) -> int:
    return main([verb, *SMALL, f"runtime.outputs={outputs}", *words])


# ---- what the network sees of a trigger -----------------------------------------------------------------------------


def test_a_trigger_beside_what_the_network_sees_is_refused_before_any_training(
    outputs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 32 pixels a crop to 24 shows rows and columns 4 to 27 of a test image."""
    made = plan(outputs, "attack=badnets", "dataset.crop=24")
    with pytest.raises(ConfigError) as caught:
        infect.infect(made, None)
    where = "the middle 24x24 pixels of 32x32, which is what the network sees of a test image"
    assert str(caught.value) == (
        f"the trigger of attack=badnets changes nothing within {where}; expected a trigger that lies there. Set "
        f"dataset.size=24, so that it sees the whole image, or choose another attack or position."
    )
    given = preview.task(made)
    for pattern, said in (("white4", True), ("grid10", False)):
        attack = build({**made.config["attack"], "pattern": pattern}, "attack")
        caplog.clear()
        infect.check_seen(dataclasses.replace(made, attack=attack), given, made.stream)
        assert bool(caplog.messages) == said
        assert all("of what the trigger of attack=badnets changes, " in message for message in caplog.messages)


# ---- figures --------------------------------------------------------------------------------------------------------


def test_psnr_and_ssim_of_known_images(wave: torch.Tensor) -> None:
    assert torch.isinf(similarity.psnr(wave, wave)).all() and torch.allclose(similarity.ssim(wave, wave), torch.ones(4))
    grey = torch.full_like(wave, 0.5)
    assert torch.allclose(similarity.psnr(grey, grey + 0.1), torch.full((4,), 20.0), atol=1e-4)
    light = (2 * 0.5 * 0.6 + 1e-4) / (0.5**2 + 0.6**2 + 1e-4)  # flat images differ in brightness alone
    assert torch.allclose(similarity.ssim(grey, grey + 0.1), torch.full((4,), light), atol=1e-4)
    assert torch.equal(
        similarity.ssim(wave, 1 - wave) < similarity.ssim(wave, 0.9 * wave), torch.ones(4, dtype=torch.bool)
    )


def test_the_local_change_sees_a_patch_in_a_corner(wave: torch.Tensor) -> None:
    patched, faint = wave.clone(), wave + 0.1
    patched[:, :, -3:, -3:] += 0.8
    assert (similarity.ssim(wave, patched) > 0.95).all() and (similarity.local_change(wave, patched) > 0.5).all()
    assert torch.allclose(similarity.local_change(wave, faint), torch.full((4,), 0.1))


def test_ssim_equals_a_plain_loop(wave: torch.Tensor) -> None:
    first, second = wave[:1, :, :13, :12].double(), wave[1:2, :, :13, :12].double()
    line = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for channel in range(3):
        for top in range(3):
            for left in range(2):
                x, y = (part[0, channel, top : top + 11, left : left + 11].numpy() for part in (first, second))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy, cov = (
                    (window * x * x).sum() - mx**2,
                    (window * y * y).sum() - my**2,
                    (window * x * y).sum() - mx * my,
                )
                found.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert float(similarity.ssim(first.float(), second.float())) == pytest.approx(np.mean(found), abs=1e-5)


# ---- preview --------------------------------------------------------------------------------------------------------


def test_a_gallery_shows_what_a_trigger_adds() -> None:
    """0.01 more than 0.4, in levels: below both, grey plus ten times that, each in a white frame."""
    clean = torch.full((2, 3, 4, 4), 0.4)
    shown = picture.gallery(clean, clean + 0.01)
    assert shown.shape == (300, 200, 3) and [int(shown[y, 50, 0]) for y in (0, 50, 150, 250)] == [255, 102, 105, 153]


def test_what_a_preview_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth more everywhere: 51 levels around any pixel and at most, and 20 log10 5 dB."""
    monkeypatch.setattr(preview, "find_trigger", lambda made: lambda images: images + 0.2)
    seen = preview.look(plan(tmp_path, "attack=badnets"), 3)
    assert {name: round(value, 3) for name, value in seen.figures.items() if name != "ssim"} == {
        "psnr": 13.979, "local_levels": 51.0, "largest_levels": 51.0,
    }  # fmt: skip
    assert seen.clean.shape == (3, 3, 32, 32) and torch.allclose(seen.triggered, seen.clean + 0.2)
    assert 0 < seen.figures["ssim"] < 1


def test_preview_draws_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("preview", tmp_path, "attack=blended", "--images", "5") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("blended on digits: PSNR ") and said[0].endswith("of 255")
    assert said[1].endswith("-digits.png: clean, triggered, and grey plus the difference times 10")
    with Image.open(tmp_path / "preview-blended-digits.png") as picture:
        assert picture.size == (5 * 100, 3 * 100)  # 32 pixels thrice enlarged, framed by 2
    assert not (tmp_path / "cache" / "infection").exists() and not (tmp_path / "runs").exists()


@pytest.mark.wide
def test_a_preview_of_several_attacks_is_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "triggers.svg"
    assert run("preview", tmp_path, "-m", "attack=badnets,sig", "--images", "3", "--output", str(file)) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:2]] == ["badnets on digits", "sig on digits"]
    text = file.read_text()
    assert "<!-- BadNets · Digits -->" in text and "<!-- SIG · Digits -->" in text and "difference times 10" in text
    assert (
        run("preview", tmp_path, "attack=blended", "attack.test_ratio=0.1,0.3", "--output", str(tmp_path / "two.pdf"))
        == 0
    )
    assert (tmp_path / "two.pdf").read_bytes().startswith(b"%PDF")


def test_settings_that_vary_are_in_a_title() -> None:
    jobs = each_of(["attack=blended", "attack.test_ratio=0.1,0.3", "dataset.root=a b"])
    assert [more for _, more in jobs] == [["attack.test_ratio=0.1"], ["attack.test_ratio=0.3"]]
    assert jobs[0][0] == ["attack=blended", "attack.test_ratio=0.1", "dataset.root=a b"]


@pytest.mark.wide
@pytest.mark.parametrize("attack", ["badnets", "sig", "wanet", "bpp", "blind", "refool", "blended_bypass"])
def test_the_trigger_shown_is_the_one_an_infection_gets(attack: str, tmp_path: Path) -> None:
    made = plan(tmp_path, f"attack={attack}", "train.epochs=0")
    images = made.splits.test.subset(torch.arange(6))
    batch, _ = next(images.batches(6))
    shown = preview.find_trigger(made)(batch)
    infection, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))
    assert infection.trigger is not None and torch.equal(shown, infection.trigger(batch))
    assert torch.equal(preview.find_trigger(made)(batch), shown)  # now from the cache


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("none", "bdx: attack=none has no trigger to preview; choose an attack, such as attack=badnets.\n"),
        *(
            (
                name,
                f"bdx: attack={name} learns its trigger in training, and no infection with these settings is cached; run it "
                "first, then preview it with the same settings.\n",
            )
            for name in ("input_aware", "lira")
        ),
    ],
)
def test_nothing_to_preview(attack: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("preview", tmp_path, f"attack={attack}") == 2
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "0"], "bdx: --images is 0; expected a number between 1 and 100. Change --images.\n"),
        (
            ["--output", "a.gif"],
            "bdx: 'a.gif' is no name for a preview; expected one in .png, .pdf or .svg. Rename it.\n",
        ),
    ],
)
def test_a_preview_that_cannot_be_drawn(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("preview", tmp_path, "attack=badnets", *words) == 2
    assert capsys.readouterr().err == said


# ---- export ---------------------------------------------------------------------------------------------------------


def exported(folder: Path) -> tuple[list[dict[str, str]], np.ndarray]:
    rows = list(csv.DictReader((folder / "labels.csv").read_text(encoding="utf-8").splitlines()))
    images = []
    for row in rows:
        with Image.open(folder / row["file"]) as image:
            images.append(np.asarray(image))
    return rows, np.stack(images)


def test_torchvision_counts_the_written_folders_as_the_labels_are(tmp_path: Path) -> None:
    """It sorts them as text, where 10 stands before 2."""
    labels = torch.arange(12).repeat(2)
    train = ImageSet(torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8), labels, tuple(map(str, range(12))))
    none = torch.zeros(24, dtype=torch.bool)
    export.write_png(PoisonedSet(train, none, none, torch.arange(24), {}), labels, tmp_path)
    read = ImageFolder(tmp_path / "images")
    assert read.classes == [f"{label:02}" for label in range(12)]
    rows, _ = exported(tmp_path)
    given = {str(tmp_path / row["file"]): int(row["given"]) for row in rows}
    assert len(given) == 24 and all(given[path] == label for path, label in read.samples)


@pytest.mark.wide
@pytest.mark.parametrize(
    "words", [["attack=badnets"], ["attack=tact", "attack.poison_rate=0.02"], ["attack=tact", "attack.mode=append"]]
)
def test_the_written_set_is_the_one_a_victim_sees(words: list[str], tmp_path: Path) -> None:
    made = plan(tmp_path, *words, "train.epochs=0")
    attack = made.attack
    assert isinstance(attack, DataAttack)
    export.write(made, tmp_path / "png", "png")
    export.write(made, tmp_path / "npz", "npz")
    rows, images = exported(tmp_path / "png")
    infection, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))
    train, clean = infection.train, made.parts.train
    assert isinstance(train, ImageSet) and infection.poisoned is not None
    assert np.array_equal(images, train.images.permute(0, 2, 3, 1).numpy())
    assert [int(row["given"]) for row in rows] == train.labels.tolist()
    assert [row["poisoned"] == "1" for row in rows] == infection.poisoned.tolist()
    source = torch.tensor([int(row["source"]) for row in rows])
    assert [int(row["true"]) for row in rows] == clean.labels[source].tolist()
    covered = torch.tensor([row["covered"] == "1" for row in rows])
    assert int(covered.sum()) == infection.facts["cover"] and not (covered & infection.poisoned).any()
    same = (train.images == clean.images[source]).flatten(1).all(1)
    assert same[: len(clean)].all() if attack.mode == "append" else torch.equal(~same, infection.poisoned | covered)
    if attack.mode == "append":
        assert torch.equal(torch.arange(len(train)) >= len(clean), infection.poisoned | covered)
    with np.load(tmp_path / "npz" / "train.npz") as arrays:
        assert np.array_equal(arrays["images"], images) and arrays["source"].tolist() == source.tolist()
        assert arrays["covered"].tolist() == covered.tolist()
        assert arrays["classes"].tolist() == list(train.classes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["attack=wanet"],
            "bdx: attack=wanet leaves no poisoned training set to export; expected one that poisons data, such as "
            "attack=badnets; or add reconstruct=true, which rebuilds one with its trigger. bdx list attack describes them.\n",
        ),
        (
            ["attack=badnets"],
            "bdx: '{to}' is not empty; expected a new folder, so that nothing is overwritten. Name another.\n",
        ),
    ],
)
def test_what_cannot_be_exported(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine").write_text("kept")
    assert run("export", tmp_path, *words, "--to", str(tmp_path / "to")) == 2
    assert capsys.readouterr().err == said.format(to=tmp_path / "to")
    assert (tmp_path / "to" / "mine").read_text() == "kept"
