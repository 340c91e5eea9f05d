"""Published figures beside ours: pure functions from runs and `published/*.csv` to comparisons.

The csv files hold what sources print, in percent, and how sure each reading is; nothing in them was measured here.
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoorbench.config import catalog
from backdoorbench.config.compose import choices, compose, conf_dir, flat
from backdoorbench.config.groups import INFECT, PURIFY
from backdoorbench.config.implied import beyond
from backdoorbench.errors import ConfigError, did_you_mean, few, join_words
from backdoorbench.metrics import printed
from backdoorbench.reporting.grids import Column, Grid, Item
from backdoorbench.reporting.holdouts import share
from backdoorbench.reporting.rows import (
    CHOICES,
    DASH,
    FIGURES,
    TOLD,
    Cell,
    Row,
    aggregate,
    compared,
    identity,
    look_up,
    percent,
    show,
)

if TYPE_CHECKING:
    from backdoorbench.storage.record import Run

TOLERANCE = 0.02  # of CA, ASR or RA, between a published mean of unknown spread and ours
RULE = (
    f"within: each published score at most {100 * TOLERANCE:g} points, or 2 of our standard deviations, from our mean"
)
MOST_MISSED = 5  # lines that match no run, which a note names
MOST_COMPOSED = 4  # pairs of attack and defense whose settings a report looks up; each costs a sixth of a second
COLUMNS = (
    "experiment", "source", "dataset", "model", "attack", "poison_rate", "target", "holdout", "defense", "setting", "epochs",
    "ca", "asr", "ra", "certainty", "note",
)  # of a csv  # fmt: skip
NOT_SETTINGS = {"root", "name", "_target_", "version"}  # of an option: where it lies, what it is called


@dataclass(frozen=True)
class Source:
    """Where figures stand: paper, arXiv id (with its version where it matters), and the place in it."""

    paper: str
    arxiv: str
    where: str


@dataclass(frozen=True)
class Figure:
    """One published row. Empty texts are what the source does not say.

    attack     `mean`: over attacks
    defense    `none`: the infected model
    setting    `key=value` that the row holds for, beyond the defense's name
    scores     ca, asr, ra -> fraction, as far as they are printed
    certainty  how the row was read: data of the source, figure image, abstract, second hand
    target     the attacker's label; holdout: the defender's share of the training set, percent
    """

    experiment: str
    source: str
    dataset: str
    model: str
    attack: str
    rate: str
    defense: str
    setting: str
    scores: dict[str, float]
    certainty: str
    note: str
    target: str = ""
    holdout: str = ""


@dataclass(frozen=True)
class Asked:
    """Which published figures are to stand in the tables themselves, beside those of exactly the same settings.

    own      of the author, which come first
    nearest  experiments whose figures stand beside rows of other networks and settings, too, where these have none of their own
    """

    own: Sequence[Figure] = ()
    nearest: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """A row of ours, and what was published for it, if anything was.

    verdict  within, off, or no published figure
    """

    dataset: str
    attack: str
    rate: str
    defense: str
    n: int
    ours: dict[str, Cell]
    published: Figure | None
    marks: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Within: each published figure is at most 2 points from our mean, or 2 of our standard deviations if that is more."""
        if self.published is None:
            return "no published figure"
        for name, value in self.published.scores.items():
            mean, spread = self.ours[name].mean, self.ours[name].spread or 0.0
            if mean is None or not _is_near(mean, value, spread):
                return "off"
        return "within"


def _is_near(mean: float, value: float, spread: float) -> bool:
    """Whether two figures, as printed, are so near that a comparison calls them the same."""
    return round(abs(printed(mean) - printed(value)), 2) <= max(printed(TOLERANCE), printed(2 * spread))


def figures(experiment: str) -> list[Figure]:
    """What was published for an experiment, in the order of the file."""
    found = []
    for row in _rows("figures.csv"):
        if row["experiment"] == experiment:
            scores = {name: float(row[name]) / 100 for name in FIGURES if row[name]}
            rate = f"{float(row['poison_rate']):g} %" if row["poison_rate"] else ""
            found.append(_figure(row, rate, scores))
    return found


