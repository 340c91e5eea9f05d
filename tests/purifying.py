"""What tests of defenses share: a small network, clean images, and a scenario around both."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.models.resnet import ResNet
from backdoorbench.models.timm import TimmSpec
from backdoorbench.models.vgg import VGG
from backdoorbench.streams import Stream
from backdoorbench.training.recipe import Recipe

NETS: dict[str, Callable[[], nn.Module]] = {
    "preact10": lambda: PreActResNet(10, 4, 10, 32),
    "resnet18": lambda: ResNet(18, 4, 10, 32),
    "vgg16_bn": lambda: VGG(16, 4, 10),
    "timm_resnet": lambda: TimmSpec("t", None, "test_resnet", False, "as_is").net(10, 32),
    "timm_efficientnet": lambda: TimmSpec("t", None, "test_efficientnet", False, "as_is").net(10, 32),
    "timm_vit": lambda: TimmSpec("t", None, "test_vit", False, "as_is").net(10, 32),
}


def network(name: str = "preact10") -> Classifier:
    """A network of random weights in eval mode, its norms moved off their starting values."""
    torch.manual_seed(0)
    model = Classifier(NETS[name](), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def few(count: int = 24, size: int = 32) -> ImageSet:
    """Images of noise of ten classes."""
    noise = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1))
    return ImageSet(noise.to(torch.uint8), torch.arange(count) % 10, tuple("0123456789"))


def defense(name: str, **changes: Any) -> Any:
    """The defense as its yaml has it for CIFAR-10, but for what is changed."""
    return build({**compose([f"defense={name}", "dataset=cifar10"])["defense"], **changes}, "defense")


@cache
def victim_recipe() -> Recipe:
    recipe: Recipe = build(compose(["train.precision=float32"])["train"], "train")
    return recipe


def scenario(
    needs: frozenset[str], model: nn.Module, holdout: ImageSet, seed: int = 0, notes: dict[str, Any] | None = None
) -> Scenario:
    """One whose model is a copy of `model`. notes: where figures for the record go."""
    return Scenario(
        needs, model=copy.deepcopy(model), holdout=holdout, train=None, build=lambda stream: copy.deepcopy(model),
        recipe=victim_recipe(), stream=Stream(seed).child("purify"), device=torch.device("cpu"),
        probe=lambda model, epoch: None, note=(notes if notes is not None else {}).__setitem__,
    )  # fmt: skip


def purify(
    chosen: Defense, model: nn.Module, holdout: ImageSet, seed: int = 0, notes: dict[str, Any] | None = None
) -> nn.Module:
    """What the defense makes of a copy of `model`."""
    return chosen.purify(scenario(chosen.needs, model, holdout, seed, notes))


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights and statistics."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
