#!/usr/bin/env bash
# One would guess that `persistent_workers=True` saves the time in which workers start and changes nothing else: order and augmentation of
# a seeded loader are the same with it. The first epoch is; from the second on the images come in another order. A loader draws a number
# for its workers whenever it makes an iterator, and with persistent workers it makes one for all epochs, so that the order of the second
# epoch is drawn from where the first left off. The number of workers, none at all included, changes no order.
# It matters because it is switched on for speed in the middle of a series, and runs of one seed are then not the same run: curves part
# after the first epoch, and what is drawn afterwards by torch's own generator, dropout and weights of a purified model's new head, is
# other too.
# Versions: torch 2.15.0, numpy 2.4.6.
# Source: _BaseDataLoaderIter.__init__ draws _base_seed, _reset does not (torch/utils/data/dataloader.py).
# Seen 2026-11-30 (orders of 6 images in three epochs; a number of torch's generator after them):
#   no worker, one, two        043521 231540 520314; 0.0223
#   one worker that persists   043521 503214 231540; 0.4556
set -euo pipefail
source "$(dirname "$0")/environment"
new_environment torch==2.15.0 numpy==2.4.6
cd "$work"

OMP_NUM_THREADS=1 "$work/venv/bin/python" - <<'PY'
import torch
from torch.utils.data import DataLoader

print("torch", torch.__version__)


def epochs(own, **options):
    torch.manual_seed(0)
    if own:
        options["generator"] = torch.Generator().manual_seed(0)
    loader = DataLoader(range(6), batch_size=6, shuffle=True, **options)
    orders = ["".join(map(str, batch.tolist())) for _ in range(3) for batch in loader]
    return orders, round(float(torch.rand(1)), 4)


for own in (False, True):
    found = {}
    for name, options in (
        ("no worker", {}),
        ("one worker", {"num_workers": 1}),
        ("two workers", {"num_workers": 2}),
        ("one worker that persists", {"num_workers": 1, "persistent_workers": True}),
    ):
        found[name] = orders, after = epochs(own, **options)
        print(f"{'own generator, ' if own else ''}{name}:", *orders, "; then", after)
    plain, persists = found["no worker"], found.pop("one worker that persists")
    assert all(other == plain for other in found.values())
    assert persists[0][0] == plain[0][0] and persists[0][1] != plain[0][1] and persists[0][2] != plain[0][2]
    assert own or persists[1] != plain[1]
PY
