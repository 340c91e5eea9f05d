"""Whether PBE's premise holds for an infected model, and what PBE then makes of it.

    python scripts/probe_pbe.py [--authors] dataset=cifar10 dataset.root=DIR scale=small attack=badnets

The premise (arXiv 2202.06312v4): untargeted adversarial images of an infected model mostly end in the target class. It is
measured on the first 1,000 test images that are called right and are not the target's, with the defense's own radius and
steps; chance is one class of the others. The words after the options are bdx overrides.

--authors  infects as their code does, which bdx offers as no attack: the patch is pasted after the augmentation, so that no crop
           moves it, on the first images of every batch, so that each image is met clean as well. PBE then gets a set poisoned
           afresh, as theirs does. Their crops, rotations and unclamped images are defense.clamp=false and
           dataset.augment={crop_padding:5,flip:true,rotation:10,resized_crop:null,crop:null}
"""

import argparse
import sys

import torch
from torch import Tensor, nn

from backdoorbench import config, evaluation, metrics, pipeline, plans, progress
from backdoorbench.adversarial import PGD
from backdoorbench.attacks.base import DataAttack, Infection, Task
from backdoorbench.config import Plain
from backdoorbench.console import Silent
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.pbe import PBE
from backdoorbench.errors import BdxError, ConfigError
from backdoorbench.metrics import Scores
from backdoorbench.mistakes import explained
from backdoorbench.plans import Plan
from backdoorbench.recorded import Run
from backdoorbench.shapes import Images, Labels
from backdoorbench.training.fit import cross_entropy, fit

PROBED, BATCH = 1000, 250


def infect_as_the_authors(made: Plan) -> Infection:
    attack, stream, entropy = made.attack, made.stream.child("infect"), cross_entropy(0.0)
    if not isinstance(attack, DataAttack):
        raise ConfigError(
            f"attack={attack.name} drives the training itself; --authors pastes a data-poisoning attack's trigger."
        )
    clean = made.parts.train.to(made.device)
    task = Task(clean, lambda inner: pipeline.build_network(made, inner), made.recipe, None)
    trigger, target = attack.stored(task, stream), attack.make_target(len(clean.classes))

    def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
        count = int(attack.poison_rate * len(images))
        images = torch.cat([trigger(images[:count]), images[count:]])
        return entropy(model, images, torch.cat([target.label(labels[:count]), labels[count:]]))

    model = task.build(stream.child("init"))
    fit(model, clean, made.recipe, stream.child("train"), loss=loss)
    fresh = attack.poison(clean, trigger, stream.child("fresh"))
    return Infection(model, trigger, target, fresh.train, fresh.poisoned)


def premise(model: nn.Module, test: ImageSet, target: int, craft: PGD) -> tuple[int, float, float]:
    """How many images were attacked, which share of them is misled, and which share of those ends in the target."""
    given, called, seen = [], [], 0
    for images, labels in test.batches(BATCH):
        with torch.no_grad():
            kept = (model(images).argmax(1) == labels) & (labels != target)
        adversarial = craft(model, images[kept], labels[kept])
        with torch.no_grad():
            called.append(model(adversarial).argmax(1))
        given.append(labels[kept])
        seen += int(kept.sum())
        if seen >= PROBED:
            break
    after, before = torch.cat(called)[:PROBED], torch.cat(given)[:PROBED]
    misled = after != before
    return len(before), metrics.share(misled), metrics.share(after[misled] == target)


def shown(scores: Scores | None) -> str:
    assert scores is not None and scores.asr is not None
    return f"CA {scores.ca:.2%}, ASR {scores.asr:.2%}"


def probe(settings: Plain, as_the_authors: bool) -> None:
    made = plans.plan(settings)
    if made.attack.name == "none":
        raise ConfigError(
            "attack=none leaves no target for adversarial images to end in. Name an attack, such as attack=badnets."
        )
    defense, test, run = made.defense, made.splits.test.to(made.device), Run("", "running", made.label, {})
    if not isinstance(defense, PBE):
        raise ConfigError(
            f"defense={defense.name} is probed for PBE's premise; expected defense=pbe. Leave the word out."
        )
    infection = infect_as_the_authors(made) if as_the_authors else pipeline.obtain_infection(made, test, run)[0]
    before = evaluation.evaluate(infection.model, test, infection.trigger, infection.target, made.recipe.precision)
    print(f"infected  {shown(before)}")
    radius = defense.eps_255 / 255
    craft = PGD(radius, defense.step_share * radius, defense.steps, clamp=defense.clamp)
    count, misled, share = premise(infection.model, test, made.config["attack"]["target"], craft)
    chance = 1 / (len(test.classes) - 1)
    print(f"premise   of {count} images {misled:.1%} misled, of these {share:.1%} to the target (chance {chance:.1%})")
    purified = pipeline.purify(made, infection, test, run, lambda stage: None)
    for name, note in run.notes.items():
        auc = "" if note.get("auc") is None else f", AUC {note['auc']:.3f}"
        print(f"{name}  {note['images']} images, {note['poisoned_share']:.2%} poisoned{auc}")
    after = evaluation.evaluate(purified, test, infection.trigger, infection.target, made.recipe.precision)
    print(f"purified  {shown(after)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", action="store_true", help="infect as the authors' code does")
    chosen, overrides = parser.parse_known_args()
    progress.install(Silent())
    try:
        probe(config.compose(["defense=pbe", *overrides]), chosen.authors)
    except Exception as error:
        told = explained(error, overrides)
        if not isinstance(told, BdxError):
            raise
        print(told, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
