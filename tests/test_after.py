"""After-attacks: what each does to the letter of its specification (purification, section 8; newer, section 3), what it may not see,
and that several of them purify once."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import QUICK
from test_defenses import reachable

from backdoorbench import load_model
from backdoorbench.after.base import Scenario, Trial
from backdoorbench.after.lmc import between
from backdoorbench.after.none import NoAfterAttack
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose, option
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Scenario as Defenders
from backdoorbench.errors import BdxError, ConfigError, DataError, ModelError, PairingError
from backdoorbench.models import checkpoint
from backdoorbench.pipeline import after, evaluation, infect, job, plan, purify
from backdoorbench.pipeline.job import Job
from backdoorbench.pipeline.outcome import print_outcome, stage_line
from backdoorbench.storage import record, store
from backdoorbench.storage.record import Finding
from backdoorbench.tensors import vary
from backdoorbench.training import adversarial

RETUNE = ("after=retune", "after.rate=0.1", "after.batch_size=16")
SHORT = (*QUICK, "train.epochs=1", "force=true", "curve.every=0")  # where it does not matter how good the models are
CONTROLLED = [word for word in QUICK if word != "control=off"] + ["control=train"]
HASTY = [word for word in SHORT if word != "control=off"]


def staged(outputs: Path, *words: str) -> after.Stage:
    """An after-attack on the quickly infected model of the default attack."""
    made = plan.plan(compose(["attack=badnets", *QUICK, *words, f"runtime.outputs={outputs}", "runtime.threads=1"]))
    infection, _ = infect.obtain(made, made.splits.test, Finding("infect", ""))
    return after.prepare(made, infection, made.splits.test)


def tried(stage: after.Stage, model: torch.nn.Module) -> list[Trial]:
    return list(stage.trials(model, lambda name, value: None))


def judged(stage: after.Stage, model: torch.nn.Module) -> list[dict[str, Any]]:
    return [stage.judge(trial, trial.model) for trial in stage.trials(model, lambda name, value: None)]


# ---- the stage ------------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_what_becomes_of_a_purified_model_is_a_stage_of_the_record(run: Callable[..., Job]) -> None:
    done = run("attack=badnets", "defense=ft", "defense.epochs=1", *RETUNE, *CONTROLLED, "exact.epochs=4")
    read = record.read(done.folder)
    assert [stage.kind for stage in read.stages] == ["infect", "purify", "after"]
    found = read.after
    assert found.name == "retune" and found.seconds["after"] > 0
    assert set(found.figures) == {
        "asr_retuned", "ca_retuned", "asr_retuned_clean", "asr_retuned_exact", "asr_clean", "asr_exact", "ca_exact",
    }  # fmt: skip
    assert {name: len(trials) for name, trials in found.details["trials"].items()} == {
        "purified": 1,
        "clean": 1,
        "exact": 1,
    }
    assert done.folder.name.split("_")[1] == "digits-badnets-ft-retune"
    assert (done.folder / "table.md").read_text().count(
        "ASR after"
    ) == 4  # of the defense, and of model, clean and exact


def test_a_run_without_an_after_attack_has_the_key_it_had() -> None:
    config = compose(["attack=badnets", *QUICK])
    more = {**config, "exact": {**config["exact"], "epochs": 5}}
    settings = [plan.run_settings(each, "digest") for each in (config, more)]
    assert settings[0] == settings[1] and not {"after", "exact"} & set(settings[0])
    asked = plan.run_settings(compose(["attack=badnets", "after=retune", *QUICK]), "digest")
    assert {"after", "exact"} <= set(asked) and {
        n: v for n, v in asked.items() if n not in ("after", "exact")
    } == settings[0]


@pytest.mark.wide
def test_after_attacks_purify_once(run: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = purify.purify

    def counted(*arguments: Any) -> torch.nn.Module:
        calls.append("purified")
        return original(*arguments)

    monkeypatch.setattr(purify, "purify", counted)
    words = ("attack=badnets", "defense=ft", "defense.epochs=2", *SHORT, "seed=21")
    first = run(*words, *RETUNE, "exact.epochs=0")
    second = run(*words, *RETUNE, "after.samples=2", "exact.epochs=0")
    plain = run(*words)
    assert len(calls) == 1
    assert second.run.purification.cached and second.run.purification.scores == first.run.purification.scores
    assert plain.run.purification.scores == first.run.purification.scores
    weights = {done.folder.joinpath("purified.safetensors").stat().st_ino for done in (first, second, plain)}
    assert len(weights) == 1  # one file under three names
    monkeypatch.setattr(purify, "STARTED", time.time() + 1)  # as another process would have it
    again = run(*words, *RETUNE, "rerun=true", "exact.epochs=0")
    assert len(calls) == 2 and again.run.purification.scores == first.run.purification.scores


@pytest.mark.wide
def test_a_finished_run_without_one_is_taken_over(run: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """By a run with an after-attack, and by one with another control and a detector, which bear on no defense."""
    words = ("attack=badnets", "defense=ft", "defense.epochs=3", *SHORT, "seed=21")
    plain = run(*words).run
    monkeypatch.setattr(purify, "purify", lambda *_: pytest.fail("it is purified anew"))
    beside = run(*words, "control=cached", "detector=signature").run
    one, other = vars(beside.purification), vars(plain.purification)
    assert one["cached"] and one["cost"] == other["seconds"] and stage_line(beside, "purify").endswith(" taken over")
    assert all(value == one[name] for name, value in other.items() if name not in ("cached", "cost", "seconds"))
    found = run(*words, *RETUNE, "exact.epochs=0").run
    assert found.purification.cached and found.purification.scores == plain.purification.scores
    assert (
        found.purification.curve == plain.purification.curve and found.purification.cost == plain.purification.seconds
    )


def test_the_latest_of_the_runs_that_purified_alike_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rerun after an edit, though it had another control: keys do not know the source of bdx itself."""
    runs = {"a": Path("20260102-000000_x_a"), "b": Path("20260103-000000_x_b")}
    monkeypatch.setattr(record, "find_done", lambda outputs, key: runs.get(key))
    made: Any = SimpleNamespace(outputs=None, purified_alike=["a", "b", "c"])
    assert purify.purified_before(made) == runs["b"]
    made.purified_alike = ["c"]
    assert purify.purified_before(made) is None


