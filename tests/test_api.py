"""The public functions, as the README uses them."""

import pytest
import torch
from conftest import QUICK

import backdoorbench as bb
from backdoorbench.errors import ConfigError

SMALL = ("model.width=8", "train.epochs=6", "train.batch_size=32")


def test_a_step_at_a_time() -> None:
    clean, test = bb.load_dataset("digits", train_size=400, test_size=120)
    victims, holdout = bb.withhold(clean, 0.1)
    assert len(victims) == 360 and len(holdout) == 40
    infection = bb.infect(bb.build("attack/badnets", poison_rate=0.2), victims, *SMALL)
    before = {name: value.clone() for name, value in infection.model.state_dict().items()}
    purified = bb.purify(bb.build("defense/fst", epochs=1), infection, holdout, *SMALL)
    assert all(torch.equal(value, infection.model.state_dict()[name]) for name, value in before.items())
    infected, after = (bb.evaluate(m, test, infection.trigger, infection.target) for m in (infection.model, purified))
    assert infected.n_clean == 120 and infected != after
    again = bb.infect(bb.build("attack/badnets", poison_rate=0.2), victims, *SMALL)
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in before.items())


def test_run_composes_like_the_command_line(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    run = bb.run("attack=badnets", "defense=none", *QUICK)
    assert run.status == "done" and run.infected == run.purified
    pandas = pytest.importorskip("pandas")
    frame = bb.results("outputs")
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 1
    assert run.infected is not None and frame.infected_asr[0] == run.infected.asr


def test_build_refuses_what_the_class_does_not_know() -> None:
    with pytest.raises(Exception, match="defense has no setting 'lrr'. Did you mean 'lr'?"):
        bb.build("defense/fst", lrr=1)


def test_images_of_another_data_set_than_the_settings_say() -> None:
    """Their normalisation would be the wrong one, without a word."""
    train, _ = bb.load_dataset("digits", train_size=100)
    with pytest.raises(ConfigError) as caught:
        bb.infect(bb.build("attack/badnets"), train, "dataset=cifar10")
    assert str(caught.value) == (
        "the images are of digits, and the settings say dataset=cifar10, whose normalisation and recipe they would get. Add "
        '"dataset=digits" to the settings, as load_dataset was given it.'
    )
    with pytest.raises(
        ConfigError, match=r'the images have 16 pixels a side, .* add "dataset.size=16" to the settings'
    ):
        bb.infect(bb.build("attack/badnets"), bb.load_dataset("digits", train_size=100, size=16)[0])


def test_a_setting_that_nothing_reads_is_refused_in_python_too() -> None:
    with pytest.raises(ConfigError, match="attack.patch_size is 5, and nothing reads it beside attack.pattern=white3"):
        bb.build("attack/badnets", patch_size=5)
