"""Every path below an outputs folder, spelled once."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backdoorbench.storage.store import ASIDE


@dataclass(frozen=True)
class Outputs:
    """The folder of records and caches, `runtime.outputs`. Nothing is made by asking."""

    root: Path

    @property
    def runs(self) -> Path:
        """A folder a run: `<date>_<label>_<key>`."""
        return self.root / "runs"

    @property
    def comparisons(self) -> Path:
        """What `bdx reproduce` writes."""
        return self.root / "reproduce"

    @property
    def cache(self) -> Path:
        """Decoded data sets, models, and what else is made once for many runs."""
        return self.root / "cache"

    @property
    def data(self) -> Path:
        """Decoded data sets."""
        return self.cache / "data"

    @property
    def infections(self) -> Path:
        """A folder an infected model."""
        return self.cache / "infection"

    @property
    def snapshots(self) -> Path:
        """States of trainings under way."""
        return self.cache / "snapshots"

    @property
    def derived(self) -> dict[str, Path]:
        """What is made of infected models or for them, each in a folder of its own: how that is called, and where it lies."""
        return {
            "verdicts": self.cache / "detection",
            "purified models": self.cache / "purification",
            "exact purifications": self.cache / "exact",
            "networks of triggers": self.cache / "network",
        }

    def infection(self, attack: str, dataset: str, key: str) -> Path:
        """The folder of one infected model."""
        return self.infections / f"{attack}-{dataset}-{key}"

    def network(self, attack: str, dataset: str, key: str) -> Path:
        """The folder of a learned trigger's network."""
        return self.cache / "network" / f"{attack}-{dataset}-{key}"

    def snapshot(self, key: str) -> Path:
        """The state of the training that makes `key`."""
        return self.snapshots / f"{key}.pt"

    def control(self, infection: str) -> Path:
        """The scores of an infection's clean control."""
        return self.cache / "control" / f"{infection}.json"

    def readings(self, infection: str) -> Path:
        """What is said of how a given network reads its images."""
        return self.cache / "readings" / f"{infection}.json"

    def detection(self, detector: str, key: str) -> Path:
        """The folder of a detector's verdict on one model."""
        return self.cache / "detection" / f"{detector}-{key}"

    def purification(self, defense: str, key: str) -> Path:
        """The folder of one purified model."""
        return self.cache / "purification" / f"{defense}-{key}"

    def exact(self, key: str) -> Path:
        """The folder of an infection's exact purification."""
        return self.cache / "exact" / key

    def after(self, control: str, key: str) -> Path:
        """What became of a control after an attack."""
        return self.cache / "after" / f"{control}-{key}.json"

    def lock(self, run: str) -> Path:
        """The lock of a run that is carried out."""
        return self.cache / "locks" / f"{run}.lock"

    def set_aside(self) -> list[Path]:
        """What was found damaged in the cache and is kept, by place and time."""
        return sorted(self.cache.glob(f"*/*{ASIDE}*"))

    def runs_of(self, key: str) -> Iterator[Path]:
        """The folders of a run's records, in no order."""
        return self.runs.glob(f"*_{key}")


def outputs_of(run_folder: Path) -> Outputs:
    """The outputs that a run's folder lies in."""
    return Outputs(run_folder.parent.parent)


def key_of(folder: Path) -> str:
    """The key at the end of a cached folder's name."""
    return folder.name.rpartition("-")[2]


NOT_RUNS = ("cache", "sweeps")  # folders of an outputs folder that hold no records
