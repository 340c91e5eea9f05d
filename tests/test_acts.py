"""A setting that its siblings switch off is refused where it was given, in one paragraph, wherever it stands."""

import pytest

from backdoorbench.config import acts
from backdoorbench.config.acts import Either, Never, Only, Unless
from backdoorbench.config.compose import compose
from backdoorbench.errors import ConfigError, IdleError
from backdoorbench.pipeline import plan

IN_VAIN = [  # words, what is said
    (
        ["attack.patch_size=5"],
        "attack.patch_size is 5, and nothing reads it beside attack.pattern=white3: it acts only with attack.pattern=random or "
        "image. Leave attack.patch_size out, or change attack.pattern.",
    ),
    (["attack.sources=[3]"], "beside attack.mapping=all_to_one: it acts only with attack.mapping=source_specific"),
    (["attack.cover_rate=0.1"], "beside attack.mapping=all_to_one: it acts only with attack.mapping=source_specific"),
    (
        ["attack.mapping=all_to_all", "attack.target=3"],
        "attack.target is 3, and nothing reads it beside attack.mapping=all_to_all: it acts only where attack.mapping is not "
        "all_to_all, or only with attack.rate_of=target_class",
    ),
    (["attack=ctrl", "attack.labels=dirty", "attack.cap=true"], "it acts only with attack.labels=clean"),
    (["attack=sig", "attack.pattern=tnr", "attack.cycles=3"], "it acts only with attack.pattern=sinusoid"),
    (["attack=lf", "attack.pattern=noise", "attack.search_passes=3"], "it acts only with attack.pattern=optimised"),
    (["attack=blind", "attack.balance=mgda", "attack.clean_weight=2"], "it acts only with attack.balance=fixed"),
    (
        ["attack=bpp", "attack.quantise_test=true"],
        "attack.quantise_test is true, and nothing reads it: it acts nowhere in this method, since the trigger's values are whole "
        "grey levels. Leave attack.quantise_test out.",
    ),
    (["attack=lira", "attack.generator_epochs=0", "attack.generator_lr=0.1"], "attack.generator_epochs is not 0"),
    (["defense=aft", "defense.adversarial_epochs=5"], "beside defense.budget=iterations: it acts only with defense.budget=epochs"),
    (["defense=fst", "defense.strength=2", "defense.alpha=0.3"], "it acts only with defense.strength=null"),
    (["defense=fe_tuning", "defense.strength=2"], "it acts only where defense.trainable is not body"),
    (["defense=fmp", "defense.fraction=0.1", "defense.p=48"], "it acts only with defense.fraction=null"),
    (
        ["defense=trap_and_replace", "defense.trap=false", "defense.stage1.lr=0.5"],
        "defense.stage1.lr is 0.5, and nothing reads it beside defense.trap=false",
    ),
    (["defense=trap_and_replace", "defense.cutmix_prob=0", "defense.cutmix_beta=2"], "defense.cutmix_prob is not 0"),
    (["defense=npd", "defense.steps=1", "defense.enough=0.9"], "it acts only where defense.steps is not 0 or 1"),
    (["defense=i_bau", "defense.fixed_point_steps=0", "defense.inner_step=0.2"], "defense.fixed_point_steps is not 0"),
    (["defense=d3", "defense.loss_weight=0", "defense.loss_threshold=1"], "it acts only where defense.loss_weight is not 0"),
    (["defense=pbe", "defense.steps=0", "defense.clamp=false"], "it acts only where defense.steps is not 0"),
    (["train.milestones=[3]"], "beside train.schedule=one_cycle: it acts only with train.schedule=milestones"),
    (["train.decay=0.5"], "it acts only with train.schedule=milestones"),
    (["train.schedule=constant", "train.warmup=0.1"], "it acts only with train.schedule=one_cycle"),
    (["train.optimizer=adam", "train.nesterov=false"], "it acts only with train.optimizer=sgd"),
    (["holdout.root=/nowhere"], "beside holdout.kind=reserved: it acts only with holdout.kind=foreign"),
    (["holdout.kind=foreign", "holdout.root=/nowhere", "holdout.rate=0.1"], "it acts only where holdout.kind is not foreign"),
    (["holdout.kind=seen", "holdout.split=test"], "beside holdout.kind=seen: it acts only with holdout.kind=reserved"),
    (["holdout.per_class=10", "holdout.rate=0.1"], "beside holdout.per_class=10: it acts only with holdout.per_class=null"),
    (["holdout.per_class=10", "holdout.draw=uniform"], "it acts only with holdout.per_class=null"),
    (["curve.every=0", "curve.images=50"], "it acts only where curve.every is not 0"),
    (["detector=ac", "inspection.images=50"], "beside detector.name=ac: it acts only with a detector that judges inputs"),
    (["inspection.images=50"], "beside detector.name=none: it acts only with a detector that judges inputs"),
    (["model=timm", "model.checkpoint=pyproject.toml", "model.pretrained=true"], "it acts only with model.checkpoint=null"),
]  # fmt: skip


