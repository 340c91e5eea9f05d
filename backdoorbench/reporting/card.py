"""The card of a cleaned model, for whoever decides whether to use it: what was read, how it reads images, what was done to it,
which trigger judged it, what that changed and how surely, and what nobody knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.config import catalog
from backdoorbench.config.acts import idle
from backdoorbench.config.build import target
from backdoorbench.config.groups import READING
from backdoorbench.errors import ConfigError, few, join_words
from backdoorbench.metrics import Limits, interval, printed
from backdoorbench.reporting.holdouts import KINDS
from backdoorbench.reporting.rows import FIGURES, after_figures, percent
from backdoorbench.storage.record import FILE

if TYPE_CHECKING:
    from backdoorbench.config.compose import Plain
    from backdoorbench.storage.record import Run

NAMED = 50  # classes that are named one by one
TITLES = ("accuracy (CA)", "attack success rate (ASR)", "robust accuracy (RA)")
UNSAID = ("_target_", "version", "name", "checkpoint", "augment")
UNKNOWN = "The trigger was not known: nothing here says that a backdoor was there, or that it is gone."


@dataclass(frozen=True)
class Facts:
    """What a run's record does not hold of the file that was written.

    config     of the command that wrote it, whose paths may be others than those of the run that it found done
    file       that was written; digest: SHA-256 of it
    mean, std  of pixels in [0, 1], by which the network normalises
    agreement  share of the test images that both models call the same
    beside     plain values that were kept beside the weights; left_out: what the file that was read held and this one does not
    copies     heads of names under which the file holds the network once more"""

    config: Plain
    file: Path
    digest: str
    mean: Sequence[float]
    std: Sequence[float]
    agreement: float
    beside: Mapping[str, Any]
    left_out: Sequence[str]
    copies: Sequence[str]


def text(run: Run, folder: Path, facts: Facts) -> str:
    """The card, in markdown. folder: of the run's record."""
    parts = [[f"# {facts.file.name}"]]
    parts += [[f"**Warning: {warning}**"] for warning in warnings(run)]
    parts += [model_lines(run, facts), work_lines(run, folder, facts), trigger_lines(run, facts)]
    parts += [["## What it changed"], figure_lines(run)]
    parts += [[f"{percent(facts.agreement)} % of the test images are called as before. {LIMITS}"]]
    parts += [["## Whether it comes back"], comeback_lines(run), [caveat(run)]]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


LIMITS = (
    "The 95 % intervals are exact binomial ones: they say how few images bear on a figure, and nothing of other images."
)


def warnings(run: Run) -> list[str]:
    """What forbids to take the figures at their word, or the cleaned model for the one that was read: a trigger that never acted,
    a network that reads the images wrongly, a defense that costs more accuracy than tables allow one."""
    infected, notes = run.infected, run.infection.notes
    assert infected is not None
    found = [f"{notes[name]}." for name in ("order", "input") if name in notes]
    floor = run.config["gates"]["asr_floor"]
    if infected.asr is not None and infected.asr < floor:
        found.append(
            f"the trigger hardly acted on the model that was read: ASR {percent(infected.asr)} % of "
            f"{infected.n_triggered:,} images, below {percent(floor)} %. A low ASR after cleaning says nothing then; the "
            f"trigger, its place or its target may be another."
        )
    if run.infection.status == "broken":
        found.append(f"the model that was read is broken here: {'; '.join(run.infection.reasons)}.")
    allowed = Limits().ca_loss
    if run.purified is not None and printed(infected.ca - run.purified.ca) > printed(allowed):
        name = run.purification.name
        found.append(
            f"{name} took {printed(infected.ca - run.purified.ca):.2f} points of accuracy (of {infected.n_clean:,} images), and "
            f"a defense that costs more than {100 * allowed:g} counts as failed in tables. Weaker settings of it (bdx show "
            f"defense={name}) or another (--defense; bdx list defense) may cost less."
        )
    return found


