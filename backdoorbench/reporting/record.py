"""A run as files: `record.json` and what lies beside it. The record is the truth; every table is a view of records.

Reading needs no torch, so that a report of many runs starts at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench import cache
from backdoorbench.errors import DataError
from backdoorbench.metrics import Scores
from backdoorbench.recorded import Run

if TYPE_CHECKING:
    import torch

    from backdoorbench.plans import Plan

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "safetensors", "scikit-learn")


def new_folder(outputs: Path, label: str, key: str) -> Path:
    """A folder `runs/<date>_<label>_<key>` that did not exist before."""
    runs = outputs / "runs"
    with cache.storage_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
    date = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        mark = f".{attempt}" if attempt else ""
        folder = runs / f"{date}{mark}_{label}_{key}"
        try:
            with cache.storage_errors(runs):
                folder.mkdir()
        except Exception:
            if folder.is_dir():
                continue
            raise
        return folder
    raise RuntimeError(f"no free folder name for {label} in {runs}")


def write(run: Run, folder: Path) -> None:
    """`record.json`, whole or not at all."""
    cache.write_json(folder / "record.json", as_plain(run))


def as_plain(run: Run) -> dict[str, Any]:
    """The run as JSON would hold it, its numbers finite."""
    return dataclasses.asdict(run)


def read(folder: Path) -> Run:
    """The run that `write` wrote; DataError where the file is damaged."""
    file = folder / "record.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        for name in ("infected", "purified", "control"):
            if content[name] is not None:
                content[name] = Scores(**content[name])
        return Run(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file} is no record of this version ({error}); expected what `bdx` wrote. Move the file away, or report it if "
            f"nobody changed it."
        ) from None


def find(where: Path) -> Iterator[Path]:
    """Every folder at or below `where` that holds a record, sorted; folders of one run each are not entered further."""
    if (where / "record.json").is_file():
        yield where
        return
    inner = sorted(entry.name for entry in os.scandir(where) if entry.is_dir()) if where.is_dir() else []
    for name in inner:
        if name not in ("cache", "sweeps") and not name.startswith("."):
            yield from find(where / name)


def collect(folders: Iterable[Path]) -> dict[Path, Run]:
    """The runs below `folders` by the folder of their record: of each key one, the latest finished one, else the latest.

    What fills a record and no table needs is left out (per-class scores, the history of the infection's training), and equal
    settings are held once, so that 10,000 runs fit into memory."""
    shared: dict[str, dict[str, Any]] = {}
    latest: dict[str, tuple[tuple[bool, str], Path, Run]] = {}
    for entry in (entry for folder in folders for entry in find(folder)):
        run = _slim(read(entry), shared)
        order = (run.status == "done", run.started)
        if run.id not in latest or order >= latest[run.id][0]:
            latest[run.id] = (order, entry, run)
    return {entry: run for _, entry, run in sorted(latest.values(), key=lambda item: str(item[1]))}


def _slim(run: Run, shared: dict[str, dict[str, Any]]) -> Run:
    run.infection.pop("history", None)
    for name, value in run.config.items():
        if isinstance(value, dict):
            run.config[name] = shared.setdefault(repr(value), value)
    run.infection = shared.setdefault(repr(run.infection), run.infection)
    run.environment = shared.setdefault(repr(run.environment), run.environment)
    purified = run.details.get("purified", {})
    run.details = {"purified": {name: purified[name] for name in ("largest_share", "ca_per_class") if name in purified}}
    return run


def find_done(outputs: Path, key: str) -> Path | None:
    """The latest folder of a finished run with this key."""
    for folder in sorted((outputs / "runs").glob(f"*_{key}"), reverse=True):
        if (folder / "record.json").is_file() and read(folder).status == "done":
            return folder
    return None


def write_predictions(predictions: dict[str, torch.Tensor], folder: Path) -> None:
    """Every call of both models, so that a metric can be computed anew without training."""
    from safetensors.torch import save_file

    with cache.storage_errors(folder):
        save_file(predictions, folder / "predictions.safetensors")


def model_metadata(made: Plan) -> dict[str, str]:
    """What rebuilds the network around its weights; safetensors metadata are texts."""
    return {
        "model": json.dumps(made.config["model"]),
        "classes": json.dumps(made.splits.train.classes),
        "size": str(made.dataset.crop or made.dataset.size),
        "normalize": json.dumps({"mean": made.dataset.mean, "std": made.dataset.std}),
        "run": made.key,
    }


def environment(made: Plan) -> dict[str, Any]:
    """What the figures were computed with."""
    import torch

    from backdoorbench import device

    return {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in ("bdx", *PACKAGES)},
        "cuda": torch.version.cuda if made.device.type == "cuda" else None,
        "commit": commit(),
        "device": device.describe(made.device),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def installed(name: str) -> str | None:
    """A package's version; None where it is not installed (bdx itself, run from a checkout)."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The checkout's commit, with `+` where files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    calls = (["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        head, changes = (
            subprocess.run(call, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for call in calls
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def failure(error: BaseException) -> str:
    """An error in one line for the record."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
