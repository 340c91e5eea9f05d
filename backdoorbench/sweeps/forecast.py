"""What a sweep is about to do: its runs with their keys and mistakes, what is done, what is cached, what it will cost."""

import functools
import json
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoorbench.config.compose import Plain
from backdoorbench.config.groups import AFTER, DETECT, INFECT, PURIFY, STAGES
from backdoorbench.errors import BdxError, DataError, PairingError
from backdoorbench.pipeline import plan as plans
from backdoorbench.pipeline.plan import Shared, Sketch
from backdoorbench.storage import record, store
from backdoorbench.storage.outputs import Outputs
from backdoorbench.storage.record import FILE
from backdoorbench.sweeps.compose import varying

MOST_RECORDS = 2000  # the newest, that estimates go by
RECENT = 5  # of those alike, the newest; their median
APART = (
    "surrogate",
    "network",
    "control",
    "load",
)  # parts of a stage that other runs share, or that cost next to nothing


@dataclass
class Ahead:
    """One run of a sweep, before it begins.

    overrides  the settings that make it, and their resolved configuration
    differs    those that are not the same in all runs
    error      why it cannot be carried out; then nothing below is known
    is_unfit   whether its parts are right and only do not fit each other: a defense needs what the attack does not leave, a
               rate asks for more images than a class has
    infection  folder of its infected model in the cache; clean: of the clean model it trains too, if it does
    done       folder of the finished run with this key; before: how its last try stands where none finished (running, failed,
               interrupted)
    seconds    an estimate from past records of what is left to do, by stage (infect, detect, purify, after); a stage without one
               like it is missing
    purified   folder of its purified model in the cache, where after-attacks share one
    alike      keys of the runs whose purified model it takes over; none where it purifies again
    is_purified  whether its purified model is there, in the cache or of such a run; is_detected: whether its verdict is
    detects    whether a detector was chosen; is_attacked_after: whether an after-attack was
    """

    number: int
    overrides: tuple[str, ...]
    config: Plain
    differs: tuple[str, ...] = ()
    error: BdxError | None = None
    is_unfit: bool = False
    key: str = ""
    outputs: Outputs = Outputs(Path())
    infection: Path = Path()
    clean: Path | None = None
    purified: Path = Path()
    alike: tuple[str, ...] = ()
    is_purified: bool = False
    is_detected: bool = False
    done: Path | None = None
    before: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    detects: bool = False
    is_attacked_after: bool = False
    verdict: Path = Path()
    plugins: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return " ".join(self.differs) or "the only run"

    def trainings(self) -> list[Path]:
        """The models in the cache that it needs and may have to train first."""
        return [] if self.error else [folder for folder in (self.infection, self.clean) if folder is not None]


def look(jobs: Sequence[Sequence[str]], composed: Sequence[Plain], here: bool) -> list[Ahead]:
    """Every run of a sweep, built, checked and keyed; what runs have in common is made once.

    here  whether they will see the devices of this process; else those are not checked"""
    shared, runs = Shared(), []
    found: dict[Outputs, dict[str, list[Path]]] = {}
    for number, (overrides, config, differs) in enumerate(zip(jobs, composed, varying(jobs), strict=True)):
        run = Ahead(number, tuple(overrides), config, tuple(differs))
        if not here:
            config = config | {"runtime": config["runtime"] | {"device": "cpu"}}
        try:
            made = plans.sketch(config, shared)
            run.is_unfit = True
            parts = [made.config[group] for group in ("dataset", "holdout", "attack", "model", "train")]
            shared.once("divided", parts, functools.partial(check, made))
            run.is_unfit = False
        except BdxError as error:
            run.error, run.is_unfit = error, run.is_unfit or isinstance(error, PairingError)
        else:
            if made.outputs not in found:
                found[made.outputs] = folders_by_key(made.outputs)
            describe(run, made, found[made.outputs])
        runs.append(run)
    return runs


