"""What WaNet and Input-aware cost over plain training, side by side in one run: PreAct-ResNet-18, batch 128, 32 px.

    python scripts/bench_attacks.py [--images 2000] [--repeats 3] [--width 64]

Each attack trains one epoch at its default rate through `Attack.infect`, plain `fit` the same epoch; interleaved, on random
bytes, which cost the same as CIFAR-10; medians. Input-aware is timed in its two stages: a mask epoch, and a victim's epoch with
the generator. Beside the measured ratio stands the counted one: multiply-adds a training image takes, forward and backward (a
backward as two forwards), over plain training's.
Exit code 1 where WaNet's epoch takes more than 1.15, or Input-aware's victim's epoch more than 1.35 times plain training's.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from stopwatch import seconds
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from backdoorbench import api, device, progress
from backdoorbench.attacks.base import Task
from backdoorbench.attacks.input_aware import InputAwareAttack, fresh
from backdoorbench.data.images import ImageSet
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNetSpec
from backdoorbench.screen import Silent
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Recipe, bare_recipe, resolve_precision

BATCH = 128
AUGMENT = Augment(crop_padding=4, flip=True, rotation=0.0, resized_crop=None, crop=None)
LIMITS = {"wanet": 1.15, "input_aware": 1.35}


def network(width: int) -> Classifier:
    spec = PreActResNetSpec(name="preact_resnet18", checkpoint=None, depth=18, width=width)
    return Classifier(spec.net(10, 32), 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def forward_cost(run: Callable[[], object]) -> float:
    """Multiply-adds."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 2


def counted(width: int, rate: float) -> dict[str, float]:
    """Multiply-adds a training image over plain training's, each stage trained in full; masks in stage 2 forward only."""
    model, image = network(width).eval(), torch.zeros(1, 3, 32, 32)
    trigger = fresh(model, Stream(0)).eval()
    plain, mask, pattern = (forward_cost(lambda run=run: run(image)) for run in (model, trigger.mask, trigger.pattern))
    costs = f"network {plain / 1e6:.0f}, mask {mask / 1e6:.0f}, pattern {pattern / 1e6:.0f}"
    print(f"  million multiply-adds an image, forward: {costs}")
    stage2 = 1 + 2 * rate * (3 * pattern + mask) / (3 * plain)
    return {"fit": 1.0, "wanet": 1.0, "input_aware mask": mask / plain, "input_aware": stage2}


def works(data: ImageSet, recipe: Recipe, width: int) -> dict[str, Callable[[], object]]:
    """One epoch of each, on networks of their own."""

    def build(stream: Stream) -> nn.Module:
        return network(width).to(data.device)

    task = Task(data, build, recipe, None)
    wanet = api.build("attack/wanet")
    aware: InputAwareAttack = replace(api.build("attack/input_aware"), mask_epochs=1)

    def mask() -> object:
        model = network(width)
        return aware.learn_mask(fresh(model, Stream(0)).to(data.device), task, Stream(0))

    return {
        "fit": lambda: fit(build(Stream(0)), data, recipe, Stream(0)),
        "wanet": lambda: wanet.infect(task, Stream(0)),
        "input_aware mask": mask,
        "input_aware": lambda: replace(aware, mask_epochs=0).infect(task, Stream(0)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    chosen = parser.parse_args()
    progress.install(Silent())
    where = device.choose("auto")
    device.prepare(where, None)
    precision = resolve_precision("auto", where)
    recipe = bare_recipe(
        "bench", optimizer="sgd", epochs=1, batch_size=BATCH, lr=0.1, momentum=0.9, weight_decay=5e-4,
        schedule="cosine", augment=AUGMENT, precision=precision,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (chosen.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = ImageSet(images, torch.arange(chosen.images) % 10, tuple("0123456789")).to(where)
    print(f"PreAct-ResNet-18, width {chosen.width}, {len(data)} images of 32 px, {precision}")
    print(f"  torch {torch.__version__}, {device.describe(where)}")
    expected = counted(chosen.width, api.build("attack/input_aware").poison_rate)
    ways = works(data, recipe, chosen.width)
    for work in ways.values():
        work()  # autotuning, first imports
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(chosen.repeats):
        for name, work in ways.items():
            rates[name].append(len(data) / seconds(work, where))
    median = {name: statistics.median(values) for name, values in rates.items()}
    slower = {name: median["fit"] / rate for name, rate in median.items()}
    for name, values in rates.items():
        print(
            f"  {name:<18} {median[name]:>10,.0f} images/s   time over fit's {slower[name]:.2f}, counted {expected[name]:.2f}   "
            f"{', '.join(f'{value:,.0f}' for value in values)}"
        )
    return 0 if all(slower[name] <= limit for name, limit in LIMITS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
