"""The first stage: the infected model, from the cache or trained into it, judged on the test set and by the gates."""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from backdoorbench import device, metrics
from backdoorbench.attacks import base as attacks
from backdoorbench.attacks.base import Infection, Task, TriggerNetwork, no_surrogate
from backdoorbench.config.groups import INFECT
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, TrainingError, join_words
from backdoorbench.metrics import Scores
from backdoorbench.models import checkpoint
from backdoorbench.models.base import Classifier
from backdoorbench.models.layouts import layout_of
from backdoorbench.pipeline import costs, evaluation, gates, readings
from backdoorbench.pipeline.evaluation import Order, Predictions
from backdoorbench.pipeline.infections import (
    describe_model,
    description,
    load_infection,
    load_network,
    save_infection,
    save_network,
)
from backdoorbench.pipeline.plan import Plan, batch_sizes, clean_plan, has_control, network_folder
from backdoorbench.pipeline.readings import Better, Reading
from backdoorbench.storage import store
from backdoorbench.storage.outputs import key_of
from backdoorbench.storage.record import Finding, Run, target_note
from backdoorbench.streams import Stream, seeded
from backdoorbench.training.fit import PACE, Snapshots

log = logging.getLogger(__name__)

UNTRAINED = "as given: nothing was trained"  # what a run without epochs makes of a given network
FEW_MOVED = 4  # classes whose exchange is said by their names
SEEN = 0.5  # share of a trigger's changes that the network sees below which it is worth a word
SUB_LEVEL = 0.3  # share of a trigger's changes lost in storage from which it is worth a word


def carry_out(made: Plan, test: ImageSet, run: Run) -> tuple[Infection, Predictions]:
    """The infected model and its predictions on the test set, its finding in the run. TrainingError where it is broken, unless
    the configuration forces it."""
    finding = run.begin(INFECT.name, made.attack.name)
    infection, before = obtain(made, test, finding)
    if made.parts.poisoned is not None and infection.train is not None:
        infection = dataclasses.replace(infection, poisoned=made.parts.poisoned)
    rows = made.parts.test_rows
    scores = finding.scores = evaluation.judge(before, test, infection.target, rows)
    finding.details = evaluation.details(before, test, infection.target, rows)
    finding.control = find_control(made, test, infection, finding)
    is_given = made.spec.checkpoint is not None
    by_chance = finding.details["by_chance"]
    finding.status, finding.reasons = gates.status(
        made.gates, scores, before, len(test.classes), infection.facts, finding.control, is_given, by_chance
    )
    training = made.attack.training
    if is_given and not made.recipe.epochs and infection.trigger is None:
        training = UNTRAINED
    told = {"training": training} if training else {}
    finding.notes = (
        infection.facts | told | target_note(infection.target.describe() if infection.target is not None else None)
    )
    if said := gates.answers_to_covers(made.gates, scores, infection.facts):
        finding.notes["covers"] = said
    if made.parts.poisoned is not None:
        finding.notes["poisoned_by_others"] = int(made.parts.poisoned.sum())
    if is_given:
        finding.notes |= given_notes(made, infection, finding.control)
        finding.notes |= reading_notes(made, infection, before, test)
    if (speed := costs.pace(infection.history)) is not None:
        finding.spent["images_per_second"] = speed
    finding.history = [dataclasses.asdict(epoch) for epoch in infection.history]
    return infection, before


def given_notes(made: Plan, infection: Infection, control: Scores | None) -> dict[str, str]:
    """What must be said of an infection that started from a given network: what else did, since nobody knows whether that network
    is clean."""
    if infection.trigger is None:
        return {}
    notes = {}
    if control is not None:
        notes["control"] = "the control starts from model.checkpoint too, of which nobody knows whether it is clean"
    elif made.config["control"] != "off" and not has_control(made):
        notes["control"] = (
            "no control: model.checkpoint is judged as it is, and a clean model of this recipe is the same network"
        )
    if made.attack.needs_surrogate:
        notes["surrogate"] = "the attack was crafted on a network that starts from model.checkpoint, too"
    return notes


