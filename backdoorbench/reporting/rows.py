"""From runs to rows: pure functions. A row holds the runs that differ in nothing that bears on a stage's figures but the seed.

Mean, spread and n are over seeds; the settings in which rows differ are columns of their own. `grids.py` lays rows out.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from backdoorbench.config.compose import flat
from backdoorbench.config.groups import (
    AFTER,
    DETECT,
    GROUPS,
    INFECT,
    LATER,
    PURIFY,
    STAGES,
    TELLING,
    UNKEYED,
    USUAL,
    Stage,
    content_of,
    told_by,
    without_later,
)
from backdoorbench.config.implied import beyond
from backdoorbench.errors import paragraph
from backdoorbench.metrics import defense_effectiveness, is_near_chance, printed

if TYPE_CHECKING:
    from backdoorbench.metrics import Scores
    from backdoorbench.storage.record import Run

K = TypeVar("K")

DASH = "–"  # what was not measured, never 0
FIGURES = ("ca", "asr", "ra")  # of one model
COSTS = ("seconds", "memory", "device_memory", "energy", "images_per_second")  # of a defense
TITLES = {  # what tables call a figure
    "ca": "CA", "asr": "ASR", "ra": "RA", "der": "DER", "auroc": "AUROC", "tpr_1": "TPR@1", "tpr_5": "TPR@5", "tpr_10": "TPR@10",
    "tpr": "TPR", "fpr": "FPR", "precision": "precision", "anomaly_index": "index", "any_flagged": "flagged",
    "target_flagged": "target", "asr_after": "ASR", "ca_after": "CA",
    "asr_after_untriggered": "lured", "met": "met", "worst_asr": "worst ASR", "ca_loss": "CA loss", "front": "front",
    "seconds": "seconds", "memory": "memory, MiB", "device_memory": "device memory, MiB", "energy": "energy, J",
    "images_per_second": "images/s", "holdout_ca": "holdout CA",
}  # fmt: skip
RISES = {"ca": True, "asr": False, "ra": True, "der": True, "auroc": True, "tpr_1": True, "tpr_5": True, "tpr_10": True,
         "tpr": True, "fpr": False, "precision": True, "ca_after": True,
         "met": True, "worst_asr": False, "ca_loss": False, "front": True,
         "seconds": False, "memory": False, "device_memory": False, "energy": False, "images_per_second": True,
         "holdout_ca": True}  # a figure -> whether more is better  # fmt: skip
NUMBERS = ("anomaly_index", *COSTS)  # figures that are no shares
ANSWERS = ("any_flagged", "target_flagged")  # figures that are yes or no in one run

METHODS = tuple(stage.group for stage in STAGES)
PLACES = tuple(group for group in TELLING if group not in METHODS)  # the groups that say where methods meet
CHOICES = (*PLACES, *METHODS)
NAMED = tuple(group.name for group in GROUPS if group.tells and group.absorbs)  # the places that every row names
SILENT = {group.name: group.silent for group in GROUPS if group.silent}
SHARED = ("holdout", "model")  # of `LATER` those whose settings every option has
TOLD, TOLD_OF_DETECTORS = told_by(PURIFY), told_by(DETECT)  # what bears on scores, and what bears on verdicts
TOLD_OF_AFTER = told_by(AFTER)  # what bears on whether a backdoor comes back
TOLD_OF_ALL = tuple(dict.fromkeys((*TOLD, *TOLD_OF_DETECTORS, *TOLD_OF_AFTER)))


@dataclass(frozen=True)
class Cell:
    """A figure over seeds: fractions (or plain numbers), and how many."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None below two values. In floats: `statistics` computes in fractions, at ten times the cost
        of the rest of a report."""
        if len(self.values) < 2:
            return None
        mean = statistics.fmean(self.values)
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1))


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed, as far as one stage is concerned.

    names      column -> what it says: data set, model, attack, rate, the stage's method, and whatever differs between rows
    n          runs that the means are over; seeds: of all its runs
    figures    what the stage's table shows -> Cell: ca, asr, ra and der of the model that a defense leaves, and asr_retuned or
               its like after attacks on it (`comebacks.py`); a detector's own; an after-attack's
    marks      the statuses among its infections, `took` apart
    stage      the stage that the row is about
    before     ca, asr, ra of the infected model (purify)
    beside     the same of the clean model of the same recipe: ca, asr, ra (purify), a detector's figures (detect)
    collapsed  of the runs left out of `figures` the reason, by seed
    best       the figures in which it beats the other defenses on the same infections (purify)
    runs       all of its runs, by seed (purify)
    fragile    whether plain fine-tuning alone ends the backdoor of the same infections; None where none tells (`fragile.py`)
    superficial  whether the backdoor comes back after the defense ended it; None where nobody tried (`comebacks.py`)
    """

    names: dict[str, str]
    n: int
    seeds: tuple[int, ...]
    figures: dict[str, Cell]
    marks: tuple[str, ...]
    config: dict[str, Any]
    stage: Stage
    before: dict[str, Cell] = field(default_factory=dict)
    beside: dict[str, Cell] = field(default_factory=dict)
    collapsed: dict[int, str] = field(default_factory=dict)
    best: frozenset[str] = frozenset()
    runs: tuple[Run, ...] = field(default=(), repr=False, compare=False)
    fragile: bool | None = None
    superficial: bool | None = None

    @functools.cached_property
    def beyond(self) -> dict[str, Any]:
        """The settings, by dotted key, that the names of its options do not imply (`config/implied.py`)."""
        return beyond(self.config)


