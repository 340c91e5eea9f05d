"""SSBA, ISSBA and Poison Ink, whose triggers are trained networks: the checkable statements of their specification; that one
network serves many infections.

pytest tests/test_hidden_attacks.py    seconds; the networks are untrained or tiny. What they learn is in the slow tests
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK
from test_poisoning import attack
from test_surrogate_attacks import RECIPE
from test_triggers import fixed, made, task
from torch import nn

import backdoorbench as bb
from backdoorbench.attacks import hidden
from backdoorbench.attacks.base import Task
from backdoorbench.attacks.hidden import CodeAttack, Pair
from backdoorbench.attacks.issba import ISSBA
from backdoorbench.attacks.poison_ink import Couple, PoisonInkAttack, is_ink, vary
from backdoorbench.attacks.ssba import SSBA
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, DeviceError, TrainingError
from backdoorbench.pipeline import export, infect, preview
from backdoorbench.pipeline import plan as plans
from backdoorbench.pipeline.job import Job
from backdoorbench.pipeline.plan import Plan
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.storage.record import Finding
from backdoorbench.streams import Stream
from backdoorbench.tensors.similarity import psnr, ssim
from backdoorbench.training.fit import Snapshots, fit
from backdoorbench.triggers.hidden_code import CodeReader, HiddenCode
from backdoorbench.triggers.poison_ink import InkReader, PoisonInk, draw_edges, find_edges

NAMES = ["ssba", "issba", "poison_ink"]
TINY = {  # words that make an encoder's training a second's work; what it learns does not matter
    "ssba": ("attack.encoder_width=2",),
    "issba": ("attack.encoder_width=2",),
    "poison_ink": ("attack.encoder_width=2", "attack.reader_width=2"),
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ---- the networks, attacks.md section 2.7


def test_the_networks_are_the_papers() -> None:
    """Parameter counts of the specification; the U-Net's is that of its usual form."""
    assert parameters(HiddenCode("ssba", 32, 100, 32, True, {})) == 1_069_315
    assert [parameters(CodeReader("ssba", size, 100, 32)) for size in (32, 64)] == [441_284, 637_892]
    assert parameters(HiddenCode("issba", 32, 20, 32, True, {})) == 1_047_011
    assert parameters(PoisonInk(64, {})) == 17_269_251


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("variant", ["ssba", "issba"])
def test_the_reader_reads_every_size(variant: Any, size: int) -> None:
    with torch.no_grad():
        assert CodeReader(variant, size, 5, 2)(torch.rand(2, 3, size, size)).shape == (2, 5)
        assert InkReader(2)(torch.rand(2, 3, size, size)).shape == (2, 3, size, size)


@pytest.mark.parametrize("name", ["ssba", "issba"])
def test_each_image_gets_a_residual_of_its_own(name: str, wave: torch.Tensor) -> None:
    """T(x) != T(x') - x' + x, and two codes give different images."""
    shown, stored = made(name), to_float(to_bytes(wave))
    change = shown(stored) - stored
    assert (change[0] - change[1]).abs().max() >= 1 / 255
    other = made(name)
    other.trigger.code.copy_(1 - shown.trigger.code)
    assert not torch.equal(other(stored), shown(stored))


def test_poison_ink_follows_the_image(wave: torch.Tensor) -> None:
    shown, stored = made("poison_ink"), to_float(to_bytes(wave))
    change = shown(stored) - stored
    assert (change[0] - change[1]).abs().max() >= 1 / 255


