"""Reports out of records on disk: every format as text, failures, published figures, one run a key; and that no torch is needed."""

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from records import made_run
from rich.console import Console

from backdoorbench import api
from backdoorbench.cli import main as cli
from backdoorbench.config.compose import compose
from backdoorbench.errors import DataError
from backdoorbench.metrics import Scores
from backdoorbench.reporting import formats, frame, published, report, rows, terminal
from backdoorbench.reporting.grids import Column, Grid, Item
from backdoorbench.storage import record
from backdoorbench.storage.record import Run

LONG = "x" * 400


def run(id: str, *words: str, asr: float = 0.1, details: dict[str, Any] | None = None, **changes: Any) -> Run:
    """A run, finished unless its status says otherwise. details: of the purification."""
    is_done = changes.get("status", "done") == "done"
    scores = {
        "infected": Scores(0.94, 0.99, 0.01, 1000, 900),
        "purified": Scores(0.93, asr, 0.9 - asr, 1000, 900) if is_done else None,
    }
    known = {"environment": {"device": "a CPU", "commit": "abc"}, "started": "2026-01-01T00:00:00+00:00"}
    made = made_run(id, compose(words), **scores | known | changes)
    made.purification.details |= details or {}
    return made


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two defenses of two seeds, one run that collapsed, one that failed, one that was killed."""
    monkeypatch.chdir(tmp_path)
    recalls = {"ca_per_class": [1.0] + [0.0] * 9}
    runs = [
        run("ft0", "defense=ft", asr=0.9),
        run("ft1", "defense=ft", "seed=1", asr=0.8),
        run("fst0", "defense=fst", asr=0.02),
        run("fst1", "defense=fst", "seed=1", purified=Scores(0.1, 0.0, 0.1, 1000, 900), details=recalls),
        run("pbe0", "defense=pbe", status="failed", error=f"RuntimeError: <b>{LONG}\nsecond line"),
        run("aft0", "defense=aft", status="running"),
    ]
    for number, made in enumerate(runs):
        folder = tmp_path / "outputs" / "runs" / f"{number}_{made.id}"
        folder.mkdir(parents=True)
        record.write(made, folder)
    return Path("outputs")


def collected() -> dict[Path, Run]:
    return record.collect([Path("outputs")])


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["report", "outputs", *words]) == 0
    return capsys.readouterr().out


NOTES = """\
mean ± sample standard deviation over seeds; seeds 0, 1; a CPU
holdout: 5 %, reserved (the infected model never saw it)
†collapsed and left out of the means: 1 run: fst on badnets, 10 % (constant predictor, seed 1)
CA: clean test images called by their true label. ASR: triggered test images of eligible classes called by the attacker's label. \
RA: the same images called by their true label. Percent.
1 run without an end: killed, or still going
"""
CA_AND_RA = next(line for line in NOTES.splitlines() if line.startswith("CA: "))
ASR = "ASR: triggered test images of eligible classes called by the attacker's label. Percent."  # where nothing else is shown


def test_on_a_terminal(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys)
    assert [line.rstrip() for line in shown.splitlines()] == [
        "",
        " dataset digits · model demo · rate 10 %",
        " attack   defense                 n                  CA                 ASR                 RA      CA after     ASR after     RA after",
        " badnets  ft                      2        94.00 ± 0.00        99.00 ± 0.00        1.00 ± 0.00  93.00 ± 0.00  85.00 ± 7.07  5.00 ± 7.07",
        " badnets  fst (1 of 2 collapsed)  1  94.00 ± 0.00 (n 2)  99.00 ± 0.00 (n 2)  1.00 ± 0.00 (n 2)         93.00          2.00        88.00",
        "  mean ± sample standard deviation over seeds; seeds 0, 1; a CPU",
        "  holdout: 5 %, reserved (the infected model never saw it)",
        "  collapsed and left out of the means: 1 run: fst on badnets, 10 % (constant predictor, seed 1)",
        "  CA: clean test images called by their true label. ASR: triggered test images of eligible classes called by the attacker's label. RA: the",
        "  same images called by their true label. Percent.",
        "  1 run without an end: killed, or still going",
        f"  failed: digits · demo · badnets → pbe · seed 0: RuntimeError: <b>{LONG[:282]}… (outputs/runs/4_pbe0/log.txt)",
    ]


def test_rows_by_columns(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "--rows", "attack", "--columns", "defense", "--metric", "asr")
    assert [line.rstrip() for line in shown.splitlines()[:5]] == [
        "",
        " dataset digits · model demo · rate 10 % · ASR, % · n 2",
        " attack       infected            ft           fst",
        " badnets  99.00 ± 0.00  85.00 ± 7.07  2.00 (n 1) †",
        "  mean ± sample standard deviation over seeds; seeds 0, 1; a CPU",
    ]
    assert "  † collapsed and left out of the means: 1 run" in shown


def test_what_a_report_reads_is_not_overwritten_by_it(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record_file = sorted(outputs.glob("runs/*/record.json"))[0]
    Path("own.csv").write_text("attack,defense,asr\nbadnets,fst,1\n")
    Path("names.yaml").write_text("fst: Shift\n")
    for place, said, words in (
        (str(record_file), "a file of a run", []),
        ("own.csv", "which is read", ["--format", "csv", "--published", "own.csv"]),
        ("names.yaml", "which is read", ["--names", "names.yaml"]),
        ("outputs", "a folder; expected the file that is to be written", []),
    ):
        kept = Path(place).read_bytes() if Path(place).is_file() else b""
        assert cli.main(["report", "outputs", *words, "--output", place]) == 2
        assert f"bdx: --output is '{place}', {said}" in capsys.readouterr().err
        assert not kept or Path(place).read_bytes() == kept
    beside = record_file.with_name("tables.md")
    for _ in range(2):
        assert cli.main(["report", "outputs", "--format", "md", "--output", str(beside)]) == 0


def test_a_wide_table_goes_below(capsys: pytest.CaptureFixture[str]) -> None:
    columns = tuple(Column(f"defense{i:02}", f"defense{i:02}", "", "asr") for i in range(12))
    grid = Grid("", (Column("attack", "attack", "", ""), *columns), 1, [[Item("badnets")] + [Item("85.00 ± 7.07")] * 12])  # fmt: skip
    terminal.print_grid(Console(width=80), grid)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown if line] == ["attack", "badnets"] * 3
    assert sum(line.count("85.00 ± 7.07") for line in shown) == 12 and max(map(len, shown)) <= 80


def test_as_markdown(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--format", "md", "--metric", "asr") == (
        "dataset digits · model demo · rate 10 %\n\n"
        "| attack | defense | n | ASR | ASR after |\n"
        "| --- | --- | ---: | ---: | ---: |\n"
        "| badnets | ft | 2 | 99.00 ± 0.00 | 85.00 ± 7.07 |\n"
        "| badnets | fst (1 of 2 collapsed) | 1 | 99.00 ± 0.00 (n 2) | 2.00 |\n"
        "\n" + "".join(f"- {line}\n" for line in NOTES.replace("†", "").replace(CA_AND_RA, ASR).splitlines()) + "\n"
        "failed: 1\n\n"
        f"- digits · demo · badnets → pbe · seed 0: RuntimeError: \\<b>{LONG[:282]}… (outputs/runs/4_pbe0/log.txt)\n"
    )


def test_as_latex(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "--format", "latex", "--rows", "attack", "--columns", "defense", "--metric", "asr,ca")
    lines = shown.splitlines()
    assert lines[0] == r"% \usepackage{booktabs}"
    assert r"\multicolumn{2}{c}{infected} & \multicolumn{2}{c}{FT} \\" in shown  # a line has no room for more
    assert r" & \multicolumn{2}{c}{FST} \\" in shown
    assert r"attack & ASR $\downarrow$ & CA $\uparrow$ & ASR" in shown
    assert r"2.00 (n 1) $^\dagger$ & 93.00 (n 1) $^\dagger$ \\" in shown
    assert all(line.startswith("% ") for line in lines[lines.index(r"\end{table}") + 1 :])


def test_wide_latex_is_one_tabular_whose_columns_go_below_and_long_heads_wrap() -> None:
    columns = tuple(Column(f"a rather long name {i}", "", "", "asr") for i in range(12))
    items = [Item("badnets"), *[Item("85.00 ± 7.07")] * 12]
    text = formats.latex_table(Grid("", (Column("attack", "", "", ""), *columns), 1, [items]))
    assert text.count(r"\begin{tabular}{l") == 1 and text.count("badnets") == 3 and text.count("85.00") == 12
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1 and text.count(r"\midrule") == 5
    assert r"\begin{tabular}[b]{@{}r@{}}a rather long\\name 0\end{tabular}" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the path")
@pytest.mark.parametrize("words", [(), ("--rows", "attack", "--columns", "defense", "--metric", "asr,ca,der")])
def test_latex_compiles(words: tuple[str, ...], outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--format", "latex", *words)
    page = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    Path("page.tex").write_text(page.replace(r"\begin{table}", "\n\\begin{table}", 1), encoding="utf-8")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"], capture_output=True)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]


def test_a_line_a_run(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = list(csv.DictReader(io.StringIO(said(capsys, "--format", "runs-csv"))))
    assert [(row["id"], row["status"], row["collapsed"]) for row in found] == [
        ("ft0", "done", ""), ("ft1", "done", ""), ("fst0", "done", ""), ("fst1", "done", "constant predictor"),
        ("pbe0", "failed", ""), ("aft0", "running", ""),
    ]  # fmt: skip
    assert (found[1]["purified_asr"], found[1]["seed"]) == ("0.8", "1") and float(found[1]["der"]) == pytest.approx(
        0.59
    )
    assert found[4]["purified_asr"] == "" and found[4]["error"].endswith("x second line")
    assert found[0]["folder"] == "outputs/runs/0_ft0" and list(found[0])[-1] == "folder"
    assert list(found[0]) == [
        "id", "status", "dataset", "model", "train", "holdout", "attack", "defense", "poison_rate", "seed", "infected_ca",
        "infected_asr", "infected_ra", "purified_ca", "purified_asr", "purified_ra", "der", "holdout_ca", "n_clean", "n_triggered", "infection",
        "collapsed", "seconds_infect", "memory_infect", "device_memory_infect", "energy_infect", "images_per_second_infect", "seconds_purify",
        "memory_purify", "device_memory_purify", "energy_purify", "images_per_second_purify", "device", "commit", "started", "error", "folder",
    ]  # fmt: skip


def test_settings_that_differ_are_columns_of_a_line_a_run(outputs: Path) -> None:
    tuned = run("ft9", "defense=ft", "seed=9", "defense.lr=0.5")
    found = frame.rows(collected() | {Path("elsewhere"): tuned})
    assert [row["defense.lr"] for row in found] == ["0.01"] * 6 + ["0.5"]


def test_pandas_reads_it(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(io.StringIO(said(capsys, "--format", "runs-csv")))
    assert list(frame.columns) == list(api.results("outputs").columns) and len(frame) == 6
    means = frame[frame.collapsed.isna()].groupby("defense").purified_asr.mean()
    assert means["ft"] == pytest.approx(0.85) and means["fst"] == pytest.approx(0.02)


def test_a_key_is_one_run(outputs: Path) -> None:
    again = run("pbe0", "defense=pbe", asr=0.5, started="2026-01-02T00:00:00+00:00")
    failed = run("ft0", "defense=ft", status="failed", started="2026-01-03T00:00:00+00:00")
    for name, made in (("7_pbe0", again), ("8_ft0", failed)):
        (outputs / "runs" / name).mkdir()
        record.write(made, outputs / "runs" / name)
    found = {folder.name: made for folder, made in collected().items()}
    assert list(found) == ["0_ft0", "1_ft1", "2_fst0", "3_fst1", "5_aft0", "7_pbe0"]
    assert not report.make(collected(), ("asr",), (), ()).failures


def test_equal_settings_are_held_once(outputs: Path) -> None:
    first, second, *_ = collected().values()
    assert first.config["attack"] is second.config["attack"] and first.environment is second.environment
    assert set(first.purification.details) <= set(record.KEPT) and not first.infection.history


def test_reading_needs_no_torch(outputs: Path) -> None:
    probe = "import sys; from backdoorbench.cli.main import main; main(['report', 'outputs']); sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": str(Path(report.__file__).parents[2]), "PATH": ""}
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, env=environment).returncode == 0


# ---- detectors ------------------------------------------------------------------------------------------------------

FIGURES = {"auroc": 0.9, "tpr_1": 0.3, "tpr_5": 0.5, "tpr_10": 0.7, "tpr": 0.6, "fpr": 0.05, "precision": 0.9}
OF_MODEL = {"anomaly_index": 3.5, "any_flagged": 1.0, "target_flagged": 1.0}


def inspected() -> dict[Path, Run]:
    """Two detectors on one infection, after which one defense follows, and a run without."""
    runs = [
        run("strip", "detector=strip", "defense=ft", figures=FIGURES, beside={"fpr": 0.04}, asr=0.5),
        run("nc", "detector=nc", "defense=ft", figures=OF_MODEL, asr=0.5),
        run("plain", "defense=ft", "seed=1", asr=0.7),
    ]
    return {Path(made.id): made for made in runs}


def test_tables_of_detectors_follow() -> None:
    shown = [line.rstrip() for line in terminal.as_text(report.make(inspected(), ("asr",), (), ())).splitlines()]
    assert shown == [
        "",
        " dataset digits · model demo · rate 10 %",
        " attack   defense  n           ASR      ASR after",
        " badnets  ft       2  99.00 ± 0.00  60.00 ± 14.14",
        "",
        " dataset digits · model demo · rate 10 %",
        " attack   detector  n  AUROC  TPR@1  TPR@5  TPR@10    TPR   FPR  precision  FPR clean",
        " badnets  strip     1  90.00  30.00  50.00   70.00  60.00  5.00      90.00       4.00",
        "",
        " dataset digits · model demo · rate 10 %",
        " attack   detector  n  index  flagged  target",
        " badnets  nc        1   3.50   100.00  100.00",
        "  mean ± sample standard deviation over seeds; seeds 0, 1; a CPU",
        "  holdout: 5 %, reserved (the infected model never saw it)",
        "  ASR: triggered test images of eligible classes called by the attacker's label. Percent.",
        "  Detectors of inputs or training rows: AUROC: how often a triggered (poisoned) one is more suspicious than a clean one. TPR@k: share of",
        "  those above the threshold that at most k % of the clean exceed. TPR, FPR, precision: at the detector's own threshold. Percent.",
        "  Detectors of models: index: how far the most suspicious class lies from the others. flagged: runs in which any class is called a",
        "  backdoor's target; target: the attacker's. Percent, the index apart.",
        "  clean: the same detector, asked about a clean model of the same recipe",
    ]


def test_detectors_laid_out_by_a_figure() -> None:
    made = report.make(inspected(), ("auroc",), ("attack",), ("detector",))
    assert formats.markdown(made.grids[0]).splitlines()[0] == "dataset digits · model demo · rate 10 % · AUROC, % · n 1"
    assert formats.markdown(made.grids[0]).splitlines()[2:] == [
        "| attack | strip | nc |", "| --- | ---: | ---: |", "| badnets | 90.00 | – |"
    ]  # fmt: skip
    assert len(made.grids) == 1 and "ASR" not in "".join(made.notes)
    with pytest.raises(DataError) as raised:
        report.make({Path("one"): run("one")}, ("auroc",), ("attack",), ("detector",))
    assert str(raised.value) == (
        "1 of 1 runs finished, none with a detector; expected one at least. bdx list detector shows what there is to ask."
    )


def test_detectors_are_columns_of_a_line_a_run() -> None:
    found = frame.rows(inspected())
    assert list(found[0])[6:10] == ["attack", "detector", "defense", "poison_rate"]
    columns = list(found[0])
    assert columns[columns.index("n_triggered") + 1 : columns.index("infection")] == [
        "auroc", "tpr_1", "tpr_5", "tpr_10", "detector_tpr", "detector_fpr", "precision", "anomaly_index", "target_flagged"
    ]  # fmt: skip
    assert [(row["detector"], row["auroc"], row["detector_fpr"], row["anomaly_index"]) for row in found] == [
        ("strip", 0.9, 0.05, None), ("nc", None, None, 3.5), ("none", None, None, None)
    ]  # fmt: skip
    assert not any(column.startswith("detector.") for column in found[0])


def test_a_rebuilt_training_set_is_told_of_every_method() -> None:
    found = inspected()
    for made in found.values():
        made.stages[-2].notes["rebuilt_train"] = {"poisoned": 3}
    del found[Path("plain")]
    what = "given a poisoned set rebuilt with the finished trigger, which the model was not trained on"
    assert f"{what}: nc on badnets; strip on badnets" in report.make(found, ("asr",), (), ()).notes


# ---- published figures ----------------------------------------------------------------------------------------------

PAPER = ("dataset=cifar10", "model=resnet18", "attack=blended", "attack.poison_rate=0.01", "holdout=fst")


def beside(*words: str) -> list[tuple[str, float]]:
    found = published.beside(rows.aggregate([run("one", *PAPER, *words)]))
    return [(state, item.published.scores["asr"]) for (_, state), item in found.items() if item.published]


@pytest.mark.wide
def test_published_figures_stand_beside_equal_settings() -> None:
    assert beside("defense=fst") == [("infected", pytest.approx(0.981)), ("purified", pytest.approx(0.002))]
    for other in ("model=vgg16_bn", "dataset.train_size=5000", "attack.target=3", "attack.poison_rate=0.02"):
        assert beside("defense=fst", other) == []
    assert beside("defense=fst", "holdout.rate=0.05") == [("infected", pytest.approx(0.981))]


def test_published_figures_in_a_report(tmp_path: Path) -> None:
    made = report.make({tmp_path: run("one", *PAPER, "defense=fst", "train.epochs=20", asr=0.003)}, ("asr",), (), ())
    text = report.markdown(made)
    assert (
        "| cifar10 | blended | 1 % | fst | 1 | 93.00 | 0.20 | 0.30 | 89.70 | within | figure image |" in text
        and "- FST, arXiv 2310.01875: Figure 3, titles of the t-SNE panels" in text
        and "- settings other than experiment fst's: train.epochs 20, not 100" in text
    ), text
    assert report.csv(made).splitlines()[1].endswith(",,0.002000,,figure image,fst_figure3")
