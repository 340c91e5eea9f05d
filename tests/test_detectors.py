"""Detectors: the test lines of the specification (baselines 2.11, 4.1, 4.2, 5.1, 5.6), what all share, a backdoor on digits."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from backdoorbench.config.build import build, settings
from backdoorbench.data.digits import read_table
from backdoorbench.data.images import ImageSet
from backdoorbench.detectors import ac, nc, ss, strip
from backdoorbench.detectors.ac import AC
from backdoorbench.detectors.base import Detector
from backdoorbench.detectors.nc import NC
from backdoorbench.detectors.none import NoDetector
from backdoorbench.detectors.ss import SS
from backdoorbench.detectors.strip import STRIP
from backdoorbench.errors import ConfigError, DataError, ModelError
from backdoorbench.metrics import auc
from backdoorbench.models.base import Classifier, GlobalAverage
from backdoorbench.models.inputs import Grey, Swapped
from backdoorbench.shapes import Images, to_float
from backdoorbench.streams import Stream
from backdoorbench.training import reversal
from backdoorbench.training.fit import autocast, fit
from backdoorbench.training.recipe import Recipe
from backdoorbench.training.reversal import Penalties, Reversal, Stops, anomaly, index_of, outliers, reverse, squash
from backdoorbench.training.scenario import Scenario

CONF = Path(__file__).parents[1] / "conf" / "detector"
CLASSES: dict[str, type[Detector]] = {"strip": STRIP, "ac": AC, "ss": SS, "nc": NC}
RECIPE = Recipe(
    name="test", epochs=12, batch_size=64, optimizer="sgd", lr=0.05, momentum=0.9, nesterov=False, weight_decay=5e-4,
    schedule="cosine", warmup=0.0, milestones=(), decay=1.0, label_smoothing=0.0, augment=None, precision="float32",
    compile=False,
)  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {"strip": {"overlays": 5}, "nc": {"units": 3}, "ac": {}, "ss": {}}


def make(name: str, **changed: Any) -> Any:
    """The detector as its yaml has it, but for what is changed."""
    knobs: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    return build(knobs | changed, "detector")


def scenario(
    needs: frozenset[str],
    model: nn.Module | None = None,
    holdout: ImageSet | None = None,
    train: ImageSet | None = None,
    inputs: Images | None = None,
    seed: int = 0,
    notes: dict[str, Any] | None = None,
) -> Scenario:
    kept: dict[str, Any] = {} if notes is None else notes
    return Scenario(
        needs, model=model, holdout=holdout, train=train, inputs=inputs, build=lambda _: nn.Identity(), recipe=RECIPE,
        stream=Stream(seed).child("detect"), device=torch.device("cpu"), probe=lambda *_: None, note=kept.__setitem__,
    )  # fmt: skip


def small_net(classes: int = 10, size: int = 32) -> Classifier:
    """A convolutional network with a batch norm, in eval mode."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(True)]
    net = nn.Sequential(*layers, GlobalAverage(), nn.Linear(16, classes))
    return Classifier(net, size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


class Fixed(nn.Module):
    """Says the same of every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, images: Images) -> Tensor:
        return self.get_buffer("logits").expand(len(images), -1)


def wrap(net: nn.Module, size: int = 32) -> Classifier:
    return Classifier(net, size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).eval()


def noise(count: int, seed: int, size: int = 8, classes: int = 4) -> ImageSet:
    """Random images, each of a random brightness."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, size, size, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)
    return ImageSet((pixels * 255).byte(), torch.arange(count) % classes, tuple("abcdefghij"[:classes]))


@pytest.fixture
def offer(images: ImageSet) -> Callable[..., Scenario]:
    """offer(detector, seed): a scenario of exactly what the detector needs."""

    def build(detector: Detector, seed: int = 0, needs: frozenset[str] | None = None) -> Scenario:
        asked = detector.needs if needs is None else needs
        return scenario(asked, small_net(), images, images, to_float(images.images[:7]), seed)

    return build


# --- what all share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_a_verdict_has_one_score_and_one_flag_for_each_thing(name: str, offer: Callable[..., Scenario]) -> None:
    detector = make(name, **QUICK[name])
    verdict = detector.examine(offer(detector))
    count = {"inputs": 7, "rows": 120, "model": 10}[detector.judges]
    assert verdict.scores.shape == verdict.flagged.shape == (count,)
    assert verdict.scores.is_floating_point() and verdict.flagged.dtype == torch.bool
    assert verdict.scores.isfinite().all() and verdict.scores.device.type == "cpu"
    assert all(value is None or math.isfinite(value) for value in verdict.figures.values())


@pytest.mark.wide
@pytest.mark.parametrize("name", CLASSES)
def test_equal_seeds_give_bit_equal_verdicts(name: str, offer: Callable[..., Scenario]) -> None:
    detector = make(name, **QUICK[name])
    first, second = detector.examine(offer(detector)), detector.examine(offer(detector))
    assert torch.equal(first.scores, second.scores) and torch.equal(first.flagged, second.flagged)
    assert first.figures == second.figures
    assert all(torch.equal(first.pictures[key], second.pictures[key]) for key in first.pictures)


@pytest.mark.parametrize("name", CLASSES)
def test_model_and_images_are_left_unchanged(name: str, images: ImageSet) -> None:
    detector = make(name, **QUICK[name])
    model, inputs = small_net(), to_float(images.images[:7])
    before = copy.deepcopy((model.state_dict(), images.images, images.labels, inputs))
    model.net[0].weight.requires_grad_(False)  # type: ignore[index]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    detector.examine(scenario(detector.needs, model, images, images, inputs))
    after = (model.state_dict(), images.images, images.labels, inputs)
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1:], after[1:], strict=True))
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name, need", [(name, need) for name in CLASSES for need in sorted(CLASSES[name].needs)])
def test_nothing_is_seen_that_needs_do_not_name(name: str, need: str, offer: Callable[..., Scenario]) -> None:
    detector = make(name, **QUICK[name])
    with pytest.raises(PermissionError, match=f"'{need}' in its `needs`"):
        detector.examine(offer(detector, needs=detector.needs - {need}))


