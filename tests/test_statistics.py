"""Statistics between defenses: equal to SciPy's on a fixed table, right on tables of known answers, refused where n carries none."""

import csv
import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from records import made_run
from scipy import stats

from backdoorbench.cli import main as cli
from backdoorbench.config.compose import Plain, compose
from backdoorbench.errors import ConfigError, DataError
from backdoorbench.metrics import Scores
from backdoorbench.reporting import contrasts, page, report, significance, terminal
from backdoorbench.reporting.contrasts import Standing
from backdoorbench.reporting.plots.ranks import ranks
from backdoorbench.storage import record
from backdoorbench.storage.record import Run

INFECTED = Scores(0.95, 1.0, 0.0, 1000, 900)
ATTACKS = ("badnets", "blended", "sig")
TABLE = [  # of a method each column, of an infection each line
    [0.91, 0.82, 0.77, 0.79], [0.60, 0.51, 0.58, 0.40], [0.33, 0.35, 0.21, 0.20], [0.75, 0.72, 0.70, 0.61],
    [0.42, 0.40, 0.45, 0.11], [0.88, 0.83, 0.84, 0.80], [0.52, 0.52, 0.50, 0.30], [0.15, 0.10, 0.12, 0.02],
]  # fmt: skip


@cache
def config(attack: str, defense: str, *more: str) -> Plain:
    return compose([f"attack={attack}", f"defense={defense}", *more])


def run(attack: str, defense: str, seed: int, asr: float, *more: str, ca: float = 0.9, **changes: Any) -> Run:
    id = "-".join([attack, defense, str(seed), *more])
    known = {**config(attack, defense, *more), "seed": seed}
    return made_run(id, known, INFECTED, Scores(ca, asr, 0.0, 1000, 900), environment={"device": "a CPU"}, **changes)


def swept(**asr: list[float]) -> list[Run]:
    """Runs of each defense over attacks and two seeds, with these ASRs in turn."""
    places = [(attack, seed) for attack in ATTACKS for seed in (0, 1)]
    return [
        run(attack, defense, seed, value)
        for defense, values in asr.items()
        for (attack, seed), value in zip(places, values, strict=False)
    ]


FT = [0.95, 0.90, 0.85, 0.80, 0.60, 0.70]
FST = [0.05, 0.02, 0.10, 0.20, 0.15, 0.30]
FP = [0.50, 0.55, 0.90, 0.40, 0.35, 0.10]


def made(runs: list[Run], *figures: str, against: str = "") -> report.Report:
    return report.make({Path(run.id): run for run in runs}, figures or ("asr",), (), (), against=against)


def standing(runs: list[Run]) -> Standing:
    (found,) = made(runs).standings
    return found


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_pairs_are_scipys_on_a_fixed_table() -> None:
    one, other = [line[0] for line in TABLE], [line[3] for line in TABLE]
    found = significance.paired([a - b for a, b in zip(one, other, strict=True)])
    differences = [round(a - b, 10) for a, b in zip(one, other, strict=True)]
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found.p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert (found.n, found.low, found.high) == (8, pytest.approx(low), pytest.approx(high))


def test_ranks_are_scipys_on_a_fixed_table() -> None:
    found = significance.ranked(TABLE, rises=True)
    known = stats.friedmanchisquare(*zip(*TABLE, strict=True))
    assert (found.statistic, found.p) == (pytest.approx(known.statistic), pytest.approx(known.pvalue))
    assert sum(found.means) == pytest.approx(1 + 2 + 3 + 4)


def test_a_known_signed_rank_test() -> None:
    """Hollander and Wolfe's depression scores: p = 0.0391, two-sided, exact."""
    before = (1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30)
    after = (0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29)
    found = significance.paired([a - b for a, b in zip(before, after, strict=True)])
    assert found.p == pytest.approx(0.0390625) and (found.above, found.below) == (7, 2)


def test_six_pairs_that_all_go_one_way() -> None:
    assert significance.paired([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).p == 2 / 2**6


def test_equal_pairs_say_nothing() -> None:
    found = significance.paired([0.3 - 0.2 - 0.1, *[0.0] * 6])  # the first is 0 but for its last bits
    assert (found.p, found.above, found.below, found.low, found.high) == (1.0, 0, 0, 0.0, 0.0)


def test_what_n_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match="5 pairs carry no test"):
        significance.paired([0.1] * 5)
    with pytest.raises(ValueError, match="8 blocks of 2 methods"):
        significance.ranked([line[:2] for line in TABLE], True)


