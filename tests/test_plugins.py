"""A plugin's code is a setting that nobody types: it is in keys, kept with the run, and told apart in tables."""

import hashlib
import importlib
import re
import shutil
import sys
import types
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from conftest import QUICK

from backdoorbench import api
from backdoorbench.cli import config, main
from backdoorbench.config import plugins
from backdoorbench.config.build import build
from backdoorbench.config.compose import Plain, compose
from backdoorbench.config.reached import reached
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline import job, own, plan
from backdoorbench.reporting import rows
from backdoorbench.reporting.content import tell_apart_by_content
from backdoorbench.storage import record

CODE = '''"""NAME: adds to the classifier's bias."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from backdoorbench.defenses.base import Defense
from backdoorbench.models.surgery import classifier_head


@dataclass(frozen=True)
class Shift(Defense):
    draws: ClassVar[bool] = False

    def purify(self, scenario):
        with torch.no_grad():
            classifier_head(scenario.model).bias[0] += BY
        return scenario.model
'''
Compose = Callable[..., Plain]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin `shifty` with the defense `shift`, importable; its yaml lies in conf/ beside it."""
    folder = tmp_path / "shifty"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "how.py").write_text("BY = 5.0\n")
    (folder / "shift.py").write_text("from shifty.how import BY\n" + CODE)
    (tmp_path / "conf" / "defense").mkdir(parents=True)
    yaml = "_target_: shifty.shift.Shift\nversion: 1\nname: shift\n"
    (tmp_path / "conf" / "defense" / "shift.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield folder
    forget()


def forget() -> None:
    """What a new process would not know."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "shifty"]:
        del sys.modules[name]
    plugins.files.cache_clear()


def edit(package: Path) -> None:
    """Another constant, in a module that the method imports."""
    (package / "how.py").write_text("BY = 50.0\n")
    shutil.rmtree(package / "__pycache__", ignore_errors=True)
    forget()


def words(package: Path, *more: str) -> list[str]:
    return [
        "defense=shift",
        "plugins=[shifty]",
        *QUICK,
        "force=true",
        f"runtime.outputs={package.parent / 'out'}",
        *more,
    ]


def composed(package: Path, *more: str) -> Plain:
    return compose(words(package, *more), [str(package.parent / "conf")])


@pytest.mark.wide
def test_an_edited_plugin_is_another_run_and_another_row(package: Path) -> None:
    first = job.carry_out(composed(package))
    assert job.carry_out(composed(package)).repeated
    edit(package)
    second = job.carry_out(composed(package))
    assert not second.repeated and second.run.id != first.run.id
    assert second.run.infection.cached and second.run.infection.key == first.run.infection.key  # that is no plugin's
    code = config.changed(first.run, {}, Path("here"))
    assert code == f"the code of defense=shift was edited since; {Path('here/plugins')} holds what ran"
    assert config.changed(second.run, {}, Path("here")) == ""
    third = job.carry_out(composed(package, "seed=1"))
    kept = {folder: (folder / "plugins" / "shifty" / "how.py").read_text() for folder in (first.folder, second.folder)}
    assert list(kept.values()) == ["BY = 5.0\n", "BY = 50.0\n"]
    assert sorted(path.name for path in (first.folder / "plugins" / "shifty").iterdir()) == [
        "__init__.py",
        "how.py",
        "shift.py",
    ]

    found = record.collect([package.parent / "out"])
    assert (
        len(rows.aggregate(found.values())) == 1
    )  # by settings alone, seed 0 of the old code goes with seed 1 of the new
    told = rows.aggregate(tell_apart_by_content(found).values())
    column = "content of defense.source code"
    assert sorted((row.seeds, row.names[column]) for row in told) == sorted(
        [
            ((0,), first.run.content["defense.source code"][:8]),
            ((0, 1), third.run.content["defense.source code"][:8]),
        ]
    )


