"""Factors on the channels of batch norms, outliers among scores, and how much a pruner prunes by its holdout."""

import copy
import math

import pytest
import torch
from scenes import NETS, WITH_NORMS, agreed, changed, few, network, same, state
from torch import Tensor, nn

from backdoorbench.data.images import ImageSet, Redrawn
from backdoorbench.errors import DataError, ModelError
from backdoorbench.models import surgery
from backdoorbench.models.channels import (
    can_stand_out,
    multiplied,
    multiply,
    norm_channels,
    outliers,
    read_inputs,
    usable,
)
from backdoorbench.models.surgery import activations
from backdoorbench.streams import Stream
from backdoorbench.training.pruning import Selection, accuracy, one_batch

IMAGES = few(4).images.float() / 255


@pytest.mark.parametrize("name", WITH_NORMS)
def test_factors_of_one_are_the_model_bit_for_bit(name: str) -> None:
    model = network(name)
    channels = norm_channels(model)
    ones = torch.ones(len(channels))
    assert torch.equal(multiplied(model, channels.factors(ones, ones))(IMAGES), model(IMAGES))


@pytest.mark.parametrize("name", WITH_NORMS)
def test_a_row_has_every_norm_that_runs_shortcuts_too(name: str) -> None:
    model = network(name)
    channels = norm_channels(model)
    assert set(channels.norms) == {key for key, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)}
    row = torch.arange(len(channels))
    assert torch.equal(channels.row(channels.parts(row)), row)
    first = next(iter(channels.norms))
    assert channels.named(row < 2) == {first: [0, 1]}


@pytest.mark.parametrize("name", WITH_NORMS)
def test_factors_put_into_the_network_are_the_network_as_it_would_be(name: str) -> None:
    model, copied = network(name), copy.deepcopy(network(name))
    channels, draws = norm_channels(model), torch.Generator().manual_seed(0)
    factors = channels.factors(*torch.rand(2, len(channels), generator=draws).unbind())
    before, logits = state(model), multiplied(model, factors)(IMAGES)
    assert same(state(model), before) and not torch.equal(logits, model(IMAGES))
    multiply(copied, factors)
    assert torch.equal(copied(IMAGES), logits)
    assert changed(model, copied) == set(factors)


def test_gradients_reach_the_factors_and_no_frozen_weight() -> None:
    model = copy.deepcopy(network("preact10")).requires_grad_(False)
    channels = norm_channels(model)
    mask = torch.ones(len(channels), requires_grad=True)
    multiplied(model, channels.factors(mask))(IMAGES).square().sum().backward()
    assert mask.grad is not None and (mask.grad != 0).any()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_pruned_channel_says_its_shift_or_nothing() -> None:
    model = network("resnet18")
    channels = norm_channels(model)
    pruned = torch.zeros(len(channels), dtype=torch.bool)
    pruned[1] = True  # of the first norm
    name, norm = next(iter(channels.norms.items()))
    for prune, said in (("weight", norm.bias[1]), ("both", torch.zeros(()))):
        copied = copy.deepcopy(model)
        multiply(copied, channels.without(pruned, prune))
        with activations(copied, [name]) as seen:
            copied(IMAGES)
        assert torch.equal(seen[name][:, 1], said.expand_as(seen[name][:, 1]))
        assert changed(model, copied) == {f"{name}.weight"} | ({f"{name}.bias"} if prune == "both" else set())


@pytest.mark.parametrize("name", WITH_NORMS)
def test_inputs_are_read_batch_by_batch_and_hooks_go(name: str) -> None:
    model = network(name)
    norms = norm_channels(model).norms
    with activations(model, norms, "input") as seen:
        model(IMAGES)
    read = read_inputs(model, norms, [IMAGES[:3], IMAGES[3:]], lambda maps: maps.amax((2, 3)))
    for key in norms:
        torch.testing.assert_close(read[key], seen[key].amax((2, 3)))
    with pytest.raises(RuntimeError):
        read_inputs(model, norms, [torch.rand(2, 5, 32, 32)], Tensor.cpu)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_networks_without_norms_or_scales_are_refused() -> None:
    with pytest.raises(ModelError, match="has no batch-norm layer"):
        norm_channels(network("timm_convnext"))
    with pytest.raises(ModelError, match=r"None of the 1 batch norms .* has scales and shifts \(affine"):
        usable({"norm": nn.BatchNorm2d(4, affine=False)})
    with pytest.raises(ModelError, match="has scales, shifts and running statistics"):
        usable({"norm": nn.BatchNorm2d(4, track_running_stats=False)}, statistics=True)


