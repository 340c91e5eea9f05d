"""Experiments pin what they say, published figures carry their certainty, and the comparison tells the truth."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.errors import ConfigCompositionException
from records import made_run

from backdoorbench.cli import hydra_run, reproduce
from backdoorbench.cli.main import main
from backdoorbench.config import catalog
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, composer, conf_dir, option
from backdoorbench.metrics import Scores
from backdoorbench.reporting import published
from backdoorbench.reporting.published import Comparison, Figure
from backdoorbench.reporting.rows import CHOICES, Cell, aggregate
from backdoorbench.storage import record
from backdoorbench.storage.record import Run
from backdoorbench.sweeps import hydra_errors, sweep

PUBLISHED = Path(published.__file__).parents[1] / "published"


def run(experiment: str, attack: str, defense: str, asr: float, *more: str, seed: int = 0, **scores: float) -> Run:
    settings = compose([f"experiment={experiment}", f"attack={attack}", f"defense={defense}", f"seed={seed}", *more])
    before = Scores(0.94, scores.get("infected_asr", 0.99), 0.01, 1000, 900)
    after = Scores(scores.get("ca", 0.93), asr, 1 - asr, 1000, 900)
    return made_run(f"{attack}{defense}{seed}", settings, before, after, environment={"device": "a CPU"})


# ---- experiments ----------------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize(
    "scale", [pytest.param(name, marks=[] if name == "full" else [pytest.mark.slow]) for name in catalog.names("scale")]
)
@pytest.mark.parametrize("paper", reproduce.papers())
def test_every_cell_of_every_experiment_composes_and_builds(paper: str, scale: str) -> None:
    for overrides in cells(paper, scale):
        resolved = compose([f"experiment={paper}", f"scale={scale}", *overrides])
        for group in CHOICES:
            build(resolved[group], group)


def cells(paper: str, scale: str) -> list[list[str]]:
    """A job of the experiment's sweep for each value of each parameter, the others at their first."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        whole = compose("config", [f"experiment={paper}", f"scale={scale}"], return_hydra_config=True)
    values = {str(key): str(text).split(",") for key, text in whole.hydra.sweeper.params.items()}
    first = {key: options[0] for key, options in values.items()}
    jobs = [first | {key: option} for key, options in values.items() for option in options]
    return [[f"{key}={value}" for key, value in job.items()] for job in jobs]


@pytest.mark.wide
def test_papers_settings_are_pinned() -> None:
    def pinned(*words: str) -> dict[str, Any]:
        return compose(words)

    fst = pinned("experiment=fst", "attack=blended", "defense=lp")
    assert (fst["model"]["name"], fst["train"]["lr"], fst["train"]["epochs"]) == ("resnet18", 0.1, 100)
    assert fst["holdout"] == option("holdout", "fst") and fst["defense"]["project"]
    assert pinned("experiment=fst", "defense=ft")["defense"]["keep_head_norm"]
    assert pinned("experiment=fmp")["holdout"]["rate"] == 0.1 and pinned("experiment=fmp")["train"]["lr"] == 0.01
    tnr = pinned("experiment=tnr", "defense=trap_and_replace")
    assert (tnr["train"]["optimizer"], tnr["train"]["lr"], tnr["train"]["epochs"]) == ("adam", 0.001, 200)
    assert tnr["model"]["name"] == "wrn_16_1" and tnr["defense"]["stage1"]["epochs"] == 200
    pbe = pinned("experiment=pbe", "attack=badnets", "defense=pbe")
    assert pbe["attack"]["pattern"] == "grid3" and pbe["model"]["name"] == "preact_resnet18"
    assert pinned("experiment=pbe", "attack=blended")["attack"]["test_ratio"] == 0.1
    bench = pinned("experiment=backdoorbench", "defense=ft")
    assert (bench["defense"]["epochs"], bench["defense"]["batch_size"], bench["train"]["lr"]) == (100, 256, 0.01)


@pytest.mark.wide
@pytest.mark.parametrize("name", ["sig", "lc"])
@pytest.mark.parametrize(
    ("data", "images", "own"), [("cifar10", 47_500, 4750), ("gtsrb", 37_249, 2109), ("digits", 1365, 135)]
)
def test_trap_and_replaces_clean_labels_are_the_whole_class(name: str, data: str, images: int, own: int) -> None:
    """Of the training images that 5 % for the defense leave, `own` are of the target."""
    settings = compose(["experiment=tnr", f"attack={name}", f"dataset={data}"])["attack"]
    attack = build(settings, "attack")
    labels = torch.full((images,), 9)
    labels[:own] = settings["target"]
    assert attack.count(labels) == own
    assert settings.get("pattern") == "tnr" or (settings["corners"], settings["epsilon"]) == ("grid3", 16)


