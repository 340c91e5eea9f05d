"""What it takes to compose configurations of other choices, in another checkout and in this one, in turn; they must be equal.

    python scripts/bench_compose.py OLD [--pairs 5]

OLD is another checkout. Each run is a process of its own that composes, after a first one, each attack with a defense of its own
and prints the mean processor time of one; the ratio is that of the medians. Exit code 1 where what is composed differs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
CODE = """
import hashlib, itertools, json, time
from backdoorbench.config import catalog
from backdoorbench.config.compose import compose
attacks, defenses = catalog.names("attack"), itertools.cycle(catalog.names("defense"))
choices = [[f"attack={attack}", f"defense={next(defenses)}"] for attack in attacks]
compose(["dataset=cifar10"])
start = time.process_time()
found = [compose(words) for words in choices]
spent = (time.process_time() - start) / len(choices)
print(json.dumps({"seconds": spent, "digest": hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    chosen = parser.parse_args()
    places = {"old": chosen.old.resolve(), "new": HERE}
    found: dict[str, list[dict[str, float | str]]] = {name: [] for name in places}
    for _ in range(chosen.pairs):
        for name, place in places.items():
            environment = os.environ | {"PYTHONPATH": str(place)}
            done = subprocess.run(
                [sys.executable, "-c", CODE], env=environment, cwd=place, check=True, capture_output=True, text=True
            )
            found[name].append(json.loads(done.stdout))
    medians = {name: statistics.median(float(run["seconds"]) for run in runs) for name, runs in found.items()}
    for name, median in medians.items():
        print(f"{name:<4} {1000 * median:6.1f} ms of a core a choice of options")
    print(f"new / old {medians['new'] / medians['old']:.2f}")
    return 0 if len({run["digest"] for runs in found.values() for run in runs}) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
