"""Weights in files: safetensors written, safetensors or torch state dicts read, shapes compared before anything is loaded."""

import json
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from backdoorbench.errors import ModelError
from backdoorbench.storage import store

Weights = dict[str, Tensor]

log = logging.getLogger(__name__)

DESCRIPTION = "bdx"  # the entry of metadata
AVERAGED = {"state_dict": "state_dict_ema", "model": "model_ema"}  # as timm's trainer and torchvision's have them


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


def load_given(model: nn.Module, path: str, described: str) -> None:
    """Loads a user's checkpoint: weights of the whole classifier, or of the bare network without its normalisation. Without the
    batch norms' counters, which older versions of torch did not have, a file is whole.

    described  the network in a few words, for messages

    Raises ModelError where the file is missing, is not a plain state dict, has other names or shapes, or values that are no
    numbers. Names are quoted as the file has them."""
    found = read_weights(Path(path).expanduser(), path)
    own = model.state_dict()
    written = _places(found, path)
    weights = {name: found[there] for name, there in written.items()}
    head = _head(written)
    differences = [
        f"{written[name]} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
        for name in sorted(own.keys() & weights.keys())
        if own[name].shape != weights[name].shape
    ]
    optional = {name for name in own if name.startswith("normalize.") or name.endswith(".num_batches_tracked")}
    lacking = sorted(own.keys() - weights.keys() - optional)
    differences += [f"{head}{name.removeprefix('net.') if _is_bare(found) else name} is missing" for name in lacking]
    differences += [f"{written[name]} has no place" for name in sorted(weights.keys() - own.keys())]
    if differences:
        more = f" ({len(differences) - 1} more differences)" if len(differences) > 1 else ""
        raise ModelError(
            f"model.checkpoint={path} does not fit {described}: {differences[0]}{more}. Choose the model, width and data set "
            f"it was trained with."
        )
    _refuse_no_numbers({written[name]: value.to(own[name].dtype) for name, value in weights.items()}, path)
    model.load_state_dict(own | weights)


def _places(found: Weights, path: str) -> dict[str, str]:
    """The classifier's name of each weight -> the name it has in the file, which wrappers have prefixed."""
    places: dict[str, str] = {}
    lead = "net." if _is_bare(found) else ""
    for there in found:
        name = lead + _bare(there)
        if name in places:
            raise ModelError(
                f"model.checkpoint={path} holds both {places[name]} and {there}, which are the same weight; expected each once. "
                f"Save the network again with safetensors.torch.save_file(model.state_dict(), FILE)."
            )
        places[name] = there
    return places


def _is_bare(found: Weights) -> bool:
    return not any(_bare(name).startswith("net.") for name in found)


def _bare(name: str) -> str:
    """A weight's name without what DataParallel (`module.`) and torch.compile (`_orig_mod.`) put into it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 1 and parts[0] == "module":
        del parts[0]
    return ".".join(parts)


def _head(written: dict[str, str]) -> str:
    """What wrappers have put before every name of the file; nothing where they differ."""
    heads = {there.removesuffix(_bare(there)) for there in written.values()}
    return heads.pop() if len(heads) == 1 else ""


def _refuse_no_numbers(weights: Weights, path: str) -> None:
    """Raises ModelError where a weight holds NaN or an infinity."""
    wrong = {name: int((~value.isfinite()).sum()) for name, value in weights.items()}
    wrong = {name: count for name, count in wrong.items() if count}
    if wrong:
        first = min(wrong)
        raise ModelError(
            f"model.checkpoint={path} holds {sum(wrong.values()):,} values that are NaN or infinite, {wrong[first]:,} of them in "
            f"{first}; expected finite numbers. The training that left it went astray, or the file is damaged: choose another."
        )


def read_weights(file: Path, path: str) -> Weights:
    """Name -> tensor from a safetensors file or a torch file that holds a state dict and nothing that runs code."""
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else _torch_weights(file)
    except (FileNotFoundError, IsADirectoryError):
        raise ModelError(
            f"model.checkpoint={path} is no file; expected a safetensors file, or a .pt/.pth state dict."
        ) from None
    except SafetensorError as error:
        if not file.is_file():
            raise ModelError(f"model.checkpoint={path} is no file; expected a safetensors file.") from None
        raise ModelError(f"model.checkpoint={path} is not a readable safetensors file ({error}).") from None
    except Exception as error:
        first = str(error).partition(". ")[0].partition("\n")[0]
        raise ModelError(
            f"model.checkpoint={path} is not a plain state dict ({first}); files that run code when loaded are refused. "
            f"Save the network again with safetensors.torch.save_file(model.state_dict(), FILE)."
        ) from None
    if not (isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise ModelError(
            f"model.checkpoint={path} holds no state dict (a dict of tensors). Save the network again with "
            f"safetensors.torch.save_file(model.state_dict(), FILE)."
        )
    return {str(name): value for name, value in content.items()}


def _torch_weights(file: Path) -> Any:
    """What the file holds, or the state dict that a training script has put into it beside its options (argparse's Namespace,
    which runs nothing). Averaged weights beside it are left, and said to be."""
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(file, map_location="cpu", weights_only=True)
    for name in ("state_dict", "model", "net"):  # where training scripts usually put it
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            if (averaged := AVERAGED.get(name)) in content:
                log.warning(
                    f"{file.name} holds averaged weights ({averaged}) beside the last ones ({name}): the last ones are read. "
                    f"Save the others alone to have them: safetensors.torch.save_file(torch.load(FILE)['{averaged}'], NEW)"
                )
            return content[name]
    return content