@pytest.mark.wide
def test_a_scale_reduces_and_the_command_line_wins() -> None:
    small = compose(["experiment=fst", "scale=small", "defense=fst"])
    assert (small["dataset"]["name"], small["dataset"]["train_size"], small["model"]["name"]) == (
        "cifar10",
        12000,
        "demo",
    )
    assert small["holdout"]["name"] == "fst" and small["train"]["name"] == "fast"
    assert compose(["experiment=fst", "scale=small", "model=vgg16_bn"])["model"]["name"] == "vgg16_bn"
    assert compose(["experiment=fst", "scale=digits", "defense=fst"])["defense"]["batch_size"] == 16  # the overlay
    assert compose(["dataset=gtsrb", "scale=small", "defense=aft"])["defense"]["adversarial_iterations"] == 282


@pytest.mark.wide
@pytest.mark.parametrize("paper", ["pbe", "aft"])
def test_pbe_aims_at_its_codes_class_at_its_codes_rate_on_gtsrb_too(paper: str) -> None:
    """SIG there changes labels, so that it needs no large target class; elsewhere class 1 is aimed at, and SIG is at 5 %."""
    for attack in ("badnets", "blended", "sig", "wanet", "input_aware"):
        found = compose([f"experiment={paper}", "dataset=gtsrb", f"attack={attack}"])["attack"]
        assert (found["target"], found["poison_rate"]) == (0, 0.1)
    typed = compose([f"experiment={paper}", "dataset=gtsrb", "attack=sig", "attack.target=5", "attack.poison_rate=0.2"])
    assert (typed["attack"]["target"], typed["attack"]["poison_rate"]) == (5, 0.2)
    plain = compose(["dataset=gtsrb", "attack=sig"])["attack"]
    assert (plain["target"], plain["poison_rate"]) == (1, 0.05)


def test_backdoorbench_aims_at_its_cells_class_on_gtsrb_too_where_labels_need_not_stay() -> None:
    for dataset, target, attacks in (
        ("cifar10", 0, "badnets,blended,sig,lc,lf"),
        ("gtsrb", 0, "badnets,blended,lf,ssba"),
    ):
        made = composer().load(["experiment=backdoorbench", f"dataset={dataset}"])
        assert made.attack.target == target and made.hydra.sweeper.params.attack.startswith(attacks)
    rare = compose(["experiment=backdoorbench", "dataset=gtsrb", "attack=sig", "attack.poison_rate=0.001"])["attack"]
    assert (rare["target"], rare["poison_rate"]) == (0, 0.001)


