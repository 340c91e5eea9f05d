"""infect -> evaluate -> purify -> evaluate, each infection through the cache. One configuration in, one `Run` out."""

import copy
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from backdoorbench import cache, config, device, evaluation, metrics
from backdoorbench.attacks.base import Attack, DataAttack, Infection, MakeNetwork, Task, no_surrogate
from backdoorbench.config import Plain
from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.holdout import Holdout, Parts, pick
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Inspect, Scenario
from backdoorbench.errors import ConfigError, TrainingError
from backdoorbench.evaluation import Gates, Predictions
from backdoorbench.infections import load_infection, load_network, save_infection, save_network
from backdoorbench.metrics import Scores
from backdoorbench.models import checkpoint
from backdoorbench.models.base import Classifier, ModelSpec
from backdoorbench.recorded import Run as Run  # what this module fills, for those who import it from here
from backdoorbench.shapes import Rows
from backdoorbench.streams import Stream
from backdoorbench.trackers.base import Tracker
from backdoorbench.training.fit import Snapshots
from backdoorbench.training.recipe import Recipe, resolve_precision

log = logging.getLogger(__name__)

T = TypeVar("T")
Made = TypeVar("Made", bound="Sketch")

FORMAT = 1  # rises when what the cache holds changes its meaning for every method at once
SUB_LEVEL = 0.3  # share of a trigger's changes lost in storage from which it is worth a word
NOT_SETTINGS = ("root", "download")  # of a data set: where it lies; the digest says what it is


@dataclass(frozen=True)
class Sketch:
    """A configuration, built, checked and keyed; its images are not yet divided, so that hundreds take seconds.

    settings         what the run's key is made of: the resolved configuration without `runtime` and the switches
    infection_key    address of the infected model; key: of the whole run
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


@dataclass
class Outcome:
    """What a run leaves besides its figures.

    gallery  (M, 3, H, W) clean and triggered test images, for the picture; None without a trigger
    """

    purified: nn.Module
    predictions: dict[str, torch.Tensor]
    gallery: tuple[torch.Tensor, torch.Tensor] | None


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
        "train": attack.leaves_train,
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
    """`value` with each file that a key `checkpoint` or `..._file` names, and each folder that a key `..._folder` names,
    replaced by the digest of its content."""
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
        else:
            found[key] = with_file_digests(item, f"{where}{key}.")
    return found


@functools.lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    """A sweep's runs name the same large file: it is read once for each of its states."""
    return cache.file_digest(file)


