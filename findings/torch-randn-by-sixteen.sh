#!/usr/bin/env bash
# One would guess that a generator hands out one sequence of normal numbers, as it does of uniform ones: that 20 and 20 more are
# the 40 drawn at once, and that drawing one more leaves those before it as they were. numpy's are.
# On the CPU torch draws normal numbers by sixteens. Where a tensor holds no multiple of 16 the last sixteen are drawn anew over
# the others, so that randn(17) shares one number with randn(16); below 16 they are drawn one by one, and randn(15) shares none.
# Two draws of 20 are not one of 40 (two of 16 are one of 32). Where torch computes without AVX2 the same seed gives
# numbers that differ in their last bits, which the same numbers in AVX2 and AVX512 do not.
# It matters because noise for images, patches and masks is drawn for one image here and for a batch there: the last batch, a
# patch of 3 x 5 pixels or one image more changes noise that was meant to be the same, and a trigger that is drawn on another
# machine is not bit for bit the one a model was trained with. Keep the tensor, or draw uniform numbers.
# Versions: torch 2.15.0, numpy 2.4.6, on x86-64. Source: aten/src/ATen/native/cpu/DistributionTemplates.h, normal_fill.
# Seen 2026-11-30:
#                                  rand  randn  numpy's normal
#   16 begin as 17 do              yes   no     yes
#   15 begin as 16 do              yes   no     yes
#   two of 20 are one of 40        yes   no     yes
#   two of 16 are one of 32        yes   yes    yes
#   of 17 numbers 1 is where 16 have it
#   1,000 numbers without AVX2: 366 others, by up to 1.6e-06
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6

cat > "$work/draws.py" <<'PY'
import sys

import torch

torch.save(torch.randn(1000, generator=torch.Generator().manual_seed(5)), sys.argv[1])
PY
"$work/venv/bin/python" "$work/draws.py" "$work/here.pt"
ATEN_CPU_CAPABILITY=default "$work/venv/bin/python" "$work/draws.py" "$work/plain.pt"

"$work/venv/bin/python" - "$work" <<'PY'
import sys

import numpy as np
import torch

print("torch", torch.__version__, "numpy", np.__version__, "on", torch.backends.cpu.get_cpu_capability())


def torchs(draw):
    generator = torch.Generator().manual_seed(5)
    return lambda count: draw(count, generator=generator)


def numpys():
    generator = np.random.default_rng(5)
    return lambda count: torch.from_numpy(generator.standard_normal(count))


KINDS = {"rand": lambda: torchs(torch.rand), "randn": lambda: torchs(torch.randn), "numpy's normal": numpys}


def begins(kind, few, more):
    return torch.equal(kind()(few), kind()(more)[:few])


def adds(kind, part):
    draw = kind()
    return torch.equal(torch.cat([draw(part), draw(part)]), kind()(2 * part))


QUESTIONS = {
    "16 begin as 17 do": lambda kind: begins(kind, 16, 17),
    "15 begin as 16 do": lambda kind: begins(kind, 15, 16),
    "two of 20 are one of 40": lambda kind: adds(kind, 20),
    "two of 16 are one of 32": lambda kind: adds(kind, 16),
}
answers = {question: [ask(kind) for kind in KINDS.values()] for question, ask in QUESTIONS.items()}
print(f"{'':<29}", *(f"{name:<6}" for name in KINDS))
for question, said in answers.items():
    print(f"{question:<29}", *(f"{'yes' if yes else 'no':<6}" for yes in said))
sixteen, more = (KINDS["randn"]()(count) for count in (16, 17))
alike = int((sixteen == more[:16]).sum())
print("of 17 numbers", alike, "is where 16 have it")

here, plain = (torch.load(f"{sys.argv[1]}/{name}.pt") for name in ("here", "plain"))
apart = (here - plain).abs()
print(f"1,000 numbers without AVX2: {int((apart > 0).sum())} others, by up to {float(apart.max()):.1e}")

assert [said[0] and said[2] for said in answers.values()] == [True] * 4
assert [said[1] for said in answers.values()] == [False, False, False, True]
assert alike == 1
assert 0 < float(apart.max()) < 1e-5 or torch.backends.cpu.get_cpu_capability() == "DEFAULT"
PY
