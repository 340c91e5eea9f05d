"""bdx clean MODEL --data DIR [--defense fst] [--trigger WHAT --target CLASS] [--to FILE] [KEY=VALUE ...]"""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from backdoorbench.cli import theirs
from backdoorbench.cli.arguments import Parser, quoted
from backdoorbench.errors import ConfigError, StorageError, did_you_mean, few

if TYPE_CHECKING:  # torch is imported only when work starts
    from backdoorbench.pipeline.cleaned import Left
    from backdoorbench.pipeline.job import Job

SAFE = ".safetensors"  # the one format that a file's name must tell


def carry_out(words: Sequence[str]) -> int:
    """Purifies a model of somebody else, says what that did, and writes its weights as the file has them. Exit code."""
    parser = Parser("clean", "Purifies a model of somebody else, and writes its weights as they were read.")
    theirs.add_arguments(parser)
    parser.add_argument("--defense", help="of bdx list defense; by default that of experiment=given")
    parser.add_argument(
        "--trigger",
        metavar="WHAT",
        help="where it is known: a picture or .npy file, a pattern such as grid3, or package.module:function of plugins; "
        "attack.position=[27,27], attack.opacity=0.2 and others say how it lies (bdx show attack=given)",
    )
    parser.add_argument(
        "--target", metavar="CLASS", help="what triggered images are called: a class name, or its number"
    )
    parser.add_argument("--to", metavar="FILE", help="the cleaned weights; in the run's folder by default")
    parser.add_argument("--overwrite", action="store_true", help="--to may name a file that exists")
    parser.add_argument(
        "--no-reversal", action="store_true", help="leaves out the reversed trigger, most of the time on a CPU"
    )
    chosen = theirs.parsed(parser, words)
    from backdoorbench import screen
    from backdoorbench.pipeline import cleaned

    if not theirs.has_data(chosen):
        raise ConfigError("a model is cleaned by images that it should know. Add --data DIR, a folder of clean images.")
    check_trigger(chosen)
    check_defense(chosen)
    out = screen.make_console()
    found = theirs.words(chosen, out)
    check_place(chosen)
    with theirs.showing(chosen, out):
        subject = theirs.begin(chosen, found)
        theirs.tell_classes(subject, out)
        trigger = trigger_words(chosen, subject.classes)
        own = theirs.without_methods(chosen.settings, *(["attack"] if trigger else []))
        before, (cleaning,) = theirs.judge(
            subject, ([*theirs.NO_METHODS, *trigger], own), [([*purifying(chosen), *trigger], chosen.settings)], out
        )
        check_effect(before, chosen)
        done = theirs.run(cleaning)
        file = (
            Path(chosen.to).expanduser() if chosen.to is not None else done.folder / cleaned.name_of(Path(chosen.model))
        )
        is_new = not file.parent.is_dir()
        left = cleaned.write(done, cleaning, file)
    tell(out, done, left, is_new)
    return 0


# ---- what was typed -------------------------------------------------------------------------------------------------


def check_defense(chosen: Namespace) -> None:
    """Raises ConfigError for a defense that gives the network layers, of which the file's names know nothing."""
    from backdoorbench.config import catalog
    from backdoorbench.config.build import target
    from backdoorbench.config.compose import option
    from backdoorbench.defenses.base import Defense

    typed = [word.partition("=")[2] for word in chosen.settings if word.startswith("defense=")]
    name = typed[-1] if typed else chosen.defense
    if name in catalog.names("defense"):
        kind: Any = target(option("defense", name), "defense")
        if kind.reshape is not Defense.reshape:
            raise ConfigError(
                f"{name} gives the network more layers, so that its weights no longer fit under the names of {chosen.model}; "
                f"expected a defense that changes weights alone. Pick another (bdx list defense), or run {name} with bdx "
                f"experiment=given and share its model by bdx export model."
            )


def purifying(chosen: Namespace) -> list[str]:
    """The words of the methods that purify, and of what judges them beside the trigger."""
    found = [f"defense={chosen.defense}"] if chosen.defense is not None else []
    return [
        *found,
        *(["detector=none"] if chosen.no_reversal else []),
        *(["after=retune"] if chosen.trigger else ["attack=none"]),
    ]


def check_trigger(chosen: Namespace) -> None:
    """Raises ConfigError where only one of a trigger and its target is named."""
    if chosen.trigger is None and chosen.target is not None:
        raise ConfigError(
            "--target says where a trigger leads, and there is none. Add --trigger, or leave --target out."
        )
    if chosen.trigger is not None and chosen.target is None:
        raise ConfigError(
            f"--trigger is '{chosen.trigger}', and nothing says what it makes of an image. Add --target CLASS, which triggered "
            f"images are called."
        )


