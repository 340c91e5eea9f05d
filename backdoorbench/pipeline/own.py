"""What a program brings itself instead of naming it in settings: images, a network, a folder for what was trained."""

import copy
import dataclasses
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from backdoorbench.attacks.base import Attack, Infection
from backdoorbench.config import build, plugins
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense
from backdoorbench.errors import ConfigError, DataError, ModelError, PairingError, few, first_line, shown
from backdoorbench.models import outputs
from backdoorbench.models.base import Classifier, evaluating
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.infections import load_infection, save_infection
from backdoorbench.shapes import to_bytes
from backdoorbench.storage import store
from backdoorbench.streams import Stream, seeded
from backdoorbench.training.recipe import Recipe
from backdoorbench.triggers.base import Target

log = logging.getLogger(__name__)

Network: TypeAlias = (
    nn.Module | Callable[[], nn.Module]
)  # itself, whose weights are the first ones, or what makes a fresh one
ROUNDING = 1e-4  # by which a pixel may leave [0, 1]
AS_IT_IS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and deviation that leave pixels alone


# ---- what is handed over --------------------------------------------------------------------------------------------


def expect(given: Any, kind: type, what: str, source: str) -> None:
    """Raises ConfigError where what was given is not of this kind.

    what  as a message calls it; source: where one comes from"""
    if not isinstance(given, kind):
        raise ConfigError(f"{what} is {_named(given)}; expected {source}. Hand over one.")


def expect_images(given: Any, what: str) -> ImageSet:
    """The images that were given, where they are some, each of one of their classes."""
    pair = " (bb.load_dataset and bb.withhold return two)" if isinstance(given, tuple | list) else ""
    expect(given, ImageSet, what, f"an image set{pair}, as bb.load_dataset or bb.image_set makes it")
    images: ImageSet = given
    if not len(images):
        raise DataError(f"{what} has no image; expected some. Hand over others.")
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    if not 0 <= lowest <= highest < len(images.classes):
        raise DataError(
            f"{what} has labels from {lowest} to {highest}, and {len(images.classes)} classes; expected labels from 0 to "
            f"{len(images.classes) - 1}. Change the labels, or name all classes."
        )
    return images


def refuse_others(images: ImageSet, known: ImageSet | None, what: str) -> None:
    """Raises DataError for images of another size, or with other classes, than those that a model was trained on.

    known  these, where anybody has them"""
    if known is None:
        return
    if images.size != known.size:
        raise DataError(
            f"{what} has images of {images.size} pixels a side, and the infected model was trained on {known.size}; expected the "
            f"same. Resize them."
        )
    if images.classes != known.classes and set(images.classes) == set(known.classes):
        raise DataError(
            f"{what} has the classes of the training set in another order, so that its labels mean others. Order them as "
            f"{few(known.classes, 5)}."
        )


def refuse_unmet(defense: Defense, holdout: ImageSet | None, train: ImageSet | None) -> None:
    """Raises PairingError where a defense is not handed what it needs."""
    if "holdout" in defense.needs and holdout is None:
        raise PairingError(
            f"{defense.name} needs clean images, and holdout is None; expected an image set. Hand over one."
        )
    if "train" in defense.needs and train is None:
        raise PairingError(
            f"{defense.name} needs the victim's training set, and there is none: neither a module alone has one, nor the "
            f"infection of an attack that drives the training. Hand over what bb.infect made with another attack, or take a "
            f"defense that needs only the model."
        )


