#!/usr/bin/env bash
# One would guess that the ASR is what MulticlassAccuracy of torchmetrics gives, the share of triggered images that are called as
# labelled, where every label is the target: of a single class, its mean over classes (average="macro", the default) is that class's.
# Classes that no label has, but some call, count too, as 0. An ASR of 100 % reads 100 %; where one image of 1,000 is called
# otherwise, 49.95 %; where those that miss are called by three other classes, a quarter. So a defense that moves ten images of
# a thousand "removes" three quarters of the backdoor, and the more kinds of mistakes it leaves, the better it looks.
# recall_score(average="macro") of scikit-learn does the same, its balanced_accuracy_score does not; Accuracy(task="multiclass")
# of torchmetrics, which makes the same metric, averages otherwise and is right.
# It matters because ASR, and the accuracy of one class, are figures over images of one label.
# Versions: torchmetrics 1.9.0, torch 2.15.0, scikit-learn 1.9.1, numpy 2.4.6.
# Source: _adjust_weights_safe_divide (torchmetrics/utilities/compute.py), which leaves out classes without true positives, false positives and
# false negatives.
# Seen 2026-11-30 (images of 1,000 that miss; share that is called the target; MulticlassAccuracy(10), recall_score, balanced_accuracy_score,
# Accuracy(task="multiclass", num_classes=10)):
#   0                        1.000   1.0000 1.0000 1.0000 1.0000
#   1                        0.999   0.4995 0.4995 0.9990 0.9990
#   10 called one class      0.990   0.4950 0.4950 0.9900 0.9900
#   10 called three classes  0.990   0.2475 0.2475 0.9900 0.9900
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torchmetrics==1.9.0 torch==2.15.0 scikit-learn==1.9.1 numpy==2.4.6

"$work/venv/bin/python" -W ignore - <<'PY'
import sklearn
import torch
import torchmetrics
from sklearn.metrics import balanced_accuracy_score, recall_score
from torchmetrics import Accuracy
from torchmetrics.classification import MulticlassAccuracy

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__, "scikit-learn", sklearn.__version__)
TARGET, IMAGES = 0, 1000
labels = torch.full((IMAGES,), TARGET)
METRICS = {
    "MulticlassAccuracy": lambda calls: MulticlassAccuracy(10)(calls, labels),
    "recall_score": lambda calls: recall_score(labels, calls, average="macro"),
    "balanced_accuracy_score": lambda calls: balanced_accuracy_score(labels, calls),
    "Accuracy": lambda calls: Accuracy(task="multiclass", num_classes=10)(calls, labels),
}
MISSES = {"0": [], "1": [3], "10 called one class": [3] * 10, "10 called three classes": [3] * 5 + [4] * 3 + [7] * 2}

for name, others in MISSES.items():
    calls = labels.clone()
    calls[: len(others)] = torch.tensor(others, dtype=torch.long)
    share = float((calls == TARGET).double().mean())
    found = {metric: round(float(judge(calls)), 4) for metric, judge in METRICS.items()}
    print(f"{name} of {IMAGES} miss: {share:.3f} are called the target;", *(f"{key} {value:.4f}" for key, value in found.items()))
    expected = round(share / (1 + len(set(others))), 4)
    assert abs(found["MulticlassAccuracy"] - expected) < 2e-4 and abs(found["recall_score"] - expected) < 2e-4
    assert abs(found["balanced_accuracy_score"] - share) < 2e-4 and abs(found["Accuracy"] - share) < 2e-4
PY