def test_a_run_is_keyed_by_the_code_that_it_runs_and_by_files_as_they_are(package: Path, tmp_path: Path) -> None:
    """Of one process, such as a sweep's, though its files are edited meanwhile: what was imported stays, what is read does not."""
    (package / "table.txt").write_text("1")
    (package / "late.py").write_text("BY = 1.0\n")
    (package / "shift.py").write_text(
        f'{(package / "shift.py").read_text()}\nTABLE, LATE = "table.txt", "shifty.late"\n'
    )

    def digest() -> str:
        return plugins.digest("shifty.shift.Shift", "shifty")

    node = {"_target_": "shifty.shift.Shift", "name": "shift"}
    build(node, "defense", ["shifty"])
    first = digest()
    (package / "how.py").write_text("BY = 50.0\n")
    (package / "shift.py").write_text("")
    assert digest() == first
    source = plugins.source("shifty.shift.Shift", "shifty")
    job.keep_source(types.SimpleNamespace(source=source), tmp_path / "kept")  # type: ignore[arg-type]
    assert (tmp_path / "kept" / "shifty" / "how.py").read_text() == "BY = 5.0\n"
    (package / "table.txt").write_text("2")
    assert digest() != first
    (package / "table.txt").write_text("1")
    (package / "late.py").write_text("BY = 2.0\n")
    assert digest() != first  # nobody has imported it yet
    (package / "late.py").write_text("BY = 1.0\n")
    assert digest() == first
    importlib.import_module("shifty.late")
    (package / "late.py").write_text("BY = 2.0\n")
    with pytest.raises(
        ConfigError, match="late.py was edited while this process went on, which imported it before or after"
    ):
        digest()
    (package / "late.py").write_text("BY = 1.0\n")
    importlib.reload(sys.modules["shifty.how"])
    assert digest() != first


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("purify(", "purge(", "which does not say how to purify; expected a class that defines all that"),
        ("from shifty", "import sys\nsys.exit(3)\nfrom shifty", "whose module cannot be imported (SystemExit: 3; "),
        (
            "@dataclass(frozen=True)",
            "",
            "which is no dataclass; methods here are frozen dataclasses. Write @dataclass(",
        ),
    ],
)
def test_what_is_wrong_with_a_class_is_said(old: str, new: str, said: str, package: Path) -> None:
    module = package / "shift.py"
    text = module.read_text().replace("    draws:", "    by: float\n    draws:")
    assert old in text
    module.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(f"defense._target_ is 'shifty.shift.Shift', {said}")):
        build({"_target_": "shifty.shift.Shift", "name": "shift", "by": 1.0}, "defense", ["shifty"])


def test_a_plugin_of_the_attack_is_in_the_infections_key(package: Path) -> None:
    (package / "plant.py").write_text(
        "from backdoorbench.attacks.badnets import BadNets\nfrom shifty.how import BY\nfrom dataclasses import dataclass\n\n\n"
        "@dataclass(frozen=True)\nclass Plant(BadNets):\n    pass\n"
    )
    (package.parent / "conf" / "attack").mkdir()
    ours = (Path(plan.__file__).parents[2] / "conf" / "attack" / "badnets.yaml").read_text()
    theirs = ours.replace("backdoorbench.attacks.badnets.BadNets", "shifty.plant.Plant").replace(
        "name: badnets", "name: plant"
    )
    (package.parent / "conf" / "attack" / "plant.yaml").write_text(theirs)
    before = plan.plan(composed(package, "attack=plant", "defense=none"))
    edit(package)
    after = plan.plan(composed(package, "attack=plant", "defense=none"))
    assert before.infection_key != after.infection_key and before.plugins == ["shifty"]
    clean = [plan.clean_plan(made).infection_key for made in (before, after)]
    assert clean[0] == clean[1]  # the control's attack is ours