# ---- text -----------------------------------------------------------------------------------------------------------


def heading(run: Run) -> str:
    """`digits · demo · badnets → fst · seed 0`."""
    return f"{called(run.config)} · seed {run.config['seed']}"


def called(config: Mapping[str, Any]) -> str:
    """`digits · demo · badnets → fst`."""
    return " · ".join([*(config[group]["name"] for group in NAMED), methods(config)])


def methods(config: Mapping[str, Any], attack: str = "") -> str:
    """`badnets → fst`; with a detector `badnets → strip → fst`, or `badnets → strip` where no defense follows; with an
    after-attack `badnets → fst → retune`.

    attack  what to call the attack, its name by default"""
    detector, defense, after = chosen(config, DETECT.group), config[PURIFY.group]["name"], chosen(config, AFTER.group)
    shown = "" if detector and not after and defense == "none" else defense
    return " → ".join(filter(None, (attack or config[INFECT.group]["name"], detector, shown, after)))


def chosen(config: Mapping[str, Any], group: str) -> str:
    """The option of a group; empty where that is the one which leaves no trace, or the group was not there to choose from."""
    silent = SILENT.get(group)
    name: str = config.get(group, {}).get("name", silent)
    return "" if name == silent else name


def percent(value: float | None) -> str:
    """`97.31`, or a dash."""
    return DASH if value is None else f"{printed(value):.2f}"


def show(cell: Cell, figure: str = "") -> str:
    """`97.31 ± 0.42`, `97.31` for one value or for the share of yes among answers, or a dash. A number that is no share stays
    as it is."""
    scale = 1 if figure in NUMBERS else 100
    if cell.mean is None:
        return DASH
    spread = None if figure in ANSWERS else cell.spread
    mean = round(scale * cell.mean, 2) + 0.0  # never -0.00
    return f"{mean:.2f}" + ("" if spread is None else f" ± {scale * spread:.2f}")


def titled(figure: str) -> str:
    """What tables call a figure: `ASR`, and after an attack `ASR retuned`."""
    return TITLES.get(figure) or figure.replace("_", " ").replace("asr", "ASR").replace("ca ", "CA ")


def rises(figure: str) -> bool | None:
    """Whether more of a figure is better; None where that is no question."""
    return RISES.get(figure, False if figure.startswith("asr_") else None)


# ---- from runs to rows ----------------------------------------------------------------------------------------------


def aggregate(runs: Iterable[Run]) -> list[Row]:
    """One row for each setting among finished runs, in order of first appearance; a seed run twice counts once, the latest.
    Runs that collapsed are left out of the means. What detector was asked splits no row."""
    settings = _by_setting(runs, TOLD)
    extra = differing([compared(members[0].config) for members in settings])
    return _with_best([_row(members, extra) for members in settings])


