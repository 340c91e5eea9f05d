"""NPD: the specification's tests (baselines 2.14): its layer, where it stands, its ball, and that nothing else trains."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scenes import defense, few, network, purify, scenario, state
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.compose import compose
from backdoorbench.defenses import npd
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.models.surgery import insert_before, late_convolution
from backdoorbench.training.adversarial import clipped, within_l2
from backdoorbench.training.recipe import Recipe

SMALL: dict[str, Any] = {"epochs": 2, "warmup_epochs": 1, "batch_size": 8}
CONVOLUTIONAL = ("preact10", "resnet18", "vgg16_bn", "timm_resnet", "timm_efficientnet")


def with_layer(name: str = "preact10") -> tuple[nn.Module, nn.Sequential]:
    model = network(name)
    place, conv = late_convolution(model)
    layer = npd.polarizer(conv.in_channels)
    insert_before(model, place, layer)
    return model, layer


def images() -> tuple[Tensor, Tensor]:
    return next(few().batches(24))


# ---- the layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_fresh_layer_leaves_the_logits(name: str) -> None:
    pixels, _ = images()
    with torch.no_grad():
        before, after = network(name)(pixels), with_layer(name)[0](pixels)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)  # the norm's eps is all that differs
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("preact10", "net.layer4.0.conv1"),
        ("resnet18", "net.layer4.1.conv1"),
        ("timm_resnet", "net.layer4.0.conv1"),
    ],
)
def test_it_stands_before_the_first_convolution_of_the_last_block(name: str, place: str) -> None:
    assert late_convolution(network(name))[0] == place


def test_in_a_plain_network_it_stands_before_the_last_convolution() -> None:
    model = network("vgg16_bn")
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][-1]
    assert late_convolution(model)[0] == last


def test_a_transformer_is_refused_before_any_work() -> None:
    with pytest.raises(ModelError) as caught:
        purify(network("timm_vit"), few(), defense("npd"))
    assert str(caught.value) == (
        "VisionTransformer has no convolution late enough to put a layer before it: it needs one that reads maps which earlier "
        "layers made (transformers pass tokens). Choose a convolutional network, such as preact_resnet18."
    )


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_only_the_layer_trains(name: str) -> None:
    model, notes = network(name), dict[str, Any]()
    purified = purify(model, few(), defense("npd", **SMALL), notes=notes)
    place = notes["before"]
    before = {key.replace(f"{place}.", f"{place}.1."): value for key, value in state(model).items()}
    after = state(purified)
    own = after.keys() - before.keys()
    assert own == {f"{place}.0.{key}" for key in npd.polarizer(2).state_dict()}
    assert all(torch.equal(after[key], value) for key, value in before.items())
    fresh = {f"{place}.0.{key}": value for key, value in with_layer(name)[1].state_dict().items()}
    assert all(not torch.equal(after[key], fresh[key]) for key in own)
    assert all(p.requires_grad and p.grad is None for key, p in purified.named_parameters() if key not in own)


def test_the_warm_up_fills_statistics_which_then_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, int]] = []
    fit = npd.fit

    def watched(model: nn.Module, *rest: Any, **named: Any) -> Any:
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        tracked = [int(norm.num_batches_tracked) for norm in norms]
        done = fit(model, *rest, **named)
        moved = [int(norm.num_batches_tracked) - count for norm, count in zip(norms, tracked, strict=True)]
        seen.append((sum(count > 0 for count in moved) == 1, max(moved)))
        return done

    monkeypatch.setattr(npd, "fit", watched)
    purify(network(), few(), defense("npd", **SMALL))
    assert seen == [(True, 3), (False, 0)]  # 24 images in batches of 8


def test_the_warm_up_is_plain_sgd_and_the_rate_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []
    monkeypatch.setattr(npd, "fit", lambda model, images, recipe, *rest, **named: seen.append(recipe))
    purify(network(), few(), defense("npd"))
    warm, tune = seen
    assert (warm.epochs, warm.momentum, warm.weight_decay) == (5, 0.0, 0.0)
    assert (tune.epochs, tune.momentum, tune.weight_decay) == (50, 0.9, 5e-4)
    for recipe, rate in ((warm, 1e-4), (tune, 0.01)):
        assert (recipe.optimizer, recipe.nesterov, recipe.augment) == ("sgd", False, None)
        assert {recipe.rate(epoch, 1) for epoch in range(recipe.epochs)} == {rate}


def test_in_train_mode_adversarial_passes_leave_the_statistics() -> None:
    model, layer = with_layer()
    chosen = defense("npd", bn_mode="train")
    pixels, labels = images()
    chosen.polarizing(layer)(model, pixels, labels)
    mean = layer[1].running_mean.clone()
    other, same = with_layer()
    other.eval()
    same.train()
    other(pixels)
    assert layer[1].momentum == 0.1 and torch.equal(mean, same[1].running_mean) and mean.any()


def test_in_train_mode_the_network_is_attacked_as_it_will_be_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets, answers and adversarial images are those of the stored statistics; the loss is of the batch's own."""
    model, layer = with_layer()
    pixels, labels = images()
    with torch.no_grad():
        deployed = model(pixels)
    seen: list[tuple[bool, Tensor, Tensor]] = []
    plain = npd.NPD.search

    def watched(self: Any, network: nn.Module, pixels: Tensor, target: Tensor) -> Tensor:
        training, crafted = layer.training, plain(self, network, pixels, target)
        seen.append((training, target, crafted))
        return crafted

    monkeypatch.setattr(npd.NPD, "search", watched)
    found = defense("npd", bn_mode="train", clean_weight=0.0, wrong_weight=0.0, target_weight=0.0, answer_weight=1.0)
    value = found.polarizing(layer)(model, pixels, labels)
    ((training, target, crafted),) = seen
    assert not training and torch.equal(target, npd.others(deployed, labels).argmax(1)) and layer.training
    torch.testing.assert_close(value, F.cross_entropy(model(crafted), deployed.argmax(1)))


