"""Methods once more, written out from their specifications in plain loops: what both make of a small network must agree.

The loops share with the methods only what is drawn (batches, starting weights), the forward passes, and torch's optimisers. They are
slow, know no option, and were not made by reading the methods."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from scenes import agreed, defense, few, network, purify, victim_recipe
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Scenario
from backdoorbench.models.base import Classifier
from backdoorbench.models.layouts import layout_of
from backdoorbench.models.surgery import classifier_head
from backdoorbench.models.wide_resnet import WideResNet
from backdoorbench.streams import Stream, seeded
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.inversion import Generator

OWN = Stream(0).child("purify")  # the stream of the scenario in scenes.py

M = TypeVar("M", bound=nn.Module)
Batches = list[tuple[Tensor, Tensor]]
PLAIN: dict[str, Any] = {"fused": False, "foreach": False}


def drawn(images: ImageSet, size: int, stream: Stream, epochs: int, augment: Augment | None) -> Iterator[Batches]:
    """The batches of one epoch after another."""
    for epoch in range(epochs):
        batches = images.batches(size, stream.child(f"epoch{epoch}"), augment)
        yield list(batches)


def laid_out(model: M) -> M:
    """A module as `fit` lays it out: other kernels round otherwise, and PGD makes much of a last bit."""
    return model.to(memory_format=layout_of(model, torch.device("cpu")))  # type: ignore[call-overload, no-any-return]


def start(name: str = "preact10") -> Classifier:
    return laid_out(network(name))


def descend(optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor) -> None:
    model.zero_grad()
    loss.backward()
    optimizer.step()


def sgd(parameters: Any, lr: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(parameters), lr=lr, momentum=momentum, weight_decay=decay, **PLAIN)


def adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(list(parameters), lr=lr, **PLAIN)


def apart(first: nn.Module, second: nn.Module, before: nn.Module) -> float:
    """How far two models' floating tensors lie from each other, as a share of the way that the second has gone."""

    def row(model: nn.Module) -> Tensor:
        return torch.cat(
            [value.double().flatten() for value in model.state_dict().values() if value.is_floating_point()]
        )

    return float((row(first) - row(second)).norm() / (row(second) - row(before)).norm())


# ---- FST and its siblings (purification, 6.3) -----------------------------------------------------------------------


