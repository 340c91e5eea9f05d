"""Any images of one's own, as people have them: class folders, a table, arrays, parquet or tensors, resized to a square.

What lies at the root says which (docs/data.md). Labels count class names, by default sorted, and by value where all are numbers.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

from backdoorbench.config.acts import Acts, Only
from backdoorbench.config.build import File
from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.layouts import arrays, classes, others, parquet, table, tensors, trees
from backdoorbench.data.layouts.parts import drawn, named, read_names
from backdoorbench.data.pictures import Background
from backdoorbench.data.raw import Order, Raw, find_root, split_of
from backdoorbench.data.store import load, stretch
from backdoorbench.errors import DataError, check_range, join_words

log = logging.getLogger(__name__)

Layout = Literal["auto", "tree", "classes", "table", "arrays", "parquet", "tensors"]
LAYOUTS: dict[str, ModuleType] = {  # the first two that fit are read without a question: their files are called so by nobody else
    "tensors": tensors, "tree": trees, "table": table, "arrays": arrays, "parquet": parquet, "classes": classes,
}  # fmt: skip
SURE = ("tensors", "tree")
NEEDS = "train/ and test/ with a folder of images a class, or another layout of docs/data.md"


@dataclass(frozen=True)
class Folder(Dataset):
    """All act on images and labels, of which the data set's digest is made: a key needs none.

    order        of the classes: numeric (by value where all names are numbers, else as text), text, or a list of all names
    background   what transparent pixels are laid on; refuse: an image that has some is an error
    layout       how the images lie there; auto: as what lies there says
    class_names  a file of all names in label order, one a line or JSON; null: as the data call their classes
    test_share   of the images, drawn for testing where the layout has no split of its own: the same ones for every seed
    """

    acts: ClassVar[Acts] = {"order": Only("class_names", None)}

    order: Order
    background: Background
    layout: Layout
    class_names: File | None
    test_share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("dataset.test_share", self.test_share, 0.001, 0.999)

    def load(self, cache: Path) -> Splits:
        root, layout, raw = self._listed()
        if layout != "tree":
            log.info(f"{self.name}: {root} is read as {LAYOUTS[layout].SAYS}")
            raw = replace(raw, facts={**raw.facts, "layout": layout})
        if raw.is_whole:
            log.info(
                f"{self.name}: it has no test split: {self.test_share:g} of its images are drawn, whatever the seed"
            )
            raw = drawn(raw, self.test_share, str(root))
        if self.class_names is not None:
            file = Path(self.class_names).expanduser()
            raw = named(raw, read_names(file), file)
        return load(self, cache, root, raw, stretch, background=self.background)

    def sizes(self, most: int) -> list[tuple[int, int]]:
        """As they lie there, from all over the training split; without those that cannot be read, of which `load` says why."""
        _, train, _ = self._listed()[2].read()
        rows = range(0, len(train.labels), -(-len(train.labels) // most) or 1)
        found = []
        for row in rows:
            with suppress(Exception):  # Pillow raises a dozen kinds over broken files
                found.append(train.image(row, self.background).image.size)
        return found

    def _listed(self) -> tuple[Path, str, Raw]:
        """The root, its layout, and what lies there."""
        root = find_root(
            self,
            NEEDS,
            lambda root: bool(fitting(root)),
            others.remedy,
            may_be_file=True,
            is_part=lambda root: bool(split_of(root.name)) or classes.holds_images(root),
        )
        layout = self.layout if self.layout != "auto" else recognised(root)
        order: Order = self.order if self.class_names is None else "numeric"
        raw: Raw = LAYOUTS[layout].read(self, root, order)
        return root, layout, raw


def fitting(root: Path) -> list[str]:
    """The layouts that what lies at `root` may be; train/ and test/ without folders in them, only where it is no other."""
    found = [name for name, layout in LAYOUTS.items() if layout.fits(root)]
    return found if trees.has_classes(root) else [name for name in found if name != "tree"] or found


def recognised(root: Path) -> str:
    """The layout at `root`; DataError where it may be several."""
    found = fitting(root)
    if len(found) > 1 and found[0] not in SURE:
        choices = [f"dataset.layout={name}" for name in found]
        raise DataError(
            f"dataset.root is {root}, which may be {join_words([LAYOUTS[name].SAYS for name in found], 'or')}. Say which "
            f"it is with {join_words(choices, 'or')}."
        )
    return found[0]
