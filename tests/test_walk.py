"""What lies behind a link to a folder is found, told apart and judged as what lies in the folder itself."""

from pathlib import Path

import pytest

from backdoorbench.cli.main import main
from backdoorbench.config import plugins
from backdoorbench.config.compose import compose
from backdoorbench.config.walk import files_below
from backdoorbench.storage import store
from backdoorbench.sweeps import hydra_errors


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path]:
    """A folder in which `attack` is a link, and the folder that it leads to."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine" / "attack").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "mine", tmp_path / "elsewhere"


def test_links_are_followed_once_around_and_those_to_nothing_left_out(linked: tuple[Path, Path]) -> None:
    mine, elsewhere = linked
    (elsewhere / "own.yaml").touch()
    (elsewhere / "up").symlink_to(mine)
    (mine / "lost.yaml").symlink_to("nowhere.yaml")
    assert files_below(mine, ".yaml") == [mine / "attack" / "own.yaml"]
    assert files_below(mine / "nothing") == []


def test_an_edit_behind_a_link_is_seen_within_one_process(linked: tuple[Path, Path]) -> None:
    mine, elsewhere = linked
    for target in (3, 5):
        (elsewhere / "own.yaml").write_text(f"defaults: [badnets]\ntarget: {target}\n")
        assert compose(["attack=own"], [str(mine)])["attack"]["target"] == target


def test_content_behind_a_link_is_content_of_the_folder(linked: tuple[Path, Path]) -> None:
    """Of a holdout's images, say, which are read through links, too: another key for other images."""
    mine, elsewhere = linked
    before = store.folder_digest(mine)
    (elsewhere / "0.png").write_bytes(b"image")
    assert store.folder_digest(mine) != before


def test_a_package_behind_a_link_is_a_plugins_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "walkable").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "walkable" / "__init__.py").touch()
    (tmp_path / "elsewhere" / "__init__.py").touch()
    (tmp_path / "walkable" / "inner").symlink_to(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sorted(plugins.files("walkable")) == ["walkable/__init__.py", "walkable/inner/__init__.py"]


def test_check_judges_files_behind_a_link(linked: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    mine, elsewhere = linked
    (elsewhere / "own.yaml").write_text("defaults: [badnets]\ntarget: [\n")
    assert main(["check", str(mine)]) == 2
    assert "own.yaml is no readable yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "is_blamed"),
    [("attack/own.yaml", True), ("on/attack/own/digits.yaml", True), ("own.yaml", True), ("outputs/own.yaml", False)],
)
def test_of_a_folder_of_options_only_those_are_blamed(file: str, is_blamed: bool, tmp_path: Path) -> None:
    """A checkout holds outputs, too, of which walking takes long."""
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("target: [\n")
    assert (hydra_errors._broken_file([str(tmp_path)], [], of_any_name=True) is not None) == is_blamed
