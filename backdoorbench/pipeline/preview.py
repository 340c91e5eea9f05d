"""`bdx preview`: an attack's trigger, drawn and measured, without training anything."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from backdoorbench.attacks.base import Task
from backdoorbench.errors import ConfigError
from backdoorbench.pipeline.infect import build_network
from backdoorbench.pipeline.infections import load_infection, load_network
from backdoorbench.pipeline.plan import Plan, clean_plan, network_folder
from backdoorbench.reporting import picture
from backdoorbench.shapes import Images
from backdoorbench.storage import store
from backdoorbench.streams import Stream
from backdoorbench.tensors.similarity import local_change, psnr, ssim
from backdoorbench.triggers.base import Trigger

MEASURED = 300  # test images, at most, that the figures of a preview are taken over


@dataclass(frozen=True)
class Look:
    """A trigger on some images, and how visible it is.

    clean, triggered  (M, 3, H, W)
    figures           medians over test images of PSNR (dB), SSIM and the largest mean change around a pixel; the largest change
                      of all; both in grey levels
    """

    clean: Images
    triggered: Images
    figures: dict[str, float]

    def __str__(self) -> str:
        said = self.figures
        return (
            f"PSNR {said['psnr']:.1f} dB, SSIM {said['ssim']:.3f}, change around a pixel up to {said['local_levels']:.0f} of 255 "
            f"(medians), largest change {said['largest_levels']:.0f} of 255"
        )


def look(made: Plan, shown: int) -> Look:
    """The trigger of a plan's attack on `shown` test images."""
    trigger = find_trigger(made)
    test = made.splits.test
    rows = torch.linspace(0, len(test) - 1, min(MEASURED, len(test))).long()
    clean, _ = next(test.subset(rows).to(made.device).batches(len(rows)))
    with torch.no_grad():
        triggered = trigger(clean)
    few = torch.linspace(0, len(rows) - 1, shown).long()
    figures = {
        "psnr": float(psnr(clean, triggered).median()),
        "ssim": float(ssim(clean, triggered).median()),
        "local_levels": float(local_change(clean, triggered).median()) * 255,
        "largest_levels": float((clean - triggered).abs().max()) * 255,
    }
    return Look(clean[few].cpu(), triggered[few].cpu(), figures)


def draw(seen: Look, file: Path) -> None:
    """Clean, triggered and their difference as a PNG."""
    with store.storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    picture.write_gallery(seen.clean, seen.triggered, file)


def find_trigger(made: Plan) -> Trigger:
    """The trigger of the plan's attack: a cached infection's, or the attack's own. ConfigError where there is none yet."""
    folder = made.infection_folder
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
    """What the attacker would be handed; asked for a surrogate or a network that is not cached, it raises ConfigError."""
    train = made.parts.train.to(made.device)

    def surrogate() -> nn.Module:
        clean = clean_plan(made)
        folder = clean.infection_folder
        if not folder.is_dir():
            raise ConfigError(
                f"attack={made.attack.name} crafts on a clean model of the same recipe, and none with these settings is "
                f"cached; train one first, with attack=none defense=none and the same settings."
            )
        return load_infection(folder, build_network(made, Stream(0)), train)[0].model

    def network() -> nn.Module:
        folder, _ = network_folder(made)
        if not folder.is_dir():
            raise ConfigError(
                f"attack={made.attack.name} hides its trigger by a network, and none for these data and settings is cached; run "
                f"it once, at any poison rate and seed, with defense=none."
            )
        return load_network(folder, made.device)

    return Task(train, lambda inner: build_network(made, inner), made.recipe, None, surrogate, network)
