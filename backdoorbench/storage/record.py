"""A run and its file: what every stage found out, and `record.json`. The record is the truth; every table is a view of records.

Needs no torch, so that a report of many runs starts at once.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from backdoorbench.config.compose import Plain
from backdoorbench.config.groups import AFTER, DETECT, GROUPS, INFECT, OPTIONAL, PURIFY, as_called_now
from backdoorbench.errors import DataError
from backdoorbench.metrics import Scores
from backdoorbench.storage.outputs import NOT_RUNS, Outputs
from backdoorbench.storage.store import read_json, storage_errors, write_json

log = logging.getLogger(__name__)

FILE = "record.json"
AT_ONCE = "BDX_JOBS_AT_ONCE"  # in a job's environment: how many a launcher runs beside each other
STATUSES = ("running", "done", "failed", "interrupted")
EMPTY: tuple[Any, ...] = (None, "", [], {})  # what a record leaves out of a stage
KEPT = (
    "largest_share", "by_chance", "ca_per_class", "starts_from", "plain", "holdout_ca", "holdout", "flagged", "figure",
    "counts", "trials",
)  # details that tables and plots need  # fmt: skip


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
    spent     what else the stage cost: memory and device_memory (bytes, at most), joules, images_per_second; what nobody tells
              is missing, and so is all but the last of an infection that was found done; of a purified model that was, it is
              what making it cost
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
    spent: dict[str, float] = field(default_factory=dict)

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

    status   running, done, failed, or interrupted: ended from outside, as by Ctrl-C
    stages   in the order in which they were carried out
    content  digests of what the settings name: the data, files, the source of plugins, by the setting's dotted key
    """

    id: str
    status: str
    label: str
    config: Plain
    stages: list[Finding] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    content: dict[str, str] = field(default_factory=dict)
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
    def after(self) -> Finding:
        return self.of(AFTER.name)

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
    kept = [
        {name: value for name, value in stage.items() if value not in EMPTY or name == "kind"}
        for stage in content["stages"]
    ]
    write_json(folder / FILE, content | {"stages": kept})


def read(folder: Path) -> Run:
    """The run that `write` wrote, in this version or before it had stages; DataError where the file is damaged or foreign."""
    with _told(folder):
        return from_plain(read_json(folder / FILE))


def read_plain(folder: Path) -> dict[str, Any]:
    """The content of a record in the shape of today; DataError where it is damaged or foreign."""
    with _told(folder):
        return checked(read_json(folder / FILE))


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turns whatever is wrong with a record into a DataError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder / FILE} is no record of this version ({said}); expected what `bdx` wrote. Move the file away, or report it "
            f"if nobody changed it."
        ) from None


def readable(folders: Iterable[Path]) -> Iterator[tuple[Path, Run]]:
    """The runs of these folders, one after another; damaged and foreign records are left out, and counted in a line."""
    wrong: list[DataError] = []
    for folder in folders:
        try:
            run = read(folder)
        except DataError as error:
            wrong.append(error)
        else:
            yield folder, run
    tell_left_out(wrong)


def tell_left_out(wrong: Sequence[Exception]) -> None:
    """One line about records that cannot be read."""
    if wrong:
        first = str(wrong[0]).partition("; expected")[0]
        said = "a record is left out" if len(wrong) == 1 else f"{len(wrong):,} records are left out; the first"
        log.warning(f"{said}: {first}")


def from_plain(content: Any) -> Run:
    """The run whose record has this content."""
    content = checked(content)
    return Run(**content | {"stages": [as_finding(stage) for stage in content["stages"]]})


def as_finding(stage: Mapping[str, Any]) -> Finding:
    """The finding of which `dataclasses.asdict` made this."""
    judged = {name: Scores(**stage[name]) for name in ("scores", "control") if stage.get(name) is not None}
    return Finding(**{**stage, **judged})