# ---- outliers -------------------------------------------------------------------------------------------------------


def test_outliers_are_above_mean_and_u_sample_deviations() -> None:
    scores = torch.tensor([0.0] * 11 + [1.0])  # the last is 11 / 12 above the mean, the deviation is 1 / sqrt(12)
    assert outliers(scores, 3.17).tolist() == [False] * 11 + [True]
    assert not outliers(scores, 3.18).any() and not outliers(-scores, 0.5).any()
    assert not outliers(scores, math.inf).any() and not outliers(torch.ones(12), 0.0).any()


def test_scores_that_are_no_numbers_are_in_no_comparison() -> None:
    scores = torch.tensor([math.nan, math.inf] + [0.0] * 11 + [1.0])
    assert outliers(scores, 3.0).nonzero().flatten().tolist() == [13]
    assert not outliers(torch.tensor([math.nan, 1.0]), 0.0).any() and not outliers(torch.tensor([2.0]), 0.0).any()


@pytest.mark.parametrize("channels", [2, 10, 11, 12, 27, 64])
def test_whether_a_channel_can_stand_out_is_what_the_farthest_can_do(channels: int) -> None:
    farthest = torch.zeros(channels, dtype=torch.float64)
    farthest[0] = 1
    for u in (1.0, 2.0, 3.0, 5.0):
        assert can_stand_out(channels, u) == bool(outliers(farthest, u).any())


# ---- how much -------------------------------------------------------------------------------------------------------


def select(**changes: float | str) -> Selection:
    return Selection(**{"selection": "holdout_drop", "max_drop": 0.1, "select_fraction": 0.2, **changes})  # type: ignore[arg-type]


def test_the_strongest_level_is_the_last_before_the_accuracy_falls() -> None:
    fell = {0.1: 0.95, 0.2: 0.9, 0.3: 0.7, 0.4: 0.95}
    assert select().strongest(fell, fell.__getitem__, 1.0) == 0.2  # what comes after a fall is not looked at
    assert select(max_drop=0.3).strongest(fell, fell.__getitem__, 1.0) == 0.4
    assert select(max_drop=0.0).strongest(fell, fell.__getitem__, 1.0) is None
    assert select().strongest(fell, fell.__getitem__, 0.5) == 0.4  # a rise is no fall


def test_a_part_of_the_holdout_judges_and_the_rest_is_worked_on() -> None:
    images = few(100)
    rest, judge = select().divide(images, Stream(0))
    assert judge is not None and len(judge) == 20 and judge.counts().tolist() == [2] * 10
    drawn = [image.numpy().tobytes() for part in (rest, judge) for image in part.images]
    assert sorted(drawn) == sorted(image.numpy().tobytes() for image in images.images)
    again, other = select().divide(images, Stream(0))[1], select().divide(images, Stream(1))[1]
    assert again is not None and torch.equal(again.images, judge.images)
    assert other is not None and not torch.equal(other.images, judge.images)
    assert select(selection="fixed").divide(images, Stream(0)) == (images, None)


def test_classes_that_the_holdout_lacks_do_not_matter() -> None:
    images = few(40)
    only = images.subset((images.labels % 3 == 1).nonzero()[:, 0])  # of classes 1, 4, 7
    _, judge = select().divide(only, Stream(0))
    assert judge is not None and judge.counts().tolist() == [0, 1, 0, 0, 1, 0, 0, 1, 0, 0]


def test_a_holdout_too_small_to_be_divided_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        select().divide(few(11), Stream(0))
    assert str(caught.value) == (
        "defense.selection=holdout_drop judges by 10 of the 11 holdout images, at least one of each class; expected two others at "
        "least to work on. Raise holdout.rate or holdout.per_class, lower defense.select_fraction, or set defense.selection=fixed."
    )


