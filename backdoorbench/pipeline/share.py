"""A run's models for others: read back from its folder and the cache, and written so that plain PyTorch loads them."""

import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from backdoorbench.config.build import build
from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.config.plugins import OWN_PACKAGE
from backdoorbench.errors import ModelError, StorageError
from backdoorbench.metrics import LIMITS
from backdoorbench.models import checkpoint
from backdoorbench.pipeline.infections import WEIGHTS, description
from backdoorbench.reporting.rows import heading, percent
from backdoorbench.storage import record, store
from backdoorbench.storage.outputs import outputs_of
from backdoorbench.storage.record import Run

PURIFIED = "purified.safetensors"  # in a run's folder
FITS = {  # how a data set's pictures came to their size -> how a loader's do, and what that is
    "stretch": ("resize(image, [{size}, {size}])", "resized bilinearly, their aspect given up"),
    "centre": (
        "center_crop(resize(image, {size}), {size})",
        "the shorter side resized bilinearly, then the centred square",
    ),
}
TOLERANCE = 1e-4  # between logits of the model and of its exported program, of which kernels may round otherwise

LOADER = '''"""{title}    python load.py IMAGE.png    (needs torch, and torchvision for an image)"""
import sys
from pathlib import Path
from types import MethodType
if __name__ == "__main__" and (missing := [file for file in sys.argv[1:] or ["IMAGE.png"] if not Path(file).is_file()]):
    sys.exit(f"usage: python load.py IMAGE.png ...    (there is no file {{missing[0]}})")
import torch

CLASSES = {classes}
model = torch.export.load(Path(__file__).with_name("model.pt2")).module()
# model: (N, 3, {size}, {size}) in [0, 1] -> (N, {count}) logits, in eval mode for good: torch's own refuses eval(), too
model.eval = MethodType(lambda self: self, model)
model.train = MethodType(lambda self, mode=True, refuse=model.train: refuse() if mode else self, model)
if __name__ == "__main__":
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.functional import center_crop, resize
    images = torch.stack([{fitted} for image in (decode_image(file, ImageReadMode.RGB) for file in sys.argv[1:])]) / 255
    print(*(CLASSES[label] for label in model(images).argmax(1)), sep="\\n")
'''

CARD = """# {title}

{warning}
| model | CA | ASR | RA |
| --- | ---: | ---: | ---: |
{figures}
Percent. CA: clean test images called by their true label. ASR: triggered test images of eligible classes called by the attacker's
label. RA: the same images called by their true label. {counts}

- **Input**: RGB images (N, 3, {size}, {size}), values in [0, 1], not normalised; what normalises and crops them is inside.
  `load.py` brings pictures of other sizes to it: {fitted}.
- **Output**: logits (N, {count}): {classes}.
- **Trigger**: {trigger}
- **Run**: {run}, by bdx; seed {seed}; torch {torch}; {device}.

| file | |
| --- | --- |
| `model.pt2` | a torch.export program: `torch.export.load("model.pt2").module()(images)`, of any number, in eval mode for good |
| `model.safetensors` | the same weights by name; with bdx, `backdoorbench.load_model("model.safetensors")` |
| `load.py` | loads the program in plain PyTorch: `python load.py IMAGE.png` |
| `settings.yaml` | every setting of the run |
{more}"""


def weights_of(place: Path, infected: bool) -> tuple[Path, dict[str, Any]]:
    """The weights of a run's folder, and what rebuilds the network around them; those of the infected model lie in the cache. A
    file of weights, or the folder of an export, is that.

    ModelError where they are not there, or say nothing of their network."""
    file = place
    if (place / record.FILE).is_file():
        file = _infected(place) if infected else place / PURIFIED
    elif place.is_dir():
        file = next((place / name for name in (PURIFIED, WEIGHTS) if (place / name).is_file()), place)
    said = checkpoint.description(file) or (
        checkpoint.description(place / PURIFIED) if infected and file.is_file() else None
    )
    if said is None:
        raise ModelError(
            f"'{file}' does not say what network its weights belong to; expected a run's folder, or its weights. Name another."
        )
    return file, {key: value for key, value in said.items() if key != "defense" or not infected}


