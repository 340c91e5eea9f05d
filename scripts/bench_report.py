"""What a report of many runs costs: seconds and memory of every format, over generated records.

    python scripts/bench_report.py [--runs 10000] [--keep DIR]

The records are as long as real ones: learning curve, per-class scores, history of the infection's training. Some runs fail,
collapse or never end; settings, rates and seeds differ. Each format is its own process, started as a user would. Exit code 1
where one takes more than 10 seconds (wall) or 1 GB.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from backdoorbench.config.compose import compose
from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.metrics import Scores
from backdoorbench.storage import store
from backdoorbench.storage.record import Finding, Run

SECONDS, BYTES = 10.0, 1e9
FORMATS = {
    "terminal": [],
    "terminal, attack by defense": ["--rows", "attack", "--columns", "defense", "--metric", "asr,der"],
    "terminal, verdicts": ["--verdicts"],
    "csv": ["--format", "csv"],
    "runs-csv": ["--format", "runs-csv"],
    "md": ["--format", "md"],
    "latex": ["--format", "latex"],
    "html": ["--format", "html", "--output", "page.html"],
}
ATTACKS = ("badnets", "blended", "sig", "wanet", "lc")
DEFENSES = ("ft", "lp", "fe_tuning", "ft_init", "fst", "aft", "pbe", "fmp")
RATES = (0.1, 0.05, 0.01, 0.005)
DATA = (("cifar10", "preact_resnet18"), ("cifar10", "resnet18"), ("gtsrb", "preact_resnet18"), ("digits", "demo"))
EPOCHS, CLASSES = 20, 10


def generate(where: Path, count: int) -> None:
    """Writes `count` records: as many seeds of every setting as it takes."""
    cells = list(itertools.product(DATA, ATTACKS, RATES, DEFENSES))
    composed = {}
    for (dataset, model), attack, defense in itertools.product(DATA, ATTACKS, DEFENSES):
        words = [f"dataset={dataset}", f"model={model}", f"attack={attack}", f"defense={defense}"]
        composed[dataset, model, attack, defense] = compose(words)
    for number in range(count):
        seed, cell = divmod(number, len(cells))
        (dataset, model), attack, rate, defense = cells[cell]
        config = copy.deepcopy(composed[dataset, model, attack, defense])
        config["seed"] = seed
        if "poison_rate" in config["attack"]:
            config["attack"]["poison_rate"] = rate
        folder = where / "runs" / f"20260101-{number:06}_{dataset}-{attack}-{defense}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record(config, number), indent=2))


def record(config: dict[str, Any], number: int) -> dict[str, Any]:
    """A run of some settings: of 50 one failed, one collapsed and one never ended."""
    wave = [0.5 + 0.5 * math.sin(0.37 * (number + step)) for step in range(EPOCHS)]
    status = {0: "failed", 1: "running"}.get(number % 50, "done")
    collapsed = number % 50 == 2
    ca, asr = (0.1, 0.0) if collapsed else (0.9 + 0.05 * wave[0], 0.6 * wave[1])
    recalls = [float(label == 0) if collapsed else ca for label in range(CLASSES)]
    details = {
        "ca_per_class": recalls,
        "asr_per_class": wave[:CLASSES],
        "ra_per_class": wave[:CLASSES],
        "asr_incl_target": 0.9,
    }
    infect = Finding(
        INFECT.name, config["attack"]["name"], key="0123456789ab", cached=True, cost={"infect": 186.8}, status="took",
        scores=Scores(0.94, 0.97, 0.02, 10000, 9000), details=details,
        notes={"requested": 5000, "poisoned": 5000, "share_changed": 0.008, "largest_levels": 255.0, "target": "target 0"},
        history=[{"loss": w, "seconds": 9.4, "images_per_second": 1211.9 * w} for w in wave], seconds={"infect": 186.9},
    )  # fmt: skip
    purify = Finding(
        PURIFY.name, config["defense"]["name"],
        scores=Scores(ca, asr, (1 - asr) * 0.9, 10000, 9000) if status == "done" else None,
        details=details | {"starts_from": INFECT.model}, notes={f"figure{i}": w for i, w in enumerate(wave[:8])},
        curve=[{"epoch": 1 + i, "ca": ca, "asr": w * asr, "ra": 0.9 - w * asr, "n": 500} for i, w in enumerate(wave)],
        seconds={"purify": 20 + wave[0], "curve": 13.1, "evaluate": 0.9},
    )  # fmt: skip
    environment = {"python": "3.11", "packages": {"torch": "2.15.0"}, "commit": "0123456789ab", "device": "a CPU"}
    error = "RuntimeError: made to fail\nwith two lines" if status == "failed" else None
    started = f"2026-01-01T00:00:{number % 60:02}+00:00"
    key = store.key("run", config)
    run = Run(key, status, "generated", config, [infect, purify], environment=environment, started=started, error=error)
    return dataclasses.asdict(run)


def measure(words: list[str], where: Path) -> tuple[float, float, float, int]:
    """Wall and processor seconds, the largest memory in bytes, and the size of what `bdx report` wrote."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with (where / "printed").open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "backdoorbench", "report", ".", *words], cwd=where, stdout=printed,
            env=environment | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )  # fmt: skip
        _, code, used = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"bdx report {' '.join(words)} failed")
    seconds = time.perf_counter() - start
    size = (where / ("page.html" if "html" in words else "printed")).stat().st_size
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0, size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--keep", type=Path, help="a folder for the records, reused where it is filled")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        where = chosen.keep or Path(temporary)
        if not (where / "runs").is_dir():
            generate(where, chosen.runs)
        size = sum(file.stat().st_size for file in where.glob("runs/*/record.json"))
        print(f"{chosen.runs:,} records, {size / 1e6:.0f} MB")
        measure([], where)  # bytecode and file cache, as a user's second report finds them
        worst = 0.0, 0.0
        for name, words in FORMATS.items():
            seconds, used, memory, written = measure(words, where)
            worst = max(worst[0], seconds), max(worst[1], memory)
            print(
                f"{name:<28} {seconds:6.1f} s ({used:.1f} s of a core) {memory / 1e6:6.0f} MB, wrote {written / 1e6:.1f} MB"
            )
    return int(worst[0] > SECONDS or worst[1] > BYTES)


if __name__ == "__main__":
    sys.exit(main())
