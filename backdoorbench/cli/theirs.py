"""What `bdx inspect` and `bdx clean` share: a model that somebody else trained, as the words of a run."""

import logging
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from backdoorbench.cli.arguments import Parser, quoted, words_of
from backdoorbench.config.groups import SETTINGS, STAGES
from backdoorbench.errors import ConfigError, ModelError, few, join_words, no_weights

if TYPE_CHECKING:  # torch is imported only when work starts
    from backdoorbench.config.compose import Plain
    from backdoorbench.models.reading import Found
    from backdoorbench.pipeline.job import Job
    from backdoorbench.storage.record import Run

IMAGES = 5000  # of the training split, at most, that the defender takes: more cost hours and tell nothing new
HINTS = ("order", "input")  # notes of an infection: what a given network seems to have been trained on
NORMALISE = {"model.mean", "model.std", "model.range", "model.channels", "dataset.mean", "dataset.std"}
PROBED = 32  # pictures that are looked at to tell how large they are
PHOTO = 224  # pixels a side, as photographs are shown to networks
LARGEST = 448  # pixels a side of the largest squares that are not taken for photographs


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


def parsed(parser: Parser, typed: Sequence[str]) -> Namespace:
    """The words of a command about a model, whose file is there: said before anything is imported that takes seconds."""
    chosen = parser.parse_intermixed_args(typed)
    if not Path(chosen.model).expanduser().is_file():
        raise no_weights(f"'{chosen.model}'", Path(chosen.model).expanduser())
    return chosen


def words(chosen: Namespace, out: Console) -> list[str]:
    """The words of a run that judges the model as it is. ConfigError or ModelError where something is missing."""
    given = list(chosen.settings)
    named = {word.partition("=")[0].lstrip("+") for word in given}
    if refused := sorted(named & {"experiment", "model.checkpoint", "train.epochs", "attack"}):
        raise ConfigError(
            f"{refused[0]} is set by this command: it takes a model as it is. Leave it out, or describe the run yourself, as "
            f"bdx experiment=given model.checkpoint=FILE dataset.root=DIR."
        )
    found = ["experiment=given", f"model.checkpoint={quoted(chosen.model)}"]
    if chosen.data is not None:
        found.append(f"dataset.root={quoted(chosen.data)}")
    sizes, usual = sizes_of([*found, *without_methods(given)], chosen.config_dirs)
    side = None
    if "dataset.size" in named:
        tell_scaled(common_side(sizes), given, out)
    elif sizes:
        side = common_side(sizes) or scaled_side(sizes, usual, chosen.model, out)
        found.append(f"dataset.size={side}")
    if "model" not in named:
        found += network_of(chosen.model, side, out)
    return [*found, *normalised(chosen.model, [*given, *found], out)]


def normalised(model: str, words: Sequence[str], out: Console) -> list[str]:
    """The words of how images are normalised, where the settings of its training in the weights' file say it, or a file beside
    the weights, and neither other words nor weights of its own do."""
    from backdoorbench.models import beside, by_names, reading

    named = {word.partition("=")[0].lstrip("+") for word in words}
    if not NORMALISE.isdisjoint(named):
        return []
    found = reading.read(model)
    said = next((each for each in (beside.inside(found.tree), beside.read(found.file)) if each.words), beside.Beside())
    if not said.words or any(by_names.normalisation(state.weights, beside.COLOURS) for state in found.states[:1]):
        return []
    say(out, "images", f"normalised as {said.source}: {' '.join(said.words)}; other words change it")
    return said.words


def tell_classes(subject: "Subject", out: Console) -> None:
    """Says where a file beside the weights contradicts the classes of the images."""
    from backdoorbench.models import beside

    if said := beside.unlike(beside.read(Path(subject.chosen.model)).classes, subject.classes):
        remedy = "Give images of its classes, or their names in its order: dataset.class_names=FILE"
        say(out, "classes", f"config.json beside the weights {said}. {remedy}")


def tell_scaled(side: int | None, settings: Sequence[str], out: Console) -> None:
    """Says that images are scaled, where the settings ask for another size than the files have: few networks bear that."""
    asked = {word.partition("=")[2] for word in settings if word.startswith("dataset.size=")}
    if side and asked and asked != {str(side)}:
        said = f"the files have {side} px, and dataset.size={asked.pop()} scales them; a network trained at {side} px loses by it"
        say(out, "images", said)


