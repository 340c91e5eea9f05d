"""The compositions and keys of two checkouts, side by side: what a rebuilding moves.

    python scripts/compare_keys.py OLD NEW [--all]

OLD and NEW are checkouts; each is asked in a process of its own, with this environment's packages. Composed are every attack and
defense on every data set, in every experiment and at every scale; keys are those that a run would have, with a data set whose
digest is made up, so that no images are needed. Prints what differs, and the first 200 pairs of keys (--all: every one).
Exit code 1 where an infection's key differs.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

SHOWN = 200
NEW_KEYS = ("detector", "inspection", "after", "exact")  # root settings that the old composition does not have
MADE_UP = "0" * 64  # a data set's digest


def settings(conf: Path) -> list[list[str]]:
    """The overrides of every composition, by what the folder of yaml files offers."""

    def names(group: str) -> list[str]:
        return sorted(file.stem for file in (conf / group).glob("*.yaml"))

    found = []
    for group, where in product(("attack", "defense"), ("dataset", "experiment")):
        found += [[f"{group}={name}", f"{where}={place}"] for name, place in product(names(group), names(where))]
    for group in ("attack", "defense"):
        found += [[f"{group}={name}", "dataset=cifar10", "scale=small"] for name in names(group)]
        found += [[f"{group}={name}", "scale=digits"] for name in names(group)]
    scales = product(names("experiment"), names("scale"))
    found += [[f"experiment={name}", f"scale={scale}"] for name, scale in scales if name != "none"]
    return found


def answer() -> None:
    """In a checkout: reads overrides, prints the composition and the two keys of each."""
    try:
        from backdoorbench.config.build import build
        from backdoorbench.config.compose import compose
        from backdoorbench.pipeline import plan
        from backdoorbench.storage.store import key
    except ModuleNotFoundError:  # before there were the rooms `config`, `run` and `storage`
        from backdoorbench.cache import key  # type: ignore[no-redef]

        from backdoorbench import plans as plan  # type: ignore[attr-defined, no-redef]
        from backdoorbench.config import build, compose  # type: ignore[no-redef]
    told = []
    for overrides in json.load(sys.stdin):
        composed = compose([*overrides, "hydra.mode=RUN"])
        holdout = build(composed["holdout"], "holdout")
        resolved = {**composed, "train": {**composed["train"], "precision": "float32"}}
        run = plan.run_settings(resolved, MADE_UP)
        infection = plan.infection_settings(run, holdout)
        told.append({"config": composed, "infection": key("infection", infection), "run": key("run", run)})
    json.dump(told, sys.stdout)


def ask(checkout: Path, overrides: list[list[str]]) -> list[dict[str, Any]]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    call = [sys.executable, str(Path(__file__).resolve()), "--answer"]
    done = subprocess.run(
        call, input=json.dumps(overrides), cwd=checkout, env=environment, text=True, stdout=-1, check=True
    )
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix[:-1]: value}
    return {key: item for name, inner in value.items() for key, item in flat(inner, f"{prefix}{name}.").items()}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`attack.target 0 -> 1`, what the new composition alone has aside."""
    ours, theirs = flat(old), flat(new)
    kept = [key for key in theirs if key in ours or key.partition(".")[0] not in ("dataset", *NEW_KEYS)]
    keys = sorted({*ours, *kept})
    return [f"{k} {ours.get(k, '-')} -> {theirs.get(k, '-')}" for k in keys if ours.get(k, "-") != theirs.get(k, "-")]


def main() -> int:
    if sys.argv[1:] == ["--answer"]:
        answer()
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--all", action="store_true", help="prints every pair of keys")
    chosen = parser.parse_args()
    overrides = settings(chosen.old / "conf")
    pairs = list(
        zip(overrides, ask(chosen.old.resolve(), overrides), ask(chosen.new.resolve(), overrides), strict=True)
    )
    for words, old, new in pairs[: None if chosen.all else SHOWN]:
        print(f"{old['infection']} {new['infection']}  {old['run']} {new['run']}  {' '.join(words)}")
    unlike = [(words, differences(old["config"], new["config"])) for words, old, new in pairs]
    moved = {kind: [words for words, old, new in pairs if old[kind] != new[kind]] for kind in ("infection", "run")}
    for words, found in unlike:
        if found:
            print(f"composed otherwise: {' '.join(words)}: {'; '.join(found)}")
    print(f"{len(pairs)} compositions, {sum(not found for _, found in unlike)} equal")
    for kind, words in moved.items():
        print(
            f"{kind} keys: {len(pairs) - len(words)} equal, {len(words)} moved"
            + "".join(f"\n  {' '.join(w)}" for w in words)
        )
    return int(bool(moved["infection"]))


if __name__ == "__main__":
    sys.exit(main())
