"""Weights in files: our own, which are safetensors; those that users give, in the formats that `reading` knows; and purified
weights as the file that was given has them."""

import copy
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from backdoorbench.config.build import build
from backdoorbench.errors import ModelError, few
from backdoorbench.models import matching, reading
from backdoorbench.models.matching import Fit
from backdoorbench.models.reading import Found, Keys, Weights
from backdoorbench.storage import store

log = logging.getLogger(__name__)

DESCRIPTION = "bdx"  # the entry of metadata
ANEW = {"checkpoint": None, "pretrained": False}  # settings of a network that only choose its first weights
READING = 2  # rises when a given file comes to be read as another network than before: what was made of it is made anew
BYTES = 255  # what white is where a mean or a deviation is above 1


def save(model: nn.Module, file: Path, description: dict[str, Any] | None = None) -> None:
    """The model's weights in `file` (safetensors), on the CPU, in their usual memory layout.

    description  what rebuilds the network around them; one entry of metadata, since of several safetensors 0.8.0 changes the
                 order, and with it the file's bytes, from save to save"""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    metadata = {DESCRIPTION: json.dumps(description, sort_keys=True)} if description is not None else None
    store.write_tensors(file, state, metadata)


def restore(model: nn.Module, file: Path) -> None:
    """Loads what `save` wrote, strictly; ValueError where it is something else."""
    try:
        model.load_state_dict(store.read_tensors(file))
    except RuntimeError as error:
        if not str(error).startswith("Error(s) in loading state_dict"):  # out of memory
            raise
        raise ValueError(f"{file.name}: {' '.join(str(error).split())}") from None


def description(file: Path) -> dict[str, Any] | None:
    """What a weights file says of its network, as `save` wrote it, or wrote it when each part was an entry; None where the file
    says nothing or is none."""
    if not file.is_file():
        return None
    with safe_open(file, "pt") as opened:
        found = opened.metadata() or {}
    if DESCRIPTION in found:
        said: dict[str, Any] = json.loads(found[DESCRIPTION])
        return said
    parts = {name: json.loads(found[name]) for name in ("model", "classes", "size", "normalize") if name in found}
    return parts if "model" in parts else None