def check_place(chosen: Namespace) -> None:
    """Raises a BdxError where the cleaned weights cannot be written where `--to` says, or something else would be lost there."""
    if chosen.to is None:
        return
    from backdoorbench.pipeline.cleaned import card_of

    file, source = Path(chosen.to).expanduser(), Path(chosen.model).expanduser()
    if file.exists() and file.samefile(source):
        raise ConfigError(f"--to is '{file}', the model that was read. Name another file: it is not overwritten.")
    if file.is_dir() or chosen.to.endswith(os.sep):
        raise ConfigError(f"--to is '{chosen.to}', a folder; expected the file that is to be written. Name one in it.")
    for there in (file, card_of(file)):
        if os.path.lexists(there) and not chosen.overwrite:
            raise ConfigError(
                f"--to is '{file}', and '{there}' exists already. Name another file, or add --overwrite to replace it."
            )
    if (file.suffix == SAFE) != (source.suffix == SAFE):
        raise ConfigError(
            f"--to is '{file}', and '{source.name}' is of another format; what is cleaned is written in the format of what was "
            f"read. Name a file that ends in '{source.suffix}'."
        )
    nearest = next(folder for folder in file.absolute().parents if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise StorageError(
            f"--to is '{file}', and '{nearest}' is no folder that can be written to. Name another place."
        )


def class_number(named: str, classes: Sequence[str]) -> int:
    """The place of the class that `--target` names, by its name or by its number; a name goes before a number."""
    if named in classes:
        return classes.index(named)
    if named.isascii() and named.isdecimal() and int(named) < len(classes):
        return int(named)
    raise ConfigError(
        f"--target is '{named}'; expected the name of a class ({few(classes, 10)}) or its number from 0 to {len(classes) - 1}."
        f"{did_you_mean(named, classes)} Change --target."
    )


def trigger_words(chosen: Namespace, classes: Sequence[str]) -> list[str]:
    """The words of the attack that judges: none, or the trigger that the user knows."""
    if chosen.trigger is None:
        return []
    from backdoorbench.triggers.patch import PATTERNS

    found = ["attack=given", f"attack.target={class_number(chosen.target, classes)}"]
    if chosen.trigger in PATTERNS:
        return [*found, f"attack.trigger={chosen.trigger}"]
    if ":" in chosen.trigger and not Path(chosen.trigger).exists():
        return [*found, "attack.trigger=function", f"attack.function={quoted(chosen.trigger)}"]
    return [*found, "attack.trigger=picture", f"attack.file={quoted(chosen.trigger)}"]


def check_effect(judged: "Job", chosen: Namespace) -> None:
    """Raises ConfigError where the trigger hardly acts on the model as it was read, since then no figure of a cleaned one says
    anything; unless the words force it on."""
    from backdoorbench.pipeline import cleaned
    from backdoorbench.reporting.inspection import called
    from backdoorbench.reporting.rows import percent

    run = judged.run
    scores, config = run.infected, run.config
    if scores is None or scores.asr is None or scores.asr >= config["gates"]["asr_floor"] or config["force"]:
        return
    classes, attack = run.environment["data"]["classes"], config["attack"]
    hint = ""
    if (other := cleaned.mostly_called(judged)) is not None and other[0] != attack["target"]:
        hint = (
            f" It makes class {called(other[0], classes)} of {percent(other[1])} % of them: perhaps that is the target."
        )
    is_shift = attack["mapping"] == "all_to_all"
    wanted = "the next class" if is_shift else f"class {called(attack['target'], classes)}"
    checks = {
        "picture": f"the picture, where it lies (attack.position=[row,column], now {attack['position']}), how opaque it is "
        f"(attack.opacity)",
        "function": f"what {attack['function']} does",
    }.get(
        attack["trigger"], f"whether {attack['trigger']} is the pattern, in its usual corner (a picture lies anywhere)"
    )
    raise ConfigError(
        f"the trigger does not act on {Path(chosen.model).name}: {percent(scores.asr)} % of {scores.n_triggered:,} triggered "
        f"test images are called {wanted}, below {percent(config['gates']['asr_floor'])} "
        f"% (gates.asr_floor).{hint} Look at {judged.folder / 'triggered.png'}, and check {checks} and --target; or add "
        f"force=true to clean it all the same."
    )


# ---- what came of it ------------------------------------------------------------------------------------------------


def tell(out: Console, done: "Job", left: "Left", is_new: bool) -> None:
    """What cleaning changed, what came of attacking again, and where everything lies.

    is_new  whether the folder of the weights was made for them"""
    from backdoorbench.pipeline import outcome
    from backdoorbench.reporting import card, inspection
    from backdoorbench.reporting.rows import percent

    run, facts = done.run, left.facts
    had = run.purification.details.get("holdout", {}).get("images", 0)
    theirs.say(
        out,
        "cleaned",
        f"by {run.config['defense']['name']}, with {had:,} clean images, in {run.config['train']['precision']}",
    )
    if done.repeated:
        theirs.say(out, "", "done before; rerun=true repeats it")
    out.print(outcome.scores_table(run, ("before", "after")))
    assert run.infected is not None
    counts = f"{run.infected.n_clean:,} clean" + f" and {run.infected.n_triggered:,} triggered" * bool(
        run.infected.n_triggered
    )
    theirs.say(out, "", f"percent of {counts} test images; the model card has intervals")
    if sentence := inspection.reversed_line(run, after=True):
        theirs.say(out, "reversed", sentence)
    for line in outcome.after_lines(run):
        out.print(Text(line), soft_wrap=True)
    if run.after.figures:
        theirs.say(out, "", f"{run.config['after']['name']}: {card.title('after', run.config)}")
        if not run.config["exact"]["epochs"]:
            theirs.say(out, "", f"no control beside it: {card.ADVICE}")
        else:
            theirs.say(out, "", f"exact: {card.EXACT}")
    for warning in card.warnings(run):
        theirs.say(out, "warning", warning)
    theirs.say(out, "agreement", f"{percent(facts.agreement)} % of the test images are called as before")
    if facts.copies:
        theirs.say(out, "copies", f"{', '.join(facts.copies)}: the network once more, and cleaned as well")
    if facts.left_out:
        theirs.say(out, "left out", f"{', '.join(facts.left_out)}: of the weights that were read")
    if facts.beside:
        kept = few([f"{name} {value}" for name, value in facts.beside.items()], 8)
        theirs.say(out, "kept", f"{kept}: of the model that was read")
    theirs.say(out, "weights", f"{facts.file}{' (in a new folder)' if is_new else ''}", is_path=True)
    theirs.say(out, "model card", str(left.card), is_path=True)
    theirs.say(out, "record", str(done.folder), is_path=True)
