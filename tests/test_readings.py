"""A network that reads its images otherwise than it was trained to is told, with the settings that mend it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backdoorbench.after import query
from backdoorbench.attacks import input_aware
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.models import stems
from backdoorbench.models.base import Classifier
from backdoorbench.models.inputs import Swapped
from backdoorbench.pipeline import readings
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.job import Job
from backdoorbench.streams import Stream

CLASSES = ("dusk", "haze", "mist", "sand")
LEVELS = torch.tensor([[100, 110, 170], [112, 122, 152], [124, 134, 134], [136, 146, 116]], dtype=torch.uint8)


def coloured(count: int = 80) -> ImageSet:
    """Images of one colour, whose name is their class."""
    labels = torch.arange(count) % 4
    return ImageSet(LEVELS[labels].view(count, 3, 1, 1).expand(-1, -1, 8, 8).contiguous(), labels, CLASSES)


class Nearest(nn.Module):
    """Calls an image by the nearest of the colours, which it knows as they were normalised for it."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.colours = nn.Parameter(read(LEVELS.float().view(4, 3, 1, 1) / 255).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return -torch.cdist(images.mean((2, 3)), self.colours)


def imagenet(pixels: Tensor) -> Tensor:
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


CAFFE = "model.mean=[103.94,116.78,123.68] model.range=255 model.colours=bgr"


