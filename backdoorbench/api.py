"""The public functions: what the command line does, a step at a time. A thin skin over the pipeline."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from backdoorbench.attacks.base import Attack, Infection, Task, carry_out
from backdoorbench.config import acts, catalog, plugins
from backdoorbench.config import build as building
from backdoorbench.config.compose import Plain, compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.errors import ConfigError, ModelError
from backdoorbench.models import checkpoint
from backdoorbench.models.base import ModelSpec
from backdoorbench.pipeline import job
from backdoorbench.pipeline.evaluation import evaluate
from backdoorbench.reporting import frame
from backdoorbench.reporting.content import tell_apart_by_content
from backdoorbench.storage import record
from backdoorbench.storage.record import Run
from backdoorbench.streams import Stream, seeded
from backdoorbench.training.recipe import Recipe, resolve_precision

__all__ = [
    "build",
    "compose",
    "evaluate",
    "infect",
    "load_dataset",
    "load_model",
    "plugin",
    "purify",
    "results",
    "run",
    "withhold",
]


def plugin(folder: str | Path) -> None:
    """What `--plugin DIR` does: the options in this folder are known from now on, and its code is trusted."""
    plugins.use([str(folder)])
    catalog.refuse_hidden()


def run(*overrides: str) -> Run:
    """What `bdx <overrides>` does: the finished run, found or carried out and recorded.

    Raises BdxError for a mistake in the settings."""
    return job.carry_out(compose(overrides)).run


def build(option: str, **changes: Any) -> Any:
    """The object an option describes, with some settings changed: `build("defense/fst", lr=0.02)`."""
    group, _, name = option.partition("/")
    resolved = compose([f"{group}={name}"])
    resolved[group] |= changes
    made = building.build(resolved[group], group, resolved["plugins"])
    acts.refuse_idle(group, acts.idle(type(made), resolved[group], group), resolved)
    return made


def load_dataset(name: str, device: str = "cpu", **changes: Any) -> tuple[ImageSet, ImageSet]:
    """Training and test split of a data set: `load_dataset("cifar10", root="/data/cifar10", train_size=5000)`."""
    resolved = compose([f"dataset={name}"])
    dataset = building.build({**resolved["dataset"], **changes}, "dataset")
    splits = dataset.load(Path(resolved["runtime"]["outputs"]).expanduser() / "cache")
    train, test = (dataclasses.replace(split, dataset=dataset.name).to(device) for split in (splits.train, splits.test))
    return train, test


def withhold(
    clean: ImageSet, rate: float | None = None, seed: int = 0, *, per_class: int | None = None
) -> tuple[ImageSet, ImageSet]:
    """`clean` without some of its images, and these: the victim's images, and the defender's. They are a stratified share of
    `rate`, or `per_class` images of each class."""
    if (rate is None) == (per_class is None):
        raise ValueError("expected either a rate or a per_class: a share of the images, or so many of each class")
    holdout = dataclasses.replace(build("holdout/standard"), rate=rate or 0.0, per_class=per_class)
    parts = holdout.divide(clean, clean, Stream(seed).child("holdout"))
    if parts.holdout is None:
        raise ValueError("rate is 0: nothing is withheld")
    return parts.train, parts.holdout


def infect(attack: Attack, train: ImageSet, *settings: str, seed: int = 0) -> Infection:
    """Trains a model on `train`, attacked. `settings` say on what and how: `"dataset=digits"` (its normalisation, network and
    recipe come along), `"model=resnet18"`, `"train.epochs=5"`.

    Raises ConfigError where the images are not of the data set that the settings name, digits where they name none."""
    fresh, recipe = _victim(train, settings)
    attack.check(train)
    attack.check_recipe(recipe, len(train))
    task, stream = Task(train, fresh, recipe, None), Stream(seed).child("infect")

    def surrogate() -> nn.Module:
        clean: Infection = build("attack/none").infect(task, stream)
        return clean.model

    return carry_out(attack, dataclasses.replace(task, surrogate=surrogate), stream)


def purify(
    defense: Defense, infection: Infection, holdout: ImageSet | None, *settings: str, seed: int = 0
) -> nn.Module:
    """The model that `defense` makes of an infection. `settings` as the infection had them.

    holdout  clean images, disjoint from what the model is judged by; None where the defense needs none"""
    place = holdout if holdout is not None else infection.train
    if place is None:
        raise ValueError("neither a holdout nor a training set: a defense has nothing to work with")
    fresh, recipe = _victim(place, settings)
    scenario = Scenario(
        defense.needs,
        model=copy.deepcopy(infection.model),
        holdout=holdout,
        train=infection.train,
        build=fresh,
        recipe=recipe,
        stream=Stream(seed).child("purify"),
        device=place.device,
        probe=lambda model, epoch: None,
        note=lambda name, value: None,
    )
    return defense.purify(scenario).eval()


def _victim(images: ImageSet, settings: tuple[str, ...]) -> tuple[Callable[[Stream], nn.Module], Recipe]:
    """What builds the network that the settings name, for these images, and the recipe that trains it."""
    resolved = compose(settings)
    resolved["train"]["precision"] = resolve_precision(resolved["train"]["precision"], images.device)
    spec: ModelSpec = building.build(resolved["model"], "model", resolved["plugins"])
    dataset = resolved["dataset"]
    _check_images(images, dataset)
    size = dataset["crop"] or images.size

    def fresh(stream: Stream) -> nn.Module:
        with seeded(stream):
            model = spec.classifier(len(images.classes), size, dataset["mean"], dataset["std"])
        return model.to(images.device)

    return fresh, building.build(resolved["train"], "train")


def _check_images(images: ImageSet, dataset: Plain) -> None:
    """Raises ConfigError where images are of another data set than the settings say: its normalisation would be the wrong one."""
    if images.dataset and images.dataset != dataset["name"]:
        raise ConfigError(
            f"the images are of {images.dataset}, and the settings say dataset={dataset['name']}, whose normalisation and recipe "
            f'they would get. Add "dataset={images.dataset}" to the settings, as load_dataset was given it.'
        )
    if images.size != dataset["size"]:
        raise ConfigError(
            f"the images have {images.size} pixels a side, and the settings say {dataset['size']}, those of "
            f'dataset={dataset["name"]}. Name their data set, or add "dataset.size={images.size}" to the settings.'
        )


def load_model(folder: str | Path, plugins: Sequence[str] = ()) -> nn.Module:
    """The purified model of a run's folder (or its `purified.safetensors`), in eval mode: [0, 1] pixels in, logits out.

    plugins  packages beside this one whose code may build the network, as the run named them"""
    file = Path(folder) / "purified.safetensors" if Path(folder).is_dir() else Path(folder)
    said = checkpoint.description(file)
    if said is None:
        raise ModelError(
            f"'{file}' does not say what network its weights belong to; expected a run's folder, or its weights. Name another."
        )
    spec: ModelSpec = building.build({**said["model"], "checkpoint": None}, "model", plugins)
    size, normal = said["size"], said["normalize"]
    model = spec.classifier(len(said["classes"]), size, normal["mean"], normal["std"])
    checkpoint.restore(model, file)
    return model.eval()


def results(*folders: str | Path) -> Any:
    """A pandas DataFrame of the runs below `folders`, one row each: settings that name it, figures as fractions; a run repeated
    or resumed is one row, its latest finished record. The same as `bdx report --format runs-csv`.

    Needs the extra `frames` (pandas)."""
    import pandas

    return pandas.DataFrame(frame.rows(tell_apart_by_content(record.collect(map(Path, folders or ("outputs",))))))
