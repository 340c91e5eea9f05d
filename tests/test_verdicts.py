"""Verdicts and fragile infections, of runs made by hand: what is ranked, by which figures, what is left out and said."""

import csv
import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from records import made_run, old_record

from backdoorbench.cli import main as cli
from backdoorbench.config import catalog
from backdoorbench.config.build import target
from backdoorbench.config.compose import Plain, compose
from backdoorbench.errors import DataError
from backdoorbench.metrics import Limits, Scores
from backdoorbench.reporting import formats, report, terminal, verdicts
from backdoorbench.reporting.rows import Outcome
from backdoorbench.reporting.verdicts import Ranking, front, largest_block
from backdoorbench.storage import record
from backdoorbench.storage.record import Run, from_plain

LIMITS = Limits()
INFECTED = Scores(0.95, 1.0, 0.0, 1000, 900)
CONSTANT = {"ca_per_class": [1.0] + [0.0] * 9, "largest_share": 1.0}


@cache
def config(attack: str, defense: str, *more: str) -> Plain:
    return compose([f"attack={attack}", f"defense={defense}", *more])


def run(
    attack: str,
    defense: str,
    seed: int,
    ca: float,
    asr: float,
    *more: str,
    details: Plain | None = None,
    **changes: Any,
) -> Run:
    """A run whose defense leaves this CA and ASR, and 10 % of RA. details: of the purification."""
    id = "-".join([attack, defense, str(seed), *more])
    made = made_run(
        id, {**config(attack, defense, *more), "seed": seed}, INFECTED, Scores(ca, asr, 0.1, 1000, 900), **changes,
        environment={"device": "a CPU"},
    )  # fmt: skip
    made.purification.details |= details or {}
    return made


TWO_SEEDS = [  # by hand: see the table below
    run("badnets", "ft", 0, 0.94, 0.05), run("badnets", "ft", 1, 0.94, 0.07),
    run("blended", "ft", 0, 0.94, 0.80), run("blended", "ft", 1, 0.94, 0.60),  # the latter beaten by fp
    run("badnets", "fst", 0, 0.92, 0.02), run("badnets", "fst", 1, 0.92, 0.04),  # 3 points: within the limit
    run("blended", "fst", 0, 0.93, 0.10), run("blended", "fst", 1, 0.93, 0.06),  # 10 %: not below the limit
    run("badnets", "fp", 0, 0.94, 0.05), run("badnets", "fp", 1, 0.90, 0.05),  # a tie with ft; beaten by fst
    run("blended", "fp", 0, 0.95, 0.90), run("blended", "fp", 1, 0.95, 0.50),
]  # fmt: skip


def made(runs: Sequence[Run], limits: Limits = LIMITS, **more: Any) -> report.Report:
    return report.make({Path(run.id): run for run in runs}, ("asr",), (), (), limits, **more)


def ranked(runs: Sequence[Run], limits: Limits = LIMITS) -> list[Ranking]:
    return made(runs, limits, is_ranked=True).rankings


def lines(ranking: Ranking) -> list[str]:
    return [" | ".join(item.text for item in line) for line in verdicts.as_grid(ranking).lines]


def order(runs: Sequence[Run], **limits: float) -> list[str]:
    (ranking,) = ranked(runs, Limits(**limits))
    return [verdict.name for verdict in ranking.verdicts]


# ---- figures --------------------------------------------------------------------------------------------------------


