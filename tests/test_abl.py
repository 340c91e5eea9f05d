"""ABL: the test lines of the specification (3.1), its hole, and what ends badly.

python -m pytest tests/test_abl.py
"""

import copy
from dataclasses import replace
from typing import Any

import pytest
import scenes
import torch
from scenes import few, network, state
from test_filters import Fixed, Scene, chosen_rows, method, same, scenario
from test_filters import scene as scene
from torch.nn import functional as F

from backdoorbench.config.compose import compose
from backdoorbench.defenses.abl import trapped
from backdoorbench.errors import TrainingError
from backdoorbench.shapes import to_float
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import cut_out
from backdoorbench.training.fit import ascent, fit
from backdoorbench.training.forward import losses

SHORT = {"tuning_epochs": 2, "finetuning_epochs": 1, "unlearning_epochs": 3, "batch_size": 32}


@pytest.mark.parametrize("each", ["batch", "image"])
def test_the_trapped_losss_gradient_turns_at_the_level(each: Any) -> None:
    images, labels = torch.zeros(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64)
    model = Fixed([0.0, 0.3])
    plain = F.cross_entropy(model(images), labels)
    value = float(plain.detach())
    (expected,) = torch.autograd.grad(plain, model.logits)
    for level, sign in ((value - 0.1, 1), (value + 0.1, -1)):
        (found,) = torch.autograd.grad(trapped(level, each)(model, images, labels), model.logits)
        torch.testing.assert_close(found, sign * expected)


def test_a_batch_and_an_image_are_trapped_otherwise() -> None:
    """One image of two lies above the level, their mean does, too: the other's gradient differs."""
    images, labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    model = Fixed([2.0, 0.0]).requires_grad_(False)  # losses 0.127 and 2.127
    batch, image = trapped(0.5, "batch")(model, images, labels), trapped(0.5, "image")(model, images, labels)
    low, high = F.cross_entropy(model(images), labels, reduction="none")
    assert float(batch) == pytest.approx(float(low + high) / 2) and float(image) == pytest.approx(float(high - low) / 2)


@pytest.mark.wide
def test_as_many_rows_as_the_rate_asks_are_isolated_and_they_are_those_of_the_lowest_loss(scene: Scene) -> None:
    made, infection = scene
    assert infection.train is not None
    _, found = chosen_rows(scene, method("abl", isolation_rate=0.1, **SHORT))
    rows, taken_for = found["isolated"]
    assert len(rows) == round(0.1 * len(infection.train)) == 38 and taken_for == "poisoned"
    tuned, _ = chosen_rows(
        scene, method("abl", isolation_rate=0.0, **SHORT | {"finetuning_epochs": 0, "unlearning_epochs": 3})
    )  # the network as it stood when rows were isolated: nothing was isolated and nothing tuned
    with scenario(scene, frozenset()).autocast():
        values = losses(tuned, infection.train)
    assert set(rows.tolist()) == set(values.argsort(stable=True)[:38].tolist())


def test_ascent_raises_the_loss_of_what_is_unlearnt(scene: Scene) -> None:
    _, infection = scene
    assert infection.train is not None
    few = infection.train.subset(torch.arange(32))
    model, recipe = copy.deepcopy(infection.model), replace(scene[0].recipe, epochs=3, lr=0.01, precision="float32")
    before = float(losses(model, few).mean())
    fit(model, few, recipe, Stream(0), loss=ascent())
    assert float(losses(model, few).mean()) > before


@pytest.mark.wide
def test_without_isolation_it_is_tuning_and_ordinary_training_alone(scene: Scene) -> None:
    first, _ = chosen_rows(scene, method("abl", isolation_rate=0.0, **SHORT))
    second, _ = chosen_rows(scene, method("abl", isolation_rate=0.0, **SHORT | {"unlearning_epochs": 0}))
    assert same(first, second)


@pytest.mark.wide
def test_ascent_without_bound_is_said_and_nothing_returned(scene: Scene) -> None:
    wild = method("abl", **SHORT | {"unlearning_epochs": 60, "isolation_rate": 0.1}, unlearning_lr=1e30)
    with pytest.raises(TrainingError, match="the loss of 'abl unlearning' became"):
        wild.purify(scenario(scene, wild.needs))


