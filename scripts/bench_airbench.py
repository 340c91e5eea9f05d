"""Training speed of `model=airbench train=airbench` on a CPU, side by side in one run with a bare PyTorch loop of the network.

    python scripts/bench_airbench.py [--root DIR/cifar10] [--images 4096] [--repeats 3] [--threads 2] [--clock wall]

Each measurement is a process of its own, and they take turns; medians. All are bf16 autocast, channels_last, batches of 1,024.

    fit    `fit` on BadNets-poisoned images with augmentation and slow weights: an epoch in which the whitening's bias trains, and
           one in which it does not; both count as often as in the recipe's epochs
    bare   forward, backward and step on one batch that never changes, as a script of plain torch runs
    kept   the same loop with memory that stays with the process (`device.keep_memory`)
    convs  the network's convolutions alone, forward and backward: the rate that this machine has for them

Without --root the images are random bytes, which cost the same. --clock cpu counts the seconds that the process computed rather
than those that went by: for one thread, on a machine that others use too. Exit code 1 where fit is below 0.97 of bare.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backdoorbench import api, device, progress
from backdoorbench.attacks.base import Task
from backdoorbench.config.build import build
from backdoorbench.data.images import ImageSet
from backdoorbench.models.airbench import AirbenchSpec
from backdoorbench.models.base import Classifier
from backdoorbench.screen import Silent
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.training.sprint import Sprint

CPU = torch.device("cpu")
BATCH = 1024
KINDS = ("bare", "kept", "fit", "convs")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Clock = Callable[[], float]


def network() -> Classifier:
    spec = AirbenchSpec(name="airbench", checkpoint=None, width=64)
    model = Classifier(spec.net(10, 32), 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    return model.to(memory_format=torch.channels_last)


def recipe(**changes: Any) -> Sprint:
    words = ["dataset=cifar10", "train=airbench", "train.precision=bf16"]
    made: Sprint = build(
        api.compose(words + [f"train.{key}={value}" for key, value in changes.items()])["train"], "train"
    )
    return made


def poisoned(root: str | None, count: int) -> ImageSet:
    """So many images, a tenth of them with BadNets' patch and label."""
    if root is not None:
        data, _ = api.load_dataset("cifar10", root=root, train_size=count)
    else:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        data = ImageSet(images, torch.arange(count) % 10, tuple("0123456789"))
    task = Task(data, lambda stream: network(), recipe(), None)
    return api.build("attack/badnets").plant(task, Stream(0))[1].train  # type: ignore[no-any-return]