def test_a_verdict_by_hand() -> None:
    (ranking,) = ranked(TWO_SEEDS)
    grid = verdicts.as_grid(ranking)
    assert grid.title == ("verdicts · dataset digits · model demo · rate 10 % · ranked by met, worst ASR, ASR, CA loss")
    assert [column.name for column in grid.columns] == [
        "defense", "cells", "n", "met", "worst ASR", "ASR", "CA loss", "RA", "DER", "front"
    ]  # fmt: skip
    assert lines(ranking) == [
        "fst | 2 | 2 | 75.00 ± 35.36 | 8.00 ± 2.83 (blended) | 5.50 ± 0.71 | 2.50 ± 0.00 | 10.00 ± 0.00 | 96.00 ± 0.35 | 100.00 ± 0.00",
        "ft | 2 | 2 | 50.00 ± 0.00 | 70.00 ± 14.14 (blended) | 38.00 ± 6.36 | 1.00 ± 0.00 | 10.00 ± 0.00 | 80.50 ± 3.18 | 75.00 ± 35.36",
        "fp | 2 | 2 | 25.00 ± 35.36 | 70.00 ± 28.28 (blended) | 37.50 ± 14.14 | 1.50 ± 1.41 | 10.00 ± 0.00 | 80.50 ± 6.36 | 75.00 ± 35.36",
        "infected | 2 | 2 | – | 100.00 ± 0.00 (badnets) | 100.00 ± 0.00 | – | 0.00 ± 0.00 | – | –",
    ]
    assert verdicts.said(ranking) == [
        "met: cells with an ASR below 10 % at a loss of at most 3 points of CA. worst ASR: in the cell with the highest mean. CA "
        "loss: what it costs of the infected model's CA, in points. front: cells in which no other of these defenses is as good in "
        "CA and in ASR and better in one; equals share it. DER: half of (drop of ASR - drop of CA + 1), drops at least 0; 50 is no "
        "change. Percent.",
        "cells: attacks at a rate that all of these defenses have, on seeds 0, 1; mean ± sample standard deviation over seeds",
        "1 of 2 cells fragile, where a defense proves nothing: badnets, 10 %. met on the others: fst 50.00 ± 70.71, ft 0.00 ± 0.00, "
        "fp 0.00 ± 0.00",
    ]


def test_limits_are_stated_and_decide() -> None:
    (ranking,) = ranked(TWO_SEEDS, Limits(0.02, 0.105))
    assert verdicts.said(ranking)[0].startswith(
        "met: cells with an ASR below 10.5 % at a loss of at most 2 points of CA."
    )
    assert [show.partition(" ± ")[0] for show in (line.split(" | ")[3] for line in lines(ranking)[:3])] == [
        "50.00", "50.00", "25.00"
    ]  # fmt: skip
    assert order(TWO_SEEDS, ca_loss=0.02, asr=0.105) == [
        "fst",
        "ft",
        "fp",
    ]  # of equals in met the better in the worst cell
    assert order(TWO_SEEDS, ca_loss=0.01) == ["ft", "fp", "fst"]


def test_a_limit_is_compared_as_figures_are_printed() -> None:
    assert Limits(2.9 / 100, 0.1).met(0.95 - 0.921, 0.09994) and not Limits(2.9 / 100).met(0.0291, 0)
    assert not LIMITS.met(0, 0.09996) and LIMITS.met(-0.2, 0)  # 10.00 is not below 10; CA may rise


def test_one_seed_has_no_spread() -> None:
    (ranking,) = ranked([made for made in TWO_SEEDS if made.config["seed"] == 0])
    assert lines(ranking)[0] == ("fst | 2 | 1 | 50.00 | 10.00 (blended) | 6.00 | 2.50 | 10.00 | 95.75 | 100.00")
    assert "on seed 0; one seed has no spread" in verdicts.said(ranking)[1]
    found = list(csv.DictReader(io.StringIO(verdicts.as_csv([ranking]))))
    assert {row["asr_std"] for row in found} == {""} and {row["n"] for row in found} == {"1"}