@pytest.mark.wide
@pytest.mark.parametrize(("words", "said"), IN_VAIN, ids=[" ".join(words) for words, _ in IN_VAIN])
def test_what_nothing_reads_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(IdleError) as caught:
        plan.plan(compose(words))
    assert said in str(caught.value) and "\n" not in str(caught.value)


TO_SPARE = [
    ["attack.patch_size=3"],  # the default, though typed
    ["attack.sources=[]"],
    ["attack.pattern=random", "attack.patch_size=5"],
    ["attack.mapping=all_to_all"],  # its target is the data set's
    ["attack.mapping=all_to_all", "dataset.target=3"],
    ["attack.mapping=all_to_all", "attack.rate_of=target_class", "attack.target=3"],
    ["attack=adap_blend", "attack.cover_rate=0.01"],  # whatever its mapping
    ["attack=refool", "attack.mapping=all_to_all", "attack.target=3"],  # whose images are not reflected
    ["defense=aft", "defense.budget=epochs", "defense.adversarial_epochs=5"],
    ["train.schedule=milestones", "train.milestones=[3]", "train.decay=0.5", "train.epochs=9"],
    ["curve.every=0"],
    ["detector=strip", "inspection.images=50"],
]


@pytest.mark.wide
@pytest.mark.parametrize("words", TO_SPARE, ids=" ".join)
def test_what_is_read_or_was_not_given_is_not_refused(words: list[str]) -> None:
    plan.plan(compose(words))


def test_a_crop_lies_in_the_image() -> None:
    with pytest.raises(ConfigError, match=r"dataset.crop is 40 with dataset.size=32; .* it has 1 to 32 pixels"):
        plan.plan(compose(["dataset.crop=40"]))


@pytest.mark.parametrize("milestones", ["[]", "[20]", "[0]"])
def test_milestones_of_which_none_is_reached_are_refused(milestones: str) -> None:
    words = ["train.schedule=milestones", f"train.milestones={milestones}", "train.epochs=20"]
    with pytest.raises(ConfigError, match=r"none is an epoch from 1 to 19, so the rate would never fall"):
        plan.plan(compose(words))


def test_a_schedule_that_a_method_has_no_setting_for_is_none_of_its() -> None:
    with pytest.raises(ConfigError, match="defense.schedule is 'milestones'; expected cosine, one_cycle or constant"):
        plan.plan(compose(["defense=ft", "defense.schedule=milestones"]))


def test_conditions_are_inherited_and_taken_back() -> None:
    class Base:
        acts = {"size": Only("kind", "square"), "rate": Unless("kind", "none")}

    class Derived(Base):
        acts = {"rate": (), "angle": (Only("kind", "line"), Unless("length", 0))}

    assert set(acts.declared(Base)) == {"size", "rate"} and set(acts.declared(Derived)) == {"size", "angle"}
    angle = acts.declared(Derived)["angle"]
    assert [condition.holds({"kind": "line", "length": 0}) for condition in angle] == [True, False]


def test_either_and_never() -> None:
    either = Either(Only("kind", "line"), Unless("length", 0))
    assert either.holds({"kind": "line", "length": 0}) and either.holds({"kind": "dot", "length": 2})
    assert not either.holds({"kind": "dot", "length": 0})
    assert either.told("attack") == "only with attack.kind=line, or only where attack.length is not 0"
    assert (
        not Never("it is black").holds({})
        and Never("it is black").told("") == "nowhere in this method, since it is black"
    )
