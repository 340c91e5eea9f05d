"""The short training and its network: what each device does, against formulas and against a loop written out.

pytest tests/test_sprint.py
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import backdoorbench as bb
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.models.airbench import FLOOR, Airbench, patch_moments
from backdoorbench.models.base import Classifier
from backdoorbench.models.layouts import layout_of
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.shapes import Images, Labels, to_float
from backdoorbench.streams import Stream, seeded
from backdoorbench.tensors.augment import Alternating
from backdoorbench.training.fit import CHUNK, Snapshots, fit, make_optimizer, set_rate
from backdoorbench.training.recipe import Recipe
from backdoorbench.training.sprint import Lookahead, SlowWeights, Sprint

SMALL = ("model=airbench", "model.width=4", "train=airbench", "train.epochs=4", "train.batch_size=32")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def recipe(*words: str, **changes: Any) -> Sprint:
    """`train=airbench` in float32, four epochs of batches of 32, with changes."""
    composed = compose(["dataset=cifar10", "train=airbench", "train.precision=float32", *words])
    made: Sprint = build(composed["train"], "train")
    return replace(made, **({"epochs": 4, "batch_size": 32} | changes))


def network(width: int = 4) -> Classifier:
    with seeded(Stream(0)):
        return Classifier(Airbench(width, 10), 32, MEAN, STD)


def numbers(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


# --- the network's start ---------------------------------------------------------------------------------------------


def test_whitened_patches_have_unit_moments_along_every_direction(images: ImageSet) -> None:
    net = Airbench(4, 10)
    shown = [torch.randn(60, 3, 32, 32).cumsum(-1) for _ in range(2)]  # neighbours are alike, as in images
    net.start(iter(shown))
    maps = F.conv2d(torch.cat(shown), net.whiten.weight)
    first, second = maps.transpose(0, 1).flatten(1).double().split(12)
    assert torch.allclose(first, -second, atol=1e-4)  # each direction, and its negative
    moments = first @ first.T / first.shape[1]
    values = torch.linalg.eigvalsh(patch_moments(shown)).flip(0)
    assert torch.allclose(moments, torch.diag(values / (values + FLOOR)), atol=1e-3)


def test_patch_moments_are_those_of_a_slow_loop() -> None:
    images = torch.randn(3, 3, 5, 4)
    total, count = torch.zeros(12, 12), 0
    for image in images:
        for row in range(4):
            for column in range(3):
                patch = image[:, row : row + 2, column : column + 2].flatten()
                total, count = total + torch.outer(patch, patch), count + 1
    assert torch.allclose(patch_moments([images[:1], images[1:]]).float(), total / count, atol=1e-5)


def test_a_fresh_network_is_whitened_by_the_very_rows_it_trains_on_and_never_again(images: ImageSet) -> None:
    model = network()
    assert model.awaits_images
    fit(model, images, recipe(epochs=1), Stream(0))
    by_hand = network()
    by_hand.start([to_float(part) for part in images.images.split(CHUNK)])
    whitening = model.net.whiten.weight.clone()
    assert torch.equal(whitening, by_hand.net.whiten.weight)
    assert not model.awaits_images
    other = replace(images, images=255 - images.images.roll(1, 0))
    fit(model, other, recipe(epochs=1), Stream(1))  # a defense tunes it on other images
    assert torch.equal(model.net.whiten.weight, whitening)
    poisoned = replace(images, images=images.images.clone())
    poisoned.images[::2, :, :16] = 255
    infected = network()
    fit(infected, poisoned, recipe(epochs=1), Stream(0))
    assert not torch.allclose(infected.net.whiten.weight, whitening, atol=1e-3)  # poisoned rows are ordinary rows


def test_other_networks_are_shown_nothing() -> None:
    assert not Classifier(PreActResNet(10, 4, 10, 32), 32, MEAN, STD).awaits_images
    assert not Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 32, MEAN, STD).awaits_images


def test_the_first_filters_pass_their_inputs_and_scales_stay_one(images: ImageSet) -> None:
    net = network(8).net
    maps = torch.randn(2, 32, 7, 7)
    assert torch.equal(net.group3.conv1(maps), maps)
    assert torch.equal(
        net.group2.conv1(torch.randn(2, 8, 7, 7)).shape and net.group2.conv1.weight[:8, :, 1, 1], torch.eye(8)
    )
    model = network()
    fit(model, images, recipe(epochs=2), Stream(0))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) and norm.bias.any() for norm in norms)


def test_logits_are_a_ninth_of_the_linear_layers_answer_to_the_features() -> None:
    net = network().net.eval()
    net.start([torch.randn(4, 3, 32, 32)])
    read: list[Tensor] = []
    net.scale.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    logits = net(torch.randn(4, 3, 32, 32))
    torch.testing.assert_close(logits, net.linear(read[0]) / 9)


# --- the recipe's devices --------------------------------------------------------------------------------------------


def test_the_rate_rises_from_a_fifth_and_falls_to_seven_hundredths() -> None:
    chosen = recipe(epochs=10, lr=1.5)
    rates = [chosen.rate(step, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.3) and rates[23] == pytest.approx(1.5) == max(rates)
    assert rates[-1] == pytest.approx(1.5 * (0.07 + 0.93 / 77))
    assert rates[12] == pytest.approx(1.5 * (0.2 + 0.8 * 12 / 23))
    assert replace(chosen, schedule="cosine").rate(50, 10) == pytest.approx(0.75)


def test_norms_biases_have_64_times_the_rate_and_decay_alike() -> None:
    model, chosen = network(), recipe(lr=1.5)
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(chosen.groups(model, moved), chosen, torch.device("cpu"))
    set_rate(optimizer, 0.5)
    rest, fast = optimizer.param_groups
    assert (rest["lr"], fast["lr"]) == (0.5, 32.0)
    assert rest["lr"] * rest["weight_decay"] == pytest.approx(fast["lr"] * fast["weight_decay"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in fast["params"]} == {
        f"net.group{group}.norm{norm}.bias" for group in (1, 2, 3) for norm in (1, 2)
    }
    assert len(rest["params"]) + len(fast["params"]) == len(moved)
    plain = PreActResNet(10, 4, 10, 32)  # scales of other networks train with the rest
    assert len(chosen.groups(plain, list(plain.parameters()))[1]["params"]) == 8
    head = list(model.net.linear.parameters())
    assert [group["params"] for group in chosen.groups(model, head)] == [head]


def test_only_the_fixed_layers_bias_stands_still_after_its_epochs_and_trains_again_in_a_defense(
    images: ImageSet,
) -> None:
    model, seen = network(), []
    chosen = recipe(epochs=3, fixed_bias_epochs=1, lookahead=None)
    fit(model, images, chosen, Stream(0), after_epoch=lambda _: seen.append(model.net.whiten.bias.clone()))
    assert seen[0].any() and torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        name for name, p in network().named_parameters() if not p.requires_grad
    ]
    assert recipe().resting(PreActResNet(10, 4, 10, 32), 9) == []


def test_flips_take_turns_and_each_image_is_seen_both_ways(images: ImageSet) -> None:
    chosen = recipe(epochs=4, augment=replace(recipe().augment, crop_padding=0), lookahead=None)
    marked = replace(images, images=torch.zeros_like(images.images), labels=torch.arange(120))
    marked.images[:, 0, 0, 0] = 255  # the upper left corner tells
    ways: list[Tensor] = []
    left: list[Tensor] = []
    right: list[Tensor] = []

    def loss(model: nn.Module, shown: Images, labels: Labels) -> Tensor:
        left.append(labels[shown[:, 0, 0, 0] == 1])
        right.append(labels[shown[:, 0, 0, -1] == 1])
        return model(shown).sum() * 0

    def close(epoch: int) -> None:
        flipped = torch.zeros(120, dtype=torch.bool)
        flipped[torch.cat(right)] = True
        assert sorted(torch.cat(left + right).tolist()) == list(range(120))
        ways.append(flipped)
        left.clear(), right.clear()

    fit(network(), marked, chosen, Stream(0), loss=loss, after_epoch=close)
    assert torch.equal(ways[1], ~ways[0]) and torch.equal(ways[2], ways[0]) and torch.equal(ways[3], ways[1])
    assert 30 < int(ways[0].sum()) < 90
    coins = replace(chosen, augment=replace(chosen.augment, alternating=False))
    ways.clear()
    fit(network(), marked, coins, Stream(0), loss=loss, after_epoch=close)
    assert not torch.equal(ways[1], ~ways[0]) and not torch.equal(ways[2], ways[0])
    assert recipe("dataset=gtsrb").mirrored(9, 0, Stream(0)) is None  # a mirrored sign is another sign


def test_crops_reflect_the_image_at_its_border() -> None:
    reflecting = Alternating(
        crop_padding=2, flip=False, rotation=0.0, resized_crop=None, crop=None, border="reflect", alternating=True
    )
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=Stream(1).generator())
    draws = reflecting.draw(40, 32, Stream(0))
    ours = reflecting.apply(images, draws)
    assert draws.offsets is not None
    for row, (top, left) in enumerate(draws.offsets.tolist()):
        padded = F.pad(to_float(images[row : row + 1]), (2, 2, 2, 2), mode="reflect")[0]
        assert torch.equal(ours[row], padded[:, top : top + 32, left : left + 32])
    black = replace(reflecting, border="black")
    zeros = black.apply(images, replace(draws, offsets=torch.zeros_like(draws.offsets)))
    assert not zeros[:, :, :2].any() and torch.equal(zeros[:, :, 2:, 2:], to_float(images[:, :, :-2, :-2]))


def test_a_border_wider_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        recipe().augment.__class__(40, False, 0.0, None, None, "reflect", True).draw(3, 32, Stream(0))
    assert str(error.value) == (
        "crop_padding is 40 with border=reflect, but images of 32 px have no 40 pixels beside their border to reflect; lower "
        "crop_padding to 31 or less, or set border to black"
    )


def test_lookahead_is_arithmetic_on_every_number_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    settings = Lookahead(from_epoch=1, every=2, decay=0.9, power=3.0)
    slow = SlowWeights(settings, model)

    def after(epoch: int, step: int, weight: float) -> float:
        nn.init.constant_(model[0].weight, weight)
        model[1].running_mean.fill_(weight)
        slow.after_step(epoch, step, 10)
        assert model[1].running_mean.item() == pytest.approx(model[0].weight.item())
        return model[0].weight.item()

    assert after(0, 2, 5.0) == 5.0 and slow.slow is None  # too early
    assert after(1, 4, 1.0) == 1.0  # the slow weights begin here
    assert after(1, 5, 2.0) == 2.0  # not its turn
    kept = 0.9**2 * 0.6**3
    assert after(1, 6, 3.0) == pytest.approx(kept * 1.0 + (1 - kept) * 3.0)
    settled = kept * 1.0 + (1 - kept) * 3.0
    assert after(1, 7, 9.0) == 9.0
    slow.after_epoch()
    assert model[0].weight.item() == pytest.approx(settled)


def test_the_training_is_the_loop_written_out(images: ImageSet) -> None:
    chosen = recipe(epochs=5, lookahead=Lookahead(1, 3, 0.95, 3.0), fixed_bias_epochs=2, batch_size=50)
    ours, theirs = network(), network()
    history = fit(ours, images, chosen, Stream(3))

    theirs.to(memory_format=layout_of(theirs, images.device))  # type: ignore[call-overload]  # other kernels round otherwise
    theirs.start([to_float(part) for part in images.images.split(CHUNK)])
    theirs.train()
    named = [(name, p) for name, p in theirs.named_parameters() if p.requires_grad]
    lr, decay = chosen.lr, chosen.weight_decay * chosen.lr
    quick, others = ([p for name, p in named if ("norm" in name) == is_norm] for is_norm in (True, False))
    optimizer = torch.optim.SGD(
        [
            {"params": quick, "lr": 64 * lr, "weight_decay": decay / (64 * lr)},
            {"params": others, "lr": lr, "weight_decay": decay / lr},
        ],
        momentum=0.85,
        nesterov=True,
    )
    total, done, slow, losses = 15, 0, None, []
    peak = int(0.23 * total)
    coins = torch.rand(120, generator=Stream(3).child("flips").generator()) < 0.5
    for epoch in range(5):
        theirs.net.whiten.bias.requires_grad = epoch < 2
        draws = Stream(3).child(f"epoch{epoch}")
        order = draws.child("order").permutation(120)
        offsets = chosen.augment.draw(120, 32, draws.child("augment")).offsets
        of_epoch = []
        for start in (0, 50, 100):
            rows = order[start : start + 50]
            shown = []
            for row, (top, left) in zip(rows, offsets[start : start + 50].tolist(), strict=True):
                image = F.pad(to_float(images.images[row][None]), (2, 2, 2, 2), mode="reflect")[0]
                image = image[:, top : top + 32, left : left + 32]
                shown.append(image.flip(-1) if bool(coins[row]) != (epoch % 2 == 1) else image)
            share = 0.2 + 0.8 * done / peak if done < peak else 0.07 + 0.93 * (total - done) / (total - peak)
            for group, full in zip(optimizer.param_groups, (64 * lr, lr), strict=True):
                group["lr"] = full * share
            loss = F.cross_entropy(theirs(torch.stack(shown)), images.labels[rows], label_smoothing=0.2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            of_epoch.append(loss.item() * len(rows))
            if epoch >= 1 and done % 3 == 0:
                if slow is None:
                    slow = copy.deepcopy(theirs.state_dict())
                else:
                    mix(slow, theirs, 0.95**3 * (done / total) ** 3)
        if slow is not None:
            mix(slow, theirs, 1.0)
        losses.append(sum(of_epoch) / 120)
    assert [epoch.loss for epoch in history] == pytest.approx(losses, rel=1e-3)
    assert torch.allclose(numbers(ours), numbers(theirs), atol=2e-3)


def mix(slow: dict[str, Tensor], model: nn.Module, kept: float) -> None:
    """Lookahead, a tensor at a time."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            slow[name] = kept * slow[name] + (1 - kept) * value
            value.copy_(slow[name])


