#!/usr/bin/env bash
# One would guess that the `seed=0` of APGD, as torchattacks has it by default, is the seed of the attack's own starting points. At every
# call it seeds torch's generator for the whole process, and nothing puts that back. What is drawn next depends on how many of the judged
# images the network still called right, and not on the run's seed: who tunes a network, and measures its robust accuracy after each epoch,
# draws one order of images, one augmentation and one dropout in all epochs after the first, and in all runs, whatever seed they began
# with. FAB and Square do so, too; PGD does not. Nothing is said.
# It matters because the spread over seeds is then that of the first epoch alone, and because a training that is measured is another one
# than the same training that is not. `torch.random.fork_rng()` around the attack keeps it apart.
# Versions: torchattacks 3.5.1, torch 2.15.0, scikit-learn 1.9.1, scipy 1.17.1, numpy 2.4.6.
# Source: perturb (torchattacks/attacks/apgd.py, fab.py, square.py), torch.random.manual_seed(self.seed).
# Seen 2026-11-30 (orders of the training images in 3 runs of 5 epochs, how many of 15 are different; first rows of each run's last epoch):
#   no attack          15; 270 678 635, 324 467 866, 969 728 408
#   PGD                15; 959 396 141, 779 557 12, 757 827 531
#   APGD               4; 970 238 7, 970 238 7, 970 238 7
#   FAB                4; 226 331 747, 226 331 747, 226 331 747
#   Square             4; 662 264 425, 662 264 425, 662 264 425
#   APGD in fork_rng   15; 270 678 635, 324 467 866, 969 728 408
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torchattacks==3.5.1 torch==2.15.0 torchvision==0.29.2 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
import copy
from importlib.metadata import version

import torch
import torchattacks
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

print(*(f"{name} {version(name)}" for name in ("torchattacks", "torch", "scikit-learn")))
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
train = TensorDataset(images[:1000], labels[:1000], torch.arange(1000))
torch.manual_seed(0)
trained = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
optimizer = torch.optim.Adam(trained.parameters(), 0.003)
for _ in range(30):
    for rows in torch.randperm(1000).split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(images[rows]), labels[rows]).backward()
        optimizer.step()
right = (trained.eval()(images[1000:]).argmax(1) == labels[1000:]).nonzero()[:32, 0] + 1000
judged = images[right], labels[right]


def run(seed, attack):
    """The order of the images in each epoch of tuning."""
    torch.manual_seed(seed)
    network = copy.deepcopy(trained)
    optimizer = torch.optim.SGD(network.parameters(), 0.001)
    orders = []
    for _ in range(5):
        order = []
        network.train()
        for pixels, truth, rows in DataLoader(train, batch_size=100, shuffle=True):
            order += rows.tolist()
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pixels), truth).backward()
            optimizer.step()
        orders.append(tuple(order))
        network.eval()
        if attack is not None:
            attack(network)(*judged)
    return orders


WAYS = {
    "no attack": None,
    "PGD": lambda network: torchattacks.PGD(network, eps=0.1, alpha=0.02, steps=3),
    "APGD": lambda network: torchattacks.APGD(network, eps=0.1, steps=3),
    "FAB": lambda network: torchattacks.FAB(network, eps=0.1, steps=3, n_classes=10),
    "Square": lambda network: torchattacks.Square(network, eps=0.1, n_queries=3),
    "APGD in fork_rng": lambda network: apart(torchattacks.APGD(network, eps=0.1, steps=3)),
}


def apart(attack):
    def attacked(*batch):
        with torch.random.fork_rng():
            return attack(*batch)

    return attacked


plain = None
for name, attack in WAYS.items():
    runs = [run(seed, attack) for seed in (1, 2, 3)]
    different = len({order for orders in runs for order in orders})
    plain = plain or runs
    print(f"{name}: {different} different orders in 3 runs of 5 epochs; as without an attack: {runs == plain};",
          "first rows of the last epoch:", *(" ".join(map(str, orders[-1][:4])) + ";" for orders in runs))
    assert different == (4 if name in ("APGD", "FAB", "Square") else 15)
    assert (runs == plain) == (name in ("no attack", "APGD in fork_rng"))
PY