def network_of(model: str, side: int | None, out: Console) -> list[str]:
    """The words of the network whose weights a file holds; ModelError where none here fits them.

    side  pixels of the images, where somebody knows"""
    from backdoorbench.models import beside, matching, reading, unmerged
    from backdoorbench.models.identify import identify

    found = reading.read(model)
    fitting = identify(found, side, beside.read(found.file).names)
    if not fitting and (not found.states or unmerged.told(found) is not None):
        raise matching.misfit({}, found, "any network")
    if not fitting:
        raise ModelError(
            f"'{model}' holds the weights of no network here: {unlike(found)}. Name it: model=wrn_16_1, "
            f"model=timm model.timm_name=NAME, or your own code, model=module model.target=package.module:factory "
            f"plugins=[package]; docs/your-model.md says how."
        )
    first, *others = fitting
    say(out, "network", f"{' '.join(first.words)}, for {first.classes} classes: {first.how}")
    if others:
        say(out, "", f"it fits as well: {'; '.join(' '.join(other.words) for other in others[:3])}")
    return first.words


def unlike(found: "Found") -> str:
    """What of a file that fits no network was compared."""
    if found.is_ordered:
        return "neither names nor shapes fit"
    return (
        "its names fit none, and a safetensors file does not keep the order of weights, by which they are told under other "
        "names; torch.save(model.state_dict(), FILE) keeps it"
    )


Sizes = Sequence[tuple[int, int]]  # width and height of pictures


def sizes_of(found: Sequence[str], folders: Sequence[str]) -> tuple[Sizes, int]:
    """How large some raw pictures of a run's data set are, where they may be of any size, and how large it would make them."""
    from backdoorbench.cli.arguments import composed
    from backdoorbench.config.build import build

    resolved = composed(found, folders)
    dataset = build(resolved["dataset"], "dataset", resolved["plugins"])
    return dataset.sizes(PROBED), resolved["dataset"]["size"]


def common_side(sizes: Sizes) -> int | None:
    """The side that pictures have in common, where they are squares of a size that networks read; None where there is none."""
    width, height = sizes[0] if len(set(sizes)) == 1 else (0, 1)
    return width if width == height <= LARGEST else None


