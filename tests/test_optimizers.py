"""The optimisers without the compiler's wrappers: torch's numbers, and the compiler stays unimported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from backdoorbench.training import optimizers

KINDS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "fused": True},
    "Adam": {"lr": 0.1, "fused": True},
    "AdamW": {"lr": 0.1, "weight_decay": 0.01},
}


def descend(kind: type[torch.optim.Optimizer], settings: dict[str, float | bool]) -> tuple[torch.Tensor, object]:
    """Where three steps lead, the second and third by an optimiser that was stored and loaded, and its last state."""
    weight = nn.Parameter(torch.linspace(-1, 1, 7))

    def step(optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        weight.pow(4).sum().backward()
        optimizer.step()

    first, second = (kind([weight], **settings) for _ in range(2))  # type: ignore[arg-type]
    step(first)
    second.load_state_dict(first.state_dict())
    step(second)
    step(second)
    return weight.detach(), second.state_dict()["state"]


@pytest.mark.parametrize("name", KINDS)
def test_steps_and_states_are_torchs_to_the_bit(name: str) -> None:
    ours, theirs = (descend(getattr(module, name), KINDS[name]) for module in (optimizers, torch.optim))
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=0)
    assert getattr(optimizers, name).__name__ == name  # as messages and profiles print it


def test_a_step_leaves_gradients_switched_on_and_is_not_part_of_a_graph() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = optimizers.SGD([weight], lr=0.1)
    weight.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert torch.is_grad_enabled() and weight.is_leaf and weight.requires_grad


@pytest.mark.wide
def test_a_training_does_not_import_the_compiler() -> None:
    code = """
import sys, torch
from torch import nn
from backdoorbench.data.images import ImageSet
from backdoorbench.streams import Stream
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import bare_recipe

images = ImageSet(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("a", "b"))
for kind in ("sgd", "adam", "adamw"):
    recipe = bare_recipe("t", optimizer=kind, epochs=1, batch_size=2, lr=0.1, momentum=0.9, weight_decay=0.0,
                         schedule="constant", augment=None, precision="float32")
    fit(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), images, recipe, Stream(0))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_file_makes_one_of_torchs_own() -> None:
    package = Path(optimizers.__file__).parents[1]
    makes = re.compile(r"torch\.optim\.\w+\(")
    assert not [file.name for file in package.rglob("*.py") if makes.search(file.read_text(encoding="utf-8"))]
