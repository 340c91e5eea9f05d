"""The training loop, fast and in one place: data on the device, one gather a batch, nothing read back inside an epoch."""

import copy
import logging
import math
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench import progress
from backdoorbench.data.images import Change, ImageSet, spans
from backdoorbench.device import Crowding
from backdoorbench.errors import TrainingError, first_line
from backdoorbench.models.base import Classifier
from backdoorbench.models.layouts import layout_of
from backdoorbench.shapes import Images, Labels
from backdoorbench.storage import store
from backdoorbench.streams import Stream
from backdoorbench.training.optimizers import SGD, Adam, AdamW
from backdoorbench.training.recipe import Precision, Recipe

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Images, Labels], Tensor]  # (model, (N, 3, H, W), (N,)) -> scalar

SHOWN, CHUNK = 5000, 100  # training images, at most, that a network starts from, and how many of them at a time


@dataclass(frozen=True)
class Epoch:
    """What one pass cost and gave: mean loss over its images, wall seconds, images a second."""

    loss: float
    seconds: float
    images_per_second: float


@dataclass
class Pace:
    """Images that all trainings of this process went over, and the seconds that took: a meter to be read before and after.

    earlier  seconds of the epochs that snapshots held, which another process went through"""

    images: int = 0
    seconds: float = 0.0
    earlier: float = 0.0


PACE = Pace()


@dataclass(frozen=True)
class Snapshots:
    """Where a long training leaves its state, and how often, so that a killed one goes on from its last epoch.

    The file outlives the training: whoever keeps its result removes it, or a kill in between would cost everything."""

    file: Path
    every_seconds: float

    def part(self, name: str) -> "Snapshots":
        """Those of the part called `name`, where a training has several: a file of its own beside this one."""
        return replace(self, file=self.file.with_suffix(f".{name}.pt"))