def refuse_trigger(trigger: Any, target: Any, test: ImageSet) -> None:
    """Raises ConfigError or DataError where these are not a trigger and a target by which the images can be judged."""
    if (trigger is None) != (target is None):
        given, absent = ("trigger", "target") if target is None else ("target", "trigger")
        raise ConfigError(
            f"there is a {given} and no {absent}; expected both, or None twice for CA alone. Add the {absent}."
        )
    if trigger is None:
        return
    expect(target, Target, "target", "the rule of an attack, as infection.target is")
    if not bool(target.is_eligible(test.labels.cpu()).any()):
        raise DataError(
            "none of the test images is of a class that the attack turns into another, so there is no ASR. Give others."
        )
    images, _ = next(test.subset(torch.arange(min(2, len(test)), device=test.device)).batches(2))
    try:
        with torch.no_grad():
            made = trigger(images.clone())
    except (RuntimeError, TypeError) as error:
        raise DataError(
            f"the trigger cannot be put on images of {test.size} pixels ({first_line(error)}). Hand over images of its size, or "
            f"another trigger."
        ) from error
    is_like = isinstance(made, Tensor) and made.shape == images.shape and made.is_floating_point()
    if not is_like or not (float(made.min()) >= -ROUNDING and float(made.max()) <= 1 + ROUNDING):
        raise DataError(
            f"the trigger makes {_range(made)} of images {tuple(images.shape)}; expected as many, of the same shape, in [0, 1]. "
            f"Correct it."
        )


def _named(given: Any) -> str:
    return "None" if given is None else f"of type {type(given).__name__}"


def _range(made: Any) -> str:
    if not isinstance(made, Tensor):
        return type(made).__name__
    reach = f" from {float(made.min()):g} to {float(made.max()):g}" if made.numel() and not made.is_complex() else ""
    return f"{tuple(made.shape)}{reach}"


# ---- images ---------------------------------------------------------------------------------------------------------


def image_set(images: Any, labels: Any, classes: Sequence[str] | int | None = None) -> ImageSet:
    """Tensors or arrays as an image set. See `backdoorbench.image_set`."""
    pixels, found = _tensor(images, "images"), _tensor(labels, "labels")
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.shape[2] != pixels.shape[3]:
        hint = (
            "; this looks like (N, H, W, 3): permute(0, 3, 1, 2)"
            if pixels.ndim == 4 and pixels.shape[-1] in (1, 3)
            else ""
        )
        raise DataError(
            f"images have the shape {tuple(pixels.shape)}; expected (N, 3, S, S), or one channel{hint}. Change it."
        )
    if pixels.is_floating_point():
        if not pixels.numel() or not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):
            said = f"reach from {float(pixels.min()):g} to {float(pixels.max()):g}" if pixels.numel() else "are none"
            raise DataError(
                f"images of {pixels.dtype} {said}; expected values in [0, 1], or uint8. Undo their normalisation."
            )
        pixels = to_bytes(pixels)
    if pixels.dtype != torch.uint8:
        raise DataError(f"images are {pixels.dtype}; expected uint8, or floating in [0, 1]. Convert them.")
    if found.shape != (len(pixels),) or found.is_floating_point() or found.dtype == torch.bool:
        raise DataError(
            f"labels are {tuple(found.shape)} {found.dtype}; expected {len(pixels)} whole numbers, one an image. Change them."
        )
    highest = int(found.max()) if len(found) else 0
    names = classes if classes is not None else highest + 1
    if isinstance(names, str | bool) or not isinstance(names, int | Sequence):
        raise DataError(f"classes is {shown(names)}; expected their names as a list, or how many there are. Change it.")
    names = tuple(str(number) for number in range(names)) if isinstance(names, int) else tuple(map(str, names))
    if len(found) and not (int(found.min()) >= 0 and highest < len(names)):
        raise DataError(
            f"labels reach from {int(found.min())} to {highest}, and there are {len(names)} classes; expected labels from 0 to "
            f"{len(names) - 1}. Change the labels, or give more classes."
        )
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise DataError(f"classes names {shown(twice[0])} twice; expected a name for each. Change the names.")
    return ImageSet(pixels.expand(-1, 3, -1, -1).contiguous(), found.long(), names)