def detections(runs: Iterable[Run]) -> list[Row]:
    """The same of runs with a detector, one row for each of its settings; what defense followed splits no row. Runs with a
    broken infection are left out of the means."""
    settings = _by_setting((run for run in runs if chosen(run.config, DETECT.group)), TOLD_OF_DETECTORS)
    extra = differing([compared(members[0].config, TOLD_OF_DETECTORS) for members in settings])
    return [_detection(members, extra) for members in settings]


def afters(runs: Iterable[Run]) -> list[Row]:
    """The same of runs with an after-attack, one row for each of its settings and of its defense's. Runs that collapsed are left
    out of the means."""
    settings = _by_setting((run for run in runs if chosen(run.config, AFTER.group)), TOLD_OF_AFTER)
    extra = differing([compared(members[0].config, TOLD_OF_AFTER) for members in settings])
    return [_after(members, extra) for members in settings]


def _by_setting(runs: Iterable[Run], told: Collection[str]) -> list[list[Run]]:
    """Finished runs, those together that differ in nothing told but the seed: one run a seed, the latest, by seed."""
    groups: dict[str, list[Run]] = {}
    identify = identifier(told)
    for run in runs:
        if run.status == "done":
            groups.setdefault(identify(run.config), []).append(run)
    found = (latest(members, lambda run: int(run.config["seed"])) for members in groups.values())
    return [[seeds[seed] for seed in sorted(seeds)] for seeds in found]


def latest(runs: Iterable[Run], key: Callable[[Run], K]) -> dict[K, Run]:
    """Of the runs that have one key the one that started last, whatever folder it lies in."""
    found: dict[K, Run] = {}
    for run in runs:
        held = found.setdefault(key(run), run)
        if run.started >= held.started:
            found[key(run)] = run
    return found


def _row(members: Sequence[Run], extra: Sequence[str]) -> Row:
    reasons = {run.config["seed"]: reason for run in members if (reason := collapse(run))}
    before = [run.infection.scores for run in members if reasons.get(run.config["seed"]) != BROKEN]
    control = [run.infection.control for run in members]
    kept = [run for run in members if run.config["seed"] not in reasons]
    after = [run.purification.scores for run in kept]
    effect = (effectiveness(run) for run in kept)
    return Row(
        _names(members[0], extra, PURIFY),
        len(kept),
        _seeds(members),
        {name: _cell(after, name) for name in FIGURES}
        | {"der": Cell(tuple(value for value in effect if value is not None))}
        | _pooled([cost(run) | {"holdout_ca": run.purification.details.get("holdout_ca")} for run in kept]),
        _marks(members),
        members[0].config,
        PURIFY,
        before={name: _cell(before, name) for name in FIGURES},
        beside={name: _cell(control, name) for name in FIGURES},
        collapsed=reasons,
        runs=tuple(members),
    )


def _detection(members: Sequence[Run], extra: Sequence[str]) -> Row:
    found = [run.detection for run in members if not _is_broken(run)]
    return Row(
        _names(members[0], extra, DETECT),
        len(found),
        _seeds(members),
        _pooled([finding.figures for finding in found]),
        _marks(members),
        members[0].config,
        DETECT,
        beside=_pooled([finding.beside for finding in found]),
        collapsed={run.config["seed"]: BROKEN for run in members if _is_broken(run)},
    )


def _after(members: Sequence[Run], extra: Sequence[str]) -> Row:
    reasons = {run.config["seed"]: reason for run in members if (reason := collapse(run))}
    kept = [run for run in members if run.config["seed"] not in reasons]
    after = {name: _cell((run.purification.scores for run in kept), name) for name in FIGURES}
    return Row(
        _names(members[0], extra, AFTER),
        len(kept),
        _seeds(members),
        after | _pooled([after_figures(run) for run in kept]),
        _marks(members),
        members[0].config,
        AFTER,
        collapsed=reasons,
        runs=tuple(members),
    )


def after_figures(run: Run) -> dict[str, float | None]:
    """What an after-attack found, under its own names and under those that all share: asr_retuned is asr_after, too."""
    found, own = run.after.figures, run.after.details.get("figure", "")
    shared = {name.replace(f"_{own}", "_after", 1): value for name, value in found.items() if f"_{own}" in name}
    return {**found, **shared}


