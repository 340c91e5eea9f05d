"""The training engine: schedules against formulas, resuming, determinism, refusal of non-finite losses."""

import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.data.images import ImageSet, spans
from backdoorbench.errors import TrainingError
from backdoorbench.pipeline import costs
from backdoorbench.shapes import Images, Labels
from backdoorbench.storage.record import Finding
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import Snapshots, fit
from backdoorbench.training.recipe import Recipe

AUGMENT = Augment(crop_padding=2, flip=True, rotation=0.0, resized_crop=None, crop=None)


def recipe(**changes: Any) -> Recipe:
    node = option("train", "demo") | {"augment": None, "precision": "float32", "epochs": 3, "batch_size": 32}
    built: Recipe = build(node, "train")
    return replace(built, augment=AUGMENT, **changes)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(8 * 15 * 15, 10),
        )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


def test_two_trainings_are_bit_equal(images: ImageSet) -> None:
    first, second = network(), network()
    fit(first, images, recipe(), Stream(0))
    torch.manual_seed(123)  # the caller's own random numbers do not matter
    fit(second, images, recipe(), Stream(0))
    assert torch.equal(weights(first), weights(second))
    third = network()
    fit(third, images, recipe(), Stream(1))
    assert not torch.equal(weights(first), weights(third))


def test_a_training_ends_where_it_is_told_to(images: ImageSet) -> None:
    """After two of three epochs it is what those two alone make of the network."""
    first, second = network(), network()
    epochs: list[int] = []
    history = fit(
        first, images, recipe(schedule="constant"), Stream(0), after_epoch=epochs.append, until=lambda: len(epochs) == 2
    )
    fit(second, images, recipe(schedule="constant", epochs=2), Stream(0))
    assert len(history) == 2 and torch.equal(weights(first), weights(second)) and not first.training


def test_training_leaves_the_callers_random_numbers_alone(images: ImageSet) -> None:
    torch.manual_seed(5)
    before = torch.rand(3)
    torch.manual_seed(5)
    fit(network(), images, recipe(epochs=1), Stream(0))
    assert torch.equal(torch.rand(3), before)


@pytest.mark.wide
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adam"},
        {"optimizer": "adamw", "schedule": "cosine", "precision": "bf16"},
        {"optimizer": "sgd", "schedule": "milestones", "milestones": (1, 2), "label_smoothing": 0.1, "batch_size": 7},
    ],
    ids=["sgd", "adam", "adamw", "milestones"],
)
def test_a_killed_training_resumes_from_its_last_epoch(
    images: ImageSet, tmp_path: Path, changes: dict[str, Any]
) -> None:
    chosen = recipe(lr=0.01, **changes)
    whole = network()
    history = fit(whole, images, chosen, Stream(0))
    snapshots = Snapshots(tmp_path / "state.pt", every_seconds=0)

    def killed(epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network(), images, chosen, Stream(0), snapshots=snapshots, after_epoch=killed)
    assert snapshots.file.exists()
    trained: list[int] = []
    resumed = network()
    again = fit(resumed, images, chosen, Stream(0), snapshots=snapshots, after_epoch=trained.append)
    assert trained == [2]  # the first two epochs were not repeated
    assert torch.equal(weights(resumed), weights(whole))
    assert [epoch.loss for epoch in again] == [epoch.loss for epoch in history]
    last = network()  # killed after the last epoch, before anybody kept the model: nothing is trained again
    fit(last, images, chosen, Stream(0), snapshots=snapshots, after_epoch=trained.append)
    assert trained == [2] and torch.equal(weights(last), weights(whole))


def test_a_damaged_snapshot_costs_its_epochs_only(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"not a snapshot")
    model, whole = network(), network()
    fit(whole, images, recipe(), Stream(0))
    assert len(fit(model, images, recipe(), Stream(0), snapshots=Snapshots(tmp_path / "state.pt", 1e9))) == 3
    assert torch.equal(weights(model), weights(whole))


@pytest.mark.parametrize(
    ("milestones", "epochs", "said"), [((3, 9), 3, True), ((1, 9), 3, False), ((), 3, False), ((3,), 0, False)]
)
def test_milestones_that_no_epoch_reaches_are_told(
    images: ImageSet, caplog: pytest.LogCaptureFixture, milestones: tuple[int, ...], epochs: int, said: bool
) -> None:
    tuned = recipe(name="nad student", schedule="milestones", milestones=milestones, epochs=epochs)
    fit(network(), images.subset(torch.arange(32)), tuned, Stream(0))
    told = "nad student: the rate never falls, since none of the milestones [3, 9] is an epoch from 1 to 2"
    assert caplog.messages == [told] * said


