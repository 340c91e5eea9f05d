"""An infection in a folder: weights, trigger, target, predictions, and of the training set only the rows it changed. And the
network of a learned trigger in another, for the infections that share it."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backdoorbench.attacks.base import Infection
from backdoorbench.config.compose import Plain
from backdoorbench.data.images import ImageSet
from backdoorbench.models import checkpoint
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.plan import Plan
from backdoorbench.storage import store
from backdoorbench.training.fit import Epoch
from backdoorbench.triggers import base as triggers

WEIGHTS = "model.safetensors"  # the infected model's, in an infection's folder


def save_infection(
    infection: Infection,
    clean: ImageSet,
    predictions: Predictions,
    settings: Plain,
    seconds: dict[str, float],
    folder: Path,
    description: dict[str, Any] | None = None,
) -> None:
    """Writes an infection into `folder`.

    clean     the training set the attack was given
    settings  all it depends on; seconds: what it cost, by part
    description  what rebuilds the network around its weights"""
    spec, tensors = triggers.dump(infection.trigger) if infection.trigger is not None else (None, {})
    described = {
        "settings": settings,
        "seconds": seconds,
        "trigger": spec,
        "target": triggers.target_settings(infection.target) if infection.target is not None else None,
        "facts": infection.facts,
        "history": [asdict(epoch) for epoch in infection.history],
        "has_train": infection.train is not None,
    }
    checkpoint.save(infection.model, folder / WEIGHTS, description)
    store.write_tensors(folder / "trigger.safetensors", tensors)
    store.write_tensors(folder / "rows.safetensors", changed_rows(infection, clean))
    calls = {"clean": predictions.clean, "triggered": predictions.triggered}
    found = {name: value for name, value in calls.items() if value is not None}
    store.write_tensors(folder / "predictions.safetensors", found)
    store.write_json(folder / "infection.json", described)


def load_infection(folder: Path, model: nn.Module, clean: ImageSet) -> tuple[Infection, Predictions]:
    """What `save_infection` wrote: `model` (of the right kind, any weights) becomes the infected one. Damaged where it is not
    what was written."""
    with store.reading(folder):
        described = description(folder)
        checkpoint.restore(model, folder / WEIGHTS)
        trigger = None
        if described["trigger"] is not None:
            tensors = store.read_tensors(folder / "trigger.safetensors")
            trigger = triggers.load(described["trigger"], tensors).to(clean.device)
        target = triggers.load_target(described["target"]) if described["target"] is not None else None
        train, poisoned = None, None
        if described["has_train"]:
            train, poisoned = with_changed_rows(clean, store.read_tensors(folder / "rows.safetensors"))
        history = [Epoch(**epoch) for epoch in described["history"]]
        calls = store.read_tensors(folder / "predictions.safetensors")
        predictions = Predictions(calls["clean"], calls.get("triggered"))
    infection = Infection(model.eval(), trigger, target, train, poisoned, history, described["facts"])
    return infection, predictions


def description(folder: Path, name: str = "infection.json") -> dict[str, Any]:
    """What a cached folder says of itself."""
    content = store.read_json(folder / name)
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds no object")
    return content


def save_network(network: nn.Module, settings: Plain, seconds: float, folder: Path) -> None:
    """Writes the network of a learned trigger into `folder`; settings: all it depends on."""
    spec, tensors = triggers.dump(network)
    store.write_tensors(folder / "network.safetensors", tensors)
    store.write_json(folder / "network.json", {"settings": settings, "seconds": seconds, "network": spec})


def load_network(folder: Path, device: torch.device) -> nn.Module:
    """What `save_network` wrote, in eval mode, on `device`."""
    with store.reading(folder):
        spec = description(folder, "network.json")["network"]
        network: nn.Module = triggers.load(spec, store.read_tensors(folder / "network.safetensors"))
    return network.to(device)


def changed_rows(infection: Infection, clean: ImageSet) -> dict[str, Tensor]:
    """The rows of the victim's training set that are not as in `clean`, rows appended after its end included."""
    if infection.train is None or infection.poisoned is None:
        return {}
    train = infection.train.to("cpu")
    count = len(clean)
    differs = torch.ones(len(train), dtype=torch.bool)
    differs[:count] = (train.images[:count] != clean.images.cpu()).flatten(1).any(1)
    differs[:count] |= train.labels[:count] != clean.labels.cpu()
    rows = differs.nonzero()[:, 0]
    return {
        "rows": rows,
        "images": train.images[rows].contiguous(),
        "labels": train.labels[rows],
        "poisoned": infection.poisoned.cpu().to(torch.uint8),
    }


def with_changed_rows(clean: ImageSet, stored: dict[str, Tensor]) -> tuple[ImageSet, Tensor]:
    """The victim's training set and its poison mask, from the clean one and what `changed_rows` kept."""
    poisoned = stored["poisoned"].bool()
    rows = stored["rows"]
    extra = len(poisoned) - len(clean)
    images, labels = clean.images, clean.labels
    if extra:
        images = torch.cat([images, images.new_zeros((extra, *images.shape[1:]))])
        labels = torch.cat([labels, labels.new_zeros(extra)])
    elif len(rows):
        images, labels = images.clone(), labels.clone()
    if len(rows):
        images[rows.to(images.device)] = stored["images"].to(images.device)
        labels[rows.to(labels.device)] = stored["labels"].to(labels.device)
    return replace(clean, images=images, labels=labels), poisoned


def describe_model(made: Plan) -> dict[str, Any]:
    """What rebuilds the network around its weights."""
    return {
        "model": made.config["model"],
        "classes": made.splits.train.classes,
        "size": made.dataset.crop or made.dataset.size,
        "normalize": {"mean": made.dataset.mean, "std": made.dataset.std},
        "run": made.key,
    }


def describe_purified(made: Plan) -> dict[str, Any]:
    """The same of a purified model, whose defense may have given the network more layers."""
    return describe_model(made) | ({"defense": made.config["defense"]} if made.defense.reshapes else {})
