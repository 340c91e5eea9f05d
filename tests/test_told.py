"""What a report tells is what records hold: n of every figure, roundings, which run counts, what tells rows apart, text that any
format bears; and no option is given in vain."""

import copy
import csv
import functools
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from records import made_run
from rich.console import Console

from backdoorbench import metrics
from backdoorbench.cli import main as cli
from backdoorbench.config.compose import Plain, compose
from backdoorbench.errors import DataError
from backdoorbench.metrics import Limits, Scores
from backdoorbench.reporting import comebacks, formats, notes, page, published, report, rows, terminal
from backdoorbench.reporting.contrasts import points
from backdoorbench.reporting.grids import Column, Grid, Item
from backdoorbench.reporting.plots import ink
from backdoorbench.reporting.plots.after import against_setting as after_setting
from backdoorbench.reporting.plots.curves import curves
from backdoorbench.reporting.plots.scatter import scatter
from backdoorbench.reporting.plots.sweep import against_setting
from backdoorbench.storage import record
from backdoorbench.storage.record import Finding, Run

COLLAPSED = {"ca_per_class": [1.0] + [0.0] * 9}
DETECTED = dict.fromkeys(("auroc", "tpr_1", "tpr_5", "tpr_10", "tpr", "fpr", "precision"), 0.5)


@functools.cache
def composed(*words: str) -> Plain:
    return compose(list(words))