def check(made: Sketch) -> bool:
    """Whether the images can be divided; raises what `divide` raises, and keeps none of them."""
    return bool(plans.divide(made))


def describe(run: Ahead, made: Sketch, folders: dict[str, list[Path]]) -> None:
    """Fills in what a sketch says of a run."""
    run.key, run.outputs, run.infection, run.detects = made.key, made.outputs, made.infection_folder, made.detects
    run.plugins = tuple(made.plugins)
    run.purified, run.is_attacked_after = made.purification_folder, made.is_attacked_after
    if made.detects:
        run.verdict = plans.verdict_folder(made, made.infection_settings)[0]
    if made.config["control"] == "train" or (made.attack.needs_surrogate and not run.infection.is_dir()):
        run.clean = plans.clean_plan(made).infection_folder
    if not made.config["rerun"]:
        tries = {folder: record.status_of(folder) for folder in reversed(folders.get(made.key, []))}
        run.done = next((folder for folder, status in tries.items() if status == "done"), None)
        run.alike = tuple(made.purified_alike)
        others = (folder for key in run.alike for folder in folders.get(key, []))
        run.is_purified = run.purified.is_dir() or any(record.status_of(folder) == "done" for folder in others)
        run.is_detected = run.detects and run.verdict.is_dir()
        run.before = next(filter(None, tries.values()), "")
        if run.before == "running" and not store.is_held(made.outputs.lock(made.key)):
            run.before = "interrupted"


def folders_by_key(outputs: Outputs) -> dict[str, list[Path]]:
    """The folders of recorded runs, oldest first."""
    found: dict[str, list[Path]] = {}
    runs = outputs.runs
    for name in sorted(os.listdir(runs)) if runs.is_dir() else []:
        found.setdefault(name.rpartition("_")[2], []).append(runs / name)
    return found


def mistaken(runs: Sequence[Ahead]) -> list[Ahead]:
    """The runs for whose sake a sweep does not begin, of which `refuse_mistakes` tells the first; none where it begins."""
    wrong = [run for run in runs if run.error is not None and not run.is_unfit]
    return list(runs) if not wrong and all(run.error is not None for run in runs) else wrong


def refuse_mistakes(runs: Sequence[Ahead]) -> None:
    """Raises the first mistake in a sweep's settings, before anything is trained. What is merely unfit stops nothing, unless no
    run is left: in a grid of methods and rates such runs are bound to occur, and each fails by itself."""
    wrong = mistaken(runs)
    if not wrong:
        if any(run.error is not None for run in runs):  # what those would have used is not known
            return
        named = dict.fromkeys(package for run in runs for package in run.config["plugins"])
        plans.refuse_unused_plugins(named, {package for run in runs for package in run.plugins}, len(runs))
        return
    error = wrong[0].error
    assert error is not None
    if len(runs) == 1:
        raise error
    others = f" and {len(wrong) - 1} more of its runs" if len(wrong) > 1 else ""
    raise type(error)(
        f"{error} This is run {wrong[0].number} of the sweep ({wrong[0].name}){others}; none of the {len(runs):,} was started."
    )


# ---- what it will cost ----------------------------------------------------------------------------------------------


class Past:
    """Seconds a stage took in recorded runs, by what they had in common with one to come."""

    def __init__(self, outputs: Outputs) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.records = 0
        newest = sorted(outputs.runs.glob(f"*/{FILE}"), reverse=True)[:MOST_RECORDS]
        for file in newest:
            try:
                content = record.read_plain(file.parent)
            except DataError:
                continue
            if content["status"] == "done":
                self.records += 1
                self.add(content)

    def add(self, content: dict[str, Any]) -> None:
        cost: dict[str, float] = {}
        for stage in content["stages"]:
            name, spent = stage["kind"], stage.get("cost") or stage.get("seconds", {})
            cost[name] = sum(seconds for part, seconds in spent.items() if part not in APART)
        for stage, seconds in cost.items():
            for name in alike(stage, content["config"]):
                self.seconds.setdefault(name, []).append(seconds)

    def estimate(self, config: Plain) -> dict[str, float]:
        """Seconds by stage, of the newest records with the same settings, else with the same method."""
        found = {}
        for stage in (each.name for each in STAGES):
            known = next((self.seconds[name] for name in alike(stage, config) if name in self.seconds), None)
            if known:
                found[stage] = statistics.median(known[:RECENT])
        return found


