"""What an attack does, without training anything: `bdx preview` draws its trigger, `bdx export` writes the poisoned set."""

import csv
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench import cache
from backdoorbench.attacks.base import DataAttack, Task
from backdoorbench.data.images import ImageSet
from backdoorbench.errors import ConfigError, StorageError
from backdoorbench.infections import load_infection
from backdoorbench.pipeline import Plan, build_network, clean_plan
from backdoorbench.reporting import picture
from backdoorbench.shapes import Images, Rows
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Trigger

MEASURED = 300  # test images, at most, that the figures of a preview are taken over
WINDOW, SIGMA = 11, 1.5  # of SSIM, pixels


def preview(made: Plan, file: Path, shown: int) -> dict[str, float]:
    """Draws `shown` test images, clean, triggered and their difference, to `file`, a PNG; how visible the trigger is: medians
    over test images of PSNR (dB) and SSIM, and the largest change of all, in grey levels."""
    trigger = find_trigger(made)
    test = made.splits.test
    rows = torch.linspace(0, len(test) - 1, min(MEASURED, len(test))).long()
    clean, _ = next(test.subset(rows).to(made.device).batches(len(rows)))
    with torch.no_grad():
        triggered = trigger(clean)
    few = torch.linspace(0, len(rows) - 1, shown).long()
    with cache.storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    picture.write_gallery(clean[few].cpu(), triggered[few].cpu(), file)
    return {
        "psnr": float(psnr(clean, triggered).median()),
        "ssim": float(ssim(clean, triggered).median()),
        "largest_levels": float((clean - triggered).abs().max()) * 255,
    }


def find_trigger(made: Plan) -> Trigger:
    """The trigger of the plan's attack: a cached infection's, or the attack's own. ConfigError where there is none yet."""
    folder = made.outputs / "cache" / "infection" / f"{made.attack.name}-{made.dataset.name}-{made.infection_key}"
    if folder.is_dir():
        found = load_infection(folder, build_network(made, Stream(0)), made.parts.train.to(made.device))[0].trigger
    else:
        found = made.attack.test_trigger(task(made), made.stream.child("infect"))
    if found is None and made.attack.name == "none":
        raise ConfigError("attack=none has no trigger to preview; choose an attack, such as attack=badnets.")
    if found is None:
        raise ConfigError(
            f"attack={made.attack.name} learns its trigger in training, and no infection with these settings is cached; run it "
            f"first, then preview it with the same settings."
        )
    return found


def task(made: Plan) -> Task:
    """What the attacker would be handed; asked for a surrogate that is not cached, it raises ConfigError."""
    train = made.parts.train.to(made.device)

    def surrogate() -> nn.Module:
        clean = clean_plan(made)
        folder = made.outputs / "cache" / "infection" / f"none-{made.dataset.name}-{clean.infection_key}"
        if not folder.is_dir():
            raise ConfigError(
                f"attack={made.attack.name} crafts on a clean model of the same recipe, and none with these settings is "
                f"cached; train one first, with attack=none defense=none and the same settings."
            )
        return load_infection(folder, build_network(made, Stream(0)), train)[0].model

    return Task(train, lambda inner: build_network(made, inner), made.recipe, None, surrogate)


def export(made: Plan, folder: Path, form: str) -> dict[str, int]:
    """Writes the training set that the victim would see, with for each image its given and its true label, whether it is
    poisoned, and the row of the clean training set it was made from; the attack's counts.

    form  png: images/<given class>/<number>.png and labels.csv; npz: train.npz with images (N, H, W, 3) uint8, given, true,
          poisoned, source and classes

    ConfigError for an attack that leaves no training set, StorageError for a folder that holds something."""
    attack = made.attack
    if not isinstance(attack, DataAttack):
        raise ConfigError(
            f"attack={attack.name} leaves no poisoned training set to export; expected one that poisons data, such as "
            f"attack=badnets. bdx list attack describes them."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise StorageError(
            f"'{folder}' is not empty; expected a new folder, so that nothing is overwritten. Name another."
        )
    stream = made.stream.child("infect")
    own = task(made)
    clean = own.train
    _, train, poisoned, counts = attack.plant(own, stream)
    source = sources(attack, clean, len(train), stream)
    true = clean.labels.cpu()[source]
    write = write_png if form == "png" else write_npz
    with cache.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write(train, true, poisoned, source, folder)
    return counts


def sources(attack: DataAttack, clean: ImageSet, count: int, stream: Stream) -> Rows:
    """(count,) the clean row that each row of the poisoned set was made from: itself, or for appended rows the drawn one."""
    own = torch.arange(len(clean))
    if count == len(clean):
        return own
    target = attack.make_target(len(clean.classes))
    rows = attack.choose(clean.labels, target, stream.child("rows"))
    covers = attack.choose_covers(clean.labels, target, rows, stream.child("cover"))
    return torch.cat([own, rows, covers])


def write_png(train: ImageSet, true: Tensor, poisoned: Tensor, source: Rows, folder: Path) -> None:
    """A folder a class, named by its number, and a table."""
    from PIL import Image

    given, buffer = train.labels.tolist(), io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["file", "given", "true", "poisoned", "source"])
    for label in sorted(set(given)):
        (folder / "images" / str(label)).mkdir(parents=True)
    for row, image in enumerate(train.images.cpu().permute(0, 2, 3, 1).numpy()):
        name = f"images/{given[row]}/{row:06d}.png"
        Image.fromarray(np.ascontiguousarray(image)).save(folder / name)
        table.writerow([name, given[row], int(true[row]), int(poisoned[row]), int(source[row])])
    cache.write_text(folder / "labels.csv", buffer.getvalue())


def write_npz(train: ImageSet, true: Tensor, poisoned: Tensor, source: Rows, folder: Path) -> None:
    """One compressed file of arrays; none of them needs pickle."""
    np.savez_compressed(
        folder / "train.npz",
        images=train.images.cpu().permute(0, 2, 3, 1).numpy(),
        given=train.labels.cpu().numpy(),
        true=true.numpy(),
        poisoned=poisoned.cpu().numpy(),
        source=source.numpy(),
        classes=np.array(train.classes),
    )


def psnr(clean: Images, other: Images) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB; infinite for equal images."""
    return -10 * (clean - other).square().mean((1, 2, 3)).log10()


def ssim(clean: Images, other: Images) -> Tensor:
    """(N,) structural similarity (Wang et al. 2004): Gaussian windows of 11 pixels, sigma 1.5, inside the image; channels
    averaged."""
    clean, other = clean.double(), other.double()  # a variance is a small difference
    line = torch.exp(
        -0.5 * ((torch.arange(WINDOW, dtype=torch.float64, device=clean.device) - WINDOW // 2) / SIGMA) ** 2
    )
    window = (line / line.sum()).outer(line / line.sum()).expand(3, 1, WINDOW, WINDOW)

    def mean(values: Images) -> Images:
        return F.conv2d(values, window, groups=3)

    first, second = mean(clean), mean(other)
    variances = mean(clean.square()) - first.square(), mean(other.square()) - second.square()
    covariance = mean(clean * other) - first * second
    small, smaller = 0.01**2, 0.03**2
    light = (2 * first * second + small) / (first.square() + second.square() + small)
    shape = (2 * covariance + smaller) / (variances[0] + variances[1] + smaller)
    return (light * shape).mean((1, 2, 3)).float()