def _tensor(given: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        hint = "; class names are given as classes" if what == "labels" else ""
        raise DataError(
            f"{what} cannot be made a tensor ({first_line(error)}); expected a tensor, an array or lists of numbers{hint}. "
            f"Convert them."
        ) from None


# ---- networks -------------------------------------------------------------------------------------------------------


def maker(model: Network, images: ImageSet) -> Callable[[Stream], nn.Module]:
    """What builds the victim's network out of one's own, for these images."""

    def build_network(stream: Stream) -> nn.Module:
        if isinstance(model, nn.Module):
            refuse_program(model)
            net = copy.deepcopy(model)
        else:
            with seeded(stream):
                net = model()
        return wrapped(net, images, trains=True)

    return build_network


def wrapped(net: nn.Module, images: ImageSet, trains: bool) -> nn.Module:
    """A module as a Classifier that hands it pixels in [0, 1] as they are; a Classifier is one. On the device of the images.

    trains  whether a copy of it is to be changed, and not only judged

    ModelError where it does not turn these images into a logit a class."""
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"model is {type(net).__name__}; expected a torch module, or a function that makes one. Change it."
        )
    net = getattr(net, "_orig_mod", net)  # of torch.compile: methods read layers, which its wrapper hides
    model = (net if isinstance(net, Classifier) else Classifier(net, images.size, *AS_IT_IS)).to(images.device)
    batch, _ = next(images.subset(torch.arange(min(2, len(images)))).batches(2))
    try:
        with torch.no_grad(), evaluating(model):
            outputs.settle_layout(model, type(net).__name__, batch)
            logits = model(batch)
    except Exception as error:  # whatever a stranger's code does with images that it was not made for
        raise _unreadable(net, images, error) from None
    wanted = (len(batch), len(images.classes))
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        is_tensor = isinstance(logits, Tensor)
        remedy = (
            "Change its last layer, or the classes." if is_tensor else "Hand over a module that returns these alone."
        )
        raise ModelError(
            f"{type(net).__name__} makes {tuple(logits.shape) if is_tensor else type(logits).__name__} of {len(batch)} images; "
            f"expected logits {wanted}, one a class. {remedy}"
        )
    if not bool(logits.isfinite().all()):
        raise ModelError(
            f"{type(net).__name__} makes logits that are no finite numbers; expected numbers. Its weights are broken, or its "
            f"training left the finite numbers."
        )
    if trains:
        outputs.check_copies(model, type(net).__name__, batch)
    return model


def _unreadable(net: nn.Module, images: ImageSet, error: Exception) -> ModelError:
    """Why a module fails on images: for the precision of its weights, since it cannot be copied, or else for their size."""
    said, name = " ".join(str(error).split()), type(net).__name__
    kinds = {weight.dtype for weight in net.parameters() if weight.is_floating_point()} - {torch.float32}
    if kinds:
        kind = str(kinds.pop()).removeprefix("torch.")
        return ModelError(
            f"{name} has weights in {kind}; expected float32, as images arrive. Convert it: model.float()."
        )
    if isinstance(error, NotImplementedError) and re.match(r"Calling (train|eval)\(\)", said):  # of torch.export
        return ModelError(
            f"{name} is an exported program, which cannot be set to train; expected the module that it was made of. Build that "
            f"one, and load its weights: module.load_state_dict(program.state_dict())."
        )
    if "deepcopy" in said:
        return ModelError(
            f"{name} cannot be copied, which happens before anything is changed ({said[:200]}). Take out what its layers compute "
            f"their weights by, such as torch.nn.utils.remove_weight_norm(layer)."
        )
    return ModelError(
        f"{name} cannot read these images of {images.size} pixels ({said}). Give it images of its size, or another network."
    )


