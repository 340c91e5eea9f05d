"""reconstruct=true: the poisoned set that a defense gets where the attacker drove the training and left none."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK

from backdoorbench.attacks.loop import ShareAttack
from backdoorbench.cli.main import main
from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import PairingError
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting import report
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Stored
from backdoorbench.triggers.input_aware import InputAware
from backdoorbench.triggers.quantise import Quantise
from backdoorbench.triggers.warp import smooth_field, warp


def attack(name: str, **changes: Any) -> ShareAttack:
    built: ShareAttack = build({**option("attack", name), **changes}, "attack")
    return built


def trigger(name: str) -> Any:
    if name == "wanet":
        return warp(smooth_field(32, 4, Stream(0).generator()), 0.5)
    if name == "bpp":
        return Stored(Quantise(8, dither=False))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InputAware([0.5] * 3, [0.25] * 3).eval().requires_grad_(False)


@pytest.mark.parametrize(("name", "covers"), [("wanet", 24), ("input_aware", 12), ("bpp", 12)])
def test_its_rows_are_the_rates_and_its_bytes_the_triggers(name: str, covers: int, images: ImageSet) -> None:
    made, hit = attack(name), trigger(name)
    found = made.rebuild(images, hit, Stream(3))
    train, poisoned = found.train, found.poisoned
    assert found.counts == {"requested": 12, "poisoned": 12, "cover": covers, "train": 120} and poisoned.sum() == 12
    with torch.no_grad():
        assert torch.equal(train.images[poisoned], to_bytes(hit(to_float(images.images[poisoned]))))
    assert (train.labels[poisoned] == 0).all() and torch.equal(train.labels[~poisoned], images.labels[~poisoned])
    altered = (train.images != images.images).flatten(1).any(1)
    assert torch.equal(altered, poisoned | found.covered) and found.covered.sum() == covers
    assert not (poisoned & found.covered).any()  # cover rows keep their label
    near = altered & ~poisoned
    assert not torch.equal(train.images[near], to_bytes(hit(to_float(images.images[near]))))  # and carry another change
    again = made.rebuild(images, hit, Stream(3)).train
    assert torch.equal(again.images, train.images)
    assert not torch.equal(made.rebuild(images, hit, Stream(4)).train.images, train.images)


@pytest.mark.wide
def test_a_defense_that_reads_the_training_set(run: Callable[..., Job]) -> None:
    words = ("attack=wanet", "defense=pbe", "defense.epochs=1", *QUICK)
    with pytest.raises(PairingError) as caught:
        run(*words)
    assert str(caught.value) == (
        "pbe needs the training set, but wanet drives the training itself and leaves none; reconstruct=true rebuilds one with its "
        "trigger; or pick a data-poisoning attack (bdx list attacks) or a defense that needs only the model."
    )
    done = run(*words, "reconstruct=true")
    assert done.run.purification.notes["rebuilt_train"] == {"requested": 38, "poisoned": 38, "cover": 76, "train": 380}
    assert (
        done.run.purification.notes["selection1"]["images"] == 76
        and done.run.purification.notes["selection1"]["auc"] is not None
    )
    said = report.make({done.folder: done.run}, ("ca", "asr", "ra"), (), ()).notes
    assert (
        "given a poisoned set rebuilt with the finished trigger, which the model was not trained on: pbe on wanet"
        in said
    )
    assert (
        run("attack=wanet", "defense=ft", "reconstruct=true", *QUICK).run.purification.notes.get("rebuilt_train")
        is None
    )


def test_whose_batches_are_all_triggered_cannot_be_rebuilt(run: Callable[..., Job]) -> None:
    with pytest.raises(
        PairingError, match="lira drives the training itself and leaves none; pick a data-poisoning attack"
    ):
        run("attack=lira", "defense=pbe", "reconstruct=true", *QUICK)


def test_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "attack=wanet", "reconstruct=true", "dataset.train_size=200", "--to", "set"]) == 0
    assert capsys.readouterr().out == "wrote set: requested 19, poisoned 19, cover 38, train 190\n"
    rows = list(csv.DictReader((tmp_path / "set" / "labels.csv").read_text(encoding="utf-8").splitlines()))
    assert sum(row["poisoned"] == "1" for row in rows) == 19
    assert sum(row["covered"] == "1" for row in rows) == 38
    assert all(row["given"] == ("0" if row["poisoned"] == "1" else row["true"]) for row in rows)
