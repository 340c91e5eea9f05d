"""Every setting acts, or is refused: changing any one of them changes what comes out, or is a mistake that says why.

Asked of every attack, defense, detector, after-attack, recipe, network, data set and holdout that conf/ holds; tests/contract.py says how a
method is carried out in a second. A class declares in a line which settings its others switch off (config/acts.py), and both
halves are asked: where it says that a setting acts, it does; where not, it is refused, and rightly, since it changes nothing.

pytest tests/test_settings.py -k wanet    all that is asked of one method
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import contract
import pytest
import settings as tried
import torch
from conftest import QUICK
from contract import Row
from PIL import Image
from torch import Tensor

from backdoorbench.config import acts, catalog
from backdoorbench.config.acts import Condition, Either, Only
from backdoorbench.config.compose import Plain, compose, flat
from backdoorbench.errors import BdxError, ConfigError, IdleError
from backdoorbench.pipeline import after, detect, infect, plan, purify
from backdoorbench.pipeline.plan import Plan
from backdoorbench.storage.record import Finding

Result = dict[str, Tensor]


# ---- what comes out -------------------------------------------------------------------------------------------------


def infected(made: Plan) -> Result:
    """All that an attack leaves, and what its trigger makes of test images."""
    test, clean = made.splits.test, plan.clean_plan(made)
    infection = infect.infect(
        made,
        None,
        lambda: infect.obtain(clean, test, Finding("infect", ""))[0].model,
        lambda: infect.obtain_network(made),
    )
    found = dict(infection.model.state_dict())
    if infection.train is not None and infection.poisoned is not None:
        found |= {"images": infection.train.images, "labels": infection.train.labels, "poisoned": infection.poisoned}
    if infection.trigger is not None and infection.target is not None:
        classes, (images, _) = torch.arange(10), next(test.batches(len(test)))
        found |= {"shown": infection.trigger(images), "target": infection.target.label(classes)}
        found["eligible"] = infection.target.is_eligible(classes)
    return found


def crafted(made: Plan) -> Result:
    """The same without the victim's training: enough where a setting changes the training set or the trigger."""
    return infected(replace(made, recipe=replace(made.recipe, epochs=0)))


def purified(made: Plan) -> Result:
    infection, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))
    model = purify.purify(made, infection, made.splits.test, Finding("purify", ""), lambda _: None)
    return dict(model.state_dict())


def examined(made: Plan) -> Result:
    test = made.splits.test
    infection, _ = infect.obtain(made, test, Finding("infect", ""))
    case = detect.present(made, infection, infection.trigger, infection.target, test, Finding("detect", ""))
    verdict = detect.examine(made, case, lambda name, value: None)
    return {"scores": verdict.scores, "flagged": verdict.flagged} | verdict.pictures


def attacked_after(made: Plan) -> Result:
    """Of each trial the model's weights, and what it is shown."""
    test = made.splits.test
    infection, _ = infect.obtain(made, test, Finding("infect", ""))
    purified = purify.purify(made, infection, test, Finding("purify", ""), lambda _: None)
    stage, found = after.prepare(made, infection, test), dict[str, Tensor]()
    images, _ = next(stage.test.batches(len(stage.test)))
    for trial in stage.trials(purified, lambda name, value: None):
        with torch.no_grad():
            found |= {f"{trial.label} shown": trial.trigger(images)}
        found |= {f"{trial.label} {name}": value.clone() for name, value in trial.model.state_dict().items()}
    return found


def trained(made: Plan) -> Result:
    """The clean network of the run's recipe."""
    return dict(infect.infect(plan.clean_plan(made), None).model.state_dict())


def read(made: Plan) -> Result:
    """The data set, and what the network sees of it."""
    model = infect.build_network(made, made.stream)
    images, _ = next(made.splits.test.batches(4))
    images = images * torch.tensor([1.0, 0.7, 0.4]).view(3, 1, 1)  # digits are grey: in which order colours come shows
    found = {"answers": model.eval()(images).detach(), **model.state_dict()}
    for name, split in (("train", made.splits.train), ("test", made.splits.test)):
        found |= {f"{name} images": split.images, f"{name} labels": split.labels}
    return found


def divided(made: Plan) -> Result:
    """Who gets which images."""
    parts = made.parts
    found = {"train": parts.train.images, "test": parts.test_rows}
    return found | ({"holdout": parts.holdout.images} if parts.holdout is not None else {})


