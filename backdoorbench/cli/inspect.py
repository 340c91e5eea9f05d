"""bdx inspect MODEL [--data DIR] [KEY=VALUE ...]"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdoorbench.cli import theirs
from backdoorbench.cli.arguments import Parser


def carry_out(words: Sequence[str]) -> int:
    """Says what a file of weights is, how well it knows the images, and whether it looks backdoored. Exit code."""
    parser = Parser("inspect", "What a model of somebody else is, and whether it looks backdoored.")
    theirs.add_arguments(parser)
    parser.add_argument("--detectors", metavar="LIST", help="of those that judge a model; all of them by default")
    chosen = parser.parse_intermixed_args(words)
    from backdoorbench import screen
    from backdoorbench.reporting import inspection

    out = screen.make_console()
    if not theirs.has_data(chosen):
        theirs.print_weights_alone(chosen.model, out)
        return 0
    names = theirs.detectors_of(chosen.detectors)
    found = theirs.words(chosen, out)
    theirs.judge(chosen, found)
    runs = [theirs.run(chosen, found, ["attack=none", "defense=none", f"detector={name}"]) for name in names]
    known = theirs.known_runs(runs[0].run.config)
    out.print()
    theirs.say(out, "accuracy", inspection.accuracy(runs[0].run))
    for name in theirs.HINTS:
        if note := runs[0].run.infection.notes.get(name):
            theirs.say(out, name, note)
    for done in runs:
        clean = inspection.clean_indices(known, done.run.detection.name, done.run.config["model"]["name"])
        theirs.say(out, done.run.detection.name, inspection.line(done.run, clean))
        for picture in pictures(done.folder, done.run):
            theirs.say(out, "picture", str(picture), is_path=True)
    theirs.say(out, "verdict", inspection.verdict([done.run for done in runs]))
    theirs.say(out, "", inspection.LIMITS)
    return 0


def pictures(folder: Path, run: Any) -> list[Path]:
    """What the detector drew."""
    return sorted(file for file in folder.glob("*.png") if file.name != "triggered.png")