def scaled_side(sizes: Sizes, usual: int, model: str, out: Console) -> int:
    """The side that pictures of several sizes, large ones or such as are no squares are scaled to, which is said: as photographs
    usually are, where most of them are large or the network's first filters are. usual: that of the data set else"""
    from backdoorbench.models import reading
    from backdoorbench.models.base import LARGE
    from backdoorbench.models.identify import likely_side

    middle = sorted(min(size) for size in sizes)[len(sizes) // 2]
    states = [] if middle >= LARGE else reading.read(model).states
    side = PHOTO if middle >= LARGE or (states and likely_side(states[0]) == LARGE) else usual
    listed = few([f"{width}x{height}" for width, height in dict.fromkeys(sizes)])
    say(
        out,
        "images",
        f"of {listed} pixels: scaled to {side} px a side, their aspect given up. Say dataset.size=N where the network was "
        f"trained at another size: judged at a wrong one it loses accuracy",
    )
    return side


def has_data(chosen: Namespace) -> bool:
    """Whether the words name images."""
    return chosen.data is not None or any(word.startswith(("dataset=", "dataset.root=")) for word in chosen.settings)


@dataclass(frozen=True)
class Subject:
    """A model of somebody else with the images that it is judged by: what all runs on it have in common.

    words    of every run, the user's own settings aside
    own      the user's settings that are not of a method
    classes  names, in the order of the network's outputs"""

    chosen: Namespace
    words: list[str]
    own: list[str]
    classes: tuple[str, ...]

    def planned(self, runs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list["Plain"]:
        """Configurations, each of the words of its methods and of the user's settings that bear on it, checked altogether before
        the first of them is carried out; BdxError for whatever is wrong with one."""
        from backdoorbench.cli.arguments import composed
        from backdoorbench.pipeline import plan

        folders, shared = self.chosen.config_dirs, plan.Shared()
        found = [composed([*self.words, *methods, *settings], folders) for methods, settings in runs]
        used = set()
        for resolved in found:
            sketch = plan.sketch(resolved, shared)
            plan.divide(sketch)
            used.update(sketch.plugins)
        plan.refuse_unused_plugins(found[0]["plugins"], used, len(found))
        return found


def begin(chosen: Namespace, found: Sequence[str]) -> Subject:
    """The model with its images, which are read here. found: what `words` says of it."""
    from backdoorbench.cli.arguments import composed
    from backdoorbench.config.build import build
    from backdoorbench.storage.outputs import Outputs

    own = without_methods(chosen.settings)
    resolved = composed([*found, *own], chosen.config_dirs)
    dataset = build(resolved["dataset"], "dataset", resolved["plugins"])
    train = dataset.load(Outputs(Path(resolved["runtime"]["outputs"]).expanduser()).cache).train
    few = [f"holdout.rate={IMAGES / len(train):.6g}"] if len(train) > IMAGES else []
    is_said = any(word.startswith("holdout") for word in own)
    return Subject(chosen, [*found, *([] if is_said else few)], own, train.classes)


def without_methods(settings: Sequence[str], *but: str) -> list[str]:
    """The settings that are not of a method, nor of what stands beside one; but: of these methods' groups they stay."""
    groups = {stage.group for stage in STAGES} - {*but}
    aside = groups | {setting.name for setting in SETTINGS if setting.part_of in groups}
    return [word for word in settings if word.lstrip("+~").partition("=")[0].partition(".")[0] not in aside]


@contextmanager
def showing(chosen: Namespace, out: Console) -> Iterator[None]:
    """What runs inside log, and how far they are, on the console. Several runs read the same files: what they say of them stands
    there once."""
    from backdoorbench import screen

    style = next((word.partition("=")[2] for word in chosen.settings if word.startswith("runtime.progress=")), "auto")
    said: set[str] = set()

    def is_new(entry: logging.LogRecord) -> bool:
        text = entry.getMessage()
        known = text in said
        said.add(text)
        return not known or entry.name.endswith(".progress")

    with screen.showing(out, style) as handler:
        handler.addFilter(is_new)
        yield


def run(resolved: "Plain") -> "Job":
    """Carries out a run that was planned, or finds it done. What it has to say, its caller says."""
    from backdoorbench.pipeline import job

    return job.carry_out(resolved, alone=False)


NO_METHODS = [f"{stage.group}=none" for stage in STAGES]  # the words of a run that only judges

Asked = tuple[Sequence[str], Sequence[str]]  # the words of a run's methods, and the user's settings that bear on it


def judge(subject: Subject, alone: Asked, then: Sequence[Asked], out: Console) -> tuple["Job", list["Plain"]]:
    """The model judged as it is, and the runs that are to follow, as they were planned. A stem that nobody chose is the one with
    which its weights know the images better.

    ConfigError, unless the words force it on, where it is shown other classes or other images than it was trained on, or knows
    none: whatever is said of it then, or done to it, is about something else."""
    resolved, *planned = subject.planned([alone, *then])
    done = run(resolved)
    finding, name = done.run.infection, Path(resolved["model"]["checkpoint"]).name
    stem = finding.notes.get("stem")
    if stem and not any(word.startswith("model.stem=") for word in [*subject.words, *subject.chosen.settings]):
        say(out, "stem", f"the weights fit two stems, and know these images better with {stem}, which is taken")
        return judge(replace(subject, words=[*subject.words, stem]), alone, then, out)
    for note, what in (("reads", "images"), ("finer", "note")):
        if said := finding.notes.get(note):
            say(out, what, said)
    if resolved["force"]:  # a run that was done before may not have had it
        return done, planned
    for what in HINTS:
        if hint := finding.notes.get(what):
            raise ConfigError(f"{name}: {hint}, or force=true to go on as it is.")
    if finding.status == "broken":
        raise ConfigError(
            f"{name} cannot be judged on these images: {'; '.join(finding.reasons)}, and no usual way of reading them "
            f"(normalisation, range, colours, size, stem, order of the classes) mends that. Nothing that is said of it, or done "
            f"to it, would mean anything. Give images that it was trained on, at their size (dataset.size), check the network "
            f"(model=...) and its normalisation (model.mean, model.std; docs/your-model.md), or add force=true to go on as it is."
        )
    return done, planned


def detectors_of(text: str | None) -> list[str]:
    """The detectors that judge a model, or those of a list; ConfigError for one that does not. What needs less, and what draws no
    random number, comes first: it is the quicker."""
    from backdoorbench.config import catalog
    from backdoorbench.config.build import target
    from backdoorbench.config.compose import option

    kinds: dict[str, Any] = {
        name: target(option("detector", name), "detector") for name in catalog.names("detector") if name != "none"
    }
    fit = [name for name, kind in kinds.items() if getattr(kind, "judges", "") == "model"]
    quickest = sorted(fit, key=lambda name: (len(kinds[name].needs), kinds[name].draws))
    wanted = words_of("--detectors", text) or quickest
    for name in wanted:
        if name not in fit:
            raise ConfigError(
                f"--detectors names '{name}'; expected some of {join_words(fit)}, which judge a model. Change --detectors."
            )
    return wanted


def cost_of(detector: str, folders: Sequence[str]) -> str:
    """What a detector's documentation says that it costs, in one line."""
    from backdoorbench.config import catalog

    said = catalog.describe("detector", detector, folders).method.get("Cost", "")
    return " ".join(said.split()) or "not documented"


def known_runs(config: dict[str, Any]) -> list["Run"]:
    """The finished runs of the outputs folder that a configuration names."""
    from backdoorbench.storage import record

    return [
        each
        for each in record.collect([Path(config["runtime"]["outputs"]).expanduser()]).values()
        if each.status == "done"
    ]


def print_weights_alone(chosen: Namespace, out: Console) -> None:
    """What a file of weights says by itself, without an image: what it holds, which network it is, and what those detectors find
    in it that need nothing else. ModelError where it holds no weights, or not those of the network that the words name."""
    from backdoorbench.cli.arguments import composed
    from backdoorbench.models import beside, matching, reading, unmerged
    from backdoorbench.models.base import LARGE
    from backdoorbench.models.identify import SMALL, identify
    from backdoorbench.pipeline import cleaned
    from backdoorbench.reporting import inspection

    found = reading.read(chosen.model)
    if not found.states:
        raise matching.misfit({}, found, "any network")
    say(out, "file", ", ".join([found.format, *(f"{name} {value}" for name, value in found.beside.items())][:8]))
    for state in found.states[:1]:
        count = sum(value.numel() for value in state.weights.values())
        under = f", under {state.name}" if state.name else ""
        say(out, "weights", f"{count:,} numbers in {len(state.weights)} tensors{under}")
    given = list(chosen.settings)
    resolved = composed(given, chosen.config_dirs)
    size = resolved["dataset"]["size"] if any(word.startswith("dataset.size=") for word in given) else None
    if any(word.startswith("model=") for word in given):
        with showing(chosen, out):
            model = cleaned.fitted(found, resolved, size)
        say(out, "network", f"{resolved['model']['name']}, as it was named: the weights are its")
    elif fitting := identify(found, size, names := beside.read(found.file).names):
        first = fitting[0]
        say(out, "network", f"{' '.join(first.words)}, for {first.classes} classes: {first.how}")
        if (
            size is None
            and first.size == LARGE
            and (small := identify(found, SMALL, names))
            and small[0].words != first.words
        ):
            say(out, "", f"so for images of {LARGE} px and more; for smaller ones it is {' '.join(small[0].words)}")
        read = normalised(chosen.model, [*given, *first.words], out)
        resolved = composed([*first.words, *read, *given], chosen.config_dirs)
        with showing(chosen, out):
            model = cleaned.fitted(found, resolved, first.size)
    else:
        if unmerged.told(found) is not None:
            raise matching.misfit({}, found, "any network")
        say(out, "network", "none here that they fit; name it by model=..., as docs/your-model.md says, for more")
        return
    for name, verdict in cleaned.without_images(model, resolved).items():
        if isinstance(verdict, ModelError):
            say(out, name, f"cannot be asked: {verdict}")
            continue
        flagged = verdict.flagged.nonzero()[:, 0].tolist()
        say(out, name, inspection.told(flagged, verdict.figures.get("anomaly_index")))
    say(
        out,
        "",
        "Weights alone tell little: a sign of a backdoor at best, and no proof that there is none. Add --data DIR.",
    )


def say(out: Console, what: str, text: str, *, is_path: bool = False) -> None:
    """A paragraph, what it is about in front; a path is never broken."""
    head = f"  {what:<10}  "
    if is_path:
        out.print(Text(f"{head}{text}"), soft_wrap=True)
        return
    lines = Text(text).wrap(out, max(20, out.width - len(head)))
    for number, line in enumerate(lines):
        line.rstrip()
        out.print(Text(head if number == 0 else " " * len(head)) + line, soft_wrap=True)