def test_the_loss_by_hand() -> None:
    model, layer = with_layer()
    pixels, labels = images()
    chosen = defense("npd")
    found = chosen.polarizing(layer)(model, pixels, labels)
    clean = model(pixels)
    ranks = clean.argsort(1, descending=True)
    target = torch.where(ranks[:, 0] == labels, ranks[:, 1], ranks[:, 0])
    moved = model(chosen.search(model, pixels, target))
    chances, wrong = moved.softmax(1), moved.argsort(1, descending=True)
    wrong = torch.where(wrong[:, 0] == labels, wrong[:, 1], wrong[:, 0])
    rows = torch.arange(24)
    by_hand = F.cross_entropy(clean, labels) + 0.4 * F.cross_entropy(moved, ranks[:, 0])
    for classes in (wrong, target):
        by_hand = by_hand - 0.4 * (1.0001 - chances[rows, classes]).log().mean()
    torch.testing.assert_close(found, by_hand)


# ---- the search -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["sign", "plain"])
def test_adversarial_images_stay_in_the_ball_and_in_range(gradient: str) -> None:
    model, _ = with_layer()
    pixels, labels = images()
    chosen = defense("npd", steps=5, step=10.0 if gradient == "plain" else 0.1, gradient=gradient, enough=1.0)
    crafted = chosen.search(model, pixels, (labels + 1) % 10)
    lengths = (crafted - pixels).flatten(1).norm(dim=1)
    assert (lengths <= 3 + 1e-4).all() and lengths.min() > 0 and crafted.min() >= 0 and crafted.max() <= 1
    if gradient == "sign":
        assert lengths.max() > 2  # of 3, less what leaves the range


