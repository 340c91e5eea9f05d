#!/usr/bin/env bash
# One would guess that the AUROC asks for nothing but the order of scores, so that a detector's distances, norms and entropies give
# what roc_auc_score of scikit-learn gives, in whatever batches they come.
# BinaryAUROC of torchmetrics takes scores outside [0, 1] for logits and replaces them by their sigmoid, which is 1 in float32 for
# all scores above 17: distances about 100 have an AUROC of 0.50 where scikit-learn has 0.92. Each update decides for itself: of
# entropies up to 2.3, batches that happen to lie below 1 stay as they are and the others are squeezed into (0.5, 1), so that the same
# scores have another AUROC in other batches. Nothing is said.
# It matters because a detector that works is thrown away as chance, and one figure depends on the batch size.
# Versions: torchmetrics 1.9.0, torch 2.15.0, scikit-learn 1.9.1, numpy 2.4.6.
# Source: normalize_logits_if_needed (torchmetrics/utilities/compute.py), called at every update. float64 scores keep their order up to
# some 36. Ranks over their number, or scores over the largest, are taken as they are.
# Seen 2026-11-30 (scikit-learn; BinaryAUROC in one batch of 1,000, of 100, of 10; after division by the largest):
#   distances about 100   0.9209; 0.5 0.5 0.5; 0.9209
#   entropies up to 2.3   0.9209; 0.9209 0.9209 0.9161; 0.9209
#   probabilities         0.9209; 0.9209 0.9209 0.9209; 0.9209
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torchmetrics==1.9.0 torch==2.15.0 scikit-learn==1.9.1 numpy==2.4.6

"$work/venv/bin/python" -W ignore - <<'PY'
import sklearn
import torch
import torchmetrics
from sklearn.metrics import roc_auc_score
from torchmetrics.classification import BinaryAUROC

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__, "scikit-learn", sklearn.__version__)
draws = torch.Generator().manual_seed(0)
poisoned = (torch.rand(1000, generator=draws) < 0.1).long()
base = torch.randn(1000, generator=draws) + 2 * poisoned
SCORES = {
    "distances about 100": 100 + 20 * base,
    "entropies up to 2.3": 2.3 * (base - 1).sigmoid(),
    "probabilities": base.sigmoid(),
}


def auroc(scores, size):
    metric = BinaryAUROC()
    for part, truth in zip(scores.split(size), poisoned.split(size), strict=True):
        metric.update(part, truth)
    return round(float(metric.compute()), 4)


found = {}
for name, scores in SCORES.items():
    truth = round(float(roc_auc_score(poisoned, scores)), 4)
    batches = [auroc(scores, size) for size in (1000, 100, 10)]
    divided = auroc(scores / scores.max(), 10)
    found[name] = (truth, *batches)
    print(f"{name}: scikit-learn {truth:.4f}; BinaryAUROC in batches of 1000, 100, 10:", *batches, "; of the largest:", divided)
    assert truth > 0.9 and abs(divided - truth) < 2e-4 and scores.min() > 0
assert max(found["distances about 100"][1:]) < 0.6
truth, whole, _, small = found["entropies up to 2.3"]
assert abs(whole - truth) < 2e-4 and abs(small - truth) > 2e-3
assert len(set(found["probabilities"])) == 1
PY
