"""`bdx export`: the poisoned training set as files, for those who train elsewhere; nothing is trained here."""

import csv
import io
from pathlib import Path

import numpy as np

from backdoorbench.attacks.base import DataAttack, PoisonedSet, check_counts
from backdoorbench.errors import ConfigError, StorageError
from backdoorbench.pipeline.plan import Plan
from backdoorbench.pipeline.preview import find_trigger, task
from backdoorbench.shapes import Labels
from backdoorbench.storage import store


def write(made: Plan, folder: Path, form: str) -> dict[str, int]:
    """Writes the training set that the victim would see, with for each image its given and its true label, whether it is
    poisoned or covered (triggered with its label kept), and the row of the clean training set it was made from; the attack's
    counts.

    form  png: images/<number of the given class>/<row>.png and labels.csv; npz: train.npz with images (N, H, W, 3) uint8, given,
          true, poisoned, covered, source and classes

    Of an attacker who drives the training himself, with reconstruct=true, the set that a defense would be given. ConfigError for
    an attack that leaves no training set, StorageError for a folder that holds something."""
    attack = made.attack
    if not isinstance(attack, DataAttack) and not (attack.can_rebuild and made.config["reconstruct"]):
        remedy = "; or add reconstruct=true, which rebuilds one with its trigger" if attack.can_rebuild else ""
        raise ConfigError(
            f"attack={attack.name} leaves no poisoned training set to export; expected one that poisons data, such as "
            f"attack=badnets{remedy}. bdx list attack describes them."
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise StorageError(
            f"'{folder}' is not empty; expected a new folder, so that nothing is overwritten. Name another."
        )
    clean = made.parts.train.to(made.device)
    if isinstance(attack, DataAttack):
        found = attack.plant(task(made), made.stream.child("infect"))[1]
    else:
        found = attack.rebuild(clean, find_trigger(made), made.stream.child("rebuild"))
    check_counts(attack, clean, found, "Nothing was written")
    true = made.parts.train.labels.cpu()[found.source]
    with store.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (write_png if form == "png" else write_npz)(found, true, folder)
    return found.counts


def write_png(made: PoisonedSet, true: Labels, folder: Path) -> None:
    """A folder a class, named by its number, and a table. Numbers are of one length, since torchvision's ImageFolder counts
    folders in the order of their names as text, and a class without an image has its folder, too."""
    from PIL import Image

    given, buffer = made.train.labels.tolist(), io.StringIO()
    digits = len(str(len(made.train.classes) - 1))
    names = [f"{label:0{digits}}" for label in range(len(made.train.classes))]
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["file", "given", "true", "poisoned", "covered", "source"])
    for named in names:
        (folder / "images" / named).mkdir(parents=True)
    for row, image in enumerate(made.train.images.cpu().permute(0, 2, 3, 1).numpy()):
        name = f"images/{names[given[row]]}/{row:06d}.png"
        Image.fromarray(np.ascontiguousarray(image)).save(folder / name)
        flags = [int(made.poisoned[row]), int(made.covered[row])]
        table.writerow([name, given[row], int(true[row]), *flags, int(made.source[row])])
    store.write_text(folder / "labels.csv", buffer.getvalue())


def write_npz(made: PoisonedSet, true: Labels, folder: Path) -> None:
    """One compressed file of arrays; none of them needs pickle."""
    np.savez_compressed(
        folder / "train.npz",
        images=made.train.images.cpu().permute(0, 2, 3, 1).numpy(),
        given=made.train.labels.cpu().numpy(),
        true=true.numpy(),
        poisoned=made.poisoned.numpy(),
        covered=made.covered.numpy(),
        source=made.source.numpy(),
        classes=np.array(made.train.classes),
    )