@pytest.mark.parametrize("gradient", ["sign", "plain"])
def test_the_search_is_a_plain_loop_towards_the_target(gradient: str) -> None:
    """Down the cross-entropy of the clipped image with its target; the ball is around the image, before it is clipped."""
    model, _ = with_layer()
    pixels, labels = images()
    target = (labels + 1) % 10
    step = 0.1 if gradient == "sign" else 100.0
    chosen = defense("npd", steps=3, step=step, gradient=gradient, radius=2.0, enough=1.0)
    deltas = torch.zeros_like(pixels)
    for _ in range(3):
        deltas.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(clipped(pixels + deltas)), target), deltas)
        deltas = within_l2(deltas.detach() - step * (slope.sign() if gradient == "sign" else slope), 2.0)
    crafted = chosen.search(model, pixels, target)
    torch.testing.assert_close(crafted, (pixels + deltas).clamp(0, 1), rtol=0, atol=1e-4)
    assert F.cross_entropy(model(crafted), target) < F.cross_entropy(model(pixels), target)


def test_black_pixels_become_brighter_where_that_leads_to_the_target() -> None:
    model, _ = with_layer()
    crafted = defense("npd", steps=1).search(model, torch.zeros(4, 3, 32, 32), torch.arange(4))
    assert 0.2 < float((crafted > 0).float().mean()) < 0.8


def test_changes_are_shortened_never_turned() -> None:
    deltas = torch.tensor([[[3.0, 4.0]], [[0.3, 0.4]], [[0.0, 0.0]]])
    torch.testing.assert_close(within_l2(deltas, 2.5), torch.tensor([[[1.5, 2.0]], [[0.3, 0.4]], [[0.0, 0.0]]]))


def test_the_search_stops_once_a_step_has_brought_enough_there() -> None:
    """More than 60 % of the batch at their target after the first step, which is always taken, or exactly 60 %."""
    model, _ = with_layer()
    pixels = images()[0][:10]
    said = model(pixels).argmax(1)
    target = said.clone()
    target[7:] = (target[7:] + 1) % 10
    once, thrice = (defense("npd", steps=steps, step=1e-4).search(model, pixels, target) for steps in (1, 3))
    assert torch.equal(once, thrice) and not torch.equal(once, pixels)
    target[6:] = (said[6:] + 1) % 10
    once, thrice = (defense("npd", steps=steps, step=1e-4).search(model, pixels, target) for steps in (1, 3))
    assert not torch.equal(once, thrice)


# ---- settings, files ------------------------------------------------------------------------------------------------


def test_saved_and_read_into_a_network_with_a_layer_it_is_the_same(tmp_path: Any) -> None:
    purified = purify(network(), few(), defense("npd", **SMALL))
    save_file({key: value.contiguous() for key, value in purified.state_dict().items()}, tmp_path / "npd.safetensors")
    again, _ = with_layer()
    again.load_state_dict(load_file(tmp_path / "npd.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(again(images()[0]), purified(images()[0]))


@pytest.mark.parametrize(
    ("dataset", "wanted"),
    [
        ("cifar10", (3, 0.4, 0.4, 0.4, 5, 50, 128)),
        ("gtsrb", (5, 0.5, 0.5, 0.5, 5, 50, 128)),
        ("tiny_imagenet", (6, 1, 0.1, 0.1, 0, 50, 128)),
        ("cifar100", (3, 0.4, 0.4, 0.4, 5, 100, 256)),
    ],
)
def test_the_published_values_are_the_defaults(dataset: str, wanted: tuple[float, ...]) -> None:
    found = compose(["defense=npd", f"dataset={dataset}"])["defense"]
    names = ("radius", "answer_weight", "wrong_weight", "target_weight", "warmup_epochs", "epochs", "batch_size")
    assert tuple(found[name] for name in names) == wanted


def test_a_setting_out_of_its_range_is_named() -> None:
    with pytest.raises(ConfigError, match="defense.enough is 2; expected a number between 0 and 1"):
        defense("npd", enough=2.0)


def test_it_needs_nothing_but_model_and_holdout() -> None:
    chosen = defense("npd", **SMALL)
    assert isinstance(chosen.purify(scenario(network(), few(), frozenset({"model", "holdout"}))), nn.Module)