def test_the_trigger_is_its_formula(wave: torch.Tensor) -> None:
    """Residual: clip(x + E(x, s)); not: sigmoid(E(x, s)); ink: clip(H(x, S(x)))."""
    with torch.no_grad():
        for name, formula in (("ssba", lambda x, e: x + e), ("ssba sigmoid", lambda x, e: e.sigmoid())):
            trigger = made(name).trigger
            written = trigger.encoder(wave, trigger.code.expand(4, -1))
            assert torch.allclose(trigger(wave), formula(wave, written).clamp(0, 1), atol=1e-6)
        trigger = made("poison_ink").trigger
        drawn = torch.cat([wave, draw_edges(find_edges(wave))], 1)
        assert torch.allclose(trigger(wave), trigger.hider(drawn).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_trigger_is_the_same_in_every_precision_and_in_parts(
    name: str, wave: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = made(name).trigger
    plain = trigger(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(trigger(wave), plain)
    monkeypatch.setattr("backdoorbench.triggers.hidden.PIXELS", 32 * 32 + 1)  # one image at a time
    assert torch.allclose(trigger(wave), plain, atol=1e-5)


def test_the_spatial_transformer_starts_as_the_identity(wave: torch.Tensor) -> None:
    with torch.no_grad():
        assert torch.allclose(CodeReader("issba", 32, 5, 4).straighten(wave), wave, atol=1e-5)


# ---- what the codes' trainings minimise


def test_ssba_lets_the_image_count_late() -> None:
    """10 clip((k - 1000) / 3000, 0, 1), k steps since 0.9 of the bits were read (attacks.md 2.7)."""
    ssba = attack("ssba")
    assert isinstance(ssba, SSBA)
    pair = Pair(ssba.writer(32, {}), CodeReader("ssba", 32, 100, 32))
    images, missed = torch.zeros(1, 3, 32, 32), torch.tensor(0.25)
    for since, weight in ((0, 0), (1000, 0), (1300, 1), (2500, 5), (4000, 10), (9000, 10)):
        pair.since.fill_(since)
        value = ssba.loss(pair, images, images + 0.1, missed, 1)
        assert float(value) == pytest.approx(0.25 + weight * 0.01, abs=1e-6)


def test_issba_lets_the_image_count_after_two_passes(wave: torch.Tensor) -> None:
    issba = attack("issba")
    assert isinstance(issba, ISSBA)
    pair = Pair(issba.writer(32, {}), CodeReader("issba", 32, 20, 32))
    missed, other = torch.tensor(0.5), wave * 0.9
    unlike = 2 * (wave - other).square().mean() + 1.5 * (1 - ssim(wave, other).mean())
    for steps, counts in ((0, 0), (13, 0), (14, 1), (100, 1)):
        pair.steps.fill_(steps)
        assert float(issba.loss(pair, wave, other, missed, 7)) == pytest.approx(0.75 + counts * float(unlike), abs=1e-6)


def test_issba_weighs_its_residual_before_it_is_clipped() -> None:
    """2 mean(residual^2), whatever clip(x + residual) leaves of it: on white all of what brightens is clipped away."""
    issba = attack("issba", bits_epochs=0)
    assert isinstance(issba, ISSBA)
    pair = Pair(issba.writer(32, {}), CodeReader("issba", 32, 20, 32))
    white = torch.ones(1, 3, 32, 32)
    assert float(issba.loss(pair, white, white + 0.5, torch.tensor(0.0), 1)) == pytest.approx(2 * 0.25)


def test_the_loss_gets_what_was_written_and_the_reader_what_is_left_in_range(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    issba, weighed, read = attack("issba", encoder_epochs=1, encoder_batch_size=8, encoder_width=2), [], []
    assert isinstance(issba, ISSBA)
    write, forward, loss = HiddenCode.write, CodeReader.forward, ISSBA.loss

    def seen(self: CodeReader, shown: torch.Tensor) -> torch.Tensor:
        read.append(shown)
        return forward(self, shown)

    def weigh(self: ISSBA, pair: Pair, clean: torch.Tensor, written: torch.Tensor, *rest: Any) -> torch.Tensor:
        weighed.append(written)
        return loss(self, pair, clean, written, *rest)

    monkeypatch.setattr(HiddenCode, "write", lambda self, clean, codes: write(self, clean, codes) + 0.5)
    monkeypatch.setattr(CodeReader, "forward", seen)
    monkeypatch.setattr(ISSBA, "loss", weigh)
    issba.attempt(images.subset(torch.arange(8)), issba.recipe("float32"), Stream(0), None)
    assert weighed[0].max() > 1 and torch.equal(read[0], weighed[0].clamp(0, 1))


def test_the_figures_are_what_is_read(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    ssba = attack("ssba", bits=7)
    assert isinstance(ssba, CodeAttack)
    pair = Pair(ssba.writer(32, {}), CodeReader("ssba", 32, 7, 2))
    monkeypatch.setattr(pair.writer, "write", lambda clean, codes: clean + 10 / 255)  # the wave leaves [0, 1] then
    monkeypatch.setattr(pair.reader, "forward", lambda written: torch.full((len(written), 7), -1.0))
    figures = ssba.measure(pair, images, Stream(3))
    zeros = torch.randint(0, 2, (120, 7), generator=Stream(3).generator()) == 0
    assert figures["bit_accuracy"] == pytest.approx(float(zeros.float().mean()))
    clean = to_float(images.images)
    written = (clean + 10 / 255).clamp(0, 1)
    assert figures["encoder_psnr"] == pytest.approx(float(psnr(clean, written).median()), abs=1e-3)
    assert figures["encoder_ssim"] == pytest.approx(float(ssim(clean, written).median()), abs=1e-5)


def test_a_training_that_is_stuck_starts_anew(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hidden, "PATIENCE", 4)
    hides = attack("ssba", bits=16, encoder_width=2, encoder_epochs=3, encoder_lr=0.0, encoder_batch_size=4)
    with caplog.at_level(logging.INFO), pytest.raises(TrainingError) as caught:
        hides.trigger(Task(images.subset(torch.arange(10)), None, RECIPE, None), Stream(0))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "the encoder of attack=ssba learned nothing: 3 times its codes of 16 bits were guessed after 4 steps. Raise "
        "attack.encoder_lr, or lower attack.bits."
    )
    said = "ssba encoder: bits are guessed after 4 steps; starting anew from other weights"
    assert caplog.messages.count(said) == 3


def test_a_training_that_reads_more_than_it_guesses_goes_on(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As narrow encoders do, which take more than PATIENCE steps to read 0.9 of their bits."""
    monkeypatch.setattr(hidden, "PATIENCE", 4)
    monkeypatch.setattr(hidden, "GUESSED", 0.4)  # so that guessing is more
    hides = attack("ssba", bits=100, encoder_width=2, encoder_epochs=3, encoder_lr=0.0, encoder_batch_size=4)
    with pytest.raises(TrainingError, match="after 6 steps 50% of their 100 bits were read, and never 90%"):
        hides.trigger(Task(images.subset(torch.arange(10)), None, RECIPE, None), Stream(0))  # type: ignore[arg-type]


def test_a_reader_too_narrow_for_its_bits_is_told(images: ImageSet, caplog: pytest.LogCaptureFixture) -> None:
    """Of 100 bits width 16 stayed at a loss of 0.36 on CIFAR-10 after 8 epochs; of 32 it was at 0.03 after 2."""
    few = Task(images.subset(torch.arange(10)), None, RECIPE, None)  # type: ignore[arg-type]
    for bits, told in ((9, 1), (8, 0)):
        hides = attack("ssba", bits=bits, encoder_width=2, encoder_epochs=1, encoder_batch_size=5)
        caplog.clear()
        with pytest.raises(TrainingError, match="did not learn"):
            hides.trigger(few, Stream(0))
        assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
            "the reader of attack=ssba has 8 values to read 9 bits from, and may never read 90% of them. Raise "
            "attack.encoder_width, or lower attack.bits."
        ] * told


def test_a_training_too_short_says_so(images: ImageSet) -> None:
    hides = attack("ssba", bits=16, encoder_width=2, encoder_epochs=1, encoder_batch_size=5)
    with pytest.raises(TrainingError) as caught:
        hides.trigger(Task(images.subset(torch.arange(10)), None, RECIPE, None), Stream(0))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "the encoder of attack=ssba did not learn to hide its codes: after 2 steps 50% of their 16 bits were read, and never 90%. "
        "Raise attack.encoder_epochs, attack.encoder_lr or attack.encoder_width, or lower attack.bits."
    )


# ---- Poison Ink, attacks.md section 2.14


def test_edges_are_where_the_formula_says(wave: torch.Tensor) -> None:
    """sqrt((Gh^2 + Gv^2) / 2) > 28, Sobel / 4 of 0.299 R + 0.587 G + 0.114 B, the border mirrored; pixel by pixel."""
    smooth = torch.nn.functional.avg_pool2d(wave, 5, 1, 2)
    found = find_edges(smooth)
    assert 0.1 < float(found.mean()) < 0.9
    for image, mask in zip(smooth.double().numpy() * 255, found[:, 0].numpy(), strict=True):
        grey = np.pad(0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2], 1, mode="symmetric")
        for row in range(32):
            for column in range(32):
                block = grey[row : row + 3, column : column + 3]
                down = (block[0] - block[2]) @ [1, 2, 1] / 4
                right = (block[:, 0] - block[:, 2]) @ [1, 2, 1] / 4
                slope = np.sqrt((down**2 + right**2) / 2)
                assert abs(slope - 28) < 1e-3 or mask[row, column] == (slope > 28)


def test_edges_are_drawn_in_ink_on_white() -> None:
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 1
    secret = draw_edges(find_edges(images)) * 255
    assert secret[0, :, 3, 7].round().tolist() == secret[0, :, 3, 8].round().tolist() == [80, 160, 80]
    assert (secret[..., :7] == 255).all() and (secret[..., 9:] == 255).all()
    assert find_edges(torch.full((1, 3, 16, 16), 0.5)).sum() == 0


def test_copies_are_varied_alike(wave: torch.Tensor) -> None:
    for stage in range(3):
        torch.manual_seed(stage)
        moved = vary(torch.cat([wave, 1 - wave, wave]), 4, stage)
        assert torch.equal(moved[:4], moved[8:]) and not torch.allclose(moved[:4], wave)
        assert moved.shape == (12, 3, 32, 32) and 0 <= moved.min() and moved.max() <= 1


def test_the_ink_loss_is_the_papers(wave: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backdoorbench.attacks.poison_ink.vary", lambda images, count, stage: images)
    ink = attack("poison_ink")
    assert isinstance(ink, PoisonInkAttack)
    couple = Couple(PoisonInk(2, {}), InkReader(2))
    monkeypatch.setattr(couple.writer, "hide", lambda images, secret: images + 0.1)
    monkeypatch.setattr(couple.reader, "forward", lambda images: torch.full_like(images, 0.5))
    mask = find_edges(wave)
    error = (0.5 - draw_edges(mask)).square()
    expected = 0.01 + 13 * (mask * error).mean() + ((1 - mask) * error).mean() + 2 * 100 * 0.25
    assert float(ink.loss(couple, wave, 0)) == pytest.approx(1e4 * float(expected), rel=1e-5)


def test_ink_is_what_is_nearer_to_ink() -> None:
    read = (
        torch.tensor([[80, 160, 80], [255, 255, 255], [160, 200, 160], [175, 215, 175]]).float().view(4, 3, 1, 1) / 255
    )
    assert is_ink(read).flatten().tolist() == [1, 0, 1, 0]


@pytest.mark.wide
def test_a_killed_training_goes_on_in_its_stage(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, begun, trained = images.subset(torch.arange(8)), [], []
    ink = attack("poison_ink", encoder_width=2, reader_width=2, encoder_epochs=2, encoder_batch_size=8)
    assert isinstance(ink, PoisonInkAttack)

    def watched(*parts: Any, **named: Any) -> Any:
        begun.append(parts[3].path.rpartition("/")[2])

        def kill(epoch: int) -> None:
            trained.append((begun[-1], epoch))
            if begun == ["stage0", "stage1"] and epoch == 1:
                raise KeyboardInterrupt

        return fit(*parts, **named, after_epoch=kill)

    def learn(place: Path) -> dict[str, torch.Tensor]:
        return ink.learn(few, few, ink.recipe("float32"), Stream(0), Snapshots(place, 0.0))[0].state_dict()

    whole = learn(tmp_path / "whole.pt")
    monkeypatch.setattr("backdoorbench.attacks.poison_ink.fit", watched)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "killed.pt")
    resumed = learn(tmp_path / "killed.pt")
    assert begun == ["stage0", "stage1", "stage0", "stage1", "stage2"]
    assert trained == [
        ("stage0", 0),
        ("stage0", 1),
        ("stage1", 0),
        ("stage1", 1),
        ("stage1", 1),
        ("stage2", 0),
        ("stage2", 1),
    ]
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    (tmp_path / "killed.stage2.pt").write_bytes(b"damaged")
    again = learn(tmp_path / "killed.pt")  # costs its own stage, and not what those before it have learned
    assert trained[-2:] == [("stage2", 0), ("stage2", 1)] and len(trained) == 9
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


@pytest.mark.parametrize(("name", "changes", "said"), [
    ("ssba", {"image_wait": 1, "image_rise": 4}, "weighed 75% of what is set"), ("ssba", {"image_wait": 1, "image_rise": 3}, None),
    ("issba", {"bits_epochs": 2}, "weighed 0% of what is set"), ("issba", {"bits_epochs": 1}, None),
])  # fmt: skip
def test_an_encoder_that_is_trained_too_shortly_for_its_image_to_weigh_is_told(
    name: str,
    changes: dict[str, int],
    said: str | None,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hidden, "READ", -1.0)  # from the first step on every code counts as read
    few = images.subset(torch.arange(8))
    hides = attack(name, bits=1, encoder_width=2, encoder_epochs=2, encoder_batch_size=4, **changes)
    assert isinstance(hides, CodeAttack)
    hides.learn(few, few, hides.recipe("float32"), Stream(0), None)
    told = [message for message in caplog.messages if "its codes may be seen" in message]
    assert [said in message for message in told if said] == [True] * bool(said) and len(told) == bool(said)


@pytest.mark.wide
@pytest.mark.parametrize("every", [0.0, 1e9])
def test_a_killed_second_try_goes_on_as_the_second(
    every: float, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot of it would else be taken for one of the first, which draws other numbers."""
    few = images.subset(torch.arange(8))
    hides = attack("ssba", bits=1, image_wait=0, image_rise=1, encoder_width=2, encoder_epochs=4, encoder_batch_size=4)
    assert isinstance(hides, CodeAttack)
    monkeypatch.setattr(hidden, "READ", 2.0)  # no code ever counts as read,
    monkeypatch.setattr(hidden, "PATIENCE", 4)  # so that the first try ends after two epochs

    def learn(place: Path, killed: bool = False) -> dict[str, torch.Tensor]:
        def watched(pair: Pair, *rest: Any, after_epoch: Callable[[int], None], **named: Any) -> Any:
            is_second = rest[2].path.endswith("try1")

            def watch(epoch: int) -> None:
                pair.since.fill_(is_second or int(pair.since))  # but in the second
                if killed and is_second and epoch == 1:
                    raise KeyboardInterrupt
                after_epoch(epoch)

            return fit(pair, *rest, **named, after_epoch=watch)

        monkeypatch.setattr(hidden, "fit", watched)
        snapshots = Snapshots(place, every)
        return hides.learn(few, few, hides.recipe("float32"), Stream(0), snapshots)[0].state_dict()

    whole = learn(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "killed.pt", killed=True)
    resumed = learn(tmp_path / "killed.pt")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


# ---- one network for many infections


def plan(outputs: Path, *words: str) -> Plan:
    return plans.plan(compose([f"runtime.outputs={outputs}", "runtime.threads=1", *QUICK, "train.epochs=0", *words]))


def untrained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trainings are replaced by fixed weights; the list grows by the images each would have seen."""
    seen: list[int] = []

    def learn(self: Any, images: ImageSet, held: ImageSet, *_: object) -> tuple[nn.Module, dict[str, float]]:
        seen.append(len(images) + len(held))
        return fixed(self.writer(images.size, {})), {"encoder_psnr": 30.5}

    for kind in (CodeAttack, PoisonInkAttack):
        monkeypatch.setattr(kind, "learn", learn)
    return seen


@pytest.mark.wide
@pytest.mark.parametrize("name", NAMES)
def test_rates_seeds_and_victims_share_a_network(name: str, tmp_path: Path) -> None:
    planned = plan(tmp_path, f"attack={name}")

    def place(**changes: Any) -> Path:
        settings = {**planned.infection_settings, "seed": changes.pop("seed", 0), "model": changes.pop("model", {})}
        settings["dataset"] = settings["dataset"] | {
            "digest": changes.pop("digest", "d"),
            "mean": changes.pop("mean", 0),
        }
        settings["attack"] = settings["attack"] | changes
        return plans.network_folder(replace(planned, infection_settings=settings))[0]

    shared = {"seed": 1, "model": {"width": 4}, "mean": 1, "poison_rate": 0.01, "target": 3, "mode": "append"}
    assert {place(**{key: value}) for key, value in shared.items()} == {place()}
    for key, value in {"encoder_seed": 1, "encoder_width": 5, "digest": "e", "version": 9}.items():
        assert place(**{key: value}) != place()
    assert set(plans.network_folder(planned)[1]) == {"format", "digest", "precision", "attack"}


@pytest.mark.wide
def test_a_network_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, triggers = untrained(monkeypatch), []
    for words in ((), ("seed=1", "attack.poison_rate=0.05"), ("attack.encoder_seed=1",)):
        planned, run = plan(tmp_path, "attack=ssba", "attack.encoder_width=2", *words), Finding("infect", "ssba")
        infection, _ = infect.obtain(planned, planned.splits.test, run)
        assert "network" in run.seconds and run.seconds["infect"] >= 0 and infection.facts["encoder_psnr"] == 30.5
        triggers.append(infection.trigger)
    assert seen == [400, 400]  # the whole split, whatever the seed withholds
    codes = [trigger.trigger.code for trigger in triggers]  # type: ignore[union-attr]
    assert not torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])  # the run's seed draws the code


def test_memory_that_runs_out_names_the_encoders_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nDetails.")

    monkeypatch.setattr(CodeAttack, "learn", full)
    planned = plan(tmp_path, "attack=ssba")
    with pytest.raises(DeviceError) as caught:
        infect.obtain(planned, planned.splits.test, Finding("infect", ""))
    assert str(caught.value) == (
        "memory ran out during 'infect' (CUDA out of memory.). Lower attack.encoder_batch_size (now 32), or choose a narrower "
        "model; what was finished before is kept."
    )


@pytest.mark.wide
@pytest.mark.parametrize("name", NAMES)
def test_preview_and_export_find_the_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = untrained(monkeypatch)
    words = (f"attack={name}", *TINY[name])
    planned = plan(tmp_path, *words)
    said = (
        f"attack={name} hides its trigger by a network, and none for these data and settings is cached; run it once, at any "
        f"poison rate and seed, with defense=none."
    )
    for ask in (lambda: preview.find_trigger(planned), lambda: export.write(planned, tmp_path / "set", "npz")):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert str(caught.value) == said
    infection, _ = infect.obtain(planned, planned.splits.test, Finding("infect", ""))
    images, _ = next(planned.splits.test.batches(8))
    assert infection.trigger is not None and infection.train is not None
    assert torch.equal(infection.trigger(images), preview.find_trigger(planned)(images))  # from the infection
    other = plan(tmp_path, *words, "seed=1")
    assert preview.find_trigger(other)(images).shape == images.shape  # from the network
    export.write(planned, tmp_path / "set", "npz")
    with np.load(tmp_path / "set" / "train.npz") as arrays:
        assert np.array_equal(arrays["images"], infection.train.images.permute(0, 2, 3, 1).numpy())
    look = preview.look(other, 4)
    preview.draw(look, tmp_path / "shown.png")
    assert look.figures["psnr"] > 0 and (tmp_path / "shown.png").is_file()
    assert seen == [400]


@pytest.mark.wide
def test_the_public_infect_trains_its_own() -> None:
    clean, _ = bb.load_dataset("digits", train_size=100, test_size=20)
    ink = bb.build("attack/poison_ink", encoder_epochs=1, encoder_width=2, reader_width=2)
    infection = bb.infect(ink, clean, "model.width=8", "train.epochs=0")
    assert infection.poisoned is not None and int(infection.poisoned.sum()) == 10
    assert set(infection.facts) >= {"ink_read", "ink_imagined", "encoder_psnr", "encoder_ssim", "pattern"}
    assert 0 <= infection.facts["ink_read"] <= 1


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_what_test_images_show(name: str, images: ImageSet) -> None:
    hides = attack(name, encoder_width=4, poison_rate=0.1)
    network = fixed(hides.writer(32, {}))  # type: ignore[attr-defined]
    trigger, made = hides.plant(replace(task(32), train=images, network=lambda: network), Stream(0))
    train, poisoned = made.train, made.poisoned
    assert torch.equal(to_float(train.images[poisoned]), trigger(to_float(images.images[poisoned])))
    assert torch.equal(train.images[~poisoned], images.images[~poisoned]) and made.counts["poisoned"] == 12
    assert (train.labels[poisoned] == 0).all()


@pytest.mark.parametrize(("name", "size", "multiple", "fit"), [("ssba", 48, 32, 64), ("poison_ink", 40, 16, 48)])
def test_an_unfit_size_is_refused(name: str, size: int, multiple: int, fit: int) -> None:
    wrong = ImageSet(torch.zeros(20, 3, size, size, dtype=torch.uint8), torch.arange(20) % 2, ("a", "b"))
    with pytest.raises(ConfigError) as caught:
        attack(name).check(wrong)
    assert str(caught.value) == (
        f"dataset.size is {size}, but the networks of attack={name} halve an image until {multiple} pixels are one; expected a "
        f"multiple of {multiple}. Set dataset.size={fit}."
    )


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("ssba", {"bits": 0}, "attack.bits is 0; expected a number between 1 and 4096. Change attack.bits."),
        ("ssba", {"image_rise": 0}, "attack.image_rise is 0; expected a number at least 1. Change attack.image_rise."),
        ("issba", {"encoder_epochs": 0}, "attack.encoder_epochs is 0; expected a number at least 1. Change attack.encoder_epochs."),
        ("poison_ink", {"reader_width": 0}, "attack.reader_width is 0; expected a number between 1 and 4096. Change attack.reader_width."),
    ],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(name: str, setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        attack(name, **setting)
    assert str(caught.value) == said


# ---- on digits


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_takes_on_digits(name: str, run: Callable[..., Job]) -> None:
    """Bit accuracy of at least 0.95 after rounding, PSNR of at least 25 dB (attacks.md 2.7); the reader tells triggered from
    clean (2.14); and the victim learns it."""
    found = run(f"attack={name}", "defense=none").run
    facts = found.infection.notes
    if name == "poison_ink":
        assert facts["ink_read"] >= 0.8 and facts["ink_imagined"] <= 0.2
    else:
        assert facts["bit_accuracy"] >= 0.95 and facts["encoder_psnr"] >= 25
    assert found.infected is not None and found.infected.asr is not None
    assert found.infected.asr >= 0.8 and found.infected.ca >= 0.95
