"""A configuration, built, checked and keyed before anything is trained: what a run depends on, and the infection under it."""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from backdoorbench import device
from backdoorbench.after.base import AfterAttack
from backdoorbench.after.exact import Exact
from backdoorbench.attacks.base import Attack, DataAttack
from backdoorbench.config import catalog, groups, plugins
from backdoorbench.config.acts import idle, refuse_idle
from backdoorbench.config.build import at, build, dotted, paths, target
from backdoorbench.config.compose import Plain, flat, option
from backdoorbench.config.groups import AFTER, DETECT, SOURCE, Stage
from backdoorbench.data.base import Dataset, Reading, Splits
from backdoorbench.data.holdout import Holdout, Parts
from backdoorbench.defenses.base import Defense
from backdoorbench.detectors.base import Detector
from backdoorbench.errors import ConfigError, DataError, PairingError, check_name
from backdoorbench.models import checkpoint, stems
from backdoorbench.models.base import ModelSpec
from backdoorbench.models.outputs import say
from backdoorbench.pipeline import switches
from backdoorbench.pipeline.gates import Gates
from backdoorbench.storage import store
from backdoorbench.storage.outputs import Outputs
from backdoorbench.streams import Stream
from backdoorbench.trackers.base import Tracker
from backdoorbench.training.recipe import Recipe, resolve_precision

T = TypeVar("T")
Made = TypeVar("Made", bound="Sketch")

KINDS = {  # what the options of a group are
    "dataset": Dataset, "model": ModelSpec, "train": Recipe, "holdout": Holdout, "attack": Attack, "defense": Defense,
    "detector": Detector, "after": AfterAttack, "tracker": Tracker,
}  # fmt: skip
NAMING = ("dataset", "attack", "defense", "detector", "after")  # groups whose options' names folders bear
FORMAT = 1  # rises when what the cache holds changes its meaning for every method at once


