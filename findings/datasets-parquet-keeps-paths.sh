#!/usr/bin/env bash
# One would guess that a parquet file which to_parquet of datasets writes holds the images of an image data set, as the files do that
# push_to_hub writes and as save_to_disk does, whose documentation says that all images are stored.
# Of images that come from files, as load_dataset("imagefolder") and a column of paths have them, to_parquet writes the paths alone:
# 20 images of 3,126 bytes make a file of 2.4 kB, which opens, counts, shuffles and decodes on the machine that wrote it. Decoding reads
# the image files of today: overwritten in place, as a trigger is stamped, they are what the older parquet file gives. With the
# folder gone, it has no image. After save_to_disk and load_from_disk, the same call writes the images.
# It matters because poisoned and clean sets are handed on as parquet: the clean copy that was saved before poisoning turns poisoned,
# and on another machine the file has labels only.
# Versions: datasets 5.2.0, pyarrow 26.0.1, pillow 13.0.0, numpy 2.4.6.
# Source: datasets/io/parquet.py, which writes the table as it is; embed_table_storage (datasets/table.py) is called by
# push_to_hub and save_to_disk.
# Seen 2026-11-30 (mean pixel of the 20 images when saved, after they are overwritten by white, after they are gone):
#   to_parquet                          100, 255, FileNotFoundError
#   save_to_disk                        100, 100, 100
#   load_from_disk, then to_parquet     100, 100, 100
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment datasets==5.2.0 pyarrow==26.0.1 pillow==13.0.0 numpy==2.4.6

HF_HOME="$work/home" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - "$work" <<'PY'
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow
import pyarrow.parquet
from PIL import Image

print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__, "pillow", PIL.__version__, "numpy", np.__version__)
datasets.disable_progress_bars()
work = Path(sys.argv[1])
images = work / "images"


def write(value):
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True, exist_ok=True)
        for row in range(10):
            Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(images / name / f"{row}.bmp")


write(100)
loaded = datasets.load_dataset("imagefolder", data_dir=str(images), split="train")
loaded.to_parquet(work / "direct.parquet")
loaded.save_to_disk(work / "saved")
datasets.load_from_disk(work / "saved").to_parquet(work / "after.parquet")


def parquet(name):
    return datasets.Dataset.from_parquet(str(work / name), cache_dir=str(work / f"cache-{name}"))


WAYS = {
    "to_parquet": lambda: parquet("direct.parquet"),
    "save_to_disk": lambda: datasets.load_from_disk(work / "saved"),
    "load_from_disk, then to_parquet": lambda: parquet("after.parquet"),
}


def seen(read):
    try:
        return str(round(float(np.mean([np.asarray(row["image"]) for row in read()]))))
    except FileNotFoundError as error:
        return type(error).__name__


found = {name: [seen(read)] for name, read in WAYS.items()}
write(255)
for name, read in WAYS.items():
    found[name].append(seen(read))
shutil.rmtree(images)
for name, read in WAYS.items():
    found[name].append(seen(read))
    print(f"{name}: mean pixel {found[name][0]} when saved, {found[name][1]} after the files are overwritten, {found[name][2]} without")
first = pyarrow.parquet.read_table(work / "direct.parquet").column("image")[0].as_py()
sizes = [(work / name).stat().st_size for name in ("direct.parquet", "after.parquet")]
print("the first image in to_parquet's file has the bytes", first["bytes"], "and a path; the files have", *sizes, "bytes")
assert first["bytes"] is None and first["path"] and sizes[0] < 20 * 3072
assert found["to_parquet"] == ["100", "255", "FileNotFoundError"]
assert found["save_to_disk"] == found["load_from_disk, then to_parquet"] == ["100"] * 3
PY