def test_the_small_scale_keeps_the_papers_passes() -> None:
    """282 and 1,598 batches are 3 and 17 epochs of 12,000 images, as 1,173 and 6,647 are of 50,000."""
    small = compose(["dataset=cifar10", "scale=small", "defense=aft"])
    per_epoch = -(-small["dataset"]["train_size"] // small["defense"]["batch_size"])
    assert small["defense"]["adversarial_iterations"] == 3 * per_epoch
    assert small["defense"]["natural_iterations"] == 17 * per_epoch


# ---- published figures ----------------------------------------------------------------------------------------------


def test_published_rows_are_sound() -> None:
    known = published.sources()
    rows = list(csv.DictReader((PUBLISHED / "figures.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) > 700
    for row in rows:
        assert row["certainty"] and row["source"] in known and row["experiment"] in reproduce.papers(), row
        assert row["ca"] or row["asr"] or row["ra"], row
        assert all(0 <= float(row[name]) <= 100 for name in ("ca", "asr", "ra") if row[name]), row


def test_the_papers_own_figures() -> None:
    fst = {(f.rate, f.defense): f.scores["asr"] for f in published.figures("fst")}
    assert fst[("1 %", "fst")] == pytest.approx(0.002) and fst[("1 %", "ft")] == pytest.approx(0.824)
    pbe = next(f for f in published.figures("pbe") if (f.dataset, f.attack, f.defense) == ("cifar10", "blended", "pbe"))
    assert pbe.scores == pytest.approx({"ca": 0.9398, "asr": 0.0093}) and pbe.certainty == "figure image"
    assert published.figures("aft") == []


def verdict(asr: float, *values: float) -> str:
    figure = Figure(
        "fst", "fst_figure3", "cifar10", "resnet18", "blended", "1 %", "fst", "", {"asr": asr}, "figure image", ""
    )
    return Comparison("cifar10", "blended", "1 %", "fst", len(values), {"asr": Cell(values)}, figure, ()).verdict


def test_verdicts() -> None:
    assert verdict(0.10, 0.119) == "within" and verdict(0.10, 0.121) == "off" and verdict(0.10, 0.05) == "off"
    assert verdict(0.10, 0.05, 0.25) == "within"  # their deviation is 0.14
    assert verdict(0.10) == "off"  # nothing measured
    assert Comparison("digits", "badnets", "10 %", "fst", 1, {}, None, ()).verdict == "no published figure"


def test_ours_stand_beside_theirs() -> None:
    runs = [
        run("fst", "blended", defense, asr, f"attack.poison_rate={rate}")
        for rate, defense, asr in ((0.1, "ft", 0.3), (0.01, "ft", 0.82), (0.01, "fst", 0.3))
    ]
    found = published.compare(runs, "fst")
    assert [(item.rate, item.defense, item.verdict) for item in found] == [
        ("10 %", "none", "within"), ("10 %", "ft", "no published figure"),
        ("1 %", "none", "within"), ("1 %", "ft", "within"), ("1 %", "fst", "off"),
    ]  # fmt: skip
    header, cells = published.grid(found)
    assert header == [
        "dataset",
        "attack",
        "rate",
        "defense",
        "n",
        "CA ours",
        "ASR paper",
        "ASR ours",
        "RA ours",
        "verdict",
        "how sure",
    ]
    assert cells[4] == [
        "cifar10",
        "blended",
        "1 %",
        "fst",
        "1",
        "93.00",
        "0.20",
        "30.00",
        "70.00",
        "off",
        "figure image",
    ]
    assert "–" in cells[1]


@pytest.mark.wide
def test_of_a_cell_for_several_networks_ours_is_taken_or_the_experiments_own() -> None:
    wanted = run("backdoorbench", "badnets", "ft", 0.02)
    other = run("backdoorbench", "badnets", "ft", 0.02, "model=resnet18")
    vgg = run("backdoorbench", "badnets", "ft", 0.02, "model=vgg19_bn")
    assert (
        published.compare([wanted], "backdoorbench")[1].published
        != published.compare([vgg], "backdoorbench")[1].published
    )
    assert (
        published.compare([other], "backdoorbench")[1].published
        == published.compare([wanted], "backdoorbench")[1].published
    )


def test_a_mean_over_attacks_is_compared_with_the_mean_of_ours() -> None:
    runs = [run("fmp", attack, "fmp", asr) for attack, asr in (("badnets", 0.02), ("blended", 0.04))]
    mean = published.compare(runs, "fmp")[-1]
    assert mean.attack == "mean of badnets, blended" and mean.ours["asr"].mean == pytest.approx(0.03)
    assert mean.published is not None and mean.published.scores == pytest.approx({"asr": 0.0286, "ra": 0.874})


def test_traps_are_told_from_their_absence() -> None:
    runs = [run("tnr", "badnets", "trap_and_replace", 0.1, f"defense.trap={trap}") for trap in ("true", "false")]
    shown = [item.defense for item in published.compare(runs, "tnr")]
    assert shown == ["none", "trap_and_replace (defense.trap=True)", "trap_and_replace (defense.trap=False)"]


def test_lines_that_differ_in_a_setting_are_told_apart_and_so_are_their_infected_models() -> None:
    runs = [
        run("fst", "blended", "ft", asr, "attack.poison_rate=0.01", f"train.epochs={epochs}", infected_asr=infected)
        for epochs, asr, infected in ((50, 0.6, 0.7), (100, 0.82, 0.98))
    ]
    found = published.compare(runs, "fst")
    assert [(item.defense, item.ours["asr"].mean, item.verdict) for item in found] == [
        ("none (train.epochs=50)", 0.7, "off"), ("ft (train.epochs=50)", 0.6, "off"),
        ("none (train.epochs=100)", 0.98, "within"), ("ft (train.epochs=100)", 0.82, "within"),
    ]  # fmt: skip


def test_several_networks_are_told_apart() -> None:
    pair = [run("fst", "blended", "ft", 0.5), run("fst", "blended", "ft", 0.6)]
    pair[1].config["model"] = pair[1].config["model"] | {"name": "vgg19_bn"}
    assert [item.defense for item in published.compare(pair, "fst")] == [
        "none (model=resnet18)", "ft (model=resnet18)", "none (model=vgg19_bn)", "ft (model=vgg19_bn)",
    ]  # fmt: skip


def test_means_over_attacks_of_other_settings_are_means_of_their_own() -> None:
    runs = [
        run("fmp", attack, "fmp", asr, f"defense.p={p}")
        for attack, p, asr in (("badnets", 64, 0.02), ("blended", 64, 0.04), ("badnets", 8, 0.2), ("blended", 8, 0.4))
    ]
    means = [item for item in published.compare(runs, "fmp") if item.attack.startswith("mean of")]
    assert [(item.attack, item.defense, item.n, item.ours["asr"].mean) for item in means] == [
        ("mean of badnets, blended", "fmp (defense.p=64)", 2, pytest.approx(0.03)),
        ("mean of badnets, blended", "fmp (defense.p=8)", 2, pytest.approx(0.3)),
    ]


def test_a_figure_of_one_setting_stands_beside_runs_that_differ_in_others_too() -> None:
    pair = [
        run("tnr", "l2_inv", "trap_and_replace", 0.5, f"defense.trap={trap}", f"defense.stage1.epochs={epochs}")
        for trap, epochs in (("false", 200), ("true", 40))
    ]
    _, trapless, trap = published.compare(pair, "tnr")
    assert trapless.defense == "trap_and_replace (defense.trap=False, defense.stage1.epochs=200)"
    assert trapless.published is not None and trap.published is None


def test_departures_are_from_what_an_experiment_says_on_the_runs_data_set() -> None:
    """FST takes 5 % on CIFAR-100, and 2 % elsewhere."""
    own = compose(["experiment=fst", "dataset=cifar100", "defense=fst"])
    assert (own["holdout"]["rate"], own["defense"]["alpha"]) == (0.05, 0.001)
    other = {**own, "holdout": own["holdout"] | {"rate": 0.02}}
    gone = {**own, "dataset": own["dataset"] | {"name": "of_a_plugin_that_is_gone"}}
    named = "dataset cifar100, not cifar10"
    assert published.departures([own], "fst") == [named]
    assert published.departures([other], "fst") == [named, "holdout.rate 0.02, not 0.05"]
    assert published.departures([gone], "fst")[0] == "dataset of_a_plugin_that_is_gone, not cifar10"


def test_of_rows_of_one_pair_every_one_is_looked_at() -> None:
    runs = [run("fst", "blended", "ft", 0.8, "attack.poison_rate=0.01", f"train.epochs={n}") for n in (100, 50)]
    made = aggregate(runs)
    assert published.otherwise(published.beside(made), made) == [
        "settings other than experiment fst's: train.epochs 50, not 100"
    ]


def test_what_differs_is_named() -> None:
    pinned = compose(["experiment=fst", "defense=fst"])
    assert published.differing(pinned, pinned) == []
    other = compose(
        ["experiment=fst", "defense=fst", "attack.poison_rate=0.01", "holdout.rate=0.05", "dataset.train_size=100"]
    )
    assert published.differing(other, pinned, ["attack.poison_rate"]) == [
        "dataset.train_size 100, not all", "holdout.rate 0.05, not 0.02",
    ]  # fmt: skip
    strong = compose(["experiment=fst", "defense=fst", "defense.strength=0.5", "holdout.per_class=10"])
    assert published.differing(strong, pinned) == ["holdout.per_class 10, not null", "defense.strength 0.5, not null"]
    short = compose(["experiment=tnr", "defense=trap_and_replace", "defense.stage1.epochs=40"])
    full = compose(["experiment=tnr", "defense=trap_and_replace"])
    assert published.differing(short, full) == ["defense.stage1.epochs 40, not 200"]
    small = compose(["experiment=fst", "defense=fst", "scale=small"])
    assert published.differing(small, pinned)[1:3] == ["dataset.train_size 12000, not all", "model demo, not resnet18"]
    small["model"]["width"] = 8  # which is not what demo says either
    assert published.differing(small, pinned)[2:4] == ["model demo, not resnet18", "model.width 8"]


# ---- the verb -------------------------------------------------------------------------------------------------------


def test_the_verb_turns_lists_into_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(hydra_run, "carry_out", lambda overrides, _: asked.append(overrides) or 0)
    words = [
        "fst",
        "--scale",
        "small",
        "dataset.root=/data",
        "--rates",
        "0.1,0.01",
        "--seeds",
        "0,1",
        "runtime.threads=1",
    ]
    assert reproduce.carry_out(words) == 0
    assert asked == [
        ["-m", "experiment=fst", "scale=small", "dataset.root=/data", "runtime.threads=1", "attack.poison_rate=0.1,0.01", "seed=0,1"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fts"], "experiment 'fts' is unknown. Did you mean 'fst'"),
        (["fst", "--scale", "tiny"], "scale 'tiny' is unknown. There are cpu, digits, full and small."),
        (["fst", "--sale", "small"], "bdx reproduce: unrecognized arguments: --sale"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *words]) == 2
    assert capsys.readouterr().err.startswith(f"bdx: {said}")


def test_the_comparison_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [sweep.Left(("defense=pbe",), "failed", error="it broke")]
    for defense in ("ft", "fst"):
        done = run(
            "fst", "blended", defense, 0.002, "attack.poison_rate=0.01", "scale=small", f"runtime.outputs={tmp_path}"
        )
        kept = tmp_path / "runs" / defense
        kept.mkdir(parents=True)
        record.write(done, kept)
        jobs.append(sweep.Left((f"defense={defense}",), "done", record=str(kept)))
    assert reproduce.show(jobs, "fst", "small") == 0
    text = (tmp_path / "reproduce" / "fst-small.md").read_text(encoding="utf-8")
    assert "| cifar10 | blended | 1 % | fst | 1 | 93.00 | 0.20 | 0.20 | 99.80 | within | figure image |" in text
    assert "- FST, arXiv 2310.01875: Figure 3, titles of the t-SNE panels; panel title; whether" in text
    assert "settings other than the experiment's: curve" not in text
    assert "model demo, not resnet18; train fast, not paper" in text
    assert "figure image" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("narrowed", "name"),
    [
        ([], "fst-small"),
        (
            [
                "dataset.root=/data",
                "runtime.threads=1",
                "force=true",
                "rerun=true",
                "tracker=mlflow",
                "hydra/launcher=pool",
            ],
            "fst-small",
        ),  # the same figures
        (["attacks=badnets,sig", "dataset.root=/data"], "fst-small_attacks=badnets,sig"),
        (["dataset=gtsrb", "+x={a: 1}"], "fst-small_dataset=gtsrb_+x=_a_1_"),
    ],
)
def test_a_page_is_called_by_what_was_asked_for(narrowed: list[str], name: str) -> None:
    assert reproduce.page_name("fst", "small", narrowed) == name


def test_a_page_of_many_seeds_has_a_short_name_of_its_own() -> None:
    first, second = (reproduce.page_name("fst", "small", [f"seeds={','.join('01234' * 20)},{end}"]) for end in "56")
    assert first != second and len(first) == len(second) == reproduce.LONGEST + 9


def test_an_experiment_of_ones_own_is_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "theirs.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      defense.alpha: 0.1,0.2\ntrain:\n  epochs: 7\n"
    )
    done = run("none", "badnets", "fst", 0.1, "defense.alpha=0.1", f"runtime.outputs={tmp_path}")
    record.write(done, tmp_path)
    jobs = [sweep.Left(("defense=fst",), "done", record=str(tmp_path))]
    assert reproduce.show(jobs, "theirs", "full", [str(tmp_path / "mine")]) == 0
    assert "settings other than the experiment's: train.epochs 20, not 7\n" in capsys.readouterr().out


def test_a_setting_that_the_experiment_sweeps_and_a_defense_lacks_is_the_experiments() -> None:
    """Nobody typed defense.trap, so that no name is to be corrected."""
    with pytest.raises(ConfigCompositionException) as met:
        compose(["defense=ft", "defense.trap=true"])
    said = str(hydra_errors.explained(met.value, ["experiment=tnr", "defense=ft,trap_and_replace"]))
    assert said.startswith(
        "experiment=tnr sweeps over defense.trap=true,false, and an option of defense in this sweep has no setting 'trap'; it "
        "knows _target_, augment, batch_size"
    )
    typed = str(hydra_errors.explained(met.value, ["experiment=tnr", "defense=ft", "defense.trap=true"]))
    assert typed.startswith("defense has no setting 'trap'. Correct the name;")


def test_the_command_line_replaces_what_an_experiment_sweeps() -> None:
    """Hydra's own promise, on which the lists of the verb rest."""
    from hydra import compose, initialize_config_dir
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        whole = compose("config", ["experiment=fst"], return_hydra_config=True)
    sweeper = BasicSweeper(max_batch_size=None, params=whole.hydra.sweeper.params)
    sweeper.config = whole
    words = [*sweeper._parse_config(), "attack=blended", "defense=ft,fst"]
    (jobs,) = sweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    assert len(jobs) == 8 and all("attack=blended" in job for job in jobs)  # four rates, two defenses
