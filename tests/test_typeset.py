"""LaTeX tables fit a line of `article`: by an estimate that is checked against widths that TeX measured."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from backdoorbench.reporting import formats, typeset
from backdoorbench.reporting.grids import Column, Grid, Item

MEASURED = {  # text -> points that TeX's settowidth gives it in small print of article at 10 pt
    "headpull, strength 0.05": 93.09, "BadNets (weak, fragile)": 95.53, "WMQ@%#&|": 64.23, "100.00": 25.69, "ASR ↑": 26.59,
    "FT, epochs 1, lr 0.00443037524522": 139.98, "82.82 (n 1) †": 51.22, "−39.51 to +6.11": 66.29, "Bérénice": 34.33,
}  # fmt: skip
MEASURED_CELLS = {
    Item("100.00 ± 12.76"): 52.81,
    Item("82.82 ± 6.78", best=True): 47.39,
    Item("100.00", best=True): 29.58,
}


@pytest.mark.parametrize(("text", "points"), MEASURED.items())
def test_an_estimate_is_never_too_small_and_hardly_too_large(text: str, points: float) -> None:
    assert points <= typeset.width(text) <= 1.06 * points


@pytest.mark.parametrize(("item", "points"), MEASURED_CELLS.items())
def test_so_is_that_of_a_figure_with_its_spread(item: Item, points: float) -> None:
    assert points <= formats._cell_width(item, [item.text]) <= 1.1 * points


def table(names: int, groups: int, each: int, lines: int = 3) -> Grid:
    """A table whose names and groups are as long as those of swept defenses are."""
    columns = [Column(f"name {i}", "", "", "") for i in range(names)]
    columns += [
        Column(figure.upper(), "", f"headpull, strength 0.0{group}, epochs 20", figure)
        for group in range(groups)
        for figure in ("ca", "asr", "ra", "der")[:each]
    ]
    said = ["BadNets (weak)", "10 %", "headpull, strength 0.00443037524522, content of defense.source code eb9fa0c4"][
        :names
    ]
    line = [*map(Item, said), *[Item("100.00 ± 12.76", best=True)] * (groups * each)]
    return Grid("", tuple(columns), names, [line] * lines)


WIDE = [(names, groups, each) for names in (1, 2, 3) for groups in (1, 3, 9) for each in (1, 2, 3, 4)]


@pytest.mark.parametrize(("names", "groups", "each"), WIDE)
def test_no_table_is_wider_than_a_line(names: int, groups: int, each: int) -> None:
    """Counted by what is printed: a column is as wide as its widest cell in any band."""
    text = formats.latex_table(table(names, groups, each))
    assert text.count("100.00") == 3 * groups * each
    widest: dict[int, float] = {}
    for row in re.findall(r"^(.*100\.00.*) \\\\$", text, re.MULTILINE):
        for place, cell in enumerate(row.split(" & ")):
            widest[place] = max(widest.get(place, 0), _points(cell))
    assert sum(width + formats.GAP for width in widest.values()) <= typeset.TEXT


def _points(cell: str) -> float:
    if "scriptsize" in cell:
        return 57.0  # in bold: TeX measured 52.81 without
    inner = re.sub(r"\\(begin|end){tabular}(\[.\]{@{}.@{}})?", "", cell)
    return max(typeset.width(line.replace(r"\%", "%")) for line in inner.split(r"\\"))


def test_what_belongs_together_stays_together_where_it_can() -> None:
    assert formats.latex_table(table(2, 4, 3)).count(r"\multicolumn{3}{c}") == 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on the path")
def test_tex_finds_no_overfull_box(tmp_path: Path) -> None:
    tables = [formats.latex_table(table(*size)) for size in WIDE] + [formats.latex_table(table(3, 3, 3, 60))]
    body = "\\clearpage\n".join(tables)
    head = "\\documentclass{article}\n\\usepackage{booktabs,longtable}\n\\begin{document}\n"
    (tmp_path / "page.tex").write_text(f"{head}{body}\\end{{document}}\n", encoding="utf-8")
    call = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(call, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0 and b"Overfull" not in done.stdout, done.stdout.decode(errors="replace")[-2000:]