def _figure(row: Mapping[str, str], rate: str, scores: dict[str, float], **others: str) -> Figure:
    """Of a line of a csv, some of whose columns may not be there. others: what stands in place of empty texts."""
    texts = {
        field.name: row.get(field.name) or others.get(field.name, "")
        for field in dataclasses.fields(Figure)
        if field.name not in ("rate", "scores")
    }
    return Figure(rate=rate, scores=scores, **texts)


def experiments() -> list[str]:
    """The experiments that figures are known for, sorted."""
    return sorted({row["experiment"] for row in _rows("figures.csv")})


def read_figures(file: Path) -> list[Figure]:
    """An author's own: a csv with the columns of ours, of which attack, defense and a score must be there; what is left out, such
    as the network, holds for all. ConfigError where it is something else."""
    found = []
    for number, row in enumerate(_read_csv(file), 2):
        where = f"{file}, line {number}"
        if not row.get("attack") or not row.get("defense"):
            raise ConfigError(
                f"{where} names no attack and defense; expected both, as bdx list calls them. Mend the line."
            )
        scores = {name: _percent(where, name, row[name]) for name in FIGURES if row.get(name)}
        if 0 < scores.get("ca", 0) <= 0.01:
            raise ConfigError(
                f"{where}: ca is {row['ca']}, a CA of at most 1 %; expected percent, such as {100 * float(row['ca']):g} for a "
                f"fraction. Multiply all figures of the file by 100."
            )
        if not scores:
            raise ConfigError(
                f"{where} has no figure; expected one of {', '.join(FIGURES)}, in percent. Mend the line."
            )
        rate = f"{100 * _percent(where, 'poison_rate', row['poison_rate']):g} %" if row.get("poison_rate") else ""
        said = {column: text for column, text in row.items() if column != "experiment"}  # an author's is none of ours
        found.append(_figure(said, rate, scores, source=file.name, certainty="the author's"))
    return found


def _read_csv(file: Path) -> list[dict[str, str]]:
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:  # Excel begins its csv with a mark of UTF-8
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"{file} cannot be read ({getattr(error, 'strerror', None) or error}); expected a csv of published figures, or one "
            f"of {', '.join(experiments())}.{did_you_mean(str(file), experiments())} Name another after --published."
        ) from None
    if not {"attack", "defense"} <= set(columns):
        raise ConfigError(
            f"{file} has the columns {', '.join(columns) or 'none'}; expected attack and defense among them, and of "
            f"{', '.join(COLUMNS)} those that there are. Mend its first line."
        )
    for name in columns:
        if name not in COLUMNS:
            raise ConfigError(
                f"{file} has the column '{name}', which nothing reads.{did_you_mean(name, COLUMNS)} The columns are "
                f"{', '.join(COLUMNS)}. Rename it, or leave it out."
            )
    for number, row in enumerate(rows, 2):
        if None in row:
            raise ConfigError(
                f"{file}, line {number} has more values than the {len(columns)} columns; expected decimal points, and quotes "
                f"around a value with a comma. Mend the line."
            )
    return [{key: value or "" for key, value in row.items()} for row in rows]


