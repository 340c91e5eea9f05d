"""SAU: the specification's tests (baselines 2.13): its ball, its shared set, its divergence, what it moves."""

import copy
import math
from typing import Any

import pytest
import torch
from scenes import defense, few, network, purify, same, scenario, state
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.compose import compose, option
from backdoorbench.defenses import sau
from backdoorbench.defenses.sau import jensen_shannon, shared_risk
from backdoorbench.errors import ConfigError
from backdoorbench.models.base import Classifier, GlobalAverage, frozen


def linear_net(seed: int) -> Classifier:
    """A network of the mean colour, which a step of 0.2 misleads easily."""
    torch.manual_seed(seed)
    net = nn.Sequential(GlobalAverage(), nn.Linear(3, 10))
    nn.init.normal_(net[1].weight, std=5.0)
    return Classifier(net, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval()


def searched(model: nn.Module, infected: nn.Module, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Images, the adversarial ones, and what the infected model says of the images."""
    images, labels = next(few().batches(24))
    with torch.no_grad():
        called = infected(images).argmax(1)
    return images, defense("sau", **changes).search(model, infected, images, labels, called), called


def test_the_search_stays_in_its_ball_and_starts_at_its_rim() -> None:
    infected = network()
    model = copy.deepcopy(infected)
    images, crafted, _ = searched(model, infected)
    assert (crafted - images).abs().max() <= 0.2 + 1e-6
    _, unmoved, _ = searched(model, infected, steps=0)
    torch.testing.assert_close(unmoved, images + 0.2)
    assert crafted.max() > 1  # as the code's, it may leave the range
    assert not any(module.training for module in model.modules()) and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("fooling", [0.01, 1.0])
def test_the_search_against_a_plain_loop(fooling: float) -> None:
    """The formula of section 2.13, image by image, with the clean predictions found anew in each step."""
    model, infected = linear_net(1), linear_net(2)
    images, crafted, _ = searched(model, infected, steps=3, step=0.05, fooling_weight=fooling)
    for image, label, found in zip(images, few().labels, crafted, strict=True):
        delta = torch.full_like(image, 0.2)
        for _ in range(3):
            delta.requires_grad_()
            now, then = (net((image + delta)[None])[0] for net in (model, infected))
            stands, stood = (a.argmax() == net(image[None])[0].argmax() for a, net in ((now, model), (then, infected)))
            shared = not stands and not stood and now.argmax() == then.argmax()
            value = -fooling / 2 * (stands * F.cross_entropy(now, label) + stood * F.cross_entropy(then, label))
            p, q = now.softmax(0), then.softmax(0)
            middle = (p + q) / 2
            value = value + (not shared) * ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2
            (slope,) = torch.autograd.grad(value, delta)
            delta = (delta.detach() - 0.05 * slope.sign()).clamp(-0.2, 0.2)
        torch.testing.assert_close(found, image + delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 5), (0, 3)])
def test_the_search_raises_the_papers_sum(first: int, second: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models' cross-entropies by beta_1 / 2B where they stand, less beta_2 / B of the divergences of what is not shared."""
    values: list[Tensor] = []
    monkeypatch.setattr(
        sau, "ascend", lambda objective, images, start, **named: values.append(objective(start)) or start
    )
    model, infected = linear_net(first), linear_net(second)
    images, crafted, called = searched(model, infected, fooling_weight=0.5, agreement_weight=2.0)
    said, labels = model(images).argmax(1), few().labels
    now, then = model(crafted), infected(crafted)
    stands, stood = now.argmax(1) == said, then.argmax(1) == called
    shared = ~stands & ~stood & (now.argmax(1) == then.argmax(1))
    entropies = [F.cross_entropy(a[b], labels[b], reduction="sum") for a, b in ((now, stands), (then, stood))]
    apart = jensen_shannon(now.softmax(1), then.softmax(1))[~shared].sum()
    torch.testing.assert_close(values[0], (0.5 / 2 * (entropies[0] + entropies[1]) - 2.0 * apart) / 24)
    assert (stands | stood).any() and shared.any() == ((first, second) != (1, 2))


def test_once_all_are_shared_nothing_moves() -> None:
    """Why no early stop is needed: model and infected are one, and the start already misleads both."""
    model = linear_net(1)
    images, crafted, called = searched(model, model, step=0.0)
    with torch.no_grad():
        misled = model(crafted).argmax(1) != called
    assert misled.any()
    again = searched(model, model)[1]
    torch.testing.assert_close(again[misled], crafted[misled])


def test_of_equal_models_agreement_asks_for_nothing() -> None:
    """Every example that fools one fools both, for the same class: it is shared."""
    model = linear_net(3)
    with_it, without = (searched(model, copy.deepcopy(model), agreement_weight=weight)[1] for weight in (5.0, 0.0))
    assert torch.equal(with_it, without)
    apart = [searched(model, linear_net(4), agreement_weight=weight)[1] for weight in (5.0, 0.0)]
    assert not torch.equal(*apart)


def test_the_divergence_is_0_of_equals_and_ln_2_of_opposites() -> None:
    tables = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).mul(4).softmax(1)
    other = tables.flip(0)
    assert (jensen_shannon(tables, other) >= 0).all() and jensen_shannon(tables, tables).abs().max() == 0
    torch.testing.assert_close(jensen_shannon(tables, other), jensen_shannon(other, tables))
    sure = torch.eye(2)
    assert jensen_shannon(sure[:1], sure[1:]).item() == pytest.approx(math.log(2), abs=1e-5)


def test_an_empty_shared_set_costs_nothing() -> None:
    logits = torch.tensor([[90.0, -90, 0], [0, 0, 90]], requires_grad=True)  # chances of exactly 1 and 0
    risk = shared_risk(logits, torch.tensor([0, 0]), torch.tensor([False, False]))
    risk.backward()
    assert risk == 0 and torch.equal(logits.grad, torch.zeros(2, 3))


def test_the_shared_risk_by_hand() -> None:
    chances = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [0.25, 0.25, 0.5]])
    risk = shared_risk(chances.log(), torch.tensor([0, 1, 2, 2]), torch.tensor([True, True, False, False]))
    by_hand = sum(-math.log(1e-6 + 1 - p) - math.log(1 + 1e-6 - p) for p in (0.7, 0.6)) / (2 * 4)
    assert risk.item() == pytest.approx(by_hand, rel=1e-5)


