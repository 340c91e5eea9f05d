"""What a program brings itself instead of naming it in settings: images, a network, a folder for what was trained."""

import copy
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from backdoorbench.attacks.base import Attack, Infection
from backdoorbench.config import build, plugins
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import DataError, ModelError
from backdoorbench.models import outputs
from backdoorbench.models.base import Classifier, evaluating
from backdoorbench.models.layouts import settle
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.infections import load_infection, save_infection
from backdoorbench.shapes import to_bytes
from backdoorbench.storage import store
from backdoorbench.streams import Stream, seeded
from backdoorbench.training.recipe import Recipe

log = logging.getLogger(__name__)

Network: TypeAlias = (
    nn.Module | Callable[[], nn.Module]
)  # itself, whose weights are the first ones, or what makes a fresh one
AS_IT_IS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and deviation that leave pixels alone


# ---- images ---------------------------------------------------------------------------------------------------------


def image_set(images: Any, labels: Any, classes: Sequence[str] | int | None = None) -> ImageSet:
    """Tensors or arrays as an image set. See `backdoorbench.image_set`."""
    pixels, found = torch.as_tensor(images), torch.as_tensor(labels)
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
    names = tuple(str(number) for number in range(names)) if isinstance(names, int) else tuple(map(str, names))
    if len(found) and not (int(found.min()) >= 0 and highest < len(names)):
        raise DataError(
            f"labels reach from {int(found.min())} to {highest}, and there are {len(names)} classes; expected labels from 0 to "
            f"{len(names) - 1}. Change the labels, or give more classes."
        )
    return ImageSet(pixels.expand(-1, 3, -1, -1).contiguous(), found.long(), names)


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
        return wrapped(net, images)

    return build_network


def wrapped(net: nn.Module, images: ImageSet) -> nn.Module:
    """A module as a Classifier that hands it pixels in [0, 1] as they are; a Classifier is one. On the device of the images.

    ModelError where it does not turn these images into a logit a class."""
    if not isinstance(net, nn.Module):
        raise ModelError(
            f"model is {type(net).__name__}; expected a torch module, or a function that makes one. Change it."
        )
    model = (net if isinstance(net, Classifier) else Classifier(net, images.size, *AS_IT_IS)).to(images.device)
    batch, _ = next(images.subset(torch.arange(min(2, len(images)))).batches(2))
    try:
        if settle(model, batch):
            outputs.say(f"{type(net).__name__} {outputs.UNREADABLE}")
        with torch.no_grad(), evaluating(model):
            logits = model(batch)
    except RuntimeError as error:
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
    return model


def _unreadable(net: nn.Module, images: ImageSet, error: RuntimeError) -> ModelError:
    """Why a module fails on images: for the precision of its weights, since it cannot be copied, or else for their size."""
    said, name = " ".join(str(error).split()), type(net).__name__
    kinds = {weight.dtype for weight in net.parameters() if weight.is_floating_point()} - {torch.float32}
    if kinds:
        kind = str(kinds.pop()).removeprefix("torch.")
        return ModelError(
            f"{name} has weights in {kind}; expected float32, as images arrive. Convert it: model.float()."
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
