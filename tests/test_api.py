"""The public functions, as the README uses them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import QUICK
from torch import nn

import backdoorbench as bb
from backdoorbench import api, progress, screen
from backdoorbench.attacks.base import Infection
from backdoorbench.errors import BdxError, ConfigError, DataError, ModelError
from backdoorbench.models import outputs
from backdoorbench.pipeline import own

SMALL = ("model.width=8", "train.epochs=6", "train.batch_size=32")


@pytest.mark.wide
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


@pytest.mark.wide
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


# ---- what a program brings itself -----------------------------------------------------------------------------------


def small_net(classes: int = 10) -> nn.Module:
    """A network of somebody else's, on pixels in [0, 1]."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )  # fmt: skip


def test_own_tensors_are_an_image_set() -> None:
    made = bb.image_set(torch.rand(6, 1, 16, 16), [0, 1, 2, 0, 1, 2], ["a", "b", "c"])
    assert made.images.shape == (6, 3, 16, 16) and made.images.dtype == torch.uint8 and made.classes == ("a", "b", "c")
    arrays = np.zeros((4, 3, 8, 8), np.uint8)
    assert bb.image_set(arrays, np.array([0, 1, 1, 0])).classes == ("0", "1")


@pytest.mark.parametrize(
    ("images", "labels", "classes", "said"),
    [
        (torch.rand(4, 8, 8, 3), [0] * 4, None, r"expected \(N, 3, S, S\).*this looks like \(N, H, W, 3\): permute"),
        (torch.rand(4, 3, 8, 9), [0] * 4, None, r"the shape \(4, 3, 8, 9\)"),
        (torch.randn(4, 3, 8, 8), [0] * 4, None, r"expected values in \[0, 1\], or uint8. Undo their normalisation"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.int64), [0] * 4, None, "images are torch.int64; expected uint8"),
        (torch.rand(4, 3, 8, 8), [0.0] * 4, None, "labels are .* expected 4 whole numbers"),
        (torch.rand(4, 3, 8, 8), [0] * 5, None, "expected 4 whole numbers, one an image"),
        (torch.rand(4, 3, 8, 8), [0, 1, 2, 3], ["a", "b"], "labels reach from 0 to 3, and there are 2 classes"),
        (
            torch.rand(2, 3, 8, 8),
            ["cat", "dog"],
            None,
            "labels cannot be made a tensor .*; class names are given as classes",
        ),
        (None, [0], None, "images cannot be made a tensor"),
        (
            torch.rand(2, 3, 8, 8),
            [0, 1],
            "cat",
            "classes is 'cat'; expected their names as a list, or how many there are",
        ),
        (torch.rand(2, 3, 8, 8), [0, 1], 2.0, "classes is 2.0; expected their names as a list"),
        (torch.rand(2, 3, 8, 8), [0, 1], ["a", "a"], "classes names 'a' twice; expected a name for each"),
    ],
)
def test_tensors_that_are_no_image_set_are_told(images: object, labels: object, classes: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        bb.image_set(images, labels, classes)


def test_own_images_and_an_own_network_are_infected_and_purified() -> None:
    clean, test = bb.load_dataset("digits", train_size=300, test_size=100)
    clean, test = (bb.image_set(part.images, part.labels, part.classes) for part in (clean, test))
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    infection = bb.infect(bb.build("attack/badnets", poison_rate=0.2), clean, "train.epochs=2", model=net)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())  # it is copied
    purified = bb.purify(bb.build("defense/ft", epochs=1), infection, test, "train.epochs=1")
    assert 0 <= bb.evaluate(purified, test, infection.trigger, infection.target).ca <= 1
    again = bb.infect(bb.build("attack/badnets", poison_rate=0.2), clean, "train.epochs=2", model=small_net, seed=3)
    twice = bb.infect(bb.build("attack/badnets", poison_rate=0.2), clean, "train.epochs=2", model=small_net, seed=3)
    assert all(torch.equal(value, twice.model.state_dict()[name]) for name, value in again.model.state_dict().items())


def test_any_module_is_purified_and_stays_as_it_was() -> None:
    holdout, _ = bb.load_dataset("digits", train_size=100)
    net = small_net().train()
    net[0].eval()  # as whoever fixes the statistics of a norm leaves it
    before = {name: value.clone() for name, value in net.state_dict().items()}
    purified = bb.purify(bb.build("defense/ft", epochs=1), net, holdout)
    assert net.training and not net[0].training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert purified(torch.rand(2, 3, 32, 32)).shape == (2, 10) and not purified.training
    fresh = bb.purify(
        bb.build("defense/ac"), Infection(net, None, None, holdout, None), holdout, "train.epochs=1"
    )  # trains one anew
    assert own.is_kind(fresh, purified)


