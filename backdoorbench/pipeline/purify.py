"""The last stage: the defense, given its own copy of what it may know, and the model that it returns, judged."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from backdoorbench import device, metrics
from backdoorbench.attacks.base import Infection, check_counts
from backdoorbench.config.groups import PURIFY
from backdoorbench.data.images import ImageSet
from backdoorbench.pipeline import evaluation, watch
from backdoorbench.pipeline.costs import metered
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.infect import fresh_network
from backdoorbench.pipeline.plan import Plan, batch_sizes
from backdoorbench.storage.record import Finding, Run
from backdoorbench.training.scenario import Scenario


@dataclass(frozen=True)
class Purified:
    """What the stage leaves.

    is_new  whether a weight differs from the infected model's; where none does, nothing was evaluated again
    """

    model: nn.Module
    predictions: Predictions
    is_new: bool


def carry_out(
    made: Plan, infection: Infection, before: Predictions, test: ImageSet, run: Run, announce: Callable[[str], None]
) -> Purified:
    """Purifies the infected model, whose predictions on the test set are `before`; the finding in the run."""
    finding = run.begin(PURIFY.name, made.defense.name)
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
