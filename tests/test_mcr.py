"""MCR: the curve's ends, what moves, and batch norm's statistics measured anew."""

import copy
from typing import Any

import pytest
import torch
from conftest import scenario_of
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses import mcr
from backdoorbench.defenses.base import Scenario
from backdoorbench.defenses.mcr import MCR, HoldThenFall, anywhere, point, weights_of
from backdoorbench.errors import ConfigError
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.streams import Stream
from backdoorbench.training.recipe import bare_recipe
from backdoorbench.training.statistics import remeasure_norms


def network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(PreActResNet(10, 4, 10, 32), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def defense(**changes: Any) -> MCR:
    node = compose(["defense=mcr", "dataset=cifar10"])["defense"]
    quick = {"epochs": 2, "batch_size": 32, "end": {**node["end"], "epochs": 2, "batch_size": 32}}
    built: MCR = build({**node, **quick, **changes}, "defense")
    return built


def handed(images: ImageSet) -> Scenario:
    return scenario_of(MCR, network(), images)


def equal(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- the curve ------------------------------------------------------------------------------------------------------


def test_the_curve_ends_at_the_two_models_bit_for_bit() -> None:
    first, middle, last = (weights_of(network(seed)) for seed in range(3))
    assert equal(point(0.0, first, middle, last), first) and equal(point(1.0, first, middle, last), last)
    half = point(0.5, first, middle, last)
    for name, weight in half.items():
        torch.testing.assert_close(weight, first[name] / 4 + middle[name] / 2 + last[name] / 4)


def test_by_way_of_the_midpoint_it_is_the_straight_line() -> None:
    first, last = weights_of(network(0)), weights_of(network(1))
    middle = {name: (first[name] + last[name]) / 2 for name in first}
    for t in (0.1, 0.3, 0.9):
        for name, weight in point(t, first, middle, last).items():
            torch.testing.assert_close(weight, torch.lerp(first[name], last[name], t), rtol=1e-5, atol=1e-6)


@pytest.mark.wide
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_at_the_ends_it_returns_the_infected_model_and_its_tuned_copy(t: float, images: ImageSet) -> None:
    """Their weights, bit for bit; statistics are measured anew there too."""
    scenario, chosen = handed(images), defense(t=t)
    ours = weights_of(chosen.purify(scenario))
    expected = network() if t == 0 else chosen.fine_tuned(network(), scenario)
    assert equal(ours, weights_of(expected))


def test_only_the_bend_moves(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[Any, Any, Any]] = []
    plain = mcr.anywhere

    def watched(first: Any, last: Any, *given: Any) -> Any:
        kept.append((first, last, copy.deepcopy((first, last))))
        return plain(first, last, *given)

    monkeypatch.setattr(mcr, "anywhere", watched)
    bends: list[Tensor] = []
    monkeypatch.setattr(
        mcr, "point", lambda t, a, m, b: (bends.append(m["net.conv1.weight"].detach().clone()), point(t, a, m, b))[1]
    )
    scenario = handed(images)
    purified = defense(t=0.5).purify(scenario)
    ((first, last, (first_before, last_before)),) = kept
    assert equal(first, first_before) and equal(last, last_before) and equal(first, weights_of(network()))
    torch.testing.assert_close(
        bends[0], (first["net.conv1.weight"] + last["net.conv1.weight"]) / 2
    )  # it starts halfway
    assert not torch.equal(bends[0], bends[-1]) and purified is scenario.model


def test_the_loss_is_that_of_the_point_and_its_gradient_the_bends() -> None:
    first, last, bend = weights_of(network(0)), weights_of(network(1)), network(2)
    batch, labels = torch.rand(6, 3, 32, 32), torch.arange(6)
    draws = torch.Generator().manual_seed(3)
    t = float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    loss = anywhere(first, last, 0.2, draws)(bend, batch, labels)
    here = network(0)
    mcr.put(here, point(t, first, weights_of(bend), last))
    by_hand = F.cross_entropy(here(batch), labels) + 0.1 * sum(weight.square().sum() for weight in here.parameters())
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    by_hand.backward()
    for mine, theirs in zip(bend.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, 2 * t * (1 - t) * theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_rate_holds_then_falls_to_one_per_cent() -> None:
    plain = bare_recipe(
        "t", epochs=100, batch_size=8, optimizer="sgd", lr=1.0, momentum=0.9, weight_decay=0.0, schedule="constant", augment=None,
        precision="float32",
    )  # fmt: skip
    rates = [HoldThenFall(**vars(plain)).rate(3 * epoch, 3) for epoch in range(100)]
    assert set(rates[:50]) == {1.0} and rates[69] == pytest.approx(0.505) and rates[89:] == pytest.approx([0.01] * 11)


def test_the_end_is_tuned_as_backdoorbench_does_and_the_curve_as_the_authors_do(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve's weight decay is in its loss, so the optimiser has none."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(mcr, "fit", lambda model, images, recipe, *rest, **named: seen.update({recipe.name: recipe}))
    chosen: MCR = build(compose(["defense=mcr", "dataset=cifar10"])["defense"], "defense")
    chosen.purify(handed(images))
    end, curve = seen["mcr end"], seen["mcr curve"]
    assert [end.rate(epoch, 1) for epoch in (0, 50)] == pytest.approx([0.01, 0.005]) and end.epochs == 100
    assert (end.batch_size, end.momentum, end.weight_decay) == (256, 0.9, 5e-4)
    assert isinstance(curve, HoldThenFall) and (curve.lr, curve.momentum, curve.weight_decay) == (0.01, 0.9, 0.0)
    assert (curve.epochs, curve.batch_size, chosen.tuning.weight_decay) == (100, 128, 1e-4)


def test_the_learning_curve_is_the_finished_curve(images: ImageSet) -> None:
    shown: list[tuple[int, Any]] = []
    scenario = handed(images)
    scenario.probe = lambda model, epoch: shown.append((epoch + 1, copy.deepcopy(model.state_dict())))
    purified = defense(t=0.3).purify(scenario)
    assert [epoch for epoch, _ in shown] == list(range(1, 11))  # epoch 0 is the infected model, phi(0)
    assert equal(shown[2][1], purified.state_dict())


# ---- batch norm's statistics ----------------------------------------------------------------------------------------


def test_statistics_are_the_average_over_the_images(images: ImageSet) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
    ).eval()
    reads: list[Tensor] = []
    model[1].running_mean.fill_(7.0)  # stale
    model[4].register_forward_pre_hook(lambda module, given: reads.append(given[0]))
    before = weights_of(model)
    remeasure_norms(model, images, 50, Stream(0))  # batches of 50, 50, 20
    batches = [batch for batch, _ in images.batches(50, Stream(0))]
    first = model[0](torch.cat(batches))
    torch.testing.assert_close(model[1].running_mean, first.mean((0, 2, 3)))
    own = [model[0](batch).var((0, 2, 3)) for batch in batches]
    torch.testing.assert_close(model[1].running_var, (50 * own[0] + 50 * own[1] + 20 * own[2]) / 120)
    torch.testing.assert_close(model[4].running_mean, torch.cat(reads).mean((0, 2, 3)))
    assert model[1].momentum == 0.1 and not any(part.training for part in model.modules())
    assert equal(weights_of(model), before)
    remeasured = copy.deepcopy(model.state_dict())
    remeasure_norms(model, images, 50, Stream(0))
    assert equal(model.state_dict(), remeasured)  # nothing of what they were


def test_statistics_do_not_ask_in_which_order_classes_lie() -> None:
    """As in class folders, whose rows come class by class."""
    levels = torch.arange(4).repeat_interleave(30) * 60
    pixels = levels.to(torch.uint8)[:, None, None, None].expand(120, 3, 8, 8).clone()
    sorted_by_class = ImageSet(pixels, levels // 60, ("a", "b", "c", "d"))
    model = nn.Sequential(nn.BatchNorm2d(3))
    remeasure_norms(model, sorted_by_class, 30, Stream(0))
    spread = float((levels / 255).var())
    assert 0.9 * spread < float(model[0].running_var.min()) <= float(model[0].running_var.max()) < 1.1 * spread


def test_a_model_without_batch_norms_is_left_alone(images: ImageSet) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    remeasure_norms(model, images, 50, Stream(0))
    assert model.training


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"defense.t is 1.5; expected a number between 0 and 1"):
        defense(t=1.5)
