"""What `bdx inspect` and `bdx clean` share: a model that somebody else trained, as the words of a run."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backdoorbench.cli.arguments import Parser, words_of
from backdoorbench.config.groups import SETTINGS, STAGES
from backdoorbench.errors import ConfigError, ModelError, join_words

if TYPE_CHECKING:  # torch is imported only when work starts
    from backdoorbench.pipeline.job import Job
    from backdoorbench.storage.record import Run

IMAGES = 5000  # of the training split, at most, that the defender takes: more cost hours and tell nothing new
HINTS = ("order", "input")  # notes of an infection: what a given network seems to have been trained on
PROBED = 32  # picture files that are looked at to tell how large they are


def add_arguments(parser: Parser) -> None:
    """The model, its images and further settings."""
    parser.add_argument("model", metavar="MODEL", help="a file of weights: safetensors, .pt, .pth, .pth.tar, ...")
    parser.add_argument("--data", metavar="DIR", help="clean images that it should know, as dataset=folder reads them")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="as for a run: model=wrn_16_1 dataset.size=32; what is left out is found out, or said to be missing",
    )


def words(chosen: Namespace, out: Console) -> list[str]:
    """The words of a run that judges the model as it is. ConfigError or ModelError where something is missing."""
    given = list(chosen.settings)
    named = {word.partition("=")[0].lstrip("+") for word in given}
    if not Path(chosen.model).expanduser().is_file():
        raise ModelError(f"'{chosen.model}' is no file; expected the weights of a network. Name another.")
    if refused := sorted(named & {"experiment", "model.checkpoint", "train.epochs", "attack"}):
        raise ConfigError(
            f"{refused[0]} is set by this command: it takes a model as it is. Leave it out, or describe the run yourself, as "
            f"bdx experiment=given model.checkpoint=FILE dataset.root=DIR."
        )
    found = ["experiment=given", f"model.checkpoint={quoted(chosen.model)}"]
    side = None
    if chosen.data is not None:
        found.append(f"dataset.root={quoted(chosen.data)}")
        if not named & {"dataset", "dataset.size"} and (side := common_side(Path(chosen.data).expanduser())):
            found.append(f"dataset.size={side}")
    if "model" not in named:
        found += network_of(chosen.model, side, out)
    return found


def network_of(model: str, side: int | None, out: Console) -> list[str]:
    """The words of the network whose weights a file holds; ModelError where none here fits them.

    side  pixels of the images, where somebody knows"""
    from backdoorbench.models import reading
    from backdoorbench.models.identify import identify

    fitting = identify(reading.read(model), side)
    if not fitting:
        raise ModelError(
            f"'{model}' holds the weights of no network here: neither names nor shapes fit. Name it: model=wrn_16_1, "
            f"model=timm model.timm_name=NAME, or your own code, model=module model.target=package.module:factory "
            f"plugins=[package]; docs/your-model.md says how."
        )
    first, *others = fitting
    say(out, "network", f"{' '.join(first.words)}, for {first.classes} classes: {first.how}")
    if others:
        say(out, "", f"it fits as well: {'; '.join(' '.join(other.words) for other in others[:3])}")
    return first.words


def quoted(path: str) -> str:
    """A path as a setting's value: Hydra reads some characters otherwise."""
    return "'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'"


def common_side(folder: Path) -> int | None:
    """The side that the pictures below a folder have in common, where they are squares; None where there is no such side."""
    from PIL import Image, UnidentifiedImageError

    from backdoorbench.data.pictures import IMAGES as ENDINGS

    sides: set[tuple[int, int]] = set()
    files = (file for file in folder.rglob("*") if file.suffix.lower() in ENDINGS)
    for _, file in zip(range(PROBED), files, strict=False):
        try:
            with Image.open(file) as picture:
                sides.add(picture.size)
        except (UnidentifiedImageError, OSError):
            continue  # the reader of the data set says what is wrong with it
    width, height = sides.pop() if len(sides) == 1 else (0, 1)
    return width if width == height else None


def has_data(chosen: Namespace) -> bool:
    """Whether the words name images."""
    return chosen.data is not None or any(word.startswith(("dataset=", "dataset.root=")) for word in chosen.settings)


