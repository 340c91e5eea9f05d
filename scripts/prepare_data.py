"""Decodes a data set ahead of time, as the first run that needs it would.

    python scripts/prepare_data.py cifar10 --root /data/cifar10
    python scripts/prepare_data.py gtsrb dataset.variant=torchvision runtime.outputs=/scratch/bdx

Prints images a class, the digest and the seconds. Other settings are given as on the command line of bdx.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.errors import BdxError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a file of conf/dataset, such as cifar10")
    parser.add_argument("--root", type=Path, help="folder of the raw data; otherwise where the yaml file says")
    parser.add_argument("overrides", nargs="*", help="settings, such as dataset.size=64")
    given = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    overrides = [f"dataset={given.dataset}", *given.overrides]
    if given.root is not None:
        quoted = str(given.root.expanduser().resolve()).replace("'", r"\'")
        overrides.append(f"dataset.root='{quoted}'")
    try:
        composed = compose(overrides)
        dataset = build(composed["dataset"], "dataset", composed["plugins"])
        start = time.perf_counter()
        splits = dataset.load(Path(composed["runtime"]["outputs"]).expanduser() / "cache")
        seconds = time.perf_counter() - start
    except BdxError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for name, part in (("train", splits.train), ("test", splits.test)):
        counts = part.counts()
        print(f"{name:6}{len(part):9,} images, {int(counts.min()):,} to {int(counts.max()):,} a class")
    print(f"{len(splits.train.classes):,} classes, digest {splits.digest}, {seconds:.1f} s")


if __name__ == "__main__":
    main()