def outcome(ca: float, asr: float, collapsed: bool = False) -> Outcome:
    return Outcome(ca, asr, 0.1, 0.95 - ca, 0.5, (1.0, 0.0), collapsed)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({"a": (0.9, 0.1), "b": (0.8, 0.2)}, "a"),
        ({"a": (0.9, 0.1), "b": (0.9, 0.1)}, "ab"),  # equals share it
        ({"a": (0.9, 0.1), "b": (0.9, 0.10004)}, "ab"),  # as printed
        ({"a": (0.9, 0.1), "b": (0.9, 0.2)}, "a"),  # as good in one, better in the other
        ({"a": (0.9, 0.2), "b": (0.8, 0.1), "c": (0.8, 0.2)}, "ab"),
        ({"a": (0.9, 0.1), "b": (0.95, 0.0, True)}, "a"),  # who collapsed beats nobody
        ({"a": (0.1, 0.0, True)}, ""),
    ],
)
def test_the_front_of_ca_and_asr(points: dict[str, tuple[Any, ...]], expected: str) -> None:
    assert "".join(sorted(front({name: outcome(*point) for name, point in points.items()}))) == expected


def test_equal_verdicts_share_a_place() -> None:
    again = [run(made.config["attack"]["name"], "lp", made.config["seed"], made.purified.ca, made.purified.asr)
             for made in TWO_SEEDS if made.config["defense"]["name"] == "ft" and made.purified]  # fmt: skip
    found = csv.DictReader(io.StringIO(report.csv(made([*TWO_SEEDS, *again], is_ranked=True))))
    assert [(row["defense"], row["rank"]) for row in found] == [
        ("fst", "1"), ("ft", "2"), ("lp", "2"), ("fp", "4"), ("infected", "")
    ]  # fmt: skip


def test_a_collapsed_run_is_not_met_and_on_no_front() -> None:
    left = [made for made in TWO_SEEDS if made.id != "badnets-fst-0"]
    (ranking,) = ranked([*left, run("badnets", "fst", 0, 0.10, 0.0, details=CONSTANT)])
    by_name = {verdict.name: verdict for verdict in ranking.verdicts}
    assert by_name["fst"].figures["met"].values == (0.0, 1.0) and by_name["fst"].figures["front"].values == (0.5, 1.0)
    assert by_name["fst"].figures["ca_loss"].values[0] == pytest.approx((0.85 + 0.02) / 2)
    assert "collapsed, so not met and on no front, but in the means: fst (1)" in verdicts.said(ranking)


# ---- what is compared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("having", "least", "expected"),
    [
        ({"a": "xyz", "b": "xyz", "c": "x"}, 2, ("ab", "xyz")),  # who has little is left out
        ({"a": "xyz", "b": "xyz", "c": "xy"}, 2, ("abc", "xy")),  # or what somebody lacks
        ({"a": "xyz", "b": "x"}, 2, ("ab", "x")),  # but two there must be
        ({"a": "wx", "b": "yz"}, 2, ("", "")),
        ({"a": "xy", "b": "x"}, 1, ("ab", "x")),  # of equals more keys
        ({"a": "xy", "b": "yz", "c": "xz", "d": ""}, 2, ("ab", "y")),
        ({}, 1, ("", "")),
    ],
)
def test_the_largest_block_in_which_nothing_is_missing(
    having: dict[str, str], least: int, expected: tuple[str, str]
) -> None:
    keys, shared = largest_block({key: frozenset(things) for key, things in having.items()}, least)
    assert ("".join(keys), "".join(sorted(shared))) == expected


@pytest.mark.wide
def test_what_is_missing_is_left_out_of_all_and_said() -> None:
    more = [
        run("sig", defense, seed, 0.94, 0.5)
        for defense, seed in (("ft", 0), ("ft", 1), ("fst", 0), ("fst", 1), ("fp", 0))
    ]
    more += [run("badnets", "aft", 0, 0.94, 0.0), run("badnets", "ft", 2, 0.5, 0.5)]
    more += [run("badnets", "pbe", 0, 0.94, 0.0, status="failed"), run("badnets", "none", 0, 0.95, 1.0)]
    (ranking,) = ranked([*TWO_SEEDS, *more])
    assert lines(ranking) == lines(ranked(TWO_SEEDS)[0])
    assert ranking.notes == [
        "left out of the verdicts, for missing runs: 1 defense: aft (1 of 7 runs). 1 cell: sig, 5 % (of fp). 1 seed: 2"
    ]


