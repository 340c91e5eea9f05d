"""The stage between: a detector, handed what its threat model allows, and its verdict judged by the truth, which it never sees.

Its verdict on one model is kept in the cache, so that several defenses after the same infection and detector cost it once. The
same detector is asked about the clean model of the same recipe, where there is one: what it says there is its false alarm.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backdoorbench import device, metrics
from backdoorbench.attacks.base import Infection
from backdoorbench.config.groups import DETECT, INFECT
from backdoorbench.data.holdout import pick
from backdoorbench.data.images import ImageSet
from backdoorbench.detectors.base import Reversed, Verdict
from backdoorbench.pipeline import evaluation
from backdoorbench.pipeline.costs import metered, timed
from backdoorbench.pipeline.infect import fresh_network, obtain
from backdoorbench.pipeline.infections import description
from backdoorbench.pipeline.plan import Plan, batch_sizes, clean_plan, has_clean_model, verdict_folder
from backdoorbench.pipeline.purify import rebuilt
from backdoorbench.shapes import Images, Mask, Rows
from backdoorbench.storage import store
from backdoorbench.storage.outputs import key_of
from backdoorbench.storage.record import Finding, Run
from backdoorbench.training.scenario import Scenario
from backdoorbench.triggers.base import Target, Trigger
from backdoorbench.triggers.patch import Patch

BATCH = 500  # test images that are triggered at a time
STARTED = time.time()  # a rerun asks a detector again, but this process does so once
PICTURE, REVERSED = (
    "picture.",
    "reversed.",
)  # in a verdict's file, before the names of what a detector drew, or reversed


@dataclass(frozen=True)
class Case:
    """One model for a detector to judge, and what only the judge knows.

    inputs    (M, 3, H, W) images that arrive at it, clean and triggered ones mixed; None where the detector judges none
    positive  (M,) bool: which of the inputs or training rows are triggered or poisoned; None where it judges the model
    """

    model: nn.Module
    train: ImageSet | None
    inputs: Images | None
    positive: Mask | None


def carry_out(made: Plan, infection: Infection, test: ImageSet, run: Run) -> Verdict:
    """Asks the detector about the infected model, and about a clean one; its finding in the run. What it says of the former."""
    finding = run.begin(DETECT.name, made.detector.name)
    case = present(made, infection, infection.trigger, infection.target, test, finding)
    verdict = obtain_verdict(made, case, made.infection_settings, finding)
    finding.figures = figures(verdict, case.positive, infection.target)
    finding.details["flagged"] = int(verdict.flagged.sum())
    if "holdout" in made.detector.needs:
        finding.details["holdout"] = {"kind": made.holdout.kind, **made.parts.describe()}
    if case.positive is not None:
        finding.details |= {"positives": int(case.positive.sum()), "negatives": int((~case.positive).sum())}
    else:
        finding.details["scores"] = [round(float(score), 4) for score in verdict.scores]
        finding.details["flagged_classes"] = verdict.flagged.nonzero()[:, 0].tolist()
    clean = clean_plan(made)
    if has_clean_model(made) and infection.trigger is not None:  # without one this is a clean model's verdict already
        with timed(finding, "control"):  # which may have to be trained anew
            control, _ = obtain(clean, test, Finding(INFECT.name, clean.attack.name))
            beside = Finding(DETECT.name, made.detector.name)
            other = present(clean, control, infection.trigger, infection.target, test, beside)
            said = obtain_verdict(made, other, clean.infection_settings, beside)
        finding.beside = figures(said, other.positive, infection.target)
    return verdict


def try_reversed(made: Plan, said: Verdict, before: nn.Module, after: nn.Module, test: ImageSet, run: Run) -> None:
    """What the reversed trigger of the most suspicious class does to the infected and to the purified model, into the detector's
    finding: the share of test images of other classes that each calls that class. It needs no trigger to be known."""
    if said.reversed is None or not (found := said.reversed.masks.flatten(1).any(1)).any():
        return
    label = int(said.scores.where(found, -torch.inf).argmax())
    trigger = Patch(said.reversed.patterns[label], said.reversed.masks[label]).to(made.device)
    rows = made.parts.test_rows[test.labels[made.parts.test_rows.to(test.device)].cpu() != label]
    others = test.subset(rows)
    shares = []
    for model in (before, after):
        calls = evaluation.predict(model, others, trigger, made.recipe.precision).triggered
        assert calls is not None
        shares.append(metrics.share(calls == label))
    finding = run.detection
    finding.details["reversed"] = {
        "class": label,
        "pixels": round(float(said.reversed.masks[label].sum()), 2),
        "before": shares[0],
        "after": shares[1],
        "images": len(rows),
    }


def captions(verdict: Verdict, classes: Sequence[str]) -> list[str]:
    """For each class what a picture of it says: its name, the pixels of the trigger reversed towards it, and whether it is
    flagged. Nothing of verdicts that are not on classes."""
    if verdict.reversed is None or len(verdict.scores) != len(classes):
        return []
    pixels = verdict.reversed.masks.sum((1, 2, 3)).tolist()
    return [
        f"{name}\n{f'{size:.3g} px' if size else 'none found'}{' FLAGGED' if flagged else ''}"
        for name, size, flagged in zip(classes, pixels, verdict.flagged.tolist(), strict=True)
    ]


def figures(verdict: Verdict, positive: Mask | None, target: Target | None) -> dict[str, float | None]:
    """What tables show of a verdict: of rows and inputs the figures of `metrics.detection`; of a model its own, whether any
    class is flagged, and whether the attacker's is (None where he has none, or one a class)."""
    if positive is not None:
        return metrics.detection(verdict.scores, verdict.flagged, positive) | verdict.figures
    own = getattr(target, "target", None)
    is_found = float(verdict.flagged[own]) if own is not None else None
    return {**verdict.figures, "any_flagged": float(verdict.flagged.any()), "target_flagged": is_found}


