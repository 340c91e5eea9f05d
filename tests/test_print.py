"""What goes to print: names of options, one tabular however wide or long, and what every table must explain of itself."""

import re
from pathlib import Path

import pytest
from test_statistics import run, swept

from backdoorbench.cli import main as cli
from backdoorbench.config import catalog
from backdoorbench.errors import ConfigError
from backdoorbench.metrics import DER_DEFINITION, Scores
from backdoorbench.reporting import display, formats, page, report, terminal
from backdoorbench.reporting.display import Names, called
from backdoorbench.reporting.grids import Column, Grid, Item
from backdoorbench.storage import record
from backdoorbench.storage.record import Run

ASR = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def made(
    runs: list[Run], figures: tuple[str, ...] = ("ca", "asr"), axes: tuple[str, str] | None = None
) -> report.Report:
    lines, columns = ([axes[0]], [axes[1]]) if axes else ((), ())
    return report.make({Path(run.id): run for run in runs}, figures, lines, columns)


def table(columns: int, lines: int) -> Grid:
    heads = tuple(Column(f"D{place}", "", "", "asr") for place in range(columns))
    return Grid(
        "", (Column("attack", "", "", ""), *heads), 1, [[Item("a_b")] + [Item("85.00 ± 7.07")] * columns] * lines
    )


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "name", "said"),
    [
        ("attack", "badnets", "BadNets"),
        ("attack", "adap_patch", "Adap-Patch"),  # of three that share a file
        ("attack", "blended_bypass", "Blended bypass"),  # of words that others are called by
        ("attack", "trojan_wm", "Trojan-WM"),
        ("defense", "fst", "FST"),
        ("defense", "fe_tuning", "FE-tuning"),
        ("defense", "bti_dbf", "BTI-DBF"),
        ("defense", "pbe_clean", "PBE clean"),
        ("detector", "signature", "Trojan signature"),
        ("dataset", "tiny_imagenet", "Tiny ImageNet"),
        ("model", "preact_resnet18", "PreAct-ResNet-18"),
        ("model", "vgg16_bn", "VGG-16-BN"),
        ("defense", "of_a_plugin", "of_a_plugin"),
    ],
)
def test_an_option_is_called_as_its_file_says(group: str, name: str, said: str) -> None:
    assert called(group, name) == said


def test_no_method_is_printed_as_it_is_typed() -> None:
    same = [name for group in display.METHODS for name in catalog.names(group) if called(group, name) == name]
    assert same == ["smooth"]


def test_only_whole_words_are_replaced() -> None:
    named = Names({"ft": "FT", "ft_sam": "FT-SAM", "badnets": "BadNets", "lc": "LC"})
    assert named("ft, lr 0.1 · ft_sam (badnets)") == "FT, lr 0.1 · FT-SAM (BadNets)"
    kept = "defense=ft,ft_sam,lc runs/ft ft.yaml soft lc/x ft-2"
    assert named(kept) == kept
    assert named("badnets, lc.") == "BadNets, LC."


@pytest.mark.wide
def test_latex_and_html_have_names_and_text_has_what_is_typed(tmp_path: Path) -> None:
    one = made(swept(ft=ASR, fst=ASR))
    named = display.chosen(one.found, None, True)
    assert "BadNets & FST" in report.latex(one, named).replace("10 \\% & ", "")
    assert "<td>BadNets</td>" in page.render(one, ["outputs"], tmp_path / "page.html", ["asr"], [], named)
    text = terminal.as_text(one)
    assert "badnets" in text and "BadNets" not in text


def test_names_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for made_run in swept(ft=ASR, fst=ASR):
        folder = tmp_path / "outputs" / "runs" / made_run.id
        folder.mkdir(parents=True)
        record.write(made_run, folder)
    monkeypatch.chdir(tmp_path)
    Path("names.yaml").write_text("fst: Shift (ours)\n")
    assert cli.main(["report", "outputs", "--names", "names.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "Shift (ours)" in shown and " FT " in shown and "BadNets" in shown
    assert cli.main(["report", "outputs", "--format", "latex", "--names", "ids"]) == 0
    assert "badnets & 10 \\% & fst" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["- fst", "fst: 3", "fst: {a: b}", "fst"])
def test_names_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ConfigError, match="holds no names; expected a line an option"):
        display.read_names(tmp_path / "names.yaml")


def test_a_file_of_names_that_is_no_yaml_or_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("fst: [")
    with pytest.raises(ConfigError, match="is no yaml file"):
        display.read_names(tmp_path / "names.yaml")
    with pytest.raises(ConfigError, match="cannot be read as a yaml file"):
        display.read_names(tmp_path / "none.yaml")


