#!/usr/bin/env bash
# One would guess that a project's own conf/hydra/launcher/joblib.yaml replaces what hydra-joblib-launcher registered under
# that name, as a file of any other group does, and that Hydra is silent about it.
# It does not replace it: Hydra merges the file into the plugin's entry, so that a file with a lone n_jobs is whole, a key that the
# plugin does not know is an error, and each start prints a UserWarning that this "will be removed in Hydra 1.2", which 1.3.8
# still does. A process in which warnings are errors does not start at all.
# It matters because launchers are set up in such files, and a front end that turns Hydra's warnings into messages (a search path
# that is not there is only one, too) refuses a launcher that works; a test that skips where the plugin is missing never sees it.
# Versions: hydra-core 1.3.8, hydra-joblib-launcher 1.2.0. Source: ConfigLoaderImpl._load_single_config.
# Seen 2026-11-29:
#   n_jobs: 2                             exit 0, 2 jobs, 2 by the plugin, removed: True, unknown: False
#   n_workers: 2                          exit 1, 0 jobs, 0 by the plugin, removed: True, unknown: True
#   n_jobs: 2      -W error::UserWarning  exit 1, 0 jobs, 0 by the plugin, removed: True, unknown: False
# (removed: the warning's words; unknown: Key 'n_workers' not in 'JobLibLauncherConf')
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment hydra-core==1.3.8 omegaconf==2.3.1 hydra-joblib-launcher==1.2.0

mkdir -p "$work/conf/hydra/launcher"
echo "x: 0" >"$work/conf/config.yaml"
cat >"$work/job.py" <<'PY'
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base=None, config_path="conf", config_name="config")
def job(config):
    file = Path(__file__).parent / f"job{config.x}.txt"  # what jobs print side by side is mixed
    file.write_text(HydraConfig.get().launcher._target_)


job()
PY
cat >"$work/check.py" <<'PY'
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

print("hydra-core", version("hydra-core"), "hydra-joblib-launcher", version("hydra-joblib-launcher"))
file, command = Path("conf/hydra/launcher/joblib.yaml"), ["job.py", "--multirun", "hydra/launcher=joblib", "x=1,2"]


def run(content, *options):
    file.write_text(content)
    done = subprocess.run([sys.executable, *options, *command], capture_output=True, text=True)
    said = done.stdout + done.stderr
    jobs = sorted(Path().glob("job?.txt"))
    own = sum("JoblibLauncher" in job.read_text() for job in jobs)
    for job in jobs:
        job.unlink()
    unknown = "Key 'n_workers' not in 'JobLibLauncherConf'" in said
    removed = "will be removed in Hydra 1.2" in said
    print(f"{content.strip():14} {' '.join(options):22} exit {done.returncode}, {len(jobs)} jobs, {own} by the plugin, removed: {removed}, unknown: {unknown}")
    return done.returncode, len(jobs), own, removed, unknown


found = [run("n_jobs: 2\n"), run("n_workers: 2\n"), run("n_jobs: 2\n", "-W", "error::UserWarning")]
expected = [(0, 2, 2, True, False), (1, 0, 0, True, True), (1, 0, 0, True, False)]
sys.exit("the behaviour has changed" if found != expected else 0)
PY
cd "$work"
venv/bin/python check.py
