"""bdx clean MODEL --data DIR [--defense fst] [--trigger WHAT --target N] [--to FILE] [KEY=VALUE ...]"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from backdoorbench.cli import theirs
from backdoorbench.cli.arguments import Parser
from backdoorbench.errors import ConfigError


def carry_out(words: Sequence[str]) -> int:
    """Purifies a model of somebody else, says what that did, and writes its weights as the file has them. Exit code."""
    parser = Parser("clean", "Purifies a model of somebody else, and writes its weights as they were read.")
    theirs.add_arguments(parser)
    parser.add_argument("--defense", help="of bdx list defense; by default that of experiment=given")
    parser.add_argument(
        "--trigger",
        metavar="WHAT",
        help="where it is known: a picture or .npy file, a pattern such as grid3, or package.module:function of plugins; "
        "attack.position=[29,29], attack.opacity=0.2 and others say how it lies (bdx show attack=given)",
    )
    parser.add_argument("--target", type=int, metavar="N", help="the class that triggered images are called")
    parser.add_argument("--to", metavar="FILE", help="the cleaned weights; in the run's folder by default")
    parser.add_argument(
        "--no-reversal", action="store_true", help="leaves out the reversed trigger, most of the time on a CPU"
    )
    chosen = parser.parse_intermixed_args(words)
    from backdoorbench import screen
    from backdoorbench.pipeline import cleaned

    if not theirs.has_data(chosen):
        raise ConfigError("a model is cleaned by images that it should know. Add --data DIR, a folder of clean images.")
    detector = ["detector=none"] if chosen.no_reversal else []
    defense = [f"defense={chosen.defense}"] if chosen.defense is not None else []
    methods = [*trigger_words(chosen), *defense, *detector]
    out = screen.make_console()
    found = theirs.words(chosen, out)
    theirs.judge(chosen, found)
    done = theirs.run(chosen, found, methods)
    file = Path(chosen.to) if chosen.to is not None else done.folder / cleaned.name_of(Path(chosen.model))
    left = cleaned.write(done.run, done.folder, file)
    theirs.say(out, "agreement", f"{100 * left.agreement:.2f} % of the test images are called as before")
    theirs.say(out, "weights", str(file), is_path=True)
    theirs.say(out, "model card", str(left.card), is_path=True)
    return 0


def trigger_words(chosen: Namespace) -> list[str]:
    """The words of the attack that judges: none, or the trigger that the user knows."""
    if chosen.trigger is None:
        if chosen.target is not None:
            raise ConfigError(
                "--target says where a trigger leads, and there is none. Add --trigger, or leave --target out."
            )
        return ["attack=none"]
    if chosen.target is None:
        raise ConfigError(
            f"--trigger is '{chosen.trigger}', and nothing says what it makes of an image. Add --target N, the class that "
            f"triggered images are called."
        )
    from backdoorbench.triggers.patch import PATTERNS

    found = ["attack=given", f"attack.target={chosen.target}", "after=retune"]
    if chosen.trigger in PATTERNS:
        return [*found, f"attack.trigger={chosen.trigger}"]
    if ":" in chosen.trigger and not Path(chosen.trigger).exists():
        return [*found, "attack.trigger=function", f"attack.function={theirs.quoted(chosen.trigger)}"]
    return [*found, "attack.trigger=picture", f"attack.file={theirs.quoted(chosen.trigger)}"]
