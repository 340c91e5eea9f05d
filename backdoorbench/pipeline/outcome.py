"""What a single run prints: a line a stage, at its end the table, whatever must be said about it, and where the record lies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from backdoorbench.config.groups import AFTER, DETECT, INFECT, JUDGED, PURIFY
from backdoorbench.reporting import holdouts, rows
from backdoorbench.reporting.rows import DASH, FIGURES, heading, percent
from backdoorbench.screen import clock
from backdoorbench.storage.record import FILE, Run

MODELS = tuple(stage.model for stage in JUDGED)
COUNTED = {  # a detector's figures that are shares, and what a line calls them
    "auroc": "AUROC",
    "tpr_1": "TPR at FPR 1 %",
    "tpr_10": "at 10 %",
    "tpr": "flagged of the poisoned",
    "fpr": "of the clean",
}

SAID = (
    "control",
    "surrogate",
    "covers",
    "order",
    "input",
    "finer",
)  # notes of an infection that are sentences for whoever started the run


def stage_line(run: Run, stage: str) -> str:
    """What a stage did, and what it cost."""
    if stage == INFECT.name:
        found = run.infection
        said = run.config["attack"].get("poison_rate")
        said = f"poison rate {100 * said:g} %" if said is not None else found.notes.get("training", "")
        said = ", ".join(filter(None, (said, found.notes.get("target"))))
        return _line(stage, said, f"cached {found.key}" if found.cached else clock(found.seconds["infect"]))
    if stage == DETECT.name:
        found = run.detection
        cost = f"cached {found.key}" if found.cached else clock(found.seconds["detect"])
        return _line(stage, found.name, cost)
    if stage == AFTER.name:
        return _line(stage, run.after.name, clock(run.after.seconds["after"]))
    said, found = f"{run.config['defense']['name']}, {holdouts.short(run.config['holdout'])}", run.purification
    spent = found.seconds.get("curve", 0)
    beside = f", its curve {clock(spent)}" if spent >= 1 else ""
    known = f"cached {found.key}" if found.key else "taken over"  # from a run's folder, which has no key of its own
    return _line(stage, said, known if found.cached else clock(found.seconds["purify"]) + beside)


def _line(stage: str, said: str, cost: str) -> str:
    return f"  {stage:<10} {said:<36} {cost}"


def scores_table(run: Run, names: Sequence[str] = MODELS) -> Table:
    """CA, ASR and RA before and after, in percent. names: what the two models are called."""
    shown = Table(box=None, padding=(0, 1), show_edge=False, pad_edge=False)
    shown.add_column("          ")
    for name in ("CA", "ASR", "RA"):
        shown.add_column(name, justify="right", min_width=7)
    rows = [(name, run.of(stage.name).scores) for name, stage in zip(names, JUDGED, strict=True)]
    if run.infection.control is not None:
        rows.insert(0, ("control", run.infection.control))
    for name, scores in rows:
        figures = [percent(getattr(scores, figure) if scores else None) for figure in FIGURES]
        shown.add_row(f"   {name}", *figures)
    return shown


def detection_lines(run: Run) -> list[str]:
    """What the detector's verdict is worth, and what the same detector says of a clean model."""
    found = run.detection
    if not found.name:
        return []
    lines = [f"  {found.name:<10} {_told(found.figures)}"]
    if found.beside:
        lines.append(f"  {'clean model':<10} {_told(found.beside)}")
    if tried := found.details.get("reversed"):
        lines.append(f"  {'reversed':<10} {reversed_line(tried)}")
    return lines


def reversed_line(tried: dict[str, Any]) -> str:
    """What the reversed trigger of the most suspicious class does before and after."""
    return (
        f"a trigger of {tried['pixels']:g} pixels towards class {tried['class']} moves {percent(tried['before'])} % of the "
        f"others' images before, {percent(tried['after'])} % after"
    )


def _told(figures: dict[str, float | None]) -> str:
    if "target_flagged" not in figures:
        return ", ".join(f"{said} {percent(figures[name])}" for name, said in COUNTED.items() if name in figures)
    index, flagged, target = (figures.get(name) for name in ("anomaly_index", "any_flagged", "target_flagged"))
    said = [f"anomaly index {DASH if index is None else f'{index:.2f}'}"]
    said.append("a class is flagged" if flagged else "no class is flagged")
    if flagged and target is not None:
        said.append("the target among them" if target else "not the target")
    return ", ".join(said)


def after_lines(run: Run) -> list[str]:
    """What became of the purified model after an attack on it, and of the controls."""
    found, figures = run.after, rows.after_figures(run)
    if not found.name:
        return []
    models = {"": found.name, "_clean": "clean", "_exact": "exact"}
    lines = []
    for end, name in models.items():
        asr = figures.get(f"asr_after{end}")
        before = figures.get(f"asr{end}") if end else run.purified.asr if run.purified else None
        more = (
            {"CA": figures.get("ca_after"), "without the trigger": figures.get("asr_after_untriggered")}
            if not end
            else {}
        )
        told = [f"{what} {percent(value)}" for what, value in more.items() if value is not None]
        if asr is not None:
            lines.append(f"  {name:<10} {', '.join([f'ASR {percent(before)} → {percent(asr)}', *told])}")
    return lines


def print_outcome(console: Console, run: Run, folder: Path, repeated: bool) -> None:
    """The end of a run: its table, whatever must be said about it, and where the record lies."""
    if repeated:
        console.print(Text(f"\n  {heading(run)}"), style="bold")
        console.print(Text("  done before; rerun=true repeats it"), style="dim")
    console.print(scores_table(run))
    for line in [*detection_lines(run), *after_lines(run)]:
        console.print(Text(line), soft_wrap=True)
    infection = run.infection
    if infection.status in ("weak", "broken"):
        console.print(Text(f"  {infection.status} infection: {'; '.join(infection.reasons)}"), style="yellow")
    for name in SAID:
        if name in infection.notes:
            console.print(Text(f"  {infection.notes[name]}"), style="yellow", soft_wrap=True)
    if any("rebuilt_train" in stage.notes for stage in run.stages):
        methods = [run.of(stage.name).name for stage in (DETECT, PURIFY) if "rebuilt_train" in run.of(stage.name).notes]
        who = "the defense" if methods == [run.purification.name] else " and ".join(methods)
        said = f"the attacker left no training set; {who} was given one rebuilt with his trigger"
        console.print(Text(f"  {said}"), style="yellow")
    if run.infected is not None:
        counts = f"{run.infected.n_clean:,} clean"
        if run.infected.n_triggered:
            counts += f" and {run.infected.n_triggered:,} triggered"
        console.print(Text(f"  percent of {counts} test images"), style="dim")
    console.print(Text(f"  record     {folder / FILE}"), style="dim", soft_wrap=True)
