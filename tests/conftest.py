"""Shared fixtures, and the tiers. pytest -n 2 --dist worksteal         the quick tier, minutes on two cores
pytest -n 2 --dist worksteal --wide  the wide one too, as CI runs it; so does a file or a test that is named
pytest -m "slow or gpu or pretend"   the rest"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads leave the cores to others
os.environ.setdefault("OMP_NUM_THREADS", "1")  # here and in the commands that tests start: two workers share two cores

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.pipeline import job
from backdoorbench.pipeline.job import Job
from backdoorbench.shapes import Images, Labels
from backdoorbench.streams import Stream
from backdoorbench.training.recipe import Recipe
from backdoorbench.training.scenario import Scenario

QUICK = (  # a run in seconds
    "dataset.train_size=400", "dataset.test_size=120", "model.width=8", "train.epochs=6", "train.batch_size=32", "control=off", "curve.every=0",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wide", action="store_true", help="run the tests that take more than a second, too")


def pytest_configure(config: pytest.Config) -> None:
    """The wide tests are left out by the marks of pyproject.toml, unless a file or a test is named, or `--wide` is."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS and not any(Path(each).is_dir() for each in config.args)
    if config.option.wide or named:
        config.option.markexpr = config.option.markexpr.removesuffix(" and not wide")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Results depend on the number of threads in their last bits; one is the same on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def wave() -> torch.Tensor:
    """(4, 3, 32, 32) in [0, 1] without a random generator: a range through a sine."""
    return (torch.arange(4 * 3 * 32 * 32, dtype=torch.float64).mul(0.37).sin().add(1).div(2)).float().view(4, 3, 32, 32)


@pytest.fixture
def images() -> ImageSet:
    """120 images of 10 classes, made of the same wave."""
    values = torch.arange(120 * 3 * 32 * 32, dtype=torch.float64).mul(0.011).sin().add(1).mul(127.5)
    return ImageSet(values.round().to(torch.uint8).view(120, 3, 32, 32), torch.arange(120) % 10, tuple("abcdefghij"))


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One outputs folder for the whole session and all its workers, so that tests share infections as a sweep would."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "outputs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run(outputs: Path) -> Callable[..., Job]:
    """Carries out `bdx <overrides>` in the session's outputs folder."""

    def carry_out(*overrides: str) -> Job:
        return job.carry_out(compose([f"runtime.outputs={outputs}", "runtime.threads=1", *overrides]))

    return carry_out


def scenario_of(
    chosen: Any, model: nn.Module, holdout: ImageSet, seed: int = 0, notes: dict[str, Any] | None = None
) -> Scenario:
    """What a defense is handed: its own copy of the model, and the holdout, on the CPU, in float32."""
    recipe: Recipe = build(compose(["train.precision=float32"])["train"], "train")
    return Scenario(
        chosen.needs,
        model=copy.deepcopy(model),
        holdout=holdout,
        train=None,
        build=lambda stream: copy.deepcopy(model),
        recipe=recipe,
        stream=Stream(seed).child("purify"),
        device=torch.device("cpu"),
        probe=lambda model, epoch: None,
        note=(notes if notes is not None else {}).__setitem__,
    )


@pytest.fixture
def losses_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], list[tuple[Images, Labels]]]:
    """losses_of(module): the images and labels of every cross-entropy that the module's loops take from then on."""

    def watch(module: ModuleType) -> list[tuple[Images, Labels]]:
        seen: list[tuple[Images, Labels]] = []

        def watched(smoothing: float) -> Callable[..., torch.Tensor]:
            def loss(network: nn.Module, images: Images, labels: Labels) -> torch.Tensor:
                seen.append((images.detach(), labels))
                return nn.functional.cross_entropy(network(images), labels)

            return loss

        monkeypatch.setattr(module, "cross_entropy", watched)
        return seen

    return watch