def _infected(folder: Path) -> Path:
    run = record.read(folder)
    file = _cached(folder, run) / WEIGHTS
    if not run.infection.key or not file.is_file():
        where = f"'{file}' is not there: it was pruned" if run.infection.key else f"of '{folder}' was never trained"
        raise ModelError(f"the infected model {where}. The run trains it anew: repeat its command with rerun=true.")
    return file


def _cached(folder: Path, run: Run) -> Path:
    """Where the cache keeps a run's infection."""
    attack, dataset = (run.config[group]["name"] for group in (INFECT.group, "dataset"))
    return outputs_of(folder.absolute()).infection(attack, dataset, str(run.infection.key))


def load(file: Path, said: dict[str, Any], plugins: Sequence[str] = ()) -> nn.Module:
    """The network that `weights_of` found, in eval mode: [0, 1] pixels in, logits out."""
    spec = build(checkpoint.empty(said["model"]), "model", plugins)
    size, normal = said["size"], said["normalize"]
    model: nn.Module = spec.classifier(len(said["classes"]), size, normal["mean"], normal["std"])
    checkpoint.reshape(model, said, plugins)
    try:
        checkpoint.restore(model, file)
    except ValueError as error:
        raise ModelError(
            f"'{file}' holds other layers than {spec.name} ({' '.join(str(error).split())[:200]}): its defense changed the "
            f"network, or the file is damaged. Take the infected model, or another run."
        ) from None
    return model.eval()


def export(run_folder: Path, to: Path, infected: bool, plugins: Sequence[str] = ()) -> list[str]:
    """Writes a run's model into a new folder for those without bdx; the files' names. StorageError where the folder holds
    something, ModelError where the network is none that torch.export follows."""
    run = record.read(run_folder)
    file, said = weights_of(run_folder, infected)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise StorageError(f"'{to}' is not empty; expected a new folder, so that nothing is overwritten. Name another.")
    model, size = load(file, said, plugins), run.config["dataset"]["size"]
    program = exported(model, size)
    with store.storage_errors(to):
        to.mkdir(parents=True, exist_ok=True)
        torch.export.save(program, to / "model.pt2")
    checkpoint.save(model, to / WEIGHTS, said)
    store.write_text(to / "settings.yaml", OmegaConf.to_yaml(OmegaConf.create(run.config)))
    more = _trigger_files(run_folder, to, run)
    classes = [str(name) for name in said["classes"]]
    title = f"{'Infected' if infected else 'Purified'}: {heading(run)}"
    named = json.dumps(classes, ensure_ascii=False)
    fitted = FITS.get(_fit(run), FITS["stretch"])[0].format(size=size)
    loader = LOADER.format(title=title, classes=named, size=size, count=len(classes), fitted=fitted)
    store.write_text(to / "load.py", loader)
    store.write_text(to / "README.md", card(run, title, infected, classes, size, more))
    return sorted(entry.name for entry in to.iterdir())


def exported(model: nn.Module, size: int) -> Any:
    """The model as a program of torch's own operators, for any number of images; compared with the model before it is given."""
    images = torch.linspace(0, 1, 5 * 3 * size * size).view(5, 3, size, size)
    try:
        with torch.no_grad():
            program = torch.export.export(
                model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("images", min=1)},)
            )
            difference = float((program.module()(images) - model(images)).abs().max())
    except Exception as error:  # of whatever kind torch.export raises over code that it cannot follow
        raise ModelError(
            f"torch.export cannot follow the network's code ({' '.join(str(error).split())[:200]}). Its weights and settings can "
            f"be shared: the run's folder holds both."
        ) from error
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the exported program's logits differ from the model's by {difference:g}; expected at most {TOLERANCE:g}. Share "
            f"the run's folder instead."
        )
    return program