@pytest.mark.parametrize(
    ("read", "settings"),
    [
        (lambda pixels: pixels, "model.mean=none model.std=none"),
        (lambda pixels: pixels * 255, "model.range=255"),
        (lambda pixels: imagenet(pixels.flip(1)), "model.colours=bgr"),
        (lambda pixels: (pixels.flip(1) - 0.5) / 0.5, "model.mean=0.5 model.std=0.5 model.colours=bgr"),
        (lambda pixels: pixels.flip(1) * 255 - torch.tensor((103.94, 116.78, 123.68)).view(3, 1, 1), CAFFE),
        (imagenet, None),
    ],
)
def test_the_reading_under_which_a_network_is_right_is_found(read: Any, settings: str | None) -> None:
    model = Classifier(Nearest(read), 8, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = readings.better(model, coloured(), torch.arange(80), "float32")
    if settings is None:
        assert found is None
    else:
        assert found is not None
        assert found.best.settings == settings and found.best.accuracy == 1 > found.now.accuracy and found.is_far
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_grey_network_may_have_been_normalised_as_digits_usually_are() -> None:
    model = Classifier(nn.Identity(), 8, (0.5,), (0.5,), channels=1)
    found = {settings: other.normalize for settings, _, other in readings.others(model)}
    (words,) = readings.GREY
    assert words in found and CAFFE.partition(" model.colours")[0] not in found
    assert found[words](torch.full((1, 1, 1, 1), 0.1307)).abs().max() < 1e-6
    assert words not in {
        settings for settings, _, _ in readings.others(Classifier(nn.Identity(), 8, (0.5,) * 3, (0.5,) * 3))
    }


class Striped(nn.Module):
    """Calls an image by how far apart its stripes lie, in pixels, as it learnt it."""

    def __init__(self, side: int, stride: int) -> None:
        super().__init__()
        self.first, self.side = nn.Conv2d(3, 1, 1, stride), side

    def forward(self, images: Tensor) -> Tensor:
        period = images.shape[-1] / ((images[:, 0, 0, 1:] > 0.5) != (images[:, 0, 0, :-1] > 0.5)).sum(1).add(1).div(2)
        return -(period[:, None] - torch.tensor([0.5, 0.25, 0.125, 0.0625]) * self.side).abs()


@pytest.mark.wide
@pytest.mark.parametrize(("there", "side", "stride"), [(48, 32, 1), (128, 64, 1), (128, 64, 2), (128, 224, 2)])
def test_the_size_at_which_a_network_was_trained_is_found(there: int, side: int, stride: int) -> None:
    labels = torch.arange(80) % 4
    columns = torch.arange(there)
    waves = torch.stack([(columns * 2**label * 4 // there % 2 == 0) for label in range(4)])
    images = waves.to(torch.uint8)[labels].mul(255).view(80, 1, 1, there).expand(-1, 3, there, -1).contiguous()
    model = Classifier(Striped(side, stride), there, (0.0,) * 3, (1.0,) * 3).eval()
    test = ImageSet(images, labels, CLASSES)
    found = readings.better(model, test, torch.arange(80), "float32")
    assert (
        found is not None and found.best.settings == f"dataset.size={side}" and found.best.changed == 1 and found.is_far
    )
    assert (
        readings.better(
            Classifier(Striped(there, stride), there, (0.0,) * 3, (1.0,) * 3), test, torch.arange(80), "float32"
        )
        is None
    )


def test_a_network_that_reads_one_size_alone_is_tried_at_no_other() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 46 * 46, 4))
    model, images = Classifier(net, 48, (0.0,) * 3, (1.0,) * 3), torch.zeros(8, 3, 48, 48, dtype=torch.uint8)
    test = ImageSet(images, torch.arange(8) % 4, CLASSES)
    assert readings.best_side(model, test, torch.zeros(8, dtype=torch.bool), "float32") is None


def noisy(model: Classifier, *, share: float) -> Classifier:
    """One that answers this share of images by chance, as their pixels draw."""
    net = model.net

    class Noisy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = net(images)
            drawn = (images.flatten(1).sum(1) * 1e4).sin().abs() < share
            return torch.where(drawn[:, None], logits.roll(1, 1), logits)

    model.net = Noisy()
    return model


def test_of_readings_that_are_as_good_the_simplest_is_taken() -> None:
    net = Nearest(lambda pixels: pixels)  # grey: nobody can tell which of its colours is first
    net.colours.data = torch.tensor([0.2, 0.4, 0.6, 0.8])[:, None].expand(4, 3).clone()
    images = (net.colours.data * 255).round().to(torch.uint8).view(4, 3, 1, 1).expand(-1, -1, 8, 8)
    labels = torch.arange(200) % 4
    test = ImageSet((images[labels] + (torch.arange(200) % 5).view(-1, 1, 1, 1)).to(torch.uint8), labels, CLASSES)
    model = Classifier(net, 8, (0.0, 0.0, 0.0), (0.25, 0.25, 0.25)).eval()
    found = readings.better(noisy(model, share=0.1), test, torch.arange(200), "float32")
    assert found is not None and found.best.settings == "model.mean=none model.std=none" and found.best.changed == 1


def test_blue_first_beats_an_order_that_explains_less() -> None:
    model = Classifier(Nearest(lambda pixels: pixels.flip(1)), 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    test, calls = coloured(), torch.arange(80) % 4
    turned = torch.tensor([1, 2, 3, 0])[calls]
    turned[::5] = 0  # the order is right of some
    found = readings.better(model, test, torch.arange(80), "float32", Predictions(turned, None))
    assert found is not None and found.best.settings == "model.colours=bgr" and found.best.order is None


def test_a_small_gain_is_noted_and_stops_nothing() -> None:
    right = torch.ones(400, dtype=torch.bool)
    now, best = right.clone(), right.clone()
    now[:30], best[:2] = False, False
    now, best = readings.Reading("", 0, None, now), readings.Reading("model.range=255", 1, None, best)
    assert best.beats(now) and not readings.Better(best, [], now).is_far
    chance = right.clone()
    chance[50:62] = False
    assert not now.beats(readings.Reading("", 0, None, chance)) and not best.beats(readings.Reading("", 0, None, right))


def test_a_stem_that_fits_as_well_is_tried() -> None:
    spec = build({**compose(["model=timm", "model.timm_name=test_resnet"])["model"]}, "model")
    trained = dataclasses.replace(spec, stem="as_is").classifier(4, 32, (0.0,) * 3, (1.0,) * 3).eval()
    model = spec.classifier(4, 32, (0.0,) * 3, (1.0,) * 3).eval()
    model.load_state_dict(trained.state_dict())  # whose shapes do not tell
    ((words, other),) = readings.other_stems(spec, model, 4, (0.0,) * 3, (1.0,) * 3)
    images = torch.rand(3, 3, 32, 32)
    assert words == "model.stem=as_is" and torch.equal(other(images), trained(images))
    assert not torch.allclose(model(images), trained(images))


def test_a_stem_is_told_by_the_shapes_of_a_file(tmp_path: Path) -> None:
    spec = build({**compose(["model=torchvision"])["model"], "stem": "as_is"}, "model")
    torch.save(spec.net(10, 32).state_dict(), file := tmp_path / "theirs.pth")
    usual = build({**compose(["model=torchvision"])["model"], "checkpoint": str(file)}, "model")
    assert stems.fitting(usual, 10, 32) == "as_is" and stems.fitting(usual, 10, 224) is None
    assert stems.fitting(usual, 9, 32) is None  # of other classes: whoever loads it says so


def test_settings_say_each_reading(tmp_path: Path) -> None:
    wave = torch.arange(3 * 8 * 8).view(1, 3, 8, 8).mul(0.37).sin().add(1).div(2)
    for settings, (mean, std) in (readings.NORMALISATIONS | readings.GREY).items():
        spec = build(compose(["model=demo", "model.width=4", *settings.split()])["model"], "model")
        model = spec.classifier(4, 8, (0.3, 0.3, 0.3), (0.1, 0.1, 0.1))
        expected = (wave - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        assert torch.allclose(model.normalize(wave), expected, atol=1e-5), settings
    spec = build(compose(["model=demo", "model.width=4", "model.colours=bgr"])["model"], "model")
    model = spec.classifier(4, 8, (0.3, 0.2, 0.1), (1.0, 1.0, 1.0))
    assert any(isinstance(part, Swapped) for part in model.crop)
    assert torch.allclose(model.normalize(model.crop(wave))[:, 0], wave[:, 2] - 0.3)
    assert not any("bgr" in settings for settings, _, _ in readings.others(model))


@pytest.mark.parametrize("colours", ["rgb", "bgr"])
def test_whoever_works_on_pixels_has_their_normalisation_red_first(colours: str) -> None:
    spec = build(compose(["model=demo", "model.width=4", f"model.colours={colours}"])["model"], "model")
    model = spec.classifier(4, 32, (0.3, 0.2, 0.1), (0.4, 0.5, 0.6))
    wave = torch.arange(3 * 32 * 32).view(1, 3, 32, 32).mul(0.37).sin().add(1).div(2)
    read = model.normalize(model.crop(wave))
    expected = read.flip(1) if colours == "bgr" else read
    lira: Any = build(compose(["attack=lira", "dataset=cifar10"])["attack"], "attack")
    holders = [
        model.of_pixels, input_aware.fresh(model, Stream(0)).normalize, lira.fresh(model, Stream(0)).normalize,
        query.make_generator(model, 32, 8, 0.1).normalize,
    ]  # fmt: skip
    for normalize in holders:
        torch.testing.assert_close(normalize(wave), expected)
    assert (model.of_pixels is model.normalize) == (colours == "rgb")


@pytest.mark.wide
def test_a_model_that_was_given_is_told(run: Callable[..., Job], outputs: Path, tmp_path: Path) -> None:
    quick = (
        "dataset.train_size=600",
        "model.width=8",
        "train.batch_size=32",
        "control=off",
        "curve.every=0",
        "defense=none",
    )
    key = run("attack=none", "train.epochs=6", "model.range=255", *quick).run.infection.key
    whole = load_file(next(outputs.glob(f"cache/infection/*{key}/model.safetensors")))
    weights = tmp_path / "bare.safetensors"  # ours say how they are normalised
    save_file({name: value for name, value in whole.items() if name.startswith("net.")}, weights)
    words = ("attack=none", f"model.checkpoint={weights}", "train.epochs=0", *quick)
    said = run(*words).run.infection.notes["input"]
    assert "the network seems to have been trained on images read otherwise: CA is " in said
    assert said.endswith("with model.range=255; set that")
    assert "input" not in run(*words, "model.range=255").run.infection.notes
