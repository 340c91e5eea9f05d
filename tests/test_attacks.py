"""Attacks: which rows they alter, how many, what they call them. That they take on digits is in the contract, test_contract.py."""

from typing import Any

import pytest
import torch

from backdoorbench.attacks.base import DataAttack
from backdoorbench.config.build import build
from backdoorbench.config.compose import option
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.shapes import to_bytes, to_float
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Stored, make_target
from backdoorbench.triggers.patch import Patch


def attack(**changes: Any) -> DataAttack:
    built: DataAttack = build({**option("attack", "badnets"), **changes}, "attack")
    return built


def white(images: ImageSet) -> Stored:
    mask = torch.zeros(1, images.size, images.size)
    mask[:, -3:, -3:] = 1
    return Stored(Patch(torch.ones(3, images.size, images.size), mask))


def poison(images: ImageSet, **changes: Any) -> tuple[ImageSet, torch.Tensor, dict[str, int]]:
    made = attack(**changes).poison(images, white(images), Stream(0))
    return made.train, made.poisoned, made.counts


@pytest.mark.parametrize("rate", [0.005, 0.1, 0.33, 1.0])
def test_the_count_is_the_rounded_share(images: ImageSet, rate: float) -> None:
    train, poisoned, counts = poison(images, poison_rate=rate)
    assert int(poisoned.sum()) == counts["poisoned"] == counts["requested"] == round(rate * 120)
    changed = (train.images != images.images).flatten(1).any(1) | (train.labels != images.labels)
    assert not (changed & ~poisoned).any()  # untouched rows are bit-identical
    assert (train.labels[poisoned] == 0).all()


def test_poisoned_rows_are_the_triggered_images_rounded(images: ImageSet) -> None:
    train, poisoned, _ = poison(images, poison_rate=0.2)
    expected = to_bytes(white(images)(to_float(images.images[poisoned])))
    assert torch.equal(train.images[poisoned], expected)
    assert (train.images[poisoned][:, :, -3:, -3:] == 255).all()


def test_the_same_seed_draws_the_same_rows(images: ImageSet) -> None:
    first, second = poison(images), poison(images)
    assert torch.equal(first[1], second[1]) and torch.equal(first[0].images, second[0].images)
    other = attack().poison(images, white(images), Stream(1)).poisoned
    assert not torch.equal(first[1], other)


def test_the_target_class_can_be_left_out(images: ImageSet) -> None:
    _, poisoned, counts = poison(images, poison_rate=0.5, include_target_class=False)
    assert counts["poisoned_of_target_class"] == 0 and not (images.labels[poisoned] == 0).any()
    assert poison(images, poison_rate=0.5)[2]["poisoned_of_target_class"] > 0


def test_a_rate_may_count_from_the_target_class(images: ImageSet) -> None:
    assert poison(images, rate_of="target_class", poison_rate=0.5)[2]["poisoned"] == 6  # of class 0's 12 images


def test_append_keeps_every_clean_row(images: ImageSet) -> None:
    train, poisoned, counts = poison(images, mode="append", poison_rate=0.2)
    assert counts["poisoned"] == 30 and len(train) == 150  # 30 of the 150 the victim sees
    assert torch.equal(train.images[:120], images.images) and not poisoned[:120].any() and poisoned[120:].all()


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_every_row_knows_where_it_comes_from_and_what_it_is(images: ImageSet, mode: str) -> None:
    settings = {"mapping": "source_specific", "sources": [3, 4], "poison_rate": 0.1, "cover_rate": 0.2}
    made = attack(**settings, mode=mode).poison(images, white(images), Stream(0))
    clean = images.subset(made.source)
    assert torch.equal(made.train.labels[~made.poisoned], clean.labels[~made.poisoned])
    untouched = ~(made.poisoned | made.covered)
    assert torch.equal(made.train.images[untouched], clean.images[untouched])
    shown = to_bytes(white(images)(to_float(clean.images[~untouched])))
    assert torch.equal(made.train.images[~untouched], shown) and not (made.poisoned & made.covered).any()
    assert int(made.poisoned.sum()) == made.counts["poisoned"] and int(made.covered.sum()) == made.counts["cover"] == 24


def test_all_to_all_adds_one(images: ImageSet) -> None:
    train, poisoned, _ = poison(images, mapping="all_to_all", poison_rate=0.3)
    assert torch.equal(train.labels[poisoned], (images.labels[poisoned] + 1) % 10)


def test_source_specific_takes_sources_and_covers_others(images: ImageSet) -> None:
    changes = {"mapping": "source_specific", "sources": [3, 4], "poison_rate": 0.1, "cover_rate": 0.2}
    train, poisoned, counts = poison(images, **changes)
    assert set(images.labels[poisoned].tolist()) <= {3, 4} and (train.labels[poisoned] == 0).all()
    covers = (train.images != images.images).flatten(1).any(1) & ~poisoned
    assert counts["cover"] == 24 and int(covers.sum()) >= 20  # the wave may hold a white corner already
    assert torch.equal(train.labels[covers], images.labels[covers])
    assert not set(images.labels[covers].tolist()) & {0, 3, 4}


def test_an_impossible_rate_names_the_largest(images: ImageSet) -> None:
    with pytest.raises(ConfigError) as caught:
        poison(images, mapping="source_specific", sources=[3], poison_rate=0.2)
    assert str(caught.value) == (
        "attack.poison_rate=0.2 asks for 24 rows, but only 12 of the 120 training images may be poisoned. The largest rate "
        "possible here is 0.1."
    )


@pytest.mark.parametrize(
    ("mapping", "sources", "eligible"), [("all_to_one", (), 9), ("all_to_all", (), 10), ("source_specific", (1, 2), 2)]
)
def test_eligible_rows_never_keep_their_label(mapping: str, sources: tuple[int, ...], eligible: int) -> None:
    true = torch.arange(10)
    target = make_target(mapping, 0, sources, 10)
    rows = target.is_eligible(true)
    assert int(rows.sum()) == eligible
    assert (target.label(true)[rows] != true[rows]).all()
    assert true.tolist() == list(range(10))
