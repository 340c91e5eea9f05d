"""NC, the defense: what is stamped and with which labels, and what it does where nothing is flagged. Its search for triggers is the
detector's (test_detectors.py); the specification is baselines 2.11."""

from typing import Any

import pytest
import torch
from scenes import defense, few, network, purify, same, state
from torch import Tensor

from backdoorbench.config.compose import compose, option
from backdoorbench.defenses import nc
from backdoorbench.errors import ConfigError
from backdoorbench.shapes import to_float
from backdoorbench.streams import Stream
from backdoorbench.training.reversal import Reversal

SMALL = {"epochs": 1, "batch_size": 8, "augment": None}


def found(norms: Tensor) -> Reversal:
    """A search's result: towards each class a square of its own shade in the corner."""
    count = len(norms)
    masks = torch.zeros(count, 1, 32, 32)
    masks[:, :, :4, :4] = 0.75
    patterns = torch.linspace(0, 1, count).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).clone()
    return Reversal(masks, patterns, norms, torch.ones(count), torch.zeros(1, count))


def test_the_search_is_the_detectors_setting_for_setting() -> None:
    detector = option("detector", "nc")
    assert option("defense", "nc")["reversal"] == {key: detector[key] for key in option("defense", "nc")["reversal"]}
    assert option("defense", "nc")["threshold"] == detector["threshold"]


def test_a_share_of_the_holdout_is_stamped_and_every_label_is_the_true_one() -> None:
    holdout, search = few(20), found(torch.arange(10.0))
    made = nc.stamped(holdout, search, [3, 7], round(0.2 * len(holdout)), Stream(0))
    assert torch.equal(made.labels, holdout.labels.repeat(2)) and len(made) == 40
    for part, label in ((made.images[:20], 3), (made.images[20:], 7)):
        changed = (part != holdout.images).flatten(1).any(1)
        assert int(changed.sum()) == 4  # 20 % of 20
        images = to_float(holdout.images[changed])
        mask, pattern = search.masks[label], search.patterns[label]
        torch.testing.assert_close(
            to_float(part[changed]), (1 - mask) * images + mask * pattern, rtol=0, atol=0.51 / 255
        )


def test_nothing_flagged_returns_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nc, "reverse", lambda *_, **__: found(torch.full((10,), 4.0)))
    model, notes = network(), dict[str, Any]()
    assert same(state(purify(model, few(), defense("nc", **SMALL), notes=notes)), state(model))
    assert notes == {"anomaly_index": None, "flagged": []}
    assert "nc: no class is flagged, so the model is returned as it was" in caplog.text


def test_the_outlier_below_the_median_is_unlearnt_and_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = torch.tensor([50.0, 48, 49, 10, 50.5, 51, 52, 53, 300, float("inf")])
    monkeypatch.setattr(nc, "reverse", lambda *_, **__: found(norms))
    seen: list[Any] = []
    fit = nc.fit
    monkeypatch.setattr(
        nc, "fit", lambda model, images, *rest, **named: (seen.append(images), fit(model, images, *rest, **named))
    )
    model, notes = network(), dict[str, Any]()
    after = purify(model, few(), defense("nc", **SMALL), notes=notes)
    assert notes["flagged"] == [3] and notes["anomaly_index"] > 2
    assert not same(state(after), state(model)) and len(seen[0]) == 24


def test_without_a_share_it_is_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = torch.tensor([10.0, 48, 49, 50, 50.5, 51, 52, 53, 54, 55])
    monkeypatch.setattr(nc, "reverse", lambda *_, **__: found(norms))
    model, holdout = network(), few()
    bare = purify(model, holdout, defense("nc", **SMALL, share=0.0))
    assert same(state(bare), state(purify(model, holdout, defense("ft", **SMALL))))


def test_a_setting_of_the_search_is_named_with_its_place() -> None:
    settings = option("defense", "nc")["reversal"]
    with pytest.raises(ConfigError, match=r"defense.reversal.units is 0; expected a number at least 1"):
        defense("nc", reversal={**settings, "units": 0})
    with pytest.raises(ConfigError, match=r"defense.share is 1.5; expected a number between 0 and 1"):
        defense("nc", share=1.5)


def test_the_benchmarks_rate_is_its_own_on_every_data_set() -> None:
    """Specification 1.2: 0.01, also where plain fine-tuning goes by FST's column, at 0.001."""
    found = compose(["defense=nc", "dataset=cifar100", "experiment=backdoorbench"])
    assert found["dataset"]["tuning"]["lr"] == 0.001
    assert {name: found["defense"][name] for name in ("epochs", "batch_size", "lr", "weight_decay")} == {
        "epochs": 100,
        "batch_size": 256,
        "lr": 0.01,
        "weight_decay": 5e-4,
    }
