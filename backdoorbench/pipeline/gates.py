"""When an infection counts as one: the gates it must pass before a defense is judged."""

from dataclasses import dataclass
from typing import Any

from backdoorbench import metrics
from backdoorbench.errors import check_range
from backdoorbench.metrics import Scores
from backdoorbench.pipeline.evaluation import Predictions


@dataclass(frozen=True)
class Gates:
    """When an infection counts as one.

    asr_floor       below it, the status is `weak`: a defense's figures mean little
    ca_drop         CA may lie this much below the clean control's
    constant_share  a network that calls more than this share of clean images the same is constant: `broken`
    """

    asr_floor: float
    ca_drop: float
    constant_share: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_range(f"gates.{name}", value, 0, 1)


def status(
    gates: Gates,
    scores: Scores,
    predictions: Predictions,
    classes: int,
    facts: dict[str, Any],
    control: Scores | None,
    is_given: bool = False,
    by_chance: float = 0.0,
) -> tuple[str, list[str]]:
    """`clean`, `took`, `weak` or `broken`, and the reasons, a sentence each.

    is_given   whether the network, and so the control, started from weights of unknown origin
    by_chance  what CA would be of calls that know nothing of their images: more than 1/K where a class has most of them"""
    broken, weak = [], []
    share = metrics.largest_share(predictions.clean)
    if share > gates.constant_share and classes > 1:
        broken.append(f"the network calls {share:.0%} of the clean test images the same")
    if scores.ca < 1.5 / classes:
        broken.append(f"CA is {scores.ca:.3f}, near chance")
    elif metrics.is_near_chance(scores.ca, classes, by_chance):
        broken.append(
            f"CA is {scores.ca:.3f}, near chance: classes differ in their number of test images, and calls spread as unevenly, "
            f"whatever the images show, are right of {by_chance:.3f}"
        )
    if facts.get("poisoned") == 0:
        broken.append("no image that it was trained on carried the trigger")
    if facts.get("share_changed") == 0:
        broken.append("the trigger changes no pixel")
    if control is not None and scores.ca < control.ca - gates.ca_drop:
        weak.append(f"CA is {scores.ca:.3f}, the {'' if is_given else 'clean '}control's {control.ca:.3f}")
    if control is not None and control.asr is not None and control.asr > gates.asr_floor:
        swayed = "the control, by itself or by what model.checkpoint brought along" if is_given else "a clean model"
        weak.append(f"the trigger alone sways {swayed}: ASR {control.asr:.3f}")
    if scores.asr is not None and scores.asr < gates.asr_floor:
        weak.append(f"ASR is {scores.asr:.3f}, below {gates.asr_floor:g}")
    if broken:
        return "broken", broken + weak
    if scores.asr is None:
        return "clean", weak
    return ("weak" if weak else "took"), weak


def answers_to_covers(gates: Gates, scores: Scores, facts: dict[str, Any]) -> str | None:
    """The sentence about a network that the trigger sways and, more often than clean images mislead it, what the attacker's cover
    rows carried, whose labels he kept; None of any other."""
    found = facts.get("cover_accuracy")
    if found is None or scores.asr is None or scores.asr < gates.asr_floor or found >= scores.ca - gates.ca_drop:
        return None
    return (
        f"the network answers to more than the trigger: of test images changed as the cover rows were {found:.3f} are called "
        f"right, where CA is {scores.ca:.3f}"
    )
