"""ImageNet-12: twelve classes of ImageNet (Russakovsky et al. 2015), as small backdoor studies at full resolution use.

Read from an ImageNet tree (train/<WordNet id>/, val/<WordNet id>/; classes beyond the twelve are not even listed) or
from a tree of just these classes. Unless `classes` names others, they are the first twelve by WordNet id: tench,
goldfish, great white shark, tiger shark, hammerhead, electric ray, stingray, cock, hen, ostrich, brambling, goldfinch.
Stored as the centred square, shorter side `size` (256); `crop` (224) is what the network sees.
"""

from dataclasses import dataclass
from pathlib import Path

from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.raw import find_root, is_tree, some, tree
from backdoorbench.data.store import centre, load
from backdoorbench.errors import DataError

CLASSES = 12
LAYOUT = "train/ and val/ with a folder of images a class, named by WordNet id"


@dataclass(frozen=True)
class Imagenet12(Dataset):
    """classes: folder names in label order; null: the first twelve, sorted."""

    classes: tuple[str, ...] | None

    def load(self, cache: Path) -> Splits:
        root = find_root(self, LAYOUT, is_tree)
        return load(self, cache, root, tree(self, root, ("val", "test"), chosen=self.choose), centre)

    def choose(self, present: list[str]) -> list[str]:
        """The chosen ones of the class folders that are there."""
        if self.classes is None:
            if len(present) < CLASSES:
                raise DataError(
                    f"{self.root}/train has {len(present)} class folders; {self.name} takes the first {CLASSES}. "
                    f"Add the missing ones, or name yours with dataset.classes=[…]."
                )
            return present[:CLASSES]
        if len(set(self.classes)) < max(len(self.classes), 2):
            raise DataError(f"dataset.classes is {list(self.classes)}. Name two classes or more, each once.")
        if missing := [name for name in self.classes if name not in present]:
            raise DataError(
                f"{self.root}/train has no folder {some(missing)}, which dataset.classes names; it has "
                f"{some(present)}. Correct one of the two settings."
            )
        return list(self.classes)
