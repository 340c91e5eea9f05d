"""Plots out of hand-made records: what the figures hold, their bytes, the verb, its mistakes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from backdoorbench import cli
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import Run
from backdoorbench.reporting import plot, record

RATES = (0.01, 0.05, 0.1)


def run(
    defense: str = "fst",
    seed: int = 0,
    asrs: tuple[float, ...] = (0.5, 0.25),
    attack: str = "badnets",
    rate: float | None = 0.1,
    status: str = "took",
    **settings: Any,
) -> Run:
    """A finished run whose ASR is 0.9 when infected and `asrs` after the epochs of the defense."""
    poison = {} if rate is None else {"poison_rate": rate}
    config = {group: {"name": "standard"} for group in ("dataset", "model", "train", "holdout")} | {
        "attack": {"name": attack, **poison},
        "defense": {"name": defense, **settings},
        "seed": seed,
    }
    curve = [{"epoch": at, "ca": 0.9, "asr": asr, "ra": 0.9 - asr, "n": 100} for at, asr in enumerate(asrs, 1)]
    before, after = Scores(0.95, 0.9, 0.05, 360, 324), Scores(0.9, asrs[-1], 0.9 - asrs[-1], 360, 324)
    return Run(defense, "done", "", config, before, after, {"status": status}, curve=curve)


def without_trigger(**changes: Any) -> Run:
    clean = run(attack="none", rate=None, status="clean", **changes)
    clean.infected = clean.purified = Scores(0.95, None, None, 360, 0)
    for point in clean.curve:
        point["asr"] = point["ra"] = None
    return clean


def column(figure: Figure, index: int = 0) -> list[Axes]:
    """CA, ASR and RA of one setting."""
    columns = len(figure.axes) // 3
    return figure.axes[index::columns]


def points(axes: Axes, line: int = 0) -> list[tuple[float, float]]:
    return [(float(x), round(float(y), 9)) for x, y in axes.lines[line].get_xydata()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def said(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_a_curve_is_what_the_record_holds() -> None:
    figure = plot.curves([run()])
    ca, asr, ra = figure.axes
    assert points(ca) == [(0, 95), (1, 90), (2, 90)]
    assert points(asr) == [(0, 90), (1, 50), (2, 25)]
    assert points(ra) == [(0, 5), (1, 40), (2, 65)]
    assert [axes.get_ylabel() for axes in figure.axes] == ["CA, %", "ASR, %", "RA, %"]
    assert all(axes.get_ylim() == (0, 100) for axes in figure.axes) and asr.get_xlim() == (0, 2)
    assert not asr.collections and legend(figure) == ["fst"]
    assert (
        said(figure) == "n = 1. Epoch 0: the infected model, on the whole test set; then 100 test images."
        and figure.get_suptitle() == "standard · standard · 10 %"
        and ca.get_title("left") == "badnets"
    )


def test_seeds_make_a_mean_and_a_band() -> None:
    figure = plot.curves([run(seed=seed, asrs=asrs) for seed, asrs in enumerate([(0.5, 0.2), (0.7, 0.3), (0.6, 0.1)])])
    asr = figure.axes[1]
    assert points(asr) == [(0, 90), (1, 60), (2, 20)]
    (band,) = asr.collections
    corners = {(float(x), round(float(y), 9)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(0, 90), (1, 50), (1, 70), (2, 10), (2, 30)}
    assert said(figure).startswith("Mean over seeds, band from the smallest to the largest, n = 3.")


def test_a_seed_run_twice_counts_once() -> None:
    assert points(plot.curves([run(), run(asrs=(0.4, 0.1))]).axes[1]) == [(0, 90), (1, 40), (2, 10)]


def test_a_trap_does_not_start_from_the_infected_model() -> None:
    trap = plot.curves([run("trap_and_replace", trap=True)])
    assert points(trap.axes[1]) == [(1, 50), (2, 25)] and said(trap) == "n = 1."
    assert points(plot.curves([run("trap_and_replace", trap=False)]).axes[1])[0] == (0, 90)


def test_a_doubtful_infection_is_hollow() -> None:
    figure = plot.curves([run("fst"), run("ft", status="weak"), run("lp", status="broken")])
    asr = figure.axes[1]
    assert [line.get_markevery() for line in asr.lines] == [[0, 1, 2], [], [0, 1, 2], [], [0, 1, 2]]
    hollow = [str(line.get_markerfacecolor()) == "white" for line in asr.lines]
    assert hollow == [False, False, True, False, True]
    assert said(figure).endswith("Hollow: the infection is weak or broken.")


def test_a_panel_a_setting_a_line_a_defense() -> None:
    runs = [run(defense, 0, attack=attack, rate=rate) for defense in ("ft", "fst") for attack in ("blended", "badnets") for rate in RATES]  # fmt: skip
    figure = plot.curves(runs)
    titles = [axes.get_title("left") for axes in figure.axes[:6]]
    assert titles == [f"{attack} · {rate} %" for attack in ("badnets", "blended") for rate in (1, 5, 10)]
    assert legend(figure) == ["fst", "ft"] and all(len(axes.lines) == 2 for axes in figure.axes)
    colours = {tuple(to_hex(str(line.get_color())) for line in axes.lines) for axes in figure.axes}
    assert len(colours) == 1  # a defense looks the same in every panel


def test_settings_tell_lines_apart() -> None:
    figure = plot.curves([run(alpha=0.1), run(alpha=0.2), run("ft")])
    assert legend(figure) == ["fst, alpha 0.1", "fst, alpha 0.2", "ft"]
    older = plot.curves([run(), run(alpha=0.1)])  # from before the setting existed
    assert legend(older) == ["fst, alpha 0.1", "fst, alpha –"] and len(older.axes[1].lines) == 2


def test_looks_do_not_repeat() -> None:
    names = [f"d{index:02}" for index in range(56)]
    looks = plot._looks([plot.Panel("", {name: [] for name in names})])
    assert len({tuple(look.values()) for look in looks.values()}) == 56


def test_no_trigger_no_line() -> None:
    figure = plot.curves([run(), without_trigger()])
    assert [len(axes.lines) for axes in column(figure, 0)] == [1, 1, 1]
    assert [len(axes.lines) for axes in column(figure, 1)] == [1, 0, 0]
    assert [[text.get_text() for text in axes.texts] for axes in column(figure, 1)] == [
        [],
        ["no trigger"],
        ["no trigger"],
    ]


def test_much_longer_defenses_squeeze_nobody() -> None:
    short, long = run("ft"), run("trap_and_replace", asrs=(0.5,) * 17)
    assert [plot.curves(runs).axes[2].get_xscale() for runs in ([short], [short, long])] == ["linear", "symlog"]
    assert len(plot.curves([long]).axes[1].lines[0].get_markevery()) <= plot.MARKED  # type: ignore[arg-type]


# ---- rates ----------------------------------------------------------------------------------------------------------


def test_rates_hold_what_the_records_hold() -> None:
    runs = [run(seed=seed, asrs=(0.1 * (1 + seed + index),), rate=rate) for index, rate in enumerate(RATES) for seed in (0, 1)]  # fmt: skip
    figure = plot.against_rate(runs)
    (axes,) = figure.axes
    assert points(axes) == [(rate, 90) for rate in RATES] and axes.lines[0].get_linestyle() == "--"
    assert points(axes, 1 + 2 * len(RATES)) == [(0.01, 15), (0.05, 25), (0.1, 35)]  # after the caps of the error bars
    bars = [bar.get_segments()[0] for bar in axes.collections]
    assert [(round(float(bar[1][1] - bar[0][1]), 3), float(bar[0][0])) for bar in bars] == [
        (14.142, rate) for rate in RATES
    ]
    assert axes.get_xscale() == "log" and list(axes.get_xticks()) == list(RATES)
    assert [axes.xaxis.get_major_formatter()(rate) for rate in RATES] == ["1", "5", "10"]
    assert axes.get_ylabel() == "ASR, %" and legend(figure) == ["infected", "fst"]
    assert said(figure) == "Mean over seeds, bars of one sample standard deviation, n = 2."


def test_another_metric() -> None:
    (axes,) = plot.against_rate([run()], "ca").axes
    assert points(axes) == [(0.1, 95)] and points(axes, 1) == [(0.1, 90)] and axes.get_ylabel() == "CA, %"


def test_an_infection_under_several_defenses_counts_once() -> None:
    shared, alone = run("ft", 0), run("fst", 0)
    other = run("fst", 1)
    assert other.infected is not None
    other.infected = Scores(0.95, 0.6, 0.05, 360, 324)
    assert points(plot.against_rate([shared, alone, other]).axes[0]) == [(0.1, 75)]  # not 80


def test_hollow_points_among_others() -> None:
    (axes,) = plot.against_rate([run(rate=0.01, status="weak"), run(rate=0.1)]).axes
    assert [line.get_markevery() for line in axes.lines] == [[1], [0], [1], [0]]  # infected, purified


def test_an_attack_a_panel() -> None:
    runs = [run(attack="blended"), run(attack="badnets", rate=0.05), without_trigger(), run(attack="badnets", rate=0)]
    figure = plot.against_rate(runs)
    assert [axes.get_title("left") for axes in figure.axes] == ["badnets", "blended"]
    assert [list(axes.get_xticks()) for axes in figure.axes] == [[0.05], [0.1]]


def test_lines_lie_side_by_side() -> None:
    (axes,) = plot.against_rate([run("fst"), run("ft")]).axes
    placed = [line.get_transform().transform((0.1, 50)) for line in axes.lines]
    points_apart = (placed[2][0] - placed[1][0]) * 72 / axes.get_figure().dpi  # type: ignore[union-attr]
    assert points_apart == pytest.approx(plot.BESIDE) and placed[2][1] == placed[1][1]


# ---- files, the verb, mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "suffix"),
    [(plot.curves, "svg"), (plot.against_rate, "svg"), (plot.against_rate, "pdf"), (plot.against_rate, "png")],
)
def test_equal_records_make_equal_bytes(draw: Callable[..., Figure], suffix: str, tmp_path: Path) -> None:
    runs = [run(defense, seed) for defense in ("ft", "fst") for seed in (0, 1)]
    for name, given in (("one", runs), ("two", runs[::-1])):  # nor does it matter what was run first
        plot.write(draw(given), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_an_svg_has_no_date(tmp_path: Path) -> None:
    plot.write(plot.against_rate([run()]), tmp_path / "new" / "plot.svg")
    assert "<dc:date>" not in (tmp_path / "new" / "plot.svg").read_text()


def test_nothing_global_changes(tmp_path: Path) -> None:
    import matplotlib

    before = {name: matplotlib.rcParams[name] for name in plot.STYLE[1]}
    plot.write(plot.curves([run()]), tmp_path / "plot.svg")
    assert {name: matplotlib.rcParams[name] for name in plot.STYLE[1]} == before


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two finished runs, one that never finished, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    failed = run("lp")
    failed.status = "failed"
    for name, made in (("ft", run("ft")), ("fst", run("fst", rate=0.05)), ("lp", failed)):
        folder = tmp_path / "outputs" / "runs" / name
        folder.mkdir(parents=True)
        record.write(made, folder)
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_the_verb(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "curves", "outputs/runs/ft", "outputs/runs/fst", "--output", "curves.pdf"]) == 0
    assert cli.main(["plot", "rates", "outputs", "--output", "rates.svg", "--metric", "ca"]) == 0
    assert capsys.readouterr().out == "wrote curves.pdf\nwrote rates.svg\n"
    assert (runs / "curves.pdf").read_bytes().startswith(b"%PDF")
    plot.write(
        plot.against_rate([run("ft"), run("fst", rate=0.05)], "ca"), runs / "again.svg"
    )  # the failed one left out
    assert (runs / "rates.svg").read_bytes() == (runs / "again.svg").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["curves", "outputs/runs/lp", "--output", "plot.svg"],
            "0 of 1 runs finished, none with a learning curve; expected one at least. Run a defense that trains, with "
            "curve.every=1: bdx attack=badnets defense=fst.",
        ),
        (
            ["rates", "outputs/runs/lp", "--output", "plot.svg", "--metric", "ra"],
            "0 of 1 runs finished, none with RA at a poison rate above 0; expected one at least. Run some: "
            "bdx -m attack=badnets attack.poison_rate=0.01,0.1 defense=fst.",
        ),
        (
            ["curves", "outputs", "--output", "plot.jpg"],
            "'plot.jpg' is no name for a plot; expected one in .svg, .pdf or .png. Rename it.",
        ),
        (
            ["rates", "empty", "--output", "plot.svg"],
            "no record.json lies below empty; expected at least one run. Run something first: bdx attack=badnets defense=fst.",
        ),
        (
            ["rates", "nowhere", "--output", "plot.svg"],
            "'nowhere' is no folder; expected one that holds runs, such as outputs/. Name another.",
        ),
        (
            ["curves", "outputs", "--output", "plot.svg", "--metric", "ca"],
            "bdx plot: argument --metric: curves show all three; it goes with rates. Expected: bdx plot [-h] --output FILE "
            "[--metric {ca,asr,ra}] {curves,rates} DIR [DIR ...].",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_paragraph(
    words: list[str], message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plot", *words]) == 2
    assert capsys.readouterr().err == f"bdx: {message}\n" and not list(runs.glob("plot.*"))


def test_without_matplotlib(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["plot", "curves", "outputs", "--output", "plot.svg"]) == 2
    assert capsys.readouterr().err == (
        "bdx: bdx plot needs matplotlib, which is not installed. Add it: pip install 'bdx[plots]'.\n"
    )
