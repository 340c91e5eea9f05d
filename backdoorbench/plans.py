"""A configuration, built, checked and keyed before anything is trained: what a run depends on, and the infection under it."""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from backdoorbench import cache, config, device
from backdoorbench.attacks.base import Attack, DataAttack
from backdoorbench.config import Plain
from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.holdout import Holdout, Parts
from backdoorbench.defenses.base import Defense
from backdoorbench.errors import ConfigError
from backdoorbench.evaluation import Gates
from backdoorbench.models.base import ModelSpec
from backdoorbench.streams import Stream
from backdoorbench.trackers.base import Tracker
from backdoorbench.training.recipe import Recipe, resolve_precision

T = TypeVar("T")
Made = TypeVar("Made", bound="Sketch")

FORMAT = 1  # rises when what the cache holds changes its meaning for every method at once
NOT_SETTINGS = ("root", "download")  # of a data set: where it lies; the digest says what it is


@dataclass(frozen=True)
class Sketch:
    """A configuration, built, checked and keyed; its images are not yet divided, so that hundreds take seconds.

    infection_settings   what the infected model depends on
    infection_key        its address, made of them
    key                  the whole run's address, made of the configuration without `runtime` and the switches
    """

    config: Plain
    dataset: Dataset
    spec: ModelSpec
    recipe: Recipe
    holdout: Holdout
    attack: Attack
    defense: Defense
    gates: Gates
    seed: int
    device: torch.device
    splits: Splits
    outputs: Path
    infection_settings: Plain
    infection_key: str
    key: str
    tracker: Tracker

    @property
    def label(self) -> str:
        """`digits-badnets-fst`, for folders and lists."""
        return f"{self.dataset.name}-{self.attack.name}-{self.defense.name}"

    @property
    def stream(self) -> Stream:
        return Stream(self.seed)

    @property
    def infection_folder(self) -> Path:
        """Where the cache keeps the infected model."""
        name = f"{self.attack.name}-{self.dataset.name}-{self.infection_key}"
        return self.outputs / "cache" / "infection" / name


@dataclass(frozen=True)
class Plan(Sketch):
    """A sketch with its images divided: all that a run starts from. Nothing is trained yet."""

    parts: Parts


class Shared:
    """What the plans of one sweep have in common, made once for all of them."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def once(self, what: str, settings: Any, make: Callable[[], T]) -> T:
        """`make()`, called for the first of equal `settings` only; an error is not remembered."""
        name = what + json.dumps(settings, sort_keys=True, default=str)
        if name not in self._made:
            self._made[name] = make()
        return cast(T, self._made[name])


def plan(resolved: Plain) -> Plan:
    """Builds and checks everything a configuration names, reads its data set, and computes its keys.

    Raises a BdxError for whatever is wrong; nothing has been trained then."""
    made = sketch(resolved, Shared())
    fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return Plan(**fields, parts=divide(made))


def sketch(resolved: Plain, shared: Shared) -> Sketch:
    """`plan` without the division of the images, which `divide` does and checks."""
    plugins = resolved["plugins"]
    runtime = resolved["runtime"]
    where = shared.once("device", runtime["device"], lambda: device.choose(runtime["device"]))
    device.prepare(where, runtime["threads"])
    resolved = copy.deepcopy(resolved)
    resolved["train"]["precision"] = resolve_precision(resolved["train"]["precision"], where)
    dataset, spec, recipe, holdout, attack, defense, tracker = (
        shared.once(group, [resolved[group], plugins], functools.partial(config.build, resolved[group], group, plugins))
        for group in ("dataset", "model", "train", "holdout", "attack", "defense", "tracker")
    )
    tracker.check()
    if not isinstance(resolved["seed"], int):
        raise ConfigError(f"seed is {resolved['seed']!r}; expected a whole number. Sweep several with -m seed=0,1,2.")
    gates = config.construct(Gates, resolved["gates"], "gates")
    offered = {
        "train": attack.leaves_train or (bool(resolved["reconstruct"]) and attack.can_rebuild),
        "rebuild": attack.can_rebuild,
        "holdout": holdout.rate > 0 or holdout.source == "folder",
        "disjoint": holdout.source != "train_overlap",
    }
    defense.check(offered, attack.name)
    outputs = Path(runtime["outputs"]).expanduser()
    splits = shared.once(
        "splits", [resolved["dataset"], runtime["outputs"], plugins], lambda: dataset.load(outputs / "cache")
    )
    settings = run_settings(resolved, splits.digest)
    infection = infection_settings(settings, holdout)
    return Sketch(
        resolved, dataset, spec, recipe, holdout, attack, defense, gates, resolved["seed"], where, splits, outputs,
        infection, cache.key("infection", infection), cache.key("run", settings), tracker,
    )  # fmt: skip


def divide(made: Sketch) -> Parts:
    """The images of victim, defender and test. Raises a BdxError where the attack or the network does not fit them."""
    parts = made.holdout.divide(made.splits.train, made.splits.test, Stream(made.seed).child("holdout"))
    made.attack.check(parts.train)
    made.spec.net(len(made.splits.train.classes), made.dataset.crop or made.dataset.size)
    return parts


def run_settings(resolved: Plain, digest: str) -> Plain:
    """What a run depends on: the data's digest in place of its folder, files by their content, no runtime, no switches."""
    kept = {
        group: resolved[group]
        for group in ("model", "train", "holdout", "attack", "defense", "gates", "curve", "control", "seed")
    }
    kept["dataset"] = {key: value for key, value in resolved["dataset"].items() if key not in NOT_SETTINGS} | {
        "digest": digest
    }
    settings: Plain = with_file_digests({"format": FORMAT, **kept}, "")
    return settings