def test_infections_of_ones_own_images_know_the_source_that_an_attack_names(package: Path) -> None:
    """`bb.infect(..., cache=FOLDER)`: the class is not edited, the function in its settings is."""
    (package / "plant.py").write_text(
        "from dataclasses import dataclass\nfrom backdoorbench.attacks.badnets import BadNets\n"
        "from backdoorbench.config.build import Function\n\n\n"
        "@dataclass(frozen=True)\nclass Plant(BadNets):\n    stamp: Function\n"
    )
    node = compose(["attack=badnets"])["attack"] | {"_target_": "shifty.plant.Plant", "stamp": "shifty.how:BY"}
    forget()
    before = own._described(build(node, "attack", ["shifty"]))
    assert own._described(build(node, "attack", ["shifty"])) == before
    edit(package)
    assert own._described(build(node, "attack", ["shifty"])) != before


def key(package: Path) -> str:
    forget()
    return plan.plan(composed(package)).key


def test_a_method_that_is_added_to_a_plugin_leaves_the_runs_of_the_others_done(package: Path) -> None:
    """A method beside it, its yaml and its data, a test, the project's own: nothing that the class imports."""
    before = key(package)
    (package / "other.py").write_text("from shifty import how\n")
    (package / "conf").mkdir()
    (package / "conf" / "other.yaml").write_text("a: 1\n")
    (package / "weights.pt").write_bytes(b"0")
    assert key(package) == before
    (package / "how.py").write_text("BY = 6.0\n")
    assert key(package) != before


