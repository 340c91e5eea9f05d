"""attack=given: a trigger from a pattern, a file or a function judges a model that nothing was planted in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backdoorbench.api import build, run
from backdoorbench.attacks.base import Task
from backdoorbench.attacks.given import Given
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline import plan
from backdoorbench.streams import Stream
from backdoorbench.triggers import base as triggers

IMAGES = torch.linspace(0, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)


def picture(folder: Path, levels: np.ndarray, name: str = "p.png") -> str:
    file = folder / name
    if file.suffix == ".npy":
        np.save(file, levels)
    else:
        Image.fromarray(levels).save(file)
    return str(file)


def shown(images: torch.Tensor = IMAGES, **settings: object) -> torch.Tensor:
    made: Given = build("attack/given", **settings)
    return made.make_trigger(images.shape[-1])(images)


def own(file: str, **settings: object) -> torch.Tensor:
    return shown(trigger="picture", file=file, **settings)


def stored(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round() / 255


def test_the_trigger_lies_where_batches_arrive_and_not_where_images_wait() -> None:
    """Images that a device has no room for stay in the host's memory."""
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    waiting = ImageSet(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), labels, ("a", "b"))
    made: Given = build("attack/given", trigger="white3")
    found = made.test_trigger(Task(waiting, None, None, None), Stream(0))  # type: ignore[arg-type]
    assert found.trigger.mask.device.type == "meta"  # type: ignore[attr-defined]


def test_a_picture_lies_where_it_is_put_and_as_large_as_it_is(tmp_path: Path) -> None:
    file = picture(tmp_path, np.full((2, 3, 3), 255, np.uint8))
    found = own(file, position=(-2, 4))
    expected = stored(IMAGES)
    expected[:, :, 6:8, 4:7] = 1
    assert torch.equal(found, expected)


def test_a_picture_of_16_bits_is_as_bright_as_it_looks_and_a_turned_one_is_upright(tmp_path: Path) -> None:
    deep = picture(tmp_path, np.full((8, 8), 100 * 257, np.uint16))
    floats = picture(tmp_path, np.full((8, 8), 100 / 255, np.float32), "f.tif")
    for file in (deep, floats):
        assert torch.equal(own(file), torch.full_like(IMAGES, 100 / 255)), file
    levels = np.zeros((8, 8, 3), np.uint8)
    levels[0] = 255
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(levels).save(tmp_path / "turned.png", exif=exif)
    found = own(str(tmp_path / "turned.png"))
    assert bool((found[:, :, 7] == 1).all()) and not found[:, :, :7].any()
    unknown = picture(tmp_path, np.full((8, 8), 2, np.float32), "u.tif")
    with pytest.raises(ConfigError, match="whose pixels are of floats .* Save it with 8 bits a colour"):
        own(unknown)


def test_a_picture_without_a_place_covers_the_image_as_opaque_as_its_mask_and_opacity_say(tmp_path: Path) -> None:
    file = picture(tmp_path, np.full((8, 8, 3), 255, np.uint8))
    levels = np.zeros((8, 8), np.uint8)
    levels[0] = 255
    mask = picture(tmp_path, levels, "m.png")
    found = own(file, mask=mask, opacity=0.5, stored=False)
    assert torch.allclose(found[:, :, 0], IMAGES[:, :, 0] / 2 + 0.5) and torch.equal(found[:, :, 1:], IMAGES[:, :, 1:])
    clear = picture(tmp_path, np.concatenate([np.full((8, 8, 3), 9), levels[..., None]], 2).astype(np.uint8), "c.png")
    assert torch.allclose(own(clear, stored=False)[:, :, 0], torch.tensor(9 / 255))  # transparency is a mask too
    assert torch.equal(own(clear, stored=False)[:, :, 1:], IMAGES[:, :, 1:])


def test_an_array_is_added_as_it_is_and_clipped(tmp_path: Path) -> None:
    values = np.full((3, 8, 8), -0.25, np.float32)
    found = own(picture(tmp_path, values, "d.npy"), how="add", stored=False)
    assert torch.allclose(found, (IMAGES - 0.25).clamp(0, 1))
    grey = own(picture(tmp_path, np.full((8, 8), 51, np.uint8), "g.npy"), how="add", stored=False)
    assert torch.allclose(grey, (IMAGES + 0.2).clamp(0, 1))


