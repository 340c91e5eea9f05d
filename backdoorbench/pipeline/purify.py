"""The defense, given its own copy of what it may know, and the model that it returns, judged.

After-attacks share what they attack: the purified model of one configuration is kept in the cache, so that several of them purify
once. It is taken over from a finished run that differs in what bears on no defense: its control, its detector, its after-attack.
"""

import copy
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from backdoorbench import device, metrics
from backdoorbench.attacks.base import Infection, check_counts
from backdoorbench.config.groups import PURIFY
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import BdxError
from backdoorbench.models import checkpoint
from backdoorbench.pipeline import evaluation, watch
from backdoorbench.pipeline.costs import metered
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.infect import fresh_network
from backdoorbench.pipeline.infections import WEIGHTS as INFECTED
from backdoorbench.pipeline.infections import describe_purified, description
from backdoorbench.pipeline.plan import Plan, Sketch, batch_sizes
from backdoorbench.storage import record, store
from backdoorbench.storage.outputs import key_of
from backdoorbench.storage.record import Finding, Run
from backdoorbench.streams import Stream
from backdoorbench.training.scenario import Scenario

log = logging.getLogger(__name__)

FEW, ALIKE = 500, 0.95  # test images that a model taken over is asked about, and how many it must call as it did
STARTED = time.time()  # a rerun purifies again, but this process does so once
WEIGHTS, CALLS = "model.safetensors", "predictions.safetensors"  # in the folder of a purified model


@dataclass(frozen=True)
class Purified:
    """What the stage leaves.

    is_new   whether a weight differs from the infected model's; where none does, nothing was evaluated again
    weights  the file that holds them already, where one does
    """

    model: nn.Module
    predictions: Predictions
    is_new: bool
    weights: Path | None = None


class Unlike(Exception):
    """A purified model whose network is another than the victim's, so that its weights alone do not bring it back."""

    def __init__(self, purified: Purified) -> None:
        super().__init__()
        self.purified = purified


def carry_out(
    made: Plan, infection: Infection, before: Predictions, test: ImageSet, run: Run, announce: Callable[[str], None]
) -> Purified:
    """The purified model: made of the infected one, whose predictions on the test set are `before`, or as it was kept for an
    after-attack; the finding in the run."""
    finding = run.begin(PURIFY.name, made.defense.name)
    folder = made.purification_folder
    if made.config["rerun"]:
        store.discard(folder, before=STARTED)

    def new() -> Purified:
        return taken_over(made, infection, test, finding) or work(made, infection, before, test, finding, announce)

    if not made.is_attacked_after and not folder.is_dir():
        return new()

    def make(partial: Path) -> None:
        keep(made, new(), finding, partial)

    def read(folder: Path) -> tuple[Purified, Finding]:
        with store.reading(folder):
            model, calls = purified_network(made), store.read_tensors(folder / CALLS)
            checkpoint.restore(model, folder / WEIGHTS)
            described = description(folder, "purification.json")
            predictions = Predictions(calls["clean"], calls.get("triggered"))
            purified = Purified(model.eval(), predictions, described["is_new"], folder / WEIGHTS)
            return purified, record.as_finding(described["finding"])

    waiting = f"another process purifies this model ({key_of(folder)}); waiting for it"
    try:
        (purified, known), found = store.obtain(folder, make, read, waiting)
    except Unlike as unlike:
        return unlike.purified
    if found:
        vars(finding).update(vars(known) | {"cached": True, "cost": known.cost or known.seconds, "seconds": {}})
    finding.key = key_of(folder)
    return purified


def taken_over(made: Plan, infection: Infection, test: ImageSet, finding: Finding) -> Purified | None:
    """The purified model of a finished run that purified the same, and what it found, in the finding; None where there is none
    that can be read and calls test images what it called them then."""
    if made.config["rerun"] or (folder := purified_before(made)) is None:
        return None
    model, weights = purified_network(made), folder / f"{PURIFY.model}.safetensors"
    try:
        checkpoint.restore(model, weights)
        calls, known = store.read_tensors(folder / CALLS), record.read(folder)
        clean, triggered = calls[f"{PURIFY.model}_clean"].long(), calls.get(f"{PURIFY.model}_triggered")
        few = test.subset(torch.arange(min(FEW, len(test))))
        again = evaluation.predict(model, few, None, made.recipe.precision).clean
        if metrics.share(again == clean[: len(few)]) < ALIKE:
            raise ValueError("it calls images otherwise than it did")
    except (ValueError, KeyError, OSError, BdxError) as error:
        log.warning(f"the {PURIFY.model} model of {folder} cannot be used ({error}); it is made again")
        return None
    vars(finding).update(vars(known.purification))
    finding.cached, finding.cost, finding.seconds = True, finding.cost or finding.seconds, {}
    predictions = Predictions(clean, triggered.long() if triggered is not None else None)
    return Purified(model.eval(), predictions, not same_weights(model, infection.model), weights)


