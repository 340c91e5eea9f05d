"""BTI-DBF and PAM: the specification's tests (baselines 2.15, purification 8.4 and 8.5): mask, bounds, generator, path."""

import copy
import importlib
from typing import Any

import pytest
import torch
from scenes import defense, few, network, purify, same, scenario, state
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.config.compose import option
from backdoorbench.defenses import pam
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.models.inputs import Swapped
from backdoorbench.models.unet import UNet
from backdoorbench.streams import Stream
from backdoorbench.training import inversion
from backdoorbench.training.fit import fit
from backdoorbench.training.inversion import FeatureMask, Inverter

SMALL: dict[str, Any] = {
    "rounds": 2, "width": 2, "pretrain_epochs": 2, "mask_epochs": 2, "generator_epochs": 2, "epochs": 2, "batch_size": 8, "augment": None,
}  # fmt: skip
NETS = ("preact10", "resnet18", "vgg16_bn", "timm_resnet", "timm_efficientnet")


def inverter(name: str = "preact10", notes: dict[str, Any] | None = None, **changes: Any) -> Inverter:
    chosen = defense("bti_dbf", **SMALL | changes)
    return Inverter(scenario(network(name), few(), chosen.needs, notes=notes), chosen.inversion, "bti_dbf")


def images() -> tuple[Tensor, Tensor]:
    return next(few().batches(24))


# ---- the generator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(32, 32), (8, 8), (17, 30)])
def test_a_u_net_keeps_any_side(sides: tuple[int, int]) -> None:
    net = UNet(2, 4)
    assert net(torch.zeros(2, 3, *sides)).shape == (2, 3, *sides)
    assert [layer.out_channels for layer in net.modules() if isinstance(layer, nn.ConvTranspose2d)] == [16, 8, 4, 2]


def test_distances_are_in_normalised_units() -> None:
    """0.03 in every pixel, of deviations 0.2, 0.3 and 0.4."""
    pixels, _ = images()
    found = inverter().distance(pixels, pixels + 0.03)
    assert found.item() == pytest.approx(sum((0.03 / std) ** 2 for std in (0.2, 0.3, 0.4)) / 3, rel=1e-4)


def test_a_network_that_reads_blue_first_is_inverted_in_the_units_of_its_channels() -> None:
    """1 in red alone, which it reads last and divides by 0.4."""
    model = network()
    model.crop = nn.Sequential(model.crop, Swapped())
    chosen = defense("bti_dbf", **SMALL)
    made = Inverter(scenario(model, few(), chosen.needs), chosen.inversion, "bti_dbf")
    pixels, _ = images()
    red = torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    assert made.distance(pixels, pixels + red).item() == pytest.approx((1 / 0.4) ** 2 / 3, rel=1e-4)
    torch.testing.assert_close(made.generator.normalize(pixels).flip(1), model.normalize(model.crop(pixels)))


@pytest.mark.slow
def test_it_learns_the_identity() -> None:
    made = inverter(pretrain_epochs=40, width=8)
    pixels, _ = images()
    before = made.distance(pixels, made.generator(pixels))
    weights = state(made.model)
    made.imitate()
    assert made.distance(pixels, made.generator(pixels)) < before / 2
    assert same(state(made.model), weights) and all(p.requires_grad for p in made.model.parameters())


@pytest.mark.parametrize(("shift", "weight"), [(0.0, 0.01), (0.2, 100.0)])
def test_the_loss_of_the_identity_by_hand(shift: float, weight: float) -> None:
    """Predictions, features, and the image: a hundred times its distance where that is above 0.1, a hundredth below."""
    made = inverter()
    pixels, labels = images()
    painted = (pixels + shift) * 0.999
    clean, moved = made.stem(pixels), made.stem(painted)
    answers = -(made.model(pixels).softmax(1) * made.model(painted).log_softmax(1)).sum(1).mean()
    far = made.distance(pixels, painted)
    assert (far > 0.1) == (shift > 0)
    expected = answers + F.mse_loss(clean, moved) + weight * far
    torch.testing.assert_close(made.imitation(lambda _: painted, pixels, labels), expected)  # type: ignore[arg-type]


def test_generated_images_are_the_first_of_a_batch_and_one_more_than_the_share() -> None:
    made = inverter(share=0.1)
    pixels, _ = images()
    mixed = made.mix(pixels)
    changed = (mixed != pixels).flatten(1).any(1)
    assert changed.tolist() == [True] * 3 + [False] * 21  # floor(2.4) + 1
    assert torch.equal(mixed[:3], made.generator(pixels[:3])) and not mixed.requires_grad
    assert len(inverter(share=1.0).mix(pixels)) == 24


# ---- the mask -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_halves_give_the_models_logits_under_a_mask_of_ones(name: str) -> None:
    made = inverter(name)
    pixels, _ = images()
    features = made.stem(pixels)
    assert made.mask.shape == (1, *features.shape[1:])
    torch.testing.assert_close(made.head(made.mask * features), made.model(pixels))


