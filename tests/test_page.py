"""The HTML page: what it holds, what it escapes, what it leaves out; and how it behaves in a real browser.

The browser test needs a Chromium (Debian: apt-get install chromium) and `pip install 'bdx[browser]'`; it is skipped without."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from records import made_run

from backdoorbench.cli import main as cli
from backdoorbench.config.compose import compose
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import outcome
from backdoorbench.reporting import page, report, rows
from backdoorbench.storage import record
from backdoorbench.storage.record import Finding, Run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def run(number: int, defense: str, asr: float, *words: str, status: str = "done", **changes: Any) -> Run:
    config = compose([f"defense={defense}", f"seed={number}", *words])
    after = Scores(0.9, asr, 0.9 - asr, 360, 324) if status == "done" else None
    known = {"environment": {"device": "a CPU"}, "started": "2026-01-01T00:00:00+00:00"}
    made = made_run(f"run{number}", config, Scores(0.95, 0.99, 0.01, 360, 324), after, status=status, **known | changes)
    made.purification.curve = [{"epoch": at, "ca": 0.9, "asr": asr, "ra": 0.9 - asr, "n": 100} for at in (1, 2)]
    made.infection.seconds, made.purification.seconds = (
        {"infect": 3.0, "evaluate": 0.5},
        {"purify": 1.25, "evaluate": 0.25},
    )
    return made


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 118 finished runs and a failed one whose error is hostile, beside their outputs folder."""
    from PIL import Image

    place = tmp_path_factory.mktemp("page")
    runs = [run(number, ("ft", "fst")[number % 2], 0.001 * (number * 37 % 118)) for number in range(118)]
    runs.append(run(118, "pbe", 0.0, status="failed", error=HOSTILE))
    runs[-1].purification.notes = {"long": "x" * 3000}
    for made in runs:
        folder = place / "outputs" / "runs" / made.id
        folder.mkdir(parents=True)
        record.write(made, folder)
    Image.new("RGB", (80, 30), (200, 30, 30)).save(place / "outputs" / "runs" / "run0" / "triggered.png")
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()) as said:
        assert cli.main(["report", "outputs", "--format", "html", "--output", "page.html"]) == 0
    assert said.getvalue() == "wrote page.html\n"
    return place / "page.html"


def embedded(html: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html.read_text(), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.wide
def test_the_page_stands_alone(html: Path) -> None:
    text = html.read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#|outputs/)([^"]*)"', text) == []  # nothing is fetched
    assert "@import" not in text and "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert (
        text.count("<svg") == 3 and "data:image/png;base64," in text
    )  # heat map, scatter, curves; no rates: one alone
    assert '<td class="figure" data-v="0.99">' in text and "pbe" in text


def test_nothing_of_a_record_is_markup(html: Path) -> None:
    text = html.read_text()
    assert "alert(1)</script>" not in text and "<img src=x" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert embedded(html)["runs"][-1]["error"] == HOSTILE or HOSTILE in [
        made["error"] for made in embedded(html)["runs"]
    ]


def test_settings_are_held_once_and_long_things_stay_in_the_record(html: Path) -> None:
    data = embedded(html)
    assert len(data["runs"]) == 119 and len(data["attack"]) == 1 and len(data["defense"]) == 3
    failed = next(made for made in data["runs"] if made["status"] == "failed")
    assert failed["notes"] == "3,012 characters, in record.json" and failed["folder"] == "outputs/runs/run118"
    assert not {"curve", "details", "history"} & set(failed) and failed["epochs"] == 2
    assert page.PANELS >= page.FEWER