def test_holm_by_hand() -> None:
    """The least times 4, the next times 3, and none below the one before it."""
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([]) == []


@pytest.mark.parametrize(("methods", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_differences_are_those_of_demsars_table(methods: int, q: float) -> None:
    assert significance.critical_difference(methods, 30) == pytest.approx(
        q * math.sqrt(methods * (methods + 1) / (6 * 30)), rel=3e-4
    )


def test_ranks_of_a_table_with_one_order() -> None:
    """Six blocks that agree: chi-square is n (k - 1), and equal methods share a rank."""
    found = significance.ranked([[0.9, 0.5, 0.1]] * 6, rises=False)
    assert found.means == (3, 2, 1) and found.statistic == pytest.approx(12)
    assert significance.ranked([[0.5, 0.5, 0.1]] * 6, rises=True).means == (1.5, 1.5, 3)
    assert significance.ranked([[0.5, 0.5, 0.5]] * 6, rises=True).p == 1


# ---- of runs --------------------------------------------------------------------------------------------------------


def test_defenses_are_paired_by_infection() -> None:
    (contrast,) = standing(swept(ft=FT, fst=FST)).contrasts
    assert (contrast.one, contrast.other, contrast.n) == ("fst", "ft", 6)
    assert contrast.found == significance.paired([a - b for a, b in zip(FST, FT, strict=True)])
    assert contrast.found.p == contrast.corrected == 0.03125


def test_a_seed_that_one_defense_lacks_is_no_pair() -> None:
    runs = [*swept(ft=FT, fst=FST), run("badnets", "ft", 7, 0.0), run("lf", "fst", 0, 0.9)]
    assert [contrast.n for contrast in standing(runs).contrasts] == [6]


def test_two_rates_are_two_infections_and_two_settings_two_defenses() -> None:
    low = [run(run_.config["attack"]["name"], "ft", 0, 0.5, "attack.poison_rate=0.01") for run_ in swept(ft=FT)[::2]]
    runs = [*swept(ft=FT, fst=FST), *low]
    assert [contrast.n for contrast in standing(runs).contrasts] == [6]
    other = [run(attack, "ft", seed, 0.4, "defense.lr=0.5") for attack in ATTACKS for seed in (0, 1)]
    assert {c.one for c in standing([*runs, *other]).contrasts} == {"fst", "ft, lr 0.5"}


def test_two_data_sets_are_pooled() -> None:
    words = ("dataset=cifar10", "model=demo")
    more = [run("badnets", name, seed, asr, *words) for name, asr in (("ft", 0.9), ("fst", 0.1)) for seed in (0, 1)]
    assert [contrast.n for contrast in standing([*swept(ft=FT, fst=FST), *more]).contrasts] == [8]


def test_weak_infections_and_collapsed_runs_are_left_out_and_counted() -> None:
    runs = swept(ft=[*FT], fst=[*FST])
    more = [run("wanet", name, seed, 0.5) for name in ("ft", "fst") for seed in (0, 1)]
    more[0].infection.status = more[2].infection.status = "weak"
    more[1].purification.details |= {"ca_per_class": [1.0] + [0.0] * 9, "largest_share": 1.0}
    found = standing([*runs, *more])
    assert [contrast.n for contrast in found.contrasts] == [6]
    assert found.notes[-2:] == [
        "not counted in the statistics, being weak or broken: 1 infection",
        "collapsed, so not counted in the statistics: ft (1)",
    ]


def test_five_pairs_are_refused_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        DataError, match="no two that are to be compared have more than 5 infections in common"
    ) as error:
        made(swept(ft=FT[:5], fst=FST[:5]))
    assert "expected 6 at least, since of fewer no two-sided p can be below 0.05" in str(error.value)
    with pytest.raises(DataError, match="of 1 defense no two"):
        made(swept(ft=FT))


def test_a_pair_that_n_cannot_carry_has_dashes_beside_those_that_it_can() -> None:
    grid = contrasts.as_grids(standing(swept(ft=FT, fst=FST, fp=FP[:4])))[0]
    assert [[item.text for item in line] for line in grid.lines] == [
        ["fst", "fp", "4", *"––––––"],
        ["fst", "ft", "6", "−66.33", "−88.81 to −43.86", "6", "0", "0.031", "0.031"],
        ["fp", "ft", "4", *"––––––"],
    ]


@pytest.mark.wide
def test_against_one_corrects_for_fewer(capsys: pytest.CaptureFixture[str]) -> None:
    runs = swept(ft=FT, fst=FST, fp=FP)
    (every,), (alone,) = made(runs).standings, made(runs, against="fst").standings
    assert [(c.one, c.other) for c in alone.contrasts] == [("fp", "fst"), ("ft", "fst")] and len(every.contrasts) == 3
    assert alone.contrasts[1].corrected == pytest.approx(2 * 0.03125)
    with pytest.raises(ConfigError, match=r"--against is 'fts'.*Did you mean"):
        made(runs, against="fts")


def test_as_text() -> None:
    text = terminal.as_text(made(swept(ft=FT, fst=FST, fp=FP)))
    shown = [" ".join(line.split()) for line in text.splitlines()]
    start = shown.index("differences · ASR")
    assert shown[start : start + 5] == [
        "differences · ASR",
        "defense against n difference 95 % interval better worse p p, Holm",
        "fst fp 6 −33.00 −69.05 to +3.05 5 1 0.125 0.125",
        "fst ft 6 −66.33 −88.81 to −43.86 6 0 0.031 0.094",
        "fp ft 6 −33.33 −56.48 to −10.18 5 1 0.062 0.125",
    ]
    assert shown[start + 6 : start + 8] == ["mean ranks · ASR", "defense n mean rank"]
    assert "n counts infections of 3 settings of data and attack, seeds 0, 1" in " ".join(shown)
    assert "ASR ranks: Friedman p 0.016, n 6: they differ." in " ".join(shown)


def test_as_latex_and_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for run_ in swept(ft=FT, fst=FST, fp=FP):
        folder = tmp_path / "outputs" / "runs" / run_.id
        folder.mkdir(parents=True)
        record.write(run_, folder)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "outputs", "--statistics", "--metric", "asr", "--format", "latex"]) == 0
    text = capsys.readouterr().out
    assert r"defense & against & difference & 95 \% interval & better & worse & p & p, Holm \\" in text
    assert r"$-$66.33 & $-$88.81 to $-$43.86 & 6 & 0" in text
    assert (
        text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") and "Wilcoxon" in text.split(r"\end{table}")[1]
    )
    assert cli.main(["report", "outputs", "--statistics", "--metric", "asr", "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(line["defense"], line["against"], line["n"], line["p"]) for line in lines][1] == (
        "fst",
        "ft",
        "6",
        "0.031250",
    )
    assert lines[0]["rank_n"] == "6" and float(lines[0]["rank"]) < float(lines[0]["rank_against"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--against", "ft"], "--against: it goes with --statistics"),
        (["--statistics", "--format", "runs-csv"], "runs-csv holds one line a run"),
        (["--statistics", "--verdicts", "--format", "csv"], "a csv holds them or the verdicts"),
        (["--statistics", "--metric", "auroc"], "of which --metric names none"),
    ],
)
def test_what_does_not_go_together(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "outputs", *words]) == 2
    assert said in capsys.readouterr().err


