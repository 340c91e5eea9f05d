"""Published figures in the tables of one's own: ours and an author's, with source and mark."""

import dataclasses
from pathlib import Path

import pytest
from test_statistics import run

from backdoorbench.cli import main as cli
from backdoorbench.errors import ConfigError
from backdoorbench.reporting import published, report, terminal
from backdoorbench.reporting.published import Figure

OWN = "source,attack,poison_rate,defense,ca,asr\nSmith 2026 (Table 2),badnets,10,fst,91.5,0.4\nmail,blended,,ft,,77\n"
RUNS = [run("badnets", "fst", 0, 0.02), run("blended", "ft", 0, 0.8), run("badnets", "ft", 0, 0.7)]


def made(theirs: list[Figure] | None, axes: tuple[str, ...] = ()) -> report.Report:
    found = {Path(one.id): one for one in RUNS}
    return report.make(found, ("asr",), axes[:1], axes[1:], asked=theirs if theirs is None else published.Asked(theirs))


@pytest.fixture
def own(tmp_path: Path) -> list[Figure]:
    (tmp_path / "own.csv").write_text(OWN)
    return published.read_figures(tmp_path / "own.csv")


def test_they_are_columns_of_a_list_with_their_marks(own: list[Figure]) -> None:
    text = [" ".join(line.split()) for line in terminal.as_text(made(own)).splitlines()]
    assert "attack defense n ASR ASR after ASR published" in text
    assert "badnets fst 1 100.00 2.00* 0.40 a" in text and "blended ft 1 100.00 80.00 77.00 b" in text
    assert any(line.startswith("badnets ft 1") and line.endswith("–") for line in text)
    assert "a Smith 2026 (Table 2) (the author's); b mail (the author's)" in " ".join(text)
    assert "published beside ours" not in " ".join(text)


def test_they_stand_in_brackets_where_attacks_meet_defenses(own: list[Figure]) -> None:
    latex = report.latex(made(own, ("attack", "defense")))
    assert r"2.00} [0.40 a]" in latex or "2.00 [0.40 a]" in latex
    assert "not measured here: a Smith 2026" in latex.split(r"\end{table}")[0]


def test_without_the_flag_they_stay_in_a_table_of_their_own() -> None:
    assert not made(None).is_inline and "published" not in {c.group for grid in made(None).grids for c in grid.columns}


def test_ours_need_no_file() -> None:
    words = ("dataset=cifar10", "model=resnet18", "holdout=fst", "attack.poison_rate=0.01")
    found = {Path(one.id): one for one in [run("blended", "fst", 0, 0.02, *words)]}
    text = terminal.as_text(report.make(found, ("asr",), (), (), asked=published.Asked()))
    assert "0.20 a" in text and "a FST, arXiv 2310.01875 (figure image)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "has the columns a, b; expected attack and defense among them"),
        ("", "has the columns none"),
        ("attack,defense,asr\nbadnets,,1\n", "line 2 names no attack and defense"),
        ("attack,defense,asr\nbadnets,ft,\n", "line 2 has no figure; expected one of ca, asr, ra"),
        ("attack,defense,asr\nbadnets,ft,high\n", "line 2: asr is 'high'; expected a number of percent"),
        ("attack,defense,asr\nbadnets,ft,101\n", "line 2: asr is '101'"),
        ("attack,defense,asr,poison_rate\nbadnets,ft,1,x\n", "line 2: poison_rate is 'x'"),
        ("attack,defense,ca\nbadnets,ft,97,3\n", "line 2 has more values than the 3 columns; expected decimal points"),
        (
            "attack,defense,datset,asr\nbadnets,ft,gtsrb,1\n",
            "has the column 'datset', which nothing reads. Did you mean 'dataset'",
        ),
    ],
)
def test_a_file_that_is_none_is_a_paragraph(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        published.read_figures(tmp_path / "own.csv")


def test_a_file_as_excel_writes_it(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("attack,defense,asr\nbadnets,ft,10\n", encoding="utf-8-sig")
    assert published.read_figures(tmp_path / "own.csv")[0].scores == {"asr": 0.1}


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path), "--published", str(tmp_path / "none.csv")]) == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err