@dataclass(frozen=True)
class Sketch:
    """A configuration, built, checked and keyed; its images are not yet divided, so that hundreds take seconds.

    settings             what the run depends on: the configuration without `runtime` and the switches
    content              of them what is no setting but what settings name: digests, by dotted key
    infection_settings   what the infected model depends on
    infection_key        its address, made of them
    key                  the whole run's address
    """

    config: Plain
    dataset: Dataset
    spec: ModelSpec
    recipe: Recipe
    holdout: Holdout
    attack: Attack
    defense: Defense
    detector: Detector
    after: AfterAttack
    exact: Exact
    gates: Gates
    seed: int
    device: torch.device
    splits: Splits
    outputs: Outputs
    settings: Plain
    content: dict[str, str]
    infection_settings: Plain
    infection_key: str
    key: str
    tracker: Tracker

    @property
    def label(self) -> str:
        """`digits-badnets-fst`, or with a detector and an after-attack `digits-badnets-fst-strip-retune`, for folders and
        lists."""
        names = [self.dataset.name, self.attack.name, self.defense.name]
        names += [self.detector.name] * self.detects + [self.after.name] * self.is_attacked_after
        return "-".join(names)

    @property
    def plugins(self) -> list[str]:
        """Those of the configuration's `plugins` that an option of this run comes from."""
        used = {package for _, package in self._theirs()}
        return [package for package in self.config["plugins"] if package in used]

    @property
    def source(self) -> dict[str, Path]:
        """The plugins' files that the key holds, as they are imported."""
        return {name: file for path, package in self._theirs() for name, file in plugins.source(path, package).items()}

    def _theirs(self) -> list[tuple[str, str]]:
        """The dotted path of each class and function of a plugin, and the plugin."""
        named = self.config["plugins"]
        paths = [path for group in groups.BUILT for path in code_of(group, self.config[group], named)]
        return [(path, package) for path in paths if (package := plugins.of(path, named))]

    @property
    def detects(self) -> bool:
        """Whether a detector was chosen."""
        return bool(self.detector.needs)

    @property
    def is_attacked_after(self) -> bool:
        """Whether an after-attack was chosen."""
        return bool(self.after.needs)

    @property
    def without_after(self) -> Plain:
        """What the run would depend on without its after-attack."""
        return without(self.settings, AFTER)

    @property
    def purification_settings(self) -> Plain:
        """What the purified model and its figures depend on."""
        return without(self.without_after, DETECT, "control", "gates")

    @property
    def purified_alike(self) -> list[str]:
        """The keys of runs without an after-attack that leave this purified model: its own, those with another control, and those
        without its detector."""
        own = self.without_after
        bare = [own, without(own, DETECT)] if self.detects else [own]
        return [store.key("run", {**each, "control": control}) for each in bare for control in switches.CONTROLS]

    @property
    def purification_folder(self) -> Path:
        """Where the cache keeps the purified model, for the after-attacks that share it."""
        return self.outputs.purification(self.defense.name, store.key("purification", self.purification_settings))

    @property
    def stream(self) -> Stream:
        return Stream(self.seed)

    @property
    def infection_folder(self) -> Path:
        """Where the cache keeps the infected model."""
        return self.outputs.infection(self.attack.name, self.dataset.name, self.infection_key)


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
    said = switches.check(resolved)
    packages, runtime = resolved["plugins"], resolved["runtime"]
    where = shared.once("device", runtime["device"], lambda: device.choose(runtime["device"]))
    device.prepare(where, runtime["threads"])
    resolved = copy.deepcopy(resolved)
    resolved["train"]["precision"] = resolve_precision(resolved["train"]["precision"], where)
    made = {
        group: shared.once(
            group, [resolved[group], packages], functools.partial(build, resolved[group], group, packages)
        )
        for group in groups.BUILT
    }
    for group, kind in KINDS.items():
        if not isinstance(made[group], kind):
            raise ConfigError(
                f"{group}._target_ is '{resolved[group]['_target_']}', which is no {kind.__name__}; expected a "
                "class that extends it. Correct the yaml file that says so."
            )
        shared.once(
            f"name of {group}", resolved[group], functools.partial(catalog.refuse_borrowed_name, group, resolved[group])
        )
        catalog.refuse_other_version(group, resolved[group])
        if (version := catalog.version_of(group, resolved[group])) is not None:
            resolved[group]["version"] = version  # which a user's file of that class need not say
    for group in NAMING:
        check_name(f"{group}.name", made[group].name)
    for group, described in made.items():
        refuse_idle(group, idle(type(described), resolved[group], group), resolved)
    for group, found in switches.idle(resolved, made["detector"].judges, bool(made["after"].needs)).items():
        refuse_idle(group, found, resolved)
    made["train"].check()
    dataset, holdout, attack, defense, detector, after = (
        made[group] for group in ("dataset", "holdout", "attack", "defense", "detector", "after")
    )
    made["tracker"].check()
    offered = {
        "train": attack.leaves_train or (bool(resolved["reconstruct"]) and attack.can_rebuild),
        "rebuild": attack.can_rebuild,
        "holdout": not holdout.is_empty,
        "disjoint": holdout.kind != "seen",
    }
    for method in (defense, detector):
        method.check(offered, attack.name)
    defense.check_recipe(made["train"])
    outputs = Outputs(Path(said.runtime.outputs).expanduser())
    splits = shared.once(
        "splits", [resolved["dataset"], runtime["outputs"], packages], lambda: dataset.load(outputs.cache)
    )
    size = dataset.crop or dataset.size
    asked = [resolved["model"], len(splits.train.classes), size]
    stem = shared.once("stem", asked, lambda: stems.fitting(made["model"], len(splits.train.classes), size))
    if stem is not None:
        say(f"the weights of model.checkpoint are of a network with model.stem={stem}, which is taken.")
        resolved["model"]["stem"], made["model"] = stem, stems.with_stem(made["model"], stem)
    named = content(resolved, splits.digest)
    settings = with_settings(resolved, named, splits.reading, splits.train.classes)
    infection = infection_settings(settings, holdout)
    made_of = Sketch(
        resolved, dataset, made["model"], made["train"], holdout, attack, defense, detector, after, said.exact, said.gates,
        said.seed, where, splits, outputs, settings, named, infection, store.key("infection", infection),
        store.key("run", settings), made["tracker"],
    )  # fmt: skip
    refuse_control(made_of)
    after.check({"trigger": attack.name != "none", "clean": has_clean_model(made_of)}, attack.name)
    return made_of


def refuse_unused_plugins(named: Iterable[str], used: Collection[str], runs: int = 1) -> None:
    """Raises ConfigError where `plugins` names a package that no option comes from.

    used  of all of so many runs together: in a sweep over methods a plugin has its part in some"""
    for package in named:
        if package not in used:
            raise ConfigError(
                f"plugins names '{package}', and no option of {'this run' if runs == 1 else f'these {runs:,} runs'} comes from "
                f"it; expected a `_target_: {package}.…` in the yaml file of a chosen option. Choose one (its file lies in a "
                f"folder of --config-dir), or leave plugins out."
            )


