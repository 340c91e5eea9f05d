#!/usr/bin/env bash
# One would guess that an override such as x=range(1,4) means the same values under every sweeper of Hydra.
# Under Optuna's random and TPE samplers the excluded stop is drawn too (1 2 3 4); under its grid sampler it is not, but a
# last value that the step does not reach evenly is lost: range(1,10,4) is 1 5 9 for Hydra and 1 5 for the grid. Floats get
# other digits as well (0.06999999999999999 where Hydra's own sweeper passes 0.07).
# It matters because a search over target=range(0,10) asks for class 10 of ten, a grid leaves out the largest trigger or
# rate, and results of a sweep and of a search over the same settings do not join, nor do their caches.
# Versions: hydra-core 1.3.8, hydra-optuna-sweeper 1.3.0, optuna 2.10.1.
# Source: create_optuna_distribution_from_override and OptunaSweeperImpl._to_grid_sampler_choices in
# hydra_plugins.hydra_optuna_sweeper._impl.
# Seen 2026-11-29:
#   range(1,4)            basic 1 2 3    random 1 2 3 4    grid 1 2 3
#   range(1,10,4)         basic 1 5 9    random 1 5 9      grid 1 5
#   range(0.01,0.1,0.01)  basic ... 0.060000000000000005 0.07 0.08 0.09 0.1
#                         random ... 0.060000000000000005 0.06999999999999999 0.08 0.09 0.09999999999999999
#                         grid ... 0.060000000000000005 0.06999999999999999 0.08 0.09
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment hydra-core==1.3.8 hydra-optuna-sweeper==1.3.0 optuna==2.10.1

cat >"$work/job.py" <<'PY'
import hydra


@hydra.main(version_base=None, config_path=None)
def job(config):
    print("job got", config.x, flush=True)
    return float(config.x)


job()
PY
cat >"$work/check.py" <<'PY'
import subprocess
import sys
from importlib.metadata import version

EXPECTED = {  # sweep: under Hydra's basic sweeper, Optuna's random sampler, Optuna's grid sampler
    "range(1,4)": ("1 2 3", "1 2 3 4", "1 2 3"),
    "range(1,10,4)": ("1 5 9", "1 5 9", "1 5"),
    "range(0.01,0.1,0.01)": (
        "0.01 0.02 0.03 0.04 0.05 0.060000000000000005 0.07 0.08 0.09 0.1",
        "0.01 0.02 0.03 0.04 0.05 0.060000000000000005 0.06999999999999999 0.08 0.09 0.09999999999999999",
        "0.01 0.02 0.03 0.04 0.05 0.060000000000000005 0.06999999999999999 0.08 0.09",
    ),
}
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=60"]
SWEEPERS = {
    "basic": [],
    "random": [*OPTUNA, "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0"],
    "grid": [*OPTUNA, "hydra/sweeper/sampler=grid"],
}


def values(sweep, words):
    command = [sys.executable, "job.py", "--multirun", f"+x={sweep}", *words]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted({line.removeprefix("job got ") for line in lines if line.startswith("job got ")}, key=float)


print(*(f"{name} {version(name)}" for name in ("hydra-core", "hydra-optuna-sweeper", "optuna")))
changed = False
for sweep, expected in EXPECTED.items():
    print(sweep)
    for (name, words), one in zip(SWEEPERS.items(), expected, strict=True):
        got = values(sweep, words)
        print(f"  {name:6} {' '.join(got)}")
        changed |= got != one.split()
sys.exit("the behaviour has changed" if changed else 0)
PY
cd "$work"
venv/bin/python check.py