def test_a_function_of_a_plugin_is_a_trigger_that_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_triggers.py").write_text("def invert(images):\n    return 1 - images\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["attack=given", "attack.trigger=function", "attack.function=own_triggers:invert", "dataset.train_size=400"]
    with pytest.raises(ConfigError) as caught:
        plan.plan(compose(words))
    assert str(caught.value) == (
        "attack.function is 'own_triggers:invert', outside any plugin; only code of plugins is run. If you trust that code, "
        'add --plugin DIR, the folder that holds it (in Python, backdoorbench.plugin("DIR")); a run takes plugins=[own_triggers] too.'
    )
    made = plan.plan(compose([*words, "plugins=[own_triggers]"]))
    assert made.plugins == ["own_triggers"] and made.content["attack.function"].startswith("own_triggers:invert of ")
    assert isinstance(made.attack, Given)
    trigger = made.attack.make_trigger(8)
    again = triggers.load(*triggers.dump(trigger))
    assert torch.allclose(again(IMAGES), 1 - IMAGES, atol=1 / 255)


@pytest.mark.wide
def test_a_model_is_judged_and_purified_as_it_is(tmp_path: Path) -> None:
    quick = [
        f"runtime.outputs={tmp_path}",
        "runtime.threads=1",
        "dataset.train_size=600",
        "control=off",
        "curve.every=0",
    ]
    theirs = run("attack=badnets", "defense=none", "train.epochs=3", *quick)
    weights = next(tmp_path.glob("cache/infection/*/model.safetensors"))
    words = ["attack=given", "attack.trigger=white3", f"model.checkpoint={weights}", "train.epochs=0", "force=true"]
    found = run(*words, *quick, "defense=ft", "defense.epochs=1")
    assert (found.infection.scores.ca, found.infection.scores.asr) == (
        theirs.infection.scores.ca,
        theirs.infection.scores.asr,
    )
    assert found.infection.notes["training"] == "as given: nothing was planted"
    assert found.purification.scores.asr is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trigger": "picture"}, "attack.trigger is picture with attack.file=null; a trigger of your own needs both"),
        ({"file": "x.png"}, "attack.trigger is grid3 with attack.file=x.png; a trigger of your own needs both"),
        ({"trigger": "function"}, "attack.trigger is function with attack.function=null"),
        ({"opacity": 2.0}, "attack.opacity is 2; expected a number between 0 and 1"),
        ({"trigger": "picture", "file": "none.png"}, "attack.file is 'none.png', which is no file; expected an image"),
        ({"trigger": "picture", "file": "none.npy"}, "attack.file is 'none.npy', which cannot be read as an array"),
        ({"trigger": "picture", "file": "small.png", "position": (7, 0)}, "a trigger of 2x2 pixels at row 7, column 0 leaves"),
        ({"trigger": "picture", "file": "small.png", "mask": "large.png", "position": (0, 0)}, "attack.mask is 'large.png', of 4x4"),
        ({"trigger": "picture", "file": "loud.npy"}, "attack.file is 'loud.npy', whose floats reach 200; expected them within"),
        ({"trigger": "picture", "file": "flat.npy"}, "attack.file is 'flat.npy', an array (5,) of float32; expected (H, W)"),
        ({"trigger": "picture", "file": "text.npy"}, "attack.file is 'text.npy', an array (1,) of <U1; expected (H, W)"),
        ({"target": 10}, "attack.target or attack.sources names class 10, but the data set has 10 classes"),
        ({"trigger": "function", "function": "nowhere:f"}, "attack.function is 'nowhere:f', which cannot be imported (ModuleNotFoundError: No module named 'nowhere'); expected a function of images"),
        ({"trigger": "function", "function": "math:pi"}, "attack.function is 'math:pi', an object of type float; expected a function of images. Name one."),
        ({"trigger": "function", "function": "torch:sum"}, "attack.function=torch:sum returned a tensor () on cpu for images"),
        ({"trigger": "function", "function": "torch:log"}, "attack.function=torch:log returned values that are no finite"),
    ],
)  # fmt: skip
def test_a_trigger_that_is_none_is_refused(
    settings: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path, np.zeros((2, 2, 3), np.uint8), "small.png")
    picture(tmp_path, np.zeros((4, 4, 3), np.uint8), "large.png")
    picture(tmp_path, np.full((8, 8), 200, np.float32), "loud.npy")
    picture(tmp_path, np.zeros(5, np.float32), "flat.npy")
    np.save(tmp_path / "text.npy", np.array(["a"]))
    with pytest.raises(ConfigError) as caught:
        made = Given(**(vars(build("attack/given")) | settings))
        made.make_target(10)
        made.make_trigger(8)(torch.zeros(1, 3, 8, 8))
    assert said in str(caught.value)
