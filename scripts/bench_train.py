"""Training speed, side by side in one run: `fit`, a plain float32 DataLoader loop, and the bare loop on one resident batch.

    python scripts/bench_train.py [--root DIR/cifar10] [--images 2000] [--repeats 3]

PreAct-ResNet-18 at full width, batch 128, crop and flip, one epoch each, interleaved; medians. Without --root the images
are random bytes, which cost the same. The plain loop is what peers write: PIL transforms an image at a time, DataLoader,
float32. The bare loop is the least that one step can cost: bf16, one batch that already lies on the device. On a GPU it
also prints the share of the matrix rate measured here and the time of 100 epochs of 50,000 images.
Exit code 1 where fit is below 2x the plain loop, or below 0.95 of the bare one.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from stopwatch import seconds
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backdoorbench import api, device, progress
from backdoorbench.data.images import ImageSet
from backdoorbench.models.base import Classifier
from backdoorbench.models.preact_resnet import PreActResNetSpec
from backdoorbench.screen import Silent
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment
from backdoorbench.training.fit import fit
from backdoorbench.training.recipe import Recipe, bare_recipe

BATCH, LR, AUGMENT = 128, 0.1, Augment(crop_padding=4, flip=True, rotation=0.0, resized_crop=None, crop=None)


def network(where: torch.device) -> nn.Module:
    spec = PreActResNetSpec(name="preact_resnet18", checkpoint=None, depth=18, width=64)
    return Classifier(spec.net(10, 32), 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)).to(where)


def recipe(epochs: int) -> Recipe:
    return bare_recipe(
        "bench", optimizer="sgd", epochs=epochs, batch_size=BATCH, lr=LR, momentum=0.9, weight_decay=5e-4, schedule="cosine",
        augment=AUGMENT, precision="bf16",
    )  # fmt: skip


def ours(data: ImageSet) -> Callable[[], None]:
    model = network(data.device)
    return lambda: fit(model, data, recipe(1), Stream(0)) and None


def plain(data: ImageSet) -> Callable[[], None]:
    """One image at a time through PIL, float32, default layout, as script collections do it."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    steps = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in data.images.cpu()]
    labels = data.labels.tolist()

    class Pictures(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return steps(pictures[row]), labels[row]

    loader = DataLoader(Pictures(), BATCH, shuffle=True, num_workers=2, pin_memory=data.device.type == "cuda")
    model = network(data.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)

    def epoch() -> None:
        for images, wanted in loader:
            loss = F.cross_entropy(model(images.to(data.device)), wanted.to(data.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def bare(data: ImageSet) -> Callable[[], None]:
    """Forward, backward and step on one batch that never changes."""
    model = network(data.device).train().to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 3, 32, 32, device=data.device).contiguous(memory_format=torch.channels_last)
    wanted = torch.arange(BATCH, device=data.device) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, fused=True)

    def epoch() -> None:
        for _ in range(len(data) // BATCH):
            with torch.autocast(data.device.type, dtype=torch.bfloat16):
                loss = F.cross_entropy(model(images).float(), wanted)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return epoch


def matrix_rate(where: torch.device) -> float:
    """Floating-point operations a second of a large bf16 matrix product."""
    side = 8192
    a, b = (torch.rand(side, side, device=where, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(lambda: a @ b, where) for _ in range(20)]
    return 2 * side**3 / min(times)


def flops_per_image(where: torch.device) -> float:
    """Forward and backward."""
    model = network(where)
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(8, 3, 32, 32, device=where)).sum().backward()
    return counter.get_total_flops() / 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="CIFAR-10's folder; random bytes without it")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    progress.install(Silent())
    where = device.choose("auto")
    device.prepare(where, None)
    if chosen.root is not None:
        data = api.load_dataset("cifar10", root=str(chosen.root), train_size=chosen.images)[0].to(where)
    else:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (chosen.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
        data = ImageSet(images, torch.arange(chosen.images) % 10, tuple("0123456789")).to(where)
    works = {"plain": plain(data), "bare": bare(data), "fit": ours(data)}
    counts = {"plain": len(data), "bare": len(data) // BATCH * BATCH, "fit": len(data)}
    if where.type == "cuda":
        for work in works.values():
            work()  # autotuning
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(chosen.repeats):
        for name, work in works.items():
            rates[name].append(counts[name] / seconds(work, where))
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"PreAct-ResNet-18, {len(data)} images of 32 px, torch {torch.__version__}, {device.describe(where)}")
    for name, label in (("plain", "float32 DataLoader loop"), ("bare", "bare bf16 loop"), ("fit", "fit")):
        print(f"  {label:<24} {median[name]:>10,.0f} images/s   {', '.join(f'{r:,.0f}' for r in rates[name])}")
    against_plain, against_bare = median["fit"] / median["plain"], median["fit"] / median["bare"]
    print(f"  fit / plain {against_plain:.2f}   fit / bare {against_bare:.3f}")
    if where.type == "cuda":
        share = median["fit"] * flops_per_image(where) / matrix_rate(where)
        print(
            f"  {share:.1%} of the bf16 matrix rate measured here; 100 epochs of 50,000 in {5e6 / median['fit']:,.0f} s"
        )
    return 0 if against_plain >= 2 and against_bare >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