def run(id: str, *words: str, seed: int = 0, over: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A run. over: its settings by dotted key of two words; details: of the purification."""
    config = {**copy.deepcopy(composed(*words)), "seed": seed}
    for key, value in (over or {}).items():
        group, name = key.split(".")
        config[group][name] = value
    details = changes.pop("details", {})
    known = {"infected": Scores(0.94, 0.99, 0.01, 1000, 900), "purified": Scores(0.93, 0.1, 0.8, 1000, 900)}
    known |= {"environment": {"device": "a CPU"}, "started": "2026-01-01T00:00:00+00:00"}
    made = made_run(id, config, **known | changes)
    made.purification.details |= details
    return made


def made(
    *runs: Run, figures: tuple[str, ...] = ("ca", "asr"), axes: tuple[str, ...] = (), **more: Any
) -> report.Report:
    """Their report; axes: rows and columns."""
    found = {Path("outputs/runs") / each.id: each for each in runs}
    return report.make(found, figures, axes[:1], axes[1:], **more)


def lines(of: report.Report) -> list[str]:
    """As it is printed, without blanks at the end of lines."""
    return [line.rstrip() for line in terminal.as_text(of).splitlines() if line.strip()]


def written(place: Path, *runs: Run) -> None:
    for each in runs:
        folder = place / "outputs" / "runs" / each.id
        folder.mkdir(parents=True)
        record.write(each, folder)


# ---- n --------------------------------------------------------------------------------------------------------------


def test_a_figure_that_some_records_lack_says_its_own_n() -> None:
    three = [
        run(f"ft{seed}", "defense=ft", seed=seed, details={"holdout_ca": 0.9} if not seed else {}) for seed in range(3)
    ]
    found = made(*three, figures=("ca", "holdout_ca"))
    assert lines(found)[2].split()[:3] == ["badnets", "ft", "3"] and lines(found)[2].endswith("90.00 (n 1)")
    line = next(csv.DictReader(io.StringIO(report.csv(found, ("ca", "holdout_ca")))))
    assert (line["n"], line["holdout_ca"], line["holdout_ca_n"]) == ("3", "0.900000", "1")


def test_an_infected_model_whose_defense_collapsed_says_that_it_counts_more_runs() -> None:
    collapsed = run("ft1", "defense=ft", seed=1, purified=Scores(0.1, 0.0, 0.1, 1000, 900), details=COLLAPSED)
    found = made(run("ft0", "defense=ft", infected=Scores(0.5, 0.99, 0.01, 1000, 900)), collapsed)
    assert "1  72.00 ± 31.11 (n 2)  99.00 ± 0.00 (n 2)     93.00      10.00" in lines(found)[2]
    line = next(csv.DictReader(io.StringIO(report.csv(found))))
    assert (line["n"], line["infected_n"], line["infected_ca"]) == ("1", "2", "0.720000")


def test_rows_by_columns_say_the_n_of_most_cells_above_and_of_others_in_them() -> None:
    infected = [run(f"none{seed}", "defense=none", seed=seed) for seed in range(3)]
    found = made(
        run("ft0", "defense=ft"), run("fst0", "defense=fst"), *infected, figures=("asr",), axes=("attack", "defense")
    )
    assert lines(found)[0] == " dataset digits · model demo · rate 10 % · ASR, % · n 1"
    assert lines(found)[2] == " badnets  99.00 ± 0.00 (n 3)  10.00  10.00"
    assert report.markdown(found).startswith("dataset digits · model demo · rate 10 % · ASR, % · n 1\n")
    assert r"\caption{Dataset digits $\cdot$ model demo $\cdot$ rate 10 \% $\cdot$ ASR, \%, n = 1." in report.latex(
        found
    )
    assert r"\label{tab:dataset-digits-model-demo-rate-10-asr}" in report.latex(
        found
    )  # which another n leaves as it is


def test_a_sweep_says_how_many_seeds_its_points_have() -> None:
    runs = [run(f"a{seed}", "defense=fst", seed=seed, over={"defense.alpha": 0.1}) for seed in range(3)]
    one = Scores(0.5, 0.5, 0.1, 1000, 900)
    runs += [
        run("b", "defense=fst", over={"defense.alpha": 0.2}),
        run("c", "defense=ft", over={"defense.alpha": 0.2}, infected=one),
    ]
    figure = against_setting(runs, "defense.alpha", ("ca",))
    assert "n = 1 to 3." in figure._supxlabel.get_text().replace("\n", " ")  # type: ignore[attr-defined]
    (infected,) = (line for line in figure.axes[0].lines if line.get_linestyle() == "--")
    assert len(infected.get_xdata()) == 2  # type: ignore[arg-type]


def test_a_superficial_purification_is_told_by_runs_that_have_the_control() -> None:
    def attacked(seed: int, asr: float, clean: float | None) -> Run:
        each = run(f"ft{seed}", "defense=ft", "after=retune", seed=seed, purified=Scores(0.93, 0.01, 0.9, 1000, 900))
        figures = {"asr_retuned": asr} | ({} if clean is None else {"asr_retuned_clean": clean})
        each.stages.append(Finding("after", "retune", figures=figures, details={"figure": "retuned"}))
        return each

    def is_superficial(*runs: Run) -> bool | None:
        (row,) = comebacks.mark(rows.aggregate(runs), rows.afters(runs), Limits())
        return row.superficial

    assert is_superficial(attacked(0, 0.1, 0.1), attacked(1, 0.9, None)) is False  # the second has nothing beside it
    assert is_superficial(attacked(0, 0.3, 0.1)) is True  # by 20 points, though 0.3 - 0.1 < 0.2


# ---- which run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [("a", "z"), ("z", "a")])
def test_a_seed_run_twice_counts_as_the_later_run_has_it_wherever_it_lies(ids: tuple[str, str]) -> None:
    early, late = (
        run(id, "defense=ft", started=f"2026-01-0{day}T00:00:00+00:00", purified=Scores(0.9, day / 10, 0.1, 1000, 900))
        for day, id in zip((1, 2), ids, strict=True)
    )
    (row,) = rows.aggregate(sorted((early, late), key=lambda each: each.id))
    assert row.figures["asr"].values == (0.2,)


SCORES = {"ca": 0.9, "asr": 0.1, "ra": 0.1, "n_clean": 1, "n_triggered": 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("scores", SCORES | {"ca": float("nan")}),
        ("scores", SCORES | {"ca": 97.3}),
        ("scores", SCORES | {"asr": -0.1}),
        ("details", {"asr_per_class": ["x"]}),
        ("details", {"ra_per_class": 1}),
        ("details", {"holdout_ca": 1e300}),
        ("details", {"holdout": []}),
        ("environment", {"packages": 1.5}),
        ("environment", {"data": {"classes": 10}}),
        ("environment", {"company": {"fresh": True}}),
        ("content", {"dataset.root": ["x"]}),
        ("holdout", {"name": "standard", "rate": "5 %"}),
    ],
)
def test_a_record_with_what_no_table_computes_with_is_left_out(key: str, value: Any, tmp_path: Path) -> None:
    content = {**vars(run("ft", "defense=ft")), "stages": []}
    if key == "holdout":
        content["config"] = content["config"] | {"holdout": value}
    elif key in ("environment", "content"):
        content[key] = value
    else:
        content["stages"] = [{"kind": "purify", "name": "ft", key: value}]
    (tmp_path / record.FILE).write_text(json.dumps(content))
    with pytest.raises(DataError, match="is no record of this version"):
        record.read(tmp_path)


# ---- roundings ------------------------------------------------------------------------------------------------------


def test_what_counts_as_the_same_is_what_is_printed_the_same() -> None:
    half = 1 / 800  # printed 0.12, and 0.0013 to four places
    alike = [
        run("a", "defense=ft", purified=Scores(0.9, half, 0.1, 800, 800)),
        run("b", "defense=fst", purified=Scores(0.9, 0.0012, 0.1, 800, 800)),
    ]
    assert [rows.percent(half), rows.percent(0.0012)] == ["0.12", "0.12"]
    assert all("asr" in row.best for row in rows.aggregate(alike))
    assert Limits(asr=0.0013).met(0.0, half)


def test_exactly_two_points_from_a_published_figure_are_within() -> None:
    for ours, theirs in ((0.029, 0.009), (0.0284, 0.0084), (0.92, 0.94)):
        figure = published.Figure("", "", "", "", "badnets", "", "ft", "", {"asr": theirs}, "", "")
        cells = {"asr": rows.Cell((ours,))}
        assert published.Comparison("", "badnets", "", "ft", 1, cells, figure, ()).verdict == "within"
    assert (
        published.Comparison("", "", "", "", 1, {"asr": rows.Cell((0.0291,))}, dataclass_with(0.009), ()).verdict
        == "off"
    )


def dataclass_with(asr: float) -> published.Figure:
    return published.Figure("", "", "", "", "badnets", "", "ft", "", {"asr": asr}, "", "")


def test_nothing_is_less_than_nothing() -> None:
    assert (rows.percent(-0.00001), rows.show(rows.Cell((-0.00001,))), points(-0.00001)) == ("0.00", "0.00", "+0.00")


# ---- what tells rows apart ------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize(
    ("key", "one", "other", "said"),
    [
        ("attack.poison_rate", 0.06, 0.060000000000000005, ("6 %", "6.000000000000001 %")),
        ("defense.x", {}, "–", ("ft, x {}", "ft, x –")),
        ("defense.x", None, "null", ("ft, x null", "ft, x 'null'")),
        ("defense.x", "", "a\nb", ("ft, x ''", r"ft, x a\nb")),
        ("defense.x", 1, "1", ("ft, x 1", "ft, x '1'")),
    ],
)
def test_two_settings_are_never_called_the_same(key: str, one: Any, other: Any, said: tuple[str, str]) -> None:
    runs = [
        run(str(place), "defense=ft", over={} if value == "–" else {key: value})
        for place, value in enumerate((one, other))
    ]
    laid_out = made(*runs, figures=("asr",), axes=("rate", "defense"))
    texts = {item.text for grid in laid_out.grids for line in grid.lines for item in line}
    texts |= {column.flat for grid in laid_out.grids for column in grid.columns}
    assert set(said) <= texts


def test_numbers_ascend_and_what_is_none_stands_behind_them() -> None:
    rates = [
        run(
            "a",
            "attack=none",
            "defense=ft",
            infected=Scores(0.9, None, None, 10, 0),
            purified=Scores(0.9, None, None, 10, 0),
        )
    ]
    rates += [run(f"b{rate}", "defense=ft", over={"attack.poison_rate": rate}) for rate in (0.1, 0.01)]
    (grid,) = made(*rates, figures=("ca",), axes=("rate", "attack")).grids
    assert [line[0].text for line in grid.lines] == ["1 %", "10 %", "–"]


# ---- notes ----------------------------------------------------------------------------------------------------------


def test_a_detector_left_out_of_the_means_is_told_where_there_is_no_table_of_models() -> None:
    runs = [
        run(
            f"d{seed}",
            "detector=strip",
            "defense=none",
            seed=seed,
            figures=DETECTED,
            infection="took" if seed else "broken",
        )
        for seed in (0, 1)
    ]
    for axes, mark in (((), ""), (("attack", "detector"), "† ")):
        note = f"  {mark}collapsed and left out of the means: 1 run: strip on badnets, 10 % (broken infection, seed 0)"
        assert note in lines(made(*runs, figures=("auroc",), axes=axes))


def test_notes_tell_rows_of_one_attack_apart() -> None:
    """By what differs between the rows: rates always, settings of methods beside them, the rest in brackets."""
    runs = [
        run(
            f"a{rate}",
            "defense=fst",
            infection="broken",
            over={"attack.poison_rate": rate, "defense.lr": 0.5, "dataset.size": 40},
        )
        for rate in (0.05, 0.1)
    ]
    runs += [run("b", "defense=fst", infection="broken", over={"defense.lr": 0.25}), run("c", "defense=ft")]
    (said,) = [note for note in made(*runs).notes if "collapsed and left out" in note]
    assert said == (
        "collapsed and left out of the means: 3 runs: fst, lr 0.5 on badnets, 5 % (dataset.size 40) (broken infection, seed 0); "
        "fst, lr 0.5 on badnets, 10 % (dataset.size 40) (broken infection, seed 0); "
        "fst, lr 0.25 on badnets, 10 % (dataset.size 32) (broken infection, seed 0)"
    )


def test_failed_runs_of_one_attack_are_told_apart() -> None:
    runs = [
        run(f"{number}", "defense=fst", status="failed", error="no", over=over)
        for number, over in enumerate(
            ({"attack.poison_rate": 0.05}, {"defense.lr": 0.5}, {"defense.lr": 0.25}, {"attack.name": "x"})
        )
    ]
    same = "digits · demo · badnets → fst · seed 0"
    assert [each.heading for each in made(*runs, run("done")).failures] == [
        f"{same} · rate 5 %",
        f"{same} · rate 10 % · defense.lr 0.5",
        f"{same} · rate 10 % · defense.lr 0.25",
        "digits · demo · x → fst · seed 0",
    ]


def test_a_legend_is_of_what_is_shown() -> None:
    def columns(*figures: str, group: str = "") -> list[Column]:
        return [Column("", "", group, figure) for figure in figures]

    ca, asr, ra = metrics.DEFINITIONS.values()
    assert notes.definitions(("ca", "asr", "ra")) == [f"{ca} {asr} {ra} Percent."]
    assert notes.definitions(("ra",)) == [f"{asr} {ra} Percent."] and notes.definitions(("seconds",)) == []
    assert notes.definitions(("der",)) == [f"{ca} {asr} Percent. {metrics.DER_DEFINITION}"]
    assert notes.definitions(("asr_retuned",)) == [f"{asr} Percent."]
    assert notes.of_costs(("seconds", "device_memory")) == [
        "seconds: of the defense, its learning curve apart. device memory: what the process had allocated on the device, at most, "
        "libraries included. – where nothing tells it"
    ]
    assert notes.of_costs(("asr",)) == notes.detectors(columns("asr")) == notes.afterwards(columns("asr", "fpr")) == []
    assert notes.detectors(columns("auroc", "fpr", "target_flagged")) == [
        "Detectors of inputs or training rows: AUROC: how often a triggered (poisoned) one is more suspicious than a clean one. "
        "FPR: at the detector's own threshold. Percent.",
        "Detectors of models: target: runs in which the attacker's class is called a backdoor's target. Percent.",
    ]
    assert notes.detectors(columns("fpr", group="clean model"))[1:] == [notes.CLEAN_MODEL]
    after = "After-attacks on purified models: ASR before and after"
    assert notes.afterwards(columns("asr_after")) == [f"{after}. Percent."]
    assert notes.afterwards(
        [*columns("asr_after", "asr_after_untriggered"), *columns("asr_after", group="clean model")]
    ) == [
        f"{after}; lured: images without the trigger that the same change makes the target. The same on a clean model of the same "
        "recipe: only what lies above it is the backdoor's. Percent."
    ]
    assert notes.afterwards(columns("asr_after_clean", "asr_after_exact")) == [
        f"{after}. The same on a clean model of the same recipe, and after exact purification, an oracle that knew the trigger: "
        "only what lies above both is the backdoor's. Percent."
    ]


def test_a_figure_of_detectors_without_one_is_told() -> None:
    assert "  no finished run has a detector, so none shows auroc" in lines(
        made(run("a", "defense=ft"), figures=("ca", "auroc"))
    )


# ---- text in formats ------------------------------------------------------------------------------------------------


def test_a_name_is_shown_by_markdown_as_it_is() -> None:
    grid = Grid(
        "of a|b", (Column("x", "x", "", ""),), 1, [[Item("fe_tuning *a* <b>c</b> `d`|_e_ <0.001")], [Item("ft", True)]]
    )
    assert formats.markdown(grid).splitlines() == [
        r"of a\|b", "", "| x |", "| --- |", r"| fe_tuning \*a\* \<b>c\</b> \`d\`\|\_e\_ <0.001 |", "| **ft** |",
    ]  # fmt: skip


def test_a_bracket_behind_the_end_of_a_line_is_text_to_latex() -> None:
    columns = (Column("attack.shares", "attack.shares", "", ""), Column("CA", "CA", "", "ca"))
    wide = "nad, betas " + " ".join(["[500, 1000, 1000],"] * 6)
    table = formats.latex_table(Grid("", columns, 1, [[Item(text), Item("1.00")] for text in ("[0.05]", "*", wide)]))
    ends = table.replace("\n", "").split(r"\\")[1:]
    assert not [part for part in ends if part.lstrip().startswith(("[", "*"))] and "{}[0.05]" in table


def test_a_csv_has_a_line_a_line_whatever_a_text_holds() -> None:
    odd = run("a", "defense=ft", over={"dataset.name": "a,b\rc"}, started="\r\n")
    for text in (report.csv(made(odd)), report.runs_csv(made(odd))):
        assert "\r" not in text and len(list(csv.DictReader(io.StringIO(text, newline="")))) == 1


def test_a_plots_command_on_the_page_draws_the_same_runs(tmp_path: Path) -> None:
    found = made(run("a", "defense=ft"), figures=("seconds",))
    text = page.render(found, ["my outputs"], tmp_path / "p.html", ["seconds"], [], chosen_by=["--where", "defense=ft"])
    assert "bdx plot heatmap &#39;my outputs&#39; --where defense=ft --metric asr --output heatmap.svg" in text


def test_a_swept_setting_that_an_older_record_lacks_is_a_paragraph() -> None:
    runs = [run(str(samples), "defense=ft", "after=retune", over={"after.samples": samples}) for samples in (1, 5)]
    del runs[0].config["after"]["samples"]
    with pytest.raises(DataError, match="which differ in samples; expected those of one after-attack"):
        after_setting(runs)


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    ink.write(scatter([run("a", "defense=ft", over={"dataset.name": "a$_$b"})]), tmp_path / "plot.svg")
    assert "a$_$b" in (tmp_path / "plot.svg").read_text()


def test_a_scatter_has_no_run_whose_infected_model_was_not_judged() -> None:
    with pytest.raises(DataError, match="none with an ASR"):
        scatter([run("a", "defense=ft", infected=None)])


def test_a_wide_plot_on_the_page_scrolls_rather_than_shrinks_out_of_sight(tmp_path: Path) -> None:
    text = page.render(made(run("a", "defense=ft")), ["outputs"], tmp_path / "p.html", ["asr"], [])
    least, width = (
        float(re.findall(found, text)[0]) for found in (r"--least: (\d+)pt", r'<svg [^>]*width="([\d.]+)pt"')
    )
    assert least == pytest.approx(page.LEGIBLE * width, abs=1)


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, run("ft", "defense=ft"), run("fst", "defense=fst"))
    return tmp_path


VAIN = [
    (flag, words, held)
    for held, words, flags in (
        ("csv", [], ("rows", "names")),
        ("csv of --verdicts", ["--verdicts"], ("rows", "names", "metric", "published")),
        ("runs-csv", [], ("metric", "verdicts", "statistics", "ca-loss", "asr-below", "names", "published", "rows")),
        ("classes-csv", [], ("metric", "ca-loss", "names", "published")),
    )
    for flag in flags
]
WORDS = {
    "rows": ["--rows", "attack", "--columns", "defense"], "names": ["--names", "own.yaml"], "metric": ["--metric", "ca"],
    "published": ["--published", "fst"], "verdicts": ["--verdicts"], "statistics": ["--statistics"], "ca-loss": ["--ca-loss", "5"],
    "asr-below": ["--asr-below", "5"],
}  # fmt: skip


@pytest.mark.parametrize(("flag", "words", "held"), VAIN)
def test_no_option_is_given_in_vain(
    flag: str, words: list[str], held: str, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["report", "outputs", "--format", held.split()[0], *words, *WORDS[flag]]
    assert cli.main(given) == 2
    assert f"argument --{flag}: {held} holds one line a" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "outputs", "--columns", "run.name"], "argument --columns: it goes with --rows. Expected:"),
        (["report", "outputs", "--rows", "attack"], "argument --rows: it goes with --columns. Expected:"),
        (["report", "outputs", "--rows", "attack,attack", "--columns", "defense"], "--rows names 'attack' twice"),
        (["report", "outputs", "--rows", "attack", "--columns", "defense,"], "--columns is 'defense,'; expected words with a comma"),
        (["report", "outputs", "--metric", ","], "--metric is ','; expected words with a comma between each two"),
        (["report", "outputs", "--metric", "auroc", "--format", "csv"], "and auroc is of a detector or an after-attack; runs-csv has it"),
        (["report", "outputs", "--output", "table.md"], "'table.md' ends as a file of --format md does, and the format is terminal"),
        (["report", "outputs", "--format", "md", "--output", "t.html"], "'t.html' ends as a file of --format html does"),
        (["report", "outputs", "--output", "pipe"], "--output is 'pipe', a device or a pipe"),
        (["report", "outputs", "--published", "backdoorbenc"], "Did you mean 'backdoorbench'?"),
        (["report", "outputs", "--where", "detector=ac"], "no run has detector=ac; all that have one have none"),
        (["plot", "sweep", "outputs", "--output", "x.svg"], "argument KIND: sweep needs --x SETTING"),
        (["plot", "scatter", "outputs", "--output", "x.svg", "--x", "seed"], "argument --x: it goes with sweep, not with scatter"),
    ],
)  # fmt: skip
def test_a_mistake_names_what_was_typed(
    words: list[str], said: str, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo("pipe")
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err and not list(outputs.glob("t*.*"))


def test_blanks_behind_commas_are_none_of_the_words(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "outputs", "--rows", "attack, rate", "--columns", "defense", "--metric", "ca, asr"]) == 0
    assert "badnets  10 %" in capsys.readouterr().out


def test_a_link_is_written_through(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("latest.md").symlink_to("real.md")
    assert cli.main(["report", "outputs", "--format", "md", "--output", "latest.md"]) == 0
    assert Path("latest.md").is_symlink() and Path("real.md").read_text().startswith("dataset digits")


def test_two_options_of_one_name_are_told(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("ft: Ours\nfst: Ours\n")
    for words in (["report", "outputs"], ["plot", "scatter", "outputs", "--output", "s.svg"]):
        assert cli.main([*words, "--names", "own.yaml"]) == 0
        assert "bdx: tables do not tell apart what has one name: fst and ft (Ours)\n" in capsys.readouterr().err


def test_a_curve_says_how_many_of_its_runs_collapsed() -> None:
    runs = [run("a", "defense=ft"), run("b", "defense=ft", seed=1, details=COLLAPSED)]
    for each in runs:
        each.purification.curve = [{"epoch": 1, "ca": 0.9, "asr": 0.1, "ra": 0.1, "n": 100}]
    assert "1 collapsed run among them." in curves(runs)._supxlabel.get_text().replace("\n", " ")  # type: ignore[attr-defined]


@pytest.mark.wide
@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
def test_no_console_is_so_narrow_that_anything_is_cut(width: int) -> None:
    long = [run("a", "defense=ft_sam", over={"defense.rho": 12345.678901}), run("b", "defense=ft_sam", seed=1)]
    long += [run("c", "attack=blended", "defense=trap_and_replace", seed=s, infection="weak") for s in (0, 1)]
    for axes in ((), ("attack", "defense")):
        shown = made(*long, figures=("ca", "asr", "ra", "seconds"), axes=axes)
        for grid in shown.grids:
            console = Console(file=io.StringIO(), width=width, highlight=False)
            terminal.print_grid(console, grid)
            text = console.file.getvalue()  # type: ignore[attr-defined]
            letters = "".join(text.split())
            assert "…" not in text and max(map(len, text.splitlines())) <= width
            for column, item in ((place, item) for line in grid.lines for place, item in enumerate(line)):
                assert column < grid.names or item.text in text
            assert all("".join(word.split()) in letters for word in ("93.00", "94.00"))