def empty(node: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a network whose weights are about to be put in: none are read or fetched first."""
    return {**node, **{key: value for key, value in ANEW.items() if key in node}}


def reshape(model: nn.Module, said: Mapping[str, Any], plugins: Sequence[str] = ()) -> None:
    """Gives a network the layers that the defense added whose model `said` describes."""
    if "defense" in said:
        build(said["defense"], "defense", plugins).reshape(model)


def load_given(model: nn.Module, path: str, described: str, normalised: bool = False) -> Fit:
    """Loads a user's file of weights into a Classifier, and says where they lay, so that `save_as` can put others there.

    described   the network in a few words, for messages
    normalised  whether somebody said how its images are normalised: what the file says of that does not count then

    Raises ModelError where the file is missing, is of no format that is read, has no weights of this network, or values that are
    no numbers. Names are quoted as the file has them."""
    fit = matching.fit(model, reading.read(path, f"model.checkpoint={path}"), described)
    load(model, fit)
    if fit.colours is not None:
        _normalise(model, fit, fit.colours, normalised)
    return fit


def load(model: nn.Module, fit: Fit) -> None:
    """Puts the weights of a file where they were found to belong; ModelError where they are no finite numbers."""
    own = model.state_dict()
    weights = {name: fit.state.weights[there] for name, there in fit.places.items()}
    for name, value in weights.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            raise ModelError(
                f"{fit.found.named} holds {str(value.dtype).removeprefix('torch.')} values in {fit.places[name]}; expected "
                f"fractions. It may be quantised: choose the file from before that."
            )
    weights = {name: value.to(own[name].dtype).reshape(own[name].shape) for name, value in weights.items()}
    _refuse_no_numbers({fit.places[name]: value for name, value in weights.items()}, fit.found.named)
    own.update(weights)
    model.load_state_dict(own)


def _normalise(model: nn.Module, fit: Fit, colours: tuple[str, str], is_said: bool) -> None:
    """Has a Classifier normalise its images as the file says that its network does, unless somebody said how; where that differs
    from what it does, it is told."""
    mean, std = (fit.state.weights[name].float().cpu().flatten() for name in colours)
    white = BYTES if max(float(mean.max()), float(std.max())) > 1 else 1
    own = {name: value for name, value in model.state_dict().items() if name in ("normalize.mean", "normalize.std")}
    theirs = [
        (value / white).view(-1, 1, 1).expand_as(own[name])
        for name, value in zip(sorted(own), (mean, std), strict=True)
    ]
    if all(torch.allclose(own[name].cpu(), value) for name, value in zip(sorted(own), theirs, strict=True)):
        return
    named = f"{fit.found.file.name} says what images are normalised by, in {' and '.join(colours)}"
    if is_said:
        log.warning(f"{named}, and so do the settings, which are followed.")
        return
    for name, value in zip(sorted(own), theirs, strict=True):
        own[name].copy_(value)
    log.info(f"{named}, which is followed; model.mean and model.std change it.")


def _refuse_no_numbers(weights: Weights, named: str) -> None:
    """Raises ModelError where a weight holds NaN or an infinity."""
    wrong = {name: int((~value.isfinite()).sum()) for name, value in weights.items()}
    wrong = {name: count for name, count in wrong.items() if count}
    if wrong:
        first = min(wrong)
        raise ModelError(
            f"{named} holds {sum(wrong.values()):,} values that are NaN or infinite, {wrong[first]:,} of them in {first}; "
            f"expected finite numbers. The training that left it went astray, or the file is damaged: choose another."
        )


def save_as(fit: Fit, model: nn.Module, file: Path) -> None:
    """Writes the network's weights in the format and under the names of the file that `fit` is of: wrappers, prefixes, dtypes and
    plain values beside them as there. What held more than tensors and plain values becomes a plain state dict, and that is said.

    model  the Classifier, as `fit` was made for, with other weights"""
    weights = _as_there(fit, model)
    found = fit.found
    own = model.state_dict()
    rounded = {
        weights[there].dtype for name, there in fit.places.items() if weights[there].itemsize < own[name].itemsize
    }
    if rounded:
        kinds = few(sorted(str(dtype).removeprefix("torch.") for dtype in rounded))
        log.warning(
            f"{file.name} has weights in {kinds}, as {found.file.name} has them: they are rounded from those that were judged."
        )
    if found.format == "safetensors":
        with store.storage_errors(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        store.write_tensors(file, weights, found.metadata or None)
        return
    plain = not found.foreign and found.format != "pickle"
    if not plain:
        log.warning(
            f"{found.file.name} holds more than tensors and plain values, which bdx does not build: {file.name} is the plain "
            f"state dict, under the same names."
        )
    content = _replaced(found.tree, fit.state.keys, weights) if plain else _versioned(fit, model, weights)
    store.write_pickled(file, content, _use_new_zipfile_serialization=found.format != "legacy")


def _as_there(fit: Fit, model: nn.Module) -> Weights:
    """The file's weights with the model's in their places, of the file's shapes and dtypes."""
    own = model.state_dict()
    if lost := sorted(fit.places.keys() - own.keys()):
        raise ModelError(
            f"the network has no {lost[0]} any more, so its weights cannot be written under the names of {fit.found.named}. Save "
            f"them under its own: purified.safetensors in the run's folder has them."
        )
    changed: Weights = {}
    for places in (fit.places, *fit.copies.values()):  # under every name that a loader may take them from
        for name, there in places.items():
            before = fit.state.weights[there]
            changed[there] = own[name].detach().cpu().to(before.dtype).reshape(before.shape)
    if beyond := [there for there, value in changed.items() if not value.isfinite().all()]:
        kind = str(fit.state.weights[beyond[0]].dtype).removeprefix("torch.")
        raise ModelError(
            f"{fit.found.named} has {beyond[0]} in {kind}, which does not reach as far as the numbers that the network has there "
            f"now. Save it in float32 and start from that file; the weights of this run are in its folder, purified.safetensors."
        )
    return {there: changed.get(there, value).contiguous().clone() for there, value in fit.state.weights.items()}


def _versioned(fit: Fit, model: nn.Module, weights: Weights) -> Weights:
    """The weights with the versions of layers beside them, as torch's own state dicts have them, by the names of the file."""
    state: Any = OrderedDict(weights)
    versions = vars(model.state_dict()).get("_metadata", {})
    state._metadata = OrderedDict(
        ((fit.head + name.removeprefix("net").removeprefix(".")).removesuffix("."), version)
        for name, version in versions.items()
        if name.partition(".")[0] == "net"
    )
    return state  # type: ignore[no-any-return]


def _replaced(tree: Any, keys: Keys, weights: Weights) -> Any:
    """The content of a file with other weights where `keys` lead; what is on the way is copied."""
    if isinstance(tree, list | tuple):
        first, *rest = keys
        listed = list(tree)
        listed[first] = _replaced(tree[first], tuple(rest), weights)
        return type(tree)(listed)
    copied = copy.copy(tree)  # with the versions of layers that torch keeps beside a state dict
    copied.update({keys[0]: _replaced(tree[keys[0]], keys[1:], weights)} if keys else weights)
    return copied


def read_weights(file: Path, path: str) -> Weights:
    """Name -> tensor of the likeliest state dict of a file, under the file's own names."""
    found: Found = reading.read(file, f"model.checkpoint={path}")
    if not found.states:
        raise matching.misfit({}, found, "any network")
    return found.states[0].weights