def test_a_transformer_is_refused_before_any_work() -> None:
    for name in ("bti_dbf", "pam"):
        with pytest.raises(ModelError, match="VisionTransformer has no stage that returns a convolutional"):
            purify(network("timm_vit"), few(), defense(name, **SMALL))


def test_the_mask_is_tanh_of_normal_numbers_within_0_and_1() -> None:
    mask = FeatureMask((1, 50, 20, 20), Stream(0))
    assert torch.equal(mask(), mask.v.tanh() / (2 + 1e-7) + 0.5)
    assert 0 < mask().min() and mask().max() < 1
    drawn = mask.v.detach()
    assert abs(float(drawn.mean())) < 0.05 and float(drawn.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.wide
def test_the_mask_learns_on_a_copy() -> None:
    """Cross-entropy with it falls, without it rises; the model and its statistics stay."""
    made = inverter(mask_epochs=30, mask_lr=0.1)
    pixels, labels = images()
    weights = state(made.model)
    mask = made.learn_mask(0)
    assert same(state(made.model), weights) and not mask.requires_grad and 0 <= mask.min() and mask.max() <= 1
    start = made.learn_mask.__func__(inverter(mask_epochs=0), 0)

    def gap(kept: Tensor) -> float:
        twin = inverter()
        twin.model.train()
        features = twin.stem(pixels)
        benign, rest = (F.cross_entropy(twin.head(part * features), labels) for part in (kept, 1 - kept))
        return float(benign.detach() - rest.detach())

    assert gap(mask) < gap(start)


# ---- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("far", "benign", "expected"),
    [
        (0.30, 3.0, 0.03 - 7.0),  # at the bounds, not beyond
        (0.31, 1.0, 0.31),
        (0.10, 3.1, 0.10),
        (0.50, 9.0, 0.50),
    ],
)
def test_a_bound_that_is_passed_leaves_the_distance_alone(far: float, benign: float, expected: float) -> None:
    found = inverter().switched(torch.tensor(far), torch.tensor(benign), torch.tensor(7.0))
    assert found.item() == pytest.approx(expected)


def test_the_loss_of_the_inversion_by_hand() -> None:
    made = inverter(image_bound=1e9, feature_bound=1e9)
    made.mask = torch.rand(made.mask.shape, generator=torch.Generator().manual_seed(0))
    pixels, labels = images()
    painted = made.generator(pixels)
    clean, moved = made.stem(pixels), made.stem(painted)
    kept, rest = ((part * clean, part * moved) for part in (made.mask, 1 - made.mask))
    by_hand = 0.01 * F.mse_loss(*kept) - F.mse_loss(*rest)
    torch.testing.assert_close(made.inversion(made.generator, pixels, labels), by_hand)
    made.target = 4
    drawn = F.cross_entropy(made.model(painted), torch.full((24,), 4))
    torch.testing.assert_close(made.inversion(made.generator, pixels, labels), by_hand + drawn)


def test_the_target_is_what_the_first_round_finds_and_stays() -> None:
    notes: dict[str, Any] = {}
    made = inverter(notes=notes)
    answers = iter([torch.tensor([1, 5, 2]), torch.tensor([6, 1, 1])])
    made.call = lambda stream: next(answers)  # type: ignore[method-assign]
    made.invert(0)
    made.invert(1)
    assert made.target == 1 and notes == {"target": 1, "called_target_round1": 0.625, "called_target_round2": 0.125}


def test_the_target_is_read_from_images_under_a_little_noise() -> None:
    """Of deviation 0.03 in normalised units: 0.006, 0.009 and 0.012 of a pixel here."""
    made = inverter()
    shown: list[Tensor] = []
    made.generator.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    called = made.call(Stream(0))
    noise = torch.cat(shown) - images()[0]
    for channel, std in enumerate((0.2, 0.3, 0.4)):
        assert float(noise[:, channel].std()) == pytest.approx(0.03 * std, rel=0.02)
    assert int(called.sum()) == 24 and len(called) == 10


# ---- unlearning -----------------------------------------------------------------------------------------------------


def test_the_loss_of_unlearning_by_hand() -> None:
    from backdoorbench.defenses.bti_dbf import unlearning

    made = inverter()
    pixels, labels = images()
    mixed = made.mix(pixels)
    expected = F.cross_entropy(made.model(mixed), labels) + F.mse_loss(made.stem(mixed), made.stem(pixels))
    torch.testing.assert_close(unlearning(made)(made.model, pixels, labels), expected)


@pytest.mark.wide
def test_unlearning_trains_the_network_and_never_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    from backdoorbench.defenses import bti_dbf

    made: list[tuple[Inverter, dict[str, Tensor]]] = []
    plain = bti_dbf.unlearning
    monkeypatch.setattr(bti_dbf, "unlearning", lambda inverter: (made.append((inverter, state(inverter.generator))), plain(inverter))[1])  # fmt: skip
    before = network()
    after = purify(before, few(), defense("bti_dbf", **SMALL))
    assert len(made) == 2 and not same(state(after), state(before))
    assert same(made[1][1], state(made[1][0].generator))  # as the last inversion left it


