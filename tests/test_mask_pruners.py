"""ANP and RNP: masks on the channels of batch norms, what learns them, and what they prune."""

import copy
import logging
from typing import Any

import pytest
import torch
from scenes import WITH_NORMS, agreed, changed, defense, network, purify, same, scenario, state
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.compose import option
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses import anp, rnp
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.models.channels import multiply, norm_channels
from backdoorbench.streams import Stream
from backdoorbench.training.pruning import THRESHOLDS, Selection, learn_mask, prune_by_mask
from backdoorbench.training.recipe import Recipe

QUICK: dict[str, dict[str, Any]] = {
    "anp": {"iterations": 4, "batch_size": 8, "augment": None},
    "rnp": {
        "unlearn_epochs": 2,
        "recover_epochs": 2,
        "batch_size": 8,
        "milestones": [1],
        "selection": "fixed",
        "augment": None,
    },
}


def quick(name: str, **changes: Any) -> Any:
    return defense(name, **{**QUICK[name], **changes})


def images_of(name: str, count: int = 24) -> ImageSet:
    return agreed(network(name), count)


# ---- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("method", ["anp", "rnp"])
@pytest.mark.parametrize("name", WITH_NORMS)
def test_only_scales_of_pruned_channels_change(method: str, name: str) -> None:
    """Every other weight, shift and statistic is the infected network's, bit for bit."""
    model, notes = network(name), dict[str, Any]()
    after = purify(model, images_of(name), quick(method, threshold=0.999), notes=notes)
    assert changed(model, after) == {f"{norm}.weight" for norm in notes["pruned"]}
    parameters, before = dict(after.named_parameters()), dict(model.named_parameters())
    for norm, rows in notes["pruned"].items():
        weight = parameters[f"{norm}.weight"].detach()
        kept = torch.ones(len(weight), dtype=torch.bool)
        kept[rows] = False
        assert (weight[rows] == 0).all() and torch.equal(weight[kept], before[f"{norm}.weight"][kept])
    assert notes["pruned_channels"] == sum(map(len, notes["pruned"].values())) and notes["channels"] == len(
        norm_channels(model)
    )
    assert not after.training and all(parameter.requires_grad for parameter in after.parameters())


@pytest.mark.wide
@pytest.mark.parametrize("method", ["anp", "rnp"])
def test_the_same_seed_the_same_weights(method: str) -> None:
    model, images = network("preact10"), images_of("preact10")
    before = state(model)
    first, again = (purify(model, images, quick(method, threshold=0.999)) for _ in range(2))
    assert same(state(first), state(again)) and same(state(model), before)


@pytest.mark.wide
@pytest.mark.parametrize("method", ["anp", "rnp"])
def test_a_part_of_the_holdout_chooses_the_threshold(method: str) -> None:
    model, images, notes, seen = network("resnet18"), images_of("resnet18", 60), dict[str, Any](), list[int]()
    chosen = quick(method, selection="holdout_drop")
    purify(model, images, chosen, notes=notes, probe=lambda model, epoch: seen.append(epoch))
    assert notes["threshold"] in (None, *THRESHOLDS) and notes["selection_accuracy"]["before"] == 1.0
    assert seen == list(range(19))  # a point of the curve each
    counts = list(notes["channels_below"].values())
    assert counts == sorted(counts) and len(counts) == 19  # monotone
    assert notes["pruned_channels"] == (
        0 if notes["threshold"] is None else notes["channels_below"][f"{notes['threshold']:g}"]
    )


@pytest.mark.parametrize("method", ["anp", "rnp"])
def test_networks_without_norms_are_refused(method: str) -> None:
    with pytest.raises(ModelError, match="has no batch-norm layer"):
        purify(network("timm_convnext"), images_of("timm_convnext"), quick(method))


def choose(limit: float) -> Selection:
    return Selection("holdout_drop", limit, 0.2)


