"""bdx inspect MODEL [--data DIR] [KEY=VALUE ...]"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from backdoorbench.cli import theirs
from backdoorbench.cli.arguments import Parser
from backdoorbench.errors import ModelError

if TYPE_CHECKING:  # torch is imported only when work starts
    from pathlib import Path


def carry_out(words: Sequence[str]) -> int:
    """Says what a file of weights is, how well it knows the images, and whether it looks backdoored. Exit code."""
    parser = Parser("inspect", "What a model of somebody else is, and whether it looks backdoored.")
    theirs.add_arguments(parser)
    parser.add_argument(
        "--detectors",
        metavar="LIST",
        help="of those that judge a model, separated by commas; all of them by default, and some take long, and each "
        "says what it costs before it is asked",
    )
    chosen = theirs.parsed(parser, words)
    from backdoorbench import screen
    from backdoorbench.reporting import inspection

    out = screen.make_console()
    if not theirs.has_data(chosen):
        theirs.print_weights_alone(chosen, out)
        return 0
    names = theirs.detectors_of(chosen.detectors)
    found = theirs.words(chosen, out)
    with theirs.showing(chosen, out):
        subject = theirs.begin(chosen, found)
        theirs.tell_classes(subject, out)
        asked = [(["attack=none", "defense=none", f"detector={name}"], chosen.settings) for name in names]
        judging, planned = theirs.judge(subject, (theirs.NO_METHODS, subject.own), asked, out)
        judged = judging.run
        known = theirs.known_runs(judged.config)
        theirs.say(out, "accuracy", inspection.accuracy(judged))
        for name in theirs.HINTS:
            if note := judged.infection.notes.get(name):
                theirs.say(out, name, note)
        runs, compared = [], False
        for name, resolved in zip(names, planned, strict=True):
            theirs.say(out, "", f"asking {name}; cost: {theirs.cost_of(name, chosen.config_dirs)}")
            try:
                done = theirs.run(resolved)
            except ModelError as error:  # of a network without what this one looks at; the others can be asked
                theirs.say(out, name, f"cannot be asked: {error}")
                continue
            clean = inspection.clean_indices(known, name, resolved["model"])
            compared = compared or bool(clean)
            theirs.say(out, name, inspection.line(done.run, clean))
            if tried := inspection.reversed_line(done.run):
                theirs.say(out, "", tried)
            for picture in pictures(done.folder):
                theirs.say(out, "picture", str(picture), is_path=True)
            runs.append(done.run)
    first, *more = inspection.verdict(runs)
    theirs.say(out, "verdict", first)
    for sentence in [*more, *([] if compared else [inspection.ALONE]), inspection.LIMITS]:
        theirs.say(out, "", sentence)
    return 0


def pictures(folder: "Path") -> list["Path"]:
    """What the detector drew."""
    return sorted(file for file in folder.glob("*.png") if file.name != "triggered.png")