# ---- drawn ----------------------------------------------------------------------------------------------------------


def test_a_diagram_has_every_defense_at_its_rank_and_a_bar_over_what_is_not_apart() -> None:
    figure = ranks(made(swept(ft=FT, fst=FST, fp=FP)).standings)
    (axes,) = figure.axes
    assert {text.get_text() for text in axes.texts} >= {
        "fst  1.17",
        "fp  2.00",
        "2.83  ft",
        "  critical difference 1.35",
    }
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 3]
    assert [[round(float(x), 2) for x in bar] for bar in bars] == [[1.15, 2.02], [1.98, 2.85]]
    assert axes.get_title(loc="left") == "ASR, lower is better · Friedman p 0.016"


def test_without_a_difference_one_bar_is_over_all() -> None:
    same = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    (axes,) = ranks(made(swept(ft=same, fst=same[::-1], fp=[0.35] * 6)).standings).axes
    assert len([line for line in axes.lines if line.get_linewidth() == 3]) == 1


def test_two_defenses_have_no_ranks() -> None:
    with pytest.raises(DataError, match="there are no ranks to draw; expected 3 defenses"):
        ranks(made(swept(ft=FT, fst=FST)).standings)
    assert (
        "no ranks: 2 defenses with 6 infections in common; expected 3 with 6 at least"
        in standing(swept(ft=FT, fst=FST)).notes
    )