@pytest.mark.wide
def test_the_threshold_is_the_largest_that_the_accuracy_allows() -> None:
    """The only channel that matters has mask 0.4, so every threshold below is allowed and none from there on."""
    model, images = network("resnet18"), images_of("resnet18", 60)
    channels = norm_channels(model)
    mask = torch.ones(len(channels))
    mask[-256:] = 0.42  # all of the last block's second norms
    notes: dict[str, Any] = {}
    nothing = torch.zeros(len(channels), dtype=torch.bool)
    after = prune_by_mask(
        scenario(model, images, frozenset({"model"}), notes=notes), mask, "weight", choose(0.0), nothing, images
    )
    assert notes["threshold"] == 0.4 and same(state(after), state(model))
    mask[:3] = 0.9  # at the threshold is below it
    prune_by_mask(
        scenario(model, images, frozenset({"model"}), notes=notes), mask, "weight", choose(1.0), nothing, images
    )
    assert notes["threshold"] == 0.9 and notes["pruned_channels"] == 256 + 3


def test_where_even_the_lowest_threshold_is_too_strong_nothing_is_pruned() -> None:
    model, images, notes = network("resnet18"), images_of("resnet18", 60), dict[str, Any]()
    mask = torch.zeros(len(norm_channels(model)))
    told = torch.ones(len(mask), dtype=torch.bool)
    after = prune_by_mask(
        scenario(model, images, frozenset({"model"}), notes=notes), mask, "both", choose(0.1), told, images
    )
    assert (
        notes["threshold"] is None
        and notes["selection_accuracy"]["pruned"] is None
        and same(state(after), state(model))
    )


def test_masks_stay_in_their_range_and_weights_where_they_are() -> None:
    model, images = copy.deepcopy(network("preact10")), images_of("preact10")
    before = {name: value.clone() for name, value in model.named_parameters()}
    chosen = quick("anp")
    recipe = anp.bare_recipe(
        "t", epochs=6, batch_size=8, optimizer="sgd", lr=5.0, momentum=0.9, weight_decay=0.0, schedule="constant", augment=None,
        precision="float32",
    )  # fmt: skip
    mask = learn_mask(model, images, recipe, Stream(0), lambda channels, mask: chosen.shaken(channels, mask, Stream(1)))
    assert mask.min() == 0 and mask.max() == 1 and len(mask.unique()) > 2
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


# ---- ANP ------------------------------------------------------------------------------------------------------------


def noises(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Tensor]:
    """delta and xi of every batch."""
    found: list[Tensor] = []
    plain = anp.ascend

    def watched(*args: Any, **options: Any) -> Tensor:
        found.append(plain(*args, **options))
        return found[-1]

    monkeypatch.setattr(anp, "ascend", watched)
    purify(network("preact10"), images_of("preact10"), quick("anp", **changes))
    return found


def test_anp_perturbations_reach_twice_eps_as_in_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    found = noises(monkeypatch)
    count = len(norm_channels(network("preact10")))
    assert len(found) == 4 and all(noise.shape == (2 * count,) for noise in found)
    largest = torch.stack(found).abs()
    assert 0.7 < largest.max() <= 0.8 + 1e-6 and not torch.equal(found[0], found[1])