def purified_before(made: Sketch) -> Path | None:
    """The folder of the latest finished run without an after-attack that left this purified model: a rerun counts, since code
    may have been edited before it."""
    found = (record.find_done(made.outputs, key) for key in made.purified_alike)
    return max(filter(None, found), key=lambda folder: folder.name, default=None)


def purified_network(made: Plan) -> nn.Module:
    """A network such as the plan's defense leaves, with weights that say nothing."""
    model = fresh_network(made, Stream(0))
    made.defense.reshape(model)
    return model


def keep(made: Plan, purified: Purified, finding: Finding, folder: Path) -> None:
    """Writes a purified model, and what its stage found, into `folder`. Unlike where its network is another
    than its defense says."""
    own, usual = purified.model.state_dict(), purified_network(made).state_dict()
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in usual.items()}:
        raise Unlike(purified)
    weights = purified.weights or (None if purified.is_new else made.infection_folder / INFECTED)
    if weights is None or checkpoint.description(weights) is None or not store.link(weights, folder / WEIGHTS):
        checkpoint.save(purified.model, folder / WEIGHTS, describe_purified(made))
    calls = {"clean": purified.predictions.clean, "triggered": purified.predictions.triggered}
    store.write_tensors(folder / CALLS, {name: value for name, value in calls.items() if value is not None})
    settings = made.purification_settings
    said = {"settings": settings, "is_new": purified.is_new, "finding": dataclasses.asdict(finding)}
    store.write_json(folder / "purification.json", said)


def work(
    made: Plan,
    infection: Infection,
    before: Predictions,
    test: ImageSet,
    finding: Finding,
    announce: Callable[[str], None],
) -> Purified:
    """Purifies, and judges what comes of it."""
    finding.details |= {"starts_from": made.defense.starts_from, "plain": made.defense.plain}
    finding.details["holdout"] = {"kind": made.holdout.kind, **made.parts.describe()}
    with metered(finding, made.device), finding.timed("purify"):
        model = purify(made, infection, test, finding, announce)
    finding.seconds["purify"] = round(finding.seconds["purify"] - finding.seconds.get("curve", 0.0), 3)
    is_new, after = not same_weights(model, infection.model), before
    if is_new:
        with finding.timed("evaluate"):
            after = evaluation.predict(model, test, infection.trigger, made.recipe.precision)
    rows = made.parts.test_rows
    holdout = made.parts.validation if made.parts.validation is not None else made.parts.holdout
    finding.scores = evaluation.judge(after, test, infection.target, rows)
    finding.details |= evaluation.details(after, test, infection.target, rows)
    if holdout is not None:  # what a search over the defense's settings may go by
        with finding.timed("evaluate"):
            calls = evaluation.predict(model, holdout.to(made.device), None, made.recipe.precision)
        finding.details["holdout_ca"] = metrics.share(calls.clean == holdout.labels.cpu())
    return Purified(model, after, is_new)


def same_weights(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same tensors under the same names, bit for bit."""
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        value.shape == theirs[name].shape and torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def purify(
    made: Plan, infection: Infection, test: ImageSet, finding: Finding, announce: Callable[[str], None]
) -> nn.Module:
    """The defense, given its own copy of what it may know; the model it returns, in eval mode."""
    if infection.train is None and "train" in made.defense.needs:
        infection = rebuilt(made, infection, finding)
    scenario = Scenario(
        made.defense.needs,
        model=copy.deepcopy(infection.model),
        holdout=made.parts.holdout.to(made.device) if made.parts.holdout is not None else None,
        train=infection.train,
        build=lambda inner: fresh_network(made, inner),
        recipe=made.recipe,
        stream=made.stream.child("purify"),
        device=made.device,
        probe=watch.probe(made, infection, test, finding, announce),
        note=finding.notes.__setitem__,
        inspect=watch.inspection(infection, finding),
    )
    with device.memory_errors("purify", batch_sizes(made, "defense")):
        return made.defense.purify(scenario).eval()


def rebuilt(made: Plan, infection: Infection, finding: Finding) -> Infection:
    """`infection` with a training set such as its attack might have left, and the record's word that it is one."""
    assert infection.trigger is not None
    clean, stream = made.parts.train.to(made.device), made.stream.child("rebuild")
    again = made.attack.rebuild(clean, infection.trigger, stream)
    check_counts(made.attack, clean, again, "Nothing was purified")
    finding.notes["rebuilt_train"] = again.counts
    return dataclasses.replace(infection, train=again.train, poisoned=again.poisoned)
