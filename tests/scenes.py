"""Small networks, a holdout of noise, and a scenario around them: what a defense's own tests carry it out in."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.models.airbench import Airbench
from backdoorbench.models.base import Classifier, GlobalAverage
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.models.resnet import ResNet
from backdoorbench.models.timm import TimmSpec
from backdoorbench.models.vgg import VGG
from backdoorbench.streams import Stream
from backdoorbench.training.recipe import Recipe


def plain_net() -> nn.Module:
    """No batch norm, biases, in-place activations, a grouped and a depthwise convolution."""
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(True), nn.Conv2d(8, 12, 3, 2, 1, groups=4), nn.ReLU(True)]
    layers += [nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.ReLU(True), GlobalAverage(), nn.Linear(12, 10)]
    return nn.Sequential(*layers)


class Tied(nn.Module):
    """One convolution that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tied = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.pool, self.linear = GlobalAverage(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.tied(F.relu(self.tied(x))))
        logits: Tensor = self.linear(self.pool(x))
        return logits


NETS: dict[str, Callable[[], nn.Module]] = {
    "preact10": lambda: PreActResNet(10, 4, 10, 32),
    "preact18": lambda: PreActResNet(18, 4, 10, 32),
    "resnet18": lambda: ResNet(18, 4, 10, 32),
    "vgg16_bn": lambda: VGG(16, 4, 10),
    "airbench": lambda: whitened(Airbench(4, 10)),
    "timm_resnet": lambda: TimmSpec("t", None, "test_resnet", False, "as_is").net(10, 32),
    "timm_efficientnet": lambda: TimmSpec("t", None, "test_efficientnet", False, "as_is").net(10, 32),
    "timm_convnext": lambda: TimmSpec("t", None, "test_convnext", False, "as_is").net(10, 32),
    "plain": plain_net,
    "tied": Tied,
}


def given(seed: int = 0) -> Classifier:
    """What tests write to files and read again: a convolution, a norm and a head, never run."""
    torch.manual_seed(seed)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 4, 3))
    net.add_module("bn1", nn.BatchNorm2d(4))
    net.add_module("head", nn.Linear(4, 2))
    return Classifier(net, 8, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


ODD: dict[str, Callable[[], nn.Module]] = {  # of which some methods ask more than it has
    "timm_vit": lambda: TimmSpec("t", None, "test_vit", False, "as_is").net(10, 32),
}


def whitened(net: Airbench) -> Airbench:
    """The network, started from noise."""
    net.start([torch.randn(8, 3, 32, 32)])
    return net


WITH_NORMS = ["preact18", "resnet18", "vgg16_bn", "timm_resnet", "timm_efficientnet"]


def network(name: str = "preact10") -> Classifier:
    """One's own copy of a network in eval mode, its norms moved off their starting values."""
    return copy.deepcopy(_drawn(name))


@cache
def _drawn(name: str) -> Classifier:
    torch.manual_seed(0)
    model = Classifier((NETS | ODD)[name](), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def few(count: int = 24, size: int = 32) -> ImageSet:
    """Images of noise, ten classes."""
    noise = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1))
    return ImageSet(noise.to(torch.uint8), torch.arange(count) % 10, tuple("0123456789"))


def agreed(model: nn.Module, count: int = 24) -> ImageSet:
    """Images of noise with the labels that the model gives them: there is an accuracy to lose."""
    found = few(count)
    with torch.no_grad():
        labels = model(found.images.float() / 255).argmax(1)
    return ImageSet(found.images, labels, found.classes)


def defense(name: str, **changes: Any) -> Any:
    """A defense with the settings of its yaml, but for the changes."""
    return build({**compose([f"defense={name}", "dataset=cifar10"])["defense"], **changes}, "defense")


@cache
def victim_recipe() -> Recipe:
    recipe: Recipe = build(compose(["train.precision=float32"])["train"], "train")
    return recipe


def scenario(
    model: nn.Module, images: ImageSet, needs: frozenset[str], seed: int = 0, notes: dict[str, Any] | None = None,
    probe: Callable[[nn.Module, int], None] = lambda model, epoch: None,
) -> Scenario:  # fmt: skip
    """`images` are holdout and training set, whichever is needed."""
    return Scenario(
        needs,
        model=copy.deepcopy(model),
        holdout=images,
        train=images,
        build=lambda stream: copy.deepcopy(model),
        recipe=victim_recipe(),
        stream=Stream(seed).child("purify"),
        device=torch.device("cpu"),
        probe=probe,
        note=(notes if notes is not None else {}).__setitem__,
    )


def purify(
    model: nn.Module, images: ImageSet, chosen: Defense, seed: int = 0, notes: dict[str, Any] | None = None,
    probe: Callable[[nn.Module, int], None] = lambda model, epoch: None,
) -> nn.Module:  # fmt: skip
    return chosen.purify(scenario(model, images, chosen.needs, seed, notes, probe))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def changed(first: nn.Module, second: nn.Module) -> set[str]:
    """The names of the parameters and buffers in which two models differ."""
    before, after = state(first), state(second)
    return {name for name in before if not torch.equal(before[name], after[name])}