def test_it_is_the_codes_loops() -> None:
    """Written out, with the authors' flooding, whose gradient is that of local ascent, and with SGD of torch's own."""
    settings: dict[str, Any] = {
        "tuning_epochs": 2, "finetuning_epochs": 2, "finetuning_milestones": [1], "unlearning_epochs": 2, "tuning_lr": 0.002,
        "finetuning_lr": 0.002, "unlearning_lr": 0.001, "isolation_rate": 0.25, "batch_size": 8, "augment": None,
    }  # fmt: skip
    model, images, stream, found = network(), few(), Stream(0).child("purify"), list[int]()
    chosen = scenes.defense("abl", **settings)
    given = scenes.scenario(model, images, chosen.needs)
    given.inspect = lambda name, rows, suspicion, **_: found.extend(rows.tolist())  # type: ignore[assignment]
    ours = chosen.purify(given)
    theirs, pixels = network(), to_float(images.images)

    def batches(name: str, epoch: int, rows: torch.Tensor) -> list[torch.Tensor]:
        order = stream.child(name).child(f"epoch{epoch}").child("order").permutation(len(rows))
        return list(rows[order].split(8))

    def sgd() -> torch.optim.SGD:
        return torch.optim.SGD(theirs.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-4, nesterov=True)

    def step(loss: torch.Tensor, optimizer: torch.optim.SGD) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    optimizer = sgd()
    for epoch in range(2):
        theirs.train()
        for rows in batches("tuning", epoch, torch.arange(24)):
            step((F.cross_entropy(theirs(pixels[rows]), images.labels[rows]) - 0.5).abs() + 0.5, optimizer)
    theirs.eval()
    values = torch.stack([F.cross_entropy(theirs(pixels[[row]]), images.labels[[row]]).detach() for row in range(24)])
    isolated, others = values.argsort()[:6].sort().values, values.argsort()[6:].sort().values
    assert found == isolated.tolist()
    optimizer, count = sgd(), 0
    theirs.train()
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.002 * 0.1**epoch
        for rows in batches("finetuning", epoch, others):
            draws = stream.child("finetuning").child("cutout").child(f"batch{count}").generator()
            holed, count = pixels[rows].clone(), count + 1
            for image, (y, x) in zip(holed, torch.randint(32, (len(rows), 2), generator=draws).tolist(), strict=True):
                image[:, max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1] = 0
            step(F.cross_entropy(theirs(holed), images.labels[rows]), optimizer)
    optimizer.param_groups[0]["lr"] = 0.001
    for epoch in range(2):
        for rows in batches("unlearning", epoch, isolated):
            step(-F.cross_entropy(theirs(pixels[rows]), images.labels[rows]), optimizer)
    for name, value in state(ours).items():
        torch.testing.assert_close(value, state(theirs)[name], rtol=1e-4, atol=5e-6, msg=name)


def test_a_hole_of_an_odd_side_lies_around_its_middle() -> None:
    gone = cut_out(torch.ones(1, 3, 6, 6), torch.tensor([[3, 2]]), 3) == 0
    assert gone[0, :, 2:5, 1:4].all() and int(gone.sum()) == 3 * 9


def test_a_hole_is_black_of_its_side_and_cut_off_at_the_border() -> None:
    images = torch.rand(3, 3, 6, 6) + 0.1
    before = images.clone()
    holed = cut_out(images, torch.tensor([[3, 2], [0, 0], [5, 5]]), 2)
    assert torch.equal(images, before)
    gone = holed == 0
    assert gone[0, :, 2:4, 1:3].all() and int(gone[0].sum()) == 3 * 4
    assert gone[1, :, 0, 0].all() and int(gone[1].sum()) == 3
    assert gone[2, :, 4:6, 4:6].all() and int(gone[2].sum()) == 3 * 4
    assert torch.equal(holed[~gone], images[~gone])


def test_the_benchmarks_rates_are_those_of_its_code() -> None:
    """Specification 3.1, column BB: 0.01, 0.01 and 1e-4, whatever its yaml says, in batches of 256, without cutout."""
    found = compose(["defense=abl", "dataset=cifar10", "experiment=backdoorbench"])["defense"]
    wanted = {"tuning_lr": 0.01, "finetuning_lr": 0.01, "unlearning_lr": 1e-4, "batch_size": 256, "cutout": 0}
    wanted |= {"tuning_epochs": 20, "finetuning_epochs": 60, "unlearning_epochs": 20, "finetuning_milestones": [40]}
    assert {name: found[name] for name in wanted} == wanted
