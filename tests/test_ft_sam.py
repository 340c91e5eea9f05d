"""FT-SAM: the step uphill, and what a training step leaves as it was."""

import copy
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import scenario_of
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses import ft_sam
from backdoorbench.defenses.ft_sam import FTSAM, ascent, smoothed
from backdoorbench.errors import ConfigError
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.training.fit import cross_entropy, fit
from backdoorbench.training.recipe import CosineByBatch, bare_recipe


def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(PreActResNet(10, 4, 10, 32), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def defense(**changes: Any) -> FTSAM:
    node = compose(["defense=ft_sam", "dataset=cifar10"])["defense"]
    built: FTSAM = build({**node, "epochs": 2, "batch_size": 32, **changes}, "defense")
    return built


def test_the_step_uphill_has_the_adaptive_norm_rho() -> None:
    draws = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draws) for shape in ((4, 3, 3, 3), (10, 4), (4,))]
    gradients = [torch.randn(weight.shape, generator=draws) for weight in weights]
    weights[2][:] = 0  # no direction: a weight of 0 stays
    steps = ascent(weights, gradients, 2.0)
    assert not steps[2].any()
    relative = torch.cat([(step / weight.abs()).flatten() for step, weight in zip(steps[:2], weights[:2], strict=True)])
    assert relative.norm().item() == pytest.approx(2.0, rel=1e-5)
    whole = torch.cat([(w.abs() * g).flatten() for w, g in zip(weights, gradients, strict=True)]).norm()
    for step, weight, gradient in zip(steps, weights, gradients, strict=True):
        torch.testing.assert_close(step, 2.0 * weight.square() * gradient / (whole + 1e-12))
        assert (step * gradient >= 0).all()  # uphill


def test_the_smoothed_share_goes_to_the_other_classes() -> None:
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    target = F.one_hot(labels, 4) * 0.9 + (1 - F.one_hot(labels, 4)) * 0.1 / 3
    wanted = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed(logits, labels, 0.1), wanted)


def test_the_gradient_is_that_uphill_and_the_weights_stay(images: ImageSet) -> None:
    model = network().train()
    batch, labels = next(images.batches(32))
    before = copy.deepcopy(model.state_dict())
    defense(rho=0.5).uphill(model, batch, labels).backward()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())

    by_hand = copy.deepcopy(model)
    by_hand.load_state_dict(before)
    by_hand.zero_grad()
    smoothed(by_hand(batch), labels, 0.1).backward()
    moved = dict(by_hand.named_buffers())
    for name, buffer in model.named_buffers():  # the statistics are those of one pass, at w
        assert torch.equal(buffer, moved[name]), name
    weights = list(by_hand.parameters())
    steps = ascent(weights, [weight.grad for weight in weights], 0.5)
    by_hand.zero_grad()
    with torch.no_grad():
        for weight, step in zip(weights, steps, strict=True):
            weight += step
    smoothed(by_hand(batch), labels, 0.1).backward()
    for ours, theirs in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.wide
def test_without_a_step_it_is_fine_tuning_bit_for_bit(images: ImageSet) -> None:
    ours = defense(rho=0.0).purify(scenario_of(FTSAM, network(), images))
    theirs = network()
    recipe = defense().tuning.recipe("ft_sam", 2, "float32", "cosine")
    fit(
        theirs, images, CosineByBatch(**vars(recipe), period=None), scenario_of(FTSAM, theirs, images).stream.child("tune"),
        loss=cross_entropy(0.1 * 10 / 9),
    )  # fmt: skip
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name
    other = defense(rho=2.0).purify(scenario_of(FTSAM, network(), images))
    assert not torch.equal(other.state_dict()["net.linear.weight"], theirs.state_dict()["net.linear.weight"])


def test_the_cosine_is_stepped_per_batch() -> None:
    plain = bare_recipe(
        "t", epochs=4, batch_size=8, optimizer="sgd", lr=1.0, momentum=0.9, weight_decay=0.0, schedule="cosine", augment=None,
        precision="float32",
    )  # fmt: skip
    whole, waves = CosineByBatch(**vars(plain), period=None), CosineByBatch(**vars(plain), period=5)
    assert [whole.rate(step, 5) for step in (0, 10, 20)] == pytest.approx([1, 0.5, 0])
    assert [waves.rate(step, 5) for step in (0, 5, 10, 15)] == pytest.approx([1, 0, 1, 0])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for step in range(5):
        assert waves.rate(step, 5) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("period", [None, 100])
def test_it_is_trained_by_that_cosine(period: int | None, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(ft_sam, "fit", lambda model, images, recipe, *rest, **named: seen.append(recipe))
    defense(cosine_period=period).purify(scenario_of(FTSAM, network(), images))
    (recipe,) = seen
    assert recipe.period == period and (recipe.lr, recipe.momentum, recipe.nesterov) == (0.01, 0.9, False)
    assert (recipe.optimizer, recipe.weight_decay) == ("sgd", 5e-4)


def test_the_graph_of_the_first_pass_is_gone_before_the_second(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a step holds one pass's maps at a time."""
    maps: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    plain = ft_sam.ascent

    def watched(*given: Any) -> Any:
        alive.extend(each() is not None for each in maps)
        return plain(*given)

    monkeypatch.setattr(ft_sam, "ascent", watched)
    model = network()
    model.net.layer1.register_forward_hook(lambda module, given, output: maps.append(weakref.ref(output)))
    batch, labels = next(images.batches(8))
    defense().uphill(model, batch, labels)
    assert alive == [False] and len(maps) == 2


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"defense.rho is -1; expected a number at least 0"):
        replace(defense(), rho=-1.0)
    with pytest.raises(ConfigError, match=r"defense.cosine_period is 0; expected a number at least 1"):
        replace(defense(), cosine_period=0)
