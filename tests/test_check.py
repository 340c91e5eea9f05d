"""`bdx check DIR`: what it says of every file in a folder of one's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from backdoorbench.cli import check
from backdoorbench.cli.main import main
from backdoorbench.config import yamls
from backdoorbench.config.compose import conf_dir
from backdoorbench.config.kept import refuse_unlike
from backdoorbench.errors import ConfigError

FT = (conf_dir() / "defense" / "ft.yaml").read_text().replace("name: ft", "name: mine")
PINNED = "# @package _global_\n# bdx experiment=pinned\n# Mine.\ntrain:\n  epochs: 1\n"
RIGHT = {
    "defense/mine.yaml": FT,
    "defense/brief.yaml": "defaults:\n  - ft\n  - _self_\nname: brief\nlr: 0.3\n",
    "on/defense/mine/digits.yaml": "momentum: 0.5\n",
    "in/defense/mine/pinned.yaml": "momentum: 0.6\n",
    "at/defense/ft/digits.yaml": "lr: 0.2\n",
    "experiment/pinned.yaml": PINNED,
    "experiment/swept.yaml": f"{PINNED}hydra:\n  sweeper:\n    params:\n      seed: range(0,3)\n      defense: ft,mine\n",
    "scale/tiny.yaml": "# @package _global_\ndataset:\n  train_size: 300\n",
    "hydra/launcher/mine.yaml": "defaults:\n  - pool\n  - _self_\nworkers: 2\n",
}
WRONG = {
    "defense/typo.yaml": (FT + "lrr: 1\n", "defense has no setting 'lrr'. Did you mean 'lr'?"),
    "defense/text.yaml": ("hello\n", "holds 'hello'; expected settings, each as `name: value` on a line. Correct it."),
    "defense/list.yaml": ("- a\n- b\n", "holds ['a', 'b']; expected settings"),
    "defense/tabs.yaml": ("name: x\n\tlr: 1\n", "is no readable yaml (line 2, column 1: found character '\\t' that cannot start any token, a tab"),
    "defense/open.yaml": ("name: [x\n", "is no readable yaml (line 2, column 1: expected ',' or ']'"),
    "defense/twice.yaml": ("name: x\nname: y\n", "is no readable yaml (line 2, column 1: found duplicate key name)."),
    "defense/code.yaml": ("!!python/object:os.system x\n", "is no readable yaml (line 1, column 1: could not determine a constructor"),
    "defense/circle.yaml": ("a: &x [*x]\n", "refers to itself"),
    "defense/eight.yaml": (FT + "epochs: 010\n", "eight.yaml has 010 in line "),
    "defense/number.yaml": ("1: 2\n", "has the key 1; expected names."),
    "defense/unset.yaml": (FT + "x: ${nope}\n", "defense.x refers to what cannot be resolved (Interpolation key 'nope' not found)."),
    "defense/lands.yaml": ("# @package nope\n" + FT, "there is no setting 'nope', so nothing reads it."),
    "defense/header.yaml": ("# @package\n" + FT, "has the line '# @package'; expected `# @package NAME`"),
    "defense/listed.yaml": ("defaults: ft\n", "has `defaults: 'ft'`; expected a list of options, each after a dash."),
    "defense/absent.yaml": ("defaults:\n  - nope\n", "Could not load 'defense/nope'."),
    "defense/empty.yaml": ("", "defense has no `_target_`, so nothing says what to build."),
    "defense/ft.yaml": (FT, "bdx has a file of this name, which is read instead of yours."),
    "defense/copied.yaml": (FT.replace("name: mine", "name: ft"), "its `name:` is 'ft', which another option of defense is called"),
    "defense/mine.yml": (FT, "nothing reads it: only files in .yaml are. Rename it, or move it away."),
    "defense/deeper/mine.yaml": (FT, "nothing reads it: the options of defense lie right in defense/. Move it there."),
    "defence/mine.yaml": (FT, "nothing reads it: there is no folder defence/. Did you mean 'defense'?"),
    "mine.yaml": (FT, "nothing reads it here: files lie in folders called as groups are"),
    "on/model/demo/digits.yaml": ("width: 8\n", "nothing reads it: there is no folder on/model/."),
    "on/defense/digits.yaml": ("lr: 1\n", "nothing reads it: a file there is called on/defense/OPTION/DATASET.yaml. Move it."),
    "on/defense/fts/digits.yaml": ("lr: 1\n", "defense 'fts' is unknown. Did you mean 'fst' or 'ft'?"),
    "on/defense/ft/cifar100.yaml": ("lr: -1\n", "defense.lr is -1; expected a number at least 0."),
    "experiment/bare.yaml": ("train:\n  epochs: 1\n", "its first lines lack `# @package _global_`, so its settings land below experiment."),
    "experiment/wrong.yaml": ("# @package _global_\ntrian:\n  epochs: 1\n", "there is no setting 'trian', so nothing reads it."),
    "experiment/odd.yaml": (f"{PINNED}hydra:\n  sweeper:\n    params:\n      seed: 0,,1\n", "hydra.sweeper.params sweeps seed over '0,,1'"),
    "experiment/far.yaml": (f"{PINNED}hydra:\n  sweeper:\n    params:\n      defense: ft,fts\n", "defense 'fts' is unknown."),
    "scale/large.yaml": ("# @package _global_\ndataset:\n  train_size: 5000\n", "dataset.train_size is 5,000, but the train split of digits"),
}  # fmt: skip


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """planted(files): a folder `own` with these files, beside the working directory's other content."""
    monkeypatch.chdir(tmp_path)

    def plant(files: dict[str, str]) -> None:
        for name, text in files.items():
            (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "own" / name).write_text(text)

    return plant