@pytest.mark.parametrize("name", ["none", *CLASSES])
def test_every_knob_has_its_home_in_the_yaml(name: str) -> None:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    kind = CLASSES.get(name, NoDetector)
    assert config._target_ == f"{kind.__module__}.{kind.__name__}"
    assert {str(key) for key in config} - {"_target_", "version"} == settings(kind).keys()
    assert (CONF / f"{name}.yaml").read_text().startswith(f"# bdx attack=badnets detector={name}\n")


@pytest.mark.parametrize(
    "name, key, value, expected",
    [
        ("strip", "overlays", 0, "at least 1"),
        ("strip", "alpha", -0.1, "at least 0"),
        ("strip", "fpr", 1.5, "between 0 and 1"),
        ("ac", "dimensions", 0, "at least 1"),
        ("ac", "max_share", 0.6, "between 0 and 0.5"),
        ("ac", "min_samples", 1, "at least 2"),
        ("ss", "remove_fraction", 1.1, "between 0 and 1"),
        ("nc", "units", 0, "at least 1"),
        ("nc", "batch_size", 0, "at least 1"),
        ("nc", "lr", -1, "at least 0"),
        ("nc", "penalty", -1, "at least 0"),
        ("nc", "multiplier", 0.5, "at least 1"),
        ("nc", "patience", 0, "at least 1"),
        ("nc", "success", 1.2, "between 0 and 1"),
        ("nc", "stop_patience", 0, "at least 1"),
        ("nc", "stop_factor", 1.2, "between 0 and 1"),
        ("nc", "threshold", -1, "at least 0"),
    ],
)
def test_knobs_out_of_range_are_refused(name: str, key: str, value: float, expected: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^detector.{key} is {value:g}; expected a number {expected}. Change detector.{key}."
    ):
        make(name, **{key: value})


def test_more_ranges() -> None:
    with pytest.raises(ConfigError, match=r"^detector.betas\[1\] is 1.5; expected a number between 0 and 1."):
        make("nc", betas=[0.5, 1.5])
    with pytest.raises(ConfigError, match="^detector.alpha is 2; expected a number between 0 and 1."):
        make("strip", blend="convex", alpha=2)
    assert make("strip", alpha=2).alpha == 2


def test_no_detector_judges_nothing() -> None:
    verdict = NoDetector("none").examine(scenario(frozenset()))
    assert len(verdict.scores) == len(verdict.flagged) == 0 and not NoDetector.needs


# --- STRIP -----------------------------------------------------------------------------------------------------------


def test_strip_entropy_is_zero_for_a_constant_classifier_and_flags_nothing(images: ImageSet) -> None:
    detector = make("strip", overlays=4)
    model = wrap(Fixed(torch.tensor([0.0, 100.0, 0.0])))
    verdict = detector.examine(scenario(detector.needs, model, images, inputs=to_float(images.images)))
    assert verdict.scores.abs().max() < 1e-5
    assert not verdict.flagged.any()


def test_strip_entropy_is_log_classes_for_a_uniform_classifier(images: ImageSet) -> None:
    detector = make("strip", overlays=4)
    model = wrap(Fixed(torch.zeros(7)))
    verdict = detector.examine(scenario(detector.needs, model, images, inputs=to_float(images.images)))
    torch.testing.assert_close(verdict.scores, torch.full((120,), -math.log(7)))


def test_strip_entropy_against_numpy() -> None:
    logits = torch.arange(12.0).mul(0.7).sin().mul(4).view(3, 4)
    p = np.exp(logits.double().numpy())
    p = p / p.sum(1, keepdims=True) + 1e-8
    np.testing.assert_allclose(strip.entropy(logits), -(p * np.log(p)).sum(1), rtol=1e-6)
    assert strip.entropy(logits.bfloat16()).dtype == torch.float32


def test_strip_adds_normalised_images_without_clamping(wave: Images) -> None:
    normalize = small_net().normalize
    mixed = strip.superimpose(wave, wave.flip(0), normalize.mean, 0.8, "add")
    torch.testing.assert_close(normalize(mixed), normalize(wave) + 0.8 * normalize(wave.flip(0)), rtol=1e-4, atol=1e-5)
    assert mixed.max() > 1
    convex = strip.superimpose(wave, wave.flip(0), normalize.mean, 0.3, "convex")
    torch.testing.assert_close(convex, 0.7 * wave + 0.3 * wave.flip(0))


