"""I-BAU: the hypergradient against closed forms, the perturbation, and what stays as it was."""

import copy
import weakref
from typing import Any

import pytest
import torch
from conftest import scenario_of
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.i_bau import IBAU, hypergradient
from backdoorbench.errors import TrainingError
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.models.timm import TimmSpec
from backdoorbench.streams import Stream
from backdoorbench.tensors.derivatives import twice_differentiable


def network(net: nn.Module | None = None) -> Classifier:
    torch.manual_seed(0)
    return Classifier(net or PreActResNet(10, 4, 10, 32), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def defense(**changes: Any) -> IBAU:
    node = compose(["defense=i_bau", "dataset=cifar10"])["defense"]
    built: IBAU = build({**node, "rounds": 2, "batch_size": 50, **changes}, "defense")
    return built


# ---- the hypergradient ----------------------------------------------------------------------------------------------


class Quadratic:
    """inner = 1/2 d'A d - d'B w, solved by d = A^-1 B w; outer = 1/2 |d - c|^2 + 1/2 w'D w."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(0)
        root, spread, self.B = (torch.randn(4, n, generator=draws, dtype=torch.float64) for n in (4, 4, 3))
        self.A = root @ root.T / 4 + torch.eye(4, dtype=torch.float64)
        self.D = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        self.c, self.w = spread[0], torch.randn(3, generator=draws, dtype=torch.float64).requires_grad_()
        self.solved = torch.linalg.solve(self.A, self.B @ self.w.detach())

    def inner(self, d: Tensor) -> Tensor:
        return d @ self.A @ d / 2 - d @ self.B @ self.w

    def outer(self, d: Tensor) -> Tensor:
        return (d - self.c).square().sum() / 2 + self.w @ self.D @ self.w / 2

    def found(self, turns: int) -> Tensor:
        return hypergradient(self.inner, self.outer, self.solved, [self.w], step=0.1, turns=turns)[1][0]


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
def test_the_hypergradient_of_a_quadratic_is_its_neumann_sum(turns: int) -> None:
    """d Phi / d delta = I - 0.1 A and d Phi / d w = 0.1 B, so v = sum over k < turns of (I - 0.1 A)^k (delta - c)."""
    q = Quadratic()
    pull, turn = q.solved - q.c, torch.eye(4, dtype=torch.float64) - 0.1 * q.A
    v = sum((torch.linalg.matrix_power(turn, k) @ pull for k in range(turns)), torch.zeros_like(pull))
    torch.testing.assert_close(q.found(turns), 0.1 * q.B.T @ v + q.D @ q.w.detach())


def test_many_turns_give_the_implicit_gradient() -> None:
    """d/dw of outer(A^-1 B w, w): the total derivative, by hand and by autograd through the solution."""
    q = Quadratic()
    exact = q.B.T @ torch.linalg.solve(q.A, q.solved - q.c) + q.D @ q.w.detach()
    torch.testing.assert_close(q.found(500), exact)
    (through,) = torch.autograd.grad(q.outer(torch.linalg.solve(q.A, q.B @ q.w)), q.w)
    torch.testing.assert_close(q.found(500), through)


def test_weights_that_the_losses_do_not_reach_have_gradient_zero() -> None:
    q, idle = Quadratic(), torch.ones(2, requires_grad=True)
    _, (gradient, nothing) = hypergradient(q.inner, q.outer, q.solved, [q.w, idle], step=0.1, turns=3)
    assert torch.equal(gradient, q.found(3)) and torch.equal(nothing, torch.zeros(2))


def test_of_a_network_it_is_that_of_finite_steps() -> None:
    """turns = 1: grad_w of outer(Phi(delta, w), w) where outer's slope in delta is taken at delta; by central differences."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    draws = torch.Generator().manual_seed(1)
    images, delta = (torch.rand(n, 3, 2, 2, generator=draws, dtype=torch.float64) for n in (8, 1))
    labels = torch.arange(8) % 3
    chosen = defense(inner_step=0.7)
    inner, outer = chosen.deceived(model, images, labels), lambda d: F.cross_entropy(model(images + d), labels)
    held = delta.clone().requires_grad_()
    (pull,) = torch.autograd.grad(outer(held), held)
    _, gradients = hypergradient(inner, outer, delta, list(model.parameters()), step=0.7, turns=1)

    def value() -> float:
        place = delta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(inner(place), place)
        return float(((delta - 0.7 * slope) * pull).sum() + outer(delta).detach())

    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        flat = weight.data.view(-1)
        flat[0] += 1e-5
        above = value()
        flat[0] -= 2e-5
        assert gradient.view(-1)[0].item() == pytest.approx((above - value()) / 2e-5, rel=1e-5)
        flat[0] += 1e-5


# ---- the method -----------------------------------------------------------------------------------------------------


def test_the_perturbation_misleads_and_is_one_of_plain_pixels(images: ImageSet) -> None:
    model = network()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.5  # so that it has opinions
    batch, _ = next(images.batches(120))
    said = model(batch).argmax(1)
    delta = defense().perturbation(model, images.batches(50))
    assert delta.shape == (1, 3, 32, 32) and not delta.requires_grad
    assert F.cross_entropy(model(batch + delta), said) > F.cross_entropy(model(batch), said) + 0.1
    by_hand = torch.zeros(1, 3, 32, 32)
    for some, _ in images.batches(50):
        place = by_hand.clone().requires_grad_()
        loss = -F.cross_entropy(model(some + place), model(some).argmax(1)) + 0.001 * place.square().sum()
        by_hand -= 10 * torch.autograd.grad(loss, place)[0]
    torch.testing.assert_close(delta, by_hand)
    length = delta.norm().item()
    short, free = (defense(radius=share * length).perturbation(model, images.batches(50)) for share in (0.25, 2.0))
    torch.testing.assert_close(short, delta / 4)
    assert torch.equal(free, delta)


@pytest.mark.parametrize(("share", "carry"), [(0.01, 1), (0.1, 5), (0.58, 29), (1.0, 50)])
def test_at_least_one_image_of_a_batch_carries_it(share: float, carry: int, images: ImageSet) -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            seen.append(given)
            return given.flatten(1)[:, :10]

    batch, labels = next(images.batches(50))
    outer = defense(carriers=share).borne(Watching(), batch, labels, Stream(0))
    outer(torch.full((1, 3, 32, 32), 2.0))
    moved = (seen[0] - batch).flatten(1).round(decimals=5)
    assert int((moved == 2).all(1).sum()) == carry and int((moved == 0).all(1).sum()) == 50 - carry


@pytest.mark.wide
def test_statistics_stay_and_no_graph_is_kept(images: ImageSet) -> None:
    model = network()
    maps: list[weakref.ref[Tensor]] = []
    model.net.layer1.register_forward_hook(lambda module, given, output: maps.append(weakref.ref(output)))
    notes: dict[str, Any] = {}
    scenario = scenario_of(IBAU, model, images, notes=notes)
    purified = defense().purify(scenario)
    assert maps and not any(each() is not None for each in maps)
    before = model.state_dict()
    changed = {name for name, value in purified.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in model.named_parameters()}
    assert len(notes["perturbation_norms"]) == 2 and all(weight.grad is None for weight in purified.parameters())


@pytest.mark.wide
def test_it_ends_where_a_plain_loop_ends(images: ImageSet) -> None:
    """Two rounds of the authors' loop: a fresh perturbation each, the inner loss on the first batch, five turns from v = 0."""
    model, few = network(), images.subset(torch.arange(24))
    chosen = defense(batch_size=8, carriers=0.25, lr=1e-3)
    scenario = scenario_of(IBAU, model, few)
    reached = chosen.purify(scenario)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches, weights = list(few.batches(8, scenario.stream.child("order"))), list(model.parameters())
    first, its_labels = batches[0]
    for turn in range(2):
        delta = chosen.perturbation(model, batches)
        for number, (batch, labels) in enumerate(batches):
            place = delta.clone().requires_grad_()
            carried = torch.zeros_like(batch)
            draws = scenario.stream.child(f"round{turn}").child(f"batch{number}")
            carried[draws.permutation(8)[:2]] = place
            (pull, *direct) = torch.autograd.grad(F.cross_entropy(model(batch + carried), labels), [place, *weights])
            inner = 0.001 * place.square().sum() - F.cross_entropy(model(first + place), its_labels)
            (slope,) = torch.autograd.grad(inner, place, create_graph=True)
            v = torch.zeros_like(place)
            for _ in range(5):
                v = torch.autograd.grad(place - 0.1 * slope, place, v, retain_graph=True)[0] + pull
            through = torch.autograd.grad(place - 0.1 * slope, weights, v)
            for weight, one, other in zip(weights, direct, through, strict=True):
                weight.grad = one + other
            optimizer.step()
    for mine, theirs in zip(reached.parameters(), weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5)


def test_every_pass_has_the_same_batches(images: ImageSet) -> None:
    order = Stream(0).child("order")
    first, again = ([labels for _, labels in images.batches(50, order)] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(torch.cat(first), images.labels)


def test_a_transformer_is_differentiated_twice(images: ImageSet) -> None:
    """Fused attention has no second derivative."""
    model = network(TimmSpec("t", None, "test_vit", False, "as_is").net(10, 32))
    few = images.subset(torch.arange(20))
    purified = defense(rounds=1, batch_size=10).purify(scenario_of(IBAU, copy.deepcopy(model), few))
    assert all(value.isfinite().all() for value in purified.parameters())


def test_hard_sigmoids_are_differentiated_twice() -> None:
    """Of MobileNetV3's squeeze-and-excitation: torch has no second derivative of them."""
    values = torch.linspace(-4, 4, 81, dtype=torch.float64).requires_grad_()

    def derivatives(function: Any) -> list[torch.Tensor]:
        (first,) = torch.autograd.grad(function(values).square().sum(), values, create_graph=True)
        return [function(values).detach(), first.detach(), *torch.autograd.grad(first.sum(), values)]

    once = nn.functional.hardsigmoid(values).detach()
    with twice_differentiable():
        found = derivatives(nn.Hardsigmoid())
    assert torch.allclose(found[0], once, rtol=0, atol=1e-15)
    inner = (values.detach().abs() < 2.95).double()
    assert torch.allclose(found[2] * inner, inner / 18)  # of the square of x / 6 + 1 / 2


def test_a_network_of_hard_sigmoids_is_purified(images: ImageSet) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Hardsigmoid(), nn.Flatten(), nn.Linear(900, 10))
    purified = defense(rounds=1, batch_size=10).purify(scenario_of(IBAU, network(net), images.subset(torch.arange(20))))
    assert all(value.isfinite().all() for value in purified.parameters())


def test_a_loss_that_leaves_the_numbers_is_the_users_to_mend(images: ImageSet) -> None:
    model = network()
    nn.init.constant_(model.net.linear.bias, float("nan"))
    with pytest.raises(TrainingError, match=r"the loss of 'i_bau' became nan in round 1 of 2 .*Lower defense.lr"):
        defense().purify(scenario_of(IBAU, model, images))