def test_a_module_that_does_not_fit_is_told() -> None:
    holdout, _ = bb.load_dataset("digits", train_size=100)
    with pytest.raises(ModelError, match=r"Sequential makes \(2, 7\) of 2 images; expected logits \(2, 10\)"):
        bb.purify(bb.build("defense/ft", epochs=1), small_net(7), holdout)
    with pytest.raises(ModelError, match="Sequential cannot read these images of 32 pixels"):
        bb.purify(bb.build("defense/ft", epochs=1), nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), holdout)
    with pytest.raises(ModelError, match="model is int; expected a torch module"):
        bb.infect(bb.build("attack/badnets"), holdout, model=lambda: 5)


def test_layers_that_somebody_froze_are_purified_too(caplog: pytest.LogCaptureFixture) -> None:
    """As whoever tunes the last layer alone leaves a network, or whoever loads one to use it."""
    caplog.set_level("INFO")
    holdout, _ = bb.load_dataset("digits", train_size=100)
    for layers, count in ((slice(0, 1), 2), (slice(None), 6)):
        net = small_net()
        net[layers].requires_grad_(False)
        purified = bb.purify(bb.build("defense/ft", epochs=1), net, holdout)
        before, after = net.state_dict(), purified.state_dict()
        assert not any(torch.equal(value, after[f"net.{name}"]) for name, value in before.items() if value.ndim)
        assert f"has {count} of 6 weights frozen; a defense may train all of them" in caplog.text
        assert sum(not weight.requires_grad for weight in net.parameters()) == count  # theirs stays as it is


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
def test_a_module_that_cannot_be_trained_is_told() -> None:
    holdout, _ = bb.load_dataset("digits", train_size=100)
    ft = bb.build("defense/ft", epochs=1)
    for precision in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(ModelError, match=rf"weights in {str(precision)[6:]}; expected float32, .* model.float\(\)"):
            bb.purify(ft, small_net().to(precision), holdout)
    program = torch.jit.trace(small_net().eval(), torch.rand(2, 3, 32, 32))
    for call in (
        lambda: bb.purify(ft, program, holdout),
        lambda: bb.infect(bb.build("attack/none"), holdout, model=program),
    ):
        with pytest.raises(ModelError, match="is a TorchScript program; expected the module that it was made of"):
            call()
    normed = small_net()
    normed[0].register_buffer(
        "made", torch.ones(3, requires_grad=True) * 2, persistent=False
    )  # as weight_norm leaves its weight
    with pytest.raises(ModelError, match="Sequential cannot be copied, which happens before anything is changed"):
        bb.purify(ft, normed, holdout)
    several = small_net()
    several.register_forward_hook(lambda _, given, result: {"logits": result})
    with pytest.raises(ModelError, match="makes dict of 2 images; .* Hand over a module that returns these alone"):
        bb.purify(ft, several, holdout)


def test_a_copy_that_is_none_is_told_and_the_module_stays_as_it_was() -> None:
    """A forward that holds its module: a copy's weights are changed, and the module's are what computes."""
    holdout, _ = bb.load_dataset("digits", train_size=100)
    net, ft = small_net(), bb.build("defense/ft", epochs=1)
    inner = net.forward
    net.forward = lambda images: inner(images)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(
        ModelError, match=r"a copy of Sequential computes with the weights of the one .* types.MethodType"
    ):
        bb.purify(ft, net, holdout)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    silent = small_net()
    silent.register_forward_hook(lambda _, given, result: result.detach())
    with pytest.raises(ModelError, match="no gradient leads from the logits of Sequential to any of its weights"):
        bb.purify(ft, silent, holdout)
    assert bb.evaluate(silent, holdout, None, None).n_clean == 100  # to be judged it needs none