def reading_notes(made: Plan, infection: Infection, before: Predictions, test: ImageSet) -> dict[str, str]:
    """What must be said of how a given network reads its images, and what its outputs mean.

    reads         how its images are normalised
    order, input  a way of reading under which it knows so much more that what is said of it as it is holds for nothing
    finer         one that is better by less
    stem          the setting of a stem that its weights fit as well, and with which it knows more

    One that was trained here on these images has been shown what it is shown, but perhaps not what its classes are called."""
    model, rows, precision = infection.model, made.parts.test_rows, made.recipe.precision
    if made.recipe.epochs or not isinstance(model, Classifier):
        order = evaluation.other_order(before, test, rows)
        if order is None:
            return {}
        called, true = before.clean[rows], test.labels.cpu()[rows]
        then = metrics.accuracy(evaluation.in_order(order, test.classes)[called], true)
        return {"order": _order_said(made, order, metrics.accuracy(called, true), then, test.classes)}
    answers = made.outputs.readings(made.infection_key)
    known_as = [
        [int(row) for row in rows],
        made.config["dataset"].get("class_names"),
        "order" in made.config["dataset"],
    ]
    known = store.read_answer(answers, ("asked", "notes"))
    if known is not None and known["asked"] == known_as:
        return dict(known["notes"])
    stems = readings.other_stems(made.spec, model, len(test.classes), made.dataset.mean, made.dataset.std)
    found = readings.better(model, test, rows, precision, before, stems)
    notes = {"reads": readings.told(model)}
    if found is not None:
        notes |= _better_said(made, found, test.classes)
    with store.storage_errors(answers.parent):
        answers.parent.mkdir(parents=True, exist_ok=True)
    store.write_answer(answers, {"asked": known_as, "notes": notes})
    return notes


def _better_said(made: Plan, found: Better, classes: Sequence[str]) -> dict[str, str]:
    """The notes of a better reading: what it is, how much better, and which settings choose it."""
    best, now = found.best, found.now
    other = ""
    if found.ties:
        also = found.ties[0]
        other = f" (or, as far as {len(now.right)} images tell, {_percent(also.accuracy)} with {_set(made, also)[0]})"
    if best.order is not None and not best.settings:
        return {"order": _order_said(made, best.order, now.accuracy, best.accuracy, classes) + other}
    settings, order = _set(made, best)
    figures = (
        f"CA is {_percent(now.accuracy)} of {len(now.right)} images, and {_percent(best.accuracy)} with {settings}"
    )
    stems = [word for word in settings.split() if word.startswith("model.stem=")]
    stem = {"stem": stems[0]} if stems else {}
    if found.is_far:
        return stem | {
            "input": f"the network seems to have been trained on images read otherwise: {figures}{other}; set that{order}"
        }
    return stem | {"finer": f"the network knows these images somewhat better read otherwise: {figures}{other}"}


def _set(made: Plan, reading: Reading) -> tuple[str, str]:
    """The settings that choose a reading, and what is to be done where one of them is no setting of this data set."""
    if reading.order is None:
        return reading.settings, ""
    named, setting = _order_setting(made, reading.order)
    said = f"dataset.order={named}"
    return " ".join(filter(None, (reading.settings, said))), "" if setting == said else f", by {setting}"


def _order_setting(made: Plan, order: Order) -> tuple[str, str]:
    """An order as it is written, and what sets it here."""
    named = order if isinstance(order, str) else "[" + ",".join(order) + "]"
    setting = f"dataset.order={named}"
    if made.config["dataset"].get("class_names"):
        return named, f"that order in {made.config['dataset']['class_names']}"
    if "order" not in made.config["dataset"]:
        return named, f"dataset=folder, whose setting {setting} says so, or reorder the rows of its last layer"
    return named, setting


