#!/usr/bin/env bash
# One would guess that WebDataset(urls, shardshuffle=16) reads the shards in another order in each epoch, as a shuffled loader does.
# It draws one order when the data set is made and reads the shards in that order in every epoch. shuffle(50) behind it moves images
# within a buffer of 50 only, so that of 800 images each comes at nearly the same moment of every epoch. Nothing is said. With
# detshuffle=True the order is another in each epoch of one process; a copy of the data set, such as a loader's worker begins with,
# counts epochs anew and has the first order again. `.shuffle(50, seed=0)` likewise repeats one order.
# It matters because shards often hold a class, a source or the poisoned part each: all epochs then show the same classes first and the
# same last, and the last images that a network sees, which batch norms and small learning rates keep, never change.
# Versions: webdataset 1.0.2, numpy 2.4.6.
# Source: WebDataset.__init__ (webdataset/compat.py) hands the seed it has drawn to filters.shuffle, and _shuffle (webdataset/filters.py)
# makes random.Random(seed) of it whenever an epoch begins.
# Seen 2026-11-30 (16 shards of 50 images; by how many of 800 places an image moves from the first epoch to the second; the first six
# shards of three epochs):
#   shardshuffle=16                    46; 12 15 6 0 4 8, 12 15 6 0 4 8, 12 15 6 0 4 8
#   shardshuffle=16, detshuffle=True   221; 12 15 6 0 4 8, 4 9 13 12 1 15, 1 15 14 5 2 10
#   the same, a copy for each epoch    0; 12 15 6 0 4 8, 12 15 6 0 4 8, 12 15 6 0 4 8
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment webdataset==1.0.2 numpy==2.4.6
cd "$work"

"$work/venv/bin/python" - <<'PY'
import io
import pickle
import random
import tarfile

import numpy
import webdataset

print("webdataset", webdataset.__version__, "numpy", numpy.__version__)
SHARDS, IMAGES, EPOCHS = 16, 50, 3
for shard in range(SHARDS):
    with tarfile.open(f"{shard:02d}.tar", "w") as archive:
        for image in range(IMAGES):
            member = tarfile.TarInfo(f"{shard:02d}-{image:02d}.cls")
            member.size = 2
            archive.addfile(member, io.BytesIO(b"%02d" % shard))


def dataset(**options):
    return webdataset.WebDataset("{00..15}.tar", seed=0, **options).shuffle(IMAGES, rng=random.Random(0))


def told(name, epochs):
    """Prints the shards' order in each epoch; returns by how many places an image moves from the first to the second."""
    keys = [[sample["__key__"] for sample in epoch] for epoch in epochs]
    assert all(sorted(epoch) == sorted(set(keys[0])) for epoch in keys) and len(keys[0]) == SHARDS * IMAGES
    moved = float(numpy.abs(numpy.argsort(keys[0]) - numpy.argsort(keys[1])).mean())
    orders = [sorted(range(SHARDS), key=lambda shard: place_of(epoch, shard)) for epoch in keys]
    print(f"{name}: {moved:.0f} places;", "; ".join(" ".join(map(str, order[:6])) for order in orders))
    return moved


def place_of(epoch, shard):
    """The mean place of a shard's images."""
    return numpy.mean([place for place, key in enumerate(epoch) if int(key[:2]) == shard])


plain = dataset(shardshuffle=SHARDS)
counted = dataset(shardshuffle=SHARDS, detshuffle=True)
frozen = pickle.dumps(dataset(shardshuffle=SHARDS, detshuffle=True))
assert told("shardshuffle=16", [list(plain) for _ in range(EPOCHS)]) < 60
assert told("shardshuffle=16, detshuffle=True", [list(counted) for _ in range(EPOCHS)]) > 180
assert told("the same, a copy for each epoch", [list(pickle.loads(frozen)) for _ in range(EPOCHS)]) < 60
PY
