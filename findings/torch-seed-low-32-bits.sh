#!/usr/bin/env bash
# One would guess that two seeds which torch.manual_seed accepts, up to 64 bits, give two streams of random numbers; numpy's
# do, and initial_seed() reports them as different.
# On the CPU only the low 32 bits count: seeds that differ by a multiple of 2**32 draw the same permutations, the same noise
# and the same initial weights.
# It matters because experiments derive seeds: (run << 32) + fold repeats the same folds in every run, so that "five seeds"
# have a spread of zero; and of streams seeded by a long hash, 77,163 suffice for an even chance that two are the same.
# Versions: torch 2.15.0, numpy 2.4.6. Source: ATen/core/MT19937RNGEngine.h, init_with_uint32, which torch.Generator uses.
# Seen 2026-11-29 (three numbers each):
#   torch seed 5            0.8303 0.1261 0.9075    poisoned rows [1, 3, 0, 4, 2]
#   torch seed 5 + 2**32    0.8303 0.1261 0.9075    poisoned rows [1, 3, 0, 4, 2]
#   numpy seed 5            0.805 0.8079 0.5153
#   numpy seed 5 + 2**32    0.7742 0.4707 0.6959
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import math

import numpy as np
import torch
from torch import nn

print("torch", torch.__version__, "numpy", np.__version__)
SEEDS = [5, 5 + 2**32, 5 + 7 * 2**32, 5 + 2**62]


def draws(seed):
    def generator():
        return torch.Generator().manual_seed(seed)

    torch.manual_seed(seed)
    assert torch.initial_seed() == seed == generator().initial_seed()
    return {
        "uniform": torch.rand(3, generator=generator()),
        "noise": torch.randn(100, generator=generator()),
        "rows": torch.randperm(5, generator=generator()),
        "weights": nn.Conv2d(3, 8, 3).weight.detach(),
    }


first = draws(SEEDS[0])
for seed in SEEDS:
    here = draws(seed)
    same = all(torch.equal(here[kind], first[kind]) for kind in first)
    numbers = " ".join(f"{value:.4f}" for value in here["uniform"].tolist())
    print(f"torch seed {seed:20}: {numbers}, rows {here['rows'].tolist()}, all as with seed 5: {same}")
    assert same
assert not torch.equal(draws(6)["uniform"], first["uniform"])
numpys = [np.random.default_rng(seed).random(3).round(4).tolist() for seed in SEEDS]
print("numpy, the same seeds:", *numpys)
assert len({str(numbers) for numbers in numpys}) == len(SEEDS)
even = math.ceil(math.sqrt(2 * math.log(2) * 2**32))
print(f"random 64-bit seeds for an even chance that two streams are the same: about {even:,}")
PY
