"""What must be said below tables: n and seeds, spread, hardware, what is left out of means, what figures are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from backdoorbench import metrics
from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.errors import join_words
from backdoorbench.reporting import holdouts
from backdoorbench.reporting.comebacks import MARGIN
from backdoorbench.reporting.fragile import is_open, is_plain
from backdoorbench.reporting.grids import (
    AFTERWARDS,
    CLEAN,
    EXACT,
    FRAGILE,
    LEFT_OUT,
    OF_IMAGES,
    OF_MODELS,
    SUPERFICIAL,
    WEAK,
    Column,
    Grid,
    blocks,
    labels,
)
from backdoorbench.reporting.rows import COSTS, DASH, FIGURES, Row, compared, differing, look_up, titled

if TYPE_CHECKING:
    from backdoorbench.metrics import Limits
    from backdoorbench.storage.record import Run

MOST = 10  # of a list in a note
WORDS = {  # that stand in brackets behind an attack's name -> what they mean
    "weak": "weak: the infection barely took, by its ASR, its CA or what the trigger does to a clean model: the figures of a "
    "defense mean little",
    "broken": "broken: the network is no classifier, or no trigger was planted: the figures of a defense mean nothing",
}
BEST = "of the defenses that finished every seed of a setting, none collapsed, on infections that took"
BOLD = f"bold: the best mean as printed {BEST}"
HOLDOUT_CA = (
    "holdout CA: the purified model on the defender's own images: on those that holdout.validate keeps from the defense, else on "
    "those that it tuned on"
)
COMPUTES = ("bdx", "torch", "torchvision", "timm")  # packages whose versions bear on figures
COMPANY = "costs are not all comparable"
MEMORY = {
    ("memory",): "memory: what the process held, at most, libraries included.",
    ("device_memory",): "device memory: what the process had allocated on the device, at most, libraries included.",
    (
        "memory",
        "device_memory",
    ): "memory, device memory: what the process held, and had allocated on the device, at most, libraries included.",
}
CONTROL = (
    f"{CLEAN}: trained by the same recipe without poison, and shown the same trigger: the RA that is left where nothing but the "
    "backdoor is removed"
)
CLEAN_MODEL = "clean: the same detector, asked about a clean model of the same recipe"
OF_DETECTORS = {*chain(*OF_IMAGES, *OF_MODELS)}  # figures of a detector
OF_AFTER = {figure for shown, figure, _, _ in AFTERWARDS if shown != "asr"}  # of an after-attack


def below(
    rows: Sequence[Row],
    found: Sequence[Row],
    runs: Sequence[Run],
    grids: Sequence[Grid],
    figures: Sequence[str],
    limits: Limits = metrics.LIMITS,
) -> list[str]:
    """Everything that must be said below a report's tables.

    rows    that are in the tables of models; found: in those of detectors and of after-attacks
    limits  within which plain fine-tuning makes an infection fragile"""
    items = [item for grid in grids for line in grid.lines for item in line]
    said = [footer([*rows, *found], runs)] if rows or found else []
    said += versions(runs) if said else []
    said += holdouts.note([*rows, *found])
    if any(item.best for item in items):
        said.append(f"best: {BEST}")
    is_marked = any(LEFT_OUT in item.text for item in items)
    said += collapsed(rows or found, f"{LEFT_OUT} " if is_marked else "")
    said += rebuilt(runs)
    if own := [*unusual(rows), *unusual(found)]:
        said.append(f"not as their names imply: {join_few(list(dict.fromkeys(own)))}")
    if various := varying(rows):
        said.append(f"settings that differ between attacks: {join_few(various)}")
    said += [note for word, note in WORDS.items() if any(_has_word(item.text, word) for item in items)]
    if any(WEAK in item.text for item in items):
        said.append(f"{WEAK} the infection is weak or broken: the figures of a defense mean little")
    said += fragile(rows, limits, any(FRAGILE in item.text for item in items))
    said += definitions(figures) if rows else []
    said += [CONTROL] if any(has_control(grid) for grid in grids) else []
    said += [HOLDOUT_CA, *coarse(rows)] if rows and "holdout_ca" in figures else []
    said += [*of_costs(figures), *company(rows)] if rows and set(figures) & set(COSTS) else []
    said += comebacks(rows, limits, any(SUPERFICIAL in item.text for item in items))
    columns = [column for grid in grids for column in grid.columns]
    return said + detectors(columns) + afterwards(columns)


def has_control(grid: Grid) -> bool:
    """Whether a table of models has a line or columns of the clean one."""
    heads = [column.flat for column in grid.columns if column.figure in FIGURES]
    return any(text.startswith(CLEAN) for text in (*heads, *(item.text for line in grid.lines for item in line)))


def footnotes(grid: Grid, said: Sequence[str]) -> list[str]:
    """Those of the notes that a caption of this grid must have: what its defenders had, its marks, and its figures."""
    shown = " ".join(item.text for line in grid.lines for item in line)
    figures = {column.figure for column in grid.columns}
    words = {f"{word}:": _has_word(shown, word) for word in ("weak", "broken", "fragile", "superficial")}
    marks = (
        {mark: mark in shown for mark in (LEFT_OUT, WEAK, FRAGILE, SUPERFICIAL)}
        | {
            "published": "published" in {column.group for column in grid.columns}
            or re.search(r"\[[\d.]+ [a-z]+\]", shown) is not None
        }
        | {"collapsed": " collapsed)" in shown}
    )
    heads = [head for head, is_there in (words | marks).items() if is_there]  # how notes begin
    kept = [note for note in said if note.startswith("holdout: ")]
    kept += [note for note in said if figures & set(COSTS) and note.startswith(COMPANY)]
    kept += [BOLD] if any(item.best for line in grid.lines for item in line) else []
    kept += [note for note in said if any(head in note[:14] for head in heads)]
    kept += definitions(figures)
    kept += [HOLDOUT_CA] if "holdout_ca" in figures else []
    kept += [*of_costs(figures), *detectors(grid.columns), *afterwards(grid.columns)]
    return kept + ([CONTROL] if has_control(grid) else [])


# ---- what figures are -----------------------------------------------------------------------------------------------


def definitions(figures: Collection[str]) -> list[str]:
    """What the figures of models are, of those that are shown."""
    needs = {"ca": {"ca", "ca_after", "holdout_ca", "der"}, "asr": {"asr", "ra", "der"}, "ra": {"ra"}}
    by_others = {"asr"} if any(figure.startswith("asr_") for figure in figures) else set()
    said = [text for name, text in metrics.DEFINITIONS.items() if needs[name] & {*figures} or name in by_others]
    more = [metrics.DER_DEFINITION] if "der" in figures else []
    return [" ".join([*said, "Percent.", *more])] if said else []


def of_costs(figures: Collection[str]) -> list[str]:
    """What the costs are, of those that are shown."""
    said = [
        "seconds: of the defense, its learning curve apart." if "seconds" in figures else "",
        MEMORY.get(tuple(name for name in ("memory", "device_memory") if name in figures), ""),
        "energy: that the device drew, by all processes." if "energy" in figures else "",
        "images/s: of its trainings." if "images_per_second" in figures else "",
    ]
    return [" ".join([*filter(None, said), f"{DASH} where nothing tells it"])] if any(said) else []


def detectors(columns: Sequence[Column]) -> list[str]:
    """What the figures of detectors are, of those that are shown."""
    shown = {column.figure for column in columns}
    own = [titled(name) for name in ("tpr", "fpr", "precision") if name in shown]
    of_rows = [
        "AUROC: how often a triggered (poisoned) one is more suspicious than a clean one." if "auroc" in shown else "",
        "TPR@k: share of those above the threshold that at most k % of the clean exceed."
        if any(name.startswith("tpr_") for name in shown)
        else "",
        f"{', '.join(own)}: at the detector's own threshold." if own else "",
    ]
    any_class, target = "any_flagged" in shown, "target_flagged" in shown
    of_models = "flagged: runs in which any class is called a backdoor's target" if any_class else ""
    of_models += "; target: the attacker's" if any_class and target else ""
    of_models += (
        "target: runs in which the attacker's class is called a backdoor's target" if target and not any_class else ""
    )
    has_index = "anomaly_index" in shown
    index = "index: how far the most suspicious class lies from the others." if has_index else ""
    unit = ("Percent, the index apart." if has_index else "Percent.") if of_models else ""
    said = []
    if any(of_rows):
        said.append(" ".join(["Detectors of inputs or training rows:", *filter(None, of_rows), "Percent."]))
    if index or of_models:
        said.append(" ".join(filter(None, ["Detectors of models:", index, of_models and f"{of_models}.", unit])))
    return said + ([CLEAN_MODEL] if any(_is_beside_clean(column) for column in columns) else [])


def _is_beside_clean(column: Column) -> bool:
    """Whether it is what a detector says of the clean model."""
    return column.group == CLEAN and column.figure in OF_DETECTORS


def afterwards(columns: Sequence[Column]) -> list[str]:
    """What the figures of after-attacks are, of those that are shown."""
    of_after = [column for column in columns if column.figure in OF_AFTER]
    if not of_after:
        return []
    shown = {column.figure for column in of_after}
    groups = {column.group for column in of_after}
    said = ["After-attacks on purified models: ASR before and after"]
    if "asr_after_untriggered" in shown:
        said.append("; lured: images without the trigger that the same change makes the target")
    controls = {
        "on a clean model of the same recipe": CLEAN in groups or "asr_after_clean" in shown,
        "after exact purification, an oracle that knew the trigger": EXACT in groups or "asr_after_exact" in shown,
    }
    there = [text for text, is_shown in controls.items() if is_shown]
    if there:
        above = "both" if len(there) > 1 else "it"
        said.append(f". The same {', and '.join(there)}: only what lies above {above} is the backdoor's")
    return ["".join([*said, ". Percent."])]


def _has_word(text: str, word: str) -> bool:
    """Whether a cell says it in brackets: `badnets (weak, fragile)`."""
    return re.search(rf"\((?:\w+, )*{word}[,)]", text) is not None


def coarse(rows: Sequence[Row]) -> list[str]:
    """How little of a holdout CA one image is, where few were kept for it."""
    fewest = next(iter(holdouts.kept(rows)), None)
    if fewest is None:
        return []
    return [
        f"holdout CA is of {fewest} images{' at least' * (len(holdouts.kept(rows)) > 1)}: one is {100 / fewest:.2f} points"
    ]


def company(rows: Sequence[Row]) -> list[str]:
    """A warning where costs are of runs that did not share machine and process alike."""
    counts: Counter[tuple[int, bool] | None] = Counter()
    for run in (run for row in rows for run in row.runs):
        found = run.environment.get("company")
        counts[(found["at_once"], found["fresh"]) if found else None] += 1
    if len(counts) < 2:
        return []
    ways = [
        f"{count} run{'s' * (count != 1)} {_shared(kind)}"
        for kind, count in sorted(counts.items(), key=lambda pair: str(pair[0]))
    ]
    return [f"{COMPANY}, since runs shared machine and process differently: {'; '.join(ways)}"]


def _shared(kind: tuple[int, bool] | None) -> str:
    """How a run shared machine and process."""
    if kind is None:
        return "of which the records do not say it"
    at_once, is_fresh = kind
    beside = "alone" if at_once == 1 else f"{at_once} at a time"
    return f"{beside}, {'in a fresh process' if is_fresh else 'in a process that had done others'}"


def footer(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """What a table must say of itself: n and seeds, spread, hardware."""
    seeds = sorted({seed for row in rows for seed in row.seeds})
    devices = sorted({run.environment.get("device", "?") for run in runs if run.status == "done"})
    spread = "mean ± sample standard deviation over seeds; " if any(row.n > 1 for row in rows) else ""
    return f"{spread}{seeds_of(seeds)}; {'; '.join(devices)}"


def versions(runs: Sequence[Run]) -> list[str]:
    """A sentence on finished runs that were made by several versions of what computes figures, where there are such."""
    packages = [run.environment.get("packages", {}) for run in runs if run.status == "done"]
    said = []
    for name in COMPUTES:
        counts = Counter(str(each[name]) for each in packages if name in each)
        if len(counts) > 1:
            said.append(f"{name} {', '.join(f'{version} ({count})' for version, count in sorted(counts.items()))}")
    return [f"runs by several versions, which may differ by more than their seeds: {'; '.join(said)}"] if said else []


def collapsed(rows: Sequence[Row], mark: str) -> list[str]:
    """A sentence on the runs that are left out of the means, where there are any."""
    count = sum(len(row.collapsed) for row in rows)
    which = join_few([_collapsed(row, rows) for row in rows if row.collapsed])
    said = f"{mark}collapsed and left out of the means: {count} run{'s' * (count > 1)}: {which}"
    return [said] if count else []


def _collapsed(row: Row, rows: Sequence[Row]) -> str:
    """`fst on badnets, 10 % (constant predictor, seeds 1, 2)`, of these rows."""
    reasons: dict[str, list[int]] = {}
    for seed, reason in row.collapsed.items():
        reasons.setdefault(reason, []).append(seed)
    said = (f"{reason}, {seeds_of(seeds)}" for reason, seeds in reasons.items())
    return f"{_on_what(row, rows)} ({'; '.join(said)})"


def rebuilt(runs: Sequence[Run]) -> list[str]:
    """A sentence that names the methods whose training set is not the one that infected the model, where there are any."""
    met = {
        f"{stage.name} on {run.infection.name}"
        for run in runs
        for stage in run.stages
        if "rebuilt_train" in stage.notes
    }
    what = "given a poisoned set rebuilt with the finished trigger, which the model was not trained on"
    return [f"{what}: {join_few(sorted(met))}"] if met else []


def unusual(rows: Sequence[Row]) -> list[str]:
    """`fst: lr 0.02, epochs 5`: of each method the settings that its name does not imply, as far as all rows with it share them,
    and those that all of one table share, with what tells that table from the others: `fst: lr 0.02 (train.epochs 1)`. Those that
    differ between the rows of a table are told by labels."""
    members: dict[tuple[str, str], list[tuple[str, dict[str, str]]]] = {}
    tables = _tables(rows)
    for row in rows:
        for axis in dict.fromkeys((INFECT.group, row.stage.group)):
            inside = {
                key.removeprefix(f"{axis}."): look_up(row.config, key)
                for key in row.beyond
                if key.startswith(f"{axis}.") and key != f"{INFECT.group}.poison_rate"
            }
            members.setdefault((axis, row.names[axis]), []).append((tables[id(row)], inside))
    said = []
    for (_, name), found in members.items():
        everywhere = _common([inside for _, inside in found])
        here: dict[str, list[dict[str, str]]] = {}
        for table, inside in found:
            here.setdefault(table, []).append(inside)
        places: dict[tuple[str, str], list[str]] = {}
        for table, insides in here.items():
            for setting in _common(insides).items() - everywhere.items():
                places.setdefault(setting, []).append(table)
        parts = [f"{key} {value}" for key, value in everywhere.items()]
        parts += [f"{key} {value} ({'; '.join(where)})" for (key, value), where in sorted(places.items())]
        if parts:
            said.append(f"{name}: {', '.join(parts)}")
    return said


def _common(settings: Sequence[dict[str, str]]) -> dict[str, str]:
    return {key: value for key, value in settings[0].items() if all(each.get(key) == value for each in settings)}


def _tables(rows: Sequence[Row]) -> dict[int, str]:
    """By a row's id what tells its table of a list from the others of its stage; nothing where there is one."""
    found: dict[int, str] = {}
    for stage in dict.fromkeys(row.stage for row in rows):
        tables = blocks(
            [row for row in rows if row.stage == stage], (INFECT.group, "rate", *stage.upon[1:], stage.group)
        )
        parts = [title.split(" · ") for title, _ in tables]
        alike = set(parts[0]).intersection(*parts)
        for said, (_, members) in zip(parts, tables, strict=True):
            apart = " · ".join(part for part in said if part not in alike)
            found |= {id(row): apart for row in members}
    return found


