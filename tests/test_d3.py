"""D3: where the classifier starts, how far it goes, and what its loss is."""

from typing import Any

import pytest
import torch
from conftest import scenario_of
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses import d3
from backdoorbench.defenses.d3 import D3, moved
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.models.surgery import classifier_head
from backdoorbench.streams import Stream


def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(PreActResNet(10, 4, 10, 32), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def defense(**changes: Any) -> D3:
    node = compose(["defense=d3", "dataset=cifar10"])["defense"]
    built: D3 = build({**node, "epochs": 2, "batch_size": 32, **changes}, "defense")
    return built


def head_of(model: nn.Module) -> Tensor:
    return classifier_head(model).weight.detach()


def purified(images: ImageSet, notes: dict[str, Any] | None = None, **changes: Any) -> nn.Module:
    return defense(**changes).purify(scenario_of(D3, network(), images, notes=notes))


@pytest.mark.wide
@pytest.mark.parametrize("norm", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("start", ["random", "zero", "negated", "noise"])
def test_the_classifier_keeps_its_norm_and_leaves_its_place(start: str, norm: float, images: ImageSet) -> None:
    notes: dict[str, Any] = {}
    before, after = head_of(network()), head_of(purified(images, notes, start=start, norm=norm))
    assert after.norm(p=norm).item() == pytest.approx(before.norm(p=norm).item(), rel=1e-5)
    share = (after - before).norm(p=norm) / (2 * before.norm(p=norm))
    assert notes["distance_share"] == pytest.approx(share.item()) and share > 0.1


def test_the_starts_are_what_they_are_called() -> None:
    weight = torch.randn(10, 200, generator=torch.Generator().manual_seed(0)) * 0.3
    found = {start: moved(weight, start, Stream(0)) for start in ("random", "zero", "negated", "noise")}
    assert not found["zero"].any() and torch.equal(found["negated"], -weight)
    cosine = {name: F.cosine_similarity(each.flatten(), weight.flatten(), dim=0) for name, each in found.items()}
    assert abs(cosine["random"]) < 0.1 and cosine["noise"].item() == pytest.approx(0.5**0.5, abs=0.05)
    assert found["random"].abs().max() <= 0.5
    assert not torch.equal(found["random"], moved(weight, "random", Stream(1)))


def test_only_the_classifiers_weights_start_anew(images: ImageSet) -> None:
    after, before = purified(images, epochs=0).state_dict(), network().state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["net.linear.weight"]


@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_the_loss_is_the_papers(weight: float, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[Any] = []
    monkeypatch.setattr(d3, "fit", lambda model, *given, loss, **named: losses.append((model, loss)))
    purified(images, loss_weight=weight, loss_threshold=2.3)
    (model, loss) = losses[0]
    batch, labels = next(images.batches(32))
    each = F.cross_entropy(model(batch), labels, reduction="none")
    assert 0 < (each < 2.3).sum() < 32  # some images cost nothing
    clean = torch.stack([max(one - 2.3, torch.tensor(0.0)) for one in each]).mean()
    distance = (head_of(model) - head_of(network())).norm()
    divisor = weight + 1 if weight > 1 else 1
    torch.testing.assert_close(loss(model, batch, labels), (weight * clean - distance) / divisor)


@pytest.mark.wide
def test_without_a_clean_loss_it_goes_to_the_opposite(images: ImageSet) -> None:
    notes: dict[str, Any] = {}
    purified(images, notes, loss_weight=0.0, epochs=30, lr=0.1)
    assert notes["distance_share"] > 0.95