def test_the_shared_set_is_what_the_infected_model_is_misled_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose class is neither the true one nor what it says of the clean image."""
    sets: list[tuple[Tensor, Tensor]] = []
    plain = sau.shared_risk
    monkeypatch.setattr(sau, "shared_risk", lambda logits, misled, shared: (sets.append((misled, shared)), plain(logits, misled, shared))[1])  # fmt: skip
    model, infected = linear_net(1), linear_net(2)
    images, labels = next(few().batches(24))
    crafted = searched(model, infected)[1]
    with frozen(infected):
        defense("sau").unlearning(infected)(model, images, labels)
    ((misled, shared),) = sets
    before, after = infected(images).argmax(1), infected(crafted).argmax(1)
    assert torch.equal(misled, after) and torch.equal(shared, (after != labels) & (after != before)) and shared.any()


def test_the_weights_of_the_loss() -> None:
    model, infected = linear_net(1), linear_net(2)
    images, labels = next(few().batches(24))
    crafted = searched(model, infected)[1]

    def loss(**weights: float) -> Tensor:
        off = {"clean_weight": 0.0, "adversarial_weight": 0.0, "shared_weight": 0.0}
        found: Tensor = defense("sau", **{**off, **weights}).unlearning(infected)(model, images, labels)
        return found

    misled, called = infected(crafted).argmax(1), infected(images).argmax(1)
    risk = shared_risk(model(crafted), misled, (misled != labels) & (misled != called))
    torch.testing.assert_close(loss(clean_weight=2.0), 2 * F.cross_entropy(model(images), labels))
    torch.testing.assert_close(loss(adversarial_weight=3.0), 3 * F.cross_entropy(model(crafted), labels))
    torch.testing.assert_close(loss(shared_weight=4.0), 4 * risk)


def test_batch_norm_sees_clean_and_adversarial_images_in_one_batch() -> None:
    model, infected, sizes = network(), network(), list[int]()
    model.register_forward_pre_hook(lambda net, given: sizes.append(len(given[0])) if net.training else None)
    images, labels = next(few().batches(24))
    defense("sau", bn_mode="train").unlearning(infected)(model.train(), images, labels)
    assert sizes == [48]


def test_the_optimiser_is_adam_with_amsgrad(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.optim.Optimizer] = []
    monkeypatch.setattr(sau, "fit", lambda *rest, optimizer, **named: seen.append(optimizer))
    purify(network(), few(), defense("sau"))
    known = {name: seen[0].defaults[name] for name in ("lr", "betas", "weight_decay", "amsgrad")}
    assert known == {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0, "amsgrad": True}


@pytest.mark.wide
def test_it_ends_where_a_plain_loop_ends() -> None:
    """Six steps of the loop in 2.13, with the search of `search`, and torch's Adam."""
    infected = network()
    with torch.no_grad():
        infected.net.linear.weight *= 4  # so that it has opinions
    chosen, images, lacks = defense("sau", epochs=2, batch_size=8, lr=1e-2), few(24), 0
    reached = purify(infected, images, chosen)
    model = copy.deepcopy(infected)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=True)
    order = scenario(infected, images, frozenset()).stream.child("tune")
    for epoch in range(2):
        for batch, labels in images.batches(8, order.child(f"epoch{epoch}")):
            said, called = model(batch).argmax(1), infected(batch).argmax(1)
            crafted = chosen.search(model, infected, batch, labels, called).detach()
            misled = infected(crafted).argmax(1)
            shared = (misled != labels) & (misled != called)
            clean, moved = model(torch.cat([batch, crafted])).split(8)
            chance = moved.softmax(1)[torch.arange(8), misled][shared]
            risk = (
                -(1e-6 + (1 - chance).clamp(max=0.999)).log().sum() - (1 + 1e-6 - chance.clamp(min=0.001)).log().sum()
            )
            optimizer.zero_grad()
            (F.cross_entropy(clean, labels) + risk / 2 / 8).backward()
            optimizer.step()
            lacks += int((said != called).any())
    for (name, mine), other in zip(reached.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, msg=name)
    assert lacks  # the two models had come apart


