"""`--where`: which runs it chooses, in every verb that reads them, and what it says of the others."""

from pathlib import Path
from typing import Any

import pytest
from records import made_run

import backdoorbench as bb
from backdoorbench.cli import main
from backdoorbench.config.compose import compose
from backdoorbench.errors import ConfigError, DataError
from backdoorbench.metrics import Scores
from backdoorbench.reporting import choosing
from backdoorbench.storage import record

SCORES = Scores(0.9, 0.8, 0.1, 100, 90)
SWEPT = [
    ["attack=badnets", "defense=ft"],
    ["attack=badnets", "defense=fst"],
    ["attack=badnets", "defense=fst", "defense.alpha=0.5", "seed=1"],
    ["attack=badnets", "attack.poison_rate=0.05", "defense=none"],
    ["attack=sig", "defense=ft", "dataset=cifar10"],
]


@pytest.fixture(scope="module")
def configs() -> list[dict[str, Any]]:
    return [compose(words) for words in SWEPT]


@pytest.fixture
def outputs(configs: list[dict[str, Any]], tmp_path: Path) -> Path:
    for number, config in enumerate(configs):
        folder = tmp_path / "runs" / f"2026_{number}_key{number}"
        folder.mkdir(parents=True)
        record.write(made_run(f"key{number}", config, SCORES, SCORES, started=f"2026-01-0{number + 1}"), folder)
    return tmp_path


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["dataset=digits,defense=ft,fst"], [0, 1, 2]),
        (["dataset=digits", "defense=ft,fst"], [0, 1, 2]),  # repeated
        (["defense=ft"], [0, 4]),
        (["defense.name=ft"], [0, 4]),
        (["attack.poison_rate=0.050"], [3]),  # numbers by value
        (["attack.poison_rate=5e-2"], [3]),
        (["seed=1"], [2]),
        (["defense.alpha=0.5,0.7,defense=fst"], [2]),
        (["control=cached,seed=0,dataset=cifar10"], [4]),
        (["force=false,dataset.crop=null,seed=1"], [2]),
        (["attack.sources=[],attack=sig"], [4]),
        (["dataset.mean=[0.305,0.305,0.305],seed=1"], [2]),  # commas inside brackets part nothing
        (["defense=ft,fst,defense.fst.alpha=0.5"], [0, 2, 4]),  # of fst alone
        (["defense.fst.alpha=0.5"], [0, 2, 3, 4]),
        (["defense.fst.alpha=0.5,0.1", "attack.sig.poison_rate=0.7", "seed=0"], [0, 1, 3]),
        (["attack.sig.poison_rate=7", "defense.ft.epochs=20"], [0, 1, 2, 3]),
        ([], [0, 1, 2, 3, 4]),
    ],
)
def test_any_key_of_the_configuration_chooses(
    texts: list[str], wanted: list[int], configs: list[dict[str, Any]]
) -> None:
    kept, said = choosing.choose(enumerate(configs), choosing.parsed(texts))
    assert kept == wanted
    assert bool(said) == bool(texts) and (not said or f"{len(wanted)} of 5 runs; {5 - len(wanted)} left out" in said[0])


def test_runs_without_a_setting_are_counted(configs: list[dict[str, Any]]) -> None:
    kept, said = choosing.choose(enumerate(configs), choosing.parsed(["defense.alpha=0.5", "dataset=digits"]))
    assert kept == [2]
    assert (
        said[1] == "3 of 5 runs have no defense.alpha (of other options, or recorded by an older bdx) and are left out"
    )


@pytest.mark.parametrize("text", ["digits", "", "=digits", "dataset=", "dataset=digits,,defense=ft", ",dataset=digits"])
def test_words_that_choose_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE,VALUE,KEY=VALUE"):
        choosing.parsed([text])


def test_a_key_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        choosing.parsed(["defense=ft", "defense=fst"])
    assert str(caught.value) == (
        "--where names defense twice; expected it once, its values after it: defense=ft,fst. Join them."
    )


def test_a_key_that_no_run_has_is_refused_and_a_value_is_told(configs: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"--where names defence, .* none of the 5 runs has. Did you mean 'defense'"):
        choosing.choose(enumerate(configs), {"defence": ["ft"]})
    kept, said = choosing.choose(enumerate(configs), {"defense": ["ft", "aft"]})
    assert kept == [0, 4] and said[1] == "no run has defense=aft; there are ft, fst and none"
    with pytest.raises(
        DataError, match="none of the 5 runs is chosen by --where defense=aft: no run has defense=aft; there are ft"
    ):
        choosing.choose(enumerate(configs), {"defense": ["aft"]})
    with pytest.raises(DataError, match="each value is there, but no run has them together"):
        choosing.choose(enumerate(configs), {"defense": ["fst"], "attack": ["sig"]})


def test_what_a_condition_on_one_option_leaves_out_is_counted(configs: list[dict[str, Any]]) -> None:
    _, said = choosing.choose(enumerate(configs), choosing.parsed(["defense=ft,fst,defense.fst.alpha=0.5,0.7"]))
    assert said == [
        "chosen by defense=ft,fst defense.fst.alpha=0.5,0.7: 3 of 5 runs; 2 left out",
        "defense.fst.alpha left out 1 of 2 runs of fst",
        "no run has defense.fst.alpha=0.7; there are 0.1 and 0.5",
    ]
    with pytest.raises(ConfigError, match=r"names defense.fst.alhpa, .* Did you mean 'defense.fst.alpha'"):
        choosing.choose(enumerate(configs), {"defense.fst.alhpa": ["1"]})
    with pytest.raises(DataError) as caught:
        choosing.choose(enumerate(configs), choosing.parsed(["defense=ft,defense.alpha=0.5"]))
    assert "no run has them together (defense.fst.alpha=0.5 would bind the runs of fst alone)" in str(caught.value)


@pytest.mark.wide
@pytest.mark.parametrize("form", ["terminal", "csv", "runs-csv", "md", "latex"])
def test_a_report_of_any_format_chooses_and_counts(
    form: str, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["report", str(outputs), "--where", "attack=badnets,defense=ft,none", "--format", form]) == 0
    said = capsys.readouterr()
    assert "fst" not in said.out and "sig" not in said.out and "ft" in said.out
    line = "chosen by attack=badnets defense=ft,none: 2 of 5 runs; 3 left out"
    assert f"bdx: {line}" in said.err and ("csv" in form or line in " ".join(said.out.split()))


def test_runs_and_plots_and_python_choose_too(
    outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["runs", str(outputs), "--where", "seed=1"]) == 0
    said = capsys.readouterr()
    assert "key2" in said.out and "key1" not in said.out and "1 of 5 runs; 4 left out" in said.err
    pytest.importorskip("matplotlib")
    plot = ["plot", "heatmap", str(outputs), "--output", str(tmp_path / "x.svg"), "--where", "defense=fst"]
    assert main.main(plot) == 0 and "2 of 5 runs" in capsys.readouterr().err
    assert main.main(["plot", "tsne", str(outputs), "--output", str(tmp_path / "x.svg"), "--where", "seed=0"]) == 2
    pytest.importorskip("pandas")
    assert len(bb.results(outputs, where="dataset=digits,defense=ft,fst")) == 3


def test_a_record_that_cannot_be_read_is_left_out(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outputs / "runs" / "2026_0_key0" / "record.json").write_text("{")
    assert main.main(["runs", str(outputs), "--where", "seed=0"]) == 0
    assert "3 of 5 runs; 2 left out" in capsys.readouterr().err
