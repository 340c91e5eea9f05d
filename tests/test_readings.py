"""A network that reads its images otherwise than it was trained to is told, with the settings that mend it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.models.base import Classifier
from backdoorbench.models.inputs import Swapped
from backdoorbench.pipeline import readings
from backdoorbench.pipeline.job import Job

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


@pytest.mark.parametrize(
    ("read", "settings"),
    [
        (lambda pixels: pixels, "model.mean=none model.std=none"),
        (lambda pixels: pixels * 255, "model.range=255"),
        (lambda pixels: imagenet(pixels.flip(1)), "model.colours=bgr"),
        (lambda pixels: (pixels.flip(1) - 0.5) / 0.5, "model.mean=0.5 model.std=0.5 model.colours=bgr"),
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


def test_settings_say_each_reading(tmp_path: Path) -> None:
    wave = torch.arange(3 * 8 * 8).view(1, 3, 8, 8).mul(0.37).sin().add(1).div(2)
    for settings, (mean, std) in readings.NORMALISATIONS.items():
        spec = build(compose(["model=demo", "model.width=4", *settings.split()])["model"], "model")
        model = spec.classifier(4, 8, (0.3, 0.3, 0.3), (0.1, 0.1, 0.1))
        expected = (wave - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        assert torch.allclose(model.normalize(wave), expected, atol=1e-5), settings
    spec = build(compose(["model=demo", "model.width=4", "model.colours=bgr"])["model"], "model")
    model = spec.classifier(4, 8, (0.3, 0.2, 0.1), (1.0, 1.0, 1.0))
    assert any(isinstance(part, Swapped) for part in model.crop)
    assert torch.allclose(model.normalize(model.crop(wave))[:, 0], wave[:, 2] - 0.3)
    assert not any("bgr" in settings for settings, _, _ in readings.others(model))


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
