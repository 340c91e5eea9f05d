"""`bdx new`: what it writes works as it is, wherever it lies, in every verb and launcher; and plugins that are installed."""

import importlib
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import backdoorbench as bb
from backdoorbench.cli import main
from backdoorbench.cli.new import KINDS
from backdoorbench.config import catalog, plugins
from backdoorbench.config.compose import compose
from backdoorbench.errors import ConfigError
from backdoorbench.training.fit import fit

NAMES = {"defense": "shrink", "attack": "checker", "detector": "far", "network": "three", "dataset": "arrays"}
SMALL = [
    "dataset.train_size=300", "dataset.test_size=100", "train.epochs=1", "control=off", "curve.every=0", "force=true", "model.width=8",
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A new folder for a plugin, which the process has forgotten afterwards."""
    path, variable = list(sys.path), os.environ.get(plugins.VARIABLE)
    yield tmp_path / "mine"
    sys.path[:] = path
    os.environ.pop(plugins.VARIABLE, None)
    os.environ.update({plugins.VARIABLE: variable} if variable is not None else {})
    forget()


def forget() -> None:
    """What another process would not know of."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    for remembered in (plugins.files, plugins.installed, plugins.look):
        remembered.cache_clear()
    importlib.invalidate_caches()


def make(place: Path, *kinds: str) -> None:
    for kind in kinds:
        assert main.main(["new", kind, NAMES[kind], "--to", str(place)]) == 0
    forget()


def run_tests(file: Path, request: pytest.FixtureRequest, tmp_path: Path) -> int:
    """Calls the tests of a written file with the fixtures that they name; how many there are."""
    found = runpy.run_path(str(file))
    tests = [test for name, test in found.items() if name.startswith("test_")]
    for number, test in enumerate(tests):
        folder = tmp_path / f"of{number}"
        folder.mkdir()
        offered: dict[str, Callable[[], object]] = {
            "tmp_path": lambda folder=folder: folder,
            "capsys": lambda: request.getfixturevalue("capsys"),
            "root": lambda folder=folder: found["root"].__wrapped__(folder),
        }
        test(**{name: offered[name]() for name in inspect.signature(test).parameters})
    return len(tests)


@pytest.mark.wide
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_passes_its_own_tests(
    kind: str, place: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make(place, kind)
    assert run_tests(place / "tests" / f"test_{NAMES[kind]}.py", request, tmp_path) >= 2


@pytest.mark.slow
def test_pytest_passes_in_its_folder(place: Path) -> None:
    make(place, *KINDS)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.wide
def test_all_kinds_live_in_one_package_and_are_options_in_every_verb(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place, *KINDS)
    monkeypatch.chdir(tmp_path)
    flag = ["--plugin", "mine"]
    assert main.main([*flag, "check"]) == 0 and "5 files: 5 ok, 0 wrong" in capsys.readouterr().out
    assert main.main([*flag, "--help"]) == 0 and "checker" in capsys.readouterr().out
    assert main.main(["list", *flag, "attack"]) == 0 and "(plugin mine)" in capsys.readouterr().out
    assert main.main(["show", "model=three", "--plugin=mine", "dataset=digits"]) == 0
    assert "Plugin   mine" in (said := capsys.readouterr().out) and "mine/conf/model/three.yaml" in said
    chosen = ["attack=checker", "defense=shrink,none", "detector=far", "model=three", *SMALL]
    assert main.main(["plan", *chosen, *flag]) == 0 and "2 to do" in capsys.readouterr().out
    assert main.main(["-m", *chosen[:2], *flag, *chosen[2:]]) == 0
    assert main.main(["plan", *flag, *chosen]) == 0 and "2 done" in capsys.readouterr().out
    assert main.main(["report", "outputs", *flag]) == 0 and "checker" in capsys.readouterr().out
    assert main.main(["report", "outputs"]) == 0 and "checker" in capsys.readouterr().out  # records say it all
    records = [json.loads(file.read_text()) for file in Path("outputs/runs").glob("*/record.json")]
    assert all(record["config"]["plugins"] == ["mine"] for record in records)
    assert all("attack.source code" in record["content"] for record in records)
    assert plugins.VARIABLE not in os.environ and str(place) not in sys.path  # a command leaves nothing behind
    assert main.main(["plan", *chosen]) == 2 and "is unknown" in capsys.readouterr().err


@pytest.mark.wide
@pytest.mark.parametrize("launcher", ["pool", pytest.param("joblib", marks=pytest.mark.slow)])
def test_the_jobs_of_a_launcher_know_the_plugin(
    launcher: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place, "defense")
    words = ["-m", "defense=shrink,none", f"hydra/launcher={launcher}", *SMALL, f"runtime.outputs={tmp_path / 'out'}"]
    assert main.main([*words, f"--plugin={place}"]) == 0, capsys.readouterr()
    states = [json.loads(file.read_text())["status"] for file in (tmp_path / "out" / "runs").glob("*/record.json")]
    assert states == ["done", "done"]


@pytest.mark.wide
def test_the_command_that_repeats_a_job_names_the_plugin(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place, "defense")
    (place / "mine" / "shrink.py").write_text(
        (place / "mine" / "shrink.py").read_text().replace("model = scenario.model", "1 / 0")
    )
    words = ["-m", "defense=none,shrink", *SMALL, f"runtime.outputs={tmp_path / 'out'}"]
    assert main.main([*words, "--plugin", str(place)]) == 1
    assert f"bdx -m --plugin {place} " in capsys.readouterr().out


def test_an_installed_package_announces_itself(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(place, "defense")
    said = place / "mine-0.1.dist-info"
    said.mkdir()
    (said / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 0.1\n")
    (said / "entry_points.txt").write_text("[bdx.plugins]\nmine = mine\ngone = nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(place)
    forget()
    assert [plugin.name for plugin in plugins.installed()] == ["mine"]  # one whose package is gone is none
    assert "shrink" in catalog.names("defense") and catalog.describe("defense", "shrink").title.startswith("Shrink: ")
    resolved = compose(["defense=shrink"])
    assert resolved["plugins"] == ["mine"] and compose(["defense=ft"])["plugins"] == []
    assert type(bb.build("defense/shrink", epochs=1)).__module__ == "mine.shrink"
    assert plugins.flags() == []  # nobody has to name it


@pytest.mark.wide
def test_python_names_a_plugin_too(place: Path, tmp_path: Path) -> None:
    make(place, "defense")
    bb.plugin(place)
    run = bb.run("defense=shrink", "defense.epochs=1", *SMALL, f"runtime.outputs={tmp_path / 'out'}")
    assert run.status == "done" and run.config["plugins"] == ["mine"]


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["defence", "x"], "bdx new: argument kind: invalid choice: 'defence'"),
        (["defense", "Shrink"], "NAME is 'Shrink'; expected small letters, digits and _"),
        (["defense", "if"], "NAME is 'if'; expected small letters"),
        (["defense", "../x"], "NAME is '../x'; expected small letters"),
        (["defense", "fst"], "defense=fst is there already"),
    ],
)
def test_a_name_that_cannot_be_is_refused(
    words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["new", *words, "--to", str(place)]) == 2
    assert said in capsys.readouterr().err and not place.exists()


def test_nothing_is_overwritten(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(place, "defense")
    assert main.main(["new", "defense", "shrink", "--to", str(place)]) == 2
    assert "defense=shrink is there already" in capsys.readouterr().err
    assert main.main(["new", "attack", "shrink", "--to", str(place)]) == 2
    assert "mine/shrink.py' is there already; nothing was written" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert main.main(["new", "attack", "checker", "--to", str(tmp_path / "full")]) == 2
    assert "is not empty; expected a new folder" in capsys.readouterr().err
    assert main.main(["new", "attack", "checker", "--to", str(tmp_path / "torch")]) == 2
    assert "would make a package called 'torch'" in capsys.readouterr().err


def test_a_folder_that_is_no_plugin_is_told(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["list", "--plugin"]) == 2 and "--plugin names no folder" in capsys.readouterr().err
    assert main.main(["list", "--plugin", "nowhere"]) == 2
    assert "--plugin is 'nowhere', which is no folder" in capsys.readouterr().err
    assert main.main(["list", "--plugin", str(tmp_path)]) == 2
    assert "in which neither code nor a yaml file of an option lies" in capsys.readouterr().err


def test_an_option_that_would_never_be_read_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(place, "defense")
    folder = place / "mine" / "conf" / "defense"
    (folder / "shrink.yaml").rename(folder / "fst.yaml")
    forget()
    assert main.main(["list", "defense", "--plugin", str(place)]) == 2
    assert "the plugin mine has defense/fst.yaml, and so has bdx itself" in capsys.readouterr().err


def test_a_package_that_another_one_hides_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place, "defense")
    other = tmp_path / "other"
    place.rename(other)
    (other / "mine").rename(other / "json")
    forget()
    assert main.main(["list", "--plugin", str(other)]) == 2
    assert "whose package 'json' has the name of another one that Python finds first" in capsys.readouterr().err


def test_folders_of_every_layout_are_plugins(tmp_path: Path, place: Path) -> None:
    """A project, one with src/, the package itself, and today's conf/ beside a module."""
    make(place, "defense")
    found = plugins.at(str(place / "mine"))
    assert found.packages == ("mine",) and found.path == place
    (place / "src").mkdir()
    (place / "mine").rename(place / "src" / "mine")
    forget()
    found = plugins.at(str(place))
    assert found.path == place / "src" and found.confs == (place / "src" / "mine" / "conf",)
    flat = tmp_path / "flat"
    (flat / "conf" / "defense").mkdir(parents=True)
    (flat / "conf" / "defense" / "hard.yaml").write_text("name: hard\n")
    (flat / "hard.py").write_text("")
    assert plugins.at(str(flat)).packages == ("hard",)


BREAKS = {  # in the place of a line of the module: what check says of it
    "    def purify(": ("    def purify((", "whose module cannot be imported (SyntaxError: "),
    "from torch import nn": (
        "import nowhere_to_be_found",
        "(ModuleNotFoundError: No module named 'nowhere_to_be_found'; ",
    ),
    "@dataclass(frozen=True)": ("@dataclas(frozen=True)", "(NameError: name 'dataclas' is not defined; "),
    "    def __post_init__(self) -> None:": (
        "    def __post_init__(self) -> None:\n        self.nothing",
        "its class raises AttributeError: 'Shrink' object has no attribute 'nothing' (",
    ),
}


@pytest.mark.wide
@pytest.mark.parametrize("line", BREAKS)
def test_check_names_the_line_of_a_plugin_that_is_broken(
    line: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place, "defense")
    module = place / "mine" / "shrink.py"
    broken, said = BREAKS[line]
    text = module.read_text()
    assert line in text
    module.write_text(text.replace(line, broken, 1))
    number = next(
        number for number, each in enumerate(module.read_text().splitlines(), 1) if broken.split("\n")[-1] in each
    )
    capsys.readouterr()
    assert main.main(["check", str(place)]) == 2
    out = capsys.readouterr()
    assert "wrong  defense/shrink.yaml: " in out.out and said in out.out and not out.err
    assert f"{module}, line {number})" in out.out
    assert "1 file: 0 ok, 1 wrong" in out.out


@pytest.mark.wide
def test_check_takes_the_folder_of_a_plugin_as_it_is(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(place, "defense", "network")
    monkeypatch.chdir(tmp_path)
    for words in (["mine"], ["mine/mine"], ["--plugin", "mine"], ["mine", "seed=1"]):
        forget()
        assert main.main(["check", *words]) == 0
        assert "2 files: 2 ok, 0 wrong" in capsys.readouterr().out
    assert plugins.VARIABLE not in os.environ


@pytest.mark.wide
def test_whatever_names_a_plugin_that_nobody_brought_says_how(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of a plugin's network and defense, read where nobody has named the plugin."""
    make(place, "defense", "network")
    monkeypatch.chdir(tmp_path)
    assert main.main(["model=three", "defense=shrink", *SMALL[:-1], "--plugin", "mine"]) == 0
    (folder,) = map(str, Path("outputs/runs").iterdir())
    forget()
    capsys.readouterr()
    assert main.main(["config", folder]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first == (
        "# no command repeats it as it is: this run's defense=shrink and model=three came from the plugin mine. Add --plugin "
        "DIR, the folder of the plugin, or --config-dir DIR, that of its yaml files."
    )
    assert "name: shrink" in rest
    refused = {
        ("config", folder, "--diff"): "of which the defaults are not known here. Add --plugin DIR",
        (
            "export",
            "model",
            folder,
            "--to",
            "there",
        ): "If you trust that code, add --plugin DIR, the folder that holds it (in",
        ("show", "defense=shrink"): "One of your own: add --plugin DIR.",
        ("defense=shrink",): "One of your own: add --plugin DIR.",
    }
    for words, said in refused.items():
        assert main.main(list(words)) == 2 and said in capsys.readouterr().err
        forget()
    with pytest.raises(ConfigError, match=r'in Python, backdoorbench.plugin\("DIR"\)'):
        bb.load_model(folder)
    assert main.main(["config", folder, "--plugin", "mine"]) == 0
    command = capsys.readouterr().out.partition("\n")[0]
    assert command.startswith(f"# bdx --plugin {tmp_path / 'mine'} ") and "model=three" in command
    assert main.main(["export", "model", folder, "--to", "there", "--plugin", "mine"]) == 0
    assert main.main(["show", "defense=shrunk", "--plugin", "mine"]) == 2
    assert "Did you mean 'shrink'" in (said := capsys.readouterr().err) and "One of your own" not in said


@pytest.mark.wide
def test_code_without_an_option_is_a_plugin_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network's package, which `model.target` names: --plugin puts it on Python's path and trusts it."""
    (place / "mine").mkdir(parents=True)
    (place / "mine" / "__init__.py").write_text("")
    (place / "mine" / "nets.py").write_text(
        "from torch import nn\n\n\ndef tiny(classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(1800, classes))\n"
    )
    words = ["plan", "model=module", "model.target=mine.nets:tiny"]
    assert main.main([*words, "--plugin", str(place)]) == 0, capsys.readouterr()
    forget()
    assert main.main(words) == 2 and "If you trust that code, add --plugin DIR" in capsys.readouterr().err


def test_the_page_on_plugins_names_what_fit_takes() -> None:
    page = (Path(bb.__file__).parents[1] / "docs" / "plugins.md").read_text()
    said = page[page.index("fit(model, images") :].partition("```")[0]
    parameters = inspect.signature(fit).parameters
    for name, default in re.findall(r"^    (\w+)=(\w+)", said, re.MULTILINE):
        assert str(parameters[name].default) == default, name
    assert {"loss", "after_step", "after_epoch", "until"} <= set(re.findall(r"^    (\w+)=", said, re.MULTILINE))
