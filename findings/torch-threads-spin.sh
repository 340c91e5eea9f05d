#!/usr/bin/env bash
# One would guess that two threads of a training which share two cores with one other busy process lose about what that process
# takes: a third, or half at worst.
# They lose nearly all. At each of the hundreds of operations of a step the threads wait for each other, and the OpenMP runtime
# that torch's wheels bring along (libgomp) lets a waiting thread spin for long before it sleeps; as threads are no more than
# cores it spins longest, and does not see that a neighbour is on one of them. The thread that is waited for is then the one that
# stands in the kernel's queue. A shorter spin (GOMP_SPINCOUNT=10000 in the environment before torch is imported, or
# OMP_WAIT_POLICY=PASSIVE, which never spins and costs a quiet machine something) or one thread keeps most of the speed.
# It matters because sweeps, and a test suite beside a training, share a small machine as a matter of course: what looks like a
# hanging training is this.
# Versions: torch 2.15.0 (its own libgomp).
# Seen 2026-11-29 (two cores of an AMD EPYC): 2,187 images/s with one thread, 52 with two, 1,161 with two that spin shortly.
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6

cat > "$work/steps.py" <<'PY'
import sys
import time

import torch
from torch import nn

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
layers = [
    layer
    for place in range(6)
    for layer in (nn.Conv2d(16 if place else 3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
images, labels = torch.rand(64, 3, 16, 16), torch.randint(10, (64,))


def step():
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


step()
start, steps = time.monotonic(), 0
while time.monotonic() - start < 6:
    step()
    steps += 1
print(round(64 * steps / (time.monotonic() - start)))
PY
cores=$(python3 -c 'import os; print(*sorted(os.sched_getaffinity(0))[:2], sep=",")')
[[ $cores == *,* ]] || { echo "needs two cores"; exit 2; }
train() { env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT "${@:2}" taskset -c "$cores" "$work/venv/bin/python" "$work/steps.py" "$1"; }

"$work/venv/bin/python" -c 'import torch; print("torch", torch.__version__)'
taskset -c "$cores" python3 -c 'while True: pass' &
trap 'kill %1; rm -rf "$work"' EXIT
one=$(train 1 A=1) two=$(train 2 A=1) short=$(train 2 GOMP_SPINCOUNT=10000)
echo "images/s beside one busy process on two cores: $one with one thread, $two with two, $short with two that spin shortly"
[ "$two" -lt $((one / 4)) ] && [ "$short" -gt $((two * 4)) ]
