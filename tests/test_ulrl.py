"""ULRL: what it calls suspect, what it redraws, and how far it unlearns.

python -m pytest tests/test_ulrl.py
"""

from typing import Any

import pytest
import scenes
import torch
from scenes import agreed, network
from test_filters import Scene, method, scenario
from test_filters import scene as scene
from torch import nn

from backdoorbench.defenses.ulrl import outstanding, redraw
from backdoorbench.models.surgery import classifier_head
from backdoorbench.shapes import to_float
from backdoorbench.streams import Stream


def purify(scene: Scene, notes: dict[str, Any], **changes: Any) -> nn.Module:
    chosen = method("ulrl", **changes)
    purified: nn.Module = chosen.purify(scenario(scene, chosen.needs, note=notes.__setitem__))
    return purified


def test_rows_far_above_the_median_stand_out_the_largest_first() -> None:
    values = torch.tensor([1.0, 9.0, 1.1, 0.9, 1.2, 0.8, 1.0, 1.05, 20.0, -30.0])
    assert outstanding(values, 3.5).tolist() == [8, 1]  # what lies below the median does not
    assert outstanding(values, 1e9).tolist() == []
    assert outstanding(torch.ones(10), 3.5).tolist() == []


def test_suspect_rows_alone_are_redrawn_within_their_bound() -> None:
    head = nn.Linear(50, 10)
    with torch.no_grad():
        head.weight.fill_(9.0)
        head.bias.fill_(9.0)
    redraw(head, torch.tensor([8, 1]), Stream(0))
    drawn = head.weight.detach()[[8, 1]]
    assert drawn.abs().max() <= (2 / 50) ** 0.5 and drawn.abs().max() > 0.9 * (2 / 50) ** 0.5
    assert (head.bias.detach()[[8, 1]] == 0).all()
    others = [row for row in range(10) if row not in (8, 1)]
    assert (head.weight.detach()[others] == 9).all() and (head.bias.detach()[others] == 9).all()
    redraw(nn.Linear(50, 10, bias=False), torch.tensor([3]), Stream(0))


def test_without_suspects_and_epochs_nothing_changes(scene: Scene) -> None:
    notes: dict[str, Any] = {}
    left = purify(scene, notes, most_suspects=0, epochs=0).state_dict()
    assert notes["suspects"] == [] and len(notes["rows_moved"]) == 10
    assert all(torch.equal(value, left[name]) for name, value in scene[1].model.state_dict().items())


def test_relearning_starts_from_the_old_weights_with_the_suspects_redrawn(scene: Scene) -> None:
    notes: dict[str, Any] = {}
    left = purify(scene, notes, threshold=0.0, most_suspects=1, epochs=0, unlearning_epochs=1)
    (suspect,) = notes["suspects"]
    assert suspect == max(range(10), key=lambda row: notes["rows_moved"][row])
    before, after = classifier_head(scene[1].model).weight.detach(), classifier_head(left).weight.detach()
    assert [row for row in range(10) if not torch.equal(before[row], after[row])] == [suspect]
    plain, moved = scene[1].model.state_dict(), left.state_dict()
    assert [name for name in plain if not torch.equal(plain[name], moved[name])] == [
        "net.linear.weight",
        "net.linear.bias",
    ]


@pytest.mark.wide
def test_unlearning_ends_where_little_is_right_any_more(scene: Scene) -> None:
    """At an accuracy of 1 every first pass is the last; a clipped step moves no further than its bound."""
    short: dict[str, Any] = {}
    purify(scene, short, unlearnt_accuracy=1.0, epochs=0)
    long: dict[str, Any] = {}
    purify(scene, long, unlearnt_accuracy=0.0, unlearning_epochs=3, epochs=0)
    assert sum(short["rows_moved"]) < sum(long["rows_moved"])
    still: dict[str, Any] = {}
    purify(scene, still, clip_norm=0.0, unlearning_weight_decay=0.0, epochs=0)
    assert still["rows_moved"] == [0.0] * 10


@pytest.mark.wide
def test_suspects_are_held_away_from_their_old_rows(scene: Scene) -> None:
    old = classifier_head(scene[1].model).weight.detach()

    def cosine(alpha: float) -> float:
        notes: dict[str, Any] = {}
        left = classifier_head(
            purify(scene, notes, alpha=alpha, threshold=0.0, most_suspects=1, lr=0.05)
        ).weight.detach()
        (row,) = notes["suspects"]
        return float(nn.functional.cosine_similarity(left[row], old[row], dim=0))

    assert cosine(10.0) < cosine(0.0)


@pytest.mark.parametrize("name, clip_norm, passes", [("plain", 0.5, 2), ("plain", 20.0, 2), ("preact10", 20.0, 1)])
def test_unlearning_climbs_until_a_pass_gets_little_right(name: str, clip_norm: float, passes: int) -> None:
    """Against loops of torch's own SGD; the network stays in train mode, and a pass is judged as it goes."""
    images = agreed(network(name))
    notes: dict[str, Any] = {}
    quick: dict[str, Any] = {"batch_size": 8, "augment": None, "epochs": 0, "most_suspects": 0, "unlearning_lr": 0.03}
    scenes.purify(network(name), images, scenes.defense("ulrl", **quick, clip_norm=clip_norm), notes=notes)
    theirs, stream, shares = network(name).train(), Stream(0).child("purify").child("unlearn"), list[float]()
    before = classifier_head(theirs).weight.detach().clone()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    losses = []
    while not shares or (shares[-1] > 0.2 and len(shares) < 20):
        order = stream.child(f"pass{len(shares)}").child("epoch0").child("order").permutation(24)
        right = 0
        for rows in order.split(8):
            logits = theirs(to_float(images.images[rows]))
            loss = nn.functional.cross_entropy(logits, images.labels[rows])
            optimizer.zero_grad()
            (-loss).backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
            right += int((logits.argmax(1) == images.labels[rows]).sum())
        shares.append(right / 24)
    moved = (classifier_head(theirs).weight.detach() - before).abs().sum(1)
    assert notes["rows_moved"] == pytest.approx(moved.tolist(), rel=1e-2, abs=1e-3)
    assert losses[-1] > losses[0] and passes <= len(shares) < 20