def test_weak_infections_are_not_counted_and_said() -> None:
    weak = [
        run("sig", defense, seed, 0.94, 0.0, infection="weak") for defense in ("ft", "fst", "fp") for seed in (0, 1)
    ]
    weak += [run("wanet", "fst", 0, 0.1, 0.0, infection="broken")]
    (ranking,) = ranked([*TWO_SEEDS, *weak])
    assert lines(ranking) == lines(ranked(TWO_SEEDS)[0])
    assert ranking.notes == [
        "not counted in the verdicts, the infection being weak or broken: sig, 5 % (seeds 0, 1); wanet, 10 % (seed 0)"
    ]


def test_rates_are_cells_of_their_own_and_the_worst_is_named_with_its_rate() -> None:
    rare = [run("badnets", d, s, 0.94, 0.95, "attack.poison_rate=0.01") for d in ("ft", "fst", "fp") for s in (0, 1)]
    (ranking,) = ranked([*TWO_SEEDS, *rare])
    assert ranking.cases == (("badnets", "1 %"), ("badnets", "10 %"), ("blended", "10 %"))
    assert "rate" not in verdicts.as_grid(ranking).title
    assert lines(ranking)[0].split(" | ")[:5] == ["fst", "3", "2", "50.00 ± 23.57", "95.00 ± 0.00 (badnets, 1 %)"]


def test_other_networks_are_ranked_apart() -> None:
    other = [run("badnets", defense, 0, 0.94, 0.5, "model=resnet18", "model.width=8") for defense in ("ft", "fst")]
    found = ranked([*TWO_SEEDS, *other])
    assert [len(ranking.verdicts) for ranking in found] == [3, 2]
    assert "model resnet18" in found[1].title and "model demo" in found[0].title


def test_settings_of_one_defense_compete() -> None:
    tuned = [
        run(attack, "fst", seed, 0.95, 0.0, "defense.alpha=0.5") for attack in ("badnets", "blended") for seed in (0, 1)
    ]
    assert order([*TWO_SEEDS, *tuned]) == ["fst, alpha 0.5", "fst, alpha 0.1", "ft", "fp"]


@pytest.mark.wide
@pytest.mark.parametrize(
    ("runs", "have"),
    [
        ([run("badnets", "ft", 0, 0.9, 0.1)], "ft"),
        ([run("badnets", "ft", 0, 0.9, 0.1), run("blended", "fst", 0, 0.9, 0.1)], "ft and fst"),
        ([run("badnets", "ft", 0, 0.9, 0.1), run("badnets", "fst", 1, 0.9, 0.1)], "ft and fst"),
        ([run("badnets", d, 0, 0.9, 0.1, infection="weak") for d in ("ft", "fst")], "no defense at all"),
        ([run("badnets", "none", 0, 0.9, 0.1)], "no defense at all"),
    ],
)  # fmt: skip
def test_nothing_to_rank(runs: list[Run], have: str) -> None:
    with pytest.raises(DataError) as raised:
        ranked(runs)
    assert str(raised.value) == (
        f"there is nothing to rank: on infections that took there are finished runs of {have}; expected at least two defenses with "
        "an infection and a seed in common. Run another on the same attacks and seeds, or leave out --verdicts."
    )


# ---- fragile infections ---------------------------------------------------------------------------------------------

ENDS = (
    "fragile: plain fine-tuning (ft) ends the backdoor by itself, with an ASR below 10 % at a loss of at most 3 points of CA; so a "
    "defense proves nothing there"
)


def fragile(runs: Sequence[Run], limits: Limits = LIMITS) -> dict[tuple[str, str], bool | None]:
    return {(row.names["attack"], row.names["defense"]): row.fragile for row in made(runs, limits).rows}


