"""A purified model of somebody else, handed back: its weights as their file had them, and a card that says what was done."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backdoorbench import metrics
from backdoorbench.config import catalog
from backdoorbench.config.build import build
from backdoorbench.config.compose import Plain, option
from backdoorbench.detectors.base import Detector, Scenario, Verdict
from backdoorbench.errors import ModelError
from backdoorbench.models import by_order, checkpoint, matching, reading, stems, unmerged
from backdoorbench.models.base import Classifier, ModelSpec
from backdoorbench.models.identify import class_counts, likely_side
from backdoorbench.models.matching import Fit
from backdoorbench.models.reading import DEEPEST, Found, Keys
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting import card
from backdoorbench.reporting.card import Facts
from backdoorbench.storage import store
from backdoorbench.streams import Stream

CARD = "model-card.md"


@dataclass(frozen=True)
class Left:
    """What `write` left: the card, and what it says of the weights."""

    card: Path
    facts: Facts


def name_of(model: Path) -> str:
    """`theirs-clean.pth` of `theirs.pth`."""
    suffix = "".join(model.suffixes[-2:]) if model.suffixes[-2:] == [".pth", ".tar"] else model.suffix
    return f"{model.name.removesuffix(suffix)}-clean{suffix}"


def card_of(file: Path) -> Path:
    """The card beside a file of weights that the user named."""
    return file.with_name(f"{file.name}.{CARD}")


def write(done: Job, config: Plain, file: Path) -> Left:
    """Writes a run's purified weights to `file`, in the format and under the names of the file that its model came from, and the
    card beside it.

    config  of this command: the run may have been found done, and made from a file of another name"""
    run, folder = done.run, done.folder
    source = Path(config["model"]["checkpoint"]).expanduser()
    if file.exists() and file.samefile(source):
        raise ModelError(f"--to is '{file}', the model that was read. Name another file: it is not overwritten.")
    model = network(folder / "purified.safetensors", run.config["plugins"])
    fit = matching.find(model, reading.read(source), run.config["model"]["name"])[0]
    fit, left_out = without_the_old(fit)
    checkpoint.save_as(fit, model, file)
    calls = store.read_tensors(folder / "predictions.safetensors")
    facts = Facts(
        config,
        file,
        store.file_digest(file),
        model.normalize.mean.flatten().tolist(),
        model.normalize.std.flatten().tolist(),
        metrics.share(calls["infected_clean"] == calls["purified_clean"]),
        kept_beside(fit),
        left_out,
        list(fit.copies),
    )
    place = file.with_name(CARD) if file.parent == folder else card_of(file)
    store.write_text(place, card.text(run, folder, facts))
    return Left(place, facts)


def mostly_called(judged: Job) -> tuple[int, float] | None:
    """The class that most triggered test images are called, and the share of them; None where that is less than half, or where
    clean images are called so as often."""
    calls = store.read_tensors(judged.folder / "predictions.safetensors")
    triggered, clean = calls["infected_triggered"], calls["infected_clean"]
    label = int(triggered.long().bincount().argmax())
    share = metrics.share(triggered == label)
    return (label, share) if share >= 0.5 > metrics.share(clean == label) else None


def network(file: Path, plugins: Sequence[str]) -> Classifier:
    """The model whose weights, and what they belong to, a file of ours holds. plugins: packages that may build it."""
    said = checkpoint.description(file)
    assert said is not None  # every run's file says it
    spec: ModelSpec = build({**said["model"], "checkpoint": None}, "model", plugins)
    model = spec.classifier(len(said["classes"]), said["size"], **said["normalize"])
    checkpoint.restore(model, file)
    return model.eval()


# ---- what lies beside the weights -----------------------------------------------------------------------------------


def is_kept(fit: Fit) -> bool:
    """Whether what lies beside the weights is written back, too."""
    return not fit.found.foreign and fit.found.format != "pickle"


def kept_beside(fit: Fit) -> dict[str, Any]:
    """The plain values beside the weights, by dotted name, which say something of the model that was read."""
    return fit.found.beside if is_kept(fit) else {}


def without_the_old(fit: Fit) -> tuple[Fit, list[str]]:
    """The fit of a file without what holds the old weights once more or goes on from them: averages of them, which loaders may
    prefer, and an optimizer's moments. They are told by their shapes, which are all those of the network's own weights. And the
    dotted names of what was left out."""
    found, keys = fit.found, fit.state.keys
    own = {value.shape for value in fit.state.weights.values()}
    tree, inside = found.tree, found.tree
    dropped: list[str] = []
    for depth in range(len(keys) + 1 if is_kept(fit) and found.tree is not None else 0):
        for key, value in _parts(inside):
            if (depth == len(keys) or key != keys[depth]) and _holds(value, own):
                tree = _without(tree, (*keys[:depth], key))
                dropped.append(".".join(map(str, (*keys[:depth], key))))
        inside = inside[keys[depth]] if depth < len(keys) else None
    gone = tuple(f"{name}." for name in dropped)
    beside = {name: value for name, value in found.beside.items() if not name.startswith(gone)}
    return replace(fit, found=replace(found, tree=tree, beside=beside)), dropped


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """Keys and values of a container; of anything else none."""
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def _holds(value: Any, shapes: set[torch.Size], depth: int = 0) -> bool:
    """Whether a container or one inside it holds tensors, and only of these shapes; single numbers do not count."""
    parts = [part for _, part in _parts(value)]
    tensors = [part.shape for part in parts if isinstance(part, torch.Tensor) and part.numel() > 1]
    if tensors and shapes.issuperset(tensors):
        return True
    return depth < DEEPEST and any(_holds(part, shapes, depth + 1) for part in parts)


def _without(tree: Any, branch: Keys) -> Any:
    """A tree without one of its branches; in a list or tuple, whose places count, there is None in its place."""
    first, *rest = branch
    if isinstance(tree, list | tuple):
        listed = list(tree)
        listed[first] = _without(tree[first], tuple(rest)) if rest else None
        return type(tree)(listed)
    copied = copy.copy(tree)
    if rest:
        copied[first] = _without(tree[first], tuple(rest))
    else:
        del copied[first]
    return copied


# ---- a file alone ---------------------------------------------------------------------------------------------------


def fitted(found: Found, resolved: Plain, size: int | None) -> Classifier:
    """The network that a configuration names, with the weights of a file, and says which of these it takes; ModelError where none
    are its.

    size  pixels a side of the images, where somebody knows"""
    dataset, node = resolved["dataset"], {**resolved["model"], "checkpoint": str(found.file)}
    failed = matching.misfit({}, found, "any network") if not found.states else None
    for state in found.states[:3]:
        for classes in class_counts(state):
            side = size or likely_side(state)
            spec: ModelSpec = build(node, "model", resolved["plugins"])
            if (stem := stems.fitting(spec, classes, side)) is not None:
                spec = stems.with_stem(spec, stem)
            model = spec.classifier(classes, side, dataset["mean"], dataset["std"])
            described = f"{spec.name} for {classes} classes at {side} pixels"
            if fits := matching.find(model, found, described):
                checkpoint.load(model, fits[0])
                matching.tell(fits, described)
                return model.eval()
            failed = failed or matching.misfit(by_order.shapes_in(model.state_dict()), found, described)
    if failed is None and unmerged.told(found) is not None:
        failed = matching.misfit({}, found, "any network")
    raise failed or ModelError(
        f"{found.named} has no last layer that says how many classes it is for; expected a linear one. Add --data DIR."
    )


def without_images(model: Classifier, resolved: Plain) -> dict[str, Verdict | ModelError]:
    """What the detectors that need a model and nothing else say of it, by name, or why one cannot be asked."""
    said: dict[str, Verdict | ModelError] = {}
    for name in catalog.names("detector"):
        detector: Detector = build(option("detector", name), "detector")
        if detector.needs == {"model"}:
            scenario = Scenario(
                detector.needs, model=model, holdout=None, train=None, build=lambda _: model,
                recipe=build(resolved["train"], "train"), stream=Stream(0), device=torch.device("cpu"),
                probe=lambda *_: None, note=lambda *_: None,
            )  # fmt: skip
            try:
                said[name] = detector.examine(scenario)
            except ModelError as error:
                said[name] = error
    return said