def seconds(work: Callable[[], object], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start


def time_fit(data: ImageSet, clock: Clock) -> dict[str, float]:
    """Images a second in an epoch with, and in one without, the whitening's bias."""
    model = network()
    fit(model, data.subset(torch.arange(BATCH)), recipe(epochs=1), Stream(0))
    usual = recipe(epochs=2, fixed_bias_epochs=1, **{"lookahead.from_epoch": 0})
    ends = [clock()]
    fit(model, data, usual, Stream(0), after_epoch=lambda _: ends.append(clock()))
    return {"early": len(data) / (ends[1] - ends[0]), "late": len(data) / (ends[2] - ends[1])}


def time_bare(count: int, clock: Clock) -> dict[str, float]:
    model = network().train()
    images = torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model.start([images])
    labels = torch.arange(BATCH) % 10
    moved = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(moved, lr=0.01, momentum=0.85, nesterov=True, weight_decay=1e-3, fused=True)

    def steps(number: int) -> None:
        for _ in range(number):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(images).float(), labels, label_smoothing=0.2)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    steps(1)
    number = max(1, count // BATCH)
    return {"rate": number * BATCH / seconds(lambda: steps(number), clock)}


def time_convs(clock: Clock) -> dict[str, float]:
    """Operations a second of the convolutions, and how many of them an image's training takes (whitening's bias at rest)."""
    model, taken, operations = network(), 0.0, 0.0
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda layer, args: shapes.append((layer, args[0].shape)))
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    for index, (layer, shape) in enumerate(shapes):
        x = torch.rand(BATCH, *shape[1:], dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        weight = layer.weight.detach().bfloat16().contiguous(memory_format=torch.channels_last)
        weight.requires_grad_(index > 0)
        x.requires_grad_(index > 1)  # below the second nothing trains

        def work(x: torch.Tensor = x, weight: torch.Tensor = weight, layer: nn.Conv2d = layer) -> None:
            maps = F.conv2d(x, weight, padding=layer.padding)
            if maps.requires_grad:
                torch.autograd.grad(maps, [t for t in (x, weight) if t.requires_grad], torch.ones_like(maps))

        with FlopCounterMode(display=False) as counter:
            work()
        operations += counter.get_total_flops()
        taken += min(seconds(work, clock) for _ in range(3))
    return {"rate": operations / taken, "an_image": operations / BATCH}


def carry_out(kind: str, chosen: argparse.Namespace) -> dict[str, float]:
    """One measurement, in a process of its own."""
    progress.install(Silent())
    torch.set_num_threads(chosen.threads)
    if kind != "bare":
        device.keep_memory()
    if kind == "fit":
        return time_fit(poisoned(chosen.root, chosen.images), CLOCKS[chosen.clock])
    if kind == "convs":
        return time_convs(CLOCKS[chosen.clock])
    return time_bare(chosen.images, CLOCKS[chosen.clock])


def measure(kind: str, chosen: argparse.Namespace) -> dict[str, float]:
    words = [sys.executable, __file__, "--work", kind, "--images", chosen.images, "--threads", chosen.threads]
    words += ["--clock", chosen.clock]
    words += ["--root", chosen.root] if chosen.root else []
    answer = subprocess.run([str(word) for word in words], check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=str, help="CIFAR-10's folder; random bytes without it")
    parser.add_argument("--images", type=int, default=4 * BATCH)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.work is not None:
        print(json.dumps(carry_out(chosen.work, chosen)))
        return 0
    if chosen.root is not None:
        chosen.root = str(Path(chosen.root).resolve())
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(chosen.repeats):
        for kind in KINDS:
            found[kind].append(measure(kind, chosen))
    torch.set_num_threads(chosen.threads)
    report(found, chosen)
    return 0 if rate_of_fit(found) / median(found, "bare", "rate") >= 0.97 else 1


def median(found: dict[str, list[dict[str, float]]], kind: str, figure: str) -> float:
    return statistics.median(each[figure] for each in found[kind])


def rate_of_fit(found: dict[str, list[dict[str, float]]]) -> float:
    """Images a second over the recipe's epochs."""
    usual = recipe()
    early = usual.fixed_bias_epochs / usual.epochs
    return 1 / (early / median(found, "fit", "early") + (1 - early) / median(found, "fit", "late"))


def report(found: dict[str, list[dict[str, float]]], chosen: argparse.Namespace) -> None:
    print(
        f"airbench, {chosen.images} images of 32 px, {chosen.clock} clock, torch {torch.__version__}, {device.describe(CPU)}"
    )
    rows = (
        ("bare", "rate", "bare loop"), ("kept", "rate", "bare loop, memory kept"),
        ("fit", "early", "fit, whitening's bias trains"), ("fit", "late", "fit, it stands still"),
    )  # fmt: skip
    for kind, figure, label in rows:
        each = ", ".join(f"{one[figure]:,.0f}" for one in found[kind])
        print(f"  {label:<30} {median(found, kind, figure):>8,.0f} images/s   {each}")
    ours = rate_of_fit(found)
    print(f"  fit over {recipe().epochs} epochs             {ours:>8,.0f} images/s")
    print(
        f"  fit / bare {ours / median(found, 'bare', 'rate'):.3f}   fit / kept {ours / median(found, 'kept', 'rate'):.3f}"
    )
    rate, an_image = median(found, "convs", "rate"), median(found, "convs", "an_image")
    print(
        f"  convolutions alone {rate / 1e9:,.0f} GFLOP/s; {an_image / 1e9:.3f} GFLOP an image, so fit (late) uses "
        f"{median(found, 'fit', 'late') * an_image / rate:.2f} of that rate, the bare loop "
        f"{median(found, 'bare', 'rate') * an_image / rate:.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
