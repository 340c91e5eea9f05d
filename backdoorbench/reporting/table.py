"""Tables out of records: pure functions from runs to rows to text. Mean, spread and n over seeds; what differs is a column."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a view of records needs no torch
    from backdoorbench.metrics import Scores
    from backdoorbench.pipeline import Run

DASH = "–"  # what was not measured, never 0
FIGURES = ("ca", "asr", "ra")
NOT_COMPARED = {"runtime", "seed", "rerun", "force", "fail_fast", "plugins"}  # nothing a table is grouped by
CHOICES = ("dataset", "model", "train", "holdout", "attack", "defense")


@dataclass(frozen=True)
class Cell:
    """A figure over seeds: fractions, and how many."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None below two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed.

    names   column -> what it says: data set, model, attack, rate, defense, and whatever differs between rows
    before, after  ca, asr, ra -> Cell
    marks   the statuses among its infections, `took` apart
    """

    names: dict[str, str]
    n: int
    seeds: tuple[int, ...]
    before: dict[str, Cell]
    after: dict[str, Cell]
    marks: tuple[str, ...]


def percent(value: float | None) -> str:
    """`97.31`, or a dash."""
    return DASH if value is None else f"{100 * value:.2f}"


def show(cell: Cell) -> str:
    """`97.31 ± 0.42`, `97.31` for one value, or a dash."""
    spread = f" ± {100 * cell.spread:.2f}" if cell.spread is not None else ""
    return percent(cell.mean) + spread


def aggregate(runs: Iterable[Run]) -> list[Row]:
    """One row for each setting among finished runs, in order of first appearance; a seed run twice counts once, the latest."""
    done = [run for run in runs if run.status == "done"]
    groups: dict[str, dict[int, Run]] = {}
    for run in done:
        groups.setdefault(identity(run.config), {})[run.config["seed"]] = run
    extra = differing([next(iter(seeds.values())).config for seeds in groups.values()])
    rows = []
    for seeds in groups.values():
        members = [seeds[seed] for seed in sorted(seeds)]
        config = members[0].config
        names = base_names(config) | {column: look_up(config, column) for column in extra}
        marks = sorted({run.infection.get("status", "") for run in members} - {"took", "clean", ""})
        before = {name: _cell(run.infected for run in members)(name) for name in FIGURES}
        after = {name: _cell(run.purified for run in members)(name) for name in FIGURES}
        rows.append(Row(names, len(members), tuple(sorted(seeds)), before, after, tuple(marks)))
    return rows


def _cell(scores: Iterable[Scores | None]) -> Any:
    known = [score for score in scores if score is not None]

    def pick(name: str) -> Cell:
        values = (getattr(score, name) for score in known)
        return Cell(tuple(value for value in values if value is not None))

    return pick


def identity(config: dict[str, Any]) -> str:
    """The same text for configurations that a table does not tell apart."""
    kept = {name: value for name, value in config.items() if name not in NOT_COMPARED}
    return json.dumps(kept, sort_keys=True)


def base_names(config: dict[str, Any]) -> dict[str, str]:
    """The columns that every table has: data set, model, attack, rate, defense."""
    rate = config["attack"].get("poison_rate")
    return {
        "dataset": config["dataset"]["name"],
        "model": config["model"]["name"],
        "attack": config["attack"]["name"],
        "rate": DASH if rate is None else f"{100 * rate:g} %",
        "defense": config["defense"]["name"],
    }


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Dotted keys that tell rows apart beyond the base columns: within one option, keys whose values differ or that some
    rows lack."""
    found: list[str] = []
    compared = [flat({k: v for k, v in config.items() if k not in NOT_COMPARED}) for config in configs]
    for key in dict.fromkeys(key for settings in compared for key in settings if key != "attack.poison_rate"):
        group = key.split(".")[0]
        values: dict[str, set[str]] = {}
        for config, settings in zip(configs, compared, strict=True):
            choice = str(config[group].get("name")) if group in CHOICES else ""
            values.setdefault(choice, set()).add(json.dumps(settings.get(key, DASH), sort_keys=True))
        if any(len(different) > 1 for different in values.values()):
            found.append(key)
    for group in ("train", "holdout"):  # chosen, not named in the base columns
        if len({config[group]["name"] for config in configs}) > 1:
            found.append(f"{group}.name")
    return found


