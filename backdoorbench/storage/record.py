"""A run and its file: what every stage found out, and `record.json`. The record is the truth; every table is a view of records.

Needs no torch, so that a report of many runs starts at once.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from backdoorbench.config.compose import Plain
from backdoorbench.config.groups import DETECT, INFECT, OPTIONAL, PURIFY
from backdoorbench.errors import DataError
from backdoorbench.metrics import Scores
from backdoorbench.storage.outputs import NOT_RUNS, Outputs
from backdoorbench.storage.store import read_json, storage_errors, write_json

FILE = "record.json"
EMPTY: tuple[Any, ...] = (None, "", [], {})  # what a record leaves out of a stage
KEPT = ("largest_share", "ca_per_class", "starts_from", "holdout_ca", "flagged")  # details that tables and plots need


@dataclass
class Finding:
    """What one stage of a run found out. What does not concern a stage stays empty.

    kind      infect, detect or purify
    name      of the option that carried it out
    key       of what it left in the cache or found there; cached: whether it was found; cost: the seconds it once took
    status    of an infection: clean, took, weak or broken; reasons: why
    scores    CA, ASR and RA of the model that the stage leaves
    control   the same of a clean model: scores under the same trigger (infect)
    figures   what tables show beside scores, by name; beside: the same of a clean model (detect)
    details   what a reader may ask beyond: per class, other ways of counting
    notes     what the method left for the record
    curve     one point an epoch of the defense: epoch, ca, asr, ra, over `n` test images
    history   of the training, one entry an epoch
    seconds   wall time, by part
    """

    kind: str
    name: str
    key: str = ""
    cached: bool | None = None
    cost: dict[str, float] = field(default_factory=dict)
    status: str = ""
    reasons: list[str] = field(default_factory=list)
    scores: Scores | None = None
    control: Scores | None = None
    figures: dict[str, float | None] = field(default_factory=dict)
    beside: dict[str, float | None] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the wall time inside to `seconds[part]`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = round(self.seconds.get(part, 0.0) + time.monotonic() - start, 3)


@dataclass
class Run:
    """Everything a run found out; `record.json` is this as JSON.

    status   running, done or failed
    stages   in the order in which they were carried out
    """

    id: str
    status: str
    label: str
    config: Plain
    stages: list[Finding] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    error: str | None = None

    def begin(self, kind: str, name: str) -> Finding:
        """A new stage's finding, to be filled in."""
        self.stages.append(Finding(kind, name))
        return self.stages[-1]

    def of(self, kind: str) -> Finding:
        """What the stage of this kind found; an empty finding where there was none."""
        for stage in self.stages:
            if stage.kind == kind:
                return stage
        return Finding(kind, "")

    @property
    def infection(self) -> Finding:
        return self.of(INFECT.name)

    @property
    def detection(self) -> Finding:
        return self.of(DETECT.name)

    @property
    def purification(self) -> Finding:
        return self.of(PURIFY.name)

    @property
    def infected(self) -> Scores | None:
        """CA, ASR and RA of the infected model; None before there is one."""
        return self.infection.scores

    @property
    def purified(self) -> Scores | None:
        """CA, ASR and RA of the purified model; None before there is one."""
        return self.purification.scores

    @property
    def seconds(self) -> float | None:
        """Wall time of all stages; None where none was timed."""
        spent = [seconds for stage in self.stages for seconds in stage.seconds.values()]
        return sum(spent) if spent else None


# ---- files ----------------------------------------------------------------------------------------------------------


def new_folder(outputs: Outputs, label: str, key: str) -> Path:
    """A folder `runs/<date>_<label>_<key>` that did not exist before."""
    with storage_errors(outputs.runs):
        outputs.runs.mkdir(parents=True, exist_ok=True)
    date = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        mark = f".{attempt}" if attempt else ""
        folder = outputs.runs / f"{date}{mark}_{label}_{key}"
        try:
            with storage_errors(outputs.runs):
                folder.mkdir()
        except Exception:
            if folder.is_dir():
                continue
            raise
        return folder
    raise RuntimeError(f"no free folder name for {label} in {outputs.runs}")


def write(run: Run, folder: Path) -> None:
    """`record.json`, whole or not at all; of a stage what it has."""
    content = dataclasses.asdict(run)
    kept = [{name: value for name, value in stage.items() if value not in EMPTY or name == "kind"} for stage in content["stages"]]
    write_json(folder / FILE, content | {"stages": kept})


