"""What detectors say of one model, in plain sentences: what each found, what it says of clean models, and what none can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backdoorbench.config.groups import READING
from backdoorbench.errors import join_words
from backdoorbench.metrics import interval
from backdoorbench.reporting.rows import percent

if TYPE_CHECKING:
    from backdoorbench.storage.record import Finding, Run

LIMITS = (
    "These look for one trigger that sends images of all classes to one class. Triggers of source classes only, several "
    "triggers, all-to-all mappings and triggers that differ from image to image may escape all of them; and clean models are "
    "flagged, too, since a class that few features tell apart looks like a target. Suspicion is a reason to clean or to look "
    "closer; none is no proof."
)
ALONE = (
    "No figure of a clean model of this network stands beside: outputs/ has none. A clean model that you trained, inspected "
    "the same way, says how much of this is usual."
)
UNTOLD = (
    "They tell a class that stands out among others, and here none can (of two, neither ever does), backdoor or not. Look at the "
    "triggers that Neural Cleanse reversed: a small one that moves nearly all images is suspicious."
)
FEW = 5  # clean models from which on their spread says something


def index_of(finding: Finding) -> float | None:
    """A detector's figure of the whole model."""
    return finding.figures.get("anomaly_index")


def clean_indices(runs: Iterable[Run], name: str, network: Mapping[str, Any]) -> list[float]:
    """What a detector said of models that nobody infected: of clean trainings, and of the controls of infections; of this network
    only. Models that were given, of which nobody knows, do not count.

    network  settings of a model: whatever starting weights it had, and however it reads images"""
    found: dict[str, float] = {}  # a control stands beside several runs
    for run in runs:
        if run.detection.name != name or built(run.config["model"]) != built(network):
            continue
        is_given = run.config["model"].get("checkpoint") is not None
        own = index_of(run.detection) if run.infection.status == "clean" and not is_given else None
        for value in (own, run.detection.beside.get("anomaly_index")):
            if value is not None:
                found[f"{value:.6g}"] = value
    return sorted(found.values())


def called(label: int, classes: Sequence[str]) -> str:
    """`3`, or `3 (cat)` where the class has a name of its own."""
    name = classes[label] if label < len(classes) else ""
    return f"{label} ({name})" if name not in ("", str(label)) else str(label)


def classes_of(run: Run) -> list[str]:
    """The names of the classes that a run's network tells apart."""
    found: list[str] = run.environment.get("data", {}).get("classes", [])
    return found


def built(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a network is built by."""
    return {key: value for key, value in model.items() if key not in ("checkpoint", "version", *READING)}


def told(flagged: Sequence[int], index: float | None, classes: Sequence[str] = ()) -> str:
    """The classes that a detector flags, and how far the farthest lies out."""
    if index is None:
        return "nothing: no class stands out in a way that it could measure"
    if not flagged:
        return f"nothing flagged, anomaly index {index:.2f}"
    kind = "class" if len(flagged) == 1 else "classes"
    return f"{kind} {join_words([called(label, classes) for label in flagged])} flagged, anomaly index {index:.2f}"


def line(run: Run, clean: Sequence[float]) -> str:
    """What one detector says: the classes that it flags, how far they lie out, and how far clean models' do."""
    finding = run.detection
    index, flagged = index_of(finding), finding.details.get("flagged_classes", [])
    said = told(flagged, index, classes_of(run))
    if clean and index is not None:
        above = sum(value >= index for value in clean)
        spread = f"{clean[0]:.2f}" if len(clean) == 1 else f"{clean[0]:.2f} to {clean[-1]:.2f}"
        said += f"; clean models of this network here: {spread}, n = {len(clean)}, {above} of them as far out"
        if len(clean) < FEW:
            said += " (few)"
    return said


def reversed_line(run: Run, after: bool = False) -> str:
    """What the reversed trigger of a detector's most suspicious class does; nothing where it reverses none.

    after  whether a defense followed, after which it does something else"""
    tried = run.detection.details.get("reversed")
    if not tried:
        return ""
    label = called(tried["class"], classes_of(run))
    then = f" before, {percent(tried['after'])} % after" if after else ""
    return (
        f"the trigger reversed towards class {label} has {tried['pixels']:g} pixels and moves {percent(tried['before'])} % of "
        f"the others' test images there{then}"
    )


def verdict(runs: Sequence[Run]) -> list[str]:
    """The sentences that the detectors come to together: first of the classes that several flag, then of those that one flags
    alone, which says little."""
    if not runs:
        return ["none: no detector could be asked"]
    votes: dict[int, list[str]] = {}
    for run in runs:
        for label in run.detection.details.get("flagged_classes", []):
            votes.setdefault(label, []).append(run.detection.name)
    asked, silent = (
        join_words([run.detection.name for run in runs if (index_of(run.detection) is None) == is_silent])
        for is_silent in (False, True)
    )
    if not votes and not asked:
        return [f"none: {silent} could tell nothing", UNTOLD]
    if not votes:
        return [f"no sign of a backdoor, by {asked}{f'; {silent} could tell nothing' if silent else ''}"]
    names = classes_of(runs[0])

    def named(labels: Iterable[int]) -> str:
        return join_words([f"class {called(label, names)} ({join_words(votes[label])})" for label in sorted(labels)])

    strong = {label for label, by in votes.items() if len(by) > 1}
    weak = votes.keys() - strong
    if strong:
        said = [f"it looks backdoored: towards {named(sorted(strong))}"]
        return said + [f"weak signs, each by one detector alone: {named(weak)}"] * bool(weak)
    if len({by for label in weak for by in votes[label]}) == 1:
        return [f"suspicious, by one detector alone{' of ' + asked if len(runs) > 1 else ''}: towards {named(weak)}"]
    return [f"suspicious, but no two detectors flag the same class: {named(weak)}"]


def accuracy(run: Run) -> str:
    """How well the model knows the images, over how many that is said, and in which precision it was computed."""
    scores = run.infected
    assert scores is not None
    low, high = interval(scores.ca, scores.n_clean)
    return (
        f"{percent(scores.ca)} % of {scores.n_clean:,} test images (95 % interval {percent(low)} to {percent(high)}), in "
        f"{run.config['train']['precision']}"
    )
