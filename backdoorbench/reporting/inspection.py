"""What detectors say of one model, in plain sentences: what each found, what it says of clean models, and what none can tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from backdoorbench.errors import join_words
from backdoorbench.reporting.rows import percent

if TYPE_CHECKING:
    from backdoorbench.storage.record import Finding, Run

LIMITS = (
    "These look for one trigger that sends images of all classes to one class. Triggers of source classes only, several "
    "triggers, all-to-all mappings and triggers that differ from image to image may escape all of them; and clean models are "
    "flagged, too, since a class that few features tell apart looks like a target. Suspicion is a reason to clean or to look "
    "closer; none is no proof."
)
FEW = 5  # clean models from which on their spread says something


def index_of(finding: Finding) -> float | None:
    """A detector's figure of the whole model."""
    return finding.figures.get("anomaly_index")


def clean_indices(runs: Iterable[Run], name: str, network: str) -> list[float]:
    """What a detector said of models that nobody infected: of clean trainings, and of the controls of infections; of this network
    only. Models that were given, of which nobody knows, do not count."""
    found: dict[str, float] = {}  # a control stands beside several runs
    for run in runs:
        if run.detection.name != name or run.config["model"]["name"] != network:
            continue
        is_given = run.config["model"].get("checkpoint") is not None
        own = index_of(run.detection) if run.infection.status == "clean" and not is_given else None
        for value in (own, run.detection.beside.get("anomaly_index")):
            if value is not None:
                found[f"{value:.6g}"] = value
    return sorted(found.values())


def told(flagged: Sequence[int], index: float | None) -> str:
    """The classes that a detector flags, and how far the farthest lies out."""
    if index is None:
        return "nothing: no class stands out in a way that it could measure"
    if not flagged:
        return f"nothing flagged, anomaly index {index:.2f}"
    classes = "class" if len(flagged) == 1 else "classes"
    return f"{classes} {join_words([str(label) for label in flagged])} flagged, anomaly index {index:.2f}"


def line(run: Run, clean: Sequence[float]) -> str:
    """What one detector says: the classes that it flags, how far they lie out, and how far clean models' do."""
    finding = run.detection
    index, flagged = index_of(finding), finding.details.get("flagged_classes", [])
    said = told(flagged, index)
    if clean and index is not None:
        above = sum(value >= index for value in clean)
        spread = f"{clean[0]:.2f}" if len(clean) == 1 else f"{clean[0]:.2f} to {clean[-1]:.2f}"
        said += f"; clean models of this network here: {spread}, n = {len(clean)}, {above} of them as far out"
        if len(clean) < FEW:
            said += " (few)"
    return said


def verdict(runs: Sequence[Run]) -> str:
    """The sentence that the detectors come to together: a class that several flag says more than one that one flags."""
    votes: dict[int, list[str]] = {}
    for run in runs:
        for label in run.detection.details.get("flagged_classes", []):
            votes.setdefault(label, []).append(run.detection.name)
    if not votes:
        return f"no sign of a backdoor, by {join_words([run.detection.name for run in runs])}"
    most = max(map(len, votes.values()))
    named = [
        f"class {label} ({join_words(names)})" for label, names in sorted(votes.items(), key=lambda vote: -len(vote[1]))
    ]
    looks = "it looks backdoored" if most > 1 else "suspicious, by one detector alone"
    return f"{looks}: towards {join_words(named)}"


def accuracy(run: Run) -> str:
    """How well the model knows the images, and over how many that is said."""
    scores = run.infected
    assert scores is not None
    return f"{percent(scores.ca)} % of {scores.n_clean:,} test images"
