"""Latent TAC: its quadratic programmes, solved; whom it flags; what it tunes on."""

from typing import Any

import pytest
import torch
from scenes import defense, few, network, purify, same, state
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional as F

from backdoorbench.defenses import latent_tac
from backdoorbench.errors import ConfigError
from backdoorbench.models.surgery import classifier_head, penultimate
from backdoorbench.training.latent import latent_changes, smallest_shifts

SMALL = {"epochs": 1, "batch_size": 8, "augment": None}


def drawn(classes: int, features: int, images: int = 50) -> tuple[Tensor, Tensor]:
    """Weights, and logits of images."""
    draws = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, features, generator=draws, dtype=torch.float64)
    return weight, torch.rand(images, features, generator=draws, dtype=torch.float64) @ weight.T


@pytest.mark.parametrize(("classes", "features"), [(3, 2), (10, 64), (43, 128)])
def test_the_shift_is_the_least_distance_programme_of_lawson_and_hanson(classes: int, features: int) -> None:
    weight, logits = drawn(classes, features)
    found = smallest_shifts(weight, logits)
    for label in range(classes):
        others = [j for j in range(classes) if j != label]
        ways, needed = weight[label] - weight[others], (logits[:, others] - logits[:, [label]]).amax(0)
        solution, _ = nnls(torch.cat([ways.T, needed[None]]).numpy(), [0.0] * features + [1.0])
        rest = torch.cat([ways.T, needed[None]]) @ torch.from_numpy(solution)
        rest[-1] -= 1
        torch.testing.assert_close(found[label], -rest[:-1] / rest[-1], rtol=1e-3, atol=1e-4)


def test_two_classes_by_hand() -> None:
    """Logits 3 and 1: towards the second class the difference of 2 along (-1, 0) - (1, 0) takes a shift of -1."""
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    found = smallest_shifts(weight, torch.tensor([[3.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [-1.0, 0.0]], dtype=torch.float64))


@pytest.mark.wide
def test_what_cannot_be_has_no_length() -> None:
    """Two classes of one weight, of which one has the larger bias."""
    weight = torch.ones(2, 3, dtype=torch.float64)
    found = smallest_shifts(weight, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert found[0].isinf().all() and not found[1].any()


def test_shifted_features_are_called_the_class() -> None:
    model = network()
    shifts, lengths = latent_changes(model, few())
    torch.testing.assert_close(lengths, shifts.norm(dim=1))
    pixels, _ = next(few().batches(24))
    with torch.no_grad():
        seen, head = penultimate(model, pixels), model.net.linear
        for label, shift in enumerate(shifts):
            logits = head(seen + shift)
            assert (logits[:, label] >= logits.amax(1) - 1e-4).all()
            short = head(seen + 0.98 * shift)
            assert lengths[label] == 0 or (short[:, label] < short.amax(1)).any()


def test_only_the_outlier_is_tuned_against(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = torch.tensor([10.0, 48, 49, 50, 50.5, 51, 52, 53, 300, float("inf")])
    monkeypatch.setattr(latent_tac, "latent_changes", lambda *_: (torch.arange(320.0).view(10, 32), lengths))
    seen: list[Tensor] = []
    plain = latent_tac.shifted
    monkeypatch.setattr(
        latent_tac, "shifted", lambda model, shifts, weight: (seen.append(shifts), plain(model, shifts, weight))[1]
    )
    notes: dict[str, Any] = {}
    after = purify(network(), few(), defense("latent_tac", **SMALL), notes=notes)
    assert notes["flagged"] == [0] and torch.equal(seen[0], torch.arange(32.0)[None])
    assert not same(state(after), state(network()))
    ft = purify(network(), few(), defense("ft", **SMALL))
    bare = purify(network(), few(), defense("latent_tac", **SMALL, shift_weight=0.0))
    for name, value in state(ft).items():
        torch.testing.assert_close(state(bare)[name], value)


def test_nothing_flagged_returns_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_tac, "latent_changes", lambda *_: (torch.ones(10, 32), torch.full((10,), 4.0)))
    notes: dict[str, Any] = {}
    assert same(state(purify(network(), few(), defense("latent_tac", **SMALL), notes=notes)), state(network()))
    assert notes == {"anomaly_index": None, "flagged": []}


@pytest.mark.parametrize("name", ["preact10", "plain", "timm_convnext", "timm_vit"])  # no norm, no way to cut it
def test_the_loss_by_hand(name: str) -> None:
    model, (pixels, labels) = network(name), next(few().batches(24))
    head = classifier_head(model)
    shifts = torch.randn(2, head.in_features, generator=torch.Generator().manual_seed(0))
    seen = penultimate(model, pixels)
    moved = sum(F.cross_entropy(head(seen + shift), labels) for shift in shifts) / 2
    by_hand = F.cross_entropy(head(seen), labels) + 0.5 * moved
    torch.testing.assert_close(latent_tac.shifted(model, shifts, 0.5)(model, pixels, labels), by_hand)


def test_a_setting_out_of_its_range_is_named() -> None:
    with pytest.raises(ConfigError, match="defense.shift_weight is -1; expected a number at least 0"):
        defense("latent_tac", shift_weight=-1.0)
