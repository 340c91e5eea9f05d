"""Plots out of hand-made records: what the figures hold, their bytes, the verb, its mistakes."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from records import made_run

from backdoorbench.cli import main as cli
from backdoorbench.cli.arguments import LISTED
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.errors import DataError, join_words
from backdoorbench.metrics import Scores
from backdoorbench.models import checkpoint
from backdoorbench.pipeline.job import Job
from backdoorbench.reporting import comebacks, features
from backdoorbench.reporting.features import Embedding
from backdoorbench.reporting.plots import ink, panels
from backdoorbench.reporting.plots.curves import curves
from backdoorbench.reporting.plots.gallery import galleries, gallery, reversed_triggers
from backdoorbench.reporting.plots.heatmap import heatmap
from backdoorbench.reporting.plots.rates import BESIDE, against_rate
from backdoorbench.reporting.plots.scatter import scatter
from backdoorbench.reporting.plots.tsne import tsne
from backdoorbench.reporting.rows import aggregate
from backdoorbench.storage import record
from backdoorbench.storage.record import Run

OF_A_HEATMAP = ["ca", "asr", "ra", "der", "holdout_ca", *comebacks.figures()]
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
        "gates": {"constant_share": 0.95},
        "seed": seed,
    }
    curve = [{"epoch": at, "ca": 0.9, "asr": asr, "ra": 0.9 - asr, "n": 100} for at, asr in enumerate(asrs, 1)]
    before, after = Scores(0.95, 0.9, 0.05, 360, 324), Scores(0.9, asrs[-1], 0.9 - asrs[-1], 360, 324)
    made = made_run(defense, config, before, after, status)
    made.purification.curve = curve
    return made


def without_trigger(**changes: Any) -> Run:
    clean = run(attack="none", rate=None, status="clean", **changes)
    clean.infection.scores = clean.purification.scores = Scores(0.95, None, None, 360, 0)
    for point in clean.purification.curve:
        point["asr"] = point["ra"] = None
    return clean


def column(figure: Figure, index: int = 0) -> list[Axes]:
    """CA, ASR and RA of one setting."""
    columns = len(figure.axes) // 3
    return figure.axes[index::columns]


def titles(figure: Figure) -> list[str]:
    return [title for axes in figure.axes if (title := axes.get_title("left"))]


def points(axes: Axes, line: int = 0) -> list[tuple[float, float]]:
    return [(float(x), round(float(y), 9)) for x, y in axes.lines[line].get_xydata()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def said(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_a_curve_is_what_the_record_holds() -> None:
    figure = curves([run()])
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
    figure = curves([run(seed=seed, asrs=asrs) for seed, asrs in enumerate([(0.5, 0.2), (0.7, 0.3), (0.6, 0.1)])])
    asr = figure.axes[1]
    assert points(asr) == [(0, 90), (1, 60), (2, 20)]
    (band,) = asr.collections
    corners = {(float(x), round(float(y), 9)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(0, 90), (1, 50), (1, 70), (2, 10), (2, 30)}
    assert said(figure).startswith("Mean over seeds, band from the smallest to the largest, n = 3.")


def test_a_seed_run_twice_counts_once() -> None:
    assert points(curves([run(), run(asrs=(0.4, 0.1))]).axes[1]) == [(0, 90), (1, 40), (2, 10)]


def test_a_trap_does_not_start_from_the_infected_model() -> None:
    trap, cut = run("trap_and_replace"), run("trap_and_replace", trap=False)
    trap.purification.details["starts_from"] = "scratch"
    figure = curves([trap])
    assert points(figure.axes[1]) == [(1, 50), (2, 25)] and said(figure) == "n = 1."
    assert points(curves([cut]).axes[1])[0] == (0, 90)
    cut.purification.details.clear()  # a record that does not say
    assert points(curves([cut]).axes[1])[0] == (0, 90)


def test_a_doubtful_infection_is_hollow() -> None:
    figure = curves([run("fst"), run("ft", status="weak"), run("lp", status="broken")])
    asr = figure.axes[1]
    assert [line.get_markevery() for line in asr.lines] == [[0, 1, 2], [], [0, 1, 2], [], [0, 1, 2]]
    hollow = [str(line.get_markerfacecolor()) == "white" for line in asr.lines]
    assert hollow == [False, False, True, False, True]
    assert said(figure).endswith("Hollow: the infection is weak or broken.")


def test_a_panel_a_setting_a_line_a_defense() -> None:
    runs = [run(defense, 0, attack=attack, rate=rate) for defense in ("ft", "fst") for attack in ("blended", "badnets") for rate in RATES]  # fmt: skip
    figure = curves(runs)
    assert titles(figure) == [f"{attack} · {rate} %" for attack in ("badnets", "blended") for rate in (1, 5, 10)]
    assert legend(figure) == ["fst", "ft"] and all(len(axes.lines) == 2 for axes in figure.axes)
    colours = {tuple(to_hex(str(line.get_color())) for line in axes.lines) for axes in figure.axes}
    assert len(colours) == 1  # a defense looks the same in every panel


def test_settings_tell_lines_apart() -> None:
    figure = curves([run(alpha=0.1), run(alpha=0.2), run("ft")])
    assert legend(figure) == ["fst, alpha 0.1", "fst, alpha 0.2", "ft"]
    older = curves([run(), run(alpha=0.1)])  # from before the setting existed
    assert legend(older) == ["fst, alpha 0.1", "fst, alpha –"] and len(older.axes[1].lines) == 2


def test_a_name_that_stands_for_other_settings_in_another_panel_is_told() -> None:
    """Each panel has one fst, which needs no more to be told from its like there."""
    pair = [run(attack="badnets", epochs=1), run(attack="blended", epochs=2)]
    assert legend(curves(pair)) == ["fst"]
    assert " Not the same in all panels: fst (epochs 1, 2)." in said(curves(pair))
    assert "Not the same" not in said(curves([pair[0], run(attack="blended", epochs=1)]))
    together = curves([*pair, run(attack="blended", epochs=1)])
    assert legend(together) == ["fst", "fst, epochs 1", "fst, epochs 2"] and "Not the same" not in said(together)


def test_looks_do_not_repeat() -> None:
    names = [f"d{index:02}" for index in range(56)]
    looks = panels.looks([panels.Panel("", {name: [] for name in names})])
    assert len({tuple(look.values()) for look in looks.values()}) == 56


def test_no_trigger_no_line() -> None:
    figure = curves([run(), without_trigger()])
    assert [len(axes.lines) for axes in column(figure, 0)] == [1, 1, 1]
    assert [len(axes.lines) for axes in column(figure, 1)] == [1, 0, 0]
    assert [[text.get_text() for text in axes.texts] for axes in column(figure, 1)] == [
        [],
        ["no trigger"],
        ["no trigger"],
    ]


def test_much_longer_defenses_squeeze_nobody() -> None:
    short, long = run("ft"), run("trap_and_replace", asrs=(0.5,) * 17)
    assert [curves(runs).axes[2].get_xscale() for runs in ([short], [short, long])] == ["linear", "symlog"]
    assert len(curves([long]).axes[1].lines[0].get_markevery()) <= ink.MARKED  # type: ignore[arg-type]


# ---- rates ----------------------------------------------------------------------------------------------------------


def test_rates_hold_what_the_records_hold() -> None:
    runs = [run(seed=seed, asrs=(0.1 * (1 + seed + index),), rate=rate) for index, rate in enumerate(RATES) for seed in (0, 1)]  # fmt: skip
    figure = against_rate(runs)
    axes, _ = figure.axes
    assert points(axes) == [(rate, 90) for rate in RATES] and axes.lines[0].get_linestyle() == "--"
    assert points(axes, 3) == [(0.01, 15), (0.05, 25), (0.1, 35)]  # after the caps of the error bars
    bars = axes.collections[0].get_segments()
    assert [(round(float(bar[1][1] - bar[0][1]), 3), float(bar[0][0])) for bar in bars] == [
        (14.142, rate) for rate in RATES
    ]
    assert axes.get_xscale() == "log" and list(axes.get_xticks()) == list(RATES)
    assert [axes.xaxis.get_major_formatter()(rate) for rate in RATES] == ["1", "5", "10"]
    assert axes.get_ylabel() == "ASR, %" and legend(figure) == ["infected", "fst"]
    assert said(figure) == "Mean over seeds, bars of one sample standard deviation, n = 2."


def test_a_row_a_figure() -> None:
    asr, ca = against_rate([run()]).axes
    assert (asr.get_ylabel(), ca.get_ylabel()) == ("ASR, %", "CA, %")
    assert points(ca) == [(0.1, 95)] and points(ca, 1) == [(0.1, 90)] and points(asr, 1) == [(0.1, 25)]
    assert (asr.get_xlabel(), ca.get_xlabel()) == ("", "poison rate, %")
    assert len(against_rate([run()], ("ra",)).axes) == 1


def test_an_infection_under_several_defenses_counts_once() -> None:
    shared, alone = run("ft", 0), run("fst", 0)
    other = run("fst", 1)
    other.infection.scores = Scores(0.95, 0.6, 0.05, 360, 324)
    assert points(against_rate([shared, alone, other]).axes[0]) == [(0.1, 75)]  # not 80


def test_hollow_points_among_others() -> None:
    axes, _ = against_rate([run(rate=0.01, status="weak"), run(rate=0.1)]).axes
    assert [line.get_markevery() for line in axes.lines] == [[1], [0], [1], [0]]  # infected, purified


def test_an_attack_a_panel() -> None:
    runs = [run(attack="blended"), run(attack="badnets", rate=0.05), without_trigger(), run(attack="badnets", rate=0)]
    figure = against_rate(runs)
    assert titles(figure) == ["badnets", "blended"]
    assert [list(axes.get_xticks()) for axes in figure.axes[:2]] == [[0.05], [0.1]]


def test_lines_lie_side_by_side() -> None:
    axes, _ = against_rate([run("fst"), run("ft")]).axes
    placed = [line.get_transform().transform((0.1, 50)) for line in axes.lines]
    points_apart = (placed[2][0] - placed[1][0]) * 72 / axes.get_figure().dpi  # type: ignore[union-attr]
    assert points_apart == pytest.approx(BESIDE) and placed[2][1] == placed[1][1]


def test_more_than_four_panels_go_below() -> None:
    runs = [run(attack=f"a{index}", rate=rate) for index in range(5) for rate in (0.01, 0.1)]
    figure = against_rate(runs)
    assert titles(figure) == ["a0", "a1", "a2", "a3", "a4"] and len(figure.axes) == 10
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["ASR, %", "CA, %"] * 2
    few = against_rate([*runs, run("ft", attack="a3")], most=2)
    assert titles(few) == ["a0", "a3"]  # as many rates each, then as many runs
    assert said(few) == "n = 1. 3 more settings are not drawn."


def test_collapsed_runs_are_left_out_and_counted() -> None:
    broken = run("ft", status="broken")
    figure = against_rate([run(), broken])
    assert legend(figure) == ["infected", "fst"] and said(figure) == "n = 1. 1 collapsed run left out."


# ---- scatter, heat map, gallery, features ---------------------------------------------------------------------------


def test_a_scatter_goes_from_infected_to_purified() -> None:
    figure = scatter([run(seed=seed, asrs=(asr,)) for seed, asr in enumerate((0.2, 0.4))] + [run("ft")])
    (axes,) = figure.axes
    assert [points(axes, line) for line in range(4)] == [[(95, 90)], [(90, 30)], [(95, 90)], [(90, 25)]]
    arrows = [text for text in axes.texts if text.arrow_patch is not None]
    assert [(text.xyann, tuple(round(float(x), 9) for x in text.xy)) for text in arrows] == [
        ((95, 90), (90, 30)),
        ((95, 90), (90, 25)),
    ]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xlim()) == ("CA, %", "ASR, %", (90, 100))
    assert legend(figure) == ["infected", "fst", "ft"] and said(figure) == "Means over seeds, n = 1 to 2."


def test_no_accuracy_is_above_all() -> None:
    """Of a network that calls every test image right, before and after, too; and matplotlib has nothing to complain of."""
    perfect = run()
    for finding in (perfect.infection, perfect.purification):
        finding.scores = Scores(1.0, 0.5, 0.5, 360, 324)
    (axes,) = scatter([perfect]).axes
    assert axes.get_xlim() == (90, 100)


@pytest.mark.parametrize("draw", [curves, lambda runs: heatmap(aggregate(runs))], ids=["curves", "heat map"])
def test_long_titles_stay_on_their_figure_and_off_the_legend(draw: Callable[..., Figure]) -> None:
    long = run(defense="trap_and_replace", attack="input_aware")
    named = {"dataset": "tiny_imagenet", "model": "preact_resnet18_of_double_width", "train": "backdoorbench"}
    long.config.update({group: {"name": name} for group, name in named.items()})
    figure = draw([long])
    figure.draw_without_rendering()  # type: ignore[no-untyped-call]
    titles = [figure._suptitle] if figure.legends else [figure.axes[0]._left_title]  # type: ignore[attr-defined]
    (box,) = [title.get_window_extent() for title in figure.findobj(Text) if title in titles]
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert not any(legend.get_window_extent().overlaps(box) for legend in figure.legends)


def test_a_heat_map_holds_the_figures() -> None:
    runs = [run(seed=0, asrs=(0.2,)), run(seed=1, asrs=(0.4,)), run("ft", attack="blended", status="weak")]
    figure = heatmap(aggregate(runs))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["infected", "fst", "ft"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["badnets · 10 %", "blended (weak) · 10 %"]
    assert [text.get_text() for text in axes.texts] == ["90.00", "30.00", "–", "90.00", "–", "25.00"]
    assert axes.images[0].get_array()[0, 1] == pytest.approx(30)  # type: ignore[index]
    assert len(axes.patches) == 2 and {patch.get_hatch() for patch in axes.patches} == {"////"}
    colours = [text.get_color() for text in axes.texts]
    assert colours[0] == "#010101" and colours[1] == "#ffffff"  # dark on yellow, light on blue
    assert axes.images[0].get_cmap().name == "cividis"


@pytest.fixture
def drawn(tmp_path: Path) -> dict[Path, Run]:
    """Three runs with pictures of two triggers, and one without."""
    from PIL import Image

    found = {}
    for name, made in (("a", run()), ("b", run("ft")), ("c", run(attack="blended")), ("d", run(attack="sig"))):
        folder = tmp_path / name
        folder.mkdir()
        if name != "d":
            Image.new("RGB", (60, 20), (255, 0, 0)).save(folder / "triggered.png")
        found[folder] = made
    return found


def test_a_gallery_shows_each_trigger_once(drawn: dict[Path, Run]) -> None:
    figure = gallery(drawn)
    assert titles(figure) == ["standard · badnets", "standard · blended"]
    assert figure.axes[0].images[0].get_array().shape[:2] == (20, 60)  # type: ignore[union-attr]
    assert said(gallery(drawn, 1)) == "Clean, triggered, and grey plus the difference times 10. 1 more trigger is not drawn."  # fmt: skip


def test_reversed_triggers_are_titled_by_their_detector(tmp_path: Path) -> None:
    from PIL import Image

    found = {}
    for name, alpha in (("a", 0.1), ("b", 0.2), ("c", 0.1)):
        made = run()
        made.config["detector"] = {"name": "nc", "alpha": alpha}
        made.begin("detect", "nc")
        (tmp_path / name).mkdir()
        for picture in ("triggered", "masks", "patterns"):
            Image.new("RGB", (60, 20), (255, 0, 0)).save(tmp_path / name / f"{picture}.png")
        found[tmp_path / name] = made
    assert {title: file.relative_to(tmp_path).as_posix() for title, file in reversed_triggers(found).items()} == {
        f"standard · badnets: reversed by nc, alpha {alpha}, {picture}": f"{name}/{picture}.png"
        for name, alpha in (("a", 0.1), ("b", 0.2))
        for picture in ("masks", "patterns")
    }
    assert list(galleries(found)) == ["standard · badnets"]


def test_a_detector_tells_no_lines_apart() -> None:
    runs = [run(), run(asrs=(0.4, 0.1))]
    runs[1].config["detector"] = {"name": "strip"}
    assert points(curves(runs).axes[1]) == [(0, 90), (1, 40), (2, 10)]


def test_features_are_marked_by_shape_and_colour() -> None:
    points = np.arange(12.0).reshape(6, 2)
    figure = tsne(run(), Embedding(points, points + 1, np.array([0, 0, 1, 1, 2, 2])))
    assert titles(figure) == ["infected: CA 95.00, ASR 90.00", "purified: CA 90.00, ASR 25.00"]
    assert [line.get_marker() for line in figure.axes[0].lines] == [".", "s", "x"]
    assert legend(figure) == ["clean, other classes\n(2)", "clean, target class\n(2)", "triggered (2)"]


@pytest.mark.slow  # trains two networks
def test_features_of_a_run(request: pytest.FixtureRequest) -> None:
    carry_out: Callable[..., Job] = request.getfixturevalue("run")
    done = carry_out("attack=badnets", "defense=ft", *QUICK)
    found = features.embed(done.run, done.folder)
    assert found.before.shape == found.after.shape == (len(found.kinds), 2) and np.isfinite(found.after).all()
    assert [int((found.kinds == kind).sum()) for kind in range(3)] == [
        108,
        12,
        108,
    ]  # 120 test images, 12 of the target's
    assert (features.embed(done.run, done.folder).before == found.before).all()
    clean = carry_out("attack=none", "defense=ft", *QUICK)
    with pytest.raises(DataError) as raised:
        features.embed(clean.run, clean.folder)
    assert str(raised.value) == (
        f"the run in {clean.folder} has no trigger, so t-SNE has nothing to mark. Choose a run with an attack."
    )


def test_features_of_a_network_to_which_its_defense_added_layers(tmp_path: Path) -> None:
    config, file = compose(["defense=npd", "model.width=8"]), tmp_path / "purified.safetensors"
    spec, dataset = build(config["model"], "model"), build(config["dataset"], "dataset")
    model = spec.classifier(10, 32, dataset.mean, dataset.std)
    build(config["defense"], "defense").reshape(model)
    made = run()
    made.config |= {"model": config["model"], "plugins": []}
    checkpoint.save(model, file, {"defense": config["defense"]})
    found = features._model(made, dataset, 10, file).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    checkpoint.save(model, file)
    with pytest.raises(DataError) as raised:
        features._model(made, dataset, 10, file)
    assert re.fullmatch(
        rf"'{file}' holds other layers than demo \(.*\): its defense changed the network, or the file is damaged. Choose another "
        r"run\.",
        str(raised.value),
    )


def test_features_that_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "runs" / "one"
    infection = tmp_path / "outputs" / "cache" / "infection" / "badnets-standard-abc"
    made = run()
    made.infection.key = "abc"
    with pytest.raises(DataError) as raised:
        features.embed(made, folder)
    assert str(raised.value) == (
        f"t-SNE needs the infected model, and {infection} is gone from the cache. Repeat the run with rerun=true."
    )
    infection.mkdir(parents=True)
    (infection / "infection.json").write_text("{}")
    with pytest.raises(DataError) as raised:
        features.embed(made, folder)
    assert str(raised.value) == (
        f"t-SNE needs the purified model, and {folder / 'purified.safetensors'} is gone. Repeat the run with rerun=true."
    )


# ---- files, the verb, mistakes --------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize(
    ("draw", "suffix"),
    [
        (curves, "svg"),
        (against_rate, "svg"),
        (against_rate, "pdf"),
        (against_rate, "png"),
        (scatter, "svg"),
    ],
)
def test_equal_records_make_equal_bytes(draw: Callable[..., Figure], suffix: str, tmp_path: Path) -> None:
    runs = [run(defense, seed) for defense in ("ft", "fst") for seed in (0, 1)]
    for name, given in (("one", runs), ("two", runs[::-1])):  # nor does it matter what was run first
        ink.write(draw(given), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_an_svg_has_no_date(tmp_path: Path) -> None:
    ink.write(against_rate([run()]), tmp_path / "new" / "plot.svg")
    assert "<dc:date>" not in (tmp_path / "new" / "plot.svg").read_text()


def test_nothing_global_changes(tmp_path: Path) -> None:
    import matplotlib

    before = {name: matplotlib.rcParams[name] for name in ink.STYLE[1]}
    ink.write(curves([run()]), tmp_path / "plot.svg")
    assert {name: matplotlib.rcParams[name] for name in ink.STYLE[1]} == before


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


@pytest.mark.wide
def test_the_verb(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "curves", "outputs/runs/ft", "outputs/runs/fst", "--output", "curves.pdf"]) == 0
    assert cli.main(["plot", "rates", "outputs", "--output", "rates.svg", "--metric", "ca", "--names", "ids"]) == 0
    assert capsys.readouterr().out == "wrote curves.pdf\nwrote rates.svg\n"
    assert (runs / "curves.pdf").read_bytes().startswith(b"%PDF")
    ink.write(against_rate([run("ft"), run("fst", rate=0.05)], ("ca",)), runs / "again.svg")  # the failed one left out
    assert (runs / "rates.svg").read_bytes() == (runs / "again.svg").read_bytes()
    assert cli.main(["plot", "heatmap", "outputs", "--output", "map.svg", "--metric", "der"]) == 0
    assert cli.main(["plot", "scatter", "outputs", "--output", "scatter.svg"]) == 0
    assert "DER of the purified model" in (runs / "map.svg").read_text()


def test_a_plot_says_what_print_calls_options(runs: Path) -> None:
    (runs / "mine.yaml").write_text("fst: Shift!\n")
    known = {"ids": {"ft", "fst", "badnets"}, "mine.yaml": {"FT", "Shift!", "BadNets"}}
    for names, words in known.items():
        assert cli.main(["plot", "heatmap", "outputs", "--output", "map.svg", "--names", names]) == 0
        text = (runs / "map.svg").read_text()
        assert {word for word in set.union(*known.values()) if f"<!-- {word} " in text} == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["curves", "outputs/runs/lp", "--output", "plot.svg"],
            "0 of 1 run finished, none with a learning curve; expected one at least. Run a defense that trains, with "
            "curve.every=1: bdx attack=badnets defense=fst.",
        ),
        (
            ["rates", "outputs/runs/lp", "--output", "plot.svg", "--metric", "ra"],
            "0 of 1 run finished, none with RA at a poison rate above 0; expected one at least. Run some: "
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
            "bdx plot: argument --metric: curves has its own; it goes with rates, sweep, classes, heatmap and ranks. Expected: bdx plot [-h] [--config-dir DIR] [--plugin DIR] --output FILE "
            "[--x SETTING] [--metric LIST] [--names FILE] [--where CHOICE] {curves,rates,sweep,scatter,after,trials,heatmap,classes,ranks,gallery,tsne} DIR [DIR ...].",
        ),
        (
            ["heatmap", "outputs", "--output", "plot.svg", "--metric", "acc"],
            f"--metric is 'acc'; expected some of {join_words(OF_A_HEATMAP[:LISTED] + [f'{len(OF_A_HEATMAP) - LISTED} of after-attacks'])}. Change --metric.",
        ),
        (
            ["heatmap", "outputs/runs/lp", "--output", "plot.svg"],
            "0 settings finished, none with ASR; expected one at least. Run some: bdx -m attack=badnets,blended defense=ft,fst.",
        ),
        (
            ["scatter", "outputs/runs/lp", "--output", "plot.svg"],
            "0 of 1 run finished, none with an ASR; expected one at least. Run one: bdx attack=badnets defense=fst.",
        ),
        (
            ["gallery", "outputs", "--output", "plot.svg"],
            "2 of 3 runs finished, none with a triggered.png in its folder; expected one at least. Run an attack anew, with "
            "rerun=true, or draw a trigger without training: bdx preview attack=badnets.",
        ),
        (
            ["tsne", "outputs", "--output", "plot.svg"],
            "'outputs' holds no record.json; tsne draws one run. Name its folder, such as outputs/runs/NAME.",
        ),
        (
            ["tsne", "outputs/runs/lp", "--output", "plot.svg"],
            "the run in outputs/runs/lp is failed; t-SNE needs a finished one. Repeat its command.",
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
