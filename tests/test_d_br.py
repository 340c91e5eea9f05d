"""D-BR: the test lines of the specification (3.3), and its rounds.

python -m pytest tests/test_d_br.py
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_filters import Fixed, Scene, chosen_rows, method
from test_filters import scene as scene
from torch import nn
from torch.nn import functional as F

from backdoorbench.data.images import ImageSet
from backdoorbench.defenses import d_br as module
from backdoorbench.defenses.d_br import closeness, sensitivity
from backdoorbench.errors import ConfigError
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


def test_the_shares_are_exact_and_disjoint(scene: Scene) -> None:
    short = {"warmup_epochs": 1, "spread_epochs": 1, "epochs": 1}
    _, found = chosen_rows(scene, method("d_br", **short))
    (clean, _), (poisoned, taken_for) = found["clean"], found["poisoned"]
    assert len(clean) == round(0.2 * 380) and len(poisoned) == round(0.05 * 380) and taken_for == "poisoned"
    assert not set(clean.tolist()) & set(poisoned.tolist())
    with pytest.raises(ConfigError, match="are more than the whole training set together; expected at most 1"):
        method("d_br", clean_share=0.6, poisoned_share=0.5)


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
