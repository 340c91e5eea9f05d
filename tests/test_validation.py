"""Choosing a defense's settings honestly: images kept from it, what they say in tables and plots, and sweeps drawn."""

from pathlib import Path

import pytest
import torch
from conftest import QUICK
from test_statistics import run

from backdoorbench import api
from backdoorbench.cli import main as cli
from backdoorbench.config.compose import compose
from backdoorbench.errors import ConfigError, DataError
from backdoorbench.pipeline import plan as plans
from backdoorbench.reporting import report, terminal
from backdoorbench.reporting.plots import ink
from backdoorbench.reporting.plots.sweep import against_setting
from backdoorbench.storage import record
from backdoorbench.storage.record import Run
from backdoorbench.streams import Stream


def swept(alpha: float, seed: int = 0, asr: float = 0.1, holdout_ca: float = 0.8, status: str = "took") -> Run:
    made = run("badnets", "fst", seed, asr, f"defense.alpha={alpha}", infection=status)
    made.purification.details["holdout_ca"] = holdout_ca
    return made


def made_plan(outputs: Path, *words: str) -> plans.Plan:
    return plans.plan(compose([f"runtime.outputs={outputs}", *QUICK, "attack=badnets", "defense=ft", *words]))


# ---- kept from the defense ------------------------------------------------------------------------------------------


def test_what_is_kept_is_a_share_of_the_same_holdout(tmp_path: Path) -> None:
    whole, parted = made_plan(tmp_path).parts, made_plan(tmp_path, "holdout.validate=0.25").parts
    assert whole.validation is None and whole.holdout is not None
    assert parted.holdout is not None and parted.validation is not None
    assert len(parted.validation) == round(0.25 * len(whole.holdout)) > 0
    both = torch.cat([parted.holdout.images, parted.validation.images])
    ours, theirs = ({image.numpy().tobytes() for image in images} for images in (both, whole.holdout.images))
    assert ours == theirs and len(both) == len(whole.holdout)
    assert len(whole.train) == len(parted.train)


def test_no_key_moves_and_infections_are_shared(tmp_path: Path) -> None:
    plain, parted = made_plan(tmp_path), made_plan(tmp_path, "holdout.validate=0.25")
    assert made_plan(tmp_path, "holdout.validate=0").key == plain.key != parted.key
    assert plain.infection_key == parted.infection_key
    assert "validate" not in plain.settings["holdout"]


@pytest.mark.parametrize("kind", ["seen", "reserved"])
def test_every_kind_can_be_parted(kind: str, tmp_path: Path) -> None:
    parts = made_plan(tmp_path, f"holdout.kind={kind}", "holdout.validate=0.2").parts
    assert parts.validation is not None and parts.describe()["validation"] == len(parts.validation)


