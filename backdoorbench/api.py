"""The public functions: what the command line does, a step at a time. A thin skin over the pipeline."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from backdoorbench import progress as progressing
from backdoorbench import screen
from backdoorbench.attacks.base import Attack, Infection, Task, carry_out
from backdoorbench.config import acts, catalog, plugins
from backdoorbench.config import build as building
from backdoorbench.config.compose import Plain, as_read
from backdoorbench.config.groups import BUILT
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Defense, Scenario
from backdoorbench.device import choose
from backdoorbench.errors import ConfigError, DataError, join_words, shown
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import evaluation, job, own, share
from backdoorbench.pipeline.own import Network
from backdoorbench.reporting import choosing, frame
from backdoorbench.reporting.content import tell_apart_by_content
from backdoorbench.shapes import Images
from backdoorbench.storage import record
from backdoorbench.storage.record import Run
from backdoorbench.streams import Stream, seeded
from backdoorbench.sweeps.compose import refuse_sweep
from backdoorbench.sweeps.hydra_errors import composed as compose
from backdoorbench.sweeps.hydra_errors import refuse_no_words
from backdoorbench.training.recipe import Precision, Recipe, resolve_precision
from backdoorbench.triggers.base import Target, Trigger

READ = ("model", "train", "dataset", "experiment", "scale", "plugins", "hydra")  # by infect and purify, of settings
READ_OF_DATASET = ("name", "size", "crop", "mean", "std", "augment")
ELSEWHERE = {  # where to say the others
    "seed": "Give it as an argument, seed=NUMBER",
    "attack": "Give it to bb.build('attack/NAME', KEY=VALUE)",
    "defense": "Give it to bb.build('defense/NAME', KEY=VALUE)",
    "dataset": "Give it to bb.load_dataset",
    "holdout": "Give it to bb.withhold",
    "runtime": "Images say where the work is done: bb.load_dataset(NAME, device='cuda')",
}

__all__ = [
    "build",
    "compose",
    "evaluate",
    "image_set",
    "infect",
    "load_dataset",
    "load_model",
    "plugin",
    "purify",
    "results",
    "run",
    "withhold",
]


def plugin(folder: str | Path) -> None:
    """What `--plugin DIR` does: the options in this folder are known from now on, and its code is trusted."""
    plugins.use([str(folder)])
    catalog.refuse_hidden()


def run(*overrides: str) -> Run:
    """What `bdx <overrides>` does: the finished run, found or carried out and recorded.

    Raises BdxError for a mistake in the settings, and for an experiment that sweeps: that is many runs."""
    resolved = compose(overrides)
    refuse_sweep(overrides)
    return job.carry_out(resolved).run


def build(option: str, *settings: str, **changes: Any) -> Any:
    """The object an option describes, with some settings changed: `build("defense/fst", lr=0.02)`. Its other settings are those
    that it has on the digits, or where `settings` say: `build("defense/fst", "dataset=cifar10")`."""
    own.expect(option, str, "option", "the name of one, such as 'defense/fst'")
    group, mark, name = option.partition("/")
    if not mark or group not in BUILT:
        raise ConfigError(
            f"option is {shown(option)}; expected GROUP/NAME, such as 'defense/fst', of the groups {join_words(list(BUILT))}. "
            f"Change it."
        )
    resolved = compose([f"{group}={name}", *settings])
    resolved[group] |= changes
    made = building.build(resolved[group], group, resolved["plugins"])
    catalog.refuse_borrowed_name(group, resolved[group])
    catalog.refuse_other_version(group, resolved[group])
    acts.refuse_idle(group, acts.idle(type(made), resolved[group], group), resolved)
    return made


def load_dataset(name: str, device: str = "cpu", **changes: Any) -> tuple[ImageSet, ImageSet]:
    """Training and test split of a data set: `load_dataset("cifar10", root="/data/cifar10", train_size=5000)`."""
    where = choose(str(device), "device")
    resolved = compose([f"dataset={name}"])
    dataset = building.build({**resolved["dataset"], **changes}, "dataset", resolved["plugins"])
    splits = dataset.load(Path(resolved["runtime"]["outputs"]).expanduser() / "cache")
    train, test = (dataclasses.replace(split, dataset=dataset.name).to(where) for split in (splits.train, splits.test))
    return train, test


def withhold(
    clean: ImageSet, rate: float | None = None, seed: int = 0, *, per_class: int | None = None
) -> tuple[ImageSet, ImageSet]:
    """`clean` without some of its images, and these: the victim's images, and the defender's. They are a stratified share of
    `rate`, or `per_class` images of each class."""
    if (rate is None) == (per_class is None):
        raise ConfigError(
            f"rate is {rate} and per_class is {per_class}; expected one of them: a share of the images, or so many of each class."
        )
    share = building.convert(rate, float | None, "rate") or 0.0
    count = building.convert(per_class, int | None, "per_class")
    holdout = dataclasses.replace(build("holdout/standard"), rate=share, per_class=count)
    images = own.expect_images(clean, "clean")
    parts = holdout.divide(images, images, _stream(seed).child("holdout"))
    if parts.holdout is None:
        raise ConfigError("rate is 0, which withholds nothing; expected more. Give a rate above 0, or a per_class.")
    return parts.train, parts.holdout


def image_set(images: Any, labels: Any, classes: Sequence[str] | int | None = None) -> ImageSet:
    """Tensors or arrays of one's own as an image set: `image_set(images, labels, ["cat", "dog"])`.

    images   (N, 3, S, S), or one channel: uint8, or floating in [0, 1], not normalised
    labels   (N,) whole numbers from 0
    classes  their names, or how many there are; as many as the labels need, by default

    Raises DataError for anything else."""
    return own.image_set(images, labels, classes)


def infect(
    attack: Attack,
    train: ImageSet,
    *settings: str,
    seed: int = 0,
    model: Network | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> Infection:
    """Trains a model on `train`, attacked. `settings` say on what and how: `"dataset=digits"` (its normalisation, network and
    recipe come along), `"model=resnet18"`, `"train.epochs=5"`. Words on anything else are refused: nothing would read them.

    model     a network of one's own in place of the settings': a module, whose weights are the first ones, or a function that
              makes a fresh one. It reads pixels in [0, 1]; its normalisation is its own business
    cache     a folder that keeps the infection, and gives it back where everything is the same; what the network's code does is
              not part of that, only its layers and first weights are
    progress  whether to draw bars

    Raises ConfigError where the images are not of the data set that the settings name, digits where they name none."""
    own.expect(attack, Attack, "attack", "what bb.build('attack/NAME') makes")
    own.expect_images(train, "train")
    _refuse_unread(settings, model)
    fresh, recipe = _victim(train, settings, model)
    attack.check(train)
    attack.check_recipe(recipe, len(train))
    task, stream = Task(train, fresh, recipe, None), _stream(seed).child("infect")

    def surrogate() -> nn.Module:
        clean: Infection = build("attack/none").infect(task, stream)
        return clean.model

    def make() -> Infection:
        return carry_out(attack, dataclasses.replace(task, surrogate=surrogate), stream)

    with _drawn(progress):
        return make() if cache is None else own.kept(Path(cache), attack, train, fresh, recipe, stream, make)


def purify(
    defense: Defense,
    infection: Infection | nn.Module,
    holdout: ImageSet | None,
    *settings: str,
    seed: int = 0,
    model: Network | None = None,
    progress: bool = False,
) -> nn.Module:
    """The model that `defense` makes of an infection, or of any module: [0, 1] pixels in, logits out. `settings` as the infection
    had them.

    holdout   clean images, disjoint from what the model is judged by; None where the defense needs none
    model     what makes a fresh network of the infected one's kind, for a defense that trains one; by default the settings', or
              the infected model with every layer's weights drawn anew
    progress  whether to draw bars"""
    own.expect(defense, Defense, "defense", "what bb.build('defense/NAME') makes")
    _refuse_unread(settings, model)
    if not isinstance(infection, Infection):
        infection = Infection(infection, None, None, None, None)
    place = holdout if holdout is not None else infection.train
    if place is None:
        raise DataError(
            "there is neither a holdout nor a training set; expected one: a defense has nothing to work with. Give some."
        )
    own.expect_images(place, "holdout" if holdout is not None else "the infection's training set")
    own.refuse_others(place, infection.train, "holdout")
    own.refuse_unmet(defense, holdout, infection.train)
    infected = own.wrapped(own.thawed(infection.model), place, trains=True)
    fresh, recipe = _victim(place, settings, model if model is not None else infected)
    defense.check_recipe(recipe)
    if model is None:
        fresh = _fresh_like(infected, place, settings)
    scenario = Scenario(
        defense.needs,
        model=copy.deepcopy(infected).eval(),
        holdout=holdout,
        train=infection.train,
        build=fresh,
        recipe=recipe,
        stream=_stream(seed).child("purify"),
        device=place.device,
        probe=lambda model, epoch: None,
        note=lambda name, value: None,
    )
    with _drawn(progress):
        return defense.purify(scenario).eval()


def _fresh_like(infected: nn.Module, images: ImageSet, settings: tuple[str, ...]) -> Callable[[Stream], nn.Module]:
    """What builds a network of the infected model's kind: of the settings' where it is one, else that model drawn anew."""

    def build_network(stream: Stream) -> nn.Module:
        named = (
            _victim(images, settings, None)[0](stream) if images.size == compose(settings)["dataset"]["size"] else None
        )
        return named if named is not None and own.is_kind(named, infected) else own.renewed(infected)(stream)

    return build_network


def _victim(
    images: ImageSet, settings: tuple[str, ...], model: Network | None = None
) -> tuple[Callable[[Stream], nn.Module], Recipe]:
    """What builds the network that the settings name, or one's own, for these images, and the recipe that trains it."""
    resolved = compose(settings)
    resolved["train"]["precision"] = resolve_precision(resolved["train"]["precision"], images.device)
    recipe, dataset = building.build(resolved["train"], "train", resolved["plugins"]), resolved["dataset"]
    _check_name(images, dataset)
    if model is not None:
        return own.maker(model, images), recipe
    _check_size(images, dataset)
    if resolved["model"]["checkpoint"] is not None:
        raise ConfigError(
            f"model.checkpoint is {shown(resolved['model']['checkpoint'])}, which only a run loads; expected null, or the "
            f"network itself with its weights: model=NETWORK."
        )
    spec = building.build(resolved["model"], "model", resolved["plugins"])
    size = dataset["crop"] or images.size

    def fresh(stream: Stream) -> nn.Module:
        with seeded(stream):
            net: nn.Module = spec.classifier(len(images.classes), size, dataset["mean"], dataset["std"])
        return net.to(images.device)

    return fresh, recipe