class Stateful(Protocol):
    """Whatever a snapshot can hold: tensors and plain values out, and in again."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


def fit(
    model: nn.Module,
    train: ImageSet,
    recipe: Recipe,
    stream: Stream,
    *,
    loss: Loss | None = None,
    change: Change | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    freeze_norms: bool = False,
    drop_last: bool = False,
    clip_norm: float | None = None,
    after_step: Callable[[], None] | None = None,
    after_epoch: Callable[[int], None] | None = None,
    until: Callable[[], bool] | None = None,
    snapshots: Snapshots | None = None,
    beside: Stateful | None = None,
) -> list[Epoch]:
    """Trains `model` in place on `train` and returns its history; the model is left in eval mode. A network that starts from
    training images, and has seen none, is shown some of `train` first.

    stream        order and augmentation; each epoch draws from a child of its own, so a resumed training sees the same
    loss          instead of cross-entropy: (model, images, labels) -> scalar, called under autocast
    change        of each batch before its augmentation, labels included: an attacker who drives the training
    parameters    what the optimiser moves; default: all that require a gradient
    optimizer     to go on with, its momentum kept, where a training has parts; default: the recipe's, over `parameters`
    freeze_norms  batch norms stay in eval mode: statistics fixed, as stored
    drop_last     an epoch leaves out its last batch where that is incomplete and not its only one
    clip_norm     the largest norm of a step's gradient over all that is moved; a larger one is scaled down to it
    after_step    called after every optimiser step (projections); after_epoch: with the epoch's number, model in eval
    until         asked after every epoch: whether that was the last one, though the recipe has more
    snapshots     resume from, and save to, this file
    beside        what else trains along, by `loss` and `after_step`, so that snapshots hold it too

    Raises TrainingError when the loss leaves the finite numbers, and where a batch norm cannot read the only image."""
    device = train.device
    model.to(device)
    layout = layout_of(model, device)
    model.to(memory_format=layout)
    _start(model, train)
    if recipe.milestones and not recipe.reaches_milestone():
        log.warning(
            f"{recipe.name}: the rate never falls, since none of the milestones {list(recipe.milestones)} is an epoch from 1 to "
            f"{recipe.epochs - 1}"
        )
    objective = loss or cross_entropy(recipe.label_smoothing)
    moved = [p for p in (model.parameters() if parameters is None else parameters) if p.requires_grad]
    optimizer = optimizer or make_optimizer(recipe.groups(model, moved), recipe, device)
    companion = recipe.companion(model)
    history: list[Epoch] = []
    parts: dict[str, Stateful] = {"model": model, "optimizer": optimizer}
    if beside is not None:
        parts["beside"] = beside
    if companion is not None:
        parts["companion"] = companion
    if snapshots is not None:
        history = _resume(snapshots.file, parts)
    if recipe.compile:
        model.compile()
    steps = len(spans(len(train), recipe.batch_size))
    if drop_last:
        steps = max(1, len(train) // recipe.batch_size)
    saved, crowding = time.monotonic(), Crowding(device)

    known = len(history) * steps
    with progress.task(recipe.name, recipe.epochs, "epoch", steps, known) as work, _own_random_numbers(device):
        for epoch in range(len(history), recipe.epochs):
            start = time.monotonic()
            draws = stream.child(f"epoch{epoch}")
            torch.manual_seed(draws.child("layers").generator().initial_seed())  # dropout and its like
            _train_mode(model, freeze_norms)
            if companion is not None:
                companion.before_epoch()
            total = torch.zeros((), device=device)
            count = 0
            mirrored = recipe.mirrored(len(train), epoch, stream)
            batches = train.batches(recipe.batch_size, draws, recipe.augment, change, mirrored)
            with _still(recipe.resting(model, epoch)), _of_one(recipe.name, len(train)):
                for step, (images, labels) in enumerate(islice(batches, steps)):
                    done = epoch * steps + step
                    set_rate(optimizer, recipe.rate(done, steps))
                    optimizer.zero_grad(set_to_none=True)  # before the pass, which else holds them beside its maps
                    with autocast(recipe.precision, device):
                        value = objective(model, images.contiguous(memory_format=layout), labels)
                    optimizer.zero_grad(set_to_none=True)  # of what the loss itself left
                    value.backward()  # type: ignore[no-untyped-call]
                    if clip_norm is not None:
                        nn.utils.clip_grad_norm_(moved, clip_norm)
                    optimizer.step()
                    if companion is not None:
                        companion.after_step(epoch, done + 1, recipe.epochs * steps)
                    if after_step is not None:
                        after_step()
                    total += value.detach() * len(labels)
                    count += len(labels)
                    crowding.look()
                    if step + 1 < steps:
                        work.advance()
            if companion is not None:
                companion.after_epoch()
            mean = float(total) / count  # the epoch's only synchronisation
            seconds = time.monotonic() - start
            if not math.isfinite(mean):
                raise TrainingError(
                    f"the loss of '{recipe.name}' became {mean} in epoch {epoch + 1} of {recipe.epochs} (lr {recipe.lr:g}, "
                    f"{recipe.precision}); expected a finite number. Lower the lr of this stage, or set "
                    f"train.precision=float32."
                )
            history.append(Epoch(mean, seconds, count / seconds))
            PACE.images, PACE.seconds = PACE.images + count, PACE.seconds + seconds
            model.eval()
            if after_epoch is not None:
                after_epoch(epoch)
            if snapshots is not None and (
                time.monotonic() - saved > snapshots.every_seconds
                or (epoch + 1 == recipe.epochs and snapshots.file.is_file())
            ):
                _save(snapshots.file, parts, history)
                saved = time.monotonic()
            work.advance(loss=mean, images_per_second=count / seconds)
            if until is not None and until():
                break
    model._compiled_call_impl = None  # back to a plain module: hooks fire, copies work
    for held in (optimizer, model):
        held.zero_grad(set_to_none=True)  # as much memory as the weights, for as long as the model lives
    model.eval()
    return history


def cross_entropy(label_smoothing: float) -> Loss:
    """The usual loss, its logits in float32 whatever the autocast."""

    def objective(model: nn.Module, images: Images, labels: Labels) -> Tensor:
        return F.cross_entropy(model(images).float(), labels, label_smoothing=label_smoothing)

    return objective


def ascent() -> Loss:
    """Cross-entropy to be raised: what is unlearnt."""
    entropy = cross_entropy(0.0)
    return lambda model, images, labels: -entropy(model, images, labels)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 autocast where `precision` asks for it, else nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def make_optimizer(
    parameters: list[nn.Parameter] | list[dict[str, Any]], recipe: Recipe, device: torch.device
) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameters`, or groups of them, fused into one kernel where the device has it."""
    fused = device.type in ("cpu", "cuda")
    if recipe.optimizer == "sgd":
        return SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    kind = Adam if recipe.optimizer == "adam" else AdamW
    return kind(parameters, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step, in every parameter group; a group's `lr_factor` multiplies it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)


def _start(model: nn.Module, train: ImageSet) -> None:
    """Shows training images, spread over the whole set, to a network that awaits them."""
    for part in model.modules():
        if isinstance(part, Classifier) and part.awaits_images:
            count = min(len(train), SHOWN)
            rows = torch.arange(count) * len(train) // count
            part.start(images for images, _ in train.subset(rows).batches(CHUNK))


@contextmanager
def _still(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Parameters that train get no gradient while it lasts, so that backward passes end where nothing else needs them."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _of_one(name: str, count: int) -> Iterator[None]:
    """Says it as a mistake of the user's where a stage is left a single image of the `count` that a batch norm needs two of."""
    try:
        yield
    except ValueError as error:
        if count > 1 or "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"'{name}' has a single image to train on, of which a batch norm of this network reads one value a channel; expected "
            f"at least 2 images. Raise the share of the images that this stage is given, or pick another network."
        ) from error


def _train_mode(model: nn.Module, freeze_norms: bool) -> None:
    model.train()
    if freeze_norms:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _own_random_numbers(device: torch.device) -> AbstractContextManager[Any]:
    """Layers that draw from torch's global generator neither see nor disturb the caller's state."""
    devices = [device] if device.type == "cuda" else []
    return torch.random.fork_rng(devices=devices)


def _save(file: Path, parts: Mapping[str, Stateful], history: list[Epoch]) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    store.write_pickled(file, state | {"history": [asdict(epoch) for epoch in history]})


def _resume(file: Path, parts: Mapping[str, Stateful]) -> list[Epoch]:
    """The history so far, with the state of all `parts` loaded; empty, and nothing loaded, where there is no snapshot or one of
    them cannot be had from it."""
    if not file.is_file():
        return []
    fresh = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        with zipfile.ZipFile(file) as members:  # torch writes their checksums and compares none
            if damaged := members.testzip():
                raise ValueError(f"{damaged} is not as it was written")
        state = torch.load(file, map_location="cpu", weights_only=True)
        history = [Epoch(**epoch) for epoch in state["history"]]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except Exception as error:  # a damaged snapshot costs its epochs, never the run
        for name, part in parts.items():
            part.load_state_dict(fresh[name])
        said = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        log.warning(f"the snapshot {file} cannot be read ({said}); training starts from the first epoch")
        return []
    log.info(f"training resumes after epoch {len(history)}, from a snapshot of an interrupted run")
    PACE.earlier += sum(epoch.seconds for epoch in history)
    return history