@pytest.mark.parametrize("share", [1, 0.99, 0.0001])
def test_a_share_that_leaves_a_side_without_images_is_refused(share: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holdout images from the defense; expected one at least, and one for each"):
        made_plan(tmp_path, f"holdout.validate={share}")


def test_a_share_outside_0_to_1_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holdout.validate is 2"):
        made_plan(tmp_path, "holdout.validate=2")


@pytest.mark.wide
def test_the_record_judges_by_what_was_kept(tmp_path: Path) -> None:
    done = api.run(*QUICK, "attack=badnets", "defense=ft", "holdout.validate=0.4", f"runtime.outputs={tmp_path}")
    details = done.purification.details
    assert details["holdout"]["validation"] > 0
    assert details["holdout_ca"] * details["holdout"]["validation"] == pytest.approx(
        round(details["holdout_ca"] * details["holdout"]["validation"])
    )


# ---- as a figure ----------------------------------------------------------------------------------------------------


def test_it_is_a_column() -> None:
    found = {Path(one.id): one for one in (swept(0.1), swept(0.2, holdout_ca=0.9))}
    text = terminal.as_text(report.make(found, ("asr", "holdout_ca"), (), ()))
    assert "holdout CA" in text and "80.00" in text and "90.00" in text
    assert "holdout CA: the purified model on the defender's own images" in " ".join(text.split())


def test_a_sweep_is_drawn_over_the_numbers_of_its_setting() -> None:
    runs = [
        swept(0.1, 0, 0.5),
        swept(0.1, 1, 0.3),
        swept(0.2, 0, 0.2),
        swept(0.4, 0, 0.0),
        run("badnets", "ft", 0, 0.9),
    ]
    asr, kept = against_setting(runs, "defense.alpha", ("asr", "holdout_ca")).axes
    assert [(float(x), round(float(y))) for x, y in zip(*asr.lines[1].get_data(), strict=True)] == [
        (0.1, 40), (0.2, 20), (0.4, 0),
    ]  # fmt: skip
    assert asr.lines[0].get_linestyle() == "--" and kept.get_xlabel() == "defense.alpha"
    assert [round(float(y)) for y in kept.lines[0].get_ydata()] == [80, 80, 80]


def test_a_setting_that_is_none_and_one_that_was_not_swept() -> None:
    with pytest.raises(ConfigError, match=r"--x is 'defense.alhpa', of which no run has a number. Did you mean"):
        against_setting([swept(0.1), swept(0.2)], "defense.alhpa")
    with pytest.raises(DataError, match="with 1 number of defense.alpha; expected two at least"):
        against_setting([swept(0.1), swept(0.1, 1)], "defense.alpha")
    with pytest.raises(ConfigError, match="--x is 'seed', over which figures are averaged"):
        against_setting([swept(0.1), swept(0.1, 1)], "seed")
    with pytest.raises(DataError, match="with 0 numbers of"):
        against_setting([], "defense.alpha")


def test_a_setting_that_no_two_runs_differ_in_alone() -> None:
    """attack.target follows dataset.target: a panel each, of one point, was no sweep."""
    pair = [swept(0.1), swept(0.1)]
    for target, made in enumerate(pair):
        made.id = str(target)
        made.config = made.config | {
            "dataset": made.config["dataset"] | {"target": target}, "attack": made.config["attack"] | {"target": target},
        }  # fmt: skip
    with pytest.raises(
        DataError, match=r"of 2 runs no two differ in dataset.target alone: attack.target is another, too;"
    ):
        against_setting(pair, "dataset.target")
    (axes,) = against_setting(pair, "attack.target", ("ca",)).axes
    assert [float(x) for x in axes.lines[1].get_xdata()] == [0, 1]


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for made in (swept(0.1), swept(20.0)):
        folder = tmp_path / "outputs" / "runs" / made.id
        folder.mkdir(parents=True)
        record.write(made, folder)
    words = ["plot", "sweep", "outputs", "--output", "sweep.svg"]
    assert cli.main([*words, "--x", "defense.alpha"]) == 0
    assert cli.main(words) == 2 and "KIND: sweep needs --x SETTING" in capsys.readouterr().err
    assert cli.main(["plot", "scatter", *words[2:], "--x", "defense.alpha"]) == 2


def test_the_draw_of_the_validation_is_its_own(tmp_path: Path) -> None:
    made = made_plan(tmp_path)
    assert Stream(0).child("validate").permutation(9).tolist() != Stream(0).permutation(9).tolist()
    assert made.parts.validation is None


def test_a_plot_of_holdout_ca_alone_can_be_read() -> None:
    """Its axis begins below the lowest mean or bar, seeds have bars, the infected model no place in the legend."""
    runs = [swept(alpha, seed, 0.5) for alpha in (0.1, 0.2) for seed in (0, 1)]
    for place, each in enumerate(runs):
        each.purification.details |= {"holdout_ca": 0.9 + 0.02 * place, "holdout": {"images": 58, "validation": 14}}
    figure = against_setting(runs, "defense.alpha", ("holdout_ca",))
    (axes,) = figure.axes
    assert 80 < axes.get_ylim()[0] < 90 and axes.get_ylim()[1] == 100
    assert len(axes.collections) == 1 and [text.get_text() for text in figure.legends[0].get_texts()] == ["fst"]
    said = figure.get_supxlabel().replace("\n", " ")
    assert "14 were kept from the defense: one is 7.14 points" in said


def test_tables_say_how_many_images_were_kept() -> None:
    runs = [swept(0.1, 0, 0.5)]
    runs[0].config = {**runs[0].config, "holdout": {**runs[0].config["holdout"], "validate": 0.2}}
    runs[0].purification.details |= {"holdout_ca": 0.9, "holdout": {"images": 58, "validation": 14}}
    made = report.make({Path("x"): runs[0]}, ("holdout_ca",), (), ())
    assert "holdout CA is of 14 images: one is 7.14 points" in made.notes
    kept = "20 % of it kept from the defense: 14 images, and 58 were left for it"
    assert any(note.startswith("holdout: ") and note.endswith(kept) for note in made.notes)


def test_fonts_in_pdf_are_truetype(tmp_path: Path) -> None:
    ink.write(against_setting([swept(0.1, 0, 0.5), swept(0.2, 0, 0.5)], "defense.alpha"), tmp_path / "x.pdf")
    assert b"/Type3" not in (tmp_path / "x.pdf").read_bytes() and b"/CIDFontType2" in (tmp_path / "x.pdf").read_bytes()