def _refuse_unread(settings: Sequence[str], model: Network | None) -> None:
    """Raises ConfigError for a word that says nothing of the network, of its recipe and of how images are normalised: it would be
    composed, and nobody would read it.

    model  a network of one's own, which leaves nothing to say of another one"""
    refuse_no_words(settings)
    for word in settings:
        override = as_read(word)
        if override is None:  # which composing tells
            continue
        group, _, name = override.key_or_group.partition(".")
        if group == "model" and model is not None:
            raise ConfigError(
                f"{shown(word)} says something of a network, and model= hands over another. Leave one of them out."
            )
        if group not in READ or (group == "dataset" and name and name.partition(".")[0] not in READ_OF_DATASET):
            hint = ELSEWHERE.get(group, "Leave it out")
            raise ConfigError(
                f"{shown(word)} would not be read: here settings say what the network, its recipe and its normalisation are. "
                f"{hint}."
            )


def _stream(seed: int) -> Stream:
    return Stream(building.convert(seed, int, "seed"))


@contextmanager
def _drawn(wanted: bool) -> Iterator[None]:
    """Progress as bars inside, where they are wanted."""
    before = progressing.install(screen.BarReporter(screen.make_console())) if wanted else None
    try:
        yield
    finally:
        if before is not None:
            progressing.install(before)


