"""Grond: its universal pattern, and the hardening that is a switch of every data poisoning.

python -m pytest tests/test_grond.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK
from test_poisoning import attack
from test_surrogate_attacks import RECIPE, calls, classifier, task
from test_surrogate_attacks import made as made
from test_surrogate_attacks import trained as trained
from torch import nn

from backdoorbench.attacks import base
from backdoorbench.attacks.base import Infection, Task
from backdoorbench.config.build import build as build_recipe
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.models.lipschitz import even_out, lipschitz, outlying
from backdoorbench.models.surgery import conv_norm_pairs
from backdoorbench.pipeline import plan
from backdoorbench.reporting import rows
from backdoorbench.shapes import to_float
from backdoorbench.streams import Stream
from backdoorbench.training.adversarial import clipped
from backdoorbench.training.fit import Snapshots
from backdoorbench.training.sprint import Lookahead


def normed(stream: Stream) -> nn.Module:
    """A convolution that a batch norm reads, and a line."""
    layers = [nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 10)]
    return classifier(stream, *layers)


def build(network: Any) -> Any:
    return lambda images, model=None: Task(images, network, replace(RECIPE, epochs=2), None, lambda: model)


# ---- what stands out ------------------------------------------------------------------------------------------------


def test_a_bound_is_the_filters_largest_singular_value_times_its_norms_scale() -> None:
    model = normed(Stream(0))
    (pair,) = conv_norm_pairs(model)
    with torch.no_grad():
        pair.norm.weight.copy_(torch.linspace(-2, 2, 8))
        pair.norm.running_var.copy_(torch.linspace(0.5, 3, 8))  # type: ignore[union-attr]
    found = lipschitz(pair)
    for channel in range(8):
        matrix = pair.conv.weight.detach()[channel].reshape(3, 25)
        scale = pair.norm.weight.detach()[channel].abs() / pair.norm.running_var[channel].sqrt()  # type: ignore[index]
        assert float(found[channel]) == pytest.approx(float(torch.linalg.svdvals(matrix)[0] * scale), rel=1e-5)


def test_what_exceeds_the_mean_by_u_deviations_is_outlying() -> None:
    scores = torch.tensor([1.0] * 19 + [9.0], dtype=torch.float64)
    assert outlying(scores, 3).nonzero()[:, 0].tolist() == [19]
    assert (
        not outlying(scores, 5).any() and not outlying(torch.ones(4), 3).any() and not outlying(torch.ones(1), 0).any()
    )
    assert outlying(torch.cat([scores, torch.tensor([float("inf")])]), 3).nonzero()[:, 0].tolist() == [19]


def test_outlying_channels_get_the_mean_and_the_others_stay() -> None:
    model = normed(Stream(0))
    (pair,) = conv_norm_pairs(model)
    with torch.no_grad():
        pair.norm.weight[3] = 40.0
        pair.norm.bias.copy_(torch.arange(8.0))
    scale, shift = pair.norm.weight.detach().clone(), pair.norm.bias.detach().clone()
    even_out([pair], 2)
    others = torch.arange(8) != 3
    assert float(pair.norm.weight[3].detach()) == pytest.approx(float(scale.mean()))
    assert float(pair.norm.bias[3].detach()) == pytest.approx(float(shift.mean()))
    assert torch.equal(pair.norm.weight[others], scale[others]) and torch.equal(pair.norm.bias[others], shift[others])


# ---- the switch -----------------------------------------------------------------------------------------------------


def infect(name: str, images: ImageSet, network: Any = normed, **changes: Any) -> Infection:
    chosen = attack(name, target=3, poison_rate=0.1, **changes)
    return chosen.infect(build(network)(images, network(Stream(1))), Stream(0))


@pytest.mark.parametrize("name", ["badnets", "badnets_bypass"])
def test_any_data_poisoning_is_hardened_where_asked(name: str, made: ImageSet) -> None:
    plain, hard = infect(name, made), infect(name, made, abi=0.5)
    assert plain.train is not None and hard.train is not None and torch.equal(plain.train.images, hard.train.images)
    assert not torch.equal(plain.model.state_dict()["net.1.weight"], hard.model.state_dict()["net.1.weight"])
    (pair,) = conv_norm_pairs(hard.model)
    before = pair.norm.weight.detach().clone()
    even_out([pair], 1e9)
    assert torch.equal(
        before, pair.norm.weight
    )  # the epoch's last act was to even out: the mean stands there more than once
    assert len(set(before.tolist())) < 8 or int(outlying(lipschitz(pair), 0.5).sum()) == 0


def test_channels_are_evened_out_after_every_epoch_and_a_killed_training_resumes_to_the_bit(
    made: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a recipe with slow weights, which follow."""
    sprint = build_recipe(compose(["dataset=cifar10", "train=airbench", "train.precision=float32"])["train"], "train")
    recipe = replace(sprint, epochs=4, batch_size=32, lookahead=Lookahead(1, 1, 0.95, 3.0))
    calls: list[float] = []

    def infected(snapshots: Snapshots | None, killed_at: int | None = None) -> Infection:
        def evened(pairs: Any, u: float) -> None:
            even_out(pairs, u)
            calls.append(u)
            if len(calls) == killed_at:
                raise KeyboardInterrupt

        calls.clear()
        monkeypatch.setattr(base, "even_out", evened)
        chosen = attack("badnets", target=3, poison_rate=0.1, abi=0.5)
        return chosen.infect(Task(made, normed, recipe, snapshots), Stream(0))

    whole = infected(None).model.state_dict()
    assert calls == [0.5] * 4
    snapshots = Snapshots(tmp_path / "state.pt", every_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        infected(snapshots, killed_at=3)
    resumed = infected(snapshots).model.state_dict()
    assert len(calls) == 2 and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_network_without_pairs_is_refused(made: ImageSet) -> None:
    with pytest.raises(ModelError, match="has no batch-norm layer"):
        infect("badnets", made, lambda stream: classifier(stream, nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), abi=3.0)
    with pytest.raises(ConfigError, match="attack.abi is -1; expected a number at least 0"):
        attack("badnets", abi=-1.0)


def test_where_it_is_off_keys_and_rows_are_what_they_were(outputs: Path) -> None:
    words = ("attack=badnets", *QUICK, f"runtime.outputs={outputs}")
    off, on = plan.plan(compose(words)), plan.plan(compose([*words, "attack.abi=3"]))
    assert "abi" not in off.infection_settings["attack"] and on.infection_settings["attack"]["abi"] == 3
    assert off.infection_key != on.infection_key and off.key != on.key
    node = off.config["attack"]
    older = {key: value for key, value in node.items() if key != "abi"}
    assert rows.compared({"attack": node}) == rows.compared({"attack": older})
    assert rows.compared({"attack": on.config["attack"]}) != rows.compared({"attack": older})


# ---- the pattern ----------------------------------------------------------------------------------------------------


def test_the_pattern_keeps_its_bound_and_sends_images_to_the_target(made: ImageSet, trained: nn.Module) -> None:
    chosen = attack("grond", target=3, poison_rate=0.05, steps=40)
    pattern = chosen.trigger(task(made, model=trained), Stream(0)).pattern
    assert pattern.shape == (3, 32, 32) and float(pattern.abs().max()) == pytest.approx(8 / 255)
    shown = (to_float(made.images) + pattern).clamp(0, 1)
    before, after = (calls(trained, images) == 3 for images in (made.images, shown))
    assert after.float().mean() > 0.9 > before.float().mean()
    few = replace(chosen, pattern_batch_size=4, steps=3)
    first, other = (few.trigger(task(made, model=trained), Stream(seed)).pattern for seed in (0, 1))
    assert not torch.equal(first, other)  # batches are drawn


def test_one_step_moves_every_value_by_one_step(made: ImageSet, trained: nn.Module) -> None:
    one = attack("grond", target=3, poison_rate=0.05, steps=1).trigger(task(made, model=trained), Stream(0)).pattern
    assert set((one * 255).round(decimals=3).flatten().tolist()) <= {-1.6, 0.0, 1.6} or torch.allclose(
        one.abs(), torch.full_like(one, 1.6 / 255)
    )


def test_pixels_that_are_black_in_every_image_are_moved(made: ImageSet, trained: nn.Module) -> None:
    black = replace(made, images=torch.zeros_like(made.images))
    one = attack("grond", target=3, poison_rate=0.05, steps=1).trigger(task(black, model=trained), Stream(0)).pattern
    assert float((one != 0).float().mean()) > 0.9


def test_the_pattern_is_that_of_a_plain_loop_over_fresh_batches(made: ImageSet, trained: nn.Module) -> None:
    chosen = attack("grond", target=3, poison_rate=0.05, steps=7, pattern_batch_size=32, epsilon=4)
    found = chosen.trigger(task(made, model=trained), Stream(5)).pattern
    orders = [Stream(5).child(f"pass{number}").child("order").permutation(100).split(32) for number in range(2)]
    delta = torch.zeros(1, 3, 32, 32)
    for batch in [*orders[0], *orders[1]][:7]:
        delta.requires_grad_()
        answers = trained(clipped(to_float(made.images[batch]) + delta))
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(answers, torch.full((len(batch),), 3)), delta)
        delta = (delta.detach() - 1.6 / 255 * gradient.sign()).clamp(-4 / 255, 4 / 255)
    assert len(made) == 100 and ((found - delta[0]).abs() < 1e-6).float().mean() > 0.99  # signs of gradients near 0


def test_images_of_the_target_alone_carry_it_and_labels_stay(made: ImageSet, trained: nn.Module) -> None:
    chosen = attack("grond", target=3, poison_rate=0.05, steps=3)
    trigger, planted = chosen.plant(task(made, model=trained), Stream(0))
    poisoned = planted.poisoned
    assert int(poisoned.sum()) == 5 and (made.labels[poisoned] == 3).all()
    assert torch.equal(planted.train.labels, made.labels)
    assert torch.equal(planted.train.images[poisoned], trigger.bytes(to_float(made.images[poisoned])))
    assert torch.equal(planted.train.images[~poisoned], made.images[~poisoned])