def alike(stage: str, config: Plain) -> list[str]:
    """Names under which a stage's cost is kept, the closest first. Seeds and rates hardly move it; sizes and epochs do."""
    data = {key: config["dataset"].get(key) for key in ("name", "size", "crop", "train_size", "test_size")}
    place = [stage, data, config["model"]]
    if stage == INFECT.name:
        recipe = {
            key: value for key, value in config["train"].items() if key != "precision"
        }  # auto here, resolved there
        kinds: list[Any] = [[config["attack"]["name"], recipe], [recipe]]
    else:
        group = next(each.group for each in STAGES if each.name == stage)
        kinds = [[config[group], config["holdout"]], [config[group]["name"]]]
    return [json.dumps([*place, *kind], sort_keys=True) for kind in kinds]


@dataclass(frozen=True)
class Forecast:
    """What is left of a sweep.

    states    of each run, in a few words
    trained   infected models to be trained; cached: of those needed, found
    seconds   of the rest, one job after another; unknown: runs with a stage that no record tells the cost of
    records   finished ones that the estimate went by
    """

    states: list[str]
    trained: int
    cached: int
    seconds: float
    unknown: int
    records: int


def forecast(runs: Sequence[Ahead]) -> Forecast:
    """What each run will do, in the order of the sweep, and what the rest costs by past records."""
    past: dict[Outputs, Past] = {}
    makers: dict[Path, int] = {}
    needed: set[Path] = set()
    left = set[
        Path | str
    ]()  # folders of purified models and verdicts that runs before leave, and the keys of such runs
    cached = functools.cache(Path.is_dir)  # many runs, few folders
    states: list[str] = []
    count: Counter[str] = Counter()
    keys: dict[str, int] = {}
    seconds = 0.0
    for run in runs:
        if run.error is not None:
            states.append("cannot be")
            continue
        if run.done is not None:
            states.append("done")
            continue
        if run.key in keys:
            states.append(f"the same as run {keys[run.key]}")
            continue
        keys[run.key] = run.number
        if run.outputs not in past:
            past[run.outputs] = Past(run.outputs)
        known = past[run.outputs].estimate(run.config)
        own = run.infection
        needed.update(run.trainings())
        is_detected = run.is_detected or run.verdict in left
        is_purified = run.is_purified or not left.isdisjoint((run.purified, *run.alike))
        stages = [DETECT.name] * (run.detects and not is_detected) + [PURIFY.name] * (not is_purified)
        stages += [AFTER.name] * run.is_attacked_after
        left |= {run.purified if run.is_attacked_after else run.key} | ({run.verdict} if run.detects else set())
        if cached(own):
            states.append("infection cached")
        elif own in makers:
            states.append(f"infection of run {makers[own]}")
        else:
            makers[own] = run.number
            states.append("trains its infection")
            stages.append(INFECT.name)
        if run.clean is not None and not cached(run.clean) and run.clean not in makers:
            makers[run.clean] = run.number
            stages.append(INFECT.name)
            states[-1] += " and the clean model"
        if is_purified:
            states[-1] += ", purified already"
        if run.before:
            states[-1] += ", is running now" if run.before == "running" else f", {run.before} before"
        run.seconds = {stage: known[stage] * times for stage, times in Counter(stages).items() if stage in known}
        seconds += sum(run.seconds.values())
        count["unknown"] += any(stage not in known for stage in stages)
    there = sum(cached(folder) for folder in needed)
    records = sum(known.records for known in past.values())
    return Forecast(states, len(makers), there, seconds, count["unknown"], records)