def model_lines(run: Run, facts: Facts) -> list[str]:
    """What the model is, where its weights come from, and how it reads images."""
    model, dataset, train = facts.config["model"], facts.config["dataset"], run.config["train"]
    packages, classes = run.environment.get("packages", {}), run.environment.get("data", {}).get("classes", [])
    network = {key: value for key, value in settings("model", facts.config).items() if key not in READING}
    lines = [
        "## The model",
        "",
        f"- read: `{Path(model['checkpoint']).name}`, SHA-256 {run.content['model.checkpoint']}",
        f"- written: `{facts.file.name}`, SHA-256 {facts.digest}",
        f"- network: {', '.join([model['name'], *said(network, 'model.')])}; images of {dataset['crop'] or dataset['size']} px",
        f"- preprocessing: {preprocessing(model, facts)}",
        f"- classes, in the order of its outputs: {class_list(classes)}",
        f"- computed in {train['precision']}; bdx {packages.get('bdx')}, torch {packages.get('torch')}, "
        f"{run.environment.get('device')}; {run.started[:10]}",
    ]
    code = {key: value for key, value in run.content.items() if key.startswith("model.") and key != "model.checkpoint"}
    lines += [f"- source of {key}: SHA-256 {value.split()[-1]}" for key, value in code.items()]
    if facts.beside:
        kept = few([f"{name} {value}" for name, value in facts.beside.items()], 8)
        lines.append(f"- kept beside the weights, of the model that was read, and no longer true of this one: {kept}")
    if facts.copies:
        lines.append(f"- cleaned as well, since the file holds the network there once more: {', '.join(facts.copies)}")
    if facts.left_out:
        lines.append(f"- left out, since it was of the weights that were read: {', '.join(facts.left_out)}")
    return lines


def preprocessing(model: Mapping[str, Any], facts: Facts) -> str:
    """What becomes of a pixel before the network sees it."""
    white = model.get("range", 1)
    colours = {"rgb": "red first", "bgr": "blue first (BGR)"}[model.get("colours", "rgb")]
    numbers = [", ".join(f"{white * value:.4g}" for value in values) for values in (facts.mean, facts.std)]
    shown = "grey" if model.get("channels", 3) == 1 else colours
    return f"pixels from 0 to {white}, {shown}; less the mean ({numbers[0]}), over the deviation ({numbers[1]})"


def class_list(classes: Sequence[str]) -> str:
    """`0 cat, 1 dog`; of very many the first."""
    named = [f"{label} {name}" if name != str(label) else name for label, name in enumerate(classes)]
    more = f", and {len(named) - NAMED:,} more in {FILE}" if len(named) > NAMED else ""
    return ", ".join(named[:NAMED]) + more


def work_lines(run: Run, folder: Path, facts: Facts) -> list[str]:
    """What was done to the model, with which images, and where the record of it lies."""
    config = run.config
    holdout = run.purification.details.get("holdout", {})
    source = facts.config["dataset"].get("root") or config["dataset"]["name"]
    had = f"{holdout.get('images', 0):,} clean images"
    if kind := KINDS.get(holdout.get("kind", "")):
        is_known = holdout["kind"] != "seen"
        had += (
            f" ({kind})" if is_known else " of the training split (whether the model was trained on them nobody knows)"
        )
    return [
        "## What was done",
        "",
        f"- defense: {', '.join([config['defense']['name'], *said(settings('defense', config))])}. {title('defense', config)}",
        f"- with {had}; judged by {run.infected.n_clean if run.infected else 0:,} test images",
        f"- images: `{source}`, SHA-256 of all {run.content['dataset.root']}",
        f"- record: {folder / FILE}, seed {config['seed']}",
    ]


def trigger_lines(run: Run, facts: Facts) -> list[str]:
    """The trigger that judged the model, as it was given; nothing where none was."""
    if run.infected is None or run.infected.asr is None:
        return []
    attack, classes = facts.config["attack"], run.environment.get("data", {}).get("classes", [])
    digests = [f"{key}: SHA-256 {value.split()[-1]}" for key, value in run.content.items() if key.startswith("attack.")]
    label = attack["target"]
    leads = {"all_to_all": "the class after each image's own"}.get(
        attack["mapping"], f"class {label}, called '{classes[label]}'"
    )
    if attack["sources"]:
        leads += f", of images of the classes {join_words([str(source) for source in attack['sources']])}"
    own = {
        key: value
        for key, value in settings("attack", facts.config).items()
        if key not in ("target", "mapping", "sources")
    }
    change = run.infection.notes.get("share_changed")
    lines = [
        "## The trigger that judged it",
        "",
        f"- as given: {', '.join(said(own))}",
        f"- it leads to: {leads}",
    ]
    if change is not None:
        lines.append(f"- it changes {percent(change)} % of the values of an image")
    return lines + [f"- {digest}" for digest in digests]