def read(folder: Path) -> Run:
    """The run that `write` wrote, in this version or before it had stages; DataError where the file is damaged."""
    file = folder / FILE
    try:
        return from_plain(read_json(file))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is no record of this version ({error}); expected what `bdx` wrote. Move the file away, or report it if "
            f"nobody changed it."
        ) from None


def from_plain(content: dict[str, Any]) -> Run:
    """The run whose record has this content."""
    content = upgraded(content)
    stages = []
    for stage in content["stages"]:
        judged = {name: Scores(**stage[name]) for name in ("scores", "control") if stage.get(name) is not None}
        stages.append(Finding(**stage | judged))
    return Run(**content | {"stages": stages})


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """A record's content in the shape of today: from before it had stages, and before some groups were there to choose from."""
    content = {**content, "config": {**{group: {"name": "none"} for group in OPTIONAL}, **content["config"]}}
    if "stages" in content:
        return content
    names = {stage.name: content["config"][stage.group]["name"] for stage in (INFECT, PURIFY)}
    known, details, spent = content["infection"], content["details"], content["seconds"]

    def parts(*kept: str) -> dict[str, float]:
        return {name.partition("_")[0]: spent[name] for name in kept if name in spent}

    infect = Finding(INFECT.name, names[INFECT.name])
    infect.key, infect.cached, infect.cost = known.get("key", ""), known.get("cached"), known.get("seconds", {})
    infect.status, infect.reasons = known.get("status", ""), known.get("reasons", [])
    infect.notes, infect.history = known.get("facts", {}) | target_note(known.get("target")), known.get("history", [])
    infect.details = details.get("infected", {})
    infect.seconds = parts("load", "infect", "surrogate", "network", "evaluate_infected", "control")
    purify = Finding(PURIFY.name, names[PURIFY.name])
    purify.details = details.get("purified", {}) | {k: details[k] for k in ("holdout_ca",) if k in details}
    purify.details["starts_from"] = "scratch" if content["config"][PURIFY.group].get("trap") is True else "infected"
    purify.notes, purify.curve = content["notes"], content["curve"]
    purify.seconds = parts("purify", "curve", "evaluate_purified")
    stages = [vars(infect) | {"scores": content["infected"], "control": content["control"]}]
    stages.append(vars(purify) | {"scores": content["purified"]})
    return {name: value for name, value in content.items() if name in KEPT_OF_A_RUN} | {"stages": stages}


KEPT_OF_A_RUN = {each.name for each in dataclasses.fields(Run)}


def target_note(described: str | None) -> dict[str, str]:
    """The attacker's rule as an infection's notes hold it."""
    return {"target": described} if described is not None else {}


def find(where: Path) -> Iterator[Path]:
    """Every folder at or below `where` that holds a record, sorted; folders of one run each are not entered further."""
    if (where / FILE).is_file():
        yield where
        return
    inner = sorted(entry.name for entry in os.scandir(where) if entry.is_dir()) if where.is_dir() else []
    for name in inner:
        if name not in NOT_RUNS and not name.startswith("."):
            yield from find(where / name)


def collect(folders: Iterable[Path]) -> dict[Path, Run]:
    """The runs below `folders` by the folder of their record: of each key one, the latest finished one, else the latest.

    What fills a record and no table needs is left out (per-class scores, the history of the infection's training), and equal
    settings are held once, so that 10,000 runs fit into memory."""
    shared: dict[str, Any] = {}
    latest: dict[str, tuple[tuple[bool, str], Path, Run]] = {}
    for entry in (entry for folder in folders for entry in find(folder)):
        run = _slim(read(entry), shared)
        order = (run.status == "done", run.started)
        if run.id not in latest or order >= latest[run.id][0]:
            latest[run.id] = (order, entry, run)
    return {entry: run for _, entry, run in sorted(latest.values(), key=lambda item: str(item[1]))}


def _slim(run: Run, shared: dict[str, Any]) -> Run:
    for name, value in run.config.items():
        if isinstance(value, dict):
            run.config[name] = shared.setdefault(repr(value), value)
    run.environment = shared.setdefault(repr(run.environment), run.environment)
    for stage in run.stages:
        stage.history = []
        stage.details = {name: stage.details[name] for name in KEPT if name in stage.details}
        stage.notes, stage.cost = (shared.setdefault(repr(part), part) for part in (stage.notes, stage.cost))
    return run


def find_done(outputs: Outputs, key: str) -> Path | None:
    """The latest folder of a finished run with this key."""
    for folder in sorted(outputs.runs_of(key), reverse=True):
        if (folder / FILE).is_file() and read(folder).status == "done":
            return folder
    return None


def failure(error: BaseException) -> str:
    """An error in one line for the record."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