def test_strip_adds_what_a_network_sees_that_reads_blue_first_or_grey(wave: Images) -> None:
    kinds: list[tuple[tuple[float, ...], tuple[float, ...], int, list[nn.Module]]] = [
        ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 3, [Swapped()]), ((0.4,), (0.3,), 1, [Grey()]),
    ]  # fmt: skip
    for mean, std, channels, first in kinds:
        seen = Classifier(nn.Identity(), 32, mean, std, channels, first)
        mixed = strip.superimpose(wave, wave.flip(0), strip.normalisation_mean(seen), 0.8, "add")
        torch.testing.assert_close(seen(mixed), seen(wave) + 0.8 * seen(wave.flip(0)), rtol=1e-4, atol=1e-5)


def brightness_net(size: int = 8) -> Classifier:
    """Unsure of some images and sure of others: random weights, large logits."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * (size // 2) ** 2, 4))
    with torch.no_grad():
        net[3].weight.mul_(6)
    return wrap(net, size)


@pytest.mark.parametrize("clean", [1200, 16])  # halves of the holdout; all of it for both
def test_strip_flags_clean_images_at_the_nominal_rate(clean: int) -> None:
    detector = make("strip", overlays=6)
    shares = []
    for seed in range(1 if clean > 100 else 60):
        fresh = to_float(noise(1000 if clean > 100 else 100, 1000 + seed).images)
        notes: dict[str, Any] = {}
        offered = scenario(detector.needs, brightness_net(), noise(clean, seed), inputs=fresh, seed=seed, notes=notes)
        verdict = detector.examine(offered)
        shares.append(float(verdict.flagged.float().mean()))
        assert notes["calibration_images"] == (600 if clean > 100 else 16)
    nominal = math.floor(0.1 * (clean + 1)) / (clean + 1) if clean < 100 else 0.1  # of 16 images: 1 / 17
    assert abs(sum(shares) / len(shares) - nominal) < 0.03


def test_strip_threshold_is_a_rank_that_keeps_the_rate() -> None:
    values = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0])  # 9 of them: a tenth of 10 places
    assert strip.quantile(values, 0.1) == 1.0
    assert strip.quantile(values, 0.29) == 2.0
    assert strip.quantile(values, 0.0999) == -math.inf
    assert strip.quantile(values, 1.0) == 9.0


def test_strip_flags_nothing_where_the_holdout_sets_no_threshold(caplog: pytest.LogCaptureFixture) -> None:
    detector = make("strip", overlays=3)
    notes: dict[str, Any] = {}
    inputs = to_float(noise(9, 1).images)
    verdict = detector.examine(scenario(detector.needs, brightness_net(), noise(4, 0), inputs=inputs, notes=notes))
    assert not verdict.flagged.any() and notes["threshold"] is None and verdict.scores.unique().numel() > 1
    assert "4 clean images set no threshold that flags at most 0.1 of the clean inputs" in caplog.text


def test_strip_needs_two_clean_images_and_a_normalisation() -> None:
    detector = make("strip", overlays=3)
    with pytest.raises(
        DataError, match="^strip lays clean images over each other, but the holdout has 1; expected at least 2"
    ):
        detector.examine(scenario(detector.needs, brightness_net(), noise(1, 0), inputs=to_float(noise(9, 1).images)))
    with pytest.raises(
        ModelError, match="^strip adds images as the network sees them, but this Fixed has no normalisation"
    ):
        strip.normalisation_mean(Fixed(torch.zeros(3)))


def test_strip_draws_from_a_named_stream(images: ImageSet) -> None:
    detector = make("strip", overlays=3)
    seen = [
        detector.examine(
            scenario(detector.needs, small_net(), images, inputs=to_float(images.images), seed=seed)
        ).scores
        for seed in (0, 0, 1)
    ]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    drawn = strip.draw(50, 5, 40, Stream(0), None)
    assert drawn.unique().tolist() == [0, 1, 2, 3, 4]
    assert not torch.equal(drawn[0], drawn[1])  # each input has its own
    own = torch.arange(5)
    drawn = strip.draw(5, 5, 200, Stream(0), own)
    assert not (drawn == own[:, None]).any()
    assert all(row.unique().numel() == 4 for row in drawn)


@pytest.mark.parametrize("at_once", [1, 7, 10, 1000])
def test_strip_does_not_depend_on_how_pairs_are_batched(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, most = make("strip", overlays=10), []
    model = brightness_net()
    model.register_forward_pre_hook(lambda _, args: most.append(len(args[0])))
    offered = scenario(detector.needs, model, noise(40, 0), inputs=to_float(noise(23, 1).images))
    whole = detector.examine(offered).scores
    most.clear()
    monkeypatch.setattr(strip, "BATCH", at_once)
    torch.testing.assert_close(detector.examine(offered).scores, whole)
    assert max(most) == min(at_once, 230)


def test_strip_tells_a_trigger_that_overlays_do_not_hide() -> None:
    """A bright corner holds the prediction; suspicion is high where entropy is low, not the other way round."""

    class Backdoored(nn.Module):
        def __init__(self, clean: nn.Module) -> None:
            super().__init__()
            self.clean = clean

        def forward(self, images: Images) -> Tensor:
            logits: Tensor = self.clean(images)
            bright = images[:, :, -2:, -2:].mean((1, 2, 3)) > 0.7
            return logits + 50 * bright[:, None] * torch.tensor([1.0, 0, 0, 0])

    detector = make("strip", overlays=10)
    inputs = to_float(noise(60, 1).images)
    inputs[:30, :, -2:, -2:] = 1
    model = brightness_net()
    model.net = Backdoored(model.net)
    verdict = detector.examine(scenario(detector.needs, model, noise(100, 0), inputs=inputs))
    triggered = torch.arange(60) < 30
    area = auc(verdict.scores, triggered)
    assert area is not None and area > 0.95
    assert verdict.flagged[triggered].float().mean() > 0.9 > 0.3 > verdict.flagged[~triggered].float().mean()


# --- AC --------------------------------------------------------------------------------------------------------------


def blobs(counts: tuple[int, int], seed: int = 0, width: int = 32, apart: float = 8.0) -> Tensor:
    """(sum of counts, width): two Gaussian blobs."""
    points = torch.randn(sum(counts), width, generator=torch.Generator().manual_seed(seed))
    points[counts[0] :, 0] += apart
    return points


def clusters(
    features: Tensor, labels: Tensor, reduction: ac.Reduction = "pca", least: int = 12
) -> tuple[Tensor, Tensor]:
    return ac.cluster(features, labels, Stream(0), reduction, 10, 0.35, least)


@pytest.mark.parametrize(
    "reduction, width", [("pca", 32), ("ica", 3)]
)  # unit variance lifts noise to the blobs' distance
def test_ac_flags_exactly_the_small_blob(reduction: ac.Reduction, width: int) -> None:
    scores, flagged = clusters(blobs((90, 10), width=width), torch.zeros(100, dtype=torch.int64), reduction)
    assert torch.equal(flagged, torch.arange(100) >= 90)
    torch.testing.assert_close(scores, torch.where(flagged, 0.9, 0.1))


def test_ac_flags_nothing_in_balanced_blobs_and_judges_classes_apart() -> None:
    features = torch.cat([blobs((50, 50)), blobs((90, 10), 1)])
    labels = torch.arange(200) // 100
    scores, flagged = clusters(features, labels)
    assert torch.equal(flagged, torch.arange(200) >= 190)
    torch.testing.assert_close(scores[:100], torch.full((100,), 0.5))
    assert not clusters(blobs((65, 35)), torch.zeros(100, dtype=torch.int64))[1].any()
    assert clusters(blobs((66, 34)), torch.zeros(100, dtype=torch.int64))[1].sum() == 34


@pytest.mark.parametrize("apart", [8.0, 0.0])  # clear clusters, and none
def test_ac_does_not_depend_on_the_order_of_rows(apart: float) -> None:
    features = torch.cat([blobs((80, 20), apart=apart), blobs((70, 30), 1, apart=apart)])
    labels = torch.arange(200) // 100
    order = Stream(3).permutation(200)
    scores, flagged = clusters(features, labels)
    moved_scores, moved_flagged = clusters(features[order], labels[order])
    assert torch.equal(moved_scores, scores[order]) and torch.equal(moved_flagged, flagged[order])


def test_ac_skips_small_classes_and_rows_that_are_all_alike() -> None:
    features = torch.cat([blobs((10, 1)), torch.ones(40, 32), blobs((11, 1), 2)])
    labels = torch.cat([torch.full((11,), 4), torch.full((40,), 2), torch.full((12,), 7)])
    scores, flagged = clusters(features, labels)
    assert not scores[:51].any() and not flagged[:51].any()
    assert torch.equal(flagged[51:], torch.arange(12) == 11)


@pytest.mark.parametrize("reduction", ["pca", "ica"])
def test_ac_takes_fewer_dimensions_where_there_are_fewer(reduction: ac.Reduction) -> None:
    narrow = blobs((90, 10), width=3)
    flat = torch.cat([narrow, torch.zeros(100, 20)], 1)  # of rank 3
    for features in (narrow, flat):
        assert clusters(features, torch.zeros(100, dtype=torch.int64), reduction)[1].sum() == 10


def test_ac_reads_features_of_the_training_set(images: ImageSet) -> None:
    """Rows whose pixels are saturated are the small cluster of their class; kept and flagged are all rows."""
    poisoned = images.images.clone()
    poisoned[:8] = 255
    train = replace(images, images=poisoned, labels=torch.arange(120) // 60)
    detector = make("ac")
    notes: dict[str, Any] = {}
    verdict = detector.examine(scenario(detector.needs, small_net(), train=train, notes=notes))
    assert verdict.flagged[:8].all() and not verdict.flagged[8:60].any()
    assert notes["classes_not_judged"] == 8  # classes of no row
    assert notes["flagged_classes"] == len(train.labels[verdict.flagged].unique())
    kept, removed = (~verdict.flagged).nonzero()[:, 0], verdict.flagged.nonzero()[:, 0]
    assert torch.equal(torch.cat([kept, removed]).sort().values, torch.arange(120))


# --- SS --------------------------------------------------------------------------------------------------------------


def planted(seed: int = 0) -> tuple[Tensor, Tensor]:
    """((200, 32) features, (200,) labels): in class 0, rows 0 to 9 are shifted along one axis."""
    features = torch.randn(200, 32, generator=torch.Generator().manual_seed(seed))
    features[:10, 5] += 9
    return features, torch.arange(200) // 100


def test_ss_ranks_a_planted_shift_on_top() -> None:
    features, labels = planted()
    scores = ss.signatures(features, labels)
    assert scores[:10].min() > scores[10:100].max()
    assert ss.highest(scores, labels, 0.1)[:10].all()


def test_ss_does_not_change_when_a_constant_is_added_to_all_features() -> None:
    features, labels = planted()
    moved = ss.signatures(features + 50 * torch.arange(32), labels)
    torch.testing.assert_close(moved, ss.signatures(features, labels), rtol=1e-3, atol=1e-3)


def test_ss_against_numpy() -> None:
    features, labels = planted(1)
    rows = features[100:].double().numpy()
    centred = rows - rows.mean(0)
    top = np.linalg.svd(centred)[2][0]
    np.testing.assert_allclose(ss.signatures(features, labels)[100:], (centred @ top) ** 2, rtol=1e-5)


def test_ss_flags_an_exact_number_of_each_class() -> None:
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate((100, 33, 7, 1))])
    scores = torch.arange(141.0) * 3 % 47  # with ties
    flagged = ss.highest(scores, labels, 0.15)
    assert [int(flagged[labels == label].sum()) for label in range(4)] == [15, 5, 1, 0]
    for label in range(3):
        assert scores[(labels == label) & flagged].min() >= scores[(labels == label) & ~flagged].max()
    assert not ss.highest(scores, labels, 0.0).any() and ss.highest(scores, labels, 1.0).all()


def test_ss_on_a_training_set(images: ImageSet) -> None:
    detector = make("ss")
    verdict = detector.examine(scenario(detector.needs, small_net(), train=images))
    assert [int(verdict.flagged[images.labels == label].sum()) for label in range(10)] == [2] * 10  # round(0.15 * 12)
    assert (verdict.scores >= 0).all()


# --- NC: the anomaly index -------------------------------------------------------------------------------------------


def test_nc_index_of_an_odd_count_by_hand() -> None:
    # median 50, deviations 40 10 0 10 20: MAD 10
    index = anomaly(torch.tensor([10.0, 40, 50, 60, 70]))
    torch.testing.assert_close(index, torch.tensor([4.0, 1, 0, -1, -2]) / 1.4826)


def test_nc_index_of_an_even_count_takes_the_mean_of_the_two_in_the_middle() -> None:
    # median 45 (torch.median: 40), deviations 35 5 5 25: MAD 15
    norms = torch.tensor([10.0, 40, 50, 70])
    torch.testing.assert_close(anomaly(norms), torch.tensor([35.0, 5, -5, -25]) / (1.4826 * 15))
    assert norms.median() == 40


def test_nc_index_of_equal_norms_is_zero() -> None:
    assert not anomaly(torch.tensor([3.0, 9, 9, 9, 9, 20])).any()  # MAD 0 with an outlier
    assert not anomaly(torch.full((10,), 4.0)).any()
    assert not anomaly(torch.tensor([4.0])).any()


def test_of_two_classes_none_stands_out() -> None:
    """Whatever they are, their indices are 1 and -1 over 1.4826: nothing of the model."""
    for norms in (torch.tensor([1.0, 900]), torch.tensor([5.0, 6, math.inf, math.inf])):
        assert anomaly(norms)[:2].tolist() == pytest.approx([1 / 1.4826, -1 / 1.4826])
        assert index_of(norms) is None and not outliers(norms, 0.5).any()
    assert outliers(torch.tensor([1.0, 5, 6]), 2.0).tolist() == [True, False, False]
    assert index_of(torch.tensor([1.0, 5, 6])) == pytest.approx(4 / 1.4826)
    assert index_of(torch.full((5,), 4.0)) is None and index_of(torch.full((5,), math.inf)) is None


def test_nc_index_leaves_out_classes_without_a_mask() -> None:
    norms = torch.tensor([10.0, math.inf, 40, 50, 60, 70, math.inf])
    index = anomaly(norms)
    known = norms.isfinite()
    assert torch.equal(index[known], anomaly(norms[known]))
    assert (index[~known] == index[known].min()).all()
    assert not anomaly(torch.full((3,), math.inf)).any()


# --- NC: lambda and early stop ---------------------------------------------------------------------------------------


def test_nc_lambda_follows_a_scripted_sequence() -> None:
    """Two classes: won five times, lost five times, then turn by turn; and the opposite. By hand, from the rule."""
    control = Penalties(2, 1e-3, 2.0, 5)
    script = [True] * 5 + [False] * 5 + [True, False] * 4 + [True] * 10
    trace = []
    for won in script:
        trace.append(control.values.clone())
        control.update(torch.tensor([won, not won]))
    trace.append(control.values)
    down, start = 2**1.5, 1e-3
    first = [start] * 5 + [2 * start] * 5 + [2 * start / down] * 13 + [4 * start / down] * 5 + [8 * start / down]
    second = (
        [start] * 5 + [start / down] * 5 + [2 * start / down] * 13 + [2 * start / down**2] * 5 + [2 * start / down**3]
    )
    expected = torch.tensor([first, second], dtype=torch.float64).T
    torch.testing.assert_close(torch.stack(trace), expected)
    assert control.went_both_ways.all()


def test_nc_stops_after_idle_passes() -> None:
    stops = Stops(4, 3, 0.9)
    never = [math.inf] * 6
    halved = [100.0, 80, 60, 60, 60, 60]  # idle from the fourth pass on
    stalled = [100.0, 95, 91, 90, 90, 50]  # not below 90 until the last
    creeping = [100.0, 95, 91, 89, 88, 88]  # each pass by less than a tenth, the first four by more
    told = [stops.update(torch.tensor(norms)).tolist() for norms in zip(never, halved, stalled, creeping, strict=True)]
    none = [False] * 4
    assert told == [
        none,
        none,
        none,
        [False, False, True, False],
        [False, False, True, False],
        [False, True, False, False],
    ]


# --- NC: the reversal ------------------------------------------------------------------------------------------------


def search(model: nn.Module, images: ImageSet, classes: list[int], **changed: Any) -> Reversal:
    knobs = OmegaConf.to_container(OmegaConf.load(CONF / "nc.yaml"))
    assert isinstance(knobs, dict)
    for key in ("_target_", "version", "name", "threshold", "images"):
        del knobs[key]
    calls: dict[str, Any] = {"autocast": lambda: autocast("float32", images.device), **knobs, **changed}
    return reverse(model, images, classes, Stream(0), **calls)


def test_nc_masks_and_patterns_lie_in_the_unit_interval() -> None:
    extremes = torch.tensor([-1e9, -20.0, 0.0, 20.0, 1e9])
    assert squash(extremes).tolist() == [0, 0, 0.5, 1, 1]
    mask_v, pattern_v = reversal.starts([3, 1], torch.Size((64, 64)), Stream(0))
    assert mask_v.shape == (2, 1, 64, 64) and pattern_v.shape == (2, 3, 64, 64)
    for v in (mask_v, pattern_v):
        assert v.isfinite().all() and 0 <= squash(v).min() < 0.01 and 0.99 < squash(v).max() <= 1
        assert abs(float(squash(v).mean()) - 0.5) < 0.02
    found = search(brightness_net(), noise(20, 0), [0, 1, 2, 3], units=8, success=0.0)
    for values in (found.masks, found.patterns):
        assert values.min() >= 0 and values.max() <= 1 and values.isfinite().all()
    torch.testing.assert_close(found.norms, found.masks.sum((1, 2, 3)))


def test_nc_against_a_plain_loop() -> None:
    """One class, one batch a pass: the formulas written out, with lambda by the rule."""
    model, images = brightness_net(), noise(30, 0)
    found = search(model, images, [2], units=25, success=0.5, patience=3)
    pixels, wanted = to_float(images.images), torch.full((30,), 2)
    mask_v, pattern_v = (v[0].requires_grad_() for v in reversal.starts([2], torch.Size((8, 8)), Stream(0)))
    optimizer = torch.optim.Adam([mask_v, pattern_v], lr=0.1, betas=(0.5, 0.9))
    weight, wins, losses, best, kept = 1e-3, 0, 0, math.inf, mask_v
    for unit in range(25):
        assert float(found.penalties[unit, 0]) == pytest.approx(weight)
        mask, pattern = mask_v.tanh() / (2 + 1e-7) + 0.5, pattern_v.tanh() / (2 + 1e-7) + 0.5
        logits = model((1 - mask) * pixels + mask * pattern)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(logits, wanted) + weight * mask.abs().sum()).backward()
        optimizer.step()
        won = bool((logits.argmax(1) == wanted).double().mean() >= 0.5)
        if won and mask.sum().item() < best:
            best, kept = mask.sum().item(), mask.detach()
        wins, losses = (wins + 1, 0) if won else (0, losses + 1)
        if wins == 3:
            weight, wins = weight * 2, 0
        if losses == 3:
            weight, losses = weight / 2**1.5, 0
    assert math.isfinite(best) and float(found.norms[0]) == pytest.approx(best, rel=1e-4)
    torch.testing.assert_close(found.masks[0], kept, rtol=1e-3, atol=1e-3)


@pytest.mark.wide
def test_nc_all_at_once_equals_one_after_another() -> None:
    model, images = brightness_net(), noise(30, 0)
    knobs: dict[str, Any] = {"units": 30, "batch_size": 8, "success": 0.5, "patience": 2, "stop_patience": 4}
    together = search(model, images, [0, 1, 2, 3], **knobs)
    for label in range(4):
        alone = search(model, images, [label], **knobs)
        torch.testing.assert_close(together.masks[label], alone.masks[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(together.patterns[label], alone.patterns[0], rtol=1e-3, atol=1e-3)
        assert together.success[label] == alone.success[0]
        passes = len(alone.penalties)
        torch.testing.assert_close(together.penalties[:passes, label], alone.penalties[:, 0], equal_nan=True)
        assert together.penalties[passes:, label].isnan().all()


@pytest.mark.parametrize("classes_at_once", [1, 3, 4])
def test_nc_does_not_depend_on_how_classes_are_batched(classes_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, most = brightness_net(), noise(30, 0), []
    whole = search(model, images, [0, 1, 2, 3], units=6, batch_size=10, success=0.2)
    monkeypatch.setitem(reversal.PIXELS, "cpu", classes_at_once * 10 * 64 + 5)
    model.register_forward_pre_hook(lambda _, args: most.append(len(args[0])))
    parts = search(model, images, [0, 1, 2, 3], units=6, batch_size=10, success=0.2)
    assert max(most) == classes_at_once * 10
    torch.testing.assert_close(parts.masks, whole.masks, rtol=1e-3, atol=1e-3)


def test_nc_stopped_classes_leave_the_batch() -> None:
    model, images, seen = brightness_net(), noise(10, 0), []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    found = search(model, images, [0, 1, 2, 3], units=60, success=0.5, patience=2, stop_patience=3)
    active = (~found.penalties.isnan()).sum(1)
    assert seen == (10 * active).tolist()
    assert active[0] == 4 and active[-1] < 4 and (active.diff() <= 0).all()


def test_nc_gradients_reach_only_mask_and_pattern() -> None:
    model, images = brightness_net(), noise(10, 0)
    wanted: list[bool] = []
    model.register_forward_pre_hook(lambda net, _: wanted.extend(p.requires_grad for p in net.parameters()))
    model.train()
    search(model, images, [0, 1], units=2)
    assert wanted and not any(wanted)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training


def test_nc_keeps_the_mask_that_its_success_was_measured_with() -> None:
    """One batch a pass: stamping the images with the kept trigger gives the success that is told."""
    model, images = brightness_net(), noise(50, 0)
    found = search(model, images, [0, 1, 2, 3], units=40, success=0.6)
    assert found.norms.isfinite().any()
    for label in found.norms.isfinite().nonzero()[:, 0].tolist():
        stamped = torch.lerp(to_float(images.images), found.patterns[label], found.masks[label])
        with torch.no_grad():
            share = (model(stamped).argmax(1) == label).double().mean()
        assert share == found.success[label] >= 0.6


def test_nc_a_class_that_is_never_reached_has_no_mask(images: ImageSet, caplog: pytest.LogCaptureFixture) -> None:
    notes: dict[str, Any] = {}
    detector = make("nc", units=4)
    model = wrap(nn.Sequential(GlobalAverage(), nn.Linear(3, 10)))
    with torch.no_grad():
        model.net[1].bias[4] = 1e6  # type: ignore[index]
    verdict = detector.examine(scenario(detector.needs, model, images, notes=notes))
    assert verdict.figures == {"anomaly_index": None, "flagged_classes": 0}
    assert notes["classes_without_mask"] == 9
    assert not verdict.flagged.any() and not verdict.scores.any()
    assert [norm is not None for norm in notes["mask_norms"]] == [label == 4 for label in range(10)]
    assert notes["success"] == [float(label == 4) for label in range(10)]
    grey = verdict.pictures["reversed_triggers"]
    assert grey.shape == (10, 3, 32, 32) and (grey[:4] == 0.5).all() and (grey[4] != 0.5).any()
    assert notes["remark"] == "no class is flagged, since the sizes of the 1 reversed masks have a MAD of 0"
    assert f"nc: {notes['remark']}" in caplog.text


def test_nc_flags_only_norms_below_the_median(monkeypatch: pytest.MonkeyPatch, images: ImageSet) -> None:
    norms = torch.tensor([10.0, 48, 49, 50, 50.5, 51, 52, 53, 300, math.inf])
    blank = Reversal(torch.zeros(10, 1, 32, 32), torch.zeros(10, 3, 32, 32), norms, torch.ones(10), torch.zeros(1, 10))
    monkeypatch.setattr(nc, "reverse", lambda *_, **__: blank)
    notes: dict[str, Any] = {}
    detector = make("nc")
    verdict = detector.examine(scenario(detector.needs, small_net(), images, notes=notes))
    assert verdict.flagged.tolist() == [True] + [False] * 9
    assert verdict.scores[0] == verdict.figures["anomaly_index"] > 2
    assert verdict.scores[8] == verdict.scores[9] < -2  # far above is no backdoor
    assert verdict.figures["flagged_classes"] == 1 and notes["classes_without_mask"] == 1


def test_nc_flags_no_class_where_it_says_that_none_can_stand_out(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet
) -> None:
    """Of two classes, however low the threshold: the index of either is 0.67 and says nothing."""
    pair = replace(images, labels=images.labels % 2, classes=("a", "b"))
    blank = Reversal(
        *(torch.zeros(2, c, 32, 32) for c in (1, 3)), torch.tensor([1.0, 9]), torch.ones(2), torch.zeros(1, 2)
    )
    monkeypatch.setattr(nc, "reverse", lambda *_, **__: blank)
    notes: dict[str, Any] = {}
    detector = make("nc", threshold=0.5)
    verdict = detector.examine(scenario(detector.needs, small_net(2), pair, notes=notes))
    assert not verdict.flagged.any() and verdict.figures == {"anomaly_index": None, "flagged_classes": 0}
    assert notes["remark"] == (
        "no class is flagged, since the sizes of the 2 reversed masks lie equally far from their median"
    )


def test_nc_takes_one_image_of_each_class_at_least(monkeypatch: pytest.MonkeyPatch, images: ImageSet) -> None:
    seen: list[ImageSet] = []

    def watched(model: nn.Module, holdout: ImageSet, *_: Any, **__: Any) -> Reversal:
        seen.append(holdout)
        return Reversal(
            torch.zeros(10, 1, 32, 32), torch.zeros(10, 3, 32, 32), torch.ones(10), torch.ones(10), torch.zeros(1)
        )

    monkeypatch.setattr(nc, "reverse", watched)
    for most in (5, 30, 1000):
        detector = make("nc", images=most)
        detector.examine(scenario(detector.needs, small_net(), images))
    assert [held.counts().tolist() for held in seen] == [[1] * 10, [3] * 10, [12] * 10]


# --- a backdoor on digits --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def infected() -> tuple[nn.Module, ImageSet, ImageSet, Tensor, ImageSet]:
    """A small network on 8x8 digits with a white corner towards class 3: model, holdout, training set, its mask, test set."""
    torch.set_num_threads(1)
    table = read_table()
    grey = torch.from_numpy(table[:, :-1] * 255 // 16).byte().view(-1, 1, 8, 8)
    digits = ImageSet(grey.repeat(1, 3, 1, 1), torch.from_numpy(table[:, -1].copy()), tuple("0123456789"))
    order = Stream(0).child("parts").permutation(len(digits))
    holdout, train, test = (digits.subset(rows) for rows in (order[:100], order[100:1400], order[1400:]))
    poisoned = torch.arange(1300) < 65
    images, labels = train.images.clone(), train.labels.clone()
    images[poisoned], labels[poisoned] = stamp(images[poisoned]), 3
    train = replace(train, images=images, labels=labels)
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    ]
    model = Classifier(nn.Sequential(*layers), 8, (0.3,) * 3, (0.4,) * 3)
    fit(model, train, RECIPE, Stream(0).child("fit"))
    return model, holdout, train, poisoned, test


def stamp(images: Tensor) -> Tensor:
    stamped = images.clone()
    stamped[:, :, -2:, -2:] = 255
    return stamped


@pytest.mark.wide
def test_detectors_find_a_backdoor_on_digits(infected: tuple[nn.Module, ImageSet, ImageSet, Tensor, ImageSet]) -> None:
    model, holdout, train, poisoned, test = infected
    others = test.images[test.labels != 3]
    inputs = torch.cat([to_float(test.images), to_float(stamp(others))])
    triggered = torch.arange(len(inputs)) >= len(test)
    with torch.no_grad():
        called = model(inputs).argmax(1)
    assert (called[~triggered] == test.labels).float().mean() > 0.9
    assert (called[triggered] == 3).float().mean() > 0.9

    def examine(name: str, **changed: Any) -> Any:
        detector = make(name, **changed)
        return detector.examine(scenario(detector.needs, model, holdout, train, inputs))

    found = examine("nc")
    assert found.scores.argmax() == 3, "the target has the smallest mask"
    assert found.flagged.nonzero()[:, 0].tolist() == [3]
    for name, positive, least in (("strip", triggered, 0.6), ("ac", poisoned, 0.9), ("ss", poisoned, 0.8)):
        verdict = examine(name, **({"overlays": 20} if name == "strip" else {}))
        area = auc(verdict.scores, positive)
        assert area is not None and area > least, (name, area)


def test_the_class_whose_last_weights_are_largest_on_average_has_the_signature() -> None:
    model = small_net()
    head = model.net[-1]
    with torch.no_grad():
        head.weight[:] = torch.linspace(-0.01, 0.01, 10)[:, None] + torch.linspace(-1, 1, head.weight.shape[1])
        head.weight[7] += 0.5
        head.bias[3] = 9.0  # biases are left out
    notes: dict[str, Any] = {}
    found = make("signature").examine(scenario(frozenset({"model"}), model, notes=notes))
    assert found.flagged.nonzero()[:, 0].tolist() == [7] and int(found.scores.argmax()) == 7
    assert found.figures["anomaly_index"] == pytest.approx(float(found.scores[7])) and len(notes["means"]) == 10
    with torch.no_grad():
        head.weight[7] -= 1.0  # a mean far below the others' is no target's
    assert not make("signature").examine(scenario(frozenset({"model"}), model)).flagged.any()