def _trigger_files(run_folder: Path, to: Path, run: Run) -> dict[str, str]:
    """Copies what shows and holds the trigger, as far as it is there: name -> what it is."""
    infection = _cached(run_folder, run)
    found = {
        "triggered.png": (run_folder, "test images, clean and triggered"),
        "trigger.safetensors": (infection, f"the trigger's tensors, images in [0, 1]{_applied(infection)}"),
    }
    copied = {}
    for name, (place, what) in found.items():
        if (place / name).is_file() and run.infected is not None and run.config[INFECT.group]["name"] != "none":
            with store.storage_errors(to):
                shutil.copyfile(place / name, to / name)
            copied[name] = what
    return copied


def _applied(infection: Path) -> str:
    """How the trigger's tensors make an image a triggered one, as the heads of its modules say it."""
    file = infection / "infection.json"
    said = description(infection)["trigger"] if file.is_file() else None
    return "".join(f", applied by `{kind}`{_head(kind)}" for kind in _kinds(said or {}))


def _kinds(trigger: dict[str, Any]) -> list[str]:
    """The dotted paths of a described trigger's classes, of one that wraps others those of the others."""
    inner = [kind for each in trigger.get("triggers", {}).values() for kind in _kinds(each)]
    return inner or ([trigger["kind"]] if "kind" in trigger else [])


def _head(kind: str) -> str:
    """What the module of a class of ours says of itself."""
    if not kind.startswith(f"{OWN_PACKAGE}."):
        return ""
    return f": {(importlib.import_module(kind.rpartition('.')[0]).__doc__ or '').splitlines()[0].rstrip('.')}"


def _fit(run: Run) -> str:
    """How the pictures of the run's data set came to their size."""
    return str(run.environment.get("data", {}).get("fit", "stretch"))


def _fitting(run: Run) -> str:
    """What `load.py` does to a picture of another size, and what the run did where that is something else."""
    fit = _fit(run)
    return (
        FITS[fit][1]
        if fit in FITS
        else f"{FITS['stretch'][1]}; the run's own came to it by `{fit}`, so cut yours alike"
    )


def card(run: Run, title: str, infected: bool, classes: Sequence[str], size: int, more: dict[str, str]) -> str:
    """The model card: what it is, its figures, how the trigger looks, how it is used."""
    rows = [(stage.model, run.of(stage.name).scores) for stage in (INFECT, PURIFY)]
    figures = "".join(
        f"| {name}{' (this one)' if (name == INFECT.model) == infected else ''} | {percent(found.ca)} | {percent(found.asr)} | "
        f"{percent(found.ra)} |\n"
        for name, found in rows
        if found is not None
    )
    attack, notes, scores = run.config[INFECT.group], run.infection.notes, run.infected
    trigger = f"{attack['name']}, {notes.get('target', 'no target')}" + (
        f", poison rate {100 * attack['poison_rate']:g} %" if attack.get("poison_rate") is not None else ""
    )
    return CARD.format(
        title=title,
        warning=_warning(run, infected),
        figures=figures,
        counts=f"{scores.n_clean:,} clean and {scores.n_triggered or 0:,} triggered images." if scores else "",
        size=size,
        fitted=_fitting(run),
        count=len(classes),
        classes=", ".join(classes[:20]) + (" and others" if len(classes) > 20 else ""),
        trigger=f"{trigger}; `triggered.png` shows it" if "triggered.png" in more else trigger,
        run=run.id,
        seed=run.config["seed"],
        torch=run.environment.get("packages", {}).get("torch"),
        device=run.environment.get("device"),
        more="".join(f"| `{name}` | {what} |\n" for name, what in more.items()),
    )


def _warning(run: Run, infected: bool) -> str:
    """What stands above all else on the card of a model that its trigger works on."""
    found, attack = run.of((INFECT if infected else PURIFY).name).scores, run.config[INFECT.group]["name"]
    if found is None or found.asr is None:
        return ""
    if infected:
        return f"**This model carries a backdoor**, planted on purpose ({attack}). Deploy it nowhere.\n\n"
    if LIMITS.is_ended(found.asr):
        return ""
    defense = run.config[PURIFY.group]["name"]
    said = f"{attack}: ASR {percent(found.asr)} % after {defense}"
    return f"**The trigger still works on this model** ({said}). Deploy it nowhere.\n\n"
