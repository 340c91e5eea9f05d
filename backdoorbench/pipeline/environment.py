"""What a run's figures were computed with: versions, commit, device."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from backdoorbench import device
from backdoorbench.data.store import stretch
from backdoorbench.pipeline import costs
from backdoorbench.pipeline.plan import Plan

PACKAGES = ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "safetensors", "scikit-learn")


def environment(made: Plan) -> dict[str, Any]:
    """What the figures were computed with."""
    data = {"classes": list(made.splits.train.classes), **made.splits.facts}
    if (reading := made.splits.reading) is not None and reading.fit is not stretch:
        data["fit"] = reading.fit.__name__
    if made.parts.facts:
        data["holdout"] = made.parts.facts
    return {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in ("bdx", *PACKAGES)},
        "cuda": torch.version.cuda if made.device.type == "cuda" else None,
        "commit": commit(),
        "device": device.describe(made.device),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "company": costs.company(),
        "data": data,
    }


def everything() -> str:
    """Every installed package as `name==version`, which pip takes for constraints, below what else figures may depend on: Python,
    system, processor, devices and their driver, commit."""
    facts = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": device.describe(torch.device("cpu")),
        "devices": ", ".join(torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())) or None,
        "driver": driver(),
        "cuda": torch.version.cuda,
        "commit": commit(),
    }
    head = [f"# {name}: {value or 'none'}" for name, value in facts.items()]
    found = {str(package.name): package.version for package in metadata.distributions() if package.name}
    return "\n".join([*head, *sorted((f"{name}=={found[name]}" for name in found), key=str.lower)]) + "\n"


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    call = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(said.split()), None)


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