def _check_name(images: ImageSet, dataset: Plain) -> None:
    """Raises ConfigError where images are of another data set than the settings say: its normalisation would be the wrong one."""
    if images.dataset and images.dataset != dataset["name"]:
        raise ConfigError(
            f"the images are of {images.dataset}, and the settings say dataset={dataset['name']}, whose normalisation and recipe "
            f'they would get. Add "dataset={images.dataset}" to the settings, as load_dataset was given it.'
        )


def _check_size(images: ImageSet, dataset: Plain) -> None:
    """Raises ConfigError where they have another size than the settings say."""
    if images.size != dataset["size"]:
        raise ConfigError(
            f"the images have {images.size} pixels a side, and the settings say {dataset['size']}, those of "
            f'dataset={dataset["name"]}. Name their data set, or add "dataset.size={images.size}" to the settings.'
        )


def evaluate(
    model: nn.Module,
    test: ImageSet,
    trigger: Trigger | None,
    target: Target | None,
    precision: Precision = "float32",
    shown: Sequence[Images] | None = None,
) -> Scores:
    """CA, ASR and RA of `model` on the whole of `test`.

    shown  what `triggered` makes of the test images, where the caller has it already"""
    own.expect_images(test, "test")
    judged, kind = own.wrapped(model, test, trains=False), building.convert(precision, Precision, "precision")
    own.refuse_trigger(trigger, target, test)
    return evaluation.evaluate(judged, test, trigger, target, resolve_precision(kind, test.device), shown)


def load_model(folder: str | Path, plugins: Sequence[str] = (), *, infected: bool = False) -> nn.Module:
    """The purified model of a run's folder, in eval mode: [0, 1] pixels in, logits out. A file of weights, or the folder that
    `bdx export model` wrote, is read likewise.

    plugins   packages beside this one, and the plugins that are known, whose code may build the network, as the run named them
    infected  the run's infected model instead, out of the cache"""
    return share.load(*share.weights_of(Path(folder), infected), plugins)


def results(*folders: str | Path, where: str = "") -> Any:
    """A pandas DataFrame of the runs below `folders`, one row each: settings that name it, figures as fractions; a run repeated
    or resumed is one row, its latest finished record. The same as `bdx report --format runs-csv`.

    where  `"dataset=digits,defense=ft,fst"`: only runs with these settings

    Needs the extra `frames` (pandas)."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise ConfigError("results needs pandas, which is not installed. Add it: pip install 'bdx[frames]'.") from None
    found = record.collect(map(Path, folders or ("outputs",)))
    told = tell_apart_by_content(found)
    kept, _ = choosing.choose(
        [(folder, run.config) for folder, run in told.items()], choosing.parsed([where] if where else [])
    )
    return pandas.DataFrame(frame.rows(tell_apart_by_content({folder: found[folder] for folder in kept})))