@pytest.mark.parametrize("steps", [1, 3])
def test_anp_perturbations_stay_within_eps_where_they_are_projected(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    largest = torch.stack(noises(monkeypatch, project=True, steps=steps)).abs()
    assert largest.max() == pytest.approx(0.4) and (largest == largest.max()).float().mean() > 0.2  # on the edge


@pytest.mark.parametrize("steps", [1, 2])
def test_anp_perturbs_as_the_authors_code_does(steps: int) -> None:
    """delta, xi: a start within eps, then eps / steps times the sign of the gradient of the perturbed network's loss, by hand."""
    model, images = copy.deepcopy(network("preact10")).train(), images_of("preact10", 8)
    pixels = images.images.float() / 255
    channels = norm_channels(model)
    chosen, mask = quick("anp", alpha=0.3, steps=steps), torch.full((len(channels),), 0.7)
    start = (2 * torch.rand(2 * len(channels), generator=Stream(0).child("0").generator()) - 1) * 0.4

    def entropy(noise: Tensor) -> Tensor:
        """The network with its parameters really replaced."""
        shaken = copy.deepcopy(model)
        delta, xi = noise.split(len(channels))
        scales, shifts = channels.parts(mask + delta), channels.parts(1 + xi)
        values = {}
        for name, norm in channels.norms.items():
            values |= {
                f"{name}.weight": norm.weight.detach() * scales[name],
                f"{name}.bias": norm.bias.detach() * shifts[name],
            }
        return F.cross_entropy(torch.func.functional_call(shaken, values, (pixels,)), images.labels)

    moved = start
    for _ in range(steps):
        place = moved.clone().requires_grad_()
        (slope,) = torch.autograd.grad(entropy(place), place)
        moved = moved + 0.4 / steps * slope.sign()
    with torch.no_grad():
        masked = copy.deepcopy(model)
        multiply(masked, channels.factors(mask))
        expected = 0.3 * F.cross_entropy(masked(pixels), images.labels) + 0.7 * entropy(moved)
    found = chosen.shaken(channels, mask, Stream(0))(model, pixels, images.labels)
    torch.testing.assert_close(found.detach(), expected)


def test_anp_a_small_step_up_does_not_lower_the_loss() -> None:
    model, images = network("resnet18"), images_of("resnet18", 8)
    pixels, channels = images.images.float() / 255, norm_channels(network("resnet18"))
    ones = torch.ones(len(channels))
    losses = []
    for eps in (0.0, 1e-3):
        loss = quick("anp", eps=eps, alpha=0.0, project=True, steps=4).shaken(channels, ones, Stream(0))
        losses.append(float(loss(model, pixels, images.labels).detach()))
    plain = float(F.cross_entropy(model(pixels), images.labels).detach())
    assert losses[0] == pytest.approx(plain) and losses[1] > plain


def test_anp_without_perturbation_is_the_plain_loss() -> None:
    model, images = network("preact18"), images_of("preact18", 8)
    channels, pixels = norm_channels(model), images.images.float() / 255
    loss = quick("anp", eps=0.0).shaken(channels, torch.ones(len(channels)), Stream(0))
    torch.testing.assert_close(loss(model, pixels, images.labels), F.cross_entropy(model(pixels), images.labels))


def test_anp_takes_so_many_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = anp.multiplied

    def watched(network: nn.Module, factors: Any) -> Any:
        return lambda images: (sizes.append(len(images)), plain(network, factors)(images))[1]

    monkeypatch.setattr(anp, "multiplied", watched)
    purify(network("preact10"), images_of("preact10", 11), quick("anp", iterations=7, batch_size=16, steps=2))
    assert sizes == [16] * (7 * 4)  # two steps up, the masked network, the perturbed one


@pytest.mark.wide
def test_anp_prunes_by_threshold_or_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network("preact10"), images_of("preact10")
    count = len(norm_channels(model))
    mask = torch.linspace(0.05, 1, count)[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    monkeypatch.setattr(anp, "learn_mask", lambda *_: mask)
    found = {}
    for changes in ({"threshold": 0.04}, {"threshold": 0.2}, {"threshold": 0.5}, {"number": 0}, {"number": 9}):
        notes: dict[str, Any] = {}
        purify(model, images, quick("anp", **changes), notes=notes)
        found[str(changes)] = notes["pruned_channels"]
    assert list(found.values()) == [0, int((mask <= 0.2).sum()), int((mask <= 0.5).sum()), 0, 9]
    notes = {}
    purify(model, images, quick("anp", number=9), notes=notes)
    lowest = torch.zeros(count, dtype=torch.bool)
    lowest[mask.argsort()[:9]] = True
    assert notes["pruned"] == norm_channels(model).named(lowest)


# ---- RNP ------------------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_rnp_unlearns_until_the_accuracy_is_low(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    model, images, notes = network("resnet18"), images_of("resnet18"), dict[str, Any]()
    purify(model, images, quick("rnp", unlearn_epochs=30, lr=0.02, milestones=[]), notes=notes)
    accuracies = notes["unlearning_accuracy"]
    assert len(accuracies) < 30 and accuracies[-1] <= 0.2 < min(accuracies[:-1])
    assert not caplog.text
    purify(model, images, quick("rnp", lr=0.0), notes=notes)
    assert len(notes["unlearning_accuracy"]) == 2
    assert "rnp: after 2 epochs of unlearning the accuracy on the holdout is" in caplog.text


def test_rnp_the_first_step_up_raises_the_loss_and_recovery_moves_masks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network("resnet18"), images_of("resnet18", 8)
    stages: list[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]] = []
    plain = rnp.learn_mask

    def watched(network: nn.Module, *args: Any) -> Tensor:
        before = {name: value.clone() for name, value in network.named_parameters()}
        mask = plain(network, *args)
        stages.append((before, dict(network.named_parameters()), mask))
        return mask

    monkeypatch.setattr(rnp, "learn_mask", watched)
    purify(model, images, quick("rnp", unlearn_epochs=1, batch_size=8, bn_mode="eval", lr=1e-3))
    unlearned, recovered, mask = stages[0]
    assert all(torch.equal(unlearned[name], recovered[name]) for name in unlearned)
    assert (mask != 1).any() and mask.min() >= 0 and mask.max() <= 1
    pixels = images.images.float() / 255
    before = F.cross_entropy(model(pixels), images.labels)
    after = F.cross_entropy(torch.func.functional_call(model, unlearned, (pixels,)), images.labels)
    assert after > before


def test_rnp_recovery_is_alpha_times_the_masked_loss() -> None:
    model, images = network("preact18"), images_of("preact18", 8)
    channels, pixels = norm_channels(model), images.images.float() / 255
    mask = torch.rand(len(channels), generator=torch.Generator().manual_seed(0))
    masked = copy.deepcopy(model)
    multiply(masked, channels.factors(mask))
    found = quick("rnp", alpha=0.3).recovery(channels, mask)(model, pixels, images.labels)
    torch.testing.assert_close(found, 0.3 * F.cross_entropy(masked(pixels), images.labels))


def test_masks_and_unlearning_are_trained_as_the_authors_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD with momentum and a constant rate on masks, which do not decay; unlearning decays, its rate falls at 10 and 20."""
    recipes: dict[str, Recipe] = {}

    def kept(name: str) -> Any:
        def learn(network: nn.Module, images: ImageSet, recipe: Recipe, *rest: Any) -> Tensor:
            recipes[name] = recipe
            return torch.ones(len(norm_channels(network)))

        return learn

    monkeypatch.setattr(anp, "learn_mask", kept("anp"))
    monkeypatch.setattr(rnp, "learn_mask", kept("rnp"))
    monkeypatch.setattr(rnp, "fit", lambda network, images, recipe, *rest, **named: recipes.update(unlearn=recipe))
    for name in ("anp", "rnp"):
        purify(network("preact10"), images_of("preact10"), defense(name))
    for name, passes in (("anp", 20), ("rnp", 20)):
        recipe = recipes[name]
        found = (recipe.optimizer, recipe.momentum, recipe.nesterov, recipe.weight_decay, recipe.epochs)
        assert found == ("sgd", 0.9, False, 0.0, passes) and {recipe.rate(step, 1) for step in range(20)} == {0.2}
    unlearn = recipes["unlearn"]
    assert (unlearn.optimizer, unlearn.momentum, unlearn.weight_decay, unlearn.epochs) == ("sgd", 0.9, 5e-4, 20)
    assert [unlearn.rate(epoch, 1) for epoch in (0, 9, 10, 19)] == pytest.approx([0.01, 0.01, 0.001, 0.001])


# ---- settings -------------------------------------------------------------------------------------------------------


def test_the_published_values_are_the_defaults() -> None:
    ours = option("defense", "anp")
    names = ("eps", "steps", "alpha", "iterations", "batch_size", "lr", "momentum", "prune")
    assert [ours[name] for name in names] == [0.4, 1, 0.2, 2000, 128, 0.2, 0.9, "weight"]
    ours = option("defense", "rnp")
    names = (
        "unlearn_epochs",
        "milestones",
        "decay",
        "clean_accuracy",
        "recover_epochs",
        "recover_lr",
        "alpha",
        "lr",
        "prune",
    )
    assert [ours[name] for name in names] == [20, [10, 20], 0.1, 0.2, 20, 0.2, 0.2, 0.01, "weight"]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("anp", "eps", -1.0), ("anp", "steps", 0), ("anp", "alpha", 2.0), ("anp", "iterations", 0), ("anp", "threshold", -0.1),
     ("anp", "number", -1), ("anp", "max_drop", 2.0), ("rnp", "clean_accuracy", 2.0), ("rnp", "recover_lr", -1.0),
     ("rnp", "unlearn_epochs", -1), ("rnp", "alpha", -1.0), ("rnp", "select_fraction", -0.1)],
)  # fmt: skip
def test_a_setting_out_of_range_is_named(name: str, setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"defense.{setting} is {value:g}; expected a number"):
        quick(name, **{setting: value})
