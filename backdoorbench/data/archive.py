"""CIFAR's pickled archives, as torchvision fetches, checks and reads them."""

import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tarfile import TarError
from typing import Any

from filelock import FileLock
from PIL import Image

from backdoorbench.data.base import Dataset, Splits
from backdoorbench.data.pictures import Picture
from backdoorbench.data.raw import Census, Raw, Split, find_root, is_tree, resolve, some, stamp, tree, visible
from backdoorbench.data.store import load, stretch
from backdoorbench.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """An archive that torchvision knows how to fetch, check and read.

    kind    torchvision's class ("CIFAR10")
    folder  where its files lie below the root
    url     where it comes from
    census  what it holds
    """

    kind: str
    folder: str
    url: str
    census: Census

    def load(self, dataset: Dataset, cache: Path, download: bool) -> Splits:
        """The splits of the archive below the root of `dataset`, or of a `tree` there.

        download  whether to fetch the archive where the root is missing or empty
        """
        if download and dataset.root is not None:
            self.fetch(resolve(dataset.root))
        root = find_root(
            dataset,
            f"{self.folder}/, or train/ and test/ with a folder of images a class",
            lambda folder: self.is_below(folder) or is_tree(folder),
            f"Unpack {self.url} there, or correct dataset.root, or let dataset.download=true fetch it into an empty "
            f"folder.",
        )
        raw = self.raw(root) if self.is_below(root) else tree(dataset, root, ("test", "val"), census=self.census)
        return load(dataset, cache, root, raw, stretch)

    def is_below(self, root: Path) -> bool:
        return (root / self.folder).is_dir()

    def fetch(self, root: Path) -> None:
        """Downloads into `root` unless something is there already: beside first, then renamed, under a lock. Where that fails,
        nothing stays that was not there."""
        if root.exists() and (not root.is_dir() or visible(root)):
            return
        part, lock = root / ".download", root / ".download.lock"
        missing = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                try:
                    if not self.is_below(root):
                        log.info(f"fetching {self.url} into {root}")
                        self.torchvision()(str(part), download=True)
                        os.replace(part / self.folder, root / self.folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
                    lock.unlink(missing_ok=True)  # whoever waits for it looks again for what is there
        except (OSError, RuntimeError, EOFError, HTTPException, TarError) as error:
            raise DataError(
                f"{root} is empty, and fetching {self.url} failed ({error}). Connect to the network, or unpack that "
                f"archive there by hand, or set dataset.root to a folder that holds it."
            ) from None
        finally:
            with suppress(OSError):  # of the first that is not empty
                for folder in missing:
                    folder.rmdir()

    def raw(self, root: Path) -> Raw:
        folder = root / self.folder
        with os.scandir(folder) as entries:
            stamps = sorted(stamp(entry.name, entry.stat()) for entry in entries)
        return Raw(stamps, lambda: self.read(root))

    def read(self, root: Path) -> tuple[Sequence[str], Split, Split]:
        """The archive's contents, once its checksums match: pickles from elsewhere are never opened."""
        from torchvision.datasets.utils import check_integrity

        kind, folder = self.torchvision(), root / self.folder
        parts = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        if bad := [name for name, md5 in parts if not check_integrity(str(folder / name), md5)]:
            raise DataError(
                f"{folder} is incomplete: {len(bad)} of its {len(parts)} files are missing or do not match their "
                f"checksum ({some(bad)}). Remove that folder, then unpack {self.url} again, or leave dataset.root "
                f"empty and let dataset.download=true fetch it."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, over how it wrote pickles when the archive was made
            train, test = (kind(str(root), train=train) for train in (True, False))
        return train.classes, self.split(train), self.split(test)

    def split(self, part: Any) -> Split:
        names = [f"image {row} of {self.folder}" for row in range(len(part.data))]
        return Split(
            names,
            part.targets,
            lambda row, _: Picture(Image.fromarray(part.data[row])),
            lambda rows: part.data[list(rows)],
        )

    def torchvision(self) -> Any:
        import torchvision.datasets  # takes a second or more: only where something must be fetched or decoded

        return getattr(torchvision.datasets, self.kind)
