"""What five defenses cost, side by side in one run with the same steps as a script collection takes them.

    python scripts/bench_defenses.py [ft anp nad i_bau ft_sam] [--model preact_resnet18] [--images 256] [--clock wall]

The plain loop is float32, rows of channels apart (NCHW); its images are read, cropped, flipped and made tensors one by one by
torchvision in a DataLoader, and its steps are written straight down below: model, images, batch size and number of steps are the
same. Settings are the methods' own but for their length (SHORT). Interleaved; medians; each runs once before. `--clock cpu` is
the processor's time, for a machine that does other things too (then with --threads 1).
Exit code 1 where a defense takes more than `--most` of the plain loop.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from backdoorbench import device, progress
from backdoorbench.config.build import build
from backdoorbench.config.compose import compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.base import Scenario
from backdoorbench.models.base import Classifier
from backdoorbench.models.surgery import stages
from backdoorbench.screen import Silent
from backdoorbench.streams import Stream
from backdoorbench.training.recipe import resolve_precision

SHORT = {
    "ft": {"epochs": 2},
    "anp": {"iterations": 4},
    "nad": {"teacher_epochs": 1, "epochs": 1},
    "i_bau": {"rounds": 1},
    "ft_sam": {"epochs": 1},
}

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


# ---- the plain loops ------------------------------------------------------------------------------------------------


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as a script collection reads them: one by one, through PIL."""

    def __init__(self, data: ImageSet, augment: bool) -> None:
        moves = [transforms.RandomCrop(data.images.shape[-1], padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*(moves if augment else []), transforms.ToTensor()])
        self.images = [transforms.functional.to_pil_image(image) for image in data.images]
        self.labels = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.transform(self.images[place]), self.labels[place]


def sgd(model: nn.Module, settings: dict[str, float]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )


def plain_ft(model: nn.Module, batches: Batches, settings: dict[str, float]) -> None:
    optimizer = sgd(model.train(), settings)
    for _ in range(int(settings["epochs"])):
        for images, labels in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()


def plain_ft_sam(model: nn.Module, batches: Batches, settings: dict[str, float]) -> None:
    optimizer = sgd(model.train(), settings)
    weights = list(model.parameters())
    for _ in range(int(settings["epochs"])):
        for images, labels in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            with torch.no_grad():
                norm = torch.stack([(w * w.grad).norm() for w in weights if w.grad is not None]).norm()
                moves = [w.square() * w.grad * (settings["rho"] / norm) for w in weights if w.grad is not None]
                for weight, move in zip(weights, moves, strict=True):
                    weight.add_(move)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
            with torch.no_grad():
                for weight, move in zip(weights, moves, strict=True):
                    weight.sub_(move)
            optimizer.step()


def plain_nad(model: nn.Module, batches: Batches, settings: dict[str, float]) -> None:
    """Teacher, then the student beside it; the attention of the last three stages, taken by hooks."""
    names = [stage.name for stage in stages(model)][-3:]
    teacher = copy.deepcopy(model)
    plain_ft(teacher, batches, {**settings, "epochs": settings["teacher_epochs"]})
    teacher.eval()
    optimizer, maps = sgd(model.train(), settings), {}

    def keep(key: tuple[int, str]) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda module, _, out: maps.__setitem__(key, out)

    for network in (model, teacher):
        for name in names:
            network.get_submodule(name).register_forward_hook(keep((id(network), name)))

    def attention(network: nn.Module, name: str) -> Tensor:
        return F.normalize(maps[id(network), name].square().mean(1).flatten(1))

    for _ in range(int(settings["epochs"])):
        for images, labels in batches():
            optimizer.zero_grad()
            with torch.no_grad():
                teacher(images)
            loss = F.cross_entropy(model(images), labels)
            for name in names:
                loss = loss + 1000 * (attention(model, name) - attention(teacher, name)).square().mean()
            loss.backward()
            optimizer.step()


def plain_anp(model: nn.Module, batches: Batches, settings: dict[str, float]) -> None:
    """Masks and noise on every batch norm, by copies of its scale and shift."""
    model.train()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    masks = {name: torch.ones_like(norm.weight).requires_grad_() for name, norm in norms.items()}
    optimizer = torch.optim.SGD(list(masks.values()), settings["lr"], momentum=settings["momentum"])

    def loss(images: Tensor, labels: Tensor, delta: dict[str, Tensor], xi: dict[str, Tensor]) -> Tensor:
        changed = {}
        for name, norm in norms.items():
            changed[f"{name}.weight"] = norm.weight * (masks[name] + delta[name])
            changed[f"{name}.bias"] = norm.bias * (1 + xi[name])
        return F.cross_entropy(functional_call(model, changed, (images,)), labels)

    still = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    done = 0
    while done < settings["iterations"]:
        for images, labels in batches():
            start = [torch.empty_like(m).uniform_(-settings["eps"], settings["eps"]) for m in (*masks.values(),) * 2]
            noise = [part.requires_grad_() for part in start]
            delta = dict(zip(masks, noise[: len(masks)], strict=True))
            xi = dict(zip(masks, noise[len(masks) :], strict=True))
            slopes = torch.autograd.grad(loss(images, labels, delta, xi), noise)
            moved = [(n + settings["eps"] * s.sign()).detach() for n, s in zip(noise, slopes, strict=True)]
            delta = dict(zip(masks, moved[: len(masks)], strict=True))
            xi = dict(zip(masks, moved[len(masks) :], strict=True))
            optimizer.zero_grad()
            both = settings["alpha"] * loss(images, labels, still, still)
            (both + (1 - settings["alpha"]) * loss(images, labels, delta, xi)).backward()
            optimizer.step()
            with torch.no_grad():
                for mask in masks.values():
                    mask.clamp_(0, 1)
            done += 1
            if done == settings["iterations"]:
                return