def varying(rows: Sequence[Row]) -> list[str]:
    """`fst: lr 0.01, 0.02`: settings of a defense that differ between attacks on the same data and network."""
    axis = PURIFY.group
    found: dict[str, dict[str, dict[str, None]]] = {}
    for _, members in blocks(rows, (INFECT.group, "rate", axis)):
        called = labels(members, axis, (INFECT.group, "rate"))
        for name in dict.fromkeys(called):
            configs = [row.config for row, text in zip(members, called, strict=True) if text == name]
            for key in differing([compared({axis: config[axis]}) for config in configs]):
                values = found.setdefault(name, {}).setdefault(key.removeprefix(f"{axis}."), {})
                values.update(dict.fromkeys(look_up(config, key) for config in configs))
    return [
        f"{name}: " + "; ".join(f"{key} {', '.join(values)}" for key, values in settings.items())
        for name, settings in found.items()
    ]


def fragile(rows: Sequence[Row], limits: Limits, is_marked: bool) -> list[str]:
    """What plain fine-tuning says of the rows, and which of them have none beside them.

    is_marked  whether a cell has the mark"""
    said = []
    if any(row.fragile for row in rows):
        names = dict.fromkeys(row.names[row.stage.group] for row in rows if row.fragile and is_plain(row))
        ends = f"plain fine-tuning ({', '.join(names)}) ends the backdoor by itself, with {limits}"
        said.append(f"{f'{FRAGILE} ' if is_marked else ''}fragile: {ends}; so a defense proves nothing there")
    if without := list(dict.fromkeys(_on_what(row, rows) for row in rows if is_open(row))):
        fine_tuning = "among these runs no plain fine-tuning (defense=ft) of the same infections"
        said.append(f"{fine_tuning}, so whether they are fragile is not known: {join_few(without)}")
    return said


