"""Square: the search by queries, against the paper's schedule and a search by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import QUICK
from torch import nn
from torch.nn import functional as F

from backdoorbench.after import square
from backdoorbench.after.square import Square
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline.job import Job
from backdoorbench.streams import Stream

SIDE = 16


def attack(**settings: Any) -> Square:
    return Square(**{"name": "square", "epsilon": 0.1, "share": 0.1, "images": 12, "queries": 40} | settings)


@pytest.fixture
def images() -> ImageSet:
    """Grey ones, that are to become class 1."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 196, (12, 3, SIDE, SIDE), generator=generator).to(torch.uint8)
    return ImageSet(pixels, torch.ones(12, dtype=torch.int64), ("a", "b", "c"))


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 3))
    with torch.no_grad():
        net[1].bias += torch.tensor([4.0, 0.0, 0.0])
    return net.eval()


@pytest.mark.parametrize(
    ("step", "halvings"),
    [(0, 0), (10, 0), (11, 1), (50, 1), (51, 2), (200, 2), (201, 3), (500, 3), (501, 4), (1000, 4), (1001, 5), (2001, 6)]
    + [(4001, 7), (6001, 8), (8000, 8), (8001, 9), (9999, 9)],
)  # fmt: skip
def test_a_squares_share_falls_as_in_the_paper(step: int, halvings: int) -> None:
    """Of an image so large that no side is rounded away; of a tenth of the queries each at a tenth of the way."""
    side = round(1024 * (0.8 / 2**halvings) ** 0.5)
    assert attack(share=0.8, queries=10_000).side(step, 1024) == side
    if step % 10 == 0:
        assert attack(share=0.8, queries=1000).side(step // 10, 1024) == side


def test_a_square_has_a_pixel_at_least_and_is_smaller_than_the_image() -> None:
    assert attack(share=0.0).side(0, 32) == 1 and attack(share=1.0).side(0, 32) == 31
    assert [attack(queries=10_000).side(step, 32) for step in (0, 11, 51, 201, 501, 1001, 2001)] == [
        10,
        7,
        5,
        4,
        3,
        2,
        1,
    ]


def test_the_search_by_hand(model: nn.Module, images: ImageSet) -> None:
    """Stripes; then squares on the same draws, each kept where the sum of the cross-entropies falls; no gradient is asked for."""
    asked: list[bool] = []
    model.register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    found, queries = attack().search(model, images, Stream(0).generator())
    assert queries == 40 == len(asked) and not any(asked)
    assert found.shape == (1, 3, SIDE, SIDE) and torch.allclose(found.abs(), torch.full_like(found, 0.1))

    generator, pixels = Stream(0).generator(), images.images / 255

    def drawn(*shape: int) -> torch.Tensor:
        return 0.2 * torch.randint(2, shape, generator=generator) - 0.1

    def loss(change: torch.Tensor) -> float:
        with torch.no_grad():
            return F.cross_entropy(model((pixels + change).clamp(0, 1)), images.labels, reduction="sum").item()

    change = drawn(1, 3, 1, SIDE).repeat(1, 1, SIDE, 1)
    least = [loss(change)]
    for step in range(39):
        side = attack().side(step, SIDE)
        row, column = torch.randint(SIDE - side + 1, (2,), generator=generator).tolist()
        tried = change
        while torch.equal(tried, change):
            tried = change.clone()
            tried[..., row : row + side, column : column + side] = drawn(1, 3, 1, 1)
        if loss(tried) < least[-1]:
            change = tried
        least.append(loss(change))
    assert torch.allclose(found, change) and least == sorted(least, reverse=True) and least[-1] < least[0]


def test_it_ends_once_enough_are_called_the_target(images: ImageSet) -> None:
    """Asked once where the stripes do it; never ended by fewer than 99 of 100."""

    class Always(nn.Module):
        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            right = torch.arange(len(pixels)) < self.share * len(pixels)
            return F.one_hot(right.long(), 3).float()

    assert attack().search(Always(1.0), images, Stream(0).generator())[1] == 1
    assert attack(queries=5).search(Always(0.9), images, Stream(0).generator())[1] == 5


def test_the_last_row_and_column_are_reached_and_no_query_is_of_what_was_known() -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = torch.ones(1, 3, 4, 4)
    moved = torch.zeros(4, 4)
    for _ in range(200):
        tried = square.with_square(pattern, 1, generator)
        assert not torch.equal(tried, pattern)
        moved += (tried != pattern).any(1)[0]
    assert (moved > 0).all()


def test_an_epsilon_of_zero_ends(model: nn.Module, images: ImageSet) -> None:
    found, _ = attack(epsilon=0.0, queries=5).search(model, images, Stream(0).generator())
    assert found.abs().max() == 0


@pytest.mark.parametrize("wrong", [{"epsilon": 1.5}, {"share": -0.1}, {"images": 0}, {"queries": 0}])
def test_what_is_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"after.{next(iter(wrong))} is .*; expected a number"):
        attack(**wrong)


@pytest.mark.wide
def test_its_figures_and_the_queries_that_it_took_are_in_the_record(run: Callable[..., Job]) -> None:
    words = (*QUICK, "exact.epochs=0", "after=square", "after.images=20", "after.queries=8")
    found = run("attack=badnets", "defense=none", *words).run.after
    assert set(found.figures) == {"asr_square", "asr_square_untriggered"} and 1 <= found.notes["queries"] <= 8
