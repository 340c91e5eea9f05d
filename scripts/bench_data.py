"""Images a second of our batched data path beside the per-image path through PIL, in one run on this machine.

    python scripts/bench_data.py                      # 10,000 synthetic images of 32 x 32
    python scripts/bench_data.py --root data/cifar10  # real ones: train/<class>/*.jpg

Both crop with a border of 4, flip and hand out float batches of 128; first they get the same offsets and must return
the same bits. The per-image path (torchvision transforms, torch DataLoader) runs with 0 and 2 lasting workers; the
faster counts. Medians of interleaved epochs. Exit code 1 where ours on the CPU is less than five times as fast.
Measure an idle machine: threads that wait for busy cores spin, unless OMP_WAIT_POLICY=PASSIVE is set.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional

from backdoorbench.data.images import ImageSet
from backdoorbench.streams import Stream
from backdoorbench.tensors.augment import Augment

SIDE, PADDING, BATCH = 32, 4, 128
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
AUGMENT = Augment(crop_padding=PADDING, flip=True, rotation=0.0, resized_crop=None, crop=None)


class PerImage(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR-10 class does: an array row becomes a PIL image, then passes the transforms."""

    def __init__(self, data: ImageSet) -> None:
        self.rows = data.images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, H, W, 3) uint8
        self.labels = data.labels.tolist()
        steps = [transforms.RandomCrop(SIDE, padding=PADDING), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.rows[row])), self.labels[row]


def load(root: Path | None, count: int) -> ImageSet:
    """Up to `count` images below root/train, or as many random ones."""
    if root is None:
        images = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=Stream(0).generator())
        return ImageSet(images, torch.arange(count) % 10, tuple("0123456789"))
    if not (found := sorted(root.glob("train/*/*.jpg"))):
        sys.exit(f"no images below {root}; expected train/<class>/*.jpg")
    paths = found[:: max(1, len(found) // count)][:count]
    classes = sorted({path.parent.name for path in paths})
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    rows = [Image.open(path).convert("RGB").resize((SIDE, SIDE)) for path in paths]
    return ImageSet(torch.stack([functional.pil_to_tensor(row) for row in rows]), labels, tuple(classes))


def check_equal(data: ImageSet) -> int:
    """The number of images compared, all bit-equal between the paths for the same offsets; exits where one differs."""
    count = min(len(data), 1000)
    draws = AUGMENT.draw(count, SIDE, Stream(0))
    batch = AUGMENT.apply(data.images[:count], draws)
    assert draws.offsets is not None and draws.mirrored is not None
    for row, (top, left), mirrored in zip(range(count), draws.offsets.tolist(), draws.mirrored.tolist(), strict=True):
        image = functional.pad(Image.fromarray(data.images[row].permute(1, 2, 0).numpy()), [PADDING])
        image = functional.crop(image, top, left, SIDE, SIDE)
        if not torch.equal(functional.to_tensor(functional.hflip(image) if mirrored else image), batch[row]):
            sys.exit(f"the two paths differ at image {row}, crop at ({top}, {left}), mirrored: {mirrored}")
    return count


def rate(batches: Batches) -> float:
    """Images a second over one pass."""
    start, count = time.perf_counter(), 0
    for images, _ in batches():
        count += len(images)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder with train/<class>/*.jpg; synthetic images without it")
    args = parser.parse_args()
    data = load(args.root, 10_000)
    print(f"{check_equal(data)} images equal bit by bit, same offsets; {len(data)} images timed, batches of {BATCH}")
    paths: dict[str, Batches] = {}
    for workers in (0, 2):
        loader = DataLoader(PerImage(data), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        paths[f"per image, {workers} workers"] = loader.__iter__
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        paths[f"batched, {device}"] = partial(data.to(device).batches, BATCH, Stream(0).child("epoch"), AUGMENT)
    for batches in paths.values():
        rate(batches)  # starts workers, fills caches
    rounds = [{name: rate(batches) for name, batches in paths.items()} for _ in range(3)]
    median = {name: statistics.median(result[name] for result in rounds) for name in paths}

    opponent = max(median["per image, 0 workers"], median["per image, 2 workers"])
    print(f"\n{'path':24}{'images/s':>12}{'ratio':>10}")
    for name, value in median.items():
        print(f"{name:24}{value:12,.0f}{value / opponent:10.1f}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"\n{os.cpu_count()} cores, {torch.get_num_threads()} threads, {gpu}, torch {torch.__version__}")
    if median["batched, cpu"] < 5 * opponent:
        sys.exit("the batched path on the CPU is less than five times as fast")


if __name__ == "__main__":
    main()
