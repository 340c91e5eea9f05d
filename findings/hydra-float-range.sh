#!/usr/bin/env bash
# One would guess that the sweep x=range(0.01,0.1,0.01) is nine jobs, 0.01 to 0.09, since the stop is excluded.
# It is ten: the stop runs too, and one value reaches the job as 0.060000000000000005. Hydra adds up the exact decimal
# expansions of the binary floats: ten times that of 0.01 stays just below that of 0.1, so 0.1 still counts as smaller.
# Where the sum starts changes the spelling as well: 0.3 is 0.3 in range(0,1,0.1), 0.30000000000000004 in range(0.1,1,0.1).
# It matters because poisoning rates and learning rates are swept so: one job too many, and a value that equals no value
# typed by hand, so that a cache addressed by settings trains the same infected model again and tables get a second row.
# Versions: hydra-core 1.3.8, omegaconf 2.3.1. Source: hydra.core.override_parser.types.FloatRange.
# Seen 2026-11-29:
#   range(0.01,0.1,0.01)     10 jobs: 0.01 0.02 0.03 0.04 0.05 0.060000000000000005 0.07 0.08 0.09 0.1
#   range(0.1,0.5,0.1)        4 jobs: 0.1 0.2 0.30000000000000004 0.4
#   range(0,1,0.1)           10 jobs: 0.0 0.1 0.2 0.3 0.4 0.5 0.6 0.7000000000000001 0.8 0.9
#   range(0.1,1,0.1)          9 jobs: 0.1 0.2 0.30000000000000004 0.4 0.5 0.6 0.7000000000000001 0.8 0.9
#   range(0.001,0.01,0.001)   9 jobs: 0.001 0.002 0.003 0.004 0.005 0.006 0.007 0.008 0.009000000000000001
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment hydra-core==1.3.8 omegaconf==2.3.1

cat >"$work/job.py" <<'PY'
import hydra


@hydra.main(version_base=None, config_path=None)
def job(config):
    print("job got", config.rate, flush=True)


job()
PY
cat >"$work/check.py" <<'PY'
import subprocess
import sys
from importlib.metadata import version

EXPECTED = {
    "range(0.01,0.1,0.01)": "0.01 0.02 0.03 0.04 0.05 0.060000000000000005 0.07 0.08 0.09 0.1",
    "range(0.1,0.5,0.1)": "0.1 0.2 0.30000000000000004 0.4",
    "range(0,1,0.1)": "0.0 0.1 0.2 0.3 0.4 0.5 0.6 0.7000000000000001 0.8 0.9",
    "range(0.1,1,0.1)": "0.1 0.2 0.30000000000000004 0.4 0.5 0.6 0.7000000000000001 0.8 0.9",
    "range(0.001,0.01,0.001)": "0.001 0.002 0.003 0.004 0.005 0.006 0.007 0.008 0.009000000000000001",
}
print("hydra-core", version("hydra-core"), "omegaconf", version("omegaconf"))
changed = False
for sweep, expected in EXPECTED.items():
    command = [sys.executable, "job.py", "--multirun", f"+rate={sweep}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    launched = [line.partition("+rate=")[2] for line in lines if "+rate=" in line]
    got = [line.removeprefix("job got ") for line in lines if line.startswith("job got ")]
    print(f"{sweep:24} {len(got):2} jobs: {' '.join(got)}")
    changed |= got != expected.split() or launched != got
sys.exit("the behaviour has changed" if changed else 0)
PY
cd "$work"
venv/bin/python check.py
