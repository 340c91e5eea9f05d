"""NAD: its attention, what is compared, and who learns from whom."""

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
from backdoorbench.defenses import nad
from backdoorbench.defenses.nad import NAD, attention, distilled, last_stages
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.models.resnet import ResNet
from backdoorbench.models.timm import TimmSpec
from backdoorbench.models.vgg import VGG
from backdoorbench.training.fit import fit


def network(net: nn.Module | None = None, size: int = 32) -> Classifier:
    torch.manual_seed(0)
    return Classifier(net or PreActResNet(10, 4, 10, size), size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def defense(**changes: Any) -> NAD:
    node = compose(["defense=nad", "dataset=cifar10"])["defense"]
    built: NAD = build({**node, "epochs": 2, "teacher_epochs": 1, "batch_size": 32, **changes}, "defense")
    return built


def test_attention_is_the_normalised_sum_of_powers() -> None:
    maps = torch.randn(3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    for power in (1.0, 2.0, 4.0):
        found = attention(maps, power)
        for image, row in zip(maps, found, strict=True):
            summed = sum((channel.abs() ** power for channel in image), torch.zeros(4, 2)).flatten()
            torch.testing.assert_close(row, summed / (summed.norm() + 1e-6))
    torch.testing.assert_close(attention(3 * maps, 2.0), attention(maps, 2.0))  # the scale says nothing
    assert not attention(torch.zeros(1, 2, 3, 3), 2.0).any()
    faint = attention(1e-3 * torch.ones(1, 1, 3, 3), 2.0)  # a norm of 3e-6 over 9 places, and the 1e-6 beside it
    torch.testing.assert_close(faint, torch.full((1, 9), 1e-6 / (3e-6 + 1e-6)))


def test_a_map_of_one_pixel_says_nothing_and_is_left_out() -> None:
    """BackdoorBench compares such maps: their term is 0, and so is its gradient."""
    maps = torch.rand(4, 8, 1, 1, generator=torch.Generator().manual_seed(0)).add(0.5).requires_grad_()
    found = F.mse_loss(attention(maps, 2.0), attention(torch.rand(4, 8, 1, 1) + 0.5, 2.0))
    (gradient,) = torch.autograd.grad(found, maps)
    assert found < 1e-9 and gradient.abs().max() < 1e-6
    assert [stage.side for stage in last_stages(network(VGG(16, 4, 10)), 3)] == [(8, 8), (4, 4), (2, 2)]
    with pytest.raises(
        ModelError, match=r"has 2 stages with maps larger than 1x1, but defense.betas weighs 3. Give as many"
    ):
        last_stages(network(PreActResNet(10, 4, 10, 4), 4), 3)


@pytest.mark.parametrize(
    "net",
    [
        lambda: PreActResNet(10, 4, 10, 32),
        lambda: ResNet(18, 4, 10, 32),
        lambda: VGG(11, 4, 10),
        lambda: TimmSpec("t", None, "test_resnet", False, "as_is").net(10, 64),
        lambda: TimmSpec("t", None, "test_efficientnet", False, "as_is").net(10, 64),
    ],
    ids=["preact", "resnet", "vgg", "timm_resnet", "timm_efficientnet"],
)
def test_a_student_like_its_teacher_has_only_its_cross_entropy(net: Any) -> None:
    model = network(net(), 64)
    batch, labels = torch.rand(4, 3, 64, 64), torch.arange(4)
    betas = {stage.name: 1000.0 for stage in last_stages(model, 3)}
    assert distilled(model, betas, 2.0)(model, batch, labels).item() == pytest.approx(
        F.cross_entropy(model(batch), labels).item()
    )
    other = copy.deepcopy(model).requires_grad_(False)
    for weight in other.parameters():
        weight += 0.1 * torch.randn(weight.shape)
    loss = distilled(other, betas, 2.0)(model, batch, labels)
    assert loss > F.cross_entropy(model(batch), labels) + 0.1
    loss.backward()
    assert all(weight.grad is None for weight in other.parameters())
    assert not any(part._forward_hooks for part in (*model.modules(), *other.modules()))


@pytest.mark.wide
def test_the_teacher_is_the_fine_tuned_copy_and_stays(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    teachers: list[tuple[nn.Module, dict[str, Tensor]]] = []
    weights: list[dict[str, float]] = []
    plain = nad.distilled

    def watched(teacher: nn.Module, betas: dict[str, float], power: float) -> Any:
        teachers.append((teacher, copy.deepcopy(teacher.state_dict())))
        weights.append(betas)
        return plain(teacher, betas, power)

    monkeypatch.setattr(nad, "distilled", watched)
    infected, notes = network(), dict[str, Any]()
    scenario = scenario_of(NAD, infected, images, notes=notes)
    purified = defense().purify(scenario)
    ((teacher, at_first),) = teachers
    tuned = network()
    fit(tuned, images, defense().recipe("teacher", 1, scenario), scenario.stream.child("teacher"))
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, at_first[name]) and torch.equal(value, tuned.state_dict()[name]), name
    assert not torch.equal(at_first["net.linear.weight"], infected.state_dict()["net.linear.weight"])
    assert purified is scenario.model and purified is not teacher
    assert notes["stages"] == ["net.layer2", "net.layer3", "net.layer4"]
    assert weights == [{"net.layer2": 500, "net.layer3": 1000, "net.layer4": 1000}]  # the deepest last


def test_without_weights_it_is_fine_tuning_of_the_infected_model(images: ImageSet) -> None:
    scenario = scenario_of(NAD, network(), images)
    ours = defense(betas=[0.0, 0.0]).purify(scenario)
    theirs = network()
    fit(theirs, images, defense().recipe("nad", 2, scenario), scenario.stream.child("tune"))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_the_rate_falls_where_it_is_told(images: ImageSet) -> None:
    scenario = scenario_of(NAD, network(), images)
    paper = defense(lr=0.1, milestones=[2], decay=0.1).recipe("t", 20, scenario)
    assert [paper.rate(epoch, 1) for epoch in (0, 1, 2, 19)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    assert paper.nesterov and not defense(momentum=0.0, nesterov=False).recipe("t", 1, scenario).nesterov
    assert {defense().recipe("t", 20, scenario).rate(epoch, 1) for epoch in range(20)} == {0.01}


def test_backdoorbenchs_student_slows_down_after_twenty_epochs_as_its_code_does(images: ImageSet) -> None:
    node = compose(["experiment=backdoorbench", "defense=nad"])["defense"]
    theirs = build(node, "defense").recipe("t", 100, scenario_of(NAD, network(), images))
    assert [theirs.rate(epoch, 1) for epoch in (0, 19, 20, 99)] == pytest.approx([0.01, 0.01, 1e-4, 1e-4])
    assert (theirs.batch_size, theirs.weight_decay, theirs.nesterov) == (256, 5e-4, False)


def test_no_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"defense.betas is empty; expected the weight of each stage"):
        defense(betas=[])
