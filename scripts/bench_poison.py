"""What triggering a whole training set costs, for every attack that poisons data: batched, beside one image at a time.

    python scripts/bench_poison.py [--images 50000] [--size 32] [--repeats 3]

Both take the same path, uint8 in and uint8 out, on random bytes; the per-image path is timed on 500 images and extrapolated.
Interleaved; medians. Exit code 1 where an attack takes more than two seconds on 50,000 images of 32 px; Refool aside, which
blends in linear light: two powers of every value, 5.5 s on one core.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from stopwatch import seconds

from backdoorbench import api, device
from backdoorbench.attacks.base import DataAttack, Task, show
from backdoorbench.attacks.hidden import HiddenAttack
from backdoorbench.config import catalog
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.shapes import Images, to_bytes, to_float
from backdoorbench.streams import Stream

ASIDE = {"refool"}
SINGLE, LIMIT = 500, 2.0  # images one by one; seconds a set


def attacks() -> list[DataAttack]:
    """Every data-poisoning attack at its defaults."""
    built = [api.build(f"attack/{name}") for name in catalog.names("attack")]
    return [attack for attack in built if isinstance(attack, DataAttack)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=32, help="pixels a side")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    device.prepare(torch.device("cpu"), None)
    shape = (chosen.images, 3, chosen.size, chosen.size)
    data = ImageSet(
        torch.randint(256, shape, dtype=torch.uint8, generator=Stream(0).generator()),
        torch.arange(chosen.images) % 10,
        tuple("0123456789"),
    )
    rows = torch.arange(len(data))
    recipe = build(compose([])["train"], "train")
    print(f"{chosen.images:,} images of {chosen.size} px, torch {torch.__version__}, {device.describe(data.device)}")
    print(f"  {'attack':<14}{'batched':>10}{'one by one':>12}{'ratio':>8}")
    slow = []
    for attack in attacks():
        task = Task(data, lambda _: torch.nn.Identity(), recipe, None)
        if isinstance(attack, HiddenAttack) or attack.test_trigger(task, Stream(0)) is None:
            continue  # its trigger is a trained network, or optimised on one
        made = attack.trigger(task, Stream(0))

        def batched(trigger: Callable[[Images], Images] = made) -> None:
            show(data, rows, lambda images, _: trigger(images))

        def single(trigger: Callable[[Images], Images] = made) -> None:
            for row in range(SINGLE):
                to_bytes(trigger(to_float(data.images[row : row + 1])))

        times = [
            (seconds(batched, data.device), seconds(single, data.device) * len(data) / SINGLE)
            for _ in range(chosen.repeats)
        ]
        whole, each = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"  {attack.name:<14}{whole:>8.2f} s{each:>10.1f} s{each / whole:>8.1f}")
        slow += [attack.name] * (whole > LIMIT and attack.name not in ASIDE)
    return 1 if slow and chosen.images <= 50_000 and chosen.size <= 32 else 0


if __name__ == "__main__":
    sys.exit(main())
