#!/usr/bin/env bash
# One would guess that a loss written under torch.autocast has the same precision on the CPU as on a GPU: losses and softmax in
# float32, convolutions and products in bfloat16.
# The CPU's list of what goes to float32 has the losses (cross_entropy, nll_loss) and lacks softmax, log_softmax,
# logsumexp, exp, log, pow, sum, norm, layer_norm and cosine_similarity, which CUDA's, XPU's and the other devices' lists have.
# A loss that is put together by hand is float32 there and bfloat16 here: probabilities above 0.998 are 1, so that -log(1.0001 - p)
# is infinite, and a thousand different entropies of confident answers are 474 numbers. cross_entropy of the same
# logits is not affected, nor is anything once the logits are made float32 first.
# It matters because defenses and detectors are written with such terms (NPD's -log(1.0001 - p), STRIP's entropies, a teacher's
# softened answers), and a run on a CPU then fails or ranks otherwise where the authors' on a GPU did not.
# Versions: torch 2.15.0, on the CPU; what a GPU does is read from the dispatcher's table of the same build, which names for
# each operation the devices with a rule of their own (aten/src/ATen/autocast_mode.cpp).
# Seen 2026-11-30:
#   rule of its own for     CUDA  CPU
#   cross_entropy_loss      no    yes   (CUDA's is that of nll_loss and log_softmax)
#   nll_loss                yes   yes
#   softmax, log_softmax, logsumexp, exp, log, pow, sum, norm, layer_norm, cosine_similarity: yes, no
#   under autocast softmax is torch.bfloat16, cross_entropy torch.float32
#   -log(1.0001 - p) at p = 0.9999: inf; of float32 logits 8.56
#   1,000 entropies: 1000 different ones of float32 logits, 474 under autocast
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import math

import torch
from torch import nn
from torch.nn import functional as F

print("torch", torch.__version__)

LOSSES = ("cross_entropy_loss", "nll_loss")
BY_HAND = (
    "softmax.int", "log_softmax.int", "logsumexp", "exp", "log", "pow.Tensor_Scalar", "sum", "norm.Scalar", "layer_norm",
    "cosine_similarity",
)


def has_rule(operation, device):
    return f"Autocast{device}: registered" in torch._C._dispatch_dump(f"aten::{operation}")


print("rule of its own for     CUDA  CPU")
for operation in (*LOSSES, *BY_HAND):
    print(f"{operation:<24}" + "".join(f"{'yes' if has_rule(operation, device) else 'no':<6}" for device in ("CUDA", "CPU")))

torch.manual_seed(0)
head = nn.Linear(10, 10, bias=False)
nn.init.eye_(head.weight)  # so that the logits are what goes in
torch.set_grad_enabled(False)


def entropies(logits):
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def missed(logits):
    return float(-(1.0001 - logits.softmax(1)[:, 0]).log())


sure = torch.zeros(1, 10)
sure[0, 0] = 11.5  # exact in bfloat16
answers = torch.randn(1000, 10).bfloat16().float()
answers[:, 0] += 7
answers = answers.bfloat16().float()
with torch.autocast("cpu", dtype=torch.bfloat16):
    kinds = head(sure).softmax(1).dtype, F.cross_entropy(head(sure), torch.tensor([0])).dtype
    under = missed(head(sure)), len(entropies(head(answers)).unique())
    mended = missed(head(sure).float()), len(entropies(head(answers).float()).unique())
print("under autocast softmax is", kinds[0], "and cross_entropy", kinds[1])
print(f"-log(1.0001 - p) at p = {float(sure.softmax(1)[0, 0]):.4f}: {under[0]:.2f}; of float32 logits {mended[0]:.2f}")
print(f"1,000 entropies: {mended[1]} different ones of float32 logits, {under[1]} under autocast")

same = (
    all(has_rule(operation, "CUDA") and not has_rule(operation, "CPU") for operation in BY_HAND)
    and all(has_rule(operation, "CPU") for operation in LOSSES)
    and kinds == (torch.bfloat16, torch.float32)
    and math.isinf(under[0]) and not math.isinf(mended[0])
    and under[1] < 600 < 900 < mended[1]
)
raise SystemExit(0 if same else "this has changed")
PY
