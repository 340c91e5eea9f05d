"""IMS: what masks do to a network, what the losses are, and what stays as it was."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import scenario_of
from torch import Tensor, nn

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.ims import IMS, Masks, agree, disagree
from backdoorbench.errors import ModelError
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.models.surgery import prunable_channels
from backdoorbench.models.timm import TimmSpec
from backdoorbench.models.vgg import VGG


def network(net: nn.Module | None = None) -> Classifier:
    torch.manual_seed(0)
    return Classifier(net or PreActResNet(10, 4, 10, 32), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def timm(name: str) -> nn.Module:
    return TimmSpec("t", None, name, False, "as_is").net(10, 32)


def defense(**changes: Any) -> IMS:
    node = compose(["defense=ims", "dataset=cifar10"])["defense"]
    quick = {"initial_rounds": 2, "rounds": 2, "steps": 2, "batch_size": 16}
    built: IMS = build({**node, **quick, **changes}, "defense")
    return built


def drawn(model: nn.Module) -> Masks:
    """Masks and selections somewhere in [0, 1]."""
    masks, draws = Masks(model, 20.0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in (masks.mask, masks.selection):
            each.copy_(torch.rand(each.shape, generator=draws))
    return masks


# ---- masks ----------------------------------------------------------------------------------------------------------


def test_a_selection_of_one_keeps_a_channel_whatever_its_mask() -> None:
    masks = Masks(network(), 20.0)
    assert torch.equal(masks.kept(), torch.ones_like(masks.mask)) and torch.equal(masks.kept(True), masks.kept())
    with torch.no_grad():
        masks.selection.zero_()
        masks.mask[:2] = torch.tensor([0.0, 0.5])
    torch.testing.assert_close(masks.kept()[:3], torch.tensor([-10.0, 0.0, 10.0]).sigmoid())
    torch.testing.assert_close(masks.kept() + masks.kept(inverted=True), torch.ones_like(masks.mask))


@pytest.mark.parametrize(
    "net",
    [
        None,
        lambda: VGG(11, 4, 10),
        lambda: timm("test_resnet"),
        lambda: timm("test_efficientnet"),
        lambda: timm("test_convnext"),
    ],
    ids=["preact", "vgg", "timm_resnet", "timm_efficientnet", "timm_convnext"],
)
def test_scaled_filters_are_scaled_outputs(net: Any) -> None:
    """As the authors' hooks on convolutions have it, biases and convolutions without a batch norm included."""
    model = network(net() if net else None)
    masks = drawn(model)
    batch = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    hooked = copy.deepcopy(model)
    layers = prunable_channels(hooked)
    assert sum(layer.channels for layer in layers) == len(masks.mask)
    for layer, scale in zip(layers, masks.kept().detach().split([layer.channels for layer in layers]), strict=True):
        layer.conv.register_forward_hook(lambda module, given, output, scale=scale: output * scale[:, None, None])
    wanted = hooked(batch)
    torch.testing.assert_close(masks.part(batch), wanted, rtol=1e-3, atol=1e-4)
    masks.burn_in(model)
    torch.testing.assert_close(model(batch), wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(masks.whole(batch), wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_vit", r"has no feature maps to prune"),
        ("test_nfnet", r"normalises its own filters, so scaling them changes nothing"),
    ],
)
def test_networks_that_no_mask_can_divide_are_refused(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Masks(network(timm(name)), 20.0)


# ---- losses ---------------------------------------------------------------------------------------------------------


def test_answers_agree_and_disagree() -> None:
    first, second = (
        torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0]]),
        torch.tensor([[50.0, 0.0, 0.0], [0.0, 0.0, 50.0]]),
    )
    assert agree(first, first).item() == pytest.approx(0, abs=1e-6) and disagree(first, first).item() == pytest.approx(
        18.42, abs=0.01
    )
    assert agree(first, second).item() == pytest.approx((0 + 18.42) / 2, abs=0.01)
    even = torch.zeros(2, 4)
    assert agree(even, even).item() == pytest.approx(-torch.tensor(0.25).log().item(), abs=1e-6)
    assert disagree(even, even).item() == pytest.approx(-torch.tensor(0.75).log().item(), abs=1e-6)


