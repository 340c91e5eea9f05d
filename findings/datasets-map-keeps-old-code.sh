#!/usr/bin/env bash
# One would guess that map of datasets, whose cache goes by a hash of the function, runs a function anew once its code has changed.
# That is so of functions of the script itself. One that is imported from a module, as a trigger is, is hashed by its name alone: the
# module is edited, the script run again, and map hands out the images that the former code made. The function may be right and tested
# and never have been called. The same holds for what it calls and for constants beside it.
# It matters because the second of two triggers is judged on images of the first: a 6x6 patch has to the digit the ASR of the
# 3x3 patch. load_from_cache_file=False runs the function.
# Versions: datasets 5.2.0, dill 0.4.1, pillow 13.0.0, numpy 2.4.6. Source: datasets/fingerprint.py, Hasher; dill pickles what an importable
# module has by reference.
# Seen 2026-11-30 (mean pixel of 6 images of 100, 8x8, with a white patch of 3x3, then of 6x6, by a new process each):
#   imported, map                                121.8, 121.8
#   imported, map(load_from_cache_file=False)    121.8, 187.2
#   in the script, map                           121.8, 187.2
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment datasets==5.2.0 dill==0.4.1 pillow==13.0.0 numpy==2.4.6

cd "$work"
mkdir images code
export HF_HOME="$work/home" HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$work/code"
"$work/venv/bin/python" - <<'PY'
from pathlib import Path

import numpy as np
from PIL import Image

for name in ("cat", "dog"):
    Path("images", name).mkdir()
    for row in range(3):
        Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(Path("images", name, f"{row}.png"))
PY

write() { # of the module and of the script, with a patch of $1 pixels a side
  cat >code/trigger.py <<PY
import numpy as np
from PIL import Image


def stamp(row):
    pixels = np.array(row["image"])
    pixels[-$1:, -$1:] = 255
    return {"image": Image.fromarray(pixels)}
PY
  cat code/trigger.py - >script.py <<'PY'

import sys

import datasets
import trigger

datasets.disable_progress_bars()
images = datasets.load_dataset("imagefolder", data_dir="images", split="train")
function = stamp if sys.argv[1] == "script" else trigger.stamp
again = {"load_from_cache_file": False} if sys.argv[1] == "anew" else {}
print(round(float(np.mean([np.asarray(row["image"]) for row in images.map(function, **again)])), 1))
PY
}

"$work/venv/bin/python" -c "import datasets, dill; print('datasets', datasets.__version__, 'dill', dill.__version__)"
for way in imported script anew; do
  write 3
  first=$("$work/venv/bin/python" script.py $way)
  write 6
  second=$("$work/venv/bin/python" script.py $way)
  echo "$way: mean pixel $first with a patch of 3x3, $second with one of 6x6"
  case $way in imported) expected=121.8 ;; *) expected=187.2 ;; esac
  [ "$first" = 121.8 ] && [ "$second" = "$expected" ]
done