def share_of(found: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The word that bounds how many training images the defender takes: IMAGES, unless there are fewer or the words say it."""
    from backdoorbench.cli.arguments import composed
    from backdoorbench.config.build import build
    from backdoorbench.storage.outputs import Outputs

    if any(word.startswith("holdout") for word in found):
        return []
    resolved = composed(found, folders)
    dataset = build(resolved["dataset"], "dataset", resolved["plugins"])
    count = len(dataset.load(Outputs(Path(resolved["runtime"]["outputs"]).expanduser()).cache).train)
    return [f"holdout.rate={IMAGES / count:.6g}"] if count > IMAGES else []


def run(
    chosen: Namespace, found: Sequence[str], methods: Sequence[str], settings: Sequence[str] | None = None
) -> "Job":
    """Carries out the run that these methods make of the model, or finds it done; its stages in lines.

    found     what `words` says of the model
    settings  in place of the user's own"""
    from backdoorbench.cli.arguments import composed
    from backdoorbench.sweeps import job

    said = [*found, *methods, *(chosen.settings if settings is None else settings)]
    return job.carry_out(composed([*said, *share_of(said, chosen.config_dirs)], chosen.config_dirs))


def judge(chosen: Namespace, found: Sequence[str]) -> None:
    """Judges the model as it is, and refuses one that is shown other classes or other images than it was trained on: whatever is
    said of it then, or done to it, is about something else. ConfigError, unless the words force it on."""
    methods = [stage.group for stage in STAGES]  # whose settings are not those of this run's
    aside = {*methods, *(setting.name for setting in SETTINGS if setting.part_of)}
    kept = [word for word in chosen.settings if word.lstrip("+~").partition("=")[0].partition(".")[0] not in aside]
    done = run(chosen, found, [f"{group}=none" for group in methods], kept)
    for what in HINTS:
        hint = done.run.infection.notes.get(what)
        if hint and not done.run.config["force"]:
            raise ConfigError(f"{Path(chosen.model).name}: {hint}, or force=true to go on as it is.")


def detectors_of(text: str | None) -> list[str]:
    """The detectors that judge a model, or those of a list; ConfigError for one that does not."""
    from backdoorbench.config import catalog
    from backdoorbench.config.build import target
    from backdoorbench.config.compose import option

    fit = [
        name
        for name in catalog.names("detector")
        if getattr(target(option("detector", name), "detector"), "judges", "") == "model" and name != "none"
    ]
    wanted = words_of(text) or fit
    for name in wanted:
        if name not in fit:
            raise ConfigError(
                f"--detectors names '{name}'; expected some of {join_words(fit)}, which judge a model. Change --detectors."
            )
    return wanted


def known_runs(config: dict[str, Any]) -> list["Run"]:
    """The finished runs of the outputs folder that a configuration names."""
    from backdoorbench.storage import record

    return [
        each
        for each in record.collect([Path(config["runtime"]["outputs"]).expanduser()]).values()
        if each.status == "done"
    ]


def print_weights_alone(file: str, out: Console) -> None:
    """What a file of weights says by itself, without an image: what it holds, which network it is, and what those detectors find
    in it that need nothing else."""
    from backdoorbench.models import reading
    from backdoorbench.models.identify import identify
    from backdoorbench.pipeline import cleaned
    from backdoorbench.reporting import inspection

    found = reading.read(file)
    say(out, "file", ", ".join([found.format, *(f"{name} {value}" for name, value in found.beside.items())][:8]))
    for state in found.states[:1]:
        count = sum(value.numel() for value in state.weights.values())
        under = f", under {state.name}" if state.name else ""
        say(out, "weights", f"{count:,} numbers in {len(state.weights)} tensors{under}")
    if not (fitting := identify(found)):
        say(out, "network", "none here that they fit; with --data DIR and model=... more can be said")
        return
    first = fitting[0]
    say(out, "network", f"{' '.join(first.words)}, for {first.classes} classes: {first.how}")
    for name, verdict in cleaned.without_images(first).items():
        flagged = verdict.flagged.nonzero()[:, 0].tolist()
        say(out, name, inspection.told(flagged, verdict.figures.get("anomaly_index")))
    say(
        out,
        "",
        "Weights alone tell little: a sign of a backdoor at best, and no proof that there is none. Add --data DIR.",
    )


def say(out: Console, what: str, text: str, *, is_path: bool = False) -> None:
    """A paragraph, what it is about in front; a path is never broken."""
    if is_path:
        out.print(Text(f"  {what:<10}  {text}"), soft_wrap=True)
        return
    laid = Table.grid(padding=(0, 2))
    laid.add_column(min_width=12)
    laid.add_column(overflow="fold")
    laid.add_row(Text(f"  {what}"), Text(text))
    out.print(laid)