@pytest.mark.wide
@pytest.mark.parametrize("name", ["bti_dbf", "pam"])
def test_moments_outlast_the_rounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the authors' code: one optimiser of the network and one of the generator, made before the first round."""
    given: dict[str, Any] = {}
    module = importlib.import_module(f"backdoorbench.defenses.{name}")

    def watched(network: nn.Module, holdout: Any, recipe: Any, stream: Stream, **named: Any) -> Any:
        given[stream.path.rpartition("/")[2]] = named["optimizer"]
        return fit(network, holdout, recipe, stream, **named)

    for place in (inversion, module):
        monkeypatch.setattr(place, "fit", watched)
    purify(network(), few(), defense(name, **SMALL))
    assert given["imitate"] is given["mask0"] is given["mask1"] is None  # each has its own
    for part in ("unlearn", "generate"):
        assert given[f"{part}0"] is given[f"{part}1"] and given[f"{part}0"].state
    assert given["unlearn0"] is not given["generate0"]


@pytest.mark.wide
@pytest.mark.parametrize("name", ["bti_dbf", "pam"])
def test_without_passes_of_unlearning_the_model_is_as_it_was(name: str) -> None:
    """To the bit, and also where the holdout is a single image: the inversion leaves no trace in it."""
    before = state(network())
    for count in (24, 1):
        assert same(state(purify(network(), few(count), defense(name, **SMALL | {"epochs": 0}))), before)


# ---- the path -------------------------------------------------------------------------------------------------------


def test_the_point_lies_rho_towards_the_infected_weights() -> None:
    model = network()
    weights = dict(model.named_parameters())
    infected = {name: value.detach() + torch.randn_like(value) for name, value in weights.items()}
    there = pam.on_path(weights, infected, 0.5)
    steps = {name: (there[name] - weights[name]).detach() for name in weights}
    assert float(pam.length(steps)) == pytest.approx(0.5, rel=1e-4)
    ways = pam.apart(weights, infected)
    whole = float(pam.length(ways))
    for name in weights:
        torch.testing.assert_close(steps[name], ways[name] * 0.5 / whole, rtol=1e-3, atol=1e-6)


def test_at_the_infected_weights_the_point_is_where_they_are() -> None:
    weights = dict(network().named_parameters())
    infected = {name: value.detach().clone() for name, value in weights.items()}
    there = pam.on_path(weights, infected, 0.5)
    assert all(torch.equal(there[name], weights[name]) for name in weights)


def test_the_gradient_is_the_one_at_the_point_and_the_weights_stay() -> None:
    made = inverter()
    model, (pixels, labels) = made.model, images()
    weights = state(model)
    infected = {name: value.detach() + torch.randn_like(value) / 10 for name, value in model.named_parameters()}
    kept = {name: value.clone() for name, value in infected.items()}
    pam.path_aware(made, infected, 0.5)(model, pixels, labels).backward()
    assert same(state(model), weights) and same(infected, kept)  # to the bit
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in pam.on_path(dict(model.named_parameters()), infected, 0.5).items():
            moved.get_parameter(name).copy_(value)
    moved.zero_grad()
    F.cross_entropy(moved(made.mix(pixels)), labels).backward()
    for (name, here), there in zip(model.named_parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(here.grad, there.grad, msg=name)


@pytest.mark.wide
def test_rho_0_is_plain_unlearning_with_the_same_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = purify(network(), few(), defense("pam", **SMALL, rho=0.0))
    elsewhere = purify(network(), few(), defense("pam", **SMALL, rho=0.5))

    def plain(inverter: Inverter, infected: Any, rho: float) -> Any:
        return lambda model, pixels, labels: F.cross_entropy(model(inverter.mix(pixels)).float(), labels)

    monkeypatch.setattr(pam, "path_aware", plain)
    assert same(state(ours), state(purify(network(), few(), defense("pam", **SMALL))))
    assert not same(state(ours), state(elsewhere))


# ---- settings -------------------------------------------------------------------------------------------------------


def test_both_invert_alike_but_for_rounds_and_share() -> None:
    first, second = option("defense", "bti_dbf"), option("defense", "pam")
    differ = {key for key in first.keys() & second.keys() if first[key] != second[key]}
    assert differ == {"_target_", "name", "rounds", "share", "lr"}
    assert (first["rounds"], first["share"], first["lr"]) == (5, 0.1, 1e-4)
    assert (second["rounds"], second["share"], second["lr"], second["momentum"], second["rho"]) == (
        3,
        0.2,
        0.01,
        0.1,
        0.5,
    )


def test_a_setting_out_of_its_range_is_named() -> None:
    with pytest.raises(ConfigError, match="defense.rounds is 0; expected a number at least 1"):
        defense("pam", rounds=0)
    with pytest.raises(ConfigError, match="defense.rho is -1; expected a number at least 0"):
        defense("pam", rho=-1.0)
