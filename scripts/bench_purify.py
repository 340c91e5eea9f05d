"""What adversarial purification and a whole run cost, in another checkout and in this one, in turn: CPU time and peak memory.

    python scripts/bench_purify.py OLD --root DIR [--pairs 3] [--only aft,pbe,memory] [KEY=VALUE ...]

OLD is another checkout. All runs are of BadNets on 2,000 images of CIFAR-10 and PreAct-ResNet-18, one thread, data and
infection cached before. `aft` is an adversarial and two natural passes over 600 holdout images, `aft+curve` the same with the
learning curve that a run draws by default, `pbe` one adversarial pass of round 0 over 600 training images, `memory` infection and
fine-tuning, an epoch each. CPU seconds are of the whole process, imports too: other work on the machine bears on them less
than on wall seconds. Prints each run, then for each kind the ratios of the medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SETTINGS = (
    "attack=badnets", "dataset=cifar10", "dataset.train_size=2000", "dataset.test_size=500", "model=preact_resnet18",
    "train.epochs=1", "holdout.rate=0.3", "control=off", "force=true", "rerun=true", "runtime.threads=1", "runtime.progress=off",
)  # fmt: skip
AFT = ("defense=aft", "defense.budget=epochs", "defense.adversarial_epochs=1", "defense.natural_epochs=2")
PBE = ("defense=pbe", "defense.shares=[0.3]", "defense.epochs=1", "curve.every=0")
KINDS = {
    "aft": (*AFT, "curve.every=0"),
    "aft+curve": AFT,
    "pbe": PBE,
    "memory": ("defense=ft", "defense.epochs=1", "curve.every=0"),  # with seeds of its own: it trains the infection too
}


def run(checkout: Path, words: list[str], folder: Path) -> tuple[float, float]:
    """CPU seconds and peak MiB of one run, in a process that has no other child."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    call = [sys.executable, "-c", code, sys.executable, "-m", "backdoorbench", *words, f"runtime.outputs={folder}"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(call, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, peak = map(float, said.split()[-2:])
    return seconds, peak


def pairs(
    checkouts: dict[str, Path], kind: str, words: list[str], place: Path, count: int
) -> Iterator[tuple[str, float, float]]:
    """The name of the checkout, CPU seconds and peak MiB of each run, old and new by turns."""
    for pair in range(count):
        for name, checkout in checkouts.items():
            folder = place / name
            seed = [f"seed={1 + pair}"] if kind == "memory" else []
            yield name, *run(checkout, [*words, *KINDS[kind], *seed], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("--root", required=True, help="CIFAR-10")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    chosen = parser.parse_intermixed_args()
    words = [*SETTINGS, f"dataset.root={chosen.root}", *chosen.settings]
    checkouts = {"old": chosen.old.resolve(), "new": HERE}
    with tempfile.TemporaryDirectory() as place:
        for name, checkout in checkouts.items():
            (Path(place) / name).mkdir()
            run(checkout, [*words, "defense=none"], Path(place) / name)
        for kind in chosen.only.split(","):
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in checkouts}
            for name, seconds, peak in pairs(checkouts, kind, words, Path(place), chosen.pairs):
                found[name].append((seconds, peak))
                print(f"  {kind:10} {name}: {seconds:7.1f} CPU s, {peak:6.0f} MiB", flush=True)
            old, new = ([statistics.median(column) for column in zip(*found[name], strict=True)] for name in checkouts)
            print(
                f"{kind:12} speed {old[0] / new[0]:.2f} of the other checkout's, peak memory {new[1] / old[1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