def test_where_plain_fine_tuning_ends_the_backdoor_every_row_is_fragile() -> None:
    found = fragile([*TWO_SEEDS, run("badnets", "none", 0, 0.95, 1.0), run("sig", "fst", 0, 0.9, 0.0)])
    assert {key for key, is_fragile in found.items() if is_fragile} == {
        ("badnets", d) for d in ("ft", "fst", "fp", "none")
    }
    assert found["blended", "fst"] is False and found["sig", "fst"] is None
    assert not any(fragile(TWO_SEEDS, Limits(0.005)).values()) and not any(
        fragile(TWO_SEEDS, Limits(asr=0.06)).values()
    )


@pytest.mark.wide
@pytest.mark.parametrize(
    ("tuned", "expected"),
    [
        ([run("badnets", "ft", 0, 0.94, 0.05)], True),
        ([run("badnets", "ft", 0, 0.94, 0.05), run("badnets", "ft", 1, 0.94, 0.25)], False),  # by the mean over seeds
        ([run("badnets", "ft", 0, 0.90, 0.05)], False),  # at too great a loss
        (
            [run("badnets", "ft", 0, 0.94, 0.5), run("badnets", "ft", 0, 0.94, 0.05, "defense.lr=0.1")],
            True,
        ),  # one setting will do
        ([run("badnets", "ft", 0, 0.94, 0.05, infection="weak")], None),
        ([run("badnets", "ft", 0, 0.1, 0.0, details=CONSTANT)], None),
        ([run("badnets", "ft", 0, 0.94, 0.05, "holdout.rate=0.2")], None),  # with more clean images
        ([run("badnets", "ft", 0, 0.94, 0.05, "attack.poison_rate=0.01")], None),
        ([run("badnets", "lp", 0, 0.94, 0.05)], None),
        ([run("badnets", "lp", 0, 0.94, 0.05, details={"plain": True})], True),  # the record's word
        ([run("badnets", "ft", 0, 0.94, 0.05, details={"plain": False})], None),
    ],
)
def test_what_makes_an_infection_fragile(tuned: list[Run], expected: bool | None) -> None:
    assert fragile([run("badnets", "fst", 0, 0.93, 0.0), *tuned])["badnets", "fst"] is expected


@pytest.mark.wide
def test_old_records_are_ranked_and_marked_alike() -> None:
    again = [from_plain(old_record(made)) for made in TWO_SEEDS]
    assert fragile(again) == fragile(TWO_SEEDS)
    assert lines(ranked(again)[0]) == lines(ranked(TWO_SEEDS)[0])


def test_fragile_in_every_format() -> None:
    of_both, one = made(TWO_SEEDS), made([made for made in TWO_SEEDS if made.config["attack"]["name"] == "badnets"])
    for text in (terminal.as_text(of_both), report.markdown(of_both)):
        assert text.count("badnets (fragile)") == 3 and "blended (fragile)" not in text
        assert ENDS in " ".join(text.split())
    caption = next(line for line in report.latex(of_both).splitlines() if line.startswith(r"\caption"))
    assert formats.latex(ENDS) in caption and report.latex(one).count(formats.latex(ENDS)) == 1
    found = csv.DictReader(io.StringIO(report.csv(of_both)))
    assert [(row["attack"], row["fragile"]) for row in found] == [
        ("badnets", "yes"), ("blended", "no")
    ] * 3  # fmt: skip


def test_fragile_in_rows_by_columns() -> None:
    def shown(*axes: str) -> tuple[list[list[str]], list[str]]:
        found = report.make({Path(run.id): run for run in TWO_SEEDS}, ("asr",), axes[:1], axes[1:])
        return [[item.text for item in line] for line in found.grids[0].lines], found.notes

    by_attack, notes = shown("attack", "defense")
    assert by_attack[0][0] == "badnets (fragile)" and by_attack[1][0] == "blended" and ENDS in notes
    by_defense, notes = shown("defense", "attack")
    assert by_defense[1] == ["ft", "6.00 ± 1.41 §", "70.00 ± 14.14"] and f"§ {ENDS}" in notes


