#!/usr/bin/env bash
# One would guess that saving the same tensors and the same metadata gives the same bytes: the format is a sorted header and
# raw numbers, and without metadata it does.
# With two or more metadata entries the header lists them in a random order, another one at every call, so that the file's
# hash differs from save to save, within one process too. Sorting the dict changes nothing.
# It matters because caches and model cards identify a checkpoint by its SHA-256: a model that names its network, classes
# and normalisation in its metadata is "another model" each time it is saved, and is attacked, purified and judged anew.
# Versions: safetensors 0.8.0, numpy 2.4.6. Source: save_file(..., metadata=...) of safetensors.numpy and safetensors.torch,
# which share the writer.
# Seen 2026-11-29, different hashes among 24 saves:
#   no metadata 1, one entry 1, two entries 2, five entries 21
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment safetensors==0.8.0 numpy==2.4.6

cd "$work"
venv/bin/python - <<'PY'
import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__, "numpy", np.__version__)
ENTRIES = {"classes": "10", "mean": "0.5", "model": "resnet18", "run": "7", "size": "32"}
TIMES = 24
weights = {"layer": np.arange(6, dtype=np.float32), "bias": np.ones(2, dtype=np.float32)}


def save(metadata):
    """The file's hash, and its metadata in the order in which they lie there."""
    save_file(weights, "model.safetensors", metadata)
    assert all(np.array_equal(value, weights[name]) for name, value in load_file("model.safetensors").items())
    content = Path("model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return hashlib.sha256(content).hexdigest()[:12], list(header.get("__metadata__", {}))


different = {}
for count in (0, 1, 2, 5):
    saves = [save(dict(list(ENTRIES.items())[:count]) or None) for _ in range(TIMES)]
    different[count] = len({digest for digest, _ in saves})
    print(f"{count} metadata entries, {TIMES} saves: {different[count]} different files; the last two: {saves[-2:]}")
assert different[0] == different[1] == 1 and different[2] == 2 and different[5] > 2
PY