def divide(made: Sketch) -> Parts:
    """The images of victim, defender and test. Raises a BdxError where the attack or the network does not fit them."""
    if len(classes := made.splits.train.classes) < 2:
        raise DataError(
            f"{made.dataset.name} has one class, '{classes[0]}'; a classifier needs two, and an attack a class "
            "that it turns into another. Add a folder of images for each further class."
        )
    stream = Stream(made.seed).child("holdout")
    refuse_two_poisonings(made)
    splits = made.splits
    parts = made.holdout.divide(splits.train, splits.test, stream, splits.reading, splits.poisoned)
    made.attack.check(parts.train)
    made.attack.check_recipe(made.recipe, len(parts.train))
    if (target := made.attack.make_target(len(classes))) is not None:
        tested = made.splits.test.labels[parts.test_rows]
        if not target.is_eligible(tested).any():
            raise DataError(
                f"none of the {len(tested):,} test images that the holdout leaves is of a class that {made.attack.name} turns "
                f"into another, so there is no ASR. Lower holdout.rate or holdout.per_class, or take holdout.split=train."
            )
        made.after.check_images(parts.train, target)
    size = made.dataset.crop or made.dataset.size
    made.spec.classifier(len(classes), size, made.dataset.mean, made.dataset.std)
    return parts


def refuse_two_poisonings(made: Sketch) -> None:
    """Raises PairingError where an attack would poison a training set of which rows are poisoned already: no figure would say
    which of the two it is about."""
    if made.splits.poisoned is not None and made.attack.plants:
        raise PairingError(
            f"{int(made.splits.poisoned.sum()):,} training images of {made.dataset.name} are poisoned already, as its files say, "
            f"and attack={made.attack.name} would poison more; expected one of the two. Set attack=none to train on it as it "
            f"is, or give a clean training set."
        )


def content(resolved: Plain, digest: str) -> dict[str, str]:
    """What a run depends on beside its settings, by dotted key: digests of its data, of the files that settings name, and of its
    plugins' source.

    digest  of the data set"""
    found = {"dataset.root": digest}
    for group in groups.GROUPS:
        if group.run and not _is_silent(group, resolved):
            inside = digested(group.name, resolved[group.name], resolved["plugins"])
            found |= {
                f"{group.name}.{key}": value for key, value in inside.items() if f"{group.name}.{key}" not in found
            }
    return found


def run_settings(resolved: Plain, digest: str, reading: Reading | None = None, classes: Sequence[str] = ()) -> Plain:
    """What a run depends on: the data's digest in place of its folder, files by their content, no runtime, no switches.

    reading  how the data set's files were read, and so a holdout's own, whose bytes the digest does not cover
    classes  in label order: a holdout of its own is labelled by these names, which the digest does not cover either"""
    return with_settings(resolved, content(resolved, digest), reading, classes)


def with_settings(resolved: Plain, named: Mapping[str, str], reading: Reading | None, classes: Sequence[str]) -> Plain:
    """`run_settings` of what `content` has named."""
    kept: Plain = {"format": FORMAT}
    for group in groups.GROUPS:
        if group.run and not _is_silent(group, resolved):
            place = f"{group.name}."
            inside = {key.removeprefix(place): value for key, value in named.items() if key.startswith(place)}
            kept[group.name] = with_content(groups.as_keyed(group.name, resolved[group.name]), inside)
    for setting in groups.SETTINGS:
        if setting.run and (not setting.part_of or setting.part_of in kept):
            kept[setting.name] = resolved[setting.name]
    if reading is not None and kept["holdout"]["source"] == "folder":
        how = {"fit": reading.fit.__name__, "background": reading.background, "classes": list(classes)}
        by_value = int if all(name.isdecimal() for name in classes) else str
        in_old_keys = {"fit": "stretch", "background": "white", "classes": sorted(classes, key=by_value)}
        kept["holdout"] |= {name: value for name, value in how.items() if value != in_old_keys[name]}
    if kept["model"].get("checkpoint") is not None:
        kept["model"] |= {"reading": checkpoint.READING}
    own = {key: value for key, value in kept["dataset"].items() if key not in groups.UNKEYED}
    return kept | {"dataset": own | {"digest": named["dataset.root"]}}


def without(settings: Plain, stage: Stage, *others: str) -> Plain:
    """The settings of a run but for those of a stage, and these."""
    own = {stage.group, *(setting.name for setting in groups.SETTINGS if setting.part_of == stage.group), *others}
    return {name: value for name, value in settings.items() if name not in own}


def _is_silent(group: groups.Group, resolved: Plain) -> bool:
    return bool(group.silent) and resolved[group.name].get("name") == group.silent


def infection_settings(settings: Plain, holdout: Holdout) -> Plain:
    """The part of a run's settings that its infected model depends on."""
    named = [group.name for group in groups.GROUPS if group.infection]
    kept = {group: settings[group] for group in ("format", *named, "seed")}
    drawn = {
        name: value for name, value in settings["holdout"].items() if name != "validate"
    }  # of what was withheld anyhow
    return kept | {"holdout": drawn if holdout.changes_training else None}


