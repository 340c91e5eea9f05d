"""Adversarial examples: their ball, what they leave alone (specification of AFT, 3.8), and a plain loop that agrees."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backdoorbench.models.base import evaluating
from backdoorbench.streams import Stream
from backdoorbench.training.adversarial import PGD, ascend, clipped, fgsm, partly_adversarial

LABELS = torch.tensor([0, 1, 2, 3])


def network() -> nn.Module:
    """With all that crafting might disturb: statistics, dropout, a module in a mode of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 15 * 15, 10)
        )  # fmt: skip
    net.train()
    net[1].eval()
    return net


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def loss(model: nn.Module, images: torch.Tensor) -> float:
    with evaluating(model), torch.no_grad():
        return float(F.cross_entropy(model(images), LABELS))


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("start", [None, Stream(0)])
def test_1_examples_stay_within_the_radius(wave: torch.Tensor, clamp: bool, start: Stream | None) -> None:
    before = wave.clone()
    moved = PGD(6 / 255, 6 / 255 / 5, 7, clamp=clamp)(network(), wave, LABELS, start)
    assert torch.equal(wave, before) and not wave.requires_grad  # the input is untouched
    assert moved.shape == wave.shape and moved.dtype == wave.dtype and not moved.requires_grad
    assert 5.9 / 255 < (moved - wave).abs().max() <= 6 / 255 + 1e-6
    assert (moved.min() >= 0 and moved.max() <= 1) == clamp  # the wave touches both ends


@pytest.mark.parametrize("attack", [PGD(0.0, 0.0, 7), PGD(6 / 255, 6 / 255 / 5, 0)], ids=["radius 0", "no steps"])
def test_1_no_radius_or_no_steps_is_the_image(wave: torch.Tensor, attack: PGD) -> None:
    assert torch.equal(attack(network(), wave, LABELS), wave)


@pytest.mark.parametrize(("project", "farthest"), [(True, 0.4), (False, 0.8)])
def test_without_projection_a_step_goes_on_from_a_random_start(project: bool, farthest: float) -> None:
    """Of a row of factors as well as of images: from within 0.4, 0.4 further up a slope that is 1 everywhere."""
    moved = ascend(
        torch.sum, torch.zeros(1000), radius=0.4, step=0.4, steps=1, clamp=False, project=project, start=Stream(0)
    )
    start = (2 * torch.rand(1000, generator=Stream(0).generator()) - 1) * 0.4
    torch.testing.assert_close(moved, (start + 0.4).clamp(max=farthest))
    assert moved.max() == pytest.approx(farthest, abs=0.01)


def test_2_crafting_leaves_no_trace(wave: torch.Tensor) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(wave), LABELS).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    weights, moments = state(model), copy.deepcopy(optimizer.state_dict())
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    PGD(0.1, 0.02, 3)(model, wave, LABELS, Stream(0))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    for key, kept in moments["state"].items():
        assert torch.equal(optimizer.state_dict()["state"][key]["momentum_buffer"], kept["momentum_buffer"])
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


def test_2_the_modes_come_back_after_a_failure(wave: torch.Tensor) -> None:
    model = network()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError):
        PGD(0.1, 0.02, 3)(model, wave[:, :1], LABELS)
    assert [module.training for module in model.modules()] == modes


def test_3_the_loss_rises_or_falls_as_asked(wave: torch.Tensor) -> None:
    model = network()
    plain, away = loss(model, wave), PGD(0.03, 0.006, 7)
    assert loss(model, away(model, wave, LABELS)) > loss(model, fgsm(0.001)(model, wave, LABELS)) > plain
    assert loss(model, PGD(0.03, 0.006, 7, targeted=True)(model, wave, LABELS)) < plain


def test_it_equals_a_plain_loop(wave: torch.Tensor) -> None:
    model, radius, step = network().eval(), 8 / 255, 3 / 255
    x = wave.clone()
    for _ in range(4):
        x = x.detach().requires_grad_()
        F.cross_entropy(model(x), LABELS).backward()  # with gradients of the weights, unlike ours
        assert x.grad is not None
        x = x.detach() + step * x.grad.sign()
        x = torch.min(torch.max(x, wave - radius), wave + radius).clamp(0, 1)
    assert torch.equal(PGD(radius, step, 4)(network(), wave, LABELS), x)


def test_one_step_on_a_linear_model_is_known(wave: torch.Tensor) -> None:
    weight = torch.linspace(-1, 1, 3 * 32 * 32)
    moved = ascend(lambda x: (x.flatten(1) * weight).sum(), wave, radius=0.01, step=0.01, steps=1, clamp=False)
    assert torch.allclose(moved, wave + 0.01 * weight.sign().view(3, 32, 32))


def test_a_value_at_an_end_of_the_range_is_told_which_way_to_go() -> None:
    values = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1], requires_grad=True)
    found = clipped(values)
    found.sum().backward()
    assert torch.equal(found, values.clamp(0, 1))
    assert values.grad is not None and values.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_random_start_is_drawn_by_name(wave: torch.Tensor) -> None:
    model, still = network(), PGD(0.1, 0.0, 1, clamp=False)
    first, second, other = (still(model, wave, LABELS, Stream(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    offsets = (first - wave) / 0.1
    assert offsets.abs().max() <= 1 + 1e-5 and abs(float(offsets.mean())) < 0.02  # uniform in +-1
    assert float(offsets.std()) == pytest.approx(3**-0.5, rel=0.02)


def test_it_works_under_autocast_and_without_gradients_around_it(wave: torch.Tensor) -> None:
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        moved = PGD(0.03, 0.006, 7)(model, wave, LABELS)
    assert moved.dtype == torch.float32 and (moved - wave).abs().max() <= 0.03 + 1e-6
    assert loss(model, moved) > loss(model, wave)


def test_the_layout_is_kept(wave: torch.Tensor) -> None:
    images = wave.contiguous(memory_format=torch.channels_last)
    assert PGD(0.03, 0.006, 2)(network(), images, LABELS).is_contiguous(memory_format=torch.channels_last)


def test_a_partly_adversarial_loss_counts_its_steps(wave: torch.Tensor) -> None:
    model, seen = network().eval(), []

    def black(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return torch.zeros_like(images)

    partly = partly_adversarial(black, lambda step: step in (1, 2))
    found = [float(partly(model, wave, LABELS).detach()) for _ in range(4)]
    plain, dark = loss(model, wave), loss(model, torch.zeros_like(wave))
    assert found == pytest.approx([plain, dark, dark, plain]) and plain != pytest.approx(dark) and seen == [4, 4]
