"""The stages of a run, one after another. One configuration in, one `Run` out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from backdoorbench.config.groups import AFTER, DETECT, INFECT, JUDGED, PURIFY
from backdoorbench.pipeline import after, detect, infect, purify
from backdoorbench.pipeline.evaluation import Predictions
from backdoorbench.pipeline.infections import WEIGHTS
from backdoorbench.pipeline.plan import Plan
from backdoorbench.shapes import Images
from backdoorbench.storage.record import Run


@dataclass
class Outcome:
    """What a run leaves besides its figures.

    purified     the model that the defense left
    weights      a file that holds its weights already, the infected model's or a purified one's; None: none does
    predictions  every call, by name
    gallery      (M, 3, H, W) clean and triggered test images, for the picture; None without a trigger
    pictures     what a detector drew, by name: (n, 3, H, W) in [0, 1]
    captions     what stands below each image of those that have one a class
    """

    purified: nn.Module
    weights: Path | None
    predictions: dict[str, torch.Tensor]
    gallery: tuple[Images, Images] | None
    pictures: dict[str, Images]
    captions: list[str]


def execute(made: Plan, run: Run, announce: Callable[[str], None]) -> Outcome:
    """Carries out a plan, filling `run` as it goes, so that a failure leaves what was known.

    announce  told the stage (infect, detect, purify, after) as it ends, and of each point of the learning curve (curve)"""
    test = made.splits.test.to(made.device)
    infection, before = infect.carry_out(made, test, run)
    announce(INFECT.name)
    infect.refuse_broken(made, run.infection)
    verdict = None
    if made.detects:
        verdict = detect.carry_out(made, infection, test, run)
        announce(DETECT.name)
    purified = purify.carry_out(made, infection, before, test, run, announce)
    if verdict is not None:
        detect.try_reversed(made, verdict, infection.model, purified.model, test, run)
    announce(PURIFY.name)
    if made.is_attacked_after:
        after.carry_out(made, infection, purified.model, test, run)
        announce(AFTER.name)
    gallery = None
    if infection.trigger is not None:
        shown = test.subset(torch.linspace(0, len(test) - 1, 8).long())
        images = next(iter(shown.batches(8)))[0]
        gallery = (images.cpu(), infection.trigger(images).cpu())
    calls = stored_predictions([before, purified.predictions], len(test.classes))
    weights = purified.weights or (None if purified.is_new else made.infection_folder / WEIGHTS)
    pictures = verdict.pictures if verdict is not None else {}
    captions = detect.captions(verdict, test.classes) if verdict is not None else []
    return Outcome(purified.model, weights, calls, gallery, pictures, captions)


def stored_predictions(judged: list[Predictions], classes: int) -> dict[str, torch.Tensor]:
    """Every call, one byte an image and condition (two above 256 classes), by name: `infected_clean`.

    judged  of the infected and of the purified model"""
    kind = torch.uint8 if classes <= 256 else torch.int16
    named: dict[str, torch.Tensor | None] = {}
    for stage, calls in zip(JUDGED, judged, strict=True):
        named |= {f"{stage.model}_clean": calls.clean, f"{stage.model}_triggered": calls.triggered}
    return {name: calls.to(kind) for name, calls in named.items() if calls is not None}
