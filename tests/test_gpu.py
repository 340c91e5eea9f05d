"""What only a CUDA device can show: make test-gpu."""

from collections.abc import Callable

import pytest
import torch
from conftest import QUICK

from backdoorbench import api
from backdoorbench.attacks.base import Task
from backdoorbench.data.images import ImageSet
from backdoorbench.pipeline.job import Job
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_a_run_on_the_device(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", "defense=fst", "runtime.device=cuda", *QUICK).run
    assert done.status == "done" and torch.cuda.get_device_name() in done.environment["device"]


def test_an_epoch_waits_for_nothing(images: ImageSet) -> None:
    """torch raises at any synchronisation from the second epoch's first step to its last."""
    fresh, recipe = api._victim(images.to("cuda"), ("model.width=8", "train.epochs=2", "train.batch_size=32"))
    model, steps = fresh(Stream(0)), 0

    def watch() -> None:
        nonlocal steps
        steps += 1
        torch.cuda.set_sync_debug_mode("error" if 4 < steps < 8 else "default")

    try:
        fit(model, images.to("cuda"), recipe, Stream(0), after_step=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == 8


@pytest.mark.parametrize("name", ["wanet", "input_aware", "bpp", "blind"])
def test_an_attackers_epoch_waits_for_nothing(name: str, images: ImageSet) -> None:
    fresh, recipe = api._victim(images.to("cuda"), ("model.width=8", "train.epochs=2", "train.batch_size=32"))
    shorter = {"input_aware": {"mask_epochs": 1}, "blind": {"history": 0}}
    attack = api.build(f"attack/{name}", **shorter.get(name, {}))
    steps = 0

    def watch(*_: object) -> None:
        nonlocal steps
        steps += 1
        torch.cuda.set_sync_debug_mode("error" if 5 < steps < 8 else "default")

    def build(stream: Stream) -> torch.nn.Module:
        model = fresh(stream)
        model.register_forward_hook(watch)
        return model

    try:
        attack.infect(Task(images.to("cuda"), build, recipe, None), Stream(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == 8


def test_batches_are_the_same_on_both_devices(images: ImageSet) -> None:
    augment = api.compose(["dataset=cifar10"])["dataset"]["augment"]
    from backdoorbench.config.build import construct
    from backdoorbench.tensors.augment import Augment

    chosen = construct(Augment, augment, "augment")
    pairs = zip(images.batches(32, Stream(0), chosen), images.to("cuda").batches(32, Stream(0), chosen), strict=True)
    for (here, labels), (there, same) in pairs:
        assert torch.equal(labels, same.cpu()) and torch.allclose(here, there.cpu(), atol=1e-6)