def test_a_line_that_matches_no_run_is_said_with_what_it_may_have_meant() -> None:
    def figure(attack: str, defense: str, rate: str = "") -> Figure:
        return Figure("", "x", "", "", attack, rate, defense, "", {"asr": 0.5}, "", "")

    rows = report.rows.aggregate(RUNS)
    assert published.doubts([figure("badnets", "fst"), figure("blended", "ft"), figure("badnets", "none")], rows) == []
    (said,) = published.doubts([figure("badnets", "fsst"), figure("wanet", "ft"), figure("badnets", "ft", "1 %")], rows)
    assert said == (
        "3 of 3 lines of published figures match no run: badnets → fsst (no run has defense fsst. Did you mean 'fst' or 'ft'?), "
        "wanet → ft (no run has attack wanet.), badnets → ft (no run has all of its settings)"
    )


def test_a_second_line_for_a_cell_is_said() -> None:
    own = [Figure("", source, "", "", "badnets", "", "fst", "", {"asr": 0.5}, "", "") for source in ("x", "y")]
    assert published.doubts(own, report.rows.aggregate(RUNS)) == [
        "of badnets → fst there are several lines of published figures: the first stands in the tables"
    ]
    other = [own[0], dataclasses.replace(own[1], rate="10 %")]
    assert published.doubts(other, report.rows.aggregate(RUNS)) == []


def test_fractions_are_refused_or_said(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("attack,defense,ca,asr\nbadnets,fst,0.9,0.05\n")
    with pytest.raises(
        ConfigError, match=r"line 2: ca is 0.9, .* expected percent, such as 90 for a fraction. Multiply"
    ):
        published.read_figures(tmp_path / "own.csv")
    (tmp_path / "own.csv").write_text("attack,defense,asr\nbadnets,fst,0.05\n")
    (said,) = published.doubts(published.read_figures(tmp_path / "own.csv"), report.rows.aggregate(RUNS))
    assert said == "no published figure is above 1 %: they are read as percent, so multiply fractions by 100"


@pytest.mark.wide
def test_an_experiments_figures_stand_beside_other_networks_with_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("dataset=cifar10", "model=airbench", "attack.poison_rate=0.1")
    found = {
        Path(one.id): one for one in [run("badnets", "fp", 0, 0.02, *words), run("badnets", "ep", 0, 0.02, *words)]
    }
    exact = report.make(found, ("asr",), ("defense",), ("attack",), asked=published.Asked())
    assert "57.13" not in terminal.as_text(exact)
    text = " ".join(
        terminal.as_text(
            report.make(found, ("asr",), ("defense",), ("attack",), asked=published.Asked(nearest=["backdoorbench"]))
        ).split()
    )
    assert (
        "fp 2.00 [57.13 a]* ep 2.00*" in text and "a BackdoorBench, arXiv 2206.12654 (data of the source)" in text
    )  # it has no EP
    assert "within: each published score" not in text  # no verdict is shown
    assert "settings other than experiment backdoorbench's: model airbench, not preact_resnet18" in text
    assert cli.main(["report", str(tmp_path), "--published", "backdorbench"]) == 2
    assert "expected a csv of published figures, or one of backdoorbench, fmp, fst" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.wide
def test_an_experiment_without_a_figure_for_any_row_is_said() -> None:
    found = {Path(one.id): one for one in [run("badnets", "fp", 0, 0.02, "dataset=cifar10", "model=airbench")]}
    for nearest, said in (
        (["backdoorbench"], []),
        (["backdoorbench", "fmp"], ["fmp"]),
        (["fmp", "tnr"], ["fmp and tnr"]),
    ):
        beside = report.make(found, ("asr",), (), (), asked=published.Asked(nearest=nearest)).beside
        told = [f"no published figure of {names} is of any row's data set, attack, rate and defense" for names in said]
        assert published.unmet(nearest, beside.values()) == told