def checked(content: Any) -> dict[str, Any]:
    """A record's content in the shape of today; ValueError, KeyError or TypeError where it is something else: where a field is
    not of a record, or of another type than tables and lists compute with."""
    found = upgraded(_object("it", content))
    if found["status"] not in STATUSES:
        raise ValueError(f"its status is {found['status']!r}")
    if found["status"] == "running":
        datetime.fromisoformat(found["started"])
    _check_fields(found, OF_A_RUN, KEPT_OF_A_RUN)
    config = found["config"]
    check_config(config, REQUIRED)
    _check_numbers("settings", [config[INFECT.group].get("poison_rate")])
    _check_numbers("gates", [_object("gates", config["gates"])["constant_share"]], none=False)
    _check_environment(found.get("environment", {}))
    if not all(isinstance(digest, str) for digest in found.get("content", {}).values()):
        raise TypeError("a digest of its content is no text")
    holdout = config["holdout"]
    _check_numbers("holdout's settings", [holdout.get(name) for name in ("rate", "per_class", "validate")])
    for stage in found["stages"]:
        _check_stage(_object("a stage", stage))
    return found


def _check_environment(found: Mapping[str, Any]) -> None:
    """What tables say below them of where a run was made, and what classes are called."""
    if not isinstance(found.get("device", ""), str):
        raise TypeError("the device of its environment is no text")
    _object("packages", found.get("packages", {}))
    if not isinstance(_object("data", found.get("data", {})).get("classes", []), list):
        raise TypeError("the classes of its data are no list")
    if found.get("company") is not None:
        company = _object("company", found["company"])
        _check_numbers("company", [company["at_once"]], none=False)
        company["fresh"]  # noqa: B018


def _check_stage(stage: dict[str, Any]) -> None:
    _check_fields(stage, OF_A_STAGE, KEPT_OF_A_STAGE)
    stage["kind"]  # noqa: B018  # every stage says what it is
    for name in ("scores", "control"):
        if stage.get(name) is not None:
            _check_numbers(name, stage[name].values())
            if not stage[name].keys() >= set(SHARES):
                raise ValueError(f"its {name} are no scores")
            _check_numbers(name, [stage[name]["ca"]], none=False)
            _check_shares(name, [stage[name][figure] for figure in SHARES])
    for name in ("figures", "beside", "seconds", "cost", "spent"):
        _check_numbers(name, stage.get(name, {}).values(), none=name in ("figures", "beside"))
    details = stage.get("details", {})
    by_class = (details.get(f"{name}_per_class", []) for name in SHARES)
    shares = (details.get(name) for name in ("largest_share", "by_chance", "holdout_ca"))
    _check_shares("details", [*shares, *chain(*by_class)])
    held = _object("holdout", details.get("holdout", {}))
    _check_numbers("holdout", [held[name] for name in ("images", "validation") if name in held], none=False)
    for judged in _object("trials", details.get("trials", {})).values():
        for trial in judged:
            _check_numbers("trials", [trial["asr"]], none=False)
    for point in stage.get("curve", []):
        _check_numbers("curve", _object("a point of the curve", point).values())
        point["epoch"], point["n"]  # noqa: B018
    if not all(isinstance(reason, str) for reason in stage.get("reasons", [])):
        raise TypeError("its reasons are no texts")


def check_config(config: Any, groups: Sequence[str]) -> None:
    """Raises ValueError, KeyError or TypeError unless this is a configuration with an option of each of the groups and a seed."""
    for group in groups:
        if not isinstance(_object(group, _object("config", config)[group])["name"], str):
            raise TypeError(f"the name of its {group} is no text")
    if type(config["seed"]) is not int:
        raise TypeError("its seed is no whole number")


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no object")
    found: dict[str, Any] = value
    return found


def _check_fields(content: Mapping[str, Any], kinds: Mapping[str, Any], known: Set[str]) -> None:
    if not content.keys() <= known:
        raise ValueError(f"it has {min(content.keys() - known)}, which no record has")
    for name, value in content.items():
        if name in kinds and not isinstance(value, kinds[name]):
            raise TypeError(f"its {name} is a {type(value).__name__}")


def _check_numbers(name: str, values: Iterable[Any], none: bool = True) -> None:
    """Raises TypeError where a value is no number; none: whether None will do."""
    for value in values:
        if not (value is None and none) and (type(value) not in NUMBERS or not math.isfinite(value)):
            raise TypeError(f"its {name} are no numbers")


def _check_shares(name: str, values: Sequence[Any]) -> None:
    """Raises TypeError or ValueError where a value is neither None nor a share."""
    _check_numbers(name, values)
    if not all(0 <= (value or 0) <= 1 for value in values):
        raise ValueError(f"its {name} are no shares")