def plain_i_bau(model: nn.Module, batches: Batches, settings: dict[str, float]) -> None:
    model.eval()
    weights = list(model.parameters())
    optimizer = torch.optim.Adam(weights, settings["lr"])
    first, truth = next(batches())
    for _ in range(int(settings["rounds"])):
        delta = torch.zeros_like(first[:1])
        for images, _ in batches():
            delta.requires_grad_()
            with torch.no_grad():
                said = model(images).argmax(1)
            inner = settings["penalty"] * delta.square().sum() - F.cross_entropy(model(images + delta), said)
            (slope,) = torch.autograd.grad(inner, delta)
            delta = (delta - settings["perturbation_lr"] * slope).detach()
        for images, labels in batches():
            delta.requires_grad_()
            shown = torch.cat([images[:1] + delta, images[1:]])
            pull, *direct = torch.autograd.grad(F.cross_entropy(model(shown), labels), [delta, *weights])
            inner = settings["penalty"] * delta.square().sum() - F.cross_entropy(model(first + delta), truth)
            (slope,) = torch.autograd.grad(inner, delta, create_graph=True)
            mapped, v = delta - settings["inner_step"] * slope, torch.zeros_like(delta)
            for _ in range(int(settings["fixed_point_steps"])):
                v = torch.autograd.grad(mapped, delta, v, retain_graph=True)[0] + pull
            through = torch.autograd.grad(mapped, weights, v, allow_unused=True)
            for weight, one, other in zip(weights, direct, through, strict=True):
                weight.grad = one if other is None else one + other
            optimizer.step()
            delta = delta.detach()


PLAIN = {"ft": plain_ft, "anp": plain_anp, "nad": plain_nad, "i_bau": plain_i_bau, "ft_sam": plain_ft_sam}


# ---- ours, and the clock --------------------------------------------------------------------------------------------


def network(words: list[str]) -> nn.Module:
    config = compose(words)
    dataset = config["dataset"]
    torch.manual_seed(0)
    net = build(config["model"], "model").net(10, 32)
    model = Classifier(net, 32, tuple(dataset["mean"]), tuple(dataset["std"]))
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def settings_of(name: str, words: list[str]) -> dict[str, float]:
    return dict(compose([*words, f"defense={name}"])["defense"]) | SHORT[name]


def ours(name: str, words: list[str], model: nn.Module, data: ImageSet) -> Callable[[], None]:
    short = [f"defense.{key}={value}" for key, value in SHORT[name].items()]
    config = compose([*words, f"defense={name}", *short])
    defense, recipe = build(config["defense"], "defense"), build(config["train"], "train")
    recipe = replace(recipe, precision=resolve_precision(recipe.precision, data.device))

    def run() -> None:
        scenario = Scenario(
            defense.needs, model=copy.deepcopy(model), holdout=data, train=None, build=lambda stream: copy.deepcopy(model),
            recipe=recipe, stream=Stream(0), device=data.device, probe=lambda network, epoch: None, note=lambda key, value: None,
        )  # fmt: skip
        defense.purify(scenario)

    return run


def plain(name: str, words: list[str], model: nn.Module, data: ImageSet) -> Callable[[], None]:
    settings = settings_of(name, words)
    pictures = Pictures(data, augment=name != "i_bau")
    loader = DataLoader(pictures, int(settings["batch_size"]), shuffle=True)
    fresh = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    return lambda: PLAIN[name](copy.deepcopy(fresh), lambda: iter(loader), settings)


@contextmanager
def timed(clock: Callable[[], float], times: list[float]) -> Iterator[None]:
    start = clock()
    yield
    times.append(clock() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("defenses", nargs="*", default=list(PLAIN), help=f"of {', '.join(PLAIN)}")
    parser.add_argument("--model", default="preact_resnet18")
    parser.add_argument("--images", type=int, default=256, help="of the holdout")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--most", type=float, default=0.5, help="of the plain loop's time")
    chosen = parser.parse_args()
    progress.install(Silent())
    where = device.choose("cpu")
    device.prepare(where, chosen.threads)
    words = ["dataset=cifar10", f"model={chosen.model}", "train=fast"]
    model = network(words)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (chosen.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = ImageSet(images, torch.arange(chosen.images) % 10, tuple("0123456789"))
    clock = time.perf_counter if chosen.clock == "wall" else time.process_time
    print(
        f"{chosen.model} at 32 px, {chosen.images} images, torch {torch.__version__}, {device.describe(where)}, "
        f"{torch.get_num_threads()} threads"
    )
    slow = False
    for name in chosen.defenses:
        works = {"ours": ours(name, words, model, data), "plain": plain(name, words, model, data)}
        times: dict[str, list[float]] = {key: [] for key in works}
        for turn in range(chosen.repeats + 1):
            for key, work in works.items():
                with timed(clock, times[key] if turn else []):
                    work()
        mine, theirs = (statistics.median(times[key]) for key in ("ours", "plain"))
        slow |= mine > chosen.most * theirs
        print(
            f"  {name:<8} {mine:7.1f} s of {theirs:7.1f} s, {chosen.clock} clock: {mine / theirs:.2f}"
            f"   ({', '.join(f'{one / other:.2f}' for one, other in zip(times['ours'], times['plain'], strict=True))})",
            flush=True,
        )
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