def _names(run: Run, extra: Sequence[str], stage: Stage) -> dict[str, str]:
    return base_names(run.config, stage) | {column: look_up(run.config, column) for column in extra}


def _seeds(members: Sequence[Run]) -> tuple[int, ...]:
    return tuple(run.config["seed"] for run in members)


def _marks(members: Sequence[Run]) -> tuple[str, ...]:
    return tuple(sorted({run.infection.status for run in members} - {"took", "clean", ""}))


def _cell(scores: Iterable[Scores | None], name: str) -> Cell:
    values = (getattr(score, name) for score in scores if score is not None)
    return Cell(tuple(value for value in values if value is not None))


def _pooled(figures: Sequence[Mapping[str, float | None]]) -> dict[str, Cell]:
    """Each figure over the runs that have it."""
    names = dict.fromkeys(name for found in figures for name in found)
    return {name: Cell(tuple(v for found in figures if (v := found.get(name)) is not None)) for name in names}


def effectiveness(run: Run) -> float | None:
    """DER of a run; None where there is no trigger or no second model."""
    before, after = run.infection.scores, run.purification.scores
    return defense_effectiveness(before, after) if before and after else None


MEBIBYTE = 2**20


def cost(run: Run, stage: Stage = PURIFY) -> dict[str, float | None]:
    """What a stage of a run cost, by figure, or had cost where it was found; None of what its record does not tell."""
    found = run.of(stage.name)
    memory, device_memory = (
        value / MEBIBYTE if (value := found.spent.get(name)) is not None else None
        for name in ("memory", "device_memory")
    )
    seconds, joules, speed = (
        found.seconds.get(stage.name, found.cost.get(stage.name)),
        found.spent.get("joules"),
        found.spent.get("images_per_second"),
    )
    return dict(zip(COSTS, (seconds, memory, device_memory, joules, speed), strict=True))


BROKEN = "broken infection"


def collapse(run: Run) -> str:
    """Why a finished run's figures mean nothing: `broken infection`, `constant predictor`, `CA near chance`; else empty.

    Records from before `largest_share` was kept are judged by their classes: a network that calls more than `constant_share`
    of the images the same leaves less than the rest of every other class right."""
    if _is_broken(run):
        return BROKEN
    found = run.purification
    recalls = [recall for recall in found.details.get("ca_per_class", []) if recall is not None]
    if found.scores is None or len(recalls) < 2:
        return ""
    allowed = run.config["gates"]["constant_share"]
    others = sorted(recalls)[:-1]
    share = found.details.get("largest_share")
    if share > allowed if share is not None else statistics.fmean(others) < 1 - allowed:
        return "constant predictor"
    by_chance = found.details.get("by_chance", 0.0)
    return "CA near chance" if is_near_chance(found.scores.ca, len(recalls), by_chance) else ""


def _is_broken(run: Run) -> bool:
    return run.infection.status == "broken"


def is_weak(run: Run) -> bool:
    """Whether the infection is weak or broken, so that the figures of a defense mean little."""
    return run.infection.status in ("weak", "broken")


@dataclass(frozen=True)
class Outcome:
    """What one run says of its defense: the figures of the model that it leaves, as fractions.

    ca_loss    against the infected model; below 0 where CA rises
    before     ASR and RA of the infected model
    """

    ca: float
    asr: float
    ra: float
    ca_loss: float
    der: float
    before: tuple[float, float]
    collapsed: bool


def outcome(run: Run) -> Outcome | None:
    """None where a model was not judged, or under no trigger."""
    before, after, der = run.infected, run.purified, effectiveness(run)
    if before is None or after is None or der is None:
        return None
    if before.asr is None or before.ra is None or after.asr is None or after.ra is None:
        return None
    judged = before.asr, before.ra
    return Outcome(after.ca, after.asr, after.ra, before.ca - after.ca, der, judged, bool(collapse(run)))