@pytest.mark.wide
def test_rows_without_plain_fine_tuning_are_said() -> None:
    runs = [
        run("badnets", "fst", 0, 0.93, 0.0),
        run("blended", "fst", 0, 0.93, 0.0),
        run("sig", "fp", 0, 0.9, 0.0, infection="weak"),
    ]
    open_rows = "among these runs no plain fine-tuning (defense=ft) of the same infections, so whether they are fragile is not known"
    assert f"{open_rows}: fst on badnets, 10 %; fst on blended, 10 %" in made(runs).notes
    assert f"{open_rows}: fst on blended, 10 %" in made([*runs, run("badnets", "ft", 0, 0.9, 0.5)]).notes
    assert not any("plain" in note for note in made([run("badnets", "none", 0, 0.95, 1.0)]).notes)
    (ranking,) = ranked([*runs, run("badnets", "fp", 0, 0.93, 0.0), run("blended", "fp", 0, 0.93, 0.0)])
    assert (
        verdicts.said(ranking)[-1]
        == "2 of 2 cells without plain fine-tuning (defense=ft): badnets, 10 %; blended, 10 %"
    )


@pytest.mark.wide
def test_a_class_declares_what_its_source_says_without_being_imported() -> None:
    declared = {}
    for name in catalog.names("defense"):
        node = config("badnets", name)["defense"]
        declared[name] = catalog.declared(node["_target_"], "plain") or False
        assert declared[name] == target(node, "defense").plain, name
    assert [name for name, plain in declared.items() if plain] == ["ft"]
    for stranger in (
        "os.path.join",
        "backdoorbench",
        "backdoorbench./etc/passwd.X",
        "backdoorbench.nope.X",
        "",
        "backdoorbench.\0.X",
    ):
        assert catalog.declared(stranger, "plain") is None


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    for made in TWO_SEEDS:
        folder = tmp_path / "outputs" / "runs" / made.id
        folder.mkdir(parents=True)
        record.write(made, folder)

    def report_of(*words: str) -> str:
        assert cli.main(["report", "outputs", *words]) == 0
        return capsys.readouterr().out

    return report_of


@pytest.mark.wide
def test_verdicts_stand_below_the_tables_in_every_format(said: Callable[..., str]) -> None:
    plain, shown = said(), said("--verdicts")
    assert shown.startswith(plain) and "verdicts · dataset digits" in shown[len(plain) :]
    assert "verdicts" not in plain
    assert "| fst | 2 | 2 | 75.00 ± 35.36 | 8.00 ± 2.83 (blended) |" in said("--verdicts", "--format", "md")
    latex = said("--verdicts", "--format", "latex")
    assert (
        r"Verdicts $\cdot$ dataset Digits" in latex
        and r"ranked by met, worst ASR, ASR, CA loss, n = 2. met: cells with" in latex
    )
    assert r"defense & cells & met $\uparrow$ & worst ASR $\downarrow$" in latex
    (best, *_) = csv.DictReader(
        io.StringIO(said("--verdicts", "--format", "csv", "--ca-loss", "2.5", "--asr-below", "8"))
    )
    assert (best["defense"], best["cells"], best["n"], best["seeds"], best["worst_attack"], best["worst_rate"]) == (
        "ft", "2", "2", "0 1", "blended", "10 %"
    )  # fmt: skip
    assert (best["limit_ca_loss"], best["limit_asr"], best["fragile_cells"]) == ("0.025", "0.08", "1")


@pytest.mark.wide
def test_verdicts_on_the_page(said: Callable[..., str]) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    said("--verdicts", "--format", "html", "--output", "page.html")
    page = Path("page.html").read_text()
    assert '<a href="#verdicts">' in page and "8.00 ± 2.83 (Blended)" in page and "BadNets (fragile)" in page
    assert '<td class="figure" data-v="0.08">' in page and ENDS.replace("(ft)", "(FT)") in page
    said("--format", "html", "--output", "page.html")
    assert "#verdicts" not in Path("page.html").read_text()