def comebacks(rows: Sequence[Row], limits: Limits, is_marked: bool) -> list[str]:
    """Which purifications are superficial, and what that means."""
    marked = [row for row in rows if row.superficial]
    if not marked:
        return []
    rule = f"an ASR below {100 * limits.asr:g} %, and then one that lies {100 * MARGIN:g} points or more above every control's"
    rule += "; by one seed of several, too" if any(row.n > 1 for row in marked) else ""
    found = join_few([_on_what(row, rows) for row in marked])
    return [f"{SUPERFICIAL + ' ' if is_marked else ''}superficial: the backdoor comes back ({rule}): {found}"]


def _on_what(row: Row, rows: Sequence[Row]) -> str:
    """`fst on badnets, 10 %`, with the settings in which the row differs from others, `fst, alpha 0.2 on badnets, 10 %`; behind
    it what else tells it from the rest of these rows: `(dataset digits)`."""
    methods = (INFECT.group, *row.stage.upon[1:], row.stage.group)
    said: dict[str, list[str]] = {group: [row.names[group]] for group in methods}
    beside = []
    if (rate := row.names["rate"]) != DASH:
        said[INFECT.group].append(rate)
    for name, value in row.names.items():
        group, _, key = name.partition(".")
        differs = len({other.names.get(name) for other in rows}) > 1
        if name in (*methods, "rate") or value == DASH or not differs:
            continue
        if key and group in said:
            said[group].append(f"{key} {value}")
        else:
            beside.append(f"{name} {value}")
    called = " on ".join(", ".join(said[group]) for group in dict.fromkeys(reversed(methods)))
    return called + (f" ({', '.join(beside)})" if beside else "")


def seeds_of(seeds: Sequence[int]) -> str:
    """`seed 0`, or `seeds 0, 1, 2`."""
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {ranges(seeds)}"


def ranges(numbers: Sequence[int]) -> str:
    """`0, 1, 2`, or `0 to 9` for a long row without gaps."""
    if len(numbers) > 5 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def join_few(texts: Sequence[str]) -> str:
    """The texts joined; of more than ten the first, and how many more."""
    more = f"; and {len(texts) - MOST} more" if len(texts) > MOST else ""
    return "; ".join(texts[:MOST]) + more


def join_called(names: Sequence[str]) -> str:
    """`ft and fst`; names that have commas of their own are parted by semicolons."""
    return "; ".join(names) if any("," in name for name in names) else join_words(list(names))
