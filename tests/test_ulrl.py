"""ULRL: what it calls suspect, what it redraws, and how far it unlearns.

python -m pytest tests/test_ulrl.py
"""

from typing import Any

import torch
from test_filters import Scene, method, scenario
from test_filters import scene as scene
from torch import nn

from backdoorbench.defenses.ulrl import outstanding, redraw
from backdoorbench.models.surgery import classifier_head
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
