"""CLP, BNP and EP: channels that stand out by their weights, by their statistics, by the entropy of what they see."""

import copy
import logging
import math
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import QUICK
from scenes import WITH_NORMS, changed, defense, few, network, purify, same, scenario, state
from torch import Tensor, nn

from backdoorbench.config.compose import compose, option
from backdoorbench.defenses import bnp, clp, ep
from backdoorbench.errors import ConfigError, ModelError, PairingError
from backdoorbench.models.base import Classifier
from backdoorbench.models.channels import norm_channels, outliers, read_inputs
from backdoorbench.models.resnet import ResNet
from backdoorbench.models.surgery import ConvNorm, activations, conv_norm_pairs, registered_pairs
from backdoorbench.pipeline import plan
from backdoorbench.tensors.augment import Alternating
from backdoorbench.training.pruning import one_batch


def wide() -> Classifier:
    """A ResNet of 16 to 128 channels a layer, whose channels are alike."""
    torch.manual_seed(0)
    return Classifier(ResNet(18, 16, 10, 32), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def pruned(before: nn.Module, after: nn.Module) -> dict[str, list[int]]:
    """parameter -> the rows that have changed, all of them to 0."""
    first, second, found = state(before), state(after), {}
    for name in changed(before, after):
        rows = (first[name] != second[name]).nonzero()[:, 0]
        assert (second[name][rows] == 0).all()
        found[name] = rows.tolist()
    return found


# ---- CLP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_NORMS)
def test_clp_scores_are_the_largest_singular_value_times_the_norms_scale(name: str) -> None:
    for pair in conv_norm_pairs(network(name)):
        scores = clp.lipschitz(pair)
        for channel in range(0, pair.norm.num_features, 3):
            kernel = pair.conv.weight[channel].detach().double().flatten(1).numpy()  # (C_in, k k)
            scale = abs(pair.norm.weight[channel].item()) / math.sqrt(float(pair.norm.running_var[channel]))
            largest = np.linalg.svd(kernel, compute_uv=False).max()
            assert float(scores[channel]) == pytest.approx(largest * scale, rel=1e-6)


def test_clp_scores_grow_with_the_scale_whatever_its_sign() -> None:
    (pair, *_) = conv_norm_pairs(copy.deepcopy(network("resnet18")))
    before = clp.lipschitz(pair)
    with torch.no_grad():
        pair.norm.weight.mul_(-3)
    torch.testing.assert_close(clp.lipschitz(pair), 3 * before)


def test_clp_prunes_the_one_kernel_that_is_a_hundred_times_larger() -> None:
    model = wide()
    with torch.no_grad():
        model.net.layer2[0].conv1.weight[5].mul_(100)
    notes: dict[str, object] = {}
    after = purify(model, few(), defense("clp", u=5.0), notes=notes)
    assert pruned(model, after)["net.layer2.0.bn1.weight"] == [5]
    assert set(pruned(model, after)) <= {"net.layer2.0.bn1.weight", "net.layer2.0.bn1.bias"}  # a shift of 0 stays one
    assert notes["pruned"] == {"net.layer2.0.bn1": [5]} and notes["pruned_channels"] == 1
    assert notes["norms_without_convolution"] == 0 and notes["grouped_convolutions"] == 0


def test_clp_with_a_u_that_nothing_reaches_changes_nothing_and_draws_nothing() -> None:
    model = network("preact18")
    assert same(state(purify(model, few(), defense("clp", u=1e9))), state(model))
    torch.manual_seed(0)
    first = torch.random.get_rng_state()
    again = [state(purify(model, few(), defense("clp", u=1.0), seed=seed)) for seed in (0, 1)]
    assert same(*again) and torch.equal(torch.random.get_rng_state(), first)


def test_clp_scores_the_pairs_that_it_says_in_a_preact_resnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data flow: the first norm and every block's second; the authors' order: all sixteen, seven of them wrongly."""
    model = network("preact18")
    scored: list[ConvNorm] = []
    lipschitz = clp.lipschitz
    monkeypatch.setattr(clp, "lipschitz", lambda pair: (scored.append(pair), lipschitz(pair))[1])
    found = {}
    for pairing in ("dataflow", "registration"):
        scored.clear()
        notes: dict[str, object] = {}
        purify(model, few(), defense("clp", u=1.0, pairing=pairing), notes=notes)
        found[pairing] = notes["pruned"], [(pair.conv_name, pair.norm_name) for pair in scored]
    names = {"dataflow": conv_norm_pairs(model), "registration": registered_pairs(model)}
    for pairing, pairs in names.items():
        assert found[pairing][1] == [(pair.conv_name, pair.norm_name) for pair in pairs]
    assert found["dataflow"][0] != found["registration"][0]
    assert set(found["dataflow"][0]) <= {"net.layer1.0.bn1"} | {
        name for _, name in found["dataflow"][1] if "bn2" in name
    }


def test_clp_finds_channels_beside_a_dead_one() -> None:
    model = wide()
    with torch.no_grad():
        model.net.layer2[0].conv1.weight[5].mul_(100)
        model.net.layer2[0].bn1.running_var[3] = 0  # in the authors' code this one's score hides all others
    assert pruned(model, purify(model, few(), defense("clp", u=5.0)))["net.layer2.0.bn1.weight"] == [5]


def test_clp_says_where_no_layer_is_wide_enough(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    model = network("timm_resnet")
    assert same(state(purify(model, few(), defense("clp", u=20.0))), state(model))
    widest = max(norm.num_features for norm in norm_channels(model).norms.values())
    assert (
        f"the widest batch norm has {widest} channels, of which none can lie 20 standard deviations above"
        in caplog.text
    )


@pytest.mark.parametrize("name", ["clp", "bnp", "ep"])
def test_networks_without_norms_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="has no batch-norm layer"):
        purify(network("timm_convnext"), few(), defense(name))


# ---- BNP ------------------------------------------------------------------------------------------------------------


def settle(model: nn.Module, images: Tensor) -> None:
    """Running statistics of every norm, first to last, as those of its input for these images."""
    for name, norm in norm_channels(model).norms.items():
        with torch.no_grad(), activations(model, [name], "input") as seen:
            model(images)
        norm.running_mean.copy_(seen[name].mean((0, 2, 3)))  # type: ignore[union-attr]
        norm.running_var.copy_(seen[name].var((0, 2, 3)))  # type: ignore[union-attr]


def test_bnp_moments_are_those_of_all_values() -> None:
    maps = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 100
    mean, variance = bnp.pooled(torch.cat([bnp.moments(maps[:2]), bnp.moments(maps[2:])]))
    torch.testing.assert_close(mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(variance, maps.var((0, 2, 3)))
    once = bnp.moments(maps[:, :, :1, :1])  # maps of one pixel
    torch.testing.assert_close(bnp.pooled(once)[1], maps[:, :, 0, 0].var(0))


def test_bnp_divergence_is_the_authors_formula_and_at_least_0() -> None:
    draws = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(50)
    norm.running_mean, norm.running_var = torch.randn(50, generator=draws), torch.rand(50, generator=draws) + 0.1
    mean = torch.randn(50, generator=draws, dtype=torch.float64)
    variance = torch.rand(50, generator=draws, dtype=torch.float64) + 0.1
    found = bnp.divergence(mean, variance, norm)
    for c in range(50):
        m1, v1, m2, v2 = float(mean[c]), float(variance[c]), float(norm.running_mean[c]), float(norm.running_var[c])
        by_hand = math.log(math.sqrt(v2) / math.sqrt(v1)) + (v1 + (m1 - m2) ** 2) / (2 * v2) - 0.5
        assert float(found[c]) == pytest.approx(by_hand, abs=1e-9)
    assert (found >= 0).all()
    own = bnp.divergence(norm.running_mean.double(), norm.running_var.double(), norm)
    torch.testing.assert_close(own, torch.zeros(50, dtype=torch.float64))
    dead = bnp.divergence(mean, torch.zeros(50, dtype=torch.float64), norm)
    assert dead.isfinite().all()


@pytest.mark.wide
def test_bnp_prunes_the_one_channel_whose_mean_was_another() -> None:
    model = wide()
    settle(model, few(24).images.float() / 255)
    shifted = copy.deepcopy(model)
    norm = shifted.net.layer4[1].bn2  # nothing that is compared lies behind it
    norm.running_mean[7] += 10 * norm.running_var[7].sqrt()
    before = state(shifted)
    after = purify(shifted, few(24), defense("bnp", augment=False))
    found = pruned(shifted, after)
    assert found["net.layer4.1.bn2.weight"] == [7] and not any(name.endswith("bias") for name in found)
    assert same(state(shifted), before)
    both = pruned(shifted, purify(shifted, few(24), defense("bnp", augment=False, prune="both", u=11.0)))
    assert set(both) <= {"net.layer4.1.bn2.weight", "net.layer4.1.bn2.bias"} and both["net.layer4.1.bn2.weight"] == [7]


@pytest.mark.wide
def test_bnp_scores_are_0_where_the_statistics_are_the_batchs_own() -> None:
    model, images = wide(), few(24)
    settle(model, images.images.float() / 255)
    channels = norm_channels(model, statistics=True)
    read = read_inputs(
        model, channels.norms, one_batch(images, 24, scenario(model, images, frozenset()).stream, None), bnp.moments
    )
    for name, norm in channels.norms.items():
        scores = bnp.divergence(*bnp.pooled(read[name]), norm)
        assert scores.min() > -1e-9 and scores.max() < 1e-4


# ---- EP -------------------------------------------------------------------------------------------------------------


def slow_entropy(values: np.ndarray, width: float) -> list[float]:
    """Channel by channel, bin by bin."""
    z = (values - values.mean(0)) / values.std(0, ddof=1)
    low, found = z.min(), []
    for channel in z.T:
        total = 0.0
        for number in range(int((z.max() - low) / width) + 1):
            inside = ((channel - low) / width >= number) & ((channel - low) / width < number + 1)
            share = inside.mean()
            total -= share * math.log(share) if share else 0.0
        found.append(total)
    return found


def drawn(channels: int, images: int = 500) -> Tensor:
    return torch.randn(images, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("width", [0.01, 0.1, 0.5])
def test_ep_entropy_is_that_of_a_plain_histogram(width: float) -> None:
    values = drawn(20, 60)
    assert ep.entropy(values, width).tolist() == pytest.approx(slow_entropy(values.numpy(), width), abs=1e-9)


def test_ep_finds_the_channel_with_two_modes() -> None:
    values = drawn(30)
    values[:50, 7] += 40  # a tenth of the images, far from the others
    entropies = ep.entropy(values, 0.1)
    assert entropies.argmin() == 7
    assert outliers(-entropies, 3.0).nonzero().flatten().tolist() == [7]


def test_ep_does_not_see_a_channels_scale_or_shift() -> None:
    values = drawn(20)
    moved = values * torch.tensor([2.0**power for power in range(-10, 10)]) + 4
    torch.testing.assert_close(
        ep.entropy(moved, 0.1), ep.entropy(values, 0.1), rtol=0, atol=0.02
    )  # an edge may be crossed


def test_ep_prunes_nothing_where_entropies_are_equal() -> None:
    one = drawn(1, 100)
    equal = torch.cat([one[torch.randperm(100, generator=torch.Generator().manual_seed(k))] for k in range(40)], 1)
    assert len(ep.entropy(equal, 0.1).unique()) == 1
    mirrored = torch.cat([equal[:, :20], -equal[:, :20]], 1)  # the same shares in other bins, but for edges
    assert ep.entropy(mirrored, 0.5).unique().numel() <= 2


def test_ep_leaves_constant_channels_out() -> None:
    values = drawn(12)
    values[:, 3] = 1.0
    found = ep.entropy(values, 0.1)
    assert found.isnan().nonzero().flatten().tolist() == [3]
    assert ep.entropy(torch.ones(5, 4), 0.1).isnan().all()


def test_ep_prunes_by_the_training_set_alone() -> None:
    assert ep.EP.needs == {"model", "train"}
    model = network("resnet18")
    notes: dict[str, object] = {}
    after = purify(model, few(60), defense("ep", u=1.0), notes=notes)
    assert notes["pruned"] and set(pruned(model, after)) == {f"{name}.weight" for name in notes["pruned"]}  # type: ignore[attr-defined]


def test_ep_prunes_the_channels_of_low_entropy_of_every_norm() -> None:
    """By hand: of the largest value of each map, over all images, those below the mean by more than u deviations."""
    model, images, notes = network("resnet18"), few(60), dict[str, object]()
    purify(model, images, defense("ep", u=1.5, augment=False), notes=notes)
    norms, wanted = norm_channels(model).norms, dict[str, list[int]]()
    with torch.no_grad(), activations(model, norms, "input") as seen:
        model(images.images.float() / 255)
    for name in norms:
        found = torch.tensor(slow_entropy(seen[name].amax((2, 3)).double().numpy(), 0.1))
        if rows := (found < found.mean() - 1.5 * found.std()).nonzero().flatten().tolist():
            wanted[name] = rows
    assert notes["pruned"] == wanted and len(wanted) > 3


def test_ep_is_refused_where_there_is_no_training_set() -> None:
    with pytest.raises(PairingError, match="ep needs the training set, but wanet drives the training itself"):
        plan.plan(compose(["attack=wanet", "defense=ep", *QUICK]))


# ---- BNP and EP -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [bnp, ep])
def test_images_are_augmented_as_the_victims_were_and_not_as_the_data_set_says(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running statistics were collected under the victim's augmentation; another one's border outweighs the trigger."""
    name, seen = module.__name__.rpartition(".")[2], list[object]()
    monkeypatch.setattr(module, "one_batch", lambda *given: (seen.append(given[-1]), one_batch(*given))[1])
    model, reflecting = network("airbench"), Alternating(2, True, 0, None, None, "reflect", True)
    for augment in (reflecting, None):
        for asked in (True, False):
            chosen = defense(name, augment=asked)
            scene = scenario(model, few(24), chosen.needs)
            scene.recipe = replace(scene.recipe, augment=augment)
            chosen.purify(scene)
    assert seen == [reflecting, None, None, None]


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_the_published_values_are_the_defaults() -> None:
    assert [option("defense", name)["u"] for name in ("clp", "bnp", "ep")] == [3.0, 3.0, 3.0]
    assert [option("defense", name)["prune"] for name in ("clp", "bnp", "ep")] == ["both", "weight", "weight"]
    assert [option("defense", name)["images"] for name in ("bnp", "ep")] == [500, 500]
    tiny = [compose([f"defense={name}", "dataset=tiny_imagenet"])["defense"]["u"] for name in ("clp", "bnp", "ep")]
    assert tiny == [5.0, 4.0, 4.0]  # BackdoorBench's
    theirs = [compose(["experiment=backdoorbench", f"defense={name}"])["defense"] for name in ("clp", "bnp", "ep")]
    assert [each["prune"] for each in theirs] == ["both"] * 3 and [each["images"] for each in theirs[1:]] == [256, 256]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("clp", "u", -1.0),
        ("bnp", "u", -1.0),
        ("bnp", "images", 0),
        ("ep", "u", -1.0),
        ("ep", "images", 1),
        ("ep", "bin_width", 0.0),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"defense.{setting} is {value:g}; expected a number at least"):
        defense(name, **{setting: value})
