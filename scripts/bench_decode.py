"""Images a second of decoding in another checkout and in this one, in turn; all pixels must be equal.

    python scripts/bench_decode.py OLD [--count 8000] [--pairs 3] [--kinds png32,jpg32,jpg64,jpg300]

OLD is another checkout. Each run is a process of its own that decodes the same drawn class folders into a new store, at 32
pixels; `decode` is the time of `store.decode`, `load` that of all that a first run waits for: listing, decoding, digests too.
It takes two idle cores: among other work that keeps them busy a second process gains nothing, and the ratio is that of CPU time.
Exit code 1 where decoding small images is less than 1.5 times as fast, or where a digest differs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parents[1]
KINDS = {
    "png32": (32, "png", 1),
    "jpg32": (32, "jpg", 1),
    "jpg64": (64, "jpg", 1),
    "jpg300": (300, "jpg", 8),
}  # a share
LEAST = 1.5
CODE = """
import json, sys, time
from pathlib import Path
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data import store
inner, spent = store.decode, []
def timed(*all, **more):
    start = time.perf_counter()
    found = inner(*all, **more)
    spent.append(time.perf_counter() - start)
    return found
store.decode = timed
data = build(compose(["dataset=folder", f"dataset.root={sys.argv[1]}"])["dataset"], "dataset")
start = time.perf_counter()
digest = data.load(Path(sys.argv[2])).digest
print(json.dumps({"load": time.perf_counter() - start, "decode": sum(spent), "digest": digest}))
"""


def draw(root: Path, side: int, ending: str, count: int) -> None:
    """Smooth random images in ten classes of train/ and test/."""
    random = np.random.default_rng(0)
    for row in range(count):
        folder = root / ("test" if row % 10 == 9 else "train") / f"class{row // 10 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{row}.{ending}")


def run(checkout: Path, root: Path) -> dict[str, float | str]:
    """Seconds of one load into a store that is not there yet, and the digest of what was read."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as cache:
        call = [sys.executable, "-c", CODE, str(root), cache]
        said = subprocess.run(call, cwd=cache, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("--count", type=int, default=8000, help="images; of the large ones an eighth")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    chosen = parser.parse_args()
    checkouts = {"old": chosen.old.resolve(), "new": HERE}
    slow = []
    print(
        f"{'kind':8}{'old images/s':>14}{'new images/s':>14}{'decode':>9}{'load':>9}   ratios of medians, {chosen.pairs} pairs"
    )
    for kind in chosen.kinds.split(","):
        side, ending, part = KINDS[kind]
        count = chosen.count // part
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder), side, ending, count)
            runs = [
                {name: run(checkout, Path(folder)) for name, checkout in checkouts.items()} for _ in range(chosen.pairs)
            ]
        if len({one["digest"] for pair in runs for one in pair.values()}) > 1:
            sys.exit(f"{kind}: the two checkouts decode other pixels")
        middle = {
            (name, what): statistics.median(float(pair[name][what]) for pair in runs)
            for name in checkouts
            for what in ("decode", "load")
        }
        ratio = {what: middle["old", what] / middle["new", what] for what in ("decode", "load")}
        rates = [count / middle[name, "decode"] for name in checkouts]
        print(f"{kind:8}{rates[0]:14,.0f}{rates[1]:14,.0f}{ratio['decode']:9.2f}{ratio['load']:9.2f}", flush=True)
        if part == 1 and ratio["decode"] < LEAST:
            slow.append(kind)
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Pillow {Image.__version__}")
    if slow:
        sys.exit(f"decoding {', '.join(slow)} is less than {LEAST} times as fast")


if __name__ == "__main__":
    main()
