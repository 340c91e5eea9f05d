"""Whether PBE's premise holds for an infected model, and what PBE then makes of it.

    python scripts/probe_pbe.py [--authors] dataset=cifar10 dataset.root=DIR scale=small attack=badnets

The premise (arXiv 2202.06312v4): untargeted adversarial images of an infected model mostly end in the target class. It is
measured on the first 1,000 test images that are called right and that the attack acts on, with the defense's own
radius and steps; chance is one class of the others. The words after the options are bdx overrides.

--authors  infects as their code does, which bdx offers as no attack: the patch is pasted after the augmentation, so that no crop
           moves it, on the first images of every batch, so that each image is met clean as well. PBE then gets a set poisoned
           afresh, as theirs does. Their crops, rotations and unclamped images are defense.clamp=false and
           dataset.augment={crop_padding:5,flip:true,rotation:10,resized_crop:null,crop:null}
"""

import argparse
import sys

import torch
from torch import Tensor, nn

from backdoorbench import progress
from backdoorbench.attacks.badnets import BadNets
from backdoorbench.attacks.base import Infection, Task
from backdoorbench.attacks.blended import Blended
from backdoorbench.config.compose import Plain, compose
from backdoorbench.data.images import ImageSet
from backdoorbench.defenses.pbe import PBE
from backdoorbench.errors import BdxError, ConfigError
from backdoorbench.metrics import Scores
from backdoorbench.pipeline import evaluation, infect, plan, purify
from backdoorbench.pipeline.plan import Plan
from backdoorbench.screen import Silent
from backdoorbench.shapes import Images, Labels
from backdoorbench.storage.record import Run
from backdoorbench.sweeps.hydra_errors import explained
from backdoorbench.training.adversarial import PGD
from backdoorbench.training.fit import cross_entropy, fit
from backdoorbench.triggers.base import Target

PROBED, BATCH = 1000, 250


def infect_as_the_authors(made: Plan) -> Infection:
    attack, stream, entropy = made.attack, made.stream.child("infect"), cross_entropy(0.0)
    if not isinstance(attack, BadNets | Blended):
        raise ConfigError(
            f"attack={attack.name} is none that --authors can paste into batches; expected attack=badnets or attack=blended. "
            f"Name one of them, or leave --authors out."
        )
    clean = made.parts.train.to(made.device)
    task = Task(clean, lambda inner: infect.build_network(made, inner), made.recipe, None)
    trigger, target = attack.stored(task, stream), attack.make_target(len(clean.classes))

    def loss(model: nn.Module, images: Images, labels: Labels) -> Tensor:
        count = int(attack.poison_rate * len(images))
        images = torch.cat([trigger(images[:count]), images[count:]])
        return entropy(model, images, torch.cat([target.label(labels[:count]), labels[count:]]))

    model = task.build(stream.child("init"))
    fit(model, clean, made.recipe, stream.child("train"), loss=loss)
    fresh = attack.poison(clean, trigger, stream.child("fresh"))
    return Infection(model, trigger, target, fresh.train, fresh.poisoned)


def premise(model: nn.Module, test: ImageSet, target: Target, craft: PGD) -> tuple[int, int, int]:
    """How many images were attacked, how many of them were misled, and how many of those end in the attacker's class."""
    attacked = misled = hits = 0
    for images, labels in test.batches(BATCH):
        with torch.no_grad():
            kept = ((model(images).argmax(1) == labels) & target.is_eligible(labels)).nonzero()[: PROBED - attacked, 0]
        if len(kept):
            adversarial = craft(model, images[kept], labels[kept])
            with torch.no_grad():
                called = model(adversarial).argmax(1)
            wrong = called != labels[kept]
            attacked, misled = attacked + len(kept), misled + int(wrong.sum())
            hits += int((wrong & (called == target.label(labels[kept]))).sum())
    return attacked, misled, hits


def shown(scores: Scores | None) -> str:
    assert scores is not None and scores.asr is not None
    return f"CA {scores.ca:.2%}, ASR {scores.asr:.2%}"


def probe(settings: Plain, as_the_authors: bool) -> None:
    made = plan.plan(settings)
    if made.attack.name == "none":
        raise ConfigError(
            "attack=none leaves no target for adversarial images to end in. Name an attack, such as attack=badnets."
        )
    defense, test, run = made.defense, made.splits.test.to(made.device), Run("", "running", made.label, {})
    if not isinstance(defense, PBE):
        raise ConfigError(
            f"defense={defense.name} is probed for PBE's premise; expected defense=pbe. Leave the word out."
        )
    infection = infect_as_the_authors(made) if as_the_authors else infect.obtain(made, test, run.begin("infect", ""))[0]
    assert infection.target is not None, "only attack=none has none"
    judged = test.subset(made.parts.test_rows)
    before = evaluation.evaluate(infection.model, judged, infection.trigger, infection.target, made.recipe.precision)
    print(f"infected  {shown(before)}")
    radius = defense.eps_255 / 255
    craft = PGD(radius, defense.step_share * radius, defense.steps, clamp=defense.clamp)
    attacked, misled, hits = premise(infection.model, judged, infection.target, craft)
    share = f", of these {hits / misled:.1%} to the target (chance {1 / (len(test.classes) - 1):.1%})" if misled else ""
    print(f"premise   of {attacked} images {misled} misled{share}")
    found = run.begin("purify", defense.name)
    purified = purify.purify(made, infection, test, found, lambda stage: None)
    for name, note in found.notes.items():
        if not name.startswith("selection"):
            continue
        auc = "" if note.get("auc") is None else f", AUC {note['auc']:.3f}"
        print(f"{name}  {note['images']} images, {note['poisoned_share']:.2%} poisoned{auc}")
    after = evaluation.evaluate(purified, judged, infection.trigger, infection.target, made.recipe.precision)
    print(f"purified  {shown(after)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", action="store_true", help="infect as the authors' code does")
    chosen, overrides = parser.parse_known_args()
    progress.install(Silent())
    try:
        probe(compose(["defense=pbe", *overrides]), chosen.authors)
    except Exception as error:
        told = explained(error, overrides)
        if not isinstance(told, BdxError):
            raise
        print(told, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