def seeded(make: Callable[[], nn.Module], stream: Stream) -> nn.Module:
    """The network that `make` builds, its starting weights drawn from `stream` and from nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream.generator().initial_seed())
        return make()


def build_network(made: Plan, stream: Stream) -> nn.Module:
    """A fresh network of the plan's kind on its device, its starting weights drawn from `stream`."""
    size = made.dataset.crop or made.dataset.size
    net = seeded(lambda: made.spec.net(len(made.splits.train.classes), size), stream)
    model = Classifier(net, size, made.dataset.mean, made.dataset.std)
    if made.spec.checkpoint is not None:
        described = f"{made.spec.name} for {len(made.splits.train.classes)} classes at {size} pixels"
        checkpoint.load_given(model, made.spec.checkpoint, described)
    layout = torch.channels_last if made.device.type in ("cpu", "cuda") else torch.contiguous_format
    return model.to(made.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def infect(
    made: Plan,
    snapshots: Snapshots | None,
    surrogate: Callable[[], nn.Module] = no_surrogate,
    network: Callable[[MakeNetwork], nn.Module] | None = None,
) -> Infection:
    """Trains the infected model. surrogate, network: see `Task`."""
    stream, train = made.stream.child("infect"), made.parts.train.to(made.device)
    task = Task(train, lambda inner: build_network(made, inner), made.recipe, snapshots, surrogate, network)
    with device.memory_errors("infect", "train.batch_size", made.recipe.batch_size):
        return made.attack.infect(task, stream)


def obtain_infection(made: Plan, test: ImageSet, run: Run) -> tuple[Infection, Predictions]:
    """The infected model with its predictions on the whole test split: from the cache, or trained into it."""
    runtime = made.config["runtime"]
    folder = made.infection_folder

    def surrogate() -> nn.Module:
        with run.timed("surrogate"):
            clean = clean_plan(made)
            return obtain_infection(clean, test, Run("", "running", clean.label, {}))[0].model

    def network(make: MakeNetwork) -> nn.Module:
        with run.timed("network"):
            return obtain_network(made, make)

    file = made.outputs / "cache" / "snapshots" / f"{made.infection_key}.pt"

    def make(partial: Path) -> None:
        with run.timed("infect"):
            infection = infect(made, Snapshots(file, runtime["snapshot_seconds"]), surrogate, network)
        for part in ("surrogate", "network"):  # which other infections share
            run.seconds["infect"] = round(run.seconds["infect"] - run.seconds.get(part, 0.0), 3)
        with run.timed("evaluate_infected"):
            predictions = evaluation.predict(infection.model, test, infection.trigger, made.recipe.precision)
            if infection.trigger is not None:
                infection.facts.update(evaluation.trigger_change(infection.trigger, test))
            if infection.target is not None and infection.trigger is not None and infection.train is None:
                figures = evaluation.after_storage(
                    infection.model, infection.trigger, infection.target, test, made.recipe.precision
                )
                infection.facts.update(figures)
                if (figures["lost_in_storage"] or 0) > SUB_LEVEL:
                    log.warning(
                        f"the trigger works below grey levels: storing its images as bytes undoes "
                        f"{figures['lost_in_storage']:.0%} of its changes; the record's asr_stored is ASR after that."
                    )
            if infection.cover is not None:
                figure = evaluation.cover_accuracy(infection.model, infection.cover, test, made.recipe.precision)
                infection.facts["cover_accuracy"] = figure
        save_infection(infection, made.parts.train, predictions, made.infection_settings, run.seconds, partial)

    waiting = f"another process trains this infected model ({made.infection_key}); waiting for it"
    found = cache.obtain(folder, make, waiting)
    forget(file)
    with run.timed("infect"):
        infection, predictions = load_infection(
            folder, build_network(made, Stream(0)), made.parts.train.to(made.device)
        )
    said = f"cached {made.infection_key}" if found else f"trained {made.infection_key}"
    log.info(f"infected model: {said}")
    cost = config.read_json(folder / "infection.json")["seconds"]
    run.infection = {"key": made.infection_key, "cached": found, "seconds": cost}
    return infection, predictions


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


def obtain_network(made: Plan, make: MakeNetwork) -> nn.Module:
    """The network of the attack's learned trigger: from the cache, or trained by `make` into it, on the whole training split:
    what a seed withholds for the defender, and another seed does not, would make it a network of one seed."""
    folder, settings = network_folder(made)
    key = folder.name.rpartition("-")[2]
    file = made.outputs / "cache" / "snapshots" / f"{key}.pt"

    def write(partial: Path) -> None:
        batch, start = getattr(made.attack, "encoder_batch_size", made.recipe.batch_size), time.monotonic()
        with device.memory_errors("infect", "attack.encoder_batch_size", batch):
            network = make(
                made.splits.train.to(made.device), Snapshots(file, made.config["runtime"]["snapshot_seconds"])
            )
        save_network(network, settings, round(time.monotonic() - start, 3), partial)

    found = cache.obtain(
        folder, write, f"another process trains the network of {made.attack.name}'s trigger; waiting for it"
    )
    forget(file)
    log.info(f"network of the trigger: {'cached' if found else 'trained'} {key}")
    return load_network(folder, made.device)


def forget(file: Path) -> None:
    """Removes a training's snapshots, once what it made is kept: a kill before would cost the whole training."""
    for snapshot in file.parent.glob(f"{file.stem}*.pt"):
        snapshot.unlink(missing_ok=True)


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


def find_control(made: Plan, test: ImageSet, infection: Infection, run: Run) -> Scores | None:
    """The clean model of the same recipe under the same trigger: cached, trained where `control=train`, or None."""
    wanted = made.config["control"]
    if wanted == "off" or infection.trigger is None:
        return None
    clean = clean_plan(made)
    if wanted == "cached" and not clean.infection_folder.is_dir():
        return None
    answers = made.outputs / "cache" / "control" / f"{made.infection_key}.json"
    test_rows = made.parts.test_rows
    rows = [int(row) for row in test_rows] if len(test_rows) != len(test) else []
    if answers.is_file():
        known = config.read_json(answers)
        if known["control"] == clean.infection_key and known["rows"] == rows:
            return Scores(**known["scores"])
    with run.timed("control"):
        inner = Run("", "running", clean.label, {})
        control, _ = obtain_infection(clean, test, inner)
        calls = evaluation.predict(control.model, test, infection.trigger, made.recipe.precision)
        scores = evaluation.judge(calls, test, infection.target, test_rows)
    with cache.storage_errors(answers.parent):
        answers.parent.mkdir(parents=True, exist_ok=True)
    cache.write_json(answers, {"control": clean.infection_key, "rows": rows, "scores": dataclasses.asdict(scores)})
    return scores


def execute(made: Plan, run: Run, announce: Callable[[str], None]) -> Outcome:
    """Carries out a plan, filling `run` as it goes, so that a failure leaves what was known.

    announce  told the stage (infect, purify) as it ends, and of each point of the learning curve (curve)"""
    with run.timed("load"):
        parts, test = made.parts, made.splits.test.to(made.device)
    infection, before = obtain_infection(made, test, run)
    run.infected = evaluation.judge(before, test, infection.target, parts.test_rows)
    run.details["infected"] = evaluation.details(before, test, infection.target, parts.test_rows)
    run.control = find_control(made, test, infection, run)
    state, reasons = evaluation.status(
        made.gates, run.infected, before, len(test.classes), infection.facts, run.control
    )
    run.infection |= {
        "status": state,
        "reasons": reasons,
        "facts": infection.facts,
        "history": [dataclasses.asdict(epoch) for epoch in infection.history],
        "target": infection.target.describe() if infection.target is not None else None,
    }
    announce("infect")
    if state == "broken" and not made.config["force"]:
        raise TrainingError(
            f"the infection is broken: {'; '.join(reasons)}. A defense has nothing to purify. Change the recipe or the attack, "
            f"or add force=true to purify it all the same."
        )
    with run.timed("purify"):
        purified = purify(made, infection, test, run, announce)
    run.seconds["purify"] = round(run.seconds["purify"] - run.seconds.get("curve", 0.0), 3)
    with run.timed("evaluate_purified"):
        after = evaluation.predict(purified, test, infection.trigger, made.recipe.precision)
    run.purified = evaluation.judge(after, test, infection.target, parts.test_rows)
    run.details["purified"] = evaluation.details(after, test, infection.target, parts.test_rows)
    if parts.holdout is not None:  # what a search over the defense's settings may go by
        calls = evaluation.predict(purified, parts.holdout.to(made.device), None, made.recipe.precision)
        run.details["holdout_ca"] = metrics.share(calls.clean == parts.holdout.labels.cpu())
    announce("purify")
    gallery = None
    if infection.trigger is not None:
        shown = test.subset(torch.linspace(0, len(test) - 1, 8).long())
        images = next(iter(shown.batches(8)))[0]
        gallery = (images.cpu(), infection.trigger(images).cpu())
    return Outcome(purified, stored_predictions(before, after, len(test.classes)), gallery)


def purify(made: Plan, infection: Infection, test: ImageSet, run: Run, announce: Callable[[str], None]) -> nn.Module:
    """The defense, given its own copy of what it may know; the model it returns, in eval mode."""
    scenario = Scenario(
        made.defense.needs,
        model=copy.deepcopy(infection.model),
        holdout=made.parts.holdout.to(made.device) if made.parts.holdout is not None else None,
        train=infection.train,
        build=lambda inner: build_network(made, inner),
        recipe=made.recipe,
        stream=made.stream.child("purify"),
        device=made.device,
        probe=probe(made, infection, test, run, announce),
        note=run.notes.__setitem__,
        inspect=inspection(infection, run),
    )
    batch = getattr(made.defense, "batch_size", made.recipe.batch_size)
    with device.memory_errors("purify", "defense.batch_size", batch):
        return made.defense.purify(scenario).eval()


def probe(
    made: Plan, infection: Infection, test: ImageSet, run: Run, announce: Callable[[str], None]
) -> Callable[[nn.Module, int], None]:
    """Draws the learning curve: CA, ASR and RA over a stratified part of the test set, every so many epochs."""
    every, images = made.config["curve"]["every"], made.config["curve"]["images"]
    rows = made.parts.test_rows
    if len(rows) > images:
        labels = made.splits.test.labels[rows]
        rows = rows[pick(labels, images, len(test.classes), "uniform", made.stream.child("curve"))]
    small = test.subset(rows)

    def draw(model: nn.Module, epoch: int) -> None:
        if every and (epoch + 1) % every == 0:
            with run.timed("curve"):  # counted apart: a defense does not pay for being watched
                scores = evaluation.evaluate(model, small, infection.trigger, infection.target, made.recipe.precision)
                point = {"epoch": epoch + 1, "ca": scores.ca, "asr": scores.asr, "ra": scores.ra, "n": len(small)}
                run.curve.append(point)
                announce("curve")

    return draw


def inspection(infection: Infection, run: Run) -> Inspect:
    """Judges a defense's selection of training rows by the poison mask, for the record alone: how many there are, how
    many of them are poisoned, and the AUC of its suspicion."""

    def judge(name: str, rows: Rows, suspicion: Tensor | None) -> None:
        poisoned = infection.poisoned
        found: dict[str, Any] = {"images": len(rows)}
        if poisoned is not None and len(rows):
            found["poisoned_share"] = metrics.share(poisoned.cpu()[rows.cpu()])
            found["auc"] = metrics.auc(suspicion.cpu(), poisoned.cpu()) if suspicion is not None else None
        run.notes[name] = found

    return judge


def stored_predictions(before: Predictions, after: Predictions, classes: int) -> dict[str, torch.Tensor]:
    """Every call, one byte an image and condition (two above 256 classes), by name."""
    kind = torch.uint8 if classes <= 256 else torch.int16
    named = {
        "infected_clean": before.clean,
        "infected_triggered": before.triggered,
        "purified_clean": after.clean,
        "purified_triggered": after.triggered,
    }
    return {name: calls.to(kind) for name, calls in named.items() if calls is not None}