def test_the_loss_of_a_round_is_the_papers_sum(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, chosen = drawn(network()), defense()
    batch, _ = next(images.batches(8))
    moved = torch.full_like(batch, 0.05)
    monkeypatch.setattr(IMS, "perturbation", lambda *given: moved)
    clean, fooled = masks.whole(batch), masks.whole(batch + moved)
    kept, left = masks.part, lambda given: masks.part(given, inverted=True)
    terms = [agree(kept(batch), clean), agree(kept(batch + moved), clean), agree(left(batch + moved), fooled)]
    terms += [disagree(left(batch + moved), clean), disagree(left(batch), clean)]
    torch.testing.assert_close(chosen.divided(masks, batch), torch.stack(terms).sum(), rtol=1e-4, atol=1e-5)


def confident(factor: float) -> Classifier:
    """A network whose answers are so many times as sure."""
    model = network()
    with torch.no_grad():
        model.net.linear.weight *= factor
    return model


@pytest.mark.wide
def test_a_perturbation_moves_the_answer_within_its_bound(images: ImageSet) -> None:
    masks = drawn(confident(3))
    batch, _ = next(images.batches(16))
    moved = defense(steps=20).perturbation(masks, batch)
    clean, still = masks.whole(batch), agree(masks.part(batch, inverted=True), masks.whole(batch))
    answer = masks.whole(batch + moved)
    after = agree(masks.part(batch + moved, inverted=True), answer) + disagree(answer, clean)
    assert after < still + disagree(clean, clean)
    assert moved.shape == batch.shape and 0 < moved.abs().max() <= 0.03 and not moved.requires_grad
    assert defense(steps=20, bound=0.005).perturbation(masks, batch).abs().max() <= 0.005


def test_a_perturbation_is_that_of_the_authors_loop(images: ImageSet) -> None:
    """AdamW from 0; what the infected network answers carries gradient in both terms."""
    model = confident(4)
    masks = drawn(model)
    batch, _ = next(images.batches(8))
    change = torch.zeros_like(batch, requires_grad=True)
    optimizer = torch.optim.AdamW([change], lr=0.01)
    clean = model(batch).detach()
    for _ in range(4):
        answer = model(batch + change)
        loss = agree(masks.part(batch + change, inverted=True), answer) + disagree(answer, clean)
        (change.grad,) = torch.autograd.grad(loss, change)
        optimizer.step()
        change.data.clamp_(-0.03, 0.03)
    found = defense(steps=4, perturbation_lr=0.01, bound=0.03).perturbation(masks, batch)
    apart = (found - change).abs() > 1e-5  # of a few slopes rounding makes the sign
    assert found.abs().max() > 0.02 and apart.float().mean() < 0.01


# ---- the method -----------------------------------------------------------------------------------------------------


def test_only_filters_are_scaled_and_no_graph_is_kept(images: ImageSet) -> None:
    model, notes, shown = network(), dict[str, Any](), list[int]()
    maps: list[weakref.ref[Tensor]] = []
    model.net.layer1.register_forward_hook(lambda module, given, output: maps.append(weakref.ref(output)))
    scenario = scenario_of(IMS, model, images, notes=notes)
    scenario.probe = lambda model, epoch: shown.append(epoch)
    purified = defense(lr=0.2).purify(scenario)
    before = model.state_dict()
    for name, value in purified.state_dict().items():
        if "conv" in name or "shortcut" in name:
            ratio = (value / before[name]).flatten(1).nan_to_num(1.0)
            assert 0 <= ratio.min() and ratio.max() <= 1
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(value, before[name]), name
    assert notes["rounds"] == {"initial": 2, "free": 2, "sparse": 2} and shown == list(range(6))
    assert notes["channels"] == sum(layer.channels for layer in prunable_channels(model))
    assert maps and not any(each() is not None for each in maps)
    assert all(weight.requires_grad for weight in purified.parameters())


def hooked(model: nn.Module) -> tuple[nn.Module, list[nn.ParameterDict], Callable[[bool], None]]:
    """A copy whose convolutions' outputs are masked as the authors' hooks do it, their masks, and what turns these around."""
    copied, masks, side = copy.deepcopy(model).eval().requires_grad_(False), list[nn.ParameterDict](), [False]
    for layer in prunable_channels(copied):
        one = nn.ParameterDict({name: torch.ones(layer.channels) for name in ("selection", "mask")})

        def scale(module: nn.Module, given: Any, output: Tensor, one: nn.ParameterDict = one) -> Tensor:
            passed = torch.sigmoid(20 * ((1 - one["mask"] if side[0] else one["mask"]) - 0.5))
            return output * (passed + one["selection"] * (1 - passed))[:, None, None]

        layer.conv.register_forward_hook(scale)
        masks.append(one)

    def turn(inverted: bool) -> None:
        side[0] = inverted

    return copied, masks, turn


@pytest.mark.wide
def test_three_phases_end_where_the_authors_loop_ends(images: ImageSet) -> None:
    """Their loop, from their code: hooks, torch's optimisers, and the 1-norm of 1 - s, which has no slope at s = 1."""
    infected = network()
    with torch.no_grad():
        infected.net.linear.weight *= 4  # so that it has opinions
    reached = defense(initial_rounds=3, rounds=3, steps=3, batch_size=8, lr=0.2).purify(
        scenario_of(IMS, infected, images)
    )
    masked, masks, turn = hooked(infected)
    draws = scenario_of(IMS, infected, images).stream

    def part(batch: Tensor, inverted: bool) -> Tensor:
        turn(inverted)
        logits: Tensor = masked(batch)
        return logits

    left_unmoved = []
    for phase, weight in (("initial", 10), ("free", 0), ("sparse", 10)):
        optimizer = torch.optim.AdamW([each for one in masks for each in one.values()], lr=0.2)
        for turned in range(3):
            rows = draws.child(phase).child(f"round{turned}").permutation(len(images))[:8]
            batch = images.images[rows].float() / 255
            clean = infected(batch).detach()
            if phase == "initial":
                loss = agree(part(batch, False), clean) + disagree(part(batch, True), clean)
            else:
                change = torch.zeros_like(batch, requires_grad=True)
                inner = torch.optim.AdamW([change], lr=0.001)
                for _ in range(3):
                    answer = infected(batch + change)
                    wanted = agree(part(batch + change, True), answer) + disagree(answer, clean)
                    (change.grad,) = torch.autograd.grad(wanted, change)
                    inner.step()
                moved = (batch + change).detach()
                loss = agree(part(batch, False), clean) + agree(part(moved, False), clean)
                loss = loss + agree(part(moved, True), infected(moved).detach())
                loss = loss + disagree(part(moved, True), clean) + disagree(part(batch, True), clean)
            norms = [torch.norm(1 - one["selection"], 1) for one in masks]
            loss = loss + weight * torch.stack(norms).sum() / sum(len(one["selection"]) for one in masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for one in masks:
                for each in one.values():
                    each.data.clamp_(0, 1)
            left_unmoved.append(all(bool((one["selection"] == 1).all()) for one in masks))
    turn(False)
    for layer, one in zip(prunable_channels(infected), masks, strict=True):
        passed = torch.sigmoid(20 * (one["mask"] - 0.5))
        scaled = layer.conv.weight * (passed + one["selection"] * (1 - passed))[:, None, None, None]
        torch.testing.assert_close(reached.get_submodule(layer.name).weight, scaled, rtol=1e-4, atol=1e-6)
    assert not left_unmoved[0]  # a slope there would hold every selection where it starts


def test_a_phase_ends_where_nothing_improves(images: ImageSet) -> None:
    notes: dict[str, Any] = {}
    chosen = defense(improvement=0.0, patience=1, initial_rounds=9, rounds=9)
    chosen.purify(scenario_of(IMS, network(), images, notes=notes))
    assert notes["rounds"] == {"initial": 2, "free": 2, "sparse": 2}