def look_up(config: dict[str, Any], column: str) -> str:
    """The setting of a dotted key, as a table prints it."""
    value = flat(config).get(column, DASH)
    return "null" if value is None else str(value)


def split_constant(rows: Sequence[Row]) -> tuple[dict[str, str], list[str]]:
    """Names that are the same in every row (for the title), and the columns that are left."""
    columns = list(rows[0].names) if rows else []
    constant = {c: rows[0].names[c] for c in columns if len({row.names[c] for row in rows}) == 1}
    kept = [c for c in columns if c not in constant or c in ("attack", "defense")]
    return {c: value for c, value in constant.items() if c not in kept}, kept


def grid(rows: Sequence[Row]) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and cells, as text."""
    constant, columns = split_constant(rows)
    title = " · ".join(f"{name} {value}" for name, value in constant.items())
    header = [*columns, "n", *(name.upper() for name in FIGURES), *(f"{name.upper()} after" for name in FIGURES)]
    cells = []
    for row in rows:
        mark = "".join(f" ({mark})" for mark in row.marks)
        names = [row.names[column] + (mark if column == "attack" else "") for column in columns]
        figures = [show(part[name]) for part in (row.before, row.after) for name in FIGURES]
        cells.append([*names, str(row.n), *figures])
    return title, header, cells


def as_markdown(rows: Sequence[Row]) -> str:
    """A pipe table; names to the left, figures to the right."""
    title, header, cells = grid(rows)
    body = pipes(header, cells, header.index("n"))
    return f"{title}\n\n{body}" if title else body


def pipes(header: Sequence[str], cells: Sequence[Sequence[str]], names: int) -> str:
    """Header and cells as a Markdown table, its first `names` columns to the left."""
    lines = [header, ["---"] * names + ["---:"] * (len(header) - names), *cells]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def as_csv(rows: Sequence[Row]) -> str:
    """Fractions, not percent: one line a row, mean and spread of each figure, empty where not measured."""
    columns = list(rows[0].names) if rows else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    figures = [f"{when}_{name}" for when in ("infected", "purified") for name in FIGURES]
    writer.writerow([*columns, "n", "seeds", "status", *(f"{f}{part}" for f in figures for part in ("", "_std"))])
    for row in rows:
        cells = [part[name] for part in (row.before, row.after) for name in FIGURES]
        numbers = [value for cell in cells for value in (cell.mean, cell.spread)]
        shown = ["" if value is None else f"{value:.6f}" for value in numbers]
        seeds = " ".join(str(seed) for seed in row.seeds)
        writer.writerow([*(row.names[c] for c in columns), row.n, seeds, " ".join(row.marks) or "took", *shown])
    return buffer.getvalue()


def as_latex(rows: Sequence[Row]) -> str:
    """A booktabs tabular that compiles as it is, under `\\usepackage{booktabs}`; missing figures are en dashes."""
    title, header, cells = grid(rows)
    names = header.index("n")
    arrows = {"CA": r"CA $\uparrow$", "ASR": r"ASR $\downarrow$", "RA": r"RA $\uparrow$"}
    plain = header[: names + 1]
    lines = [
        f"% {title}" if title else "%",
        r"\begin{tabular}{" + "l" * names + "r" * (len(header) - names) + "}",
        r"\toprule",
        " & " * names + r" & \multicolumn{3}{c}{infected} & \multicolumn{3}{c}{purified} \\",
        " & ".join([*(latex(name) for name in plain), *(arrows[f.upper()] for f in FIGURES * 2)]) + r" \\",
        r"\midrule",
        *(" & ".join(latex(cell) for cell in line) + r" \\" for line in cells),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Text with LaTeX's own characters escaped."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        DASH: "--",
    }
    special |= {mark: "\\" + mark for mark in "&%_#${}"}
    return "".join(special.get(mark, mark) for mark in text)


def footer(rows: Sequence[Row], runs: Sequence[Run]) -> str:
    """What a table must say of itself: n and seeds, spread, hardware."""
    seeds = sorted({seed for row in rows for seed in row.seeds})
    devices = sorted({run.environment.get("device", "?") for run in runs if run.status == "done"})
    spread = "mean ± sample standard deviation over seeds; " if any(row.n > 1 for row in rows) else ""
    return f"{spread}seeds {', '.join(map(str, seeds))}; {'; '.join(devices)}"
