"""bdx export [KEY=VALUE ...] --to DIR [--format png|npz], bdx export model RUN [--infected] --to DIR"""

from collections.abc import Sequence
from pathlib import Path

from backdoorbench.cli import flags
from backdoorbench.cli.arguments import Parser, composed, run_folder
from backdoorbench.config import plugins
from backdoorbench.config.groups import GROUPS
from backdoorbench.sweeps.compose import refuse_sweep

TAKING = ("--to", "--format", plugins.FLAG, *flags.FOLDER_FLAGS)  # options that the next word belongs to
POISONING = (*(group.name for group in GROUPS if group.infection), "holdout", "seed")  # what a poisoned set depends on


def carry_out(words: Sequence[str]) -> int:
    """Writes a poisoned training set, or a run's model. Exit code."""
    if (place := model_at(words)) is not None:
        return carry_out_model([*words[:place], *words[place + 1 :]])
    parser = Parser(
        "export",
        "The poisoned training set, for those who train elsewhere; nothing is trained. bdx export model RUN: a run's model, for "
        "those without bdx.",
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for a run: attack=badnets dataset=cifar10")
    parser.add_argument("--to", metavar="DIR", required=True, help="a new folder")
    parser.add_argument("--format", choices=("png", "npz"), default="png", help="images and labels.csv, or train.npz")
    chosen = parser.parse_intermixed_args(words)
    from backdoorbench.pipeline import export, plan

    resolved = composed(chosen.settings, chosen.config_dirs)
    refuse_sweep(chosen.settings, chosen.config_dirs, POISONING)
    made = plan.plan(resolved)
    counts = export.write(made, Path(chosen.to), chosen.format)
    print(f"wrote {chosen.to}: " + ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in counts.items()))
    return 0


def model_at(words: Sequence[str]) -> int | None:
    """Where the word stands that asks for a model, and is not what an option takes; None where it does not.

    >>> model_at(["model", "model", "--to", "x"]), model_at(["attack=sig", "--to", "model"])
    (0, None)
    """
    taken = {place + 1 for place, word in enumerate(words) if word in TAKING}
    return next((place for place, word in enumerate(words) if word == "model" and place not in taken), None)


def carry_out_model(words: Sequence[str]) -> int:
    """Writes a run's model: weights, a program that plain PyTorch loads, and a card. Exit code."""
    parser = Parser(
        "export model", "A run's purified model for those without bdx: weights, a torch.export program, a card."
    )
    parser.add_argument("run", metavar="RUN", help="its folder, or its key as bdx runs prints it")
    parser.add_argument("--infected", action="store_true", help="the infected model instead, out of the cache")
    parser.add_argument("--to", metavar="DIR", required=True, help="a new folder")
    chosen = parser.parse_intermixed_args(words)
    from backdoorbench.pipeline import share

    written = share.export(run_folder(chosen.run), Path(chosen.to), chosen.infected)
    print(f"wrote {chosen.to}: {', '.join(written)}")
    return 0