def digested(group: str, node: Plain, packages: Sequence[str]) -> dict[str, str]:
    """What an option depends on beside its settings, by dotted key inside it: a digest of the content of each setting that its
    class declares a File or a Folder, and, under SOURCE, of the class's own source where it is a plugin's.

    Raises ConfigError where such a file is none; a folder that is none stays as it is, for those who read it to refuse."""
    package = plugins.of(node["_target_"], packages)
    found = {SOURCE: plugins.digest(node["_target_"], package)} if package else {}
    for key, what in paths(target(node, group, packages), node).items():
        said = at(node, key)
        if what == "function":
            function = dotted(said)
            found[key] = f"{said} of {plugins.digest(function, plugins.of(function, packages))}"
            continue
        path = Path(said).expanduser()
        if what == "file" and not path.is_file():
            raise ConfigError(f"{group}.{key} is '{said}', which is no file; expected the path of an existing one.")
        try:
            if what == "file":
                stat = path.stat()
                found[key] = _digest(path, stat.st_size, stat.st_mtime_ns)
            elif path.is_dir():
                found[key] = store.folder_digest(path)
        except OSError as error:
            raise ConfigError(
                f"{group}.{key} is '{said}', of which '{error.filename}' cannot be read ({error.strerror}); a run is addressed "
                f"by the content. Name one of which every file is readable, and which nothing else writes to."
            ) from None
    return found


def code_of(group: str, node: Plain, packages: Sequence[str]) -> list[str]:
    """The dotted paths of the class that an option describes and of the functions that its settings name."""
    named = paths(target(node, group, packages), node)
    return [node["_target_"], *(dotted(at(node, key)) for key, what in named.items() if what == "function")]


def with_content(node: Plain, digests: Mapping[str, str]) -> Plain:
    """An option's settings with digests in place of what they name."""
    kept = copy.deepcopy(node)
    for key, digest in digests.items():
        *parents, last = key.split(".")
        functools.reduce(lambda inner, name: inner[name], parents, kept)[last] = digest
    return kept


@functools.lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    """A sweep's runs name the same large file: it is read once for each of its states."""
    return store.file_digest(file)


def clean_plan(made: Made) -> Made:
    """The same training without an attack: of the control, and of the surrogate that some attacks craft on."""
    clean = option("attack", "none")
    settings = made.infection_settings | {"attack": clean}
    return dataclasses.replace(
        made,
        attack=build(clean, "attack"),
        infection_settings=settings,
        infection_key=store.key("infection", settings),
    )


def has_control(made: Sketch) -> bool:
    """Whether the clean model of the same recipe is another network than the victim; a given one that nobody trains is not, nor
    that of an attack that plants nothing."""
    return made.attack.plants and (made.spec.checkpoint is None or made.recipe.epochs > 0)


def has_clean_model(made: Sketch) -> bool:
    """Whether the run has the clean model of the same recipe beside it: trained for it, or cached already."""
    wanted = made.config["control"]
    is_there = wanted == "train" or (wanted == "cached" and clean_plan(made).infection_folder.is_dir())
    return is_there and has_control(made)


def refuse_control(made: Sketch) -> None:
    """Raises ConfigError where a clean control is to be trained that would be the given network itself."""
    is_attack = made.infection_key != clean_plan(made).infection_key
    if made.config["control"] == "train" and is_attack and not has_control(made):
        if not made.attack.plants:
            raise ConfigError(
                f"control=train asks for a clean model of the same recipe, but attack={made.attack.name} plants nothing: it "
                f"would be the same network, which is no control. Set control=off."
            )
        raise ConfigError(
            "control=train asks for a clean model of the same recipe, but with model.checkpoint and train.epochs=0 nothing is "
            "trained: it would be the given network itself, which is no control. Set control=off, or train.epochs=1 or more."
        )


def verdict_folder(made: Sketch, infection: Plain) -> tuple[Path, Plain]:
    """Where the cache keeps what the detector says of the model that `infection` describes, and all that it depends on."""
    settings = {
        "model": infection,
        "arriving": made.infection_settings if made.detector.judges == "inputs" else None,
        **{name: made.settings[name] for name in ("detector", "inspection", "holdout", "seed")},
    }
    return made.outputs.detection(made.detector.name, store.key("detection", settings)), settings


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
    return made.outputs.network(made.attack.name, made.dataset.name, store.key("network", settings)), settings


def batch_sizes(made: Sketch, group: str) -> dict[str, int]:
    """The settings of a group's option that bound the memory it takes, by dotted key; the victim's where it has none."""
    own = {f"{group}.{key}": value for key, value in flat(made.config[group]).items() if key.endswith("batch_size")}
    return own or {"train.batch_size": made.recipe.batch_size}
