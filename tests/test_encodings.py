"""Texts of a user's that are no UTF-8, or are broken: read as far as they need be, or told in a paragraph."""

from pathlib import Path

import pytest

from backdoorbench.cli.main import main
from backdoorbench.config import implied
from backdoorbench.data.raw import read_table
from backdoorbench.errors import ConfigError, DataError

LATIN = "café\n".encode("latin-1")


@pytest.fixture
def own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A plugin with one defense, pull."""
    assert main(["new", "defense", "pull", "--to", str(tmp_path / "encoded")]) == 0
    capsys.readouterr()
    return tmp_path / "encoded"


def test_new_leaves_a_readme_as_it_is_encoded(own: Path) -> None:
    readme = own / "README.md"
    readme.write_bytes(LATIN)
    assert main(["new", "defense", "push", "--to", str(own)]) == 0
    assert readme.read_bytes().startswith(LATIN)
    assert b"bdx show defense=push" in readme.read_bytes()


MODULES = {  # what becomes of a module -> the title that it is shown by
    "in an encoding that it names": (lambda code: b"# -*- coding: latin-1 -*-\n" + code.replace(b"Pull:", b"Pull\xe9:", 1), "Pullé"),
    "in one that it does not name": (lambda code: code.replace(b"Pull:", b"Pull\xe9:", 1), "defense=pull"),
    "with a comment above its docstring": (lambda code: b"# mine\n" + code, "Pull"),
    "with a mistake below its docstring": (lambda code: code + b"def x(:\n", "Pull"),
    "with nothing but quotes": (lambda code: b'"""', "defense=pull"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "title"), MODULES.values(), ids=MODULES)
def test_a_module_is_shown_however_it_is_written(changed, title: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]  # fmt: skip
    module = own / "encoded" / "pull.py"
    module.write_bytes(changed(module.read_bytes()))
    assert main(["show", "defense=pull", "--plugin", str(own)]) == 0
    assert capsys.readouterr().out.strip().startswith(title)
    assert main(["list", "defense", "--plugin", str(own)]) == 0


def test_a_data_sets_table_that_is_no_text_is_a_paragraph(tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_bytes(b"Filename;ClassId\n\xe9.ppm;3\n")
    with pytest.raises(DataError, match=r"answers\.csv cannot be read as a table .* save it as UTF-8 text"):
        read_table(tmp_path / "answers.csv", ";")


def test_what_an_option_implies_is_a_paragraph_where_its_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("alpha: [\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml is no readable yaml"):
        implied._read(tmp_path / "mine.yaml")
