"""FMP: its assertions by number (specification, 5.7 and 9), the defects of the authors' code (5.8), its effect on digits."""

import copy
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import QUICK
from scenes import NETS, few, network, purify, same, state
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, option
from backdoorbench.defenses import fmp
from backdoorbench.defenses.fmp import FMP, Probe, Ranks
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNet
from backdoorbench.models.resnet import ResNet
from backdoorbench.models.surgery import prunable_channels
from backdoorbench.models.timm import TimmSpec
from backdoorbench.models.vgg import VGG
from backdoorbench.pipeline.job import Job
from backdoorbench.streams import Stream
from backdoorbench.training.recipe import CosineTo, bare_recipe

FEW = [  # timm's take longest
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith("timm") else []) for name in NETS
]


def defense(**changes: Any) -> FMP:
    node = compose(["defense=fmp", "dataset=cifar10"])["defense"]
    quick = {"fraction": 0.25, "epochs": 2, "batch_size": 8, "probe_images": 8, "eps_255": 8.0, "start_255": 4.0}
    built: FMP = build({**node, **quick, **changes}, "defense")
    return built


def probed(model: nn.Module, count: int = 8, alpha: float = 4 / 255) -> Probe:
    """A probe whose labels are mostly what the model says, so that there is an accuracy to lose."""
    found = fmp.draw(few(), count, alpha, Stream(0))
    labels = model(found.images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    return replace(found, labels=labels)


def everything(model: nn.Module) -> dict[str, range]:
    return {layer.name: range(layer.channels) for layer in prunable_channels(model)}


def one_by_one(model: nn.Module, maps: Iterable[str], probe: Probe, epsilon: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Section 5.3 as it reads: per map a graph of its own, a step, a forward pass. Hits and losses by layer."""
    found = {}
    for name in maps:
        clean = fmp.convolved(model, {name: None}, probe.images)[name]
        hits = torch.full((clean[0].shape[1],), len(probe.labels) + 1)
        losses = torch.zeros(len(hits))
        for run, before in enumerate(clean):
            for channel in range(len(hits)):
                start = probe.start.clone().requires_grad_()
                after = fmp.convolved(model, {name: None}, start)[name][run]
                distance = (before.detach()[:, channel] - after[:, channel]).square().mean()
                step = torch.autograd.grad(distance, start)[0].sign()
                logits = model((start.detach() + epsilon * step).clamp(0, 1)).detach()
                hits[channel] = min(hits[channel], (logits.argmax(1) == probe.labels).sum())
                losses[channel] = max(losses[channel], F.cross_entropy(logits, probe.labels))
        found[name] = hits, losses
    return found


# ---- 5.7.1: scoring only looks --------------------------------------------------------------------------------------


def test_1_scoring_changes_nothing_and_keeps_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(network("preact10"))
    probe, before = probed(model), state(model)
    pushed: list[Tensor] = []
    judge = fmp.judge
    monkeypatch.setattr(fmp, "judge", lambda *given: (pushed.append(given[1]), judge(*given))[1])
    fmp.rank(model, everything(model), probe, 8 / 255, "float32")
    assert same(state(model), before) and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    steps = torch.cat([part.flatten(0, 1).unflatten(0, (-1, 8)) for part in pushed])
    assert len(steps) == sum(len(channels) for channels in everything(model).values())
    assert (steps - probe.images).abs().max() <= 12 / 255 + 1e-6
    assert (steps - probe.start).abs().max() <= 8 / 255 + 1e-6
    assert steps.min() >= 0 and steps.max() <= 1
    assert (steps - probe.images).abs().max() > 10 / 255  # and uses it


# ---- 5.7.2: how many ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "maps", "pruned"),
    [
        (lambda: PreActResNet(18, 64, 10, 32), 4800, 75),
        (lambda: ResNet(18, 64, 10, 32), 4800, 75),
        (lambda: ResNet(34, 64, 10, 32), 8512, 133),
        (lambda: VGG(11, 64, 10), 2752, 43),
        (lambda: VGG(13, 64, 10), 2944, 46),
        (lambda: VGG(16, 64, 10), 4224, 66),
        (lambda: VGG(19, 64, 10), 5504, 86),
    ],
    ids=["preact_resnet18", "resnet18", "resnet34", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"],
)
def test_2_counts_of_the_published_networks(make: Callable[[], nn.Module], maps: int, pruned: int) -> None:
    with torch.device("meta"):
        model = Classifier(make(), 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    channels = [layer.channels for layer in prunable_channels(model)]
    chosen = defense(p=64, fraction=None)
    assert sum(channels) == maps and sum(chosen.loses(count) for count in channels) == pruned


def test_2_counts_relative_to_width() -> None:
    assert [defense(fraction=None, p=64).loses(count) for count in (1, 63, 64, 127, 128, 512)] == [0, 0, 1, 1, 2, 8]
    assert [defense(fraction=0.0625).loses(count) for count in (1, 2, 16, 31, 32, 128)] == [0, 1, 1, 1, 2, 8]
    assert [defense(fraction=0.29).loses(count) for count in (10, 100)] == [2, 29]  # 0.29 * 100 is 28.999…
    assert defense(fraction=1.0).loses(8) == 7  # a layer never loses all
    assert defense(fraction=None, p=2).loses(1) == 0


def test_2_p_beyond_every_layer_is_plain_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmp, "rank", None)  # and costs no ranking
    shared = {"epochs": 3, "batch_size": 8, "lr": 0.02, "weight_decay": 1e-3}
    tuning = compose(["defense=ft", "dataset=cifar10"])["defense"]
    plain = purify(network("resnet18"), few(), build({**tuning, **shared}, "defense"))
    notes: dict[str, Any] = {}
    off = purify(network("resnet18"), few(), defense(p=1000, fraction=None, lr_min=0.0, **shared), notes=notes)
    assert same(state(plain), state(off)) and not same(state(off), state(network("resnet18")))
    assert notes["pruned"] == {} and notes["pruned_maps"] == 0


# ---- 5.7.3: pruned maps are dead, and stay so -----------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("epochs", [0, 3])
@pytest.mark.parametrize("name", FEW)
def test_3_each_layer_loses_its_share_for_good(name: str, epochs: int) -> None:
    """Assertions 2 and 3: so many maps of each layer, and no others, are 0 before (no epochs) and after tuning."""
    notes: dict[str, Any] = {}
    chosen = defense(epochs=epochs, lr=0.05, weight_decay=1e-3)
    purified = purify(network(name), few(), chosen, notes=notes)
    layers = prunable_channels(purified)
    for layer in layers:
        pruned = notes["pruned"][layer.name]
        assert len(set(pruned)) == max(1, layer.channels // 4)
        zero = layer.conv.weight.detach().flatten(1).abs().amax(1) == 0
        assert zero.nonzero()[:, 0].tolist() == pruned  # ascending, and no others
    assert notes["pruned_maps"] == sum(len(channels) for channels in notes["pruned"].values())
    assert notes["maps"] == sum(layer.channels for layer in layers)

    normed: dict[str, Tensor] = {}  # copied at once: some networks activate in place
    norms = {layer.name: layer.norm for layer in layers if layer.norm is not None}
    for key, norm in norms.items():
        norm.register_forward_hook(lambda _, __, output, key=key: normed.update({key: output.clone()}))
    inputs = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    outputs = fmp.convolved(purified, notes["pruned"], inputs)
    for key, channels in notes["pruned"].items():
        for run in outputs[key]:
            assert (run[:, channels] == 0).all() and run.abs().amax() > 0
        assert key not in norms or (normed[key][:, channels] == 0).all()
    assert bool(norms) == (name not in ("timm_convnext", "plain", "tied"))


def test_3_without_the_mask_filters_grow_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect of the authors' code (5.8), so that the test above is known to see it."""
    plain = fmp.fit
    monkeypatch.setattr(fmp, "fit", lambda *given, after_step, **named: plain(*given, **named))
    notes: dict[str, Any] = {}
    purified = purify(network("preact10"), few(), defense(), notes=notes)
    layers = {layer.name: layer for layer in prunable_channels(purified)}
    grown = [name for name, gone in notes["pruned"].items() if layers[name].conv.weight[gone].abs().max() > 0]
    assert {layers[name].norm is None for name in grown} == {True}  # paired with a norm whose scale is 0, they stay


# ---- 5.7.4: the intended map, whatever the order of registration ----------------------------------------------------


def test_4_a_map_pruned_by_hand_is_the_map_that_is_zero() -> None:
    inputs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    shared = network("preact10")
    order = [layer.name for layer in prunable_channels(shared)]
    registered = [name for name, module in shared.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(order) == sorted(registered) and any("shortcut" in name for name in order)
    for name in order:
        model = copy.deepcopy(shared)
        layers = prunable_channels(model)
        channel = next(layer.channels for layer in layers if layer.name == name) - 2
        fmp.eraser(layers, {name: [channel]})()
        for layer, (output,) in fmp.convolved(model, everything(model), inputs).items():
            dead = [c for c in range(output.shape[1]) if output[:, c].abs().max() == 0]
            assert dead == ([channel] if layer == name else [])


@pytest.mark.wide
def test_4_scores_belong_to_the_maps_they_name() -> None:
    """Layers asked for alone, or in another order, get the same scores."""
    model = network("preact10")
    probe = probed(model)
    together = fmp.rank(model, everything(model), probe, 8 / 255, "float32")
    for name, channels in reversed(everything(model).items()):
        alone = fmp.rank(model, {name: channels[1:]}, probe, 8 / 255, "float32")[name]
        torch.testing.assert_close(alone.loss, together[name].loss[1:], rtol=1e-4, atol=1e-4)


def test_a_batch_norm_of_a_sum_keeps_its_scale() -> None:
    """5.8: in PreAct blocks the norm registered after a convolution may read a residual sum."""
    model = copy.deepcopy(network("preact10"))
    layers = prunable_channels(model)
    fmp.eraser(layers, {layer.name: [0] for layer in layers if "conv2" in layer.name or "shortcut" in layer.name})()
    before, after = state(network("preact10")), state(model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and not [name for name in changed if "bn" in name]
    fmp.eraser(layers, {"net.layer2.0.conv1": [1]})()
    assert model.net.layer2[0].bn2.weight[1] == model.net.layer2[0].bn2.bias[1] == 0


# ---- 5.7.5: the same ranking, whoever asks --------------------------------------------------------------------------


@pytest.mark.wide
def test_5_the_ranking_depends_on_the_seed_alone() -> None:
    def pruned(model: nn.Module, seed: int = 0) -> Any:
        notes: dict[str, Any] = {}
        purify(model, few(), defense(epochs=0), seed=seed, notes=notes)
        return notes["pruned"]

    training = copy.deepcopy(network("preact10")).train()
    assert pruned(network("preact10")) == pruned(network("preact10")) == pruned(training)
    assert pruned(network("preact10")) != pruned(network("preact10"), seed=1)


# ---- the ranking itself ---------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("name", FEW)
def test_batched_scores_are_those_of_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is exact about what a convolution returned: plain has in-place activations, tied runs it twice."""
    monkeypatch.setattr(fmp, "VALUES", 3 * 10**6)  # several copies, and several chunks a layer
    model = network(name)
    maps = dict(list(everything(model).items())[:: 1 if name in ("plain", "tied", "preact10") else 6])
    probe = probed(model)
    ranks = fmp.rank(model, maps, probe, 8 / 255, "float32")
    for layer, (hits, losses) in one_by_one(model, maps, probe, 8 / 255).items():
        torch.testing.assert_close(ranks[layer].loss, losses, rtol=1e-3, atol=1e-3)
        assert torch.equal(ranks[layer].hits, hits)


def test_a_push_moves_its_map_more_than_chance() -> None:
    model = network("preact10")
    probe = probed(model)
    name = "net.layer2.0.conv2"
    clean = fmp.convolved(model, {name: None}, probe.images)[name][0].detach()

    def moved(inputs: Tensor) -> Tensor:
        return (fmp.convolved(model, {name: None}, inputs)[name][0].detach() - clean).square().mean((0, 2, 3))

    start = probe.start.clone().requires_grad_()
    after = fmp.convolved(model, {name: None}, start)[name][0]
    for channel in range(8):
        pushed = fmp.push(start, after, after.detach() - clean, [channel], 4 / 255)[0]
        signs = torch.randint(0, 2, start.shape, generator=torch.Generator().manual_seed(channel)) * 2 - 1
        chance = (probe.start + 4 / 255 * signs).clamp(0, 1)
        assert moved(pushed)[channel] > 1.5 * moved(chance)[channel]


def test_the_probe_is_plain_pixels() -> None:
    """5.8: neither augmented nor normalised; the network sees [0, 1] while it is ranked."""
    holdout = few()
    found = fmp.draw(holdout, 8, 4 / 255, Stream(0))
    stored = holdout.images.float() / 255
    rows = [int((stored == image).flatten(1).all(1).nonzero()) for image in found.images]
    assert len(set(rows)) == 8 and torch.equal(found.labels, holdout.labels[rows])
    step = (found.start - found.images).abs()
    inside = (found.images > 4 / 255) & (found.images < 251 / 255)
    torch.testing.assert_close(step[inside], torch.full_like(step[inside], 4 / 255))
    assert found.start.min() >= 0 and found.start.max() <= 1
    assert len(fmp.draw(holdout, 500, 4 / 255, Stream(0)).labels) == 24  # all it has
    model, extremes = copy.deepcopy(network("preact10")), []
    model.register_forward_pre_hook(lambda module, given: extremes.append((given[0].min(), given[0].max())))
    fmp.rank(model, {"net.conv1": range(4)}, found, 8 / 255, "float32")
    assert extremes and all(low >= 0 and high <= 1 for low, high in extremes)


def test_ties_go_by_loss() -> None:
    hits, loss = torch.tensor([3, 1, 3, 1, 2]), torch.tensor([0.5, 0.1, 0.7, 0.2, 9.0])
    ranks = Ranks(range(10, 15), 4, hits, loss)
    assert [ranks.worst(count, "loss") for count in (1, 2, 3, 4)] == [[13], [11, 13], [11, 13, 14], [11, 12, 13, 14]]
    assert [ranks.worst(count, "index") for count in (1, 4)] == [[11], [10, 11, 13, 14]]
    found = ranks.summary()
    assert found == pytest.approx({"least": 0.25, "median": 0.5, "largest": 0.75, "tied": 0.4})


def test_copies_keep_to_the_memory() -> None:
    assert [fmp.copies_for(fmp.VALUES // share, 512) for share in (1, 2, 7, 8, 100)] == [1, 2, 4, 8, 8]
    assert fmp.copies_for(10 * fmp.VALUES, 512) == 1 and fmp.copies_for(1, 5) == 4
    assert fmp.copies_for(32 * 614_400, 512) == 8  # PreAct-ResNet-18 at 32 px, 32 images


def test_bfloat16_scores_are_close() -> None:
    model = network("resnet18")
    probe = probed(model)
    maps = {"net.layer2.0.conv1": range(8)}
    exact, rounded = (fmp.rank(model, maps, probe, 8 / 255, p)["net.layer2.0.conv1"] for p in ("float32", "bf16"))
    torch.testing.assert_close(exact.loss, rounded.loss, rtol=0.05, atol=0.05)


# ---- fine-tuning ----------------------------------------------------------------------------------------------------


def test_the_cosine_ends_where_torchs_does() -> None:
    recipe = bare_recipe(
        "t", optimizer="sgd", epochs=10, batch_size=8, lr=0.01, momentum=0.9, weight_decay=0.0, schedule="cosine", augment=None,
        precision="float32",
    )  # fmt: skip
    ours = CosineTo(**{**vars(recipe), "lr_min": 1e-4})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=1e-4)
    for epoch in range(10):
        assert ours.rate(epoch * 3, 3) == ours.rate(epoch * 3 + 2, 3) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert ours.rate(30, 3) == pytest.approx(1e-4)
    plain = CosineTo(**{**vars(recipe), "lr_min": 0.0})
    assert all(plain.rate(step, 3) == recipe.rate(step, 3) for step in range(30))


def test_the_tuning_uses_that_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    from backdoorbench.training import fit as module

    rates: list[float] = []
    plain = module.set_rate
    monkeypatch.setattr(module, "set_rate", lambda optimizer, rate: (rates.append(rate), plain(optimizer, rate))[1])
    purify(network("plain"), few(), defense(epochs=4, lr_min=1e-4))
    assert len(rates) == 12 and rates[0] == 0.01
    assert rates[-1] == pytest.approx(1e-4 + 0.0099 * (1 + math.cos(math.pi * 3 / 4)) / 2)


# ---- section 9, and what a defense owes its caller ------------------------------------------------------------------


def test_9_zero_epochs_and_nothing_to_prune_change_nothing() -> None:
    for name in ("preact10", "plain"):
        assert same(state(purify(network(name), few(), defense(p=1000, fraction=None, epochs=0))), state(network(name)))


@pytest.mark.wide
@pytest.mark.parametrize("name", ["preact10", "plain"])
def test_9_the_same_seed_the_same_weights(name: str) -> None:
    model, holdout = network(name), few()
    before, kept = state(model), holdout.images.clone()
    first = purify(model, holdout, defense())
    assert same(state(first), state(purify(model, holdout, defense())))
    assert not same(state(first), state(purify(model, holdout, defense(), seed=1)))
    assert same(state(model), before) and torch.equal(holdout.images, kept)  # inputs are left alone
    assert all(value.isfinite().all() for value in state(first).values())
    assert not any(module.training for module in first.modules()) and all(p.requires_grad for p in first.parameters())


def test_9_a_holdout_smaller_than_a_batch_and_a_probe() -> None:
    notes: dict[str, Any] = {}
    seen: list[int] = []
    chosen = defense(epochs=3, batch_size=256, probe_images=32)
    purified = purify(network("preact10"), few(6), chosen, notes=notes, probe=lambda model, epoch: seen.append(epoch))
    assert seen == [0, 1, 2] and notes["probe"]["images"] == 6
    assert not same(state(purified), state(network("preact10")))


@pytest.mark.wide
def test_bn_mode_eval_keeps_the_statistics() -> None:
    before = state(network("resnet18"))
    after = state(purify(network("resnet18"), few(), defense(bn_mode="eval")))
    assert all(torch.equal(after[name], before[name]) for name in before if "running" in name)


def test_notes_tell_what_was_pruned_and_why() -> None:
    notes: dict[str, Any] = {}
    purify(network("preact10"), few(), defense(epochs=0), notes=notes)
    assert set(notes) == {"probe", "probe_accuracy", "pruned", "pruned_maps", "maps"}
    assert notes["pruned"].keys() == notes["probe_accuracy"].keys() == everything(network("preact10")).keys()
    for found in notes["probe_accuracy"].values():
        assert 0 <= found["least"] <= found["median"] <= found["largest"] <= 1 and 0 < found["tied"] <= 1
    assert set(notes["probe"]) == {"images", "clean", "start"}


def test_networks_without_maps_are_refused() -> None:
    vit = TimmSpec("t", None, "test_vit", False, "auto").net(10, 32)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    for net in (vit, linear):
        model = Classifier(net, 32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).eval()
        with pytest.raises(ModelError, match="has no feature maps to prune: .* Choose a convolutional network"):
            purify(model, few(), defense())


def test_the_published_values_are_the_defaults() -> None:
    ours = option("defense", "fmp")
    names = (
        "p",
        "fraction",
        "eps_255",
        "start_255",
        "probe_images",
        "epochs",
        "batch_size",
        "lr",
        "lr_min",
        "momentum",
    )
    assert [ours[name] for name in names] == [64, None, 1.0, 1.0, 32, 10, 256, 0.01, 1e-4, 0.9]
    assert ours["weight_decay"] == 0 and frozenset({"model", "holdout"}) == FMP.needs


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("p", 1),
        ("fraction", 1.5),
        ("eps_255", -1.0),
        ("start_255", 0.0),
        ("probe_images", 0),
        ("lr_min", 0.5),
        ("epochs", -1),
    ],
)
def test_a_setting_out_of_range_is_named(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"defense.{setting} is {value:g}; expected a number"):
        defense(**{setting: value})


# ---- effect ---------------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_a_run_tells_what_it_did(run: Callable[..., Job]) -> None:
    done = run(
        "attack=badnets", "defense=fmp", "defense.epochs=2", "defense.probe_images=8", *QUICK, "curve.every=1"
    ).run
    assert done.status == "done" and [point["epoch"] for point in done.purification.curve] == [1, 2]
    assert 0 < done.purification.notes["pruned_maps"] < done.purification.notes["maps"] and json.dumps(
        done.purification.notes
    )


@pytest.mark.slow
def test_9_effect_on_digits(run: Callable[..., Job]) -> None:
    """Means over three seeds. (Blended survives FMP on digits, at any share of maps that leaves the network its accuracy.)"""
    runs = [run("attack=badnets", "defense=fmp", f"seed={seed}").run for seed in range(3)]
    assert all((found.infected.asr or 0) >= 0.9 for found in runs if found.infected)
    after = [found.purified.asr or 0 for found in runs if found.purified]
    loss = [found.infected.ca - found.purified.ca for found in runs if found.infected and found.purified]
    assert sum(after) / 3 <= 0.15 and sum(loss) / 3 <= 0.06


@pytest.mark.slow
def test_9_a_clean_model_loses_little(run: Callable[..., Job]) -> None:
    found = run("attack=none", "defense=fmp").run
    assert found.infected is not None and found.purified is not None
    assert found.infected.ca - found.purified.ca <= 0.06