def same(first: Result, second: Result) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---- asking ---------------------------------------------------------------------------------------------------------

FIELDS = {
    "model": "spec",
    "train": "recipe",
}  # a group -> the field of a plan that holds what it describes, unless called so
Changes = Mapping[str, Any]  # settings of the option that is asked about, by dotted key


@dataclass(frozen=True)
class Case:
    """An option to be asked about.

    words    of a configuration in which it takes a second
    results  what to compare, the cheapest first: a setting acts where one of them differs
    beside   setting -> further words, under which it matters: in the configuration it is too small for it
    unasked  settings left out
    values   setting -> what else it could be, where its type does not tell"""

    group: str
    words: tuple[str, ...]
    results: tuple[Callable[[Plan], Result], ...]
    beside: Mapping[str, tuple[str, ...]]
    file: Path
    unasked: frozenset[str] = frozenset()
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def others(self, key: str, value: Any) -> list[Any]:
        return list(self.values.get(key, ())) or tried.others(self.leaves[key][0], value, self.file)

    @cached_property
    def base(self) -> Plain:
        return compose(self.words)

    @cached_property
    def kind(self) -> type:
        return type(getattr(plan.plan(self.base), FIELDS.get(self.group, self.group)))

    @cached_property
    def leaves(self) -> dict[str, tuple[Any, Any]]:
        """Setting -> (type, value)."""
        found = tried.leaves(self.kind, self.base[self.group])
        return {key: (hint, value) for key, hint, value in found if key not in self.unasked}

    def value(self, config: Plain, key: str) -> Any:
        """What a setting is in a configuration of this option."""
        return flat(config[self.group]).get(key, self.leaves[key][1])

    def change(self, config: Plain, changes: Changes) -> Plain:
        """The configuration with these settings, and with what they ask for; of a data set composed anew, since others refer to
        its settings."""
        if self.group == "dataset":
            usual = flat(self.base[self.group])
            before = {key: value for key, value in flat(config[self.group]).items() if value != usual.get(key)}
            given = (f"dataset.{key}={acts.typed(value)}" for key, value in {**before, **changes}.items())
            return compose([*self.words, *given])
        asked = {k: v for key, value in changes.items() for k, v in tried.companions(key, value, self.file).items()}
        return tried.changed(config, self.group, {k: v for k, v in {**asked, **changes}.items() if k in self.leaves})


class Asker:
    """Asks what a change does to one configuration."""

    def __init__(self, case: Case, config: Plain) -> None:
        self.case, self.config = case, config
        self.made = plan.plan(config)
        self.before: dict[int, Result] = {}

    def says(self, changes: Changes) -> str:
        """`acts`, `idle` (refused since nothing reads it), `contradicts` (refused beside another setting), `cannot be`,
        `unkeyed` or `silent`."""
        try:
            other = plan.plan(self.case.change(self.config, changes))
        except IdleError:
            return "idle"
        except BdxError as error:
            others = {key.split(".")[-1] for key in self.case.leaves.keys() - changes.keys()}
            refused = isinstance(error, ConfigError) and others & set(re.findall(r"\w+", str(error)))
            return "contradicts" if refused else "cannot be"
        try:
            return "acts" if self.differs(other) else "unkeyed" if other.key == self.made.key else "silent"
        except BdxError:  # what it does is too much, or the file that it names is none of its kind: it was read
            return "acts"

    def differs(self, other: Plan) -> bool:
        for number, result in enumerate(self.case.results):
            if number not in self.before:
                self.before[number] = result(self.made)
            if not same(self.before[number], result(other)):
                return True
        return False


ENOUGH = {"acts", "idle", "unkeyed"}


def silent(case: Case) -> list[str]:
    """What is wrong with an option's settings, a line each."""
    askers: dict[tuple[str, ...], Asker] = {}
    found = []
    for key, (hint, _) in case.leaves.items():
        words = case.beside.get(key, ())
        if words not in askers:
            askers[words] = Asker(case, compose([*case.words, *words]) if words else case.base)
        asker, answers = askers[words], {}
        value = case.value(asker.config, key)
        for other in case.others(key, value):
            answers[str(other)] = asker.says({key: other})
            if answers[str(other)] in ENOUGH and not tried.chooses(hint):
                break
        if tried.chooses(hint):
            found += [f"{key}={other} changes nothing" for other, said in answers.items() if said == "silent"]
        elif not {*ENOUGH, "contradicts"} & set(answers.values()):
            found.append(f"{key} changes nothing: {answers}")
        if conditions := acts.declared(case.kind).get(key.split(".")[0]):
            found += misdeclared(case, asker.config, key, conditions)
    return found