NUMBERS = (float, int)
SHARES = ("ca", "asr", "ra")  # of scores
REQUIRED = tuple(group.name for group in GROUPS if group.run)  # groups that every configuration has, once `upgraded`
TEXT, OBJECT = str, dict
OF_A_RUN: dict[str, Any] = {
    "id": TEXT, "label": TEXT, "started": TEXT, "environment": OBJECT, "content": OBJECT, "stages": list,
    "error": (str, type(None)),
}  # fmt: skip
OF_A_STAGE: dict[str, Any] = {
    "kind": TEXT, "name": TEXT, "key": TEXT, "status": TEXT, "reasons": list, "curve": list, "history": list,
    "cached": (bool, type(None)), "scores": (dict, type(None)), "control": (dict, type(None)),
    **dict.fromkeys(("cost", "figures", "beside", "details", "notes", "seconds", "spent"), OBJECT),
}  # fmt: skip


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """A record's content in the shape of today: from before it had stages, before some groups were there to choose from, and
    before some settings were called as they are."""
    config = {**{group: {"name": "none"} for group in OPTIONAL}, **as_called_now(content["config"])}
    content = {**content, "config": config}
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
KEPT_OF_A_STAGE = {each.name for each in dataclasses.fields(Finding)}


def target_note(described: str | None) -> dict[str, str]:
    """The attacker's rule as an infection's notes hold it."""
    return {"target": described} if described is not None else {}


def find(where: Path) -> Iterator[Path]:
    """Every folder at or below `where` that holds a record, sorted; folders of one run each are not entered further."""
    if os.path.lexists(where / FILE):
        yield where
        return
    try:
        inner = sorted(entry.name for entry in os.scandir(where) if entry.is_dir()) if where.is_dir() else []
    except PermissionError:  # there may be one
        yield where
        return
    for name in inner:
        if name not in NOT_RUNS and not name.startswith("."):
            yield from find(where / name)


def collect(folders: Iterable[Path], details: Sequence[str] = ()) -> dict[Path, Run]:
    """The runs below `folders` by the folder of their record: of each key one, the latest finished one, else the latest.

    What fills a record and no table needs is left out (per-class scores, the history of the infection's training), and equal
    settings are held once, so that 10,000 runs fit into memory. Damaged and foreign records are left out, and counted.

    details  of stages, that somebody needs all the same"""
    shared: dict[str, Any] = {}
    latest: dict[str, tuple[tuple[bool, str], Path, Run]] = {}
    for entry, run in readable(entry for folder in folders for entry in find(folder)):
        _slim(run, shared, {*KEPT, *details})
        order = (run.status == "done", run.started)
        if run.id not in latest or order >= latest[run.id][0]:
            latest[run.id] = (order, entry, run)
    return {entry: run for _, entry, run in sorted(latest.values(), key=lambda item: str(item[1]))}


def _slim(run: Run, shared: dict[str, Any], kept: Set[str]) -> None:
    for name, value in run.config.items():
        if isinstance(value, dict):
            run.config[name] = shared.setdefault(repr(value), value)
    run.environment = shared.setdefault(repr(run.environment), run.environment)
    for stage in run.stages:
        stage.history = []
        stage.details = {name: stage.details[name] for name in kept if name in stage.details}
        stage.notes, stage.cost = (shared.setdefault(repr(part), part) for part in (stage.notes, stage.cost))


def find_done(outputs: Outputs, key: str) -> Path | None:
    """The latest folder of a finished run with this key; a record that cannot be read is none."""
    latest_first = sorted(recorded(outputs, key), reverse=True)
    return next((folder for folder in latest_first if status_of(folder) == "done"), None)


def recorded(outputs: Outputs, key: str) -> Iterator[Path]:
    """The folders of this run's records, in no order."""
    return (folder for folder in outputs.runs_of(key) if os.path.lexists(folder / FILE))


def status_of(folder: Path) -> str | None:
    """What a run's record says of it; None where there is none that can be read."""
    try:
        return str(read_plain(folder)["status"])
    except DataError:
        return None


def failure(error: BaseException) -> str:
    """An error in one line for the record."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
