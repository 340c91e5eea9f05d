#!/usr/bin/env bash
# One would guess that torch's compiler is loaded by those who compile. The first optimiser of a process loads it: its methods are
# wrapped by `torch._disable_dynamo`, and the wrapper imports torch._dynamo when it is first called, which adding a parameter group does.
# It matters because every training pays for it, on a CPU too, though it compiles nothing: some 150 MiB and a second, which short
# runs and many processes side by side feel. The wrapped function underneath (`__wrapped__`) does the same steps without.
# Versions: torch 2.15.0.
# Seen 2026-11-29: loaded by the first torch.optim.SGD, 153 MiB more than before; a bare parameter and its gradient load nothing.
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6

cat > "$work/first.py" <<'PY'
import sys

import torch


def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmRSS"))


weight = torch.nn.Parameter(torch.ones(1))
weight.sum().backward()
before, modest = "torch._dynamo" in sys.modules, resident()
torch.optim.SGD([weight], lr=0.1)
print(before, "torch._dynamo" in sys.modules, resident() - modest)
PY
read -r before after grown <<< "$("$work/venv/bin/python" "$work/first.py")"
echo "the compiler is loaded before an optimiser: $before, after: $after; $grown MiB more"
[ "$before" = False ] && [ "$after" = True ] && [ "$grown" -gt 50 ]
