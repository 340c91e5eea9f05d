"""What Neural Cleanse gains from reversing all classes as one batched problem, side by side in one run with one after another.

    python scripts/bench_detectors.py [--classes 10] [--images 128] [--width 16] [--size 32] [--repeats 3]

Both are the same function, `training.reversal.reverse`, on the same network (PreAct-ResNet, random weights, eval mode), the same
images in the same order, the same starts and the same number of steps: once with all classes, once for each class. Nothing
stops early. Interleaved; medians. `--at-once` is how many images pass through the network in one go, at most.
Exit code 1 where the two find different patterns (by more than 0.01 on average), or where the batched problem takes longer
than `--most` times the other.
"""

import argparse
import platform
import statistics
import sys
from collections.abc import Callable

import torch
from stopwatch import seconds
from torch import Tensor, nn

from backdoorbench import progress
from backdoorbench.data.images import ImageSet
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNetSpec
from backdoorbench.streams import Stream
from backdoorbench.training import reversal
from backdoorbench.training.fit import autocast
from backdoorbench.training.recipe import Precision, resolve_precision


class Quiet:
    """Shows no progress."""

    def open(self, name: str, total: int, unit: str, steps: int, done: int) -> progress.Task:
        return self

    def advance(self, steps: int = 1, **figures: float) -> None:
        pass

    def close(self) -> None:
        pass


def network(chosen: argparse.Namespace, where: torch.device) -> nn.Module:
    spec = PreActResNetSpec(name="bench", checkpoint=None, depth=chosen.depth, width=chosen.width)
    torch.manual_seed(0)
    model = Classifier(spec.net(chosen.classes, chosen.size), chosen.size, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    return model.eval().to(where, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def reverser(
    model: nn.Module, data: ImageSet, chosen: argparse.Namespace, precision: Precision
) -> Callable[[list[int]], Tensor]:
    """The patterns (C, 3, H, W) that the last pass saw: every pass counts as a success, and the penalty shrinks the masks."""

    def run(classes: list[int]) -> Tensor:
        return reversal.reverse(
            model, data, classes, Stream(0), units=chosen.units, batch_size=chosen.batch_size, lr=0.1, betas=(0.5, 0.9),
            penalty=1e-1, multiplier=2.0, patience=5, success=0.0, stop_patience=chosen.units, stop_factor=0.99,
            autocast=lambda: autocast(precision, data.device),
        ).patterns  # fmt: skip

    return run


def hardware(where: torch.device) -> str:
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or 'CPU'}, {torch.get_num_threads()} thread(s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--images", type=int, default=128, help="of the holdout")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--units", type=int, default=5, help="passes over the holdout")
    parser.add_argument("--depth", type=int, default=10, help="layers of the PreAct-ResNet: 10, 18, 34 or 50")
    parser.add_argument("--width", type=int, default=16, help="channels of its first stage")
    parser.add_argument("--size", type=int, default=32, help="side of an image, pixels")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16", "float32"])
    parser.add_argument("--at-once", type=int, default=None, help="images at once; default: as the detector has it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=float, default=1.0, help="largest ratio that is a success")
    chosen = parser.parse_args()
    progress.install(Quiet())
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(chosen.precision, where)
    if chosen.at_once:
        reversal.PIXELS = dict.fromkeys(reversal.PIXELS, chosen.at_once * chosen.size**2)
    generator = torch.Generator().manual_seed(0)
    shape = (chosen.images, 3, chosen.size, chosen.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    names = tuple(str(label) for label in range(chosen.classes))
    data = ImageSet(images, torch.arange(chosen.images) % chosen.classes, names).to(where)
    run = reverser(network(chosen, where), data, chosen, precision)
    every = list(range(chosen.classes))
    works: dict[str, Callable[[], Tensor]] = {
        "one after another": lambda: torch.cat([run([label]) for label in every]),
        "batched": lambda: run(every),
    }
    found = {name: work() for name, work in works.items()}  # the first steps choose and compile kernels
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(chosen.repeats):
        for name, work in works.items():
            times[name].append(seconds(work, where))
    median = {name: statistics.median(values) for name, values in times.items()}
    ratio = median["batched"] / median["one after another"]
    apart = float((found["batched"] - found["one after another"]).abs().mean())
    print(
        f"NC: {chosen.classes} classes, {chosen.images} images of {chosen.size} px in batches of {chosen.batch_size}, "
        f"{chosen.units} passes; PreAct-ResNet-{chosen.depth}, width {chosen.width}, {precision}"
    )
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {hardware(where)}")
    for name, values in times.items():
        print(f"  {name:<18} {median[name]:>8.3f} s   ({', '.join(f'{value:.3f}' for value in values)})")
    print(f"  batched / one after another {ratio:.2f}; patterns differ by {apart:.1e} on average")
    return 0 if ratio <= chosen.most and apart < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
