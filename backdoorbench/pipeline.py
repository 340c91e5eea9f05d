"""infect -> evaluate -> purify -> evaluate, each infection through the cache. One configuration in, one `Run` out."""

import copy
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backdoorbench import cache, config, device, evaluation, metrics
from backdoorbench.attacks.base import Infection, MakeNetwork, Task, no_surrogate
from backdoorbench.data.holdout import pick
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Inspect, Scenario
from backdoorbench.errors import TrainingError
from backdoorbench.evaluation import Predictions
from backdoorbench.infections import load_infection, load_network, save_infection, save_network
from backdoorbench.metrics import Scores
from backdoorbench.models import checkpoint
from backdoorbench.models.base import Classifier
from backdoorbench.plans import Plan, clean_plan, network_folder
from backdoorbench.recorded import Run
from backdoorbench.shapes import Images, Rows
from backdoorbench.streams import Stream
from backdoorbench.training.fit import Snapshots

log = logging.getLogger(__name__)

KEPT = 2**30  # bytes of triggered images, at most, that a learning curve keeps from one point to the next
SUB_LEVEL = 0.3  # share of a trigger's changes lost in storage from which it is worth a word


@dataclass
class Outcome:
    """What a run leaves besides its figures.

    gallery  (M, 3, H, W) clean and triggered test images, for the picture; None without a trigger
    """

    purified: nn.Module
    predictions: dict[str, torch.Tensor]
    gallery: tuple[torch.Tensor, torch.Tensor] | None


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
    if infection.train is None and "train" in made.defense.needs:
        infection = rebuilt(made, infection, run)
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


def rebuilt(made: Plan, infection: Infection, run: Run) -> Infection:
    """`infection` with a training set such as its attack might have left, and the record's word that it is one."""
    clean, stream = made.parts.train.to(made.device), made.stream.child("rebuild")
    again = made.attack.rebuild(clean, infection.trigger, stream)
    run.notes["rebuilt_train"] = again.counts
    return dataclasses.replace(infection, train=again.train, poisoned=again.poisoned)


def probe(
    made: Plan, infection: Infection, test: ImageSet, run: Run, announce: Callable[[str], None]
) -> Callable[[nn.Module, int], None]:
    """Draws the learning curve: CA, ASR and RA over a stratified part of the test set, every so many epochs.

    Its triggered images are made once, unless they are too many to keep: a network that draws triggers costs more than most
    that are judged by them."""
    every, images = made.config["curve"]["every"], made.config["curve"]["images"]
    rows = made.parts.test_rows
    if len(rows) > images:
        labels = made.splits.test.labels[rows]
        rows = rows[pick(labels, images, len(test.classes), "uniform", made.stream.child("curve"))]
    small = test.subset(rows)
    trigger, precision, kept = infection.trigger, made.recipe.precision, list[Images]()
    are_few = 4 * small.images.numel() <= KEPT

    def draw(model: nn.Module, epoch: int) -> None:
        if every and (epoch + 1) % every == 0:
            with run.timed("curve"):  # counted apart: a defense does not pay for being watched
                if trigger is not None and are_few and not kept:
                    kept.extend(evaluation.triggered(small, trigger, precision))
                scores = evaluation.evaluate(model, small, trigger, infection.target, precision, kept or None)
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
