#!/usr/bin/env bash
# One would guess that ActivationDefence of ART flags the small cluster of a class where clusters look poisoned, by the features that
# the classifier reads.
# 1. Of a network of torch it reads the logits: the last of the network's children, which is the classifier itself, where of a
#    network of Keras it leaves that out. SpectralSignatureDefense does the same. Ten classes are ten numbers, and nothing is reduced.
# 2. By "silhouette-scores", where it finds poison it flags the whole class: the rows of the larger cluster are never assigned, and
#    keep what lay in that memory (np.empty); its summary of poisonous clusters says 0 all the same.
# 3. By "relative-size" it raises a ValueError under numpy 2 as soon as one class has no small cluster, in the report that it writes.
# 4. By "smaller", the default, it flags the smaller cluster of every class, of a clean model, too.
# It matters because the TPR of such a detector is 100 %, and its false alarms are all clean rows of the classes that it names; a
# table that has only the TPR, or "poison removed", is misled, and so is a training on what is left.
# A network whose head is registered before its body (below) gives it the features.
# Versions: adversarial-robustness-toolbox 1.20.1, torch 2.15.0, scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6, packaging 26.3. Source:
# analyze_by_silhouette_score (clean_clusters is set to the poisonous ones) and analyze_by_relative_size (cluster_id in a tuple of arrays) of
# art/defences/detector/poison/clustering_analyzer.py; _get_activations of activation_defence.py; get_layers of
# art/estimators/classification/pytorch.py, beside _get_layers of keras.py.
# Seen 2026-11-30 (digits, 60 of 1,200 rows with a white corner called 0, which are a third of that class's 179):
#   activations read: (1200, 10), equal to the logits; (1200, 64) with the head first
#   silhouette-scores: 179 of 179 rows of class 0 flagged, of which its smaller cluster holds some 40; poisonous clusters in the summary: 0
#   the same with memory that holds 7: 7.0 for rows of the larger cluster
#   relative-size: ValueError, the truth value of an empty array is ambiguous
#   smaller: rows of all ten classes flagged
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment adversarial-robustness-toolbox==1.20.1 torch==2.15.0 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 packaging==26.3

"$work/venv/bin/python" -W ignore - <<'PY'
import art
import numpy as np
import sklearn
import torch
from art.defences.detector.poison import ActivationDefence, clustering_analyzer
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

print("art", art.__version__, "torch", torch.__version__, "scikit-learn", sklearn.__version__, "numpy", np.__version__)
torch.set_num_threads(1)
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images[:1200] / 16, dtype=torch.float32)[:, None]
labels = torch.tensor(digits.target[:1200])
poisoned = (labels != 0).nonzero()[:60, 0]
images[poisoned, :, -3:, -3:] = 1
labels[poisoned] = 0
network = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)
)
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
for _ in range(12):
    for rows in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
        optimizer.step()
network.eval()


class HeadFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = network[-1], network[:-1]

    def forward(self, shown):
        return self.head(self.body(shown))


def defence(module):
    made = PyTorchClassifier(module, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0, 1), device_type="cpu")
    return made, ActivationDefence(made, images.numpy(), np.eye(10)[labels])


def detect(module, rule):
    np.random.seed(0)
    _, made = defence(module)
    _, clean = made.detect_poison(nb_clusters=2, nb_dims=10, reduce="PCA", cluster_analysis=rule)
    return np.array(clean) == 0, made


classifier, plain = defence(network)
read = plain._get_activations()
assert read.shape == (1200, 10) and np.array_equal(read, classifier.predict(images.numpy(), batch_size=128))
features = defence(HeadFirst())[1]._get_activations().shape
print("activations read:", read.shape, "which are the logits;", features, "with the head first")
assert features == (1200, 64)

of_zero = labels.numpy() == 0
for name, module in (("as it is", network), ("head first", HeadFirst())):
    flagged, made = detect(module, "silhouette-scores")
    small = int(np.bincount(made.clusters_by_class[0]).min())
    print(f"silhouette-scores, {name}: {int(flagged[of_zero].sum())} of {int(of_zero.sum())} rows of class 0 are flagged,", end=" ")
    print(f"its smaller cluster holds {small}; poisonous clusters in the summary: {int(made.poisonous_clusters.sum())}")
    assert small < 70 and flagged[of_zero].sum() > small + 60 and made.poisonous_clusters.sum() == 0

clusters, points = made.clusters_by_class[:1], made.red_activations_by_class[:1]
empty = np.empty
np.empty = lambda shape, *rest, **more: empty(shape, *rest, **more) if rest or more else np.full(shape, 7.0)
assigned, _, _ = clustering_analyzer.ClusteringAnalyzer().analyze_by_silhouette_score(clusters, points)
np.empty = empty
larger = np.bincount(clusters[0]).argmax()
unassigned = sorted(set(np.array(assigned[0], dtype=float)[clusters[0] == larger].tolist()))
print("rows of the larger cluster where memory holds 7:", unassigned)
assert unassigned == [7.0]

try:
    detect(HeadFirst(), "relative-size")
    raised = ""
except ValueError as error:
    raised = str(error)
print("relative-size:", raised)
assert raised.startswith("The truth value of an empty array is ambiguous")

flagged, _ = detect(HeadFirst(), "smaller")
classes = sorted(set(labels[torch.from_numpy(flagged)].tolist()))
print("smaller: rows are flagged of the classes", classes)
assert classes == list(range(10))
PY