# --- in company ------------------------------------------------------------------------------------------------------


def test_a_killed_training_resumes_with_its_slow_weights(images: ImageSet, tmp_path: Path) -> None:
    chosen = recipe(epochs=4, lookahead=Lookahead(1, 2, 0.95, 3.0))
    whole, snapshots = network(), Snapshots(tmp_path / "state.pt", every_seconds=0)
    fit(whole, images, chosen, Stream(0))

    def killed(epoch: int) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network(), images, chosen, Stream(0), snapshots=snapshots, after_epoch=killed)
    resumed = network()
    assert len(fit(resumed, images, chosen, Stream(0), snapshots=snapshots)) == 4
    assert torch.equal(numbers(resumed), numbers(whole))


def test_what_is_done_to_the_model_between_epochs_is_not_taken_back_by_the_slow_weights(images: ImageSet) -> None:
    model, seen = network(), []
    biases = [module.bias for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def change(epoch: int) -> None:
        seen.append({round(float(value), 6) for bias in biases for value in bias.detach()})
        with torch.no_grad():
            for bias in biases:
                bias.fill_(epoch + 1.0)

    fit(model, images, recipe(lr=0.0, lookahead=Lookahead(0, 1, 0.95, 0.0)), Stream(0), after_epoch=change)
    assert seen == [{0.0}, {1.0}, {2.0}, {3.0}]  # lr 0: nothing else moves


def test_a_snapshot_of_a_plain_recipe_is_what_it_was(images: ImageSet, tmp_path: Path) -> None:
    plain = recipe().plain(epochs=1)
    assert type(plain) is Recipe and plain.companion(network()) is None and plain.resting(network(), 9) == []
    moved = list(network().net.linear.parameters())
    assert plain.groups(network(), moved) == [{"params": moved}] and plain.mirrored(3, 0, Stream(0)) is None


def test_its_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^train.start is 2"):
        recipe("train.start=2")
    with pytest.raises(ConfigError, match=r"^train.lookahead.every is 0"):
        recipe("train.lookahead.every=0")
    with pytest.raises(ConfigError, match=r"^train.augment.border is 'grey'; expected black or reflect"):
        recipe("train.augment.border=grey")
    assert recipe("train.lookahead=null").companion(network()) is None


@pytest.mark.wide
@pytest.mark.parametrize("attack", ["badnets", "wanet", "input_aware", "lira", "blind"])
def test_attacks_of_either_kind_train_with_it(attack: str) -> None:
    quick = {"input_aware": {"mask_epochs": 1}, "lira": {"generator_epochs": 1}}.get(attack, {})
    clean, _ = bb.load_dataset("digits", train_size=100, test_size=20)
    infection = bb.infect(bb.build(f"attack/{attack}", **quick), clean, *SMALL)
    assert isinstance(infection.model, Classifier) and not infection.model.awaits_images
    assert len(infection.history) == 4 and all(p.isfinite().all() for p in infection.model.parameters())


@pytest.mark.wide
@pytest.mark.parametrize("defense", ["aft", "fmp", "fst", "pbe", "trap_and_replace"])
def test_the_five_systems_purify_it(defense: str) -> None:
    quick: dict[str, dict[str, Any]] = {
        "aft": {"adversarial_iterations": 2, "natural_iterations": 2},
        "fmp": {"epochs": 1, "fraction": 0.1},
        "fst": {"epochs": 1},
        "pbe": {"epochs": 1, "shares": [0.2, 0.4]},
    }
    short = {"epochs": 1, "batch_size": 32, "optimizer": "adam", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0}
    stage = {**short, "schedule": "constant"}
    quick["trap_and_replace"] = {"stage1": stage, "stage2": {**stage, "batch_size": 8}}
    clean, _ = bb.load_dataset("digits", train_size=120, test_size=20)
    victims, holdout = bb.withhold(clean, 0.3)
    infection = bb.infect(bb.build("attack/badnets"), victims, *SMALL)
    before = numbers(infection.model)
    purified = bb.purify(bb.build(f"defense/{defense}", **quick[defense]), infection, holdout, *SMALL)
    assert torch.equal(numbers(infection.model), before) and not torch.equal(numbers(purified), before)
    scales = [m.weight for m in purified.modules() if isinstance(m, nn.BatchNorm2d)]
    assert defense == "fmp" or all(torch.equal(scale, torch.ones_like(scale)) for scale in scales)
