"""D-BR: the test lines of the specification (3.3), and its rounds.

python -m pytest tests/test_d_br.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import scenes
import torch
from scenes import few, network, state
from test_filters import Fixed, Scene, chosen_rows, method
from test_filters import scene as scene
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import functional

from backdoorbench.data.images import ImageSet
from backdoorbench.defenses import d_br as module
from backdoorbench.defenses.d_br import closeness, sensitivity
from backdoorbench.errors import ConfigError
from backdoorbench.models.surgery import penultimate
from backdoorbench.shapes import to_float
from backdoorbench.streams import Stream


def test_identical_centres_and_orthogonal_ones() -> None:
    labels = torch.arange(12) % 4
    assert float(closeness(torch.ones(12, 5), labels, 4)) == pytest.approx((4**2 - 4) / 4**2)
    assert float(closeness(torch.ones(12, 5), labels, 9)) == pytest.approx(12 / 16)  # classes that the batch lacks
    assert float(closeness(torch.eye(4)[labels], labels, 4)) == 0
    alone = closeness(torch.ones(3, 5), torch.zeros(3, dtype=torch.int64), 4)
    assert float(alone) == 0 and alone.isfinite()


def test_closeness_is_the_codes_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.rand(20, 6, generator=generator), torch.randint(5, (20,), generator=generator)
    centres = torch.stack([features[labels == label].mean(0) for label in labels.unique()])
    cosines = F.normalize(centres, dim=1) @ F.normalize(centres, dim=1).T
    cosines[torch.eye(len(cosines), dtype=torch.bool)] = 0.0
    torch.testing.assert_close(closeness(features, labels, 7), cosines.mean())


def test_what_is_not_transformed_does_not_move(scene: Scene, images: ImageSet) -> None:
    model = scene[1].model
    assert (sensitivity(model, images, 0, 0, Stream(0)) == 0).all()
    turned, shifted = sensitivity(model, images, 180, 0, Stream(0)), sensitivity(model, images, 0, 0.2, Stream(0))
    assert turned.shape == (120,) and (turned > 0).all() and (shifted > 0).any() and not torch.equal(turned, shifted)


@pytest.mark.wide
def test_the_shares_are_exact_and_disjoint(scene: Scene) -> None:
    short = {"warmup_epochs": 1, "spread_epochs": 1, "epochs": 1}
    _, found = chosen_rows(scene, method("d_br", **short))
    (clean, _), (poisoned, taken_for) = found["clean"], found["poisoned"]
    assert len(clean) == round(0.2 * 380) and len(poisoned) == round(0.05 * 380) and taken_for == "poisoned"
    assert not set(clean.tolist()) & set(poisoned.tolist())
    with pytest.raises(ConfigError, match="are more than the whole training set together; expected at most 1"):
        method("d_br", clean_share=0.6, poisoned_share=0.5)


def test_halves_of_an_odd_number_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    images, found = few().subset(torch.arange(15)), dict[str, list[int]]()
    monkeypatch.setattr(module.DBR, "spread", lambda self, scenario: scenario.model)
    monkeypatch.setattr(module, "sensitivity", lambda *_: torch.arange(15.0))
    chosen = scenes.defense("d_br", clean_share=0.5, poisoned_share=0.5, epochs=0)
    given = scenes.scenario(network(), images, chosen.needs)
    given.inspect = lambda name, rows, suspicion, **_: found.update({name: rows.tolist()})  # type: ignore[assignment]
    chosen.purify(given)
    assert found == {"clean": list(range(8)), "poisoned": list(range(8, 15))}


@pytest.mark.wide
def test_rounds_climb_on_the_one_and_descend_on_the_other(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[int, bool]] = []
    plain: Callable[..., Any] = module.fit

    def watched(model: nn.Module, rows: ImageSet, recipe: Any, *args: Any, loss: Any = None, **kwargs: Any) -> Any:
        if recipe.name == "d_br":
            sign = (
                1.0
                if loss is None
                else float(
                    loss(Fixed([0.0] * 10).requires_grad_(False), torch.zeros(1, 3, 4, 4), torch.zeros(1).long())
                )
            )
            passes.append((len(rows), sign > 0))
        return plain(model, rows, recipe, *args, loss=loss, **kwargs)

    monkeypatch.setattr(module, "fit", watched)
    chosen_rows(scene, method("d_br", warmup_epochs=1, spread_epochs=1, epochs=2))
    assert passes == [(19, False), (76, True)] * 2


@pytest.mark.wide
def test_it_is_the_codes_loops() -> None:
    """Written out: one optimiser spreads, one unlearns and relearns; least moved rows are relearnt, most moved ones unlearnt."""
    settings: dict[str, Any] = {
        "warmup_epochs": 2, "spread_epochs": 1, "spread_lr": 0.002, "epochs": 2, "lr": 0.002, "batch_size": 8, "augment": None,
        "clean_share": 0.5, "poisoned_share": 0.25,
    }  # fmt: skip
    images, stream, found = few(), Stream(0).child("purify"), dict[str, list[int]]()
    chosen = scenes.defense("d_br", **settings)
    given = scenes.scenario(network(), images, chosen.needs)
    given.inspect = lambda name, rows, suspicion, **_: found.update({name: rows.tolist()})  # type: ignore[assignment]
    ours = chosen.purify(given)
    spread, theirs, pixels = network(), network(), to_float(images.images)

    def batches(draws: Stream, epoch: int, rows: torch.Tensor) -> list[torch.Tensor]:
        return list(rows[draws.child(f"epoch{epoch}").child("order").permutation(len(rows))].split(8))

    def sgd(model: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)

    def step(loss: torch.Tensor, optimizer: torch.optim.SGD) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    optimizer = sgd(spread)
    for epoch in range(2):
        spread.train()
        for rows in batches(stream.child("spread").child("warm-up"), epoch, torch.arange(24)):
            step(F.cross_entropy(spread(pixels[rows]), images.labels[rows]), optimizer)
    for rows in batches(stream.child("spread").child("apart"), 0, torch.arange(24)):
        features = penultimate(spread, pixels[rows])
        centres = [features[images.labels[rows] == label].mean(0) for label in images.labels[rows].unique()]
        cosines = [F.cosine_similarity(a, b, dim=0) for a in centres for b in centres if a is not b]
        step(torch.stack(cosines).sum() / len(centres) ** 2, optimizer)
    moved = sensitivity(spread.eval(), images, 180, 0.2, stream.child("transform"))
    assert found["clean"] == moved.argsort()[:12].sort().values.tolist()
    assert found["poisoned"] == moved.argsort()[18:].sort().values.tolist()
    optimizer = sgd(theirs)
    theirs.train()
    for turn in range(2):
        draws = stream.child(f"round{turn}")
        for rows in batches(draws.child("unlearn"), 0, torch.tensor(found["poisoned"])):
            step(-F.cross_entropy(theirs(pixels[rows]), images.labels[rows]), optimizer)
        for rows in batches(draws.child("relearn"), 0, torch.tensor(found["clean"])):
            step(F.cross_entropy(theirs(pixels[rows]), images.labels[rows]), optimizer)
    for name, value in state(ours).items():
        torch.testing.assert_close(value, state(theirs)[name], rtol=1e-4, atol=5e-6, msg=name)


def test_a_row_moves_by_the_mean_squared_change_of_its_features_turned_and_then_shifted() -> None:
    """Against torchvision, image by image."""
    model, images, stream = network(), few(), Stream(0)
    draws = stream.child("batch0")
    degrees = (2 * torch.rand(24, dtype=torch.float64, generator=draws.child("angle").generator()) - 1) * 180
    corners = torch.randint(13, (24, 2), generator=draws.child("crop").generator())  # of 6 pixels either way
    expected = []
    for image, turn, (top, left) in zip(to_float(images.images), degrees.tolist(), corners.tolist(), strict=True):
        turned = functional.rotate(image, turn, interpolation=functional.InterpolationMode.BILINEAR)
        shifted = F.pad(turned, (6, 6, 6, 6))[:, top : top + 32, left : left + 32]
        with torch.no_grad():
            expected.append((penultimate(model, image[None]) - penultimate(model, shifted[None])).square().mean())
    torch.testing.assert_close(
        sensitivity(model, images, 180, 0.2, stream), torch.stack(expected), rtol=1e-3, atol=1e-5
    )