def test_the_page_has_a_section_and_a_plot(tmp_path: Path) -> None:
    text = page.render(made(swept(ft=FT, fst=FST, fp=FP)), ["outputs"], tmp_path / "report.html", ["asr"], [])
    assert '<section id="statistics">' in text and "mean ranks · ASR" in text and "Wilcoxon" in text
    assert "Mean ranks over attacks and seeds" in text


# ---- an infection counts once ---------------------------------------------------------------------------------------

TUNED = "holdout.validate=0.2"


def both(share: str) -> list[Run]:
    """Two defenses on six infections, with such a holdout."""
    values = {"ft": FT, "fst": FST}
    places = [(attack, seed) for attack in ATTACKS for seed in (0, 1)]
    return [
        run(attack, name, seed, value, *([share] if share else []))
        for name, found in values.items()
        for (attack, seed), value in zip(places, found, strict=True)
    ]


def test_runs_that_chose_settings_are_not_counted_and_it_is_said() -> None:
    found = made(both("") + both(TUNED))
    assert [contrast.n for contrast in found.standings[0].contrasts] == [6]
    assert [standing.title for standing in found.standings] == [""]
    assert (
        "not counted in the statistics, being for choosing settings (holdout.validate 0.2): 12 runs; --where "
        "holdout.validate=0.2 compares them"
    ) in contrasts.said(found.standings)


def test_who_asks_for_them_gets_statistics_for_each_holdout() -> None:
    found = contrasts.standings(report.rows.aggregate(both("") + both(TUNED)), ("asr",), keeps_tuning=True)
    assert [(standing.title, standing.contrasts[0].n) for standing in found] == [
        ("holdout.validate 0", 6),
        ("holdout.validate 0.2", 6),
    ]
    said = "runs for choosing settings, whose defenses had less than the holdout: holdout.validate 0.2"
    assert [said in standing.notes for standing in found] == [False, True]


def test_an_infection_met_with_two_holdouts_is_never_two_pairs() -> None:
    found = made(both("") + both("holdout.rate=0.1"))
    assert [(standing.title, standing.contrasts[0].n) for standing in found.standings] == [
        ("holdout.rate 0.05", 6),
        ("holdout.rate 0.1", 6),
    ]


def test_runs_that_chose_settings_alone_are_compared_with_a_word(tmp_path: Path) -> None:
    (found,) = made(both(TUNED)).standings
    assert found.contrasts[0].n == 6
    assert "runs for choosing settings, whose defenses had less than the holdout: holdout.validate 0.2" in found.notes


def test_where_that_names_the_share_asks_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for each in both("") + both(TUNED):
        folder = tmp_path / "runs" / f"2026_{each.id.replace('.', '_')}"
        folder.mkdir(parents=True)
        record.write(each, folder)
    for where, wanted in ([], ["differences · ASR"]), (["--where", "holdout.validate=0,0.2"], ["0 · ASR", "0.2 · ASR"]):
        assert cli.main(["report", str(tmp_path), "--statistics", "--metric", "asr", *where]) == 0
        printed = capsys.readouterr().out
        assert [line.endswith(end) for line, end in zip(_titles(printed), wanted, strict=True)] == [True] * len(wanted)


def _titles(printed: str) -> list[str]:
    return [line.rstrip() for line in printed.splitlines() if line.startswith(" differences")]


def test_pairs_without_a_common_infection_are_counted_not_printed() -> None:
    apart = [run("badnets", "fp", seed, 0.5) for seed in (7, 8)]
    found = made(swept(ft=FT, fst=FST) + apart).standings[0]
    assert len(found.contrasts) == 3 and len(contrasts.as_grids(found)[0].lines) == 1
    assert "without a line, having no infection in common: 2 of 3 pairs of defenses" in found.notes


def test_groups_of_names_with_commas_can_be_read() -> None:
    runs = swept(ft=FT, fst=FST)
    runs += [
        run(attack, "ft", seed, value, "defense.epochs=1")
        for (attack, seed), value in zip([(a, s) for a in ATTACKS for s in (0, 1)], FT, strict=True)
    ]
    said = " ".join(contrasts.said(made(runs).standings))
    assert "not apart: (ft, epochs 20; ft, epochs 1)" in said
