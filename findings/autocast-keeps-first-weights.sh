#!/usr/bin/env bash
# One would guess that torch.autocast only chooses the precision of each operation, so that it does not matter whether the
# block stands around one step or around the whole loop.
# Weights are converted to bfloat16 once a block and kept until it ends. In a loop inside one block the optimizer moves the
# weights, but the network goes on computing with those it began with: the loss stands still, without a warning. Under
# no_grad, two state dicts loaded one after the other into one network give a mixture: the second one's batch norms on the
# first one's convolutions. Blocks of their own and cache_enabled=False cure both; inference_mode cures the second.
# It matters because a defense is judged by such pairs (the infected weights, then the purified ones, in one network), and
# because inner loops (a trigger, a mask, a teacher) are often written inside one block.
# Versions: torch 2.15.0, on the CPU. Source: the weight cache of torch.autocast (its argument cache_enabled).
# Seen 2026-11-29:
#   one block around 5 steps   0.966 0.966 0.966 0.966 0.966, while the weights moved by up to 0.09
#   a block around each step   0.966 0.941 0.917 0.896 0.874
#   infected, then purified weights in one network, one block: called as the purified ones call: 0 of 64 images
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6

"$work/venv/bin/python" - <<'PY'
import copy

import torch
from torch import nn
from torch.nn import functional as F

print("torch", torch.__version__)


def bf16(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def fresh():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(8, 4), torch.randint(3, (8,))


def step(loss, optimizer):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return round(float(loss.detach()), 3)


model, optimizer, features, labels = fresh()
start = model.weight.detach().clone()
with bf16():
    around_all = [step(F.cross_entropy(model(features), labels), optimizer) for _ in range(5)]
moved = float((model.weight.detach() - start).abs().max())

model, optimizer, features, labels = fresh()
around_each = []
for _ in range(5):
    with bf16():
        loss = F.cross_entropy(model(features), labels)
    around_each.append(step(loss, optimizer))
print("one block around 5 steps:", *around_all, f"(the weights moved by up to {moved:.2f})")
print("a block around each step:", *around_each)

torch.manual_seed(0)
infected = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
purified = copy.deepcopy(infected)
with torch.no_grad():
    for parameter in purified.parameters():
        parameter.add_(torch.randn_like(parameter))
images = torch.rand(64, 3, 8, 8)


def second_of_two(mode, **options):
    """The logits of the purified weights, loaded into a network that has just run with the infected ones."""
    network = copy.deepcopy(infected)
    with mode(), bf16(**options):
        network(images)
        network.load_state_dict(purified.state_dict())
        return network(images)


with torch.no_grad(), bf16():
    truth = purified(images)
    before = infected(images)
mixture = second_of_two(torch.no_grad)
alike = int((mixture.argmax(1) == truth.argmax(1)).sum())
print(f"both in one network and one block, no_grad: {alike} of 64 images are called as the purified weights call them")
print("  equal to the purified logits:", torch.equal(mixture, truth), " to the infected:", torch.equal(mixture, before))
cured = [second_of_two(torch.no_grad, cache_enabled=False), second_of_two(torch.inference_mode)]
print("  with cache_enabled=False, in inference_mode:", *(torch.equal(logits, truth) for logits in cured))

assert len(set(around_all)) == 1 and moved > 0.01
assert around_each == sorted(around_each, reverse=True) and around_each[-1] < around_each[0]
assert not torch.equal(mixture, truth) and not torch.equal(mixture, before)
assert all(torch.equal(logits, truth) for logits in cured)
PY