@pytest.mark.parametrize("name", ["preact10", "plain"])
def test_accuracy_is_the_share_of_labels_met(name: str) -> None:
    images = agreed(network(name), 30)
    assert accuracy(network(name), images, "float32") == 1.0
    labels = images.labels.clone()
    labels[:12] = (labels[:12] + 1) % 10
    assert accuracy(network(name), ImageSet(images.images, labels, images.classes), "float32") == 18 / 30


# ---- batches --------------------------------------------------------------------------------------------------------


def test_redrawn_images_come_with_replacement_in_full_batches() -> None:
    images = few(10)
    drawn = Redrawn.of(images, 64)
    found = list(drawn.batches(16, Stream(0)))
    assert [len(labels) for _, labels in found] == [16] * 4
    labels = torch.cat([labels for _, labels in found])
    pixels = torch.cat([batch for batch, _ in found])
    assert torch.equal(pixels, images.images[labels].float() / 255)  # label i is image i's
    counts = labels.bincount(minlength=10)
    assert counts.sum() == 64 and len(counts.unique()) > 2  # a shuffled pass has each equally often
    assert not torch.equal(labels, torch.cat([labels for _, labels in drawn.batches(16, Stream(1))]))


def test_one_batch_has_each_image_once_at_most() -> None:
    images = few(30)
    parts = list(one_batch(images, 20, Stream(0), None))
    found = torch.cat(parts).mul(255).round().to(torch.uint8)
    assert len(found) == 20 == len({image.numpy().tobytes() for image in found})
    assert sum(map(len, one_batch(images, 500, Stream(0), None))) == 30


# ---- pairs by registration ------------------------------------------------------------------------------------------


def pairs(found: list[surgery.ConvNorm]) -> set[tuple[str, str]]:
    return {(pair.conv_name, pair.norm_name) for pair in found}


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "timm_resnet", "timm_efficientnet"])
def test_where_norms_follow_convolutions_registration_is_data_flow(name: str) -> None:
    model = network(name)
    assert pairs(surgery.registered_pairs(model)) == pairs(surgery.conv_norm_pairs(model))


def test_in_a_preact_resnet_registration_takes_the_block_before() -> None:
    model = network("preact18")
    registered, flow = pairs(surgery.registered_pairs(model)), pairs(surgery.conv_norm_pairs(model))
    assert len(registered) == 16 and len(flow) == 9 and flow < registered
    assert registered - flow == {
        ("net.layer1.0.conv2", "net.layer1.1.bn1"),
        ("net.layer1.1.conv2", "net.layer2.0.bn1"),
        ("net.layer2.0.shortcut.0", "net.layer2.1.bn1"),
        ("net.layer2.1.conv2", "net.layer3.0.bn1"),
        ("net.layer3.0.shortcut.0", "net.layer3.1.bn1"),
        ("net.layer3.1.conv2", "net.layer4.0.bn1"),
        ("net.layer4.0.shortcut.0", "net.layer4.1.bn1"),
    }


@pytest.mark.parametrize("name", WITH_NORMS)
def test_pairs_have_as_many_channels(name: str) -> None:
    model = network(name)
    for found in (surgery.registered_pairs(model), surgery.conv_norm_pairs(model)):
        assert found and all(pair.conv.out_channels == pair.norm.num_features for pair in found)


class Dense(nn.Module):
    """A norm of two convolutions' maps, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        first = self.one(x)
        logits: Tensor = self.linear(self.norm(torch.cat([first, self.two(first)], 1)).mean((2, 3)))
        return logits


def test_registration_refuses_unequal_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETS, "dense", Dense)
    with pytest.raises(ModelError) as caught:
        surgery.registered_pairs(network("dense"))
    assert str(caught.value) == (
        "Dense has a batch norm 'net.norm' of 8 channels, but registered last before it is 'net.two', which has 4; expected a "
        "convolution of as many channels. Pair them by data flow, or choose another network, such as preact_resnet18."
    )