def _order_said(made: Plan, order: Order, now: float, then: float, classes: Sequence[str]) -> str:
    """What is said of a network that is right but for the order of its classes, and the setting that mends it."""
    named, setting = _order_setting(made, order)
    meant = evaluation.in_order(order, classes).tolist()
    moved = [name for label, name in enumerate(classes) if meant[label] != label]
    which = f" ({join_words(moved)} exchanged)" if len(moved) < len(classes) / 2 and len(moved) <= FEW_MOVED else ""
    return (
        f"the network seems to know these classes in another order{which}: CA is {_percent(now)}, and {_percent(then)} if its "
        f"outputs mean what {named} says; set {setting}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def refuse_broken(made: Plan, finding: Finding) -> None:
    """Raises TrainingError where the infection is broken and there is a defense, unless something forces it on."""
    if finding.status == "broken" and made.defense.tunes and not made.config["force"]:
        remedy = "Change the recipe or the attack"
        if hint := finding.notes.get("order") or finding.notes.get("input"):
            remedy = f"{hint[0].upper()}{hint[1:]}"
        raise TrainingError(
            f"the infection is broken: {'; '.join(finding.reasons)}. A defense has nothing to purify. {remedy}, or add "
            f"force=true to purify it all the same."
        )


def build_network(made: Plan, stream: Stream) -> nn.Module:
    """The network that a victim of this plan starts with, on the plan's device: the given one, or a fresh one."""
    model = fresh_network(made, stream)
    if made.spec.checkpoint is not None:
        size = made.dataset.crop or made.dataset.size
        described = f"{made.spec.name} for {len(made.splits.train.classes)} classes at {size} pixels"
        checkpoint.load_given(model, made.spec.checkpoint, described, made.spec.reads.normalises)
    return model


def fresh_network(made: Plan, stream: Stream) -> nn.Module:
    """A network of the plan's kind on its device, its starting weights drawn from `stream`."""
    size = made.dataset.crop or made.dataset.size
    with seeded(stream):
        model = made.spec.classifier(len(made.splits.train.classes), size, made.dataset.mean, made.dataset.std)
    return model.to(made.device, memory_format=layout_of(model, made.device))  # type: ignore[call-overload, no-any-return]


def infect(
    made: Plan,
    snapshots: Snapshots | None,
    surrogate: Callable[[], nn.Module] = no_surrogate,
    network: Callable[[], nn.Module] | None = None,
) -> Infection:
    """Trains the infected model. surrogate, network: see `Task`."""
    stream, train = made.stream.child("infect"), made.parts.train.to(made.device)
    recipe = dataclasses.replace(made.recipe, name=made.spec.name)  # what progress and messages call the training
    task = Task(train, lambda inner: build_network(made, inner), recipe, snapshots, surrogate, network)
    check_seen(made, task, stream)
    with device.memory_errors("infect", {"train.batch_size": made.recipe.batch_size}):
        return attacks.carry_out(made.attack, task, stream)


def check_seen(made: Plan, task: Task, stream: Stream) -> None:
    """Of a test image the network sees the middle. Raises ConfigError where a trigger that is known before the training lies
    wholly beside it, and warns where most of it does."""
    seen, stored = made.dataset.crop or made.dataset.size, made.dataset.size
    if seen == stored or isinstance(made.attack, TriggerNetwork):
        return
    trigger = made.attack.test_trigger(task, stream)
    share = evaluation.share_seen(trigger, task.train, seen) if trigger is not None else None
    if share is None or share >= SEEN:
        return
    where = f"the middle {seen}x{seen} pixels of {stored}x{stored}, which is what the network sees of a test image"
    if share == 0:
        raise ConfigError(
            f"the trigger of attack={made.attack.name} changes nothing within {where}; expected a trigger that lies there. Set "
            f"dataset.size={seen}, so that it sees the whole image, or choose another attack or position."
        )
    log.warning(
        f"of what the trigger of attack={made.attack.name} changes, {share:.0%} lies within {where}; with "
        f"dataset.size={seen} it sees the whole image"
    )


def obtain(made: Plan, test: ImageSet, finding: Finding) -> tuple[Infection, Predictions]:
    """The infected model with its predictions on the whole test split: from the cache, or trained into it."""
    runtime = made.config["runtime"]
    folder = made.infection_folder

    def surrogate() -> nn.Module:
        with costs.timed(finding, "surrogate"):
            clean = clean_plan(made)
            return obtain(clean, test, Finding(INFECT.name, clean.attack.name))[0].model

    def network() -> nn.Module:
        with costs.timed(finding, "network"):
            return obtain_network(made)

    file = made.outputs.snapshot(made.infection_key)

    def make(partial: Path) -> None:
        if made.spec.checkpoint is not None and made.recipe.epochs and not made.attack.plants:
            log.warning(
                f"the weights of {Path(made.spec.checkpoint).name} are trained on "
                f"(train.epochs={made.recipe.epochs}); train.epochs=0 judges and purifies them as they are."
            )
        with costs.metered(finding, made.device), costs.timed(finding, "infect"):
            infection = infect(made, Snapshots(file, runtime["snapshot_seconds"]), surrogate, network)
        for part in ("surrogate", "network"):  # which other infections share
            finding.seconds["infect"] = round(finding.seconds["infect"] - finding.seconds.get(part, 0.0), 3)
        with finding.timed("evaluate"):
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
        save_infection(
            infection,
            made.parts.train,
            predictions,
            made.infection_settings,
            finding.seconds,
            partial,
            describe_model(made),
        )

    def read(folder: Path) -> tuple[Infection, Predictions, dict[str, float]]:
        with finding.timed("infect"):
            model, clean = fresh_network(made, Stream(0)), made.parts.train.to(made.device)
            return *load_infection(folder, model, clean), description(folder)["seconds"]

    waiting = f"another process trains this infected model ({made.infection_key}); waiting for it"
    (infection, predictions, cost), found = store.obtain(folder, make, read, waiting)
    forget(file)
    if made.spec.checkpoint is None or made.recipe.epochs:
        log.info(f"infected model: {'cached' if found else 'trained'} {made.infection_key}")
    finding.key, finding.cached, finding.cost = made.infection_key, found, cost
    return infection, predictions


def obtain_network(made: Plan) -> nn.Module:
    """The network of the attack's learned trigger: from the cache, or trained into it on the whole training split: what a seed
    withholds for the defender, and another seed does not, would make it a network of one seed."""
    assert isinstance(made.attack, TriggerNetwork)
    attack = made.attack
    folder, settings = network_folder(made)
    key = key_of(folder)
    file = made.outputs.snapshot(key)

    def write(partial: Path) -> None:
        start, earlier = time.monotonic(), PACE.earlier
        with device.memory_errors("infect", batch_sizes(made, "attack")):
            images, kept = (
                made.splits.train.to(made.device),
                Snapshots(file, made.config["runtime"]["snapshot_seconds"]),
            )
            network = attack.train_network(images, kept, made.recipe.precision)
        seconds = time.monotonic() - start + PACE.earlier - earlier
        save_network(network, settings, round(seconds, 3), partial)

    waiting = f"another process trains the network of {made.attack.name}'s trigger; waiting for it"
    trained, found = store.obtain(folder, write, lambda folder: load_network(folder, made.device), waiting)
    forget(file)
    log.info(f"network of the trigger: {'cached' if found else 'trained'} {key}")
    return trained


def forget(file: Path) -> None:
    """Removes a training's snapshots, once what it made is kept: a kill before would cost the whole training."""
    for name in (f"{file.stem}*.pt", f".{file.stem}*.pt.partial"):
        for snapshot in file.parent.glob(name):
            snapshot.unlink(missing_ok=True)


def find_control(made: Plan, test: ImageSet, infection: Infection, finding: Finding) -> Scores | None:
    """The clean model of the same recipe under the same trigger: cached, trained where `control=train`, or None; None, too, where
    that would be the given network itself."""
    wanted = made.config["control"]
    if wanted == "off" or infection.trigger is None or not has_control(made):
        return None
    clean = clean_plan(made)
    if wanted == "cached" and not clean.infection_folder.is_dir():
        return None
    answers = made.outputs.control(made.infection_key)
    test_rows = made.parts.test_rows
    rows = [int(row) for row in test_rows] if len(test_rows) != len(test) else []
    known = store.read_answer(answers, ("control", "rows", "scores"))
    if known is not None and known["control"] == clean.infection_key and known["rows"] == rows:
        return Scores(**known["scores"])
    with costs.timed(finding, "control"):
        control, _ = obtain(clean, test, Finding(INFECT.name, clean.attack.name))
        calls = evaluation.predict(control.model, test, infection.trigger, made.recipe.precision)
        scores = evaluation.judge(calls, test, infection.target, test_rows)
    with store.storage_errors(answers.parent):
        answers.parent.mkdir(parents=True, exist_ok=True)
    store.write_answer(answers, {"control": clean.infection_key, "rows": rows, "scores": dataclasses.asdict(scores)})
    return scores
