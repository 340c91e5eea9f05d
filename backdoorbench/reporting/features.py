"""What a run's infected model reads, and the one that its defense left: penultimate features of test images, clean and
triggered, laid out in a plane by t-SNE.

Paper    t-SNE: van der Maaten and Hinton, JMLR 9, 2008; scikit-learn's Barnes-Hut version, started from the principal axes
Needs    the cached infection (its model and trigger) and the weights that the defense left, in the run's folder
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from backdoorbench.config.build import build
from backdoorbench.config.groups import PURIFY
from backdoorbench.data.base import Dataset
from backdoorbench.errors import DataError
from backdoorbench.models import checkpoint, surgery
from backdoorbench.models.base import ModelSpec
from backdoorbench.shapes import Images
from backdoorbench.storage import store
from backdoorbench.storage.outputs import outputs_of
from backdoorbench.storage.record import Run
from backdoorbench.streams import Stream
from backdoorbench.triggers import base as triggers

CLEAN, TRIGGERED = 600, 300  # test images, at most
BATCH = 100  # images at a time
PERPLEXITY = 30.0  # neighbours an image answers to, roughly
WEIGHTS = f"{PURIFY.model}.safetensors"  # in a run's folder


@dataclass(frozen=True)
class Embedding:
    """Points of M images in a plane.

    before, after  (M, 2) arrays: features of the infected model and of the one that the defense left, each laid out by itself
    kinds          (M,) array: 0 clean, 1 clean of the target's class, 2 triggered
    """

    before: Any
    after: Any
    kinds: Any


def embed(run: Run, folder: Path) -> Embedding:
    """The features of a finished run's models. DataError that says what is missing where something is."""
    outputs = outputs_of(folder.resolve())
    infection = outputs.infection(run.config["attack"]["name"], run.config["dataset"]["name"], run.infection.key)
    described = _described(run, folder, infection)
    dataset = build(run.config["dataset"], "dataset", run.config["plugins"])
    test = dataset.load(outputs.cache).test
    trigger = triggers.load(described["trigger"], load_file(infection / "trigger.safetensors"))
    target = triggers.load_target(described["target"])
    order = Stream(0).child("tsne").permutation(len(test))
    eligible = order[target.is_eligible(test.labels[order])][:TRIGGERED]
    clean, labels = next(test.subset(order[:CLEAN]).batches(CLEAN))
    with torch.no_grad():
        triggered = trigger(next(test.subset(eligible).batches(TRIGGERED))[0])
    wanted = torch.unique(target.label(test.labels[eligible]))
    alone = wanted[0] if len(wanted) == 1 else -1  # all-to-all has no class that is the target's
    kinds = torch.cat([(labels == alone).long(), torch.full((len(eligible),), 2)])
    images = torch.cat([clean, triggered])
    files = infection / "model.safetensors", folder / WEIGHTS
    before, after = (_laid_out(_features(_model(run, dataset, len(test.classes), file), images)) for file in files)
    return Embedding(before, after, kinds.numpy())


def _described(run: Run, folder: Path, infection: Path) -> dict[str, Any]:
    """What the cache says of the infection, once everything needed is there."""
    again = "Repeat the run with rerun=true."
    if run.status != "done":
        raise DataError(f"the run in {folder} is {run.status}; t-SNE needs a finished one. Repeat its command.")
    if run.infection.scores is None or run.infection.scores.asr is None:
        raise DataError(
            f"the run in {folder} has no trigger, so t-SNE has nothing to mark. Choose a run with an attack."
        )
    if not (infection / "infection.json").is_file():
        raise DataError(f"t-SNE needs the infected model, and {infection} is gone from the cache. {again}")
    if not (folder / WEIGHTS).is_file():
        raise DataError(f"t-SNE needs the {PURIFY.model} model, and {folder / WEIGHTS} is gone. {again}")
    store.check(infection)
    described: dict[str, Any] = store.read_json(infection / "infection.json")
    return described


def _model(run: Run, dataset: Dataset, classes: int, file: Path) -> nn.Module:
    size = dataset.crop or dataset.size
    spec: ModelSpec = build(checkpoint.empty(run.config["model"]), "model", run.config["plugins"])
    model = spec.classifier(classes, size, dataset.mean, dataset.std)
    checkpoint.reshape(model, checkpoint.description(file) or {}, run.config["plugins"])
    try:
        checkpoint.restore(model, file)
    except ValueError as error:
        raise DataError(
            f"'{file}' holds other layers than {spec.name} ({' '.join(str(error).split())[:200]}): its defense changed the "
            f"network, or the file is damaged. Choose another run."
        ) from None
    return model.eval()


def _features(model: nn.Module, images: Images) -> Tensor:
    """(M, D) of what the classifier reads."""
    with torch.no_grad():
        return torch.cat([surgery.penultimate(model, batch) for batch in torch.split(images, BATCH)]).float()


def _laid_out(features: Tensor) -> Any:
    """(M, D) -> (M, 2)."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(features.numpy())