@pytest.mark.wide
@pytest.mark.parametrize(
    ("name", "moved", "alpha", "redrawn", "projected"),
    [
        ("ft", "all", 0.0, False, False),
        ("lp", "head", 0.0, False, False),
        ("fe_tuning", "body", 0.0, True, False),
        ("ft_init", "all", 0.0, True, False),
        ("fst", "all", 0.2, True, True),
    ],
)
def test_fst_and_its_siblings(name: str, moved: str, alpha: float, redrawn: bool, projected: bool) -> None:
    chosen = defense(name, epochs=3, batch_size=8)
    model = start()
    head = classifier_head(model)
    first = head.weight.detach().clone()
    if redrawn:
        generator, bound = OWN.child("redraw").generator(), 1 / math.sqrt(head.in_features)
        with torch.no_grad():
            for part in (head.weight, head.bias):
                part.copy_(torch.empty(part.shape).uniform_(-bound, bound, generator=generator))
    of_head = {id(part) for part in head.parameters()}
    kinds = {"all": (True, False), "head": (True,), "body": (False,)}[moved]
    optimizer = sgd([p for p in model.parameters() if (id(p) in of_head) in kinds], 0.01, 0.9, 0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for batches in drawn(few(), 8, OWN.child("tune"), 3, chosen.tuning.augment):
        model.train()
        for images, labels in batches:
            penalty = alpha * (head.weight * first).sum()
            descend(optimizer, model, F.cross_entropy(model(images), labels) + penalty)
            if projected:
                with torch.no_grad():
                    head.weight.mul_(first.norm() / head.weight.norm())
        schedule.step()
    assert apart(purify(start(), few(), chosen), model, start()) < 1e-3


# ---- AFT and PBE (3.3 and 4.2) --------------------------------------------------------------------------------------


def pgd(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Untargeted, from the image itself, 6/255 at most, a fifth of it a step; in eval mode."""
    model.eval()
    low, high = images - 6 / 255, images + 6 / 255
    moved = images
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), labels), moved)
        moved = torch.min(torch.max(moved.detach() + 6 / 255 / 5 * gradient.sign(), low), high).clamp(0, 1)
    model.train()
    return moved.detach()


def test_aft() -> None:
    chosen = defense(
        "aft", budget="epochs", adversarial_epochs=2, natural_epochs=2, batch_size=8, steps=3, lr=0.01
    )  # fmt: skip
    model = start()
    optimizer = sgd(model.parameters(), 0.01, 0.9, 5e-4)
    for epoch, batches in enumerate(drawn(few(), 8, OWN.child("tune"), 4, chosen.tuning.augment)):
        model.train()
        for images, labels in batches:
            shown = pgd(model, images, labels, 3) if epoch < 2 else images
            descend(optimizer, model, F.cross_entropy(model(shown), labels))
    assert apart(purify(start(), few(), chosen), model, start()) < 1e-2


@pytest.mark.wide
def test_pbe() -> None:
    shares, images = [0.25, 0.5, 0.7], agreed(start(), 48)
    chosen = defense("pbe", shares=shares, epochs=2, adversarial_batches=2, batch_size=8, steps=2, lr=0.01)
    pixels, model = images.images.float() / 255, start()
    optimizer = sgd(model.parameters(), 0.01, 0.9, 5e-4)
    with torch.no_grad():
        infected = start()(pixels).double()
    for turn, share in enumerate(shares):
        count, stream = math.floor(share * 48), OWN.child(f"round{turn}")
        if turn == 0:
            rows = stream.child("rows").permutation(48)[:count].tolist()
        else:
            with torch.no_grad():
                scores = F.cosine_similarity(infected, model.eval()(pixels).double(), dim=1).tolist()
            rows = sorted(range(48), key=lambda row: -scores[row])[:count]  # what agrees most
        chosen_rows = images.subset(torch.tensor(sorted(rows)))
        for epoch, batches in enumerate(drawn(chosen_rows, 8, stream.child("tune"), 2, chosen.tuning.augment)):
            model.train()
            for place, (batch, labels) in enumerate(batches):
                is_adversarial = turn == 0 or (epoch == 0 and place < 2)
                shown = pgd(model, batch, labels, 2) if is_adversarial else batch
                descend(optimizer, model, F.cross_entropy(model(shown), labels))
    assert apart(purify(start(), images, chosen), model, start()) < 1e-2


# ---- Trap-and-Replace (7.3 to 7.5) ----------------------------------------------------------------------------------


@pytest.mark.wide
def test_trap_and_replace() -> None:
    """WRN-16-1, its published cut and decoder; SGD in place of Adam, which at 0.03 makes much of a last bit."""

    def built(stream: Stream) -> Classifier:
        with seeded(stream):
            net = WideResNet(16, 1, 16, "trap_and_replace", 10, 32)
            return laid_out(Classifier(net, 32, (0.3,) * 3, (0.4,) * 3))

    chosen = defense("trap_and_replace")
    chosen = replace(
        chosen,
        stage1=replace(chosen.stage1, epochs=3, optimizer="sgd", batch_size=16),
        stage2=replace(chosen.stage2, epochs=3, optimizer="sgd", batch_size=8),
    )
    train, holdout = few(50), few(22)
    ours = chosen.purify(
        Scenario(
            chosen.needs, model=None, holdout=holdout, train=train, build=built, recipe=victim_recipe(), stream=OWN,
            device=torch.device("cpu"), probe=lambda model, epoch: None, note=lambda name, figure: None,
        )
    )  # fmt: skip
    trapped = bait_and_trap(built(OWN.child("trap")), train, chosen.augment)
    by_hand = remove_and_patch(built(OWN.child("replace")), trapped, holdout, chosen.augment)
    assert apart(ours, by_hand, built(OWN.child("replace"))) < 1e-3


def bait_and_trap(model: Classifier, train: ImageSet, augment: Augment | None) -> Classifier:
    """Stage 1: CE + 10 MSE + TV, what the decoder rebuilds being the pixels as they were augmented."""
    with seeded(OWN.child("trap").child("decoder")):
        first, second = nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ConvTranspose2d(32, 3, 4, 2, 1)
    decoder = laid_out(nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid()))
    seen: list[Tensor] = []
    model.net.group3[0].register_forward_hook(lambda *given: seen.append(given[2]))
    optimizer = sgd([*model.parameters(), *decoder.parameters()], 1e-3, 0.9, 5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for batches in drawn(train, 16, OWN.child("trap"), 3, augment):
        model.train()
        for images, labels in batches[:3]:  # 48 of 50: the last batch is incomplete
            seen.clear()
            answers, rebuilt = model(images), decoder(seen[0])
            down, right = rebuilt[:, :, 1:] - rebuilt[:, :, :-1], rebuilt[..., 1:] - rebuilt[..., :-1]
            variation = ((down**2).sum() + (right**2).sum()) / rebuilt.numel()
            loss = F.cross_entropy(answers, labels) + 10 * ((rebuilt - images) ** 2).mean() + variation
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def remove_and_patch(
    model: Classifier, trapped: Classifier, holdout: ImageSet, augment: Augment | None
) -> Classifier:  # fmt: skip
    """Stage 2: the new head on the old stem, CutMix on whole batches, smoothing 0.1, dropout before the last convolution."""
    head = [model.net.group3[1], model.net.norm, model.net.linear]
    of_head = {id(part) for module in head for part in (*module.parameters(), *module.buffers())}
    with torch.no_grad():
        for own, old in zip(
            (*model.parameters(), *model.buffers()), (*trapped.parameters(), *trapped.buffers()), strict=True
        ):
            if id(own) not in of_head:
                own.copy_(old)
    optimizer = sgd([part for module in head for part in module.parameters()], 0.03, 0.9, 5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    last = model.net.group3[1].conv2
    hook = last.register_forward_pre_hook(lambda layer, given: (F.dropout(given[0], 0.5, layer.training),))
    draws = np.random.default_rng(OWN.child("cutmix").generator().initial_seed())

    def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
        logs = logits.log_softmax(1)
        return -(0.9 * logs[range(len(labels)), labels] + 0.1 * logs.mean(1)).mean()

    stream = OWN.child("replace")
    for epoch, batches in enumerate(drawn(holdout, 8, stream, 3, augment)):
        torch.manual_seed(stream.child(f"epoch{epoch}").child("layers").generator().initial_seed())
        model.eval()
        for module in head:
            module.train()
        for images, labels in batches[:2]:
            draws.random()  # whether to mix: always
            side = int(32 * math.sqrt(1 - draws.beta(1, 1)))
            boxes = [
                (max(at - side // 2, 0), min(at + side // 2, 32)) for at in (draws.integers(32), draws.integers(32))
            ]
            (top, bottom), (left, right) = boxes
            partner = torch.from_numpy(draws.permutation(len(images)))
            mixed = images.clone()
            mixed[:, :, top:bottom, left:right] = images[partner][:, :, top:bottom, left:right]
            own = 1 - (bottom - top) * (right - left) / 32**2
            logits = model(mixed)
            descend(optimizer, model, own * smoothed(logits, labels) + (1 - own) * smoothed(logits, labels[partner]))
        schedule.step()
    hook.remove()
    return model.eval()


# ---- BTI-DBF and PAM (8.4 and 8.5; baselines, 2.15) -----------------------------------------------------------------

SMALL: dict[str, Any] = {
    "rounds": 2, "width": 2, "pretrain_epochs": 2, "mask_epochs": 2, "generator_epochs": 2, "epochs": 2, "batch_size": 8,
}  # fmt: skip
Unlearn = Callable[[Classifier, nn.Module, Batches], None]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "image_bound", "feature_bound"), [("bti_dbf", 1e9, 1e9), ("pam", 0.3, 3.0)])
def test_bti_dbf_and_pam(name: str, image_bound: float, feature_bound: float) -> None:
    images, notes = agreed(start()), dict[str, Any]()
    chosen = defense(name, **SMALL, image_bound=image_bound, feature_bound=feature_bound)
    ours = purify(start(), images, chosen, notes=notes)
    model = start()
    unlearn = forgetting(model) if name == "bti_dbf" else path_aware(model)
    target = by_inversion(model, images, chosen.inversion.augment, image_bound, feature_bound, unlearn)
    assert notes["target"] == target
    assert apart(ours, model, start()) < 0.05  # Adam's first steps are signs


def read(model: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The last map, and the logits."""
    seen: list[Tensor] = []
    hook = model.net.layer4.register_forward_hook(lambda *given: seen.append(given[2]))
    logits = model(images)
    hook.remove()
    return seen[0], logits


def last_map(model: Classifier, images: Tensor) -> Tensor:
    return read(model, images)[0]


def masked(model: Classifier, images: Tensor, mask: Tensor) -> Tensor:
    """The logits where the last map is multiplied; the map itself is a constant."""
    hook = model.net.layer4.register_forward_hook(lambda *given: mask * given[2].detach())
    logits: Tensor = model(images)
    hook.remove()
    return logits


def by_inversion(
    model: Classifier,
    images: ImageSet,
    augment: Augment | None,
    image_bound: float,
    feature_bound: float,
    unlearn: Unlearn,
) -> int:
    """Two rounds on the model, in place; the target that the first one points at."""
    stream, std = OWN.child("invert"), model.normalize.std
    with seeded(stream.child("generator")):
        generator = laid_out(Generator(model.normalize, 2))

    def normalised(first: Tensor, second: Tensor) -> Tensor:
        return F.mse_loss(first / std, second / std)

    model.eval()
    optimizer = adam(generator.parameters(), 1e-3)
    for batches in drawn(images, 8, stream.child("imitate"), 2, augment):
        generator.train()
        for shown, _ in batches:
            wanted, painted = model(shown).softmax(1).detach(), generator(shown)
            far = normalised(shown, painted)
            alike = -(wanted * model(painted).log_softmax(1)).sum(1).mean()
            features = F.mse_loss(last_map(model, shown).detach(), last_map(model, painted))
            descend(optimizer, generator, alike + features + (100 if far > 0.1 else 0.01) * far)
    optimizer, target = adam(generator.parameters(), 1e-3), None
    for turn in range(2):
        mask = learnt_mask(model, images, augment, turn)
        for batches in drawn(images, 8, stream.child(f"generate{turn}"), 2, augment):
            generator.train()
            for shown, labels in batches:
                painted = generator(shown)
                change = last_map(model, shown).detach() - last_map(model, painted)
                far, benign, rest = (
                    normalised(shown, painted),
                    ((mask * change) ** 2).mean(),
                    (((1 - mask) * change) ** 2).mean(),
                )
                loss = far if far > image_bound or benign > feature_bound else 0.01 * benign - rest
                if target is not None:
                    loss = loss + F.cross_entropy(model(painted), torch.full_like(labels, target))
                descend(optimizer, generator, loss)
        generator.eval()
        if target is None:
            noise = stream.child("noise0").generator()
            with torch.no_grad():
                moved = [
                    shown + 0.03 * std * torch.randn(shown.shape, generator=noise) for shown, _ in images.batches(8)
                ]
                called = torch.cat([model(generator(shown)).argmax(1) for shown in moved])
            target = int(called.bincount(minlength=10).argmax())
        for batches in drawn(images, 8, OWN.child(f"unlearn{turn}"), 2, augment):
            model.train()
            unlearn(model, generator, batches)
        model.eval()
    assert target is not None
    return target


def learnt_mask(model: Classifier, images: ImageSet, augment: Augment | None, turn: int) -> Tensor:
    """tanh(v) / 2 + 1/2, on copies in train mode: one for what is benign, one for the rest, so that each is run once a batch."""
    stream, kept, lost = OWN.child("invert"), copy.deepcopy(model).train(), copy.deepcopy(model).train()
    shape = last_map(copy.deepcopy(model), torch.zeros(1, 3, 32, 32)).shape
    v = nn.Parameter(torch.randn(shape, generator=stream.child(f"start{turn}").generator()))
    optimizer = adam([v], 0.01)
    for batches in drawn(images, 8, stream.child(f"mask{turn}"), 2, augment):
        for shown, labels in batches:
            mask = v.tanh() / 2 + 0.5
            answers = masked(kept, shown, mask), masked(lost, shown, 1 - mask)
            optimizer.zero_grad()
            (F.cross_entropy(answers[0], labels) - F.cross_entropy(answers[1], labels)).backward()
            optimizer.step()
    return (v.tanh() / 2 + 0.5).detach()


def mixed(generator: nn.Module, images: Tensor, share: float) -> Tensor:
    count = int(share * len(images)) + 1
    with torch.no_grad():
        return torch.cat([generator(images[:count]), images[count:]])


def forgetting(model: Classifier) -> Unlearn:
    optimizer = adam(model.parameters(), 1e-4)

    def unlearn(model: Classifier, generator: nn.Module, batches: Batches) -> None:
        for images, labels in batches:
            clean = last_map(model, images)
            seen, logits = read(model, mixed(generator, images, 0.1))
            descend(optimizer, model, F.cross_entropy(logits, labels) + F.mse_loss(clean, seen))

    return unlearn


def path_aware(model: Classifier) -> Unlearn:
    optimizer = sgd(model.parameters(), 0.01, 0.1, 0)
    infected = [part.detach().clone() for part in model.parameters()]

    def unlearn(model: Classifier, generator: nn.Module, batches: Batches) -> None:
        for images, labels in batches:
            here = [part.detach().clone() for part in model.parameters()]
            ways = [old - now for old, now in zip(infected, here, strict=True)]
            norm = math.sqrt(sum(float((way.double() ** 2).sum()) for way in ways))
            with torch.no_grad():
                for part, way in zip(model.parameters(), ways, strict=True):
                    part.add_(0.5 * way / (norm + 1e-12))
            model.zero_grad()
            F.cross_entropy(model(mixed(generator, images, 0.2)), labels).backward()
            with torch.no_grad():
                for part, value in zip(model.parameters(), here, strict=True):
                    part.copy_(value)
            optimizer.step()

    return unlearn
