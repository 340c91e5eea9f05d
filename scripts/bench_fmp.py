"""What FMP's ranking costs, side by side in one run with training: PreAct-ResNet-18 at full width, 32 px.

    python scripts/bench_fmp.py [--images 1024] [--every 8] [--probe 32] [--repeats 3]

Training is `fit` in the victim's precision, batch 128, crop and flip, on random bytes, which cost the same as CIFAR-10; five
epochs of 50,000 images are extrapolated from `--images`. The ranking takes every so-manieth map of every layer (--every 1: all
4,800), and its time is extrapolated by maps, fixed cost included. Interleaved; medians.
Exit code 1 where ranking all maps takes longer than the five epochs.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from stopwatch import seconds
from torch import nn

from backdoorbench import device, progress
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses import fmp
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNetSpec
from backdoorbench.models.surgery import prunable_channels
from backdoorbench.screen import Silent
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Precision, bare_recipe, resolve_precision

EPOCHS, TRAINING_SET = 5, 50_000
AUGMENT = Augment(crop_padding=4, flip=True, rotation=0.0, resized_crop=None, crop=None)


def network(where: torch.device) -> nn.Module:
    spec = PreActResNetSpec(name="preact_resnet18", checkpoint=None, depth=18, width=64)
    model = Classifier(spec.net(10, 32), 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    return model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def training(data: ImageSet, precision: Precision) -> Callable[[], None]:
    model = network(data.device)
    recipe = bare_recipe(
        "bench", optimizer="sgd", epochs=1, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4,
        schedule="cosine", augment=AUGMENT, precision=precision,
    )  # fmt: skip
    return lambda: fit(model, data, recipe, Stream(0)) and None


def ranking(data: ImageSet, maps: dict[str, range], images: int, precision: Precision) -> Callable[[], None]:
    model = network(data.device).eval()
    probe = fmp.draw(data, images, 1 / 255, Stream(0))
    return lambda: fmp.rank(model, maps, probe, 1 / 255, precision) and None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="training images")
    parser.add_argument(
        "--every", type=int, default=8, help="of a layer's maps, one in so many is ranked; a divisor of 8"
    )
    parser.add_argument("--probe", type=int, default=32, help="images that rank the maps")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    progress.install(Silent())
    where = device.choose("auto")
    device.prepare(where, None)
    precision = resolve_precision("auto", where)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (max(chosen.images, chosen.probe), 3, 32, 32), dtype=torch.uint8, generator=generator
    )
    data = ImageSet(images, torch.arange(len(images)) % 10, tuple("0123456789")).to(where)
    layers = prunable_channels(network(where))
    maps = {layer.name: range(0, layer.channels, chosen.every) for layer in layers}
    every, some = sum(layer.channels for layer in layers), sum(len(channels) for channels in maps.values())
    works = {"fit": training(data, precision), "rank": ranking(data, maps, chosen.probe, precision)}
    works["fit"]()  # the first steps choose and compile kernels
    if where.type == "cuda":
        works["rank"]()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(chosen.repeats):
        for name, work in works.items():
            times[name].append(seconds(work, where))
    rates = {"fit": [len(data) / s for s in times["fit"]], "rank": [some / s for s in times["rank"]]}
    median = {name: statistics.median(values) for name, values in rates.items()}
    epochs, whole = EPOCHS * TRAINING_SET / median["fit"], every / median["rank"]
    print(f"PreAct-ResNet-18 at 32 px, torch {torch.__version__}, {device.describe(where)}")
    for name, unit, total, label in (
        (
            "fit",
            "images/s",
            epochs,
            f"fit, {precision}: {EPOCHS} epochs of {TRAINING_SET:,}, from {len(data):,} images",
        ),
        ("rank", "maps/s", whole, f"ranking {every:,} maps by {chosen.probe} images, from {some:,} maps"),
    ):
        print(
            f"  {label:<56} {total:>8,.1f} s   {median[name]:,.1f} {unit} ({', '.join(f'{r:,.1f}' for r in rates[name])})"
        )
    print(f"  ranking / {EPOCHS} epochs {whole / epochs:.2f}")
    return 0 if whole <= epochs else 1


if __name__ == "__main__":
    sys.exit(main())