def present(
    made: Plan, infection: Infection, trigger: Trigger | None, target: Target | None, test: ImageSet, finding: Finding
) -> Case:
    """The case of one model; its training set rebuilt where the detector needs one and the attack leaves none."""
    needs = made.detector.needs
    if infection.train is None and "train" in needs:
        infection = rebuilt(made, infection, finding)
    if made.detector.judges == "rows":
        assert infection.poisoned is not None
        return Case(infection.model, infection.train, None, infection.poisoned.cpu())
    if made.detector.judges == "model":
        return Case(infection.model, infection.train, None, None)
    inputs, positive = arriving(made, trigger, target, test)
    return Case(infection.model, infection.train, inputs, positive)


def arriving(made: Plan, trigger: Trigger | None, target: Target | None, test: ImageSet) -> tuple[Images, Mask]:
    """Test images as they might arrive, in random order: clean ones of all classes, and as many triggered ones of classes that
    the attack acts on, whether or not the model falls for them. At most `inspection.images` of each."""
    most, stream = made.config["inspection"]["images"], made.stream.child("arriving")
    rows = made.parts.test_rows
    eligible = rows[target.is_eligible(test.labels[rows.to(test.device)]).cpu()] if target is not None else rows[:0]

    def few(some: Rows, name: str) -> Rows:
        if len(some) <= most:
            return some
        return some[pick(test.labels.cpu()[some], most, len(test.classes), "uniform", stream.child(name))]

    clean = [images for images, _ in test.subset(few(rows, "clean")).batches(BATCH)]
    hit: list[Images] = []
    if trigger is not None and len(eligible):
        with torch.no_grad():
            hit = [trigger(images) for images, _ in test.subset(few(eligible, "triggered")).batches(BATCH)]
    inputs = torch.cat([*clean, *hit])
    positive = torch.zeros(len(inputs), dtype=torch.bool)
    positive[sum(map(len, clean)) :] = True
    order = stream.child("order").permutation(len(inputs))
    return inputs[order.to(inputs.device)], positive[order]


def obtain_verdict(made: Plan, case: Case, infection: dict[str, Any], finding: Finding) -> Verdict:
    """The detector's verdict on the case: from the cache, or asked for into it.

    infection  all that the model depends on"""
    folder, settings = verdict_folder(made, infection)
    key = key_of(folder)
    if made.config["rerun"]:
        store.discard(folder, before=STARTED)

    def make(partial: Path) -> None:
        notes: dict[str, Any] = {}
        with metered(finding, made.device), finding.timed("detect"):
            said = examine(made, case, notes.__setitem__)
        kept = {"scores": said.scores, "flagged": said.flagged.to(torch.uint8)}
        pictures = {f"{PICTURE}{name}": images for name, images in said.pictures.items()}
        if said.reversed is not None:
            kept |= {f"{REVERSED}{name}": value for name, value in said.reversed._asdict().items()}
        store.write_tensors(partial / "verdict.safetensors", kept | pictures)
        cost = finding.seconds["detect"]
        store.write_json(
            partial / "verdict.json", {"settings": settings, "figures": said.figures, "notes": notes, "seconds": cost}
        )

    def read(folder: Path) -> tuple[Verdict, dict[str, Any], float]:
        with store.reading(folder):
            described, tensors = description(folder, "verdict.json"), store.read_tensors(folder / "verdict.safetensors")
            drawn = {name.removeprefix(PICTURE): images for name, images in tensors.items() if name.startswith(PICTURE)}
            parts = {name: tensors[REVERSED + name] for name in Reversed._fields if REVERSED + name in tensors}
            found = Reversed(**parts) if parts else None
            verdict = Verdict(tensors["scores"], tensors["flagged"].bool(), described["figures"], drawn, found)
            return verdict, described["notes"], described["seconds"]

    waiting = f"another process asks {made.detector.name} about this model ({key}); waiting for it"
    (verdict, notes, cost), found = store.obtain(folder, make, read, waiting)
    finding.key, finding.cached, finding.cost = key, found, {"detect": cost}
    finding.notes |= notes
    return verdict


def examine(made: Plan, case: Case, note: Callable[[str, Any], None]) -> Verdict:
    """The verdict, by the detector's own copy of what it may know."""
    scenario = Scenario(
        made.detector.needs,
        model=copy.deepcopy(case.model),
        holdout=made.parts.holdout.to(made.device) if made.parts.holdout is not None else None,
        train=case.train,
        inputs=case.inputs,
        build=lambda inner: fresh_network(made, inner),
        recipe=made.recipe,
        stream=made.stream.child("detect"),
        device=made.device,
        probe=lambda model, epoch: None,
        note=note,
    )
    with device.memory_errors("detect", batch_sizes(made, "detector")):
        return made.detector.examine(scenario)
