"""AC and SS as defenses: what they leave out, what they train on, what they refuse (specification 4.1, 4.2).

python -m pytest tests/test_filters.py
"""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import QUICK
from torch import Tensor, nn

from backdoorbench.attacks.base import Infection
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.defenses.base import Scenario
from backdoorbench.errors import ConfigError, DataError, PairingError
from backdoorbench.pipeline import infect, plan, watch
from backdoorbench.pipeline.plan import Plan
from backdoorbench.storage.record import Finding
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit

Scene = tuple[Plan, Infection]


@pytest.fixture(scope="module")
def scene(outputs: Any) -> Scene:
    """A quickly infected small model, with the plan that made it."""
    made = plan.plan(compose([f"runtime.outputs={outputs}", "runtime.threads=1", "attack=badnets", *QUICK]))
    return made, infect.obtain(made, made.splits.test, Finding("infect", ""))[0]


def method(name: str, group: str = "defense", **changes: Any) -> Any:
    node = compose([f"{group}={name}", "dataset=digits"])[group]
    return build({**node, **changes}, group)


def scenario(scene: Scene, needs: frozenset[str], **changes: Any) -> Scenario:
    made, infection = scene
    offered: dict[str, Any] = {
        "model": copy.deepcopy(infection.model), "holdout": made.parts.holdout, "train": infection.train,
        "build": lambda stream: infect.fresh_network(made, stream), "recipe": replace(made.recipe, epochs=1),
        "stream": Stream(0).child("purify"), "device": made.device, "probe": lambda model, epoch: None,
        "note": lambda name, value: None,
    }  # fmt: skip
    return Scenario(needs, **{**offered, **changes})


def chosen_rows(scene: Scene, defense: Any) -> tuple[nn.Module, dict[str, tuple[Tensor, str]]]:
    """The purified model, and what the defense named: name -> (rows, what it takes them for)."""
    found: dict[str, tuple[Tensor, str]] = {}

    def keep(name: str, rows: Tensor, suspicion: Tensor | None, *, taken_for: str = "clean") -> None:
        found[name] = (rows, taken_for)

    return defense.purify(scenario(scene, defense.needs, inspect=keep)), found


class Fixed(nn.Module):
    """Logits that are its parameters, whatever it sees."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- filter and train anew ------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize("name", ["ac", "ss"])
def test_what_is_left_out_is_what_the_detector_flags_and_the_rest_is_trained_on(name: str, scene: Scene) -> None:
    made, infection = scene
    assert infection.train is not None
    changes = {"max_share": 0.5} if name == "ac" else {}
    detector = method(name, "detector", **changes)
    flagged = detector.examine(scenario(scene, detector.needs)).flagged
    purified, found = chosen_rows(scene, method(name, **changes))
    assert 0 < int(flagged.sum()) < len(flagged)
    assert found["left_out"][0].tolist() == flagged.nonzero()[:, 0].tolist() and found["left_out"][1] == "poisoned"
    stream = Stream(0).child("purify")
    anew = infect.fresh_network(made, stream.child("init"))
    kept = infection.train.subset((~flagged).nonzero()[:, 0])
    fit(anew, kept, replace(made.recipe, epochs=1), stream.child("train"))
    assert same(purified, anew)


@pytest.mark.wide
def test_nothing_left_out_is_an_ordinary_training_and_everything_is_refused(scene: Scene) -> None:
    made, infection = scene
    assert infection.train is not None
    purified, found = chosen_rows(scene, method("ss", remove_fraction=0.0))
    assert len(found["left_out"][0]) == 0
    anew, stream = infect.fresh_network(made, Stream(0).child("purify").child("init")), Stream(0).child("purify")
    fit(anew, infection.train, replace(made.recipe, epochs=1), stream.child("train"))
    assert same(purified, anew)
    with pytest.raises(DataError, match="of 380 training rows 0 are left to train on; expected at least 2"):
        chosen_rows(scene, method("ss", remove_fraction=1.0))


@pytest.mark.parametrize("name", ["ac", "ss"])
def test_a_recipe_that_trains_nothing_is_refused_before_any_work(name: str, outputs: Any) -> None:
    words = (f"defense={name}", "attack=none", *QUICK, "train.epochs=0", f"runtime.outputs={outputs}")
    with pytest.raises(
        ConfigError, match=f"{name} trains a fresh network by the victim's recipe, but train.epochs is 0"
    ):
        plan.plan(compose(words))


@pytest.mark.wide
@pytest.mark.parametrize("name", ["ac", "ss"])
def test_where_the_attacker_leaves_no_training_set_one_is_rebuilt_or_it_is_refused(name: str, outputs: Any) -> None:
    words = (f"defense={name}", "attack=wanet", *QUICK, f"runtime.outputs={outputs}")
    with pytest.raises(PairingError, match=f"{name} needs the training set, but wanet drives the training itself"):
        plan.plan(compose(words))
    plan.plan(compose([*words, "reconstruct=true"]))
    with pytest.raises(PairingError, match="pick a data-poisoning attack"):
        plan.plan(compose([f"defense={name}", "attack=lira", *QUICK, f"runtime.outputs={outputs}", "reconstruct=true"]))


def test_precision_and_recall_of_what_is_taken_for_poisoned() -> None:
    poisoned = torch.tensor([True, True, False, False, True])
    scores = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.8])
    rows = torch.tensor([0, 2, 4])
    found = watch.judged(rows, scores, poisoned, "poisoned")
    assert found == {"precision": 2 / 3, "recall": 2 / 3, "auc": 4 / 6}
    assert watch.judged(rows[:0], None, poisoned, "poisoned") == {"precision": None, "recall": 0, "auc": None}
    clean = torch.zeros(5, dtype=torch.bool)
    assert watch.judged(rows, scores, clean, "poisoned") == {"precision": 0, "recall": None, "auc": None}
    assert watch.judged(rows, scores, poisoned, "clean") == {"poisoned_share": 2 / 3, "auc": 4 / 6}
