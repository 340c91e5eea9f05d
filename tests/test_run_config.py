"""`bdx config RUN`: a run's settings as yaml, what differs from the defaults, and a command that makes them again."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from records import made_run

from backdoorbench.cli import arguments, config, main
from backdoorbench.config.compose import compose, flat
from backdoorbench.reporting import choosing
from backdoorbench.storage import record
from backdoorbench.sweeps import sweep

WORDS = [
    [],
    ["defense=fst", "defense.alpha=0.3", "seed=3"],
    [
        "dataset=cifar10",
        "dataset.root='/my däta/c\\'ifar\\\\'",
        "attack=sig",
        "model=resnet18",
        "train.epochs=3",
    ],  # brings others along
    ["dataset=gtsrb", "defense=ft", "scale=small", "attack=tact", "attack.sources=[1,2]"],
    ["experiment=fst", "scale=cpu", "attack=blended", "defense=ft", "attack.poison_rate=1e-3"],
    ["attack=badnets", "dataset.augment.flip=true", "gates.asr_floor=0.9", "holdout.kind=seen", "force=true"],
    [
        "detector=strip",
        "defense=none",
        "dataset=folder",
        "dataset.name=mushrooms",
        "dataset.root=x",
    ],
    [
        "model=module",
        "model.target=mine:Net",
        "model.options={depth: 16,act: null,more: {a: [1,'2']},stages: [{width: 3,bias: false}],none: {},a.b: {a b: []}, \\:\\ : 1}",
    ],
]


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "runs" / "2026_x_abc"
    folder.mkdir(parents=True)
    record.write(made_run("abc", compose(request.param), None, None), folder)
    return folder


@pytest.mark.wide
@pytest.mark.parametrize("run", WORDS, indirect=True, ids=lambda words: " ".join(words) or "nothing")
def test_the_command_makes_the_configuration_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["config", str(run)]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert yaml.safe_load(rest) == record.read(run).config
    words = shlex.split(first.removeprefix("# bdx "))
    again = compose(words)
    ours, theirs = (
        {
            key: value
            for key, value in flat(each).items()
            if key.partition(".")[0] not in config.UNTOLD and key.count(".name") == 0
        }
        for each in (again, record.read(run).config)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "name", ["a b", " a", "a\t", "a.b", "a:b", "a=b,[c]{}()", "\\", "a\\b\\", "1", "1.5", "null", "$a", "x-y"]
)
def test_a_key_is_read_again_as_it_was(name: str) -> None:
    value = {name: {"x": {name: []}}}
    assert config.untypable(value) == []
    found = OverridesParser.create().parse_override(f"model.options={config.typed(value)}").value()
    assert json.loads(json.dumps(found)) == value


def test_a_key_that_nobody_can_type_is_told() -> None:
    value = {"é": [{"a#b": 1}], "a": {"": 1, "1e3": 1}}
    assert config.untypable(value) == ["é", "a#b", "", "1e3"]
    assert config._remedy(["é"]) == (
        "Hydra reads no key such as 'é' on a command line. Put the settings that hold it into a yaml file, and add --config-dir DIR."
    )


@pytest.mark.parametrize("run", [["model=module", "model.target=mine:Net", "model.options={}"]], indirect=True)
def test_an_empty_mapping_is_a_setting(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unlike none at all."""
    assert main.main(["config", str(run), "--diff"]) == 0
    assert capsys.readouterr().out.startswith("# bdx model=module model.target=mine:Net 'model.options={}'\n")
    found = record.read(run).config
    assert flat(found)["model.options"] == {} and flat({"a": {"b": {}, "c": [[]], "d": None}, "e": {}}) == {
        "a.b": {}, "a.c": [[]], "a.d": None, "e": {},
    }  # fmt: skip
    kept, _ = choosing.choose([("it", found)], choosing.parsed(["model.options={}"]))
    assert kept == ["it"]


@pytest.mark.parametrize("run", [["defense=fst", "defense.alpha=0.3", "seed=3"]], indirect=True)
def test_the_difference_is_what_was_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["config", str(run), "--diff"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# bdx defense=fst seed=3 defense.alpha=0.3\n")
    assert yaml.safe_load(said) == {"defense": {"name": "fst", "alpha": 0.3}, "seed": 3}


@pytest.mark.parametrize("run", WORDS[1:2], indirect=True)
def test_a_method_that_has_another_version_by_now_is_told_and_its_version_is_not_typed(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code here would run under the number that was typed."""
    found = record.read(run)
    found.config["defense"]["version"] = 77
    record.write(found, run)
    assert main.main(["config", str(run), "--diff"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [
        "# bdx defense=fst seed=3 defense.alpha=0.3",
        "# which makes another run by now: defense=fst was of version 77, and is of another one here",
    ]
    assert yaml.safe_load(out)["defense"] == {"name": "fst", "version": 77, "alpha": 0.3}


@pytest.mark.parametrize("run", [[]], indirect=True)
def test_nothing_differs_of_the_defaults(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["config", str(run), "--diff"]) == 0
    assert capsys.readouterr().out == "# bdx attack=badnets\n"


@pytest.mark.parametrize(
    "text",
    [
        "/dätä",
        "a b",
        "it's'",
        "C:\\x",
        "end\\",
        "\\'",
        "\\\\'\\",
        "",
        "123",
        "1e-3",
        "1_0",
        "inf",
        "nan",
        "Null",
        "true",
        "x:1.5",
    ],
)
def test_a_text_is_read_again_as_it_was(text: str) -> None:
    for said in (config.typed(text), arguments.quoted(text)):
        found = OverridesParser.create().parse_override(f"dataset.root={said}").value()
        assert (found.text if isinstance(found, QuotedString) else found) == text


def test_a_run_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["config", "nowhere"]) == 2
    assert "'nowhere' holds no record.json and is no key of a run in outputs/" in capsys.readouterr().err


@pytest.mark.wide
def test_a_sweep_keeps_what_it_ran_with(tmp_path: Path) -> None:
    words = [
        "-m",
        "attack=none",
        "defense=none,ft",
        "dataset.train_size=100",
        "dataset.test_size=50",
        "holdout.rate=0.2",
        "train.epochs=0",
        "curve.every=0",
    ]
    assert main.main([*words, "model.width=8", "force=true", f"runtime.outputs={tmp_path}"]) == 0
    (file,) = tmp_path.glob(f"sweeps/*/{sweep.ENVIRONMENT}")
    lines = file.read_text().splitlines()
    head = dict(line.removeprefix("# ").split(": ", 1) for line in lines if line.startswith("# "))
    assert {"python", "system", "processor", "devices", "driver", "cuda", "commit"} == head.keys()
    packages = [line for line in lines if not line.startswith("#")]
    assert all(line.count("==") == 1 for line in packages) and any(line.startswith("torch==") for line in packages)
    assert packages == sorted(packages, key=str.lower)