def _percent(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 100:
        raise ConfigError(f"{where}: {name} is {text!r}; expected a number of percent, 0 to 100. Mend the line.")
    return value / 100


def sources() -> dict[str, Source]:
    """Every source by the id that figures carry."""
    return {row["source"]: Source(row["paper"], row["arxiv"], row["where"]) for row in _rows("sources.csv")}


def compare(runs: Iterable[Run], experiment: str) -> list[Comparison]:
    """Our finished runs beside an experiment's published figures: for each attack and rate the infected model, then each
    defense, each with the settings that tell it from its like; at the end the means over attacks that a source gives."""
    known, rows = figures(experiment), aggregate(runs)
    are_several = len({row.names["model"] for row in rows}) > 1
    found: list[Comparison] = []
    infected: set[tuple[str, ...]] = set()
    for row in rows:
        settings = _telling(row, are_several)
        shared = [each for each in settings if not each.startswith(f"{PURIFY.group}.")]
        cell = (row.names["dataset"], row.names["attack"], row.names["rate"], *shared)
        if cell not in infected:
            infected.add(cell)
            found.append(_comparison(row, "none", shared, row.before, known))
        if row.names["defense"] != "none":
            found.append(_comparison(row, row.names["defense"], settings, row.figures, known))
    over_attacks = (figure for figure in known if figure.attack == "mean")
    return found + [mean for figure in over_attacks for mean in _means(rows, figure, are_several)]


def _telling(row: Row, are_several: bool) -> list[str]:
    """`key=value` of each setting that tells a row from its like, the network where there are several."""
    bases = {"dataset", *(() if are_several else ("model",)), INFECT.group, "rate", PURIFY.group}
    return [f"{key}={value}" for key, value in row.names.items() if key not in bases and value != DASH]


def beside(rows: Sequence[Row], asked: Asked | None = None) -> dict[tuple[int, str], Comparison]:
    """What any source prints for our rows: (place of the row, name of the model) -> comparison; an infected model once.

    Unlike in `compare`, everything that the source names must be ours, but for what is asked as the nearest: data set, whole;
    network, attack, rate, target, holdout, defense and its setting."""
    own, nearest = (asked.own, asked.nearest) if asked else ((), ())
    others = [figure for experiment in nearest for figure in figures(experiment)]
    known: dict[tuple[str, ...], list[Figure]] = {}
    for experiment in dict.fromkeys(row["experiment"] for row in _rows("figures.csv")):
        for figure in figures(experiment):
            known.setdefault((figure.dataset, figure.model, figure.attack, figure.defense), []).append(figure)
    found: dict[tuple[int, str], Comparison] = {}
    infected: set[str] = set()
    for place, row in enumerate(rows):
        where = tuple(row.names[name] for name in ("dataset", "model", "attack"))
        infection = identity({**row.config, "defense": None})
        models = ((INFECT.model, "none", row.before), (PURIFY.model, row.names["defense"], row.figures))
        for model, defense, ours in models:
            once = infection not in infected if model == INFECT.model else defense != "none"
            fit = [figure for figure in own if figure.defense == defense and _is_of(figure, where)]
            fit += known.get((*where, defense), [])
            fit = [figure for figure in fit if _names_ours(figure, row, model)]
            if once and not fit and (close := _find(others, row.names, defense, ())):
                fit = [close]
            if once and fit:
                published = max(fit, key=lambda figure: bool(figure.setting))
                names = row.names
                found[place, model] = Comparison(
                    names["dataset"], names["attack"], names["rate"], defense, row.n, ours, published, row.marks
                )
        infected.add(infection)
    return found


def doubts(own: Sequence[Figure], rows: Sequence[Row]) -> list[str]:
    """Sentences on an author's figures that stand beside no row, what they may have meant, on cells that have several, and on
    such as may be fractions."""
    missed = []
    for figure in own:
        model = INFECT.model if figure.defense == "none" else PURIFY.model
        alike = (row for row in rows if model == INFECT.model or row.names["defense"] == figure.defense)
        places = ((row, tuple(row.names[name] for name in ("dataset", "model", "attack"))) for row in alike)
        if not any(_is_of(figure, where) and _names_ours(figure, row, model) for row, where in places):
            missed.append(f"{figure.attack} → {figure.defense}{_meant(figure, rows)}")
    count = f"{len(missed)} of {len(own)} lines of published figures match no run: {few(missed, MOST_MISSED)}"
    cells = Counter(
        (one.attack, one.defense, one.dataset, one.model, one.rate, one.target, one.holdout, one.setting) for one in own
    )
    twice = [f"{cell[0]} → {cell[1]}" for cell, lines in cells.items() if lines > 1]
    again = f"of {few(twice, MOST_MISSED)} there are several lines of published figures: the first stands in the tables"
    values = [value for figure in own for value in figure.scores.values()]
    small = "no published figure is above 1 %: they are read as percent, so multiply fractions by 100"
    return [count] * bool(missed) + [again] * bool(twice) + ([small] if any(values) and max(values) <= 0.01 else [])


def unmet(nearest: Sequence[str], found: Iterable[Comparison]) -> list[str]:
    """A sentence on the experiments that were asked for and have no figure beside any row, where there are such."""
    met = {item.published.experiment for item in found if item.published}
    without = [name for name in dict.fromkeys(nearest) if name not in met]
    return (
        [f"no published figure of {join_words(without)} is of any row's data set, attack, rate and defense"]
        if without
        else []
    )


def _meant(figure: Figure, rows: Sequence[Row]) -> str:
    """` (did you mean 'fst'?)` for a word that no row has; else which words no row has together with its settings."""
    for base in ("dataset", "model", "attack", "defense"):
        said, known = (
            getattr(figure, base),
            {row.names[base] for row in rows} | ({"none"} if base == "defense" else set()),
        )
        if said and said not in known:
            return f" (no run has {base} {said}.{did_you_mean(said, sorted(known))})"
    return " (no run has all of its settings)"


def _is_of(figure: Figure, where: Sequence[str]) -> bool:
    """Whether data set, network and attack are those of an author's figure, or not said."""
    return all(
        said in ("", ours) for said, ours in zip((figure.dataset, figure.model, figure.attack), where, strict=True)
    )


def marks(found: Iterable[Comparison]) -> dict[tuple[str, str], str]:
    """A letter for each source and how sure a reading of it is: what a figure in a table is marked by."""
    kinds = dict.fromkeys((item.published.source, item.published.certainty) for item in found if item.published)
    return {kind: _letter(place) for place, kind in enumerate(kinds)}


def _letter(place: int) -> str:
    return chr(ord("a") + place % 26) * (place // 26 + 1)


def told(found: Mapping[tuple[int, str], Comparison], rows: Sequence[Row]) -> dict[tuple[int, str], dict[str, str]]:
    """What was published for rows, with its mark, for cells: (id of the row, model) -> figure -> `0.20 a`."""
    letters = marks(found.values())
    return {
        (id(rows[place]), model): {
            name: f"{percent(value)} {letters[item.published.source, item.published.certainty]}"
            for name, value in item.published.scores.items()
        }
        for (place, model), item in found.items()
        if item.published
    }


def explained(found: Iterable[Comparison]) -> list[str]:
    """What the letters stand for, below a table."""
    said = [f"{mark} {_called(source)} ({certainty})" for (source, certainty), mark in marks(found).items()]
    return (
        [f"published figures: in brackets or columns of their own, not measured here: {'; '.join(said)}"]
        if said
        else []
    )


def _called(source: str) -> str:
    known = sources().get(source)
    return f"{known.paper}, arXiv {known.arxiv}" if known else source


def _names_ours(figure: Figure, row: Row, model: str) -> bool:
    """Whether whatever the figure's source says of its setting, beyond names, is ours."""
    config = row.config
    key, _, value = figure.setting.partition("=")
    return (
        figure.rate in ("", row.names["rate"])
        and config["dataset"].get("train_size") is None
        and figure.target in ("", look_up(config, "attack.target"))
        and (model == INFECT.model or figure.holdout in ("", share(config["holdout"])))
        and (not key or look_up(config, key) == value)
    )


def as_grid(found: Sequence[Comparison]) -> Grid:
    """The comparisons as a table."""
    header, cells = grid(found)
    first, last = header.index("n") + 1, header.index("verdict")
    columns = [
        Column(name, name, "", name.split()[0].lower() if first <= place < last else "")
        for place, name in enumerate(header)
    ]
    return Grid("published beside ours", tuple(columns), first - 1, [[Item(text) for text in line] for line in cells])


def departures(configs: Iterable[dict[str, Any]], experiment: str, folders: Sequence[str] = ()) -> list[str]:
    """Settings of runs that are not the experiment's own on their data set, each with the defenses it concerns where it is one of
    theirs: `train.epochs 20, not 100`, `defense.lr 0.1, not 0.01 (ft, fst)`.

    folders  of the user's own yaml files"""
    pinned: dict[tuple[str, ...], dict[str, Any]] = {}
    differ: dict[str, list[str]] = {}
    swept = swept_keys(experiment, folders)

    def composed(*settings: str) -> dict[str, Any]:
        if settings not in pinned:
            pinned[settings] = compose([f"experiment={experiment}", *settings], folders)
        return pinned[settings]

    own, there = composed()["dataset"]["name"], catalog.names("dataset", folders)
    for config in configs:
        on, attack, defense = (config[group]["name"] for group in ("dataset", INFECT.group, PURIFY.group))
        place = on if on in there else own
        said = [] if on == place == own else [f"dataset {on}, not {own}"]
        theirs = composed(f"dataset={place}", f"attack={attack}", f"defense={defense}")
        for setting in dict.fromkeys([*said, *differing(config, theirs, swept)]):
            differ.setdefault(setting, []).append(defense if setting.startswith("defense") else "")
    return [
        f"{setting} ({', '.join(dict.fromkeys(where))})" if any(where) else setting for setting, where in differ.items()
    ]


def swept_keys(experiment: str, folders: Sequence[str] = ()) -> list[str]:
    """The dotted settings that an experiment varies itself."""
    return ["attack.poison_rate", *catalog.describe("experiment", experiment, folders).sweeps]


def otherwise(
    found: Mapping[tuple[int, str], Comparison], rows: Sequence[Row], asked: Asked | None = None
) -> list[str]:
    """What we did otherwise than each experiment whose figures stand beside ours; the whole of it for those that are asked for
    though settings differ."""
    configs: dict[str, dict[tuple[str, ...], list[dict[str, Any]]]] = {}
    for (place, _), item in found.items():
        if item.published and item.published.experiment:
            names = rows[place].names
            pairs = configs.setdefault(item.published.experiment, {})
            pairs.setdefault((names["dataset"], names["attack"], names["defense"]), []).append(rows[place].config)
    said, left = [], MOST_COMPOSED
    for experiment, pairs in configs.items():
        looked_at = list(pairs.values())[: None if asked and experiment in asked.nearest else left]
        left = max(0, left - len(looked_at))
        if looked_at:
            part = f", of {len(looked_at)} pairs of {len(pairs)}" if len(pairs) > len(looked_at) else ""
            other = "; ".join(departures((config for each in looked_at for config in each), experiment)) or "none"
            said.append(f"settings other than experiment {experiment}'s{part}: {other}")
    return said


def grid(found: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, as text: a pair of columns (paper, ours) for each score that anybody published, ours alone for others."""
    shown = {name for item in found if item.published for name in item.published.scores}
    header = ["dataset", "attack", "rate", "defense", "n"]
    for name in FIGURES:
        header += [f"{name.upper()} paper"] * (name in shown) + [f"{name.upper()} ours"]
    header += ["verdict", "how sure"]
    cells = []
    for item in found:
        mark = "".join(f" ({mark})" for mark in item.marks)
        line = [item.dataset, item.attack + mark, item.rate, item.defense, str(item.n)]
        theirs = item.published.scores if item.published else {}
        for name in FIGURES:
            line += [percent(theirs.get(name))] * (name in shown) + [show(item.ours[name])]
        cells.append([*line, item.verdict, item.published.certainty if item.published else DASH])
    return header, cells


def notes(found: Iterable[Comparison]) -> list[str]:
    """What must be said of the sources of comparisons, and what they leave open."""
    found, said = list(found), []
    known = sources()
    for name in dict.fromkeys(item.published.source for item in found if item.published):
        source = known.get(name)
        remarks = {item.published.note for item in found if item.published and item.published.source == name} - {""}
        said.append(
            (f"{source.paper}, arXiv {source.arxiv}: {source.where}" if source else name)
            + "".join(f"; {r}" for r in sorted(remarks))
        )
    return said


def differing(config: dict[str, Any], pinned: dict[str, Any], swept: Iterable[str] = ()) -> list[str]:
    """Settings of a run that are not the experiment's own: `model demo, not resnet18`, `train.epochs 20, not 100`; of an option
    that is another one also those that its name does not imply, `train.epochs 1`.

    swept  dotted keys that the experiment varies"""
    found = []
    own = beyond(config)
    ours_all, theirs_all = compared(config), compared(pinned)
    for group in (group for group in CHOICES if group in TOLD):
        ours, theirs = ours_all[group], theirs_all[group]
        if ours["name"] != theirs["name"]:
            found.append(f"{group} {ours['name']}, not {theirs['name']}")
            keys = (key for key in own if key.startswith(f"{group}.") and key != f"{group}.name")
            found += [f"{key} {_said(key, own[key])}" for key in keys]
            continue
        ours, theirs = flat(ours), flat(theirs)
        for key in sorted((ours.keys() | theirs.keys()) - NOT_SETTINGS):
            auto = theirs.get(key) == "auto"  # resolved in a run
            if ours.get(key) != theirs.get(key) and not auto and f"{group}.{key}" not in swept:
                found.append(f"{group}.{key} {_said(key, ours.get(key))}, not {_said(key, theirs.get(key))}")
    return found


def _rows(name: str) -> list[dict[str, str]]:
    text = (resources.files("backdoorbench") / "published" / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _comparison(
    row: Row, defense: str, settings: Sequence[str], ours: dict[str, Cell], known: Sequence[Figure]
) -> Comparison:
    names = row.names
    published = _find(known, names, defense, settings)
    label = _labelled(defense, settings)
    return Comparison(names["dataset"], names["attack"], names["rate"], label, row.n, ours, published, row.marks)


def _labelled(defense: str, settings: Sequence[str]) -> str:
    """`trap_and_replace (defense.trap=False)`."""
    return f"{defense} ({', '.join(settings)})" if settings else defense


def _find(known: Sequence[Figure], names: dict[str, str], defense: str, settings: Sequence[str]) -> Figure | None:
    """The figure for a cell: data set, rate and setting as far as the source names them. The network may be another. Where the
    source has several, as BackdoorBench does, it is then the experiment's own; what differs is said below a comparison."""
    pairs = [
        figure
        for figure in known
        if (figure.attack, figure.defense) == (names["attack"], defense)
        and figure.dataset in ("", names["dataset"])
        and figure.rate in ("", names["rate"])
        and figure.setting in ("", *settings)
    ]
    exact = [figure for figure in pairs if figure.model == names["model"]]
    if exact or len({figure.model for figure in pairs}) == 1:
        return (exact or pairs)[0]
    return next((figure for figure in pairs if figure.model == _own_network(figure.experiment)), None)


def _own_network(experiment: str) -> str:
    """The network that an experiment's yaml chooses."""
    text = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    return dict(choices(text)).get("model", "")


def _means(rows: Sequence[Row], figure: Figure, are_several: bool) -> list[Comparison]:
    """The mean over the attacks that were run, beside one over the paper's own; one for each of the settings of the rest."""
    alike: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.names["defense"] == figure.defense and row.names["dataset"] == figure.dataset:
            settings = (each for each in _telling(row, are_several) if not each.startswith(f"{INFECT.group}."))
            alike.setdefault(tuple(settings), []).append(row)
    return [_mean(members, figure, settings) for settings, members in alike.items()]


def _mean(members: Sequence[Row], figure: Figure, settings: Sequence[str]) -> Comparison:
    ours = {name: Cell(_averaged(row.figures[name].mean for row in members)) for name in FIGURES}
    marks = tuple(sorted({mark for row in members for mark in row.marks}))
    attacks = f"mean of {', '.join(dict.fromkeys(row.names['attack'] for row in members))}"
    rates = ", ".join(dict.fromkeys(row.names["rate"] for row in members))
    defense = _labelled(figure.defense, settings)
    return Comparison(figure.dataset, attacks, rates, defense, len(members), ours, figure, marks)


def _averaged(values: Iterable[float | None]) -> tuple[float, ...]:
    known = [value for value in values if value is not None]
    return (statistics.fmean(known),) if known else ()


def _said(key: str, value: Any) -> str:
    """A setting's value; of how many images to draw, null is all of them."""
    if value is None:
        return "all" if key.endswith(("train_size", "test_size")) else "null"
    return str(value)
