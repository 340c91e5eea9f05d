"""Random numbers by name: every draw comes from a `Stream`, so adding one draw never moves another.

>>> Stream(0).child("holdout").permutation(5).tolist() == Stream(0).child("holdout").permutation(5).tolist()
True
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """A named, independent source of random numbers. The same seed and path give the same numbers, always.

    Draws are made on the CPU, so they do not depend on the device that later uses them.
    """

    seed: int
    path: str = ""

    def child(self, name: str) -> "Stream":
        """The stream called `name` below this one; streams of different names are independent."""
        return Stream(self.seed, f"{self.path}/{name}")

    def generator(self, device: str | torch.device = "cpu") -> torch.Generator:
        """A new generator on `device`, seeded by a hash of seed and path."""
        digest = hashlib.sha256(f"{self.seed}{self.path}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def permutation(self, count: int) -> Tensor:
        """(count,) int64: the numbers 0 … count-1 in random order."""
        return torch.randperm(count, generator=self.generator())


@contextmanager
def seeded(stream: Stream) -> Iterator[None]:
    """Layers made inside draw their starting weights from `stream` and from nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream.generator().initial_seed())
        yield
