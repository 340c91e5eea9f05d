"""`bdx preview`: an attack's trigger, drawn and measured, without training anything."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backdoorbench import cache
from backdoorbench.attacks.base import Task
from backdoorbench.errors import ConfigError
from backdoorbench.infections import load_infection
from backdoorbench.pipeline import Plan, build_network, clean_plan
from backdoorbench.reporting import picture
from backdoorbench.shapes import Images
from backdoorbench.streams import Stream
from backdoorbench.triggers.base import Trigger

MEASURED = 300  # test images, at most, that the figures of a preview are taken over
WINDOW, SIGMA = 11, 1.5  # of SSIM, pixels


def draw(made: Plan, file: Path, shown: int) -> dict[str, float]:
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
