"""A purified model of somebody else, handed back: its weights as their file had them, and a card that says what was done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from backdoorbench import metrics
from backdoorbench.config import catalog
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, option
from backdoorbench.detectors.base import Detector, Scenario, Verdict
from backdoorbench.errors import ModelError
from backdoorbench.models import checkpoint, matching, reading
from backdoorbench.models.base import Classifier, ModelSpec
from backdoorbench.models.identify import Candidate
from backdoorbench.reporting.rows import FIGURES, percent
from backdoorbench.storage import store
from backdoorbench.storage.record import FILE, Run
from backdoorbench.streams import Stream

CARD = "model-card.md"


@dataclass(frozen=True)
class Left:
    """What `write` left: the card, and the share of the test images that both models call the same."""

    card: Path
    agreement: float


def name_of(model: Path) -> str:
    """`theirs-clean.pth` of `theirs.pth`."""
    suffix = "".join(model.suffixes[-2:]) if model.suffixes[-2:] == [".pth", ".tar"] else model.suffix
    return f"{model.name.removesuffix(suffix)}-clean{suffix}"


def write(run: Run, folder: Path, file: Path) -> Left:
    """Writes a run's purified weights to `file`, in the format and under the names of the file that its model came from, and the
    card beside it.

    folder  of the run's record"""
    source = Path(run.config["model"]["checkpoint"]).expanduser()
    if file.exists() and file.samefile(source):
        raise ModelError(f"--to is '{file}', the model that was read. Name another file: it is not overwritten.")
    model = network(folder / "purified.safetensors", run.config["plugins"])
    found = matching.find(model, reading.read(source), run.config["model"]["name"])[0]
    checkpoint.save_as(found, model, file)
    calls = store.read_tensors(folder / "predictions.safetensors")
    agreement = metrics.share(calls["infected_clean"] == calls["purified_clean"])
    card = file.with_name(CARD) if file.parent == folder else file.with_name(f"{file.name}.{CARD}")
    store.write_text(card, text(run, folder, file, agreement))
    return Left(card, agreement)


def network(file: Path, plugins: Sequence[str]) -> Classifier:
    """The model whose weights, and what they belong to, a file of ours holds. plugins: packages that may build it."""
    said = checkpoint.description(file)
    assert said is not None  # every run's file says it
    spec: ModelSpec = build({**said["model"], "checkpoint": None}, "model", plugins)
    model = spec.classifier(len(said["classes"]), said["size"], **said["normalize"])
    checkpoint.restore(model, file)
    return model.eval()


def text(run: Run, folder: Path, file: Path, agreement: float) -> str:
    """The card: what the model is, what was done to it by what, what that changed, and what nobody knows."""
    config, infected, purified = run.config, run.infected, run.purified
    assert infected is not None and purified is not None
    model, defense = config["model"], config["defense"]
    settings = {key: value for key, value in defense.items() if key not in ("_target_", "version", "name", "augment")}
    lines = [
        f"# {file.name}",
        "",
        f"The weights of `{Path(model['checkpoint']).name}` (SHA-256 {run.content['model.checkpoint']}), purified by bdx.",
        "",
        f"- network: {model['name']}, images of {config['dataset']['crop'] or config['dataset']['size']} px",
        f"- images: {config['dataset']['name']} (SHA-256 of all {run.content['dataset.root']})",
        f"- defense: {defense['name']}, " + ", ".join(f"{key} {value}" for key, value in settings.items()),
        f"- record: {folder / FILE}, seed {config['seed']}",
        "",
        f"| percent of {infected.n_clean:,} test images | before | after |",
        "| --- | ---: | ---: |",
    ]
    for figure, name in zip(
        FIGURES, ("accuracy (CA)", "attack success rate (ASR)", "robust accuracy (RA)"), strict=True
    ):
        if getattr(infected, figure) is not None:
            lines.append(f"| {name} | {percent(getattr(infected, figure))} | {percent(getattr(purified, figure))} |")
    tried: dict[str, Any] = run.detection.details.get("reversed", {})
    if tried:
        what = f"moved to class {tried['class']} by the reversed trigger ({tried['pixels']:g} pixels)"
        lines.append(f"| {what} | {percent(tried['before'])} | {percent(tried['after'])} |")
    lines += ["", f"{100 * agreement:.2f} % of the test images are called as before.", ""]
    if infected.asr is None:
        lines.append("The trigger was not known: nothing here says that a backdoor was there, or that it is gone.")
    else:
        lines.append(
            "A low attack success rate holds for the trigger that was tried, and can come back by a little training."
        )
    return "\n".join(lines) + "\n"


def without_images(candidate: Candidate) -> dict[str, Verdict]:
    """What the detectors that need a model and nothing else say of a file's weights in the network that they fit, by name."""
    resolved = compose([*candidate.words, f"dataset.size={candidate.size}"])
    dataset = resolved["dataset"]
    spec: ModelSpec = build(resolved["model"], "model")
    model = spec.classifier(candidate.classes, candidate.size, dataset["mean"], dataset["std"])
    checkpoint.load(model, candidate.fit)
    said = {}
    for name in catalog.names("detector"):
        detector: Detector = build(option("detector", name), "detector")
        if detector.needs == {"model"}:
            scenario = Scenario(
                detector.needs, model=model.eval(), holdout=None, train=None, build=lambda _: model,
                recipe=build(resolved["train"], "train"), stream=Stream(0), device=torch.device("cpu"),
                probe=lambda *_: None, note=lambda *_: None,
            )  # fmt: skip
            said[name] = detector.examine(scenario)
    return said