@pytest.mark.wide
def test_the_infected_model_stays_and_so_do_statistics_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[nn.Module] = []
    plain = sau.SAU.unlearning
    monkeypatch.setattr(sau.SAU, "unlearning", lambda self, infected: (kept.append(infected), plain(self, infected))[1])
    model = network()
    before = state(model)
    after = state(purify(model, few(), defense("sau", epochs=2, batch_size=8)))
    assert same(state(kept[0]), before) and all(p.grad is None for p in kept[0].parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("running" in name or "num_batches" in name for name in moved)
    moved_too = state(purify(model, few(), defense("sau", epochs=2, batch_size=8, bn_mode="train")))
    assert any("running" in name for name in before if not torch.equal(before[name], moved_too[name]))


@pytest.mark.parametrize(("bn_mode", "rests"), [("eval", True), ("train", False)])
def test_by_default_the_network_is_unlearnt_in_eval_mode(bn_mode: str, rests: bool) -> None:
    """Dropout included: the loss is the same however often it is asked, though `fit` has the network in train mode."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 10))
    model = Classifier(net, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval()
    infected = copy.deepcopy(model)
    loss = defense("sau", bn_mode=bn_mode).unlearning(infected)
    images, labels = next(few().batches(24))
    found = [loss(model.train(), images, labels).detach() for _ in range(2)]
    assert torch.equal(*found) is rests


def test_the_published_values_are_the_defaults() -> None:
    code = option("defense", "sau")
    wanted = {"radius": 0.2, "step": 0.2, "steps": 5, "fooling_weight": 0.01, "agreement_weight": 1, "clean_weight": 1}
    wanted |= {"adversarial_weight": 0, "shared_weight": 1, "epochs": 100, "batch_size": 256, "lr": 1e-4}
    assert {key: code[key] for key in wanted} == wanted
    rounds = [compose(["defense=sau", f"dataset={name}"])["defense"]["epochs"] for name in ("gtsrb", "tiny_imagenet")]
    assert rounds == [100, 20]  # their Tiny ImageNet file


def test_a_setting_out_of_its_range_is_named() -> None:
    with pytest.raises(ConfigError, match="defense.shared_weight is -1; expected a number at least 0"):
        defense("sau", shared_weight=-1.0)
    with pytest.raises(ConfigError, match="defense.radius is 2; expected a number between 0 and 1"):
        defense("sau", radius=2.0)