def infection_settings(settings: Plain, holdout: Holdout) -> Plain:
    """The part of a run's settings that its infected model depends on."""
    kept = {group: settings[group] for group in ("format", "dataset", "model", "train", "attack", "seed")}
    return kept | {"holdout": settings["holdout"] if holdout.changes_training else None}


def with_file_digests(value: Any, where: str) -> Any:
    """`value` with each file that a key `checkpoint` or `..._file` names, and each folder that a key `..._folder` or
    `holdout.root` names, replaced by the digest of its content."""
    if not isinstance(value, dict):
        return value
    found = {}
    for key, item in value.items():
        if isinstance(item, str) and (key == "checkpoint" or key.endswith("_file")):
            file = Path(item).expanduser()
            if not file.is_file():
                raise ConfigError(f"{where}{key} is '{item}', which is no file; expected the path of an existing one.")
            stat = file.stat()
            found[key] = _digest(file, stat.st_size, stat.st_mtime_ns)
        elif isinstance(item, str) and key.endswith("_folder"):
            found[key] = cache.folder_digest(Path(item).expanduser())  # the attack has checked that it is one
        elif isinstance(item, str) and f"{where}{key}" == "holdout.root" and Path(item).expanduser().is_dir():
            found[key] = cache.folder_digest(Path(item).expanduser())  # what is none is refused when images are divided
        else:
            found[key] = with_file_digests(item, f"{where}{key}.")
    return found


@functools.lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    """A sweep's runs name the same large file: it is read once for each of its states."""
    return cache.file_digest(file)


def clean_plan(made: Made) -> Made:
    """The same training without an attack: of the control, and of the surrogate that some attacks craft on."""
    option = config.option("attack", "none")
    settings = made.infection_settings | {"attack": option}
    return dataclasses.replace(
        made,
        attack=config.build(option, "attack"),
        infection_settings=settings,
        infection_key=cache.key("infection", settings),
    )


def network_folder(made: Plan) -> tuple[Path, Plain]:
    """Where the network of the attack's learned trigger lies or would lie, and all it depends on: the data set's bytes, the
    precision, and what the attack adds to the settings of every data poisoning. No rate, no victim, no seed of the run."""
    shared = {field.name for field in dataclasses.fields(DataAttack)} - {"name"}
    settings = {
        "format": FORMAT,
        "digest": made.infection_settings["dataset"]["digest"],
        "precision": made.recipe.precision,
        "attack": {name: value for name, value in made.infection_settings["attack"].items() if name not in shared},
    }
    name = f"{made.attack.name}-{made.dataset.name}-{cache.key('network', settings)}"
    return made.outputs / "cache" / "network" / name, settings