@pytest.mark.parametrize("lost", ["optimizer", "history", "momentum"])
def test_of_a_snapshot_that_does_not_fit_nothing_is_kept(
    images: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    """As another version may have left it: weights that fit, with a state of the optimiser that does not. They would be trained
    once more, from the first epoch on."""
    snapshots, whole, model = Snapshots(tmp_path / "state.pt", every_seconds=0), network(), network()
    fit(whole, images, recipe(), Stream(0), snapshots=snapshots)
    state = torch.load(snapshots.file, weights_only=True)
    if lost == "momentum":
        state["optimizer"]["param_groups"][0]["params"].pop()
    else:
        del state[lost]
    torch.save(state, snapshots.file)
    assert len(fit(model, images, recipe(), Stream(0), snapshots=Snapshots(snapshots.file, 1e9))) == 3
    assert torch.equal(weights(model), weights(whole))
    (said,) = caplog.messages
    assert said.endswith("; training starts from the first epoch")
    assert said.startswith(f"the snapshot {snapshots.file} cannot be read (") and "\n" not in said


def test_what_a_snapshot_brings_counts_among_what_was_spent(images: ImageSet, tmp_path: Path) -> None:
    snapshots, found = Snapshots(tmp_path / "state.pt", every_seconds=0), Finding("infect", "x")
    first = fit(network(), images, recipe(), Stream(0), snapshots=snapshots)
    with costs.timed(found, "infect"):
        start = time.monotonic()
        fit(network(), images, recipe(), Stream(0), snapshots=snapshots)
        own = time.monotonic() - start
    assert found.seconds["infect"] >= round(sum(epoch.seconds for epoch in first) + own, 3) - 0.002


def test_a_non_finite_loss_stops_the_run(images: ImageSet) -> None:
    with pytest.raises(TrainingError) as caught:
        fit(network(), images, recipe(lr=1e20, epochs=4), Stream(0))
    assert "the loss of 'demo' became " in str(caught.value)
    assert str(caught.value).endswith(
        "expected a finite number. Lower the lr of this stage, or set train.precision=float32."
    )


def test_schedules() -> None:
    cosine = recipe(schedule="cosine", epochs=4, lr=1.0)
    assert [round(cosine.rate(step, 2), 6) for step in range(8)] == [
        1,
        1,
        0.853553,
        0.853553,
        0.5,
        0.5,
        0.146447,
        0.146447,
    ]
    cycle = [recipe(schedule="one_cycle", epochs=4, lr=1.0, warmup=0.25).rate(step, 2) for step in range(8)]
    assert cycle[0] == 0.5 and cycle[1] == 1.0 and cycle[-1] == pytest.approx(1 / 7)
    assert all(a > b for a, b in zip(cycle[1:], cycle[2:], strict=False))
    steps = recipe(schedule="milestones", milestones=(1, 3), decay=0.1, epochs=4, lr=1.0)
    assert [steps.rate(step, 1) for step in range(4)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_equals_torchs(images: ImageSet) -> None:
    chosen = recipe(schedule="cosine", epochs=7, lr=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(7):
        assert chosen.rate(epoch * 5, 5) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_frozen_norms_keep_their_statistics(images: ImageSet) -> None:
    model = network()
    norm = model[1]
    before = norm.running_mean.clone()
    fit(model, images, recipe(), Stream(0), freeze_norms=True)
    assert torch.equal(norm.running_mean, before)
    fit(model, images, recipe(), Stream(0))
    assert not torch.equal(norm.running_mean, before)


def test_only_given_parameters_move(images: ImageSet) -> None:
    model = network()
    before = model[0].weight.clone()
    fit(model, images, recipe(), Stream(0), parameters=model[-1].parameters())
    assert torch.equal(model[0].weight, before)
    assert all(weight.grad is None for weight in model.parameters())  # those that did not move have none either


def test_a_step_goes_along_the_loss_and_not_along_what_it_left(images: ImageSet) -> None:
    def leaves(model: nn.Module, pixels: Images, labels: Labels) -> torch.Tensor:
        F.cross_entropy(model(pixels), labels).backward()  # as attacks of Foolbox do, which read gradients by pixels
        return F.cross_entropy(model(pixels), labels)

    def reads(model: nn.Module, pixels: Images, labels: Labels) -> torch.Tensor:
        model(pixels)
        return F.cross_entropy(model(pixels), labels)

    left, read = network(), network()
    fit(left, images, recipe(), Stream(0), loss=leaves)
    fit(read, images, recipe(), Stream(0), loss=reads)
    assert torch.equal(weights(left), weights(read))


def test_bf16_learns_what_float32_learns(images: ImageSet) -> None:
    losses = [fit(network(), images, recipe(precision=p, epochs=6), Stream(0))[-1].loss for p in ("float32", "bf16")]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert spans(9, 4) == [(0, 4), (4, 9)]
    assert spans(8, 4) == [(0, 4), (4, 8)]
    assert spans(1, 4) == [(0, 1)]


def test_a_set_of_one_image_that_a_norm_cannot_read_is_a_mistake_that_is_told(images: ImageSet) -> None:
    one = images.subset(torch.arange(1))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    with pytest.raises(
        TrainingError, match="^'demo' has a single image to train on, .* expected at least 2 images. Raise the share"
    ):
        fit(flat, one, recipe(), Stream(0))
    fit(network(), one, recipe(), Stream(0))  # whose norm reads a whole map
    with pytest.raises(
        ValueError, match="more than 1 value per channel"
    ):  # of two images it is no mistake of the user's
        fit(
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), Alone()),
            images.subset(torch.arange(2)),
            recipe(),
            Stream(0),
        )


class Alone(nn.Module):
    """A norm that is shown the first image of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + self.norm(values[:1])  # type: ignore[no-any-return]


def test_an_epoch_sees_every_image_once(images: ImageSet) -> None:
    seen = torch.cat([labels for _, labels in images.batches(32, Stream(0))])
    assert torch.equal(seen.bincount(), images.labels.bincount())
    assert not torch.equal(seen, images.labels)


@pytest.mark.wide
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_memory_of_one_step_serves_the_next_without_going_back_to_the_system() -> None:
    code = """
import resource, torch
from torch.nn import functional as F
from backdoorbench import device
device.prepare(torch.device("cpu"), 1)
scale, images, faults = torch.ones(1, requires_grad=True), torch.rand(12 * 2**20), []
for _ in range(20):
    F.gelu(images * scale).sum().backward()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[9])
"""
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(told) < 60_000  # ten steps; otherwise each fetches 61,000 pages anew