def figure_lines(run: Run) -> list[str]:
    """The table of figures before and after, each over its own images, with intervals."""
    before, after = run.infected, run.purified
    assert before is not None and after is not None
    rows = [
        "| percent | of test images | before | 95 % | after | 95 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for figure, name in zip(FIGURES, TITLES, strict=True):
        count = before.n_clean if figure == "ca" else before.n_triggered
        rows += row(name, count, getattr(before, figure), getattr(after, figure))
    if tried := run.detection.details.get("reversed"):
        name = f"moved to class {tried['class']} by the reversed trigger ({tried['pixels']:g} pixels)"
        rows += row(name, tried.get("images", 0), tried["before"], tried["after"])
    return rows


def row(name: str, count: int, before: float | None, after: float | None) -> list[str]:
    """A line of the table; none where nothing was measured."""
    if before is None or after is None or not count:
        return []
    cells = [
        cell
        for share in (before, after)
        for cell in (percent(share), " to ".join(map(percent, interval(share, count))))
    ]
    return [f"| {name} | {count:,} | {' | '.join(cells)} |"]


def comeback_lines(run: Run) -> list[str]:
    """What an attack on the cleaned model brought back, and what the same did to the controls."""
    figures, after, purified = after_figures(run), run.config["after"], run.purified
    asr = figures.get("asr_after")
    if asr is None or purified is None:
        return ["Not tried." if run.infected is None or run.infected.asr is None else "Not tried: after=none."]
    lines = [
        f"Attacked again by {', '.join([after['name'], *said(settings('after', run.config))])}. {title('after', run.config)}",
        "",
        f"- this model: ASR {percent(purified.asr)} % → **{percent(asr)} %**"
        + (f", CA {percent(purified.ca)} % → {percent(figures['ca_after'])} %" if "ca_after" in figures else ""),
    ]
    for end, name in (("clean", "a clean model of the same recipe"), ("exact", EXACT)):
        if (control := figures.get(f"asr_after_{end}")) is not None:
            lines.append(f"- control, {name}: ASR {percent(figures.get(f'asr_{end}'))} % → {percent(control)} %")
    return lines if len(lines) > 3 else [*lines, f"- no control beside it: {ADVICE}"]


EXACT = (
    "the model that was read, tuned on triggered images with their true labels, so that it knows the backdoor no more"
)
ADVICE = "exact.epochs=5 adds what the same brings back of a model that knows the backdoor no more"


def caveat(run: Run) -> str:
    """What must not be concluded."""
    assert run.infected is not None
    if run.infected.asr is None:
        return UNKNOWN
    return (
        "A low attack success rate holds for the trigger that was tried, where and as it was tried, and can come back by a "
        "little training."
    )


# ---- settings in words ----------------------------------------------------------------------------------------------


def settings(group: str, config: Plain) -> dict[str, Any]:
    """The settings of a group's option that act, and say something."""
    node = config[group]
    kind = target(node, group, config["plugins"])
    off = {found.key.removeprefix(f"{group}.") for found in idle(kind, node, group)}
    return {key: value for key, value in node.items() if key not in {*UNSAID, *off} and value not in (None, [], {})}


def said(found: Mapping[str, Any], place: str = "") -> list[str]:
    """`epochs 10`, each. place: what stands before the names."""
    return [f"{place}{key} {value}" for key, value in found.items()]


def title(group: str, config: Plain) -> str:
    """What an option is, by its documentation; nothing of one that has none here any more."""
    try:
        return catalog.describe(group, config[group]["name"]).title
    except ConfigError:
        return ""