def test_a_model_that_calls_images_otherwise_than_it_did_is_not_taken_over(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As one computed on a device whose kernels are wrong, or whose images are others."""
    stage = staged(outputs, *RETUNE)
    made, infection, test = stage.made, stage.infection, stage.test
    weights, calls = (
        tmp_path / "purified.safetensors",
        evaluation.predict(stage.infection.model, stage.test, None, "float32"),
    )
    checkpoint.save(infection.model, weights)
    known = record.Run("", "done", "", {}, [Finding("purify", "ft", seconds={"purify": 2.0}, curve=[{"epoch": 1}])])
    monkeypatch.setattr(purify.record, "find_done", lambda *_: tmp_path)
    monkeypatch.setattr(purify.record, "read", lambda _: known)
    for moved, is_taken in ((0, True), (test.labels.numel() // 25, True), (test.labels.numel() // 10, False)):
        clean = calls.clean.clone()
        clean[:moved] = (clean[:moved] + 1) % 10
        store.write_tensors(tmp_path / purify.CALLS, {"purified_clean": clean})
        finding = Finding("purify", "ft")
        found = purify.taken_over(made, infection, test, finding)
        assert (found is not None) == is_taken
        if found is not None:
            assert not found.is_new and torch.equal(found.predictions.clean, clean)
            assert (finding.cached, finding.cost, finding.seconds, finding.curve) == (
                True,
                {"purify": 2.0},
                {},
                [{"epoch": 1}],
            )


@pytest.mark.wide
def test_damaged_weights_are_not_taken_over(run: Callable[..., Job]) -> None:
    words = ("attack=badnets", "defense=ft", "defense.epochs=4", *SHORT, "seed=21")
    plain = run(*words)
    file = plain.folder / "purified.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(content)
    found = run(*words, *RETUNE, "exact.epochs=0").run
    assert not found.purification.cached and found.purification.scores == plain.run.purification.scores


@pytest.mark.wide
def test_a_network_of_another_shape_is_attacked_too(run: Callable[..., Job]) -> None:
    words = (
        "attack=badnets",
        "defense=npd",
        "defense.warmup_epochs=1",
        "defense.epochs=1",
        "defense.batch_size=16",
        *QUICK,
    )
    plain = run(*words)
    images = torch.rand(2, 3, 32, 32)
    assert load_model(plain.folder)(images).shape == load_model(plain.folder, infected=True)(images).shape == (2, 10)
    found = run(*words, *RETUNE, "exact.epochs=0").run
    assert found.after.figures["asr_retuned"] is not None and found.purification.cached  # purified once
    with pytest.raises(ModelError, match="the defense left a network of another shape"):
        run(*words, "after=lmc", "exact.epochs=0")


def test_what_cannot_be_is_refused_before_any_work(outputs: Path) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(BdxError) as caught:
            plan.plan(compose([*QUICK, f"runtime.outputs={outputs}", "seed=99", *words]))
        assert isinstance(caught.value, PairingError | DataError | ConfigError)
        return str(caught.value)

    assert refused("attack=none", "after=retune") == (
        "retune brings a backdoor back, but attack=none plants none; expected an attack with a trigger. Pick one (bdx list "
        "attacks), or set after=none."
    )
    assert refused("attack=badnets", "after=query") == (
        "query needs a clean model of the same recipe, and there is none; expected control=train, or control=cached beside one "
        "that is cached. Set control=train."
    )
    assert refused("attack=badnets", "after=retune", "after.samples=50") == (
        "after.samples=50 images are to be poisoned of after.rate=0.02 of 380 training images, which is 8, and 342 are of a "
        "class that the trigger is meant for; expected at least 2 images, and no more poisoned ones than either. Raise "
        "after.rate, or lower after.samples."
    )
    query = ("attack=badnets", "after=query", "control=train")
    assert refused(*query, "after.retuning.rate=2") == (
        "after.retuning.rate is 2; expected a number between 0 and 1. Change after.retuning.rate."
    )
    assert refused(*query, "after.retuning.lr=-1").startswith("after.retuning.lr is -1; expected a number at least 0.")
    assert refused(*query, "after.retuning.samples=50").startswith(
        "after.retuning.samples=50 images are to be poisoned of after.retuning.rate=0.02 of 380 training images"
    )
    nothing = [
        f"after.{name}=[]" for name in ("opacities", "shifts", "scales", "repeats", "blurs", "qualities", "crops")
    ]
    assert refused("attack=badnets", "after=variations", "after.flip=false", *nothing) == (
        "after=variations varies nothing: opacities, shifts, scales, repeats, blurs, qualities and crops are empty, and flip is "
        "false; expected one variation at least. Give one of them a value, such as after.shifts=[1]."
    )
    assert "after.lr is -1" in refused("attack=badnets", "after=retune", "after.lr=-1")
    assert refused("attack=badnets", "exact.epochs=3").startswith(
        "exact.epochs is 3, and nothing reads it beside after.name=none: it acts only with an after-attack."
    )
    assert "frozen_aug is true with augment=null" in refused(
        "attack=badnets", "after=retune", "after.frozen_aug=true", "after.augment=null"
    )


def test_nothing_leads_from_an_attacker_to_the_test_set_or_to_a_defender(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []

    def trials(self: NoAfterAttack, scenario: Scenario) -> Any:
        held.extend(reachable(scenario))
        return iter(())

    monkeypatch.setattr(NoAfterAttack, "needs", frozenset({"model", "infected", "trigger", "train"}))
    monkeypatch.setattr(NoAfterAttack, "trials", trials)
    stage = staged(outputs)
    stage = replace(stage, made=replace(stage.made, after=NoAfterAttack("none")))
    tried(stage, stage.infection.model)
    sizes = {len(thing) for thing in held if isinstance(thing, ImageSet)}
    assert sizes == {380}  # the victim's images, not the 120 of the test set, not the 20 of the holdout
    (train,) = {id(thing): thing for thing in held if isinstance(thing, ImageSet)}.values()
    assert torch.equal(train.images, stage.made.parts.train.images)  # as they were before the poisoning
    assert not {"Infection", "Run", "Finding"} & {type(thing).__name__ for thing in held}


def test_a_defender_is_handed_nothing_of_this(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An after-attack in the configuration changes nothing of what the defense sees, to the bit."""
    stage = staged(outputs, *RETUNE, "defense=ft", "defense.epochs=1")
    other = staged(outputs, "defense=ft", "defense.epochs=1")
    models = [
        purify.purify(
            each.made, each.infection, each.made.splits.test, Finding("purify", ""), lambda _: None
        ).state_dict()
        for each in (stage, other)
    ]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# ---- retuning -------------------------------------------------------------------------------------------------------


def test_retuning_with_no_poisoned_image_is_fine_tuning(outputs: Path) -> None:
    stage = staged(outputs, *RETUNE, "after.samples=0")
    made, attack = stage.made, stage.made.after
    (trial,) = tried(stage, stage.infection.model)
    stream, count = made.stream.child("after"), round(0.1 * len(stage.train))
    images = stage.train.subset(stream.child("clean").permutation(len(stage.train))[:count])
    settings = {
        name: getattr(attack.retuning.tuning, name) for name in ("batch_size", "lr", "momentum", "weight_decay")
    }
    ft = build({**option("defense", "ft"), **settings, "epochs": 5, "schedule": "constant", "augment": None}, "defense")
    ft = replace(ft, tuning=replace(ft.tuning, augment=attack.retuning.tuning.augment))
    scenario = Defenders(
        ft.needs, model=infect.obtain(made, made.splits.test, Finding("infect", ""))[0].model, holdout=images, train=None,
        build=lambda inner: stage.infection.model, recipe=made.recipe, stream=stream, device=made.device,
        probe=lambda model, epoch: None, note=lambda name, value: None,
    )  # fmt: skip
    tuned, retuned = ft.purify(scenario).state_dict(), trial.model.state_dict()
    assert all(torch.equal(tuned[name], retuned[name]) for name in tuned)


def test_the_poisoned_images_are_triggered_training_images_of_other_classes(outputs: Path) -> None:
    stage = staged(outputs, *RETUNE)
    scenario = scenario_of(stage)
    clean, poisoned = stage.made.after.retuning.draw(scenario, scenario.stream)
    assert len(clean) + len(poisoned) == round(0.1 * len(stage.train)) and len(poisoned) == 5
    assert poisoned.labels.tolist() == [0] * 5
    white = poisoned.images[:, :, -4:, -4:]
    assert (white == 255).flatten(1).float().mean(1).min() > 0.5  # the patch
    other, _ = replace(stage.made.after.retuning, samples=2).draw(scenario, scenario.stream)
    assert torch.equal(other.images[3:], clean.images)  # the first are replaced, the rest stays


def scenario_of(stage: after.Stage) -> Scenario:
    """What the after-attack is handed."""
    held: list[Scenario] = []
    kind = type(stage.made.after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "trials", lambda self, scenario: held.append(scenario) or iter(()))
        tried(stage, stage.infection.model)
    return held[0]


def test_a_frozen_augmentation_is_drawn_once(outputs: Path) -> None:
    ordinary, frozen = (
        tried(stage, stage.infection.model)[0].model.state_dict()
        for stage in (staged(outputs, *RETUNE), staged(outputs, *RETUNE, "after.frozen_aug=true"))
    )
    assert not all(torch.equal(ordinary[name], frozen[name]) for name in ordinary)


@pytest.mark.slow
def test_what_is_infected_stays_so_and_what_is_clean_nearly(outputs: Path) -> None:
    words = ("train.epochs=12", "control=train", "force=true", "dataset.train_size=1000")
    stage = staged(outputs, "after=retune", *words)
    assert stage.clean is not None
    (infected,), (clean,) = judged(stage, stage.infection.model), judged(stage, stage.clean)
    assert infected["asr"] > 0.9 and clean["asr"] < 0.3 and infected["ca"] > 0.8


# ---- queries --------------------------------------------------------------------------------------------------------

QUERY = ("after=query", "control=train", "after.hidden=16")
LEARNT = (*QUERY, "after.images=60")


@pytest.mark.wide
def test_a_query_is_changed_by_epsilon_at_most(outputs: Path) -> None:
    stage = staged(outputs, *LEARNT, "after.retuning.rate=0.1", "after.epochs=3", "after.lr=1.0")
    (trial,) = tried(stage, stage.infection.model)
    images, _ = next(stage.test.batches(60))
    assert stage.infection.trigger is not None and trial.lure is not None
    with torch.no_grad():
        for shown, before in ((trial.trigger(images), stage.infection.trigger(images)), (trial.lure(images), images)):
            change = (shown - before).abs()
            assert 0 < change.max() <= 16 / 255 + 1e-6 and 0 <= shown.min() and shown.max() <= 1


def test_an_untrained_generator_leaves_clean_models_alone(outputs: Path) -> None:
    stage = staged(outputs, *QUERY, "after.epochs=0")
    assert stage.clean is not None
    (trial,) = tried(stage, stage.infection.model)
    lured = after.evaluation.called(stage.clean, stage.test, trial.lure, "float32")
    plain = after.evaluation.called(stage.clean, stage.test, None, "float32")
    assert (lured == plain).float().mean() > 0.95


@pytest.mark.wide
def test_without_the_retuned_model_nothing_comes_back(outputs: Path) -> None:
    """alpha 0: the clean control, in the place of the purified model, is called the target no more than by chance."""
    stage = staged(outputs, *LEARNT, "after.alpha=0", "after.epochs=5")
    assert stage.clean is not None
    (found,) = judged(stage, stage.clean)
    assert found["asr"] < 0.2


def test_the_loss_of_a_query_by_hand(outputs: Path) -> None:
    """alpha KL(retuned(x) || purified(x')) + CE(clean(x'), y): the teacher sees what was not changed."""
    from backdoorbench.after.query import Generator, reactivation

    model = staged(outputs, *RETUNE).infection.model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        purified, retuned, clean = (
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)) for _ in range(3)
        )
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 3072))
        images = torch.rand(4, 3, 32, 32)
    labels, generator = torch.tensor([1, 2, 3, 4]), Generator(model.normalize, net, 16 / 255)
    changed = (images + 16 / 255 * net(model.normalize(images)).view_as(images).tanh()).clamp(0, 1)
    teacher, student = retuned(images).softmax(1), purified(changed).softmax(1)
    divergence = (teacher * (teacher.log() - student.log())).sum(1).mean()
    truth = -clean(changed).log_softmax(1)[range(4), labels].mean()
    found = reactivation(purified, retuned, clean, 0.2)(generator, images, labels)
    torch.testing.assert_close(found, 0.2 * divergence + truth)