# ---- one tabular ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "lines"), [(2, 3), (30, 3), (2, 90), (30, 40)])
def test_a_table_is_one_tabular_and_balanced(columns: int, lines: int) -> None:
    text = formats.latex_table(table(columns, lines), ["some_thing & 5 %"])
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended) and sum("tabular" in name or name == "longtable" for name in begun) == 1
    assert text.count("{") == text.count("}") and text.count("85.00") == columns * lines
    assert r"ome\_thing \& 5 \%" in text and r"a\_b" in text
    form = re.search(r"\\begin{(?:tabular|longtable)}{([lr]+)}", text)
    assert form and all(line.count("&") < len(form[1]) for line in text.splitlines() if line.endswith(r"\\"))


def test_a_long_table_breaks_over_pages_and_says_what_it_needs() -> None:
    text = formats.latex_table(table(2, 90))
    assert text.index(r"\endfirsthead") < text.index(r"\endhead") < text.index(r"\endfoot") < text.index("85.00")
    assert text.count(r"attack & D0 & D1 \\") == 2  # first page, further pages
    assert formats.preamble([text]) == "% \\usepackage{booktabs,longtable}\n"
    assert formats.preamble([formats.latex_table(table(2, 3))]) == "% \\usepackage{booktabs}\n"


# ---- explained ------------------------------------------------------------------------------------------------------


def test_weak_and_collapsed_and_der_are_explained_below_every_table_that_has_them() -> None:
    runs = [run("badnets", "ft", 0, 0.9), run("badnets", "ft", 1, 0.9), run("blended", "ft", 0, 0.5)]
    runs[1].purification.scores = Scores(0.1, 0.0, 0.1, 1000, 900)
    runs[1].purification.details |= {"ca_per_class": [1.0] + [0.0] * 9, "largest_share": 1.0}
    runs[2].infection.status = "weak"
    elsewhere = run("badnets", "fst", 0, 0.1, "dataset=cifar10", "model=demo")
    one = made([*runs, elsewhere], ("asr", "der"))
    marked, plain = report.latex(one).split(r"\end{table}")[:2]
    assert "badnets (weak)" not in marked and "blended (weak)" in marked
    assert "weak: the infection barely took" in marked and "Collapsed and left out" in marked
    assert "weak: the" not in plain and "ollapsed and" not in plain
    assert marked.count("DER: half of (drop") == plain.count("DER: half of (drop") == 1
    text = terminal.as_text(one)
    assert "weak: the infection barely took" in text and DER_DEFINITION[:30] in text


def test_the_page_of_figures_explains_every_mark() -> None:
    text = (Path(__file__).parents[1] / "docs" / "figures.md").read_text(encoding="utf-8")
    assert all(word in text for word in ("(weak)", "(broken)", "(fragile)", "†", "‡", "§", "| DER |", "| ASR |"))


def test_a_caption_begins_with_a_capital_explains_its_figures_and_has_a_label_of_its_own() -> None:
    runs = [run("badnets", name, 0, asr) for name, asr in (("ft", 0.9), ("fst", 0.1))]
    elsewhere = run("badnets", "ft", 0, 0.1, "dataset=cifar10", "model=demo")
    text = report.latex(made([*runs, elsewhere], ("asr", "der")))
    first, second = (line for line in text.splitlines() if line.startswith(r"\caption{"))
    assert first.startswith(r"\caption{Dataset digits") and r"\label{tab:dataset-digits-model-demo-rate-10}" in first
    assert r"\label{tab:dataset-cifar10-model-demo-rate-10}" in second
    assert "ASR: triggered test images" in first and "Holdout: 5 " in first and "DER: half of" in first
    assert "Bold: the best mean" in first and "Bold" not in second and "% best" not in text


def test_a_name_for_no_option_is_said(tmp_path: Path) -> None:
    file = tmp_path / "names.yaml"
    file.write_text("fsst: Shift\nft: Tune\nwanet: WaNet\n")  # wanet is an option, though no run has it
    (said,) = display.unknown([], str(file))
    assert said.startswith(f"{file}: 1 of 3 names stand for no option: fsst. Did you mean 'fst'")
    assert display.unknown([], "ids") == display.unknown([], None) == []


def test_a_plugins_method_is_called_as_its_docstring_does(tmp_path: Path) -> None:
    """By the source that the run kept: nothing is imported."""
    one = run("badnets", "ft", 0, 0.9)
    one.config = {
        **one.config,
        "defense": {**one.config["defense"], "name": "headpull", "_target_": "mine.headpull.Headpull"},
    }
    source = tmp_path / "plugins" / "mine" / "headpull.py"
    source.parent.mkdir(parents=True)
    for text, wanted in (
        ('"""HeadPull: pulls the head."""\nraise SystemExit', "HeadPull"),
        ('"""What it is, in words: many."""', "headpull"),
        ("no python (", "headpull"),
    ):
        source.write_text(text)
        assert display.chosen({tmp_path: one}, None, True)("headpull") == wanted
    assert display.chosen({tmp_path / "elsewhere": one}, None, True)("headpull") == "headpull"