class Refusing(torch.autograd.Function):
    """What a wrapper does that wants its own backward pass called, as Lightning's Fabric does."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        raise RuntimeError("requires you to call fabric.backward(loss)")


def test_what_a_wrapper_raises_is_told() -> None:
    holdout, _ = bb.load_dataset("digits", train_size=100)
    net, ft = small_net(), bb.build("defense/ft", epochs=1)
    net.register_forward_hook(lambda _, given, result: Refusing.apply(result))
    with pytest.raises(
        ModelError, match=r"no gradient can be taken of the logits of Sequential \(requires you to call fabric"
    ):
        bb.purify(ft, net, holdout)

    class Exported(nn.Sequential):
        def train(self, mode: bool = True) -> "Exported":
            raise NotImplementedError("Calling train() is not supported yet.")

    with pytest.raises(
        ModelError, match="Exported is an exported program, which cannot be set to train; expected the mod"
    ):
        bb.purify(ft, Exported(*small_net()), holdout)
    net = small_net()
    net.register_forward_pre_hook(lambda _, given: {}["pixels"])
    with pytest.raises(ModelError, match=r"Sequential cannot read these images of 32 pixels \('pixels'\)"):
        bb.purify(ft, net, holdout)


@pytest.mark.wide
def test_a_compiled_module_is_what_it_was_compiled_of() -> None:
    """Methods read layers, which the wrapper of torch.compile hides."""
    holdout, _ = bb.load_dataset("digits", train_size=100)
    purified = bb.purify(bb.build("defense/fst", epochs=1), torch.compile(small_net(), backend="eager"), holdout)
    assert [name for name, _ in purified.named_parameters()][:1] == ["net.0.weight"]


class Viewing(nn.Module):
    """A network that assumes a memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, 4, 1), nn.Linear(4 * 8 * 8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv(images)
        logits: torch.Tensor = self.linear(maps.view(len(maps), -1))
        return logits


@pytest.mark.wide
def test_a_network_that_calls_view_runs_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Images arrive in channels_last, unless the network cannot read that."""
    caplog.set_level("INFO")
    outputs.say.cache_clear()
    train, test = bb.load_dataset("digits", train_size=100, test_size=50)
    infection = bb.infect(bb.build("attack/badnets"), train, "train.epochs=1", model=Viewing)
    purified = bb.purify(bb.build("defense/ft", epochs=1), infection, train)
    purified = bb.purify(bb.build("defense/nc", epochs=1), purified, train)
    assert bb.evaluate(purified, test, infection.trigger, infection.target).n_clean == 50
    assert bb.evaluate(Viewing(), test, infection.trigger, infection.target).n_clean == 50
    assert [record.message for record in caplog.records if "channel by channel" in record.message] == [
        f"Viewing {outputs.UNREADABLE}"
    ]


@pytest.mark.wide
def test_an_infection_is_kept_and_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = bb.load_dataset("digits", train_size=300, test_size=100)
    first = bb.infect(bb.build("attack/badnets", poison_rate=0.2), train, *SMALL, "train.epochs=1", cache=tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(api, "carry_out", lambda *_: pytest.fail("it was trained again"))
        second = bb.infect(bb.build("attack/badnets", poison_rate=0.2), train, *SMALL, "train.epochs=1", cache=tmp_path)
    assert all(torch.equal(value, second.model.state_dict()[name]) for name, value in first.model.state_dict().items())
    assert bb.evaluate(first.model, test, first.trigger, first.target) == bb.evaluate(
        second.model, test, second.trigger, second.target
    )
    assert second.train is not None and first.train is not None and torch.equal(first.train.images, second.train.images)
    for changed in ({"seed": 1}, {"model": small_net}):
        words = [word for word in SMALL if not (word.startswith("model.") and "model" in changed)]
        bb.infect(
            bb.build("attack/badnets", poison_rate=0.2), train, *words, "train.epochs=1", cache=tmp_path, **changed
        )
    bb.infect(bb.build("attack/badnets", poison_rate=0.3), train, *SMALL, "train.epochs=1", cache=tmp_path)
    assert len(list(tmp_path.glob("badnets-*/infection.json"))) == 4


def test_progress_is_drawn_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = bb.load_dataset("digits", train_size=100)
    opened: list[str] = []
    monkeypatch.setattr(
        screen.BarReporter,
        "open",
        lambda self, name, *rest: opened.append(name) or progress.LogReporter().open(name, *rest),
    )
    bb.infect(bb.build("attack/none"), train, *SMALL, "train.epochs=1")
    assert not opened
    bb.infect(bb.build("attack/none"), train, *SMALL, "train.epochs=1", progress=True)
    assert opened


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Sets of the digits, an infection of them, and an attack and a defense."""
    clean, test = bb.load_dataset("digits", train_size=120, test_size=60)
    victims, holdout = bb.withhold(clean, 0.2)
    attack, ft = bb.build("attack/badnets"), bb.build("defense/ft", epochs=1)
    infection = bb.infect(attack, victims, "model.width=8", "train.epochs=0")
    return {
        "victims": victims, "holdout": holdout, "test": test, "attack": attack, "ft": ft, "infection": infection,
        "nothing": test.subset(torch.arange(0)), "targets": test.subset((test.labels == 0).nonzero().flatten()),
        "beyond": replace(test, labels=test.labels + 20), "reversed": replace(holdout, classes=holdout.classes[::-1]),
        "small": bb.image_set(torch.zeros(20, 3, 16, 16), list(range(10)) * 2),
    }  # fmt: skip


UNREAD = "would not be read: here settings say what the network, its recipe and its normalisation are. "
HANDED: list[tuple[Callable[[Any], object], str]] = [
    (lambda it: bb.infect(it.attack, it.victims, "seed=3"), f"'seed=3' {UNREAD}Give it as an argument, seed=NUMBER."),
    (lambda it: bb.infect(it.attack, it.victims, "attack.poison_rate=0.5"), f"'attack.poison_rate=0.5' {UNREAD}Give it to bb.build"),
    (lambda it: bb.infect(it.attack, it.victims, "++defense=ft"), f"'++defense=ft' {UNREAD}Give it to bb.build('defense/NAME'"),
    (lambda it: bb.infect(it.attack, it.victims, "runtime.device=cuda"), f"'runtime.device=cuda' {UNREAD}Images say where"),
    (lambda it: bb.infect(it.attack, it.victims, "dataset.train_size=50"), f"'dataset.train_size=50' {UNREAD}Give it to bb.load_d"),
    (lambda it: bb.infect(it.attack, it.victims, "control=train"), f"'control=train' {UNREAD}Leave it out."),
    (lambda it: bb.purify(it.ft, it.infection, it.holdout, "defense.epochs=3"), f"'defense.epochs=3' {UNREAD}Give it to bb.build"),
    (lambda it: bb.infect(it.attack, it.victims, "model=demo", model=small_net), "'model=demo' says something of a network, and mod"),
    (lambda it: bb.infect(it.attack, it.victims, "model.checkpoint=x.pt"), "model.checkpoint is 'x.pt', which only a run loads;"),
    (lambda it: bb.infect(it.attack, it.victims, "train.epochs=["), "'train.epochs=[' cannot be read as a setting"),
    (lambda it: bb.infect(it.attack, it.victims, seed="a"), "seed is 'a'; expected a whole number."),
    (lambda it: bb.infect("badnets", it.victims), "attack is of type str; expected what bb.build('attack/NAME') makes."),
    (lambda it: bb.infect(it.ft, it.victims), "attack is of type FT; expected what bb.build('attack/NAME') makes."),
    (lambda it: bb.infect(it.attack, (it.victims, it.test)), "train is of type tuple; expected an image set (bb.load_dataset and bb.w"),
    (lambda it: bb.infect(it.attack, it.nothing), "train has no image; expected some."),
    (lambda it: bb.infect(it.attack, it.beyond), "train has labels from 20 to 29, and 10 classes; expected labels from 0 to 9."),
    (lambda it: bb.purify(it.attack, it.infection, it.holdout), "defense is of type BadNets; expected what bb.build('defense/NAME')"),
    (lambda it: bb.purify(it.ft, it.infection, None), "ft needs clean images, and holdout is None; expected an image set."),
    (lambda it: bb.purify(bb.build("defense/abl"), small_net(), it.holdout), "abl needs the victim's training set, and there is none:"),
    (lambda it: bb.purify(it.ft, it.infection, it.nothing), "holdout has no image; expected some."),
    (lambda it: bb.purify(it.ft, it.infection, it.small), "holdout has images of 16 pixels a side, and the infected model was trai"),
    (lambda it: bb.purify(it.ft, it.infection, it.reversed), "holdout has the classes of the training set in another order, so that "),
    (lambda it: bb.evaluate(it.infection.model, it.test, it.infection.trigger, None), "there is a trigger and no target; expected both"),
    (lambda it: bb.evaluate(it.infection.model, it.test, None, it.infection.target), "there is a target and no trigger; expected both"),
    (lambda it: bb.evaluate(it.infection.model, it.test, None, None, "fp8"), "precision is 'fp8'; expected auto, bf16 or float32."),
    (lambda it: bb.evaluate(it.infection.model, it.nothing, None, None), "test has no image; expected some."),
    (lambda it: bb.evaluate(it.infection.model, it.beyond, None, None), "test has labels from 20 to 29, and 10 classes;"),
    (lambda it: bb.evaluate(it.infection.model, it.targets, it.infection.trigger, it.infection.target), "none of the test images is of"),
    (lambda it: bb.evaluate(it.infection.model, it.test, it.infection.trigger, 0), "target is of type int; expected the rule of an"),
    (lambda it: bb.evaluate(small_net(), it.small, it.infection.trigger, it.infection.target), "the trigger cannot be put on images of 16"),
    (lambda it: bb.evaluate(small_net(), it.test, lambda x: x * 9, it.infection.target), "the trigger makes (2, 3, 32, 32) from 0 to 9 of"),
    (lambda it: bb.evaluate(small_net(), it.test, lambda x: x[:1], it.infection.target), "the trigger makes (1, 3, 32, 32) from 0 to 1 of"),
    (lambda it: bb.evaluate(small_net().apply(broken), it.test, None, None), "Sequential makes logits that are no finite numbers;"),
    (lambda it: bb.withhold(it.victims, "0.1"), "rate is '0.1'; expected a number."),
    (lambda it: bb.withhold(it.victims, per_class=1.5), "per_class is 1.5; expected a whole number."),
    (lambda it: bb.withhold(it.victims, per_class=True), "per_class is True; expected a whole number."),
    (lambda it: bb.withhold(it.victims, 0), "rate is 0, which withholds nothing; expected more."),
    (lambda it: bb.withhold(it.victims, 0.1, seed=None), "seed is None; expected a whole number."),
    (lambda it: bb.withhold((it.victims, it.test), 0.1), "clean is of type tuple; expected an image set"),
    (lambda it: bb.load_dataset("digits", device="nope"), "device is 'nope', but this machine offers cpu"),
]  # fmt: skip


def broken(module: nn.Module) -> None:
    for weight in module.parameters(recurse=False):
        weight.data.fill_(float("nan"))


@pytest.mark.parametrize(("call", "said"), HANDED, ids=lambda part: part[:60] if isinstance(part, str) else "")
def test_nothing_goes_on_with_something_else_than_was_handed_over(
    call: Callable[[Any], object], said: str, made: dict[str, Any]
) -> None:
    with pytest.raises(BdxError) as caught:
        call(SimpleNamespace(**made))
    assert str(caught.value).startswith(said)


def test_an_option_has_the_values_of_the_data_set_that_it_is_built_for() -> None:
    assert bb.build("defense/fst").alpha == bb.compose(["defense=fst"])["defense"]["alpha"]
    elsewhere = bb.build("defense/fst", "dataset=cifar100", epochs=3)
    assert (
        elsewhere.alpha == bb.compose(["defense=fst", "dataset=cifar100"])["defense"]["alpha"] and elsewhere.epochs == 3
    )
    assert elsewhere.alpha != bb.build("defense/fst").alpha


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: bb.build("defense/fts"), "defense 'fts' is unknown. Did you mean 'fst'"),
        (lambda: bb.run("attack=badnet"), "attack 'badnet' is unknown. Did you mean 'badnets'"),
        (lambda: bb.run("defense.lrr=1", "defense=ft"), "defense has no setting 'lrr'. Did you mean 'lr'"),
        (lambda: bb.compose(["seed=1,2"]), "'seed=1,2' holds several values, and this is no sweep"),
        (lambda: bb.build("defense/fst", name="ft"), "defense.name is 'ft', which defense=ft is called"),
        (lambda: bb.run(["attack=badnets"]), "the settings are (['attack=badnets'],); expected words"),  # type: ignore[arg-type]
        (lambda: bb.compose("attack=badnets"), "the settings are 'attack=badnets'; expected words"),
        (
            lambda: bb.run("experiment=fst", "attack=badnets"),
            "experiment=fst is a sweep over attack.poison_rate=0.1,0.05,0.01",
        ),
        (
            lambda: bb.build("fst"),
            "option is 'fst'; expected GROUP/NAME, such as 'defense/fst', of the groups attack, defense,",
        ),
        (lambda: bb.build("experiment/fst"), "option is 'experiment/fst'; expected GROUP/NAME"),
        (lambda: bb.build(None), "option is None; expected the name of one"),  # type: ignore[arg-type]
        (lambda: bb.build("defense/fst", "dataset=cifar1"), "dataset 'cifar1' is unknown. Did you mean 'cifar10'"),
        (lambda: bb.load_dataset("digitz"), "dataset 'digitz' is unknown. Did you mean 'digits'"),
    ],
)
def test_mistakes_are_told_as_the_command_line_tells_them(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(said)