def by_infection(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows, those together that are about the same infections and the same holdout."""
    settings: dict[str, list[Row]] = {}
    identify, group = identifier(), PURIFY.group
    for row in rows:
        settings.setdefault(identify({**row.config, group: None, content_of(group): None}), []).append(row)
    return list(settings.values())


def _with_best(rows: Sequence[Row]) -> list[Row]:
    """The rows with their `best`: among the defenses on the same infections those with the best mean, as printed.

    Compared are defenses that finished every seed of the setting, none collapsed, on infections that took."""
    best: dict[int, set[str]] = {}
    for members in by_infection(rows):
        seeds = {seed for row in members for seed in row.seeds}
        fit = [r for r in members if r.names[PURIFY.group] != "none" and not r.collapsed and not r.marks]
        fit = [row for row in fit if set(row.seeds) == seeds]
        for name in (*FIGURES, "der"):
            means = {id(row): printed(mean) for row in fit if (mean := row.figures[name].mean) is not None}
            if len(means) > 1:
                top = (max if RISES[name] else min)(means.values())
                for key, mean in means.items():
                    if mean == top:
                        best.setdefault(key, set()).add(name)
    return [dataclasses.replace(row, best=frozenset(best.get(id(row), ()))) for row in rows]


# ---- what tells rows apart ------------------------------------------------------------------------------------------


def identity(config: Mapping[str, Any], told: Collection[str] = TOLD) -> str:
    """The same text for configurations that differ in nothing `told`."""
    return identifier(told)(config)


def identifier(told: Collection[str] = TOLD) -> Callable[[Mapping[str, Any]], str]:
    """`identity` for many configurations that share their parts, as those that `record.collect` read do: of each part the text
    is made once."""
    texts: dict[int, tuple[Any, str]] = {}  # with the part itself, which keeps its id from being another's
    names = sorted(told)

    def identify(config: Mapping[str, Any]) -> str:
        said = []
        for name in names:
            if name in config:
                value = config[name]
                if id(value) not in texts:
                    texts[id(value)] = value, json.dumps(_told(name, value), sort_keys=True)
                said.append(f"{name} {texts[id(value)][1]}")
        return "\n".join(said)

    return identify


def compared(config: Mapping[str, Any], told: Collection[str] = TOLD) -> dict[str, Any]:
    """The settings of a configuration that are `told`, and of those what figures depend on."""
    return {name: _told(name, value) for name, value in config.items() if name in told}


def _told(name: str, value: Any) -> Any:
    """Where a named data set lies bears on no figure; a folder of images is its path. Of the option that leaves no trace the
    name says all."""
    if not isinstance(value, Mapping):
        return value
    if name == "dataset":
        path = "root" if str(value.get("_target_", "")).endswith(".Folder") else ""
        unusual = [key for key, usual in USUAL.items() if value.get(key, usual) != usual]
        told = without_later(name, value)
        return {key: setting for key, setting in told.items() if key not in UNKEYED or key in (path, *unusual)}
    is_silent = name in SILENT and value.get("name") == SILENT[name]
    return {"name": SILENT[name]} if is_silent else without_later(name, value)


def bases(stage: Stage) -> tuple[str, ...]:
    """The columns that every table of a stage has: data set, model, attack, rate, what else it works on, and its method."""
    return (*NAMED, INFECT.group, "rate", *stage.upon[1:], stage.group)


def base_names(config: Mapping[str, Any], stage: Stage = PURIFY) -> dict[str, str]:
    """What a configuration says in those columns."""
    said = rate_said(config[INFECT.group].get("poison_rate"))
    return {base: said if base == "rate" else config[base]["name"] for base in bases(stage)}


def rate_said(rate: float | None) -> str:
    """`10 %`; in full where that would be another rate, so that no two rates are called the same."""
    if rate is None:
        return DASH
    short = f"{100 * rate:g}"
    return f"{short if Decimal(short) / 100 == Decimal(repr(rate)) else repr(100 * rate)} %"


def rate_of(config: Mapping[str, Any]) -> float:
    """The poison rate as a number; 0 where the attack has none."""
    return float(config[INFECT.group].get("poison_rate") or 0)


def differing(settings: Sequence[Mapping[str, Any]], named: Collection[str] = NAMED) -> list[str]:
    """Dotted keys that tell rows apart beyond the base columns: within one option, its version where that differs, and keys whose
    values differ, or that some rows lack, within one version: what a version changed its number says.

    settings  of each row, as `compared` leaves them
    named     the base columns, which say what was chosen of these groups"""
    found: list[str] = []
    for group in dict.fromkeys(group for config in settings for group in config):
        choices: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}  # option, version -> each of its settings, once
        for value in (config.get(group, DASH) for config in settings):
            is_option = group in CHOICES and isinstance(value, dict)
            option = (str(value.get("name")), str(value.get("version"))) if is_option else ("", "")
            choices.setdefault(option, {}).setdefault(json.dumps(value, sort_keys=True), flat({group: value}))
        options = {name for name, _ in choices}
        if len(options) < len(choices):
            found.append(f"{group}.version")
        keys = dict.fromkeys(key for distinct in choices.values() for parts in distinct.values() for key in parts)
        inner = {key.rpartition(".")[0] for key in keys}
        for key in (key for key in keys if key not in inner):
            values = ({json.dumps(v.get(key, DASH), sort_keys=True) for v in d.values()} for d in choices.values())
            if any(len(different) > 1 for different in values) and key != f"{INFECT.group}.poison_rate":
                found.append(key)
        if group in PLACES and group not in named and len(options) > 1:
            found.append(f"{group}.name")
    return found


def look_up(config: Mapping[str, Any], column: str) -> str:
    """The setting of a dotted key, as a table prints it; of one that every option has and that came later what was so before."""
    value = _at(config, column)
    group, _, key = column.partition(".")
    if value == DASH and group in SHARED and group in config:
        value = LATER[group].get(key, DASH)
    if isinstance(value, Mapping):
        return DASH if value else "{}"
    is_text = isinstance(value, str) and value != DASH and not group.startswith(content_of(""))
    return "null" if value is None else _quoted(value) if is_text else str(value)


def _at(settings: Any, key: str) -> Any:
    """The setting of a dotted key, where the names in it may have dots of their own; a dash where there is none."""
    if not isinstance(settings, Mapping):
        return DASH
    if key in settings:
        return settings[key]
    splits = (place for place, letter in enumerate(key) if letter == ".")
    found = (_at(settings[key[:place]], key[place + 1 :]) for place in splits if key[:place] in settings)
    return next((value for value in found if value is not DASH), DASH)


def _quoted(text: str) -> str:
    """A text as a table prints it, on one line; in quotes where it would look like a number, a truth or nothing."""
    try:
        float(text or "0")
    except ValueError:
        return repr(text) if text in ("null", "None", "True", "False") else paragraph(text)
    return repr(text)


def _in_full(config: Mapping[str, Any], column: str, others: Iterable[Mapping[str, Any]]) -> str:
    """The same of a configuration that `compared` left: a setting that it dropped as usual is there if the same option has it
    in another."""
    group, _, key = column.partition(".")
    said, usual, part = look_up(config, column), LATER.get(group, {}), config.get(group, {})
    if said != DASH or key not in usual or not isinstance(part, Mapping):
        return said
    alike = (other[group] for other in others if other.get(group, {}).get("name") == part.get("name"))
    return look_up({group: usual}, column) if any(key in other for other in alike) else DASH


def tell_apart(
    names: Sequence[dict[str, str]], settings: Sequence[Mapping[str, Any]], places: Sequence[Any] | None = None
) -> list[dict[str, str]]:
    """Of each configuration its base names, and the settings that tell it from those called alike.

    settings  of each, as `compared` leaves them
    places    what is compared with what: only settings that differ in one place count; None: all are in one"""
    alike: dict[tuple[str, ...], dict[Any, list[Mapping[str, Any]]]] = {}
    for base, config, place in zip(names, settings, places or [None] * len(names), strict=True):
        alike.setdefault(tuple(base.values()), {}).setdefault(place, []).append(config)
    keys = {
        base: list(
            dict.fromkeys(key for members in parts.values() if len(members) > 1 for key in differing(members, names[0]))
        )
        for base, parts in alike.items()
    }
    return [
        base | {key.removesuffix(".name"): _in_full(config, key, settings) for key in keys[tuple(base.values())]}
        for base, config in zip(names, settings, strict=True)
    ]


def label(names: Mapping[str, str], axis: str) -> str:
    """`fst, alpha 0.2` from its names; settings of another group keep their dotted key."""
    more = (f"{key.removeprefix(f'{axis}.')} {value}" for key, value in names.items() if key != axis)
    return ", ".join([names[axis], *more])