@pytest.mark.wide
def test_the_clean_control_sees_the_same_queries(run: Callable[..., Job]) -> None:
    words = (
        "attack=badnets",
        "defense=none",
        *HASTY,
        *LEARNT,
        "after.retuning.rate=0.1",
        "after.epochs=1",
        "exact.epochs=0",
    )
    found = run(*words).run.after
    assert {"asr_query", "asr_query_clean", "asr_query_untriggered"} <= set(found.figures)
    assert found.details["trials"]["clean"][0]["label"] == found.details["trials"]["purified"][0]["label"]


# ---- patterns -------------------------------------------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize(("name", "epsilon"), [("perturb", 0.031373), ("alternative", 0.062745)])
def test_one_pattern_within_its_bound_for_all_images(name: str, epsilon: float, outputs: Path) -> None:
    stage = staged(outputs, f"after={name}", "after.images=60", "after.epochs=2", "after.batch_size=20")
    (trial,) = tried(stage, stage.infection.model)
    grey = torch.full((2, 3, 32, 32), 0.5)
    shown = (trial.lure or trial.trigger)(grey) - grey
    assert torch.equal(shown[0], shown[1]) and 0 < shown.abs().max() <= epsilon + 1e-6


@pytest.mark.wide
def test_a_perturbation_as_its_authors_search_it(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along the sphere from a random point of it, plain steps, several on each batch; the likeliest class beside the target, too."""
    from backdoorbench.after.perturb import beside

    how = ("after.norm=l2", "after.epsilon=3", "after.start=random", "after.batch_size=20", "train.precision=float32")
    stage = staged(outputs, "after=perturb", "after.images=40", "after.epochs=0", *how)
    grey = torch.full((1, 3, 32, 32), 0.5)
    (begun,) = tried(stage, stage.infection.model)
    assert begun.lure is not None and 2.9 < (begun.lure(grey) - grey).norm() <= 3 + 1e-4

    steps: list[int] = []
    plain = adversarial.climb
    monkeypatch.setattr(
        adversarial, "climb", lambda *given, **words: (steps.append(words["steps"]), plain(*given, **words))[1]
    )
    more = ("after.images=40", "after.epochs=2", "after.turns=3", "after.step=0.05", "after.runner_up=1")
    stage = staged(outputs, "after=perturb", *more, *how)
    (moved,) = tried(stage, stage.infection.model)
    assert moved.lure is not None and (moved.lure(grey) - grey).norm() <= 3 + 1e-4 and steps == [2 * 2 * 3]
    assert not torch.equal(moved.lure(grey), begun.lure(grey))
    for words in (["after.epsilon=3"], ["after.step=2"], ["after.turns=0"], ["after.norm=l2", "after.runner_up=-1"]):
        with pytest.raises(ConfigError, match=words[-1].partition("=")[0]):
            staged(outputs, "after=perturb", *words)

    logits, labels = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]]), torch.tensor([0, 0])
    share = logits.softmax(1)
    assert beside(logits, labels) == pytest.approx(
        -(1.0001 - torch.stack([share[0, 1], share[1, 2]])).log().mean().item()
    )


def test_plain_steps_within_a_length_by_hand() -> None:
    slope = torch.tensor([[3.0, 4.0]])
    once = adversarial.climb(lambda d: (d * slope).sum(), torch.zeros(1, 2), 5.0, step=0.5, steps=1)
    twice = adversarial.climb(lambda d: (d * slope).sum(), torch.zeros(1, 2), 4.0, step=0.5, steps=2)
    assert once.tolist() == [[1.5, 2.0]] and torch.allclose(twice, torch.tensor([[2.4, 3.2]]))


@pytest.mark.wide
def test_a_perturbation_helps_the_trigger(outputs: Path) -> None:
    words = ("after.images=200", "after.epochs=4", "after.epsilon=0.1", "after.step=0.02")
    stage = staged(outputs, "after=perturb", *words, "control=train")
    assert stage.clean is not None
    before = after.evaluation.called(stage.clean, stage.test, stage.infection.trigger, "float32")
    (found,) = judged(stage, stage.clean)
    eligible = stage.test.labels != 0
    assert found["asr"] > (before == 0)[eligible].float().mean()


@pytest.mark.wide
def test_a_perturbation_of_another_runs_model(run: Callable[..., Job], outputs: Path) -> None:
    source = run("attack=badnets", "defense=ft", "defense.epochs=1", *SHORT).folder
    words = ("after=perturb", "after.images=40", "after.epochs=1")
    own, lent = staged(outputs, *words), staged(outputs, *words, f"after.source={source}")
    assert own.made.key != lent.made.key
    first, second = (tried(stage, stage.infection.model)[0] for stage in (own, lent))
    grey = torch.full((1, 3, 32, 32), 0.5)
    assert first.lure and second.lure and not torch.equal(first.lure(grey), second.lure(grey))
    with pytest.raises(ModelError, match="is no purified model that fits demo .* Name another."):
        tried(staged(outputs, *words, f"after.source={outputs}"), own.infection.model)


def test_the_direction_is_of_triggered_less_clean_features(outputs: Path) -> None:
    from backdoorbench.after.alternative import direction

    stage = staged(outputs, "after=alternative")
    scenario = scenario_of(stage)
    clean = scenario.eligible(50, scenario.stream)
    way = direction(stage.infection.model, clean, scenario.triggered(clean))
    none = direction(stage.infection.model, clean, clean)
    assert way.ndim == 1 and way.norm() > 0 and none.norm() == 0


@pytest.mark.wide
def test_what_a_pattern_is_searched_by(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """perturb: towards the target. alternative: that, and the features' change along the backdoor's direction."""
    from backdoorbench.after.alternative import direction
    from backdoorbench.models.surgery import penultimate

    objectives: list[Callable[..., torch.Tensor]] = []
    plain = adversarial.UniversalSearch.find
    monkeypatch.setattr(
        adversarial.UniversalSearch,
        "find",
        lambda self, by, *given, **how: (objectives.append(by), plain(self, by, *given, **how))[1],
    )
    words = ("after.images=60", "after.epochs=0", "after.batch_size=20", "train.precision=float32")
    by_stage = [staged(outputs, f"after={name}", *words) for name in ("perturb", "alternative")]
    for stage in by_stage:
        tried(stage, stage.infection.model)
    towards, along = objectives
    model, stage = by_stage[1].infection.model, by_stage[1]
    images, labels = next(stage.train.subset((stage.train.labels != 0).nonzero()[:8, 0]).batches(8))
    change = torch.full((1, 3, 32, 32), 0.05)
    logits = model((images + change).clamp(0, 1)).log_softmax(1)
    torch.testing.assert_close(towards(change, images, torch.zeros_like(labels)), logits[:, 0].mean())
    scenario = scenario_of(stage)
    clean = scenario.eligible(60, scenario.stream.child("images"))
    way = direction(model, clean, scenario.triggered(clean))
    step = penultimate(model, (images + change).clamp(0, 1)) - penultimate(model, images)
    cosine = (step @ way) / step.norm(dim=1) / way.norm()
    torch.testing.assert_close(along(change, images, labels), cosine.mean() + logits[:, 0].mean(), rtol=1e-4, atol=1e-5)
    none = torch.zeros(1, 3, 32, 32, requires_grad=True)  # where the search begins
    for objective in objectives:
        (slope,) = torch.autograd.grad(objective(none, torch.zeros_like(images), labels), none)
        assert float((slope != 0).float().mean()) > 0.9  # black pixels are moved, too


# ---- the line of weights --------------------------------------------------------------------------------------------


def test_the_ends_of_the_line_are_both_models(outputs: Path) -> None:
    stage = staged(outputs, "after=lmc", "after.points=3", "after.images=60", "defense=ft", "defense.epochs=3")
    made, infection = stage.made, stage.infection
    purified = purify.purify(made, infection, made.splits.test, Finding("purify", ""), lambda _: None)
    found = [
        {name: value.clone() for name, value in trial.model.state_dict().items()}
        for trial in stage.trials(purified, lambda name, value: None)
    ]
    ends = purified.state_dict(), infection.model.state_dict()
    for place, end in ((0, ends[0]), (-1, ends[1])):
        assert all(torch.equal(found[place][name], end[name]) for name in end)
    for name, value in found[1].items():
        if value.is_floating_point():
            assert torch.allclose(value, (ends[0][name] + ends[1][name]) / 2, atol=1e-6)


def test_statistics_between_the_ends_may_be_measured_anew(outputs: Path) -> None:
    words = ("after=lmc", "after.points=3", "after.images=60", "defense=ft", "defense.epochs=3")
    found = []
    for more in ((), ("after.remeasure=true", "after.statistics_images=50")):
        stage = staged(outputs, *words, *more)
        purified = purify.purify(
            stage.made, stage.infection, stage.made.splits.test, Finding("purify", ""), lambda _: None
        )
        states = [dict(trial.model.state_dict()) for trial in stage.trials(purified, lambda name, value: None) if trial]
        assert len(states) == 3
        found.append([stage.judge(trial, trial.model) for trial in stage.trials(purified, lambda name, value: None)])
    assert found[0][0] == found[1][0] and found[0][2] == found[1][2]  # the ends


def test_counters_are_no_numbers_to_mix() -> None:
    first, second = (
        {"count": torch.tensor(3), "w": torch.tensor(1.0)},
        {"count": torch.tensor(9), "w": torch.tensor(3.0)},
    )
    assert [int(between(first, second, t)["count"]) for t in (0, 0.5, 1)] == [3, 3, 9]
    assert [float(between(first, second, t)["w"]) for t in (0, 0.5, 1)] == [1, 2, 3]


# ---- variations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def patch() -> torch.Tensor:
    """(1, 3, 8, 8): a difference of one at four pixels in the middle."""
    values = torch.zeros(1, 3, 8, 8)
    values[:, :, 3:5, 3:5] = 1
    return values


def test_a_difference_is_moved(patch: torch.Tensor) -> None:
    assert vary.shifted(patch, 2, -1).nonzero()[:, 2:].amin(0).tolist() == [5, 2]
    assert vary.shifted(patch, 5, 0).sum() == 0 and torch.equal(vary.shifted(patch, 0, 0), patch)


def test_a_difference_is_scaled_about_its_own_middle(patch: torch.Tensor) -> None:
    corner = vary.shifted(patch, 2, 2)
    larger = vary.scaled(corner, 2.0)
    assert larger.sum() > 2 * corner.sum() and larger[0, 0, 5, 5] == 1
    assert torch.allclose(vary.scaled(corner, 1.0), corner, atol=1e-5)
    assert vary.scaled(torch.zeros_like(patch), 2.0).isfinite().all()


def test_a_difference_is_repeated(patch: torch.Tensor) -> None:
    found = vary.repeated(vary.shifted(patch, 3, 3), 2)
    assert found.sum() == 4 * patch.sum() and found[0, 0, 1, 1] == 0 and found[0, 0, 2, 2] == 1


def test_images_are_blurred_compressed_and_cropped(wave: torch.Tensor) -> None:
    flat = torch.full((2, 3, 16, 16), 0.4)
    for change in (lambda x: vary.blurred(x, 1.0), lambda x: vary.compressed(x, 50), lambda x: vary.cropped(x, 2)):
        assert torch.allclose(change(flat), flat, atol=0.01) and change(wave).shape == wave.shape
        assert not torch.equal(change(wave), wave)
    assert (vary.compressed(wave, 90) - wave).abs().mean() < (vary.compressed(wave, 50) - wave).abs().mean()
    assert torch.equal(vary.cropped(wave, 16), wave)  # nothing would be left


def test_the_largest_of_all_variations_counts_but_not_the_trigger_as_it_was(outputs: Path) -> None:
    stage = staged(outputs, "after=variations", "after.images=60", "after.shifts=[1]", "after.qualities=[50]")
    found = judged(stage, stage.infection.model)
    assert found[0]["label"] == "as it was" and len(found) == 1 + 4 + 8 + 2 + 1 + 2 + 1 + 2 + 1
    figures = after.figures(stage.made.after, {"purified": found})
    assert figures["asr_varied"] == max(each["asr"] for each in found[1:])
    assert after.in_one([1.0, 0.2, 0.3], "largest") == 0.3 and after.in_one([1.0, 0.0], "mean") == 0.5


# ---- controls -------------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_exact_purification_is_made_once(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = staged(outputs, *RETUNE, *SHORT, "exact.epochs=15")
    first = after.obtain_exact(stage.made, stage.infection, stage.test)
    assert first.asr is not None
    monkeypatch.setattr(type(stage.made.exact), "purify", lambda *_: pytest.fail("it is made anew"))
    other = staged(outputs, "after=variations", *SHORT, "exact.epochs=15", "defense=ft")
    second = after.obtain_exact(other.made, other.infection, other.test)
    assert (second.key, second.ca, second.asr) == (first.key, first.ca, first.asr)


def test_exact_purification_by_hand(outputs: Path) -> None:
    """SGD 0.9 at a constant rate on the clean and the triggered images, both with true labels."""
    from backdoorbench.after.base import painted
    from backdoorbench.after.exact import Exact
    from backdoorbench.streams import Stream

    stage = staged(outputs, *RETUNE)
    assert stage.infection.trigger is not None
    clean = stage.train.subset(torch.arange(12))
    triggered = painted(clean, stage.infection.trigger)
    assert torch.equal(triggered.labels, clean.labels) and not torch.equal(triggered.images, clean.images)
    ours, model = (copy.deepcopy(stage.infection.model) for _ in range(2))
    Exact(2, 8, 0.01).purify(ours, clean, triggered, "float32", Stream(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    both = replace(clean, images=torch.cat([clean.images, triggered.images]), labels=clean.labels.repeat(2))
    for epoch in range(2):
        model.train()
        for images, labels in both.batches(8, Stream(0).child(f"epoch{epoch}")):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    for first, second in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_exact_purification_ends_the_backdoor(outputs: Path) -> None:
    words = ("train.epochs=12", "control=train", "force=true", "dataset.train_size=1000")
    stage = staged(outputs, "after=retune", *words)
    found = after.obtain_exact(stage.made, stage.infection, stage.test)
    assert found.asr is not None and found.asr < 0.1 and found.ca > 0.8


@pytest.mark.wide
def test_what_controls_answer_is_known_to_other_defenses(
    run: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("attack=badnets", *HASTY, *RETUNE, "control=train", "exact.epochs=2")
    first = run(*words, "defense=none").run.after
    asked: list[Any] = []
    trials = after.Stage.trials
    monkeypatch.setattr(
        after.Stage, "trials", lambda self, model, note: asked.append(model) or trials(self, model, note)
    )
    second = run(*words, "defense=ft", "defense.epochs=1").run.after
    assert len(asked) == 1  # the purified model alone
    ends = ("_clean", "_exact")
    assert {n: v for n, v in second.figures.items() if n.endswith(ends)} == {
        n: v for n, v in first.figures.items() if n.endswith(ends)
    }


@pytest.mark.wide
def test_no_holdout_no_exact_purification(run: Callable[..., Job]) -> None:
    found = run("attack=badnets", "defense=none", *SHORT, *RETUNE, "holdout.rate=0").run.after
    assert set(found.figures) == {"asr_retuned", "ca_retuned"}


def test_a_single_run_prints_what_came_back(run: Callable[..., Job], capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    done = run("attack=badnets", "defense=ft", "defense.epochs=1", *RETUNE, *CONTROLLED, "exact.epochs=4")
    console = Console(width=120, highlight=False)
    print_outcome(console, done.run, done.folder, repeated=False)
    text = capsys.readouterr().out
    assert "  retune     ASR " in text and "  clean      ASR " in text and "  exact      ASR " in text
    assert stage_line(done.run, "after").split()[:2] == ["after", "retune"]


def test_stages_are_announced_in_order(run: Callable[..., Job], outputs: Path) -> None:
    told: list[str] = []
    words = ["attack=badnets", "defense=none", *SHORT, *RETUNE, "exact.epochs=0", "seed=21"]
    job.carry_out(
        compose([*words, f"runtime.outputs={outputs}", "runtime.threads=1"]), lambda run, stage: told.append(stage)
    )
    assert told == ["planned", "infect", "purify", "after"]