def test_a_package_of_one_method_has_the_key_that_it_had_when_keys_held_whole_packages(package: Path) -> None:
    total = hashlib.sha256()
    for file in sorted(package.glob("*.py")):
        total.update(f"shifty/{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    assert plugins.digest("shifty.shift.Shift", "shifty") == total.hexdigest()


TREE = {
    "mine/__init__.py": "", "mine/pull.py": "", "mine/how.py": "BY = 1\n", "mine/other.py": "from mine import how\n",
    "mine/deep/__init__.py": "from .inner import f\n", "mine/deep/inner.py": "", "mine/deep/data.json": "{}",
    "mine/table.yaml": "a: 1", "secret.yaml": "b: 1",
}  # fmt: skip
WHOLE = {name for name in TREE if name.endswith(".py")}
STATIC = {
    "import torch": set(),
    "import mine.how as h": {"mine/how.py"},
    "from . import how": {"mine/how.py"},
    "from .how import BY": {"mine/how.py"},
    "from mine.other import how": {"mine/other.py", "mine/how.py"},
    "def f():\n    from mine import how": {"mine/how.py"},
    "import mine.deep": {"mine/deep/__init__.py", "mine/deep/inner.py"},
    "from mine.deep import inner": {"mine/deep/__init__.py", "mine/deep/inner.py"},
    "from mine.deep import *": {"mine/deep/__init__.py", "mine/deep/inner.py"},
    "build({'_target_': 'mine.how.BY'})": {"mine/how.py"},
    "imported('mine.how:BY')": {"mine/how.py"},
    "model.eval(), model.modules(), torch.compile(model)": set(),
    "Path(__file__).with_name('table.yaml')": {"mine/table.yaml"},
    "from importlib.resources import files\nfiles('mine') / 'deep/data.json'": {"mine/deep/data.json"},
    "open('../secret.yaml'), open('/etc/hostname'), open(''), open('a\\0b'), open('x' * 3)": set(),
}
CHOSEN = {
    "importlib.import_module('mine.' + name)": WHOLE,
    "from importlib import import_module as load": WHOLE,
    "__import__(name)": WHOLE,
    "exec(text)": WHOLE,
    "import pkgutil\npkgutil.iter_modules(__path__)": WHOLE,
    "import sys\nsys.path.append(here)": WHOLE,
    "def broken(:": WHOLE,
    "Path(__file__).with_name('table.yaml')\nfrom mine import other\n__import__(name)": {*WHOLE, "mine/table.yaml"},
}


@pytest.mark.parametrize("code", [*STATIC, *CHOSEN])
def test_a_class_depends_on_what_its_module_imports_and_on_the_whole_package_where_that_is_chosen_at_run_time(
    code: str, tmp_path: Path
) -> None:
    for name, text in (TREE | {"mine/pull.py": code + "\n"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = reached("mine.pull", {name: tmp_path / name for name in WHOLE})
    assert set(found) == {"mine/__init__.py", "mine/pull.py"} | (STATIC | CHOSEN)[code]
    assert all(file == tmp_path / name for name, file in found.items())


def test_modules_beside_each_other_and_a_compiled_one_are_part_of_what_imports_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with conf/ beside modules is one plugin, of several packages."""
    (tmp_path / "conf" / "defense").mkdir(parents=True)
    (tmp_path / "conf" / "defense" / "one.yaml").write_text("a: 1\n")
    (tmp_path / "shiftyone.py").write_text("import shiftytwo\nopen('rows.csv'), open('/etc/hostname')\n")
    (tmp_path / "shiftytwo.py").write_text("A = 1\n")
    (tmp_path / "shiftythree.py").write_text("")
    (tmp_path / "rows.csv").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path])
    with plugins.using([str(tmp_path)]):
        assert set(plugins.source("shiftyone.One", "shiftyone")) == {"shiftyone.py", "shiftytwo.py", "rows.csv"}
    compiled = {"mine/__init__.py": tmp_path / "shiftythree.py", f"mine/fast{EXTENSION_SUFFIXES[0]}": tmp_path / "rows"}
    (tmp_path / "rows").write_bytes(b"\x7fELF\0")
    assert reached("mine.fast", compiled) == compiled


def test_keys_without_a_plugin_do_not_know_of_any(package: Path) -> None:
    """In a sweep over methods a plugin has its part in some."""
    alone = plan.plan(composed(package, "defense=ft", "plugins=[]"))
    beside = plan.plan(composed(package, "defense=ft"))
    assert alone.key == beside.key and beside.plugins == []


@pytest.mark.wide
def test_a_plugin_without_use_is_a_mistake(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = (
        "plugins names 'shifty', and no option of this run comes from it; expected a `_target_: shifty.…` in the yaml file of a "
        "chosen option. Choose one (its file lies in a folder of --config-dir), or leave plugins out."
    )
    with pytest.raises(ConfigError) as caught:
        job.carry_out(composed(package, "defense=ft"))
    assert str(caught.value) == said
    with pytest.raises(ConfigError, match="no option of this run comes from it"):
        api.run("plugins=[shifty]", *QUICK)
    place = [f"--config-dir={package.parent / 'conf'}"]
    base = [*words(package)[1:], f"runtime.outputs={package.parent / 'other'}"]
    assert main.main(["-m", *place, *base, "defense=ft,none"]) == 2
    assert "no option of these 2 runs comes from it" in capsys.readouterr().err
    assert main.main(["plan", *place, *base, "defense=ft,shift"]) == 0  # one of them uses it


def test_a_module_is_a_plugin_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "single.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.files.cache_clear()
    assert plugins.files("single") == {"single.py": tmp_path / "single.py"}
    assert plugins.of("single.Method", ["single"]) == "single" and plugins.of("singles.Method", ["single"]) == ""
    assert plugins.of("backdoorbench.defenses.ft.FT", ["backdoorbench"]) == ""


@pytest.mark.wide
def test_the_same_settings_on_other_data_are_another_row(tmp_path: Path) -> None:
    """Two roots of one data set: same settings, other images."""
    done = [
        job.carry_out(compose([*QUICK, "train.epochs=1", f"runtime.outputs={tmp_path}", f"seed={seed}"]))
        for seed in (0, 1)
    ]
    found = record.collect([tmp_path])
    assert [row.seeds for row in rows.aggregate(tell_apart_by_content(found).values())] == [(0, 1)]
    found[done[1].folder].content["dataset.root"] = "f" * 64
    told = rows.aggregate(tell_apart_by_content(found).values())
    assert {(row.seeds, row.names["content of dataset.root"]) for row in told} == {
        ((0,), done[0].run.content["dataset.root"][:8]),
        ((1,), "ffffffff"),
    }
    found[done[1].folder].content.clear()  # a record from before: nothing says that it is another
    assert [row.seeds for row in rows.aggregate(tell_apart_by_content(found).values())] == [(0, 1)]
