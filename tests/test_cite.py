"""`bdx cite`: an entry for every paper that a method follows, and no entry that none follows."""

import re

import pytest

from backdoorbench.cli import main
from backdoorbench.config import catalog, citations

METHODS = [(group, name) for group in ("attack", "defense", "detector", "after") for name in catalog.names(group)]
METHODS += [("model", name) for name in catalog.names("model") if "Paper" in catalog.describe("model", name).method]


def test_entries_are_well_formed_and_named_once() -> None:
    found = citations.entries()
    text = (citations.conf_dir() / citations.FILE).read_text(encoding="utf-8")
    assert len(found) == len(re.findall(r"^@", text, re.MULTILINE)) > 40
    for key, entry in found.items():
        assert entry.count("{") == entry.count("}") and re.fullmatch(r"[a-z0-9]+", key), key
        assert all(citations.field(entry, name) for name in ("author", "title", "year")), key
        assert re.search(r"(19|20)\d\d", key) and citations.field(entry, "year") >= re.findall(r"\d{4}", key)[0], key
        eprint = citations.field(entry, "eprint")
        assert not eprint or (
            citations.ARXIV.fullmatch(eprint) and int(citations.field(entry, "year")) >= 2000 + int(eprint[:2])
        ), key
        place = {"inproceedings": "booktitle", "article": "journal", "misc": "eprint"}[entry[1 : entry.index("{")]]
        assert citations.field(entry, place) and "others" not in citations.field(entry, "author"), key
    for name in ("eprint", "title"):
        said = [value for entry in found.values() if (value := citations.field(entry, name))]
        assert len(said) == len(set(said))


@pytest.mark.parametrize(("group", "name"), METHODS)
def test_every_arxiv_id_and_paper_of_a_method_has_its_entry(group: str, name: str) -> None:
    """Ids stand in the docstrings, where somebody has read the paper."""
    option = catalog.describe(group, name)
    found = citations.of(option)
    said = option.method.get("Paper", "")
    cited = {citations.field(entry, "eprint") for entry in found.values()}
    beside = {"2402.16896"} if "replication" in said else set()  # read, not followed
    assert set(citations.ARXIV.findall(said)) - beside <= cited
    assert bool(found) == (not said.startswith("none") or bool(citations.ARXIV.search(said))), said


def test_no_entry_stands_for_nothing() -> None:
    used = {key for group, name in METHODS for key in citations.of(catalog.describe(group, name))}
    assert set(citations.entries()) == used


def test_each_paper_is_printed_once_and_bdx_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["cite", "attack=sig,none", "defense=fst,fe_tuning"]) == 0
    said = capsys.readouterr()
    assert (
        re.findall(r"^@\w+\{(\w+),", said.out, re.MULTILINE) == ["barni2019sig", "min2023fst", "bdx"] and not said.err
    )
    assert "Training Set Corruption" in said.out and re.search(
        r"@misc\{bdx,.* year +=.* note +=.*Version ", said.out, re.DOTALL
    )


def test_what_has_no_entry_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["cite", "model=timm", "dataset=digits"]) == 0
    said = capsys.readouterr().err
    assert "no entry for model=timm" in said and "no entry for dataset=digits" in said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("fst", "'fst' names nothing to cite; expected GROUP=OPTION"),
        ("defense=", "names nothing to cite"),
        ("defense=fts", "defense 'fts' is unknown. Did you mean 'fst'"),
        ("defence=fst", "group 'defence' is unknown. Did you mean 'defense'"),
    ],
)
def test_mistakes_are_told(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["cite", word]) == 2 and said in capsys.readouterr().err