def misdeclared(case: Case, config: Plain, key: str, conditions: tuple[Condition, ...]) -> list[str]:
    """Whether a setting acts where its class says so, and on nothing where it does not, in one configuration of either kind."""
    found = []
    for holds in (True, False):
        for context in contexts(case, conditions):
            moved = case.change(config, context)
            if all(condition.holds(moved[case.group]) for condition in conditions) is not holds:
                continue
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(plan, "refuse_idle", lambda *_: None)
                try:
                    asker = Asker(case, moved)
                except BdxError:
                    continue
                answers = []
                for other in case.others(key, case.value(moved, key))[: None if holds else 2]:
                    answers.append(asker.says({key: other}))
                    if answers[-1] == "acts":
                        break
            if not ({"acts", "contradicts"} & set(answers) if holds else "acts" not in answers):
                found.append(
                    f"{key} is said to {'act' if holds else 'be idle'} with {context or 'its defaults'}: {answers}"
                )
            break
    return found


def contexts(case: Case, conditions: tuple[Condition, ...]) -> Iterator[Changes]:
    """Settings to set beside the one that is asked about: none, then each value of each sibling, then those of any two."""
    siblings: dict[str, list[Any]] = {}
    for condition in conditions:
        for simple in condition.conditions if isinstance(condition, Either) else [condition]:
            if isinstance(simple, Only):
                value = case.leaves[simple.sibling][1]
                choices = [*simple.values, *case.others(simple.sibling, value)]
                siblings.setdefault(simple.sibling, []).extend(choice for choice in choices if choice != value)
    single = [{sibling: choice} for sibling, choices in siblings.items() for choice in choices]
    yield {}
    yield from single
    for first, second in combinations(single, 2):
        if first.keys() != second.keys():
            yield first | second


# ---- the questions --------------------------------------------------------------------------------------------------

RESULTS = {"attack": (crafted, infected), "defense": (purified,), "detector": (examined,), "after": (attacked_after,)}


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image in a folder of its own, for settings that are a file or a folder."""
    path = tmp_path_factory.mktemp("files") / "picture.png"
    pixels = torch.arange(3 * 32 * 32, dtype=torch.float64).mul(0.37).sin().add(1).mul(127).to(torch.uint8)
    Image.fromarray(pixels.view(32, 32, 3).numpy()).save(path)
    return path


def assert_none(complaints: list[str]) -> None:
    assert not complaints, "\n".join(complaints)


def rows() -> list[Any]:
    """The rows of all methods; all but a few in the slow tier, where asking of each of their settings takes minutes."""
    return [pytest.param(row, marks=[] if row.smoke else [pytest.mark.slow], id=row.name) for row in contract.rows()]


def some(names: list[str], *few: str) -> list[Any]:
    """Options of a group; all but a few in the slow tier."""
    return [pytest.param(name, marks=[] if name in few else [pytest.mark.slow], id=name) for name in names]


@pytest.mark.wide
@pytest.mark.parametrize("row", rows())
def test_every_setting_of_a_method_acts_or_is_refused(row: Row, outputs: Path, file: Path) -> None:
    short = ("train.epochs=1", "curve.every=0", f"runtime.outputs={outputs}")
    case = Case(row.group, (*row.words, *short), RESULTS[row.group], row.beside, file, values=row.values)
    assert_none(silent(case))


QUICKER = (
    *QUICK, "train.epochs=2", "dataset.train_size=100", "dataset.test_size=50", "holdout.rate=0.3", "curve.every=0", "runtime.threads=1"
)  # fmt: skip
UNASKED = {
    "train.compile": "compiling takes a minute; it is in the key since kernels round otherwise",
    "model.pretrained": "fetches weights from the network",
    "model.timm_name": "any of a thousand",
    "model.architecture": "any of a hundred",
    "dataset.root": "where the data lie; their digest stands for it",
}


def options(group: str) -> list[str]:
    """One option of each class of a group."""
    return list({catalog.describe(group, name).module: name for name in reversed(catalog.names(group))}.values())


def unasked(group: str) -> frozenset[str]:
    return frozenset(key.removeprefix(f"{group}.") for key in UNASKED)


@pytest.mark.wide
@pytest.mark.parametrize("name", some(catalog.names("train"), "demo"))
def test_every_setting_of_a_recipe_acts_or_is_refused(name: str, outputs: Path, file: Path) -> None:
    words = (f"train={name}", *QUICKER, "train.batch_size=32", f"runtime.outputs={outputs}")
    falls = ("train.schedule=milestones", "train.milestones=[1]", "train.epochs=3")
    beside = {"milestones": falls, "decay": falls, "schedule": ("train.epochs=3",)}
    beside |= {"fixed_bias_epochs": ("model=airbench", f"train={name}", "train.fixed_bias_epochs=1")}
    soon = ("train.lookahead.from_epoch=0",)
    beside |= {"lookahead.every": soon} | dict.fromkeys(
        ("lookahead.decay", "lookahead.power"), (*soon, "train.lookahead.every=1")
    )
    assert_none(silent(Case("train", words, (trained,), beside, file, unasked("train"))))


@pytest.mark.wide
@pytest.mark.parametrize("name", some(options("model"), "demo"))
def test_every_setting_of_a_network_acts_or_is_refused(
    name: str, outputs: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"model={name}", *(word for word in QUICKER if not word.startswith("model")), f"runtime.outputs={outputs}")
    (tmp_path / "asked_about.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    words += ("plugins=[asked_about]", "model.target=asked_about:Two", "model.output=0") if name == "module" else ()
    values: dict[str, tuple[Any, ...]] = {
        "target": ("asked_about:Other",),
        "options": ({"scale": 3},),
        "output": (1, None),
    }
    case = Case("model", words, (read,), {"stem": ("model.stem=as_is",)}, file, unasked("model"), values)
    assert_none(silent(case))


NETWORK = """
from torch import nn