def thawed(net: nn.Module) -> nn.Module:
    """A module of somebody else whose weights may all be trained: itself, or a copy where some were frozen, which is said.

    Whoever tuned its last layers alone froze the others, and the backdoor may be in those. A Classifier of ours keeps what it
    freezes."""
    refuse_program(net)
    weights = (
        [weight for weight in net.parameters() if weight.is_floating_point()] if isinstance(net, nn.Module) else []
    )
    frozen = sum(not weight.requires_grad for weight in weights)
    if isinstance(net, Classifier) or not frozen:
        return net
    log.info(f"{type(net).__name__} has {frozen} of {len(weights)} weights frozen; a defense may train all of them")
    free = copy.deepcopy(net)
    for weight in free.parameters():
        weight.requires_grad_(weight.is_floating_point())
    return free


def refuse_program(net: Any) -> None:
    """Raises ModelError for a module that is compiled code, whose layers nobody can change or listen to."""
    if isinstance(net, torch.jit.ScriptModule):
        raise ModelError(
            "the model is a TorchScript program; expected the module that it was made of, whose layers can be changed. Build "
            "that one, and load its weights: module.load_state_dict(program.state_dict())."
        )


def renewed(model: nn.Module) -> Callable[[Stream], nn.Module]:
    """What builds fresh networks of the same kind: copies whose layers draw their weights anew, as torch's do."""

    def build_network(stream: Stream) -> nn.Module:
        fresh = copy.deepcopy(model)
        with seeded(stream):
            for name, module in fresh.named_modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
                elif next(module.parameters(recurse=False), None) is not None:
                    raise ModelError(
                        f"this defense trains a fresh network, and the layer {name or 'itself'} ({type(module).__name__}) has "
                        f"weights but no reset_parameters to draw them anew. Hand over what makes a fresh one: model=FUNCTION."
                    )
        return fresh

    return build_network


def is_kind(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same weights by name and shape."""
    ours, theirs = ({name: value.shape for name, value in each.state_dict().items()} for each in (model, other))
    return ours == theirs


# ---- infections that are kept ---------------------------------------------------------------------------------------


def kept(
    folder: Path, attack: Attack, train: ImageSet, fresh: Callable[[Stream], nn.Module], recipe: Recipe, stream: Stream,
    make: Callable[[], Infection],
) -> Infection:  # fmt: skip
    """The infection that `make` would train, out of `folder` where it lies there, else trained into it."""
    network = fresh(stream)
    settings = {
        "attack": [type(attack).__qualname__, *_described(attack)],
        "train": _digest(train.images, train.labels),
        "classes": list(train.classes),
        "network": [repr(network), _digest(*network.state_dict().values())],
        "recipe": dataclasses.asdict(recipe),
        "seed": stream.seed,
    }

    def write(partial: Path) -> None:
        nothing = Predictions(torch.zeros(0, dtype=torch.int64), None)
        save_infection(make(), train, nothing, settings, {}, partial)

    place = folder / f"{attack.name}-{store.key('own', settings)}"
    waiting = f"another process trains this infected model ({place.name}); waiting for it"
    return store.obtain(place, write, lambda there: load_infection(there, fresh(stream), train)[0], waiting)[0]


def _described(attack: Attack) -> list[Any]:
    """An attack's settings, the content of the files and folders and the source of the functions that they name, and its own
    source, unless it is one of ours."""
    settings = dataclasses.asdict(attack)
    named = [(what, build.at(settings, key)) for key, what in build.paths(type(attack), settings).items()]
    return [
        settings,
        [_content(what, said) for what, said in named],
        _source_of(type(attack).__module__, type(attack).__name__),
    ]


def _content(what: str, said: str) -> str:
    if what == "function":
        module, _, name = said.partition(":")
        return _source_of(module, name)
    path = Path(said).expanduser()
    return store.file_digest(path) if what == "file" else store.folder_digest(path)


def _source_of(module: str, name: str) -> str:
    package = module.partition(".")[0]
    return "" if package == plugins.OWN_PACKAGE else plugins.digest(f"{module}.{name}", package)


def _digest(*tensors: Tensor) -> str:
    total = hashlib.sha256()
    for value in tensors:
        total.update(f"{tuple(value.shape)} {value.dtype}".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