def test_equal_records_make_equal_pages(html: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(html.parent)
    first = html.read_bytes()
    assert cli.main(["report", "outputs", "--format", "html", "--output", "page.html"]) == 0
    assert html.read_bytes() == first


def test_links_are_relative_to_the_page(html: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(html.parent)
    assert cli.main(["report", "outputs", "--format", "html", "--output", "deep/er/page.html"]) == 0
    data = embedded(Path("deep/er/page.html"))
    assert data["runs"][0]["folder"] == "../../outputs/runs/run0"


def test_what_the_page_says_of_a_run(html: Path) -> None:
    data = embedded(html)
    first = data["runs"][0]
    assert (data["groups"], data["models"]) == (
        ["dataset", "model", "train", "holdout", "attack", "defense"], ["infected", "purified"]
    )  # fmt: skip
    held = {name: data[name][place] for name, place in zip(data["lists"], first["places"], strict=True)}
    assert held["name"] == "digits · demo · badnets → ft" and held["attack"]["poison_rate"] == 0.1
    assert (held["infection"]["status"], held["environment"]) == ("took", {"device": "a CPU"})
    assert not {"detector", "seed", "defense"} & set(held["other"]) and "gates" in held["other"]
    assert first["seconds"] == {"infect": 3.0, "evaluate_infected": 0.5, "purify": 1.25, "evaluate_purified": 0.25}
    assert (first["infected"], first["purified"]) == ([0.95, 0.99, 0.01], [0.9, 0.0, 0.9]) and "detector" not in first


@pytest.mark.parametrize("share", [0.9837496, 12345 / 12630, 0.00125, 0.00375, 0.99995, 1 / 3])
def test_the_page_holds_what_tables_print(share: float) -> None:
    shown = page._rounded(share)
    assert shown is not None and f"{100 * shown:.2f}" == rows.percent(share)  # the script prints it so


def test_parts_that_several_stages_have_are_told_apart() -> None:
    one = run(0, "ft", 0.1)
    one.stages.insert(1, Finding("detect", "strip", seconds={"detect": 4.0, "control": 5.0}))
    one.infection.seconds |= {"control": 2.0}
    assert page._seconds(one) == {
        "infect": 3.0, "evaluate_infected": 0.5, "control": 2.0, "detect": 4.0, "detect_control": 5.0, "purify": 1.25,
        "evaluate_purified": 0.25,
    }  # fmt: skip


def test_what_came_of_an_after_attack() -> None:
    trials = [{"label": "as it was", "asr": 0.1}, {"label": "flip", "asr": 0.5}]
    found = Finding("after", "variations", figures={"asr_varied": 0.5}, details={"trials": {"purified": trials}})
    told = {"name": "variations", "ASR varied": "50.00", "notes": {}}
    assert page._afterwards(found) == told | {"as it was": "10.00", "flip": "50.00"}
    found.details["trials"]["purified"].pop()
    assert page._afterwards(found) == told
    one = run(0, "fst", 0.1)
    figures = {"asr_retuned": 0.8, "ca_retuned": 0.9, "asr_retuned_clean": 0.02, "asr_clean": 0.01, "asr_retuned_exact": 0.05, "asr_exact": 0.03}  # fmt: skip
    one.stages.append(Finding("after", "retune", figures=figures, details={"figure": "retuned"}))
    assert outcome.after_lines(one) == [
        "  retune     ASR 10.00 → 80.00, CA 90.00",
        "  clean      ASR 1.00 → 2.00",
        "  exact      ASR 3.00 → 5.00",
    ]


@pytest.mark.wide
def test_a_page_of_detectors(tmp_path: Path) -> None:
    from PIL import Image

    of_inputs = {"auroc": 0.9, "tpr_1": 0.3, "tpr_5": 0.5, "tpr_10": 0.7, "tpr": 0.6, "fpr": 0.05, "precision": None}
    of_model = {"anomaly_index": 3.456, "any_flagged": 1.0, "target_flagged": 0.0, "flagged_classes": 2.0}
    runs = [
        run(0, "ft", 0.5, "detector=strip", figures=of_inputs, beside={"fpr": 0.04}),
        run(0, "none", 0.5, "detector=nc", figures=of_model),
    ]
    found = {tmp_path / str(place): made for place, made in enumerate(runs)}
    for folder in found:
        folder.mkdir()
    for name in ("triggered", "reversed_triggers"):
        Image.new("RGB", (80, 30), (200, 30, 30)).save(tmp_path / "1" / f"{name}.png")
    made = report.make(found, ("asr",), (), ())
    html = tmp_path / "page.html"
    html.write_text(page.render(made, ["outputs"], html, ("asr",), []))
    text, data = html.read_text(), embedded(html)
    assert "<td>strip</td>" in text and '<td class="figure" data-v="0.9">90.00</td>' in text and ">3.46</td>" in text
    assert 'AUROC<span class="way" title="more is better">↑</span>' in text and "<span>detectors</span>" in text
    assert data["groups"][4:] == ["attack", "detector", "defense"]
    assert [data["name"][made["places"][data["lists"].index("name")]] for made in data["runs"]] == [
        "digits · demo · badnets → strip → ft", "digits · demo · badnets → nc"
    ]  # fmt: skip
    first, second = (made["detector"] for made in data["runs"])
    assert (first["name"], first["infected"]["AUROC"], first["infected"]["precision"]) == ("strip", "90.00", "–")
    assert first["clean model"] == {"FPR": "4.00"}
    assert second["infected"] == {"index": "3.46", "flagged": "yes", "target": "no", "flagged_classes": 2.0}
    captions = re.findall(r"<figcaption>(digits[^<]*)</figcaption>", text)
    assert (
        captions == ["digits · badnets", "digits · badnets: reversed by nc"] and "Or as a detector reversed it" in text
    )


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["report", str(tmp_path), "--format", "html", "--output", "page.html"]) == 2
    assert capsys.readouterr().err == (
        f"bdx: bdx report --format html needs {package}, which is not installed. Add it: pip install 'bdx[page]'.\n"
    )


CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
@pytest.mark.filterwarnings("ignore")  # of the browser's driver, not ours
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(html: Path, width: int) -> None:
    driver = pytest.importorskip("playwright.sync_api")
    said: list[str] = []
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        tab.goto(html.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out

        tables = "#tables table tbody tr td:nth-child(2)"
        assert tab.locator(tables).all_inner_texts() == ["ft", "fst"]
        tab.click("#tables thead tr:last-child th:nth-child(8) button")  # ASR after
        ascending = tab.locator("#tables tbody tr td:nth-child(8)").all_inner_texts()
        assert [float(text.split()[0]) for text in ascending] == sorted(float(text.split()[0]) for text in ascending)
        tab.click("#tables thead tr:last-child th:nth-child(8) button")
        assert tab.locator("#tables tbody tr td:nth-child(8)").all_inner_texts() == ascending[::-1]
        assert tab.get_attribute("#tables thead tr:last-child th:nth-child(8)", "aria-sort") == "descending"

        assert tab.inner_text("#shown") == "100 of 119 runs"
        tab.click("#runs th:nth-child(10) button")  # ASR after, over all runs, not over those shown
        figures = tab.locator("#runs tbody tr td:nth-child(10)").all_inner_texts()
        assert figures == [f"{0.1 * place:.2f}" for place in range(100)]
        tab.click("#more")
        assert tab.locator("#runs tbody tr").count() == 119
        assert (
            tab.locator("#runs tbody tr:last-child td:nth-child(10)").inner_text() == "–"
        )  # what is missing comes last

        tab.fill("#filter", "pbe failed")
        assert tab.inner_text("#shown") == "1 of 1 runs"
        tab.click("#runs tbody tr")
        drawer = tab.inner_text("dialog")
        assert HOSTILE in drawer and "defense.name\npbe" in drawer and "seed 118" in drawer
        tab.click("#close")
        assert not tab.is_visible("dialog")

        tab.emulate_media(color_scheme="light")
        light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        tab.emulate_media(color_scheme="dark")
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert light != dark
        tab.click("#theme")
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == light
        browser.close()
    assert said == []
