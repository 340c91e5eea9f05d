"""The same small sweep through several launchers, side by side: are the records equal, what does each cost?

python scripts/bench_launchers.py [--launchers basic,pool,joblib,submitit,ray] [--workers 2] [KEY=VALUES ...]

Every launcher starts from an empty outputs folder. Records are compared without what differs by nature: times, folders, and
which of two runs trained the infection that they share. Memory is the largest sum, over all processes of the sweep, of the
memory that is their own plus their part of what they share (PSS), looked at ten times a second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SWEEP = ["attack=badnets,blended", "attack.poison_rate=0.05,0.1,0.2", "defense=ft,fst", "seed=0,1"]  # 24 runs
SMALL = [
    "dataset.train_size=400", "dataset.test_size=120", "model.width=8", "train.epochs=6", "train.batch_size=32",
    "control=off", "force=true", "runtime.threads=1",
]  # fmt: skip
LAUNCHERS = {
    "basic": [],
    "pool": ["hydra/launcher=pool", "hydra.launcher.workers={workers}", "hydra.launcher.gpus=[]"],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs={workers}"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=30"],
    "ray": ["hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus={workers}"],
}
BY_NATURE = {"seconds", "started", "images_per_second", "outputs", "cached", "progress"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("settings", nargs="*", help="instead of the small sweep")
    chosen = parser.parse_args()
    settings = chosen.settings or [*SWEEP, *SMALL]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {' '.join(settings)}")
    with tempfile.TemporaryDirectory() as root:
        found = {}
        for name in chosen.launchers.split(","):
            words = [word.format(workers=chosen.workers) for word in LAUNCHERS[name]]
            outputs = Path(root, name)
            seconds, memory = timed([*words, *settings, f"runtime.outputs={outputs}"], Path(root))
            found[name] = records(outputs)
            first = next(iter(found.values()))
            differ = [key for key in first.keys() | found[name].keys() if first.get(key) != found[name].get(key)]
            equal = "equal" if not differ else f"{len(differ)} DIFFER: {where(first, found[name], differ[0])}"
            print(
                f"{name:<9} {seconds:7.1f} s   {memory / 2**20:7.0f} MB   {len(found[name])} records {equal}"
                f"   load {os.getloadavg()[0]:.1f}",
                flush=True,
            )


def timed(words: list[str], folder: Path) -> tuple[float, int]:
    """Wall seconds of `bdx -m <words>`, and its peak memory in bytes."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "BDX_BENCH": str(folder)}
    start, peak = time.monotonic(), 0
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "backdoorbench", "-m", *words], stdout=log, stderr=log, env=environment
        )
        while process.poll() is None:
            peak = max(peak, sum(map(memory_of, started_with(environment["BDX_BENCH"]))))
            time.sleep(0.1)
    if process.returncode:
        sys.exit((folder / "log.txt").read_text())
    return time.monotonic() - start, peak


def started_with(mark: str) -> list[Path]:
    """Processes that inherited our mark, whoever their parent is by now, ourselves aside."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"BDX_BENCH={mark}".encode() in (entry / "environ").read_bytes():
                found.append(entry)
        except OSError:
            continue
    return found


def memory_of(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def records(outputs: Path) -> dict[str, Any]:
    """Every record by the key of its run, without what differs by nature."""
    read = [json.loads(file.read_text()) for file in outputs.glob("runs/*/record.json")]
    return {content["id"]: lasting(content) for content in read}


def lasting(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: lasting(value) for key, value in content.items() if key not in BY_NATURE}
    return [lasting(item) for item in content] if isinstance(content, list) else content


def where(one: dict[str, Any], other: dict[str, Any], key: str) -> str:
    """The first place in which two records of a run differ."""
    if key not in one or key not in other:
        return f"run {key} is missing"
    pairs = [(f"run {key}", one[key], other[key])]
    while pairs:
        place, a, b = pairs.pop()
        if isinstance(a, dict) and isinstance(b, dict):
            pairs += [(f"{place}.{name}", a.get(name), b.get(name)) for name in a.keys() | b.keys()]
        elif a != b:
            return f"{place}: {a} and {b}"
    return f"run {key}"


if __name__ == "__main__":
    main()