class Two(nn.Module):
    def __init__(self, classes, channels=3, scale=1):
        super().__init__()
        self.conv, self.fc, self.scale = nn.Conv2d(channels, 4, 3), nn.Linear(4, classes), scale

    def forward(self, x):
        logits = self.fc(self.conv(x).mean((2, 3)))
        return self.scale * logits, -logits

class Other(Two):
    def forward(self, x):
        return super().forward(x)[::-1]
"""


@pytest.mark.wide
@pytest.mark.parametrize("name", some(catalog.names("holdout"), "standard"))
def test_every_setting_of_a_holdout_acts_or_is_refused(name: str, outputs: Path, file: Path) -> None:
    words = (f"holdout={name}", "defense=ft", *QUICKER, f"runtime.outputs={outputs}")
    assert_none(silent(Case("holdout", words, (divided,), {}, file)))


@pytest.mark.wide
@pytest.mark.parametrize("name", some(["digits", "folder"], "digits"))
def test_every_setting_of_a_data_set_acts_or_is_refused(name: str, outputs: Path, file: Path, tmp_path: Path) -> None:
    """Through what is read, trained, poisoned or tuned: a target acts through attacks, `tuning` through defenses."""
    draw_folders(tmp_path)
    place = (f"dataset.root={tmp_path}", "dataset.size=8", "model=demo", "train=demo") if name == "folder" else ()
    words = (f"dataset={name}", "defense=ft", *place, *QUICKER, "train.batch_size=16", f"runtime.outputs={outputs}")
    whole = (f"dataset.root={tmp_path / 'whole'}", "dataset.train_size=null", "dataset.test_size=null")
    beside = {"background": ("dataset.background=black",), "test_share": whole}
    values = {"layout": ("classes",), "class_names": (str(tmp_path / "names.txt"),)}
    results = (read, trained, crafted, purified)
    assert_none(silent(Case("dataset", words, results, beside, file, unasked("dataset"), values)))


def draw_folders(root: Path) -> None:
    """train/ and test/ with three classes of forty images, whose names sort otherwise by value than as text; half of their
    pixels are transparent. Beside them whole/, the same without splits, and their names in a third order."""
    levels = torch.arange(3 * 120 * 8 * 8 * 4, dtype=torch.float64).mul(0.011).sin().add(1).mul(127).to(torch.uint8)
    drawn = levels.view(3, 120, 8, 8, 4).numpy()
    for split, count in (("train", 80), ("test", 40)):
        for number, label in enumerate(("2", "10", "11")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for row in range(count):
                Image.fromarray(drawn[number, row], "RGBA").save(folder / f"{row}.png")
    (root / "names.txt").write_text("11\n2\n10\n")
    (root / "whole").mkdir()
    for label in ("2", "10", "11"):
        (root / "whole" / label).symlink_to(root / "train" / label)