def said(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> dict[str, str]:
    """What `bdx check own` says of each file, which ends with this code; under "" its last line."""
    assert main(["check", "own", *words]) == code
    *lines, last = capsys.readouterr().out.splitlines()
    found = dict(line.strip().partition(" ")[2].strip().partition(": ")[::2] for line in lines)
    return {**found, "": last.strip()}


@pytest.mark.wide
def test_files_that_are_right(planted: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]) -> None:
    planted({**RIGHT, "README.md": "no yaml", ".hidden.yaml": "- a\n"})
    assert said(capsys, 0) == dict.fromkeys(RIGHT, "") | {"": f"{len(RIGHT)} files: {len(RIGHT)} ok, 0 wrong"}


@pytest.mark.wide
def test_each_wrong_file_is_named_and_none_hides_another(
    planted: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    planted({**RIGHT, **{name: text for name, (text, _) in WRONG.items()}})
    found = said(capsys, 2)
    assert {name: text for name, text in found.items() if name in RIGHT} == dict.fromkeys(RIGHT, "")
    missed = {name: found[name] for name, (_, why) in WRONG.items() if why not in found[name]}
    assert not missed
    assert found[""] == f"{len(RIGHT) + len(WRONG)} files: {len(RIGHT)} ok, {len(WRONG)} wrong"


def test_a_data_set_that_is_elsewhere_is_not_asked_for(
    planted: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    text = (conf_dir() / "dataset" / "cifar10.yaml").read_text().replace("name: cifar10", "name: mine")
    planted({"dataset/mine.yaml": text, "on/defense/ft/cifar10.yaml": "lr: 0.1\n"})
    found = said(capsys, 0)
    assert found["dataset/mine.yaml"] == "mine is not on this machine, so its images were not asked"
    assert found["on/defense/ft/cifar10.yaml"].startswith("cifar10 is not on this machine")
    assert not Path("data").exists()  # nothing was fetched


def test_settings_hold_for_every_file(
    planted: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    planted({"defense/mine.yaml": FT.replace("backdoorbench.defenses.ft.FT", "collections.Counter")})
    assert "outside backdoorbench; only classes of these packages are built" in said(capsys, 2)["defense/mine.yaml"]
    assert "which is no dataclass" in said(capsys, 2, "plugins=[collections]")["defense/mine.yaml"]


@pytest.mark.wide
def test_a_run_names_the_file_that_it_cannot_read(
    planted: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {name: text for name, (text, why) in WRONG.items() if " yaml (" in why}
    planted(broken)
    Path("own/defense/bytes.yaml").write_bytes(b"\xff\xfe")
    for name in [*broken, "defense/bytes.yaml"]:
        for words in (
            ["--config-dir", "own", f"defense={Path(name).stem}"],
            ["plan", "-cd", "own", f"defense={Path(name).stem}"],
        ):
            assert main(words) == 2
            assert f"own/{name} " in capsys.readouterr().err, name
    assert main(["list", "defense", "--config-dir", "own"]) == 2
    assert capsys.readouterr().err.startswith(
        "bdx: own/defense/bytes.yaml cannot be read as a yaml file (byte 0 is no UTF-8)."
    )


@pytest.mark.parametrize(("value", "read", "right"), [
    ("00014", 12, "Write 14, or quote it where it is a name: '00014'."), ("-012", -10, "Write -12,"), ("0_17", 15, "Write 17,"),
    ("1:30", 90, "Write the number itself, or"), ("[3, 010]", 8, "Write 10,"), ("{a: 010}", 8, "Write 10,"),
])  # fmt: skip
def test_a_number_that_yaml_reads_as_another_is_told(value: str, read: int, right: str) -> None:
    """A class of GTSRB is called 00014, which YAML reads in base 8."""
    with pytest.raises(ConfigError) as caught:
        refuse_unlike(f"x: 1\ny: {value}\n", Path("a.yaml"))
    assert "in line 2, which YAML reads as " + str(read) + "; expected" in str(caught.value) and right in str(
        caught.value
    )


@pytest.mark.parametrize(
    "value", ["0", "07", "-0", "0.5", "00", "1_000", "08", "0x10", "'010'", "1e-3", "2026-01-02", "a:1"]
)
def test_a_number_that_is_what_it_shows_is_none_to_tell(value: str) -> None:
    refuse_unlike(f"x: {value}\n", Path("a.yaml"))


def test_a_run_does_not_go_on_with_a_number_read_otherwise(
    planted: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    planted({"experiment/eight.yaml": f"{PINNED}seed: 012\n"})
    for words in (
        ["--config-dir", "own"],
        ["-m", "hydra.searchpath=[file://own]", "attack=badnets,wanet"],
        ["plan", "-cd", "own"],
    ):
        assert main([*words, "experiment=eight"]) == 2
        assert "own/experiment/eight.yaml has 012 in line " in capsys.readouterr().err


@pytest.mark.wide
def test_what_is_ours_is_right() -> None:
    for file in sorted(conf_dir().rglob("*.yaml")):
        yamls.read(file)
        if file.name != "config.yaml":
            assert check.chosen_by(file.relative_to(conf_dir()))


def test_a_folder_that_is_not_there_is_named_as_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "nowhere"]) == 2
    assert "DIR of bdx check is 'nowhere', which is no folder; expected one of your own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a.yaml", "x/a.yaml", "on/x/y/a.yaml", "attack/x/a.yaml", "on/attack/a.yaml", "hydra/help/a.yaml"]
)
def test_what_nothing_reads(name: str) -> None:
    with pytest.raises(ConfigError, match="^nothing reads it"):
        check.chosen_by(Path(name))
