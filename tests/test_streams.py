"""Streams: the same name gives the same numbers, another name others."""

import torch

from backdoorbench.streams import Stream


def test_a_name_always_gives_the_same_numbers() -> None:
    assert Stream(0).child("rows").permutation(6).tolist() == [4, 0, 5, 2, 3, 1]  # golden, torch's CPU generator
    assert torch.equal(Stream(3).child("a").permutation(99), Stream(3).child("a").permutation(99))


def test_names_and_seeds_are_independent() -> None:
    drawn = [s.permutation(99).tolist() for s in (Stream(0).child("a"), Stream(0).child("b"), Stream(1).child("a"))]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_a_path_is_not_a_concatenation() -> None:
    assert Stream(1, "2").permutation(50).tolist() != Stream(1).child("2").permutation(50).tolist()
    assert Stream(1).child("a").child("b") == Stream(1).child("a/b")
