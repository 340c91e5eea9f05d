#!/usr/bin/env bash
# One would guess that STRIP of ART measures what STRIP measures: the entropy of each prediction, over the images that are laid on
# an input. Of its table of predictions, a row an overlay and a column a class, it takes each column, scales it to a sum of 1, and
# adds up the columns' entropies (scipy.stats.entropy with axis=0): how evenly a class's chances are spread over the overlays. A
# network that gives every image one class with 0.9991 has the same value, the largest that exists, as one that is undecided about all
# of them; one that calls every overlay another class, and is sure of each, has a low one.
# It matters because ART's STRIP stands beside others in tables: its order is not that of the paper's entropy (-sum p log2 p of each
# prediction, then the mean over overlays), which is lowest for the first and the last, and highest for the second.
# It reads what the classifier returns for probabilities, so a network that ends in logits needs a softmax: of logits it raises.
# Versions: adversarial-robustness-toolbox 1.20.1, torch 2.15.0, scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6, packaging 26.3. Source:
# STRIPMixin.predict and mitigate (art/estimators/poison_mitigation/strip/strip.py).
# Seen 2026-11-30 (20 overlays of 10 classes; the threshold that mitigate sets, which is the mean of its entropies here, and the paper's entropy):
#   0.9991 for one class under all overlays     2.161   0.013
#   0.1 for every class under all overlays      2.161   3.322
#   each overlay calls another of ten classes   0.500   0.000
#   logits                                      ValueError, the data contains non-finite values
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment adversarial-robustness-toolbox==1.20.1 torch==2.15.0 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 packaging==26.3

"$work/venv/bin/python" -W ignore - 2>"$work/bars" <<'PY' || { tail -5 "$work/bars"; exit 1; }
import art
import numpy as np
import scipy
import torch
from art.defences.transformer.poisoning import STRIP
from art.estimators.classification import PyTorchClassifier
from torch import nn

print("art", art.__version__, "torch", torch.__version__, "scipy", scipy.__version__)
torch.set_num_threads(1)
OVERLAYS, CLASSES = 20, 10
images = np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)


class Table(nn.Module):
    """Gives the overlays of an input the rows of one table, and hardly looks at what they show."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows, dtype=torch.float32))

    def forward(self, x):
        return self.rows[torch.arange(len(x)) % len(self.rows)] + 1e-5 * x.flatten(1)[:, :CLASSES]


def threshold(rows):
    """The mean over six inputs, whose entropies are nearly one."""
    classifier = PyTorchClassifier(Table(rows), nn.CrossEntropyLoss(), (1, 8, 8), CLASSES, clip_values=(0, 1), device_type="cpu")
    defended = STRIP(classifier)(num_samples=OVERLAYS, false_acceptance_rate=0.5)
    defended.mitigate(images)
    return float(defended.entropy_threshold)


ten = np.eye(CLASSES)
sure = np.tile(np.where(ten[0] == 1, 0.9991, 0.0001), (OVERLAYS, 1))
even = np.full((OVERLAYS, CLASSES), 0.1)
scattered = ten[np.arange(OVERLAYS) % CLASSES]
for name, rows, expected in (("sure", sure, (2.161, 0.013)), ("undecided", even, (2.161, 3.322)), ("scattered", scattered, (0.5, 0.0))):
    found = threshold(rows), abs(float(-(rows * np.log2(rows + 1e-12)).sum(1).mean()))
    print(f"{name:<9} ART {found[0]:.3f}, paper {found[1]:.3f}")
    assert np.allclose(found, expected, atol=5e-3)
try:
    threshold(np.random.default_rng(1).normal(0, 5, (OVERLAYS, CLASSES)))
    raised = ""
except ValueError as error:
    raised = str(error)
print("of logits:", raised)
assert raised == "The data contains non-finite values."
PY
