"""What a run costs beside its training, in another checkout and in this one, in turn: wall time, CPU time, bytes written.

    python scripts/bench_run.py OLD [--pairs 3] [--root DIR] [KEY=VALUE ...]

OLD is another checkout. One run is BadNets without a defense on 2,000 training and 500 test images of CIFAR-10 (digits where no
--root is given), PreAct-ResNet-18, one epoch; all its files are written into a fresh folder, the data set decoded before. Prints
the medians of both, and the ratios; the machine should be doing nothing else.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from backdoorbench import device

HERE = Path(__file__).resolve().parents[1]
SETTINGS = (
    "attack=badnets", "defense=none", "control=off", "model=preact_resnet18", "train=paper", "train.epochs=1", "force=true",
    "runtime.progress=off",
)  # fmt: skip
PART = ("dataset.train_size=2000", "dataset.test_size=500")


def written(folder: Path) -> int:
    """Bytes of the files of a run and its infection, a file of two names once."""
    files = [
        file.stat() for file in folder.rglob("*") if file.is_file() and "data" not in file.relative_to(folder).parts
    ]
    return sum({stat.st_ino: stat.st_size for stat in files}.values())


def run(checkout: Path, words: list[str], folder: Path) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and bytes of one run into `folder`."""
    call = [sys.executable, "-m", "backdoorbench", *words, f"runtime.outputs={folder}"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        call, cwd=folder, env={**os.environ, "PYTHONPATH": str(checkout)}, check=True, stdout=subprocess.DEVNULL
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, written(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--root", help="CIFAR-10")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    chosen = parser.parse_intermixed_args()
    words = [*SETTINGS, *chosen.settings]
    if chosen.root is not None:
        words += ["dataset=cifar10", f"dataset.root={chosen.root}", *PART]
    import torch

    print(f"{device.describe(torch.device('cpu'))}, torch {torch.__version__}: bdx {' '.join(words)}")
    checkouts = {"old": chosen.old.resolve(), "new": HERE}
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as place:
        for pair in range(chosen.pairs + 1):  # the first decodes the data, and is not counted
            for name, checkout in checkouts.items():
                folder = Path(place) / f"{name}{pair}"
                folder.mkdir()
                if pair:
                    shutil.copytree(Path(place) / f"{name}0" / "cache" / "data", folder / "cache" / "data")
                figures = run(checkout, words, folder)
                if pair:
                    found[name].append(figures)
                    print(
                        f"  {name}: {figures[0]:6.2f} s, {figures[1]:6.2f} CPU s, {figures[2] / 1e6:6.1f} MB",
                        flush=True,
                    )
    old, new = ([statistics.median(column) for column in zip(*found[name], strict=True)] for name in checkouts)
    for name, before, after in zip(("wall", "CPU", "bytes"), old, new, strict=True):
        print(f"{name}: {after / before:.2f} of the other checkout's")


if __name__ == "__main__":
    main()
