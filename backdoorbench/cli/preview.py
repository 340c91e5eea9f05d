"""bdx preview [KEY=VALUES ...] [--output FILE] [--images N]"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from backdoorbench.cli.arguments import SWITCHES, Parser, composed, need, output_file
from backdoorbench.errors import ConfigError, check_range, join_words
from backdoorbench.sweeps.compose import refuse_sweep

SHOWN = ("attack", "dataset")  # groups whose settings a picture shows
SUFFIXES = (".png", ".pdf", ".svg")


def carry_out(words: Sequence[str]) -> int:
    """Draws what triggers do, and says how visible they are. Exit code."""
    parser = Parser("preview", "A picture of what an attack's trigger does, or several do; nothing is trained.")
    parser.add_argument(
        "settings", nargs="*", metavar="KEY=VALUES", help="as for a run or a sweep: attack=badnets,sig dataset=cifar10"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="ends in .png, .pdf or .svg; preview-ATTACK-DATASET.png in the outputs by default",
    )
    parser.add_argument("--images", type=int, default=8, help="columns; 8 by default")
    chosen = parser.parse_intermixed_args([word for word in words if word not in SWITCHES])
    check_range("--images", chosen.images, 1, 100)
    if chosen.output is not None and not chosen.output.lower().endswith(SUFFIXES):
        raise ConfigError(
            f"'{chosen.output}' is no name for a preview; expected one in {join_words(list(SUFFIXES), 'or')}. Rename it."
        )
    if chosen.output is not None:
        output_file(chosen.output)
    jobs = each_of(chosen.settings)
    is_figure = len(jobs) > 1 or not (chosen.output or ".png").lower().endswith(".png")
    if is_figure:
        need("matplotlib", "bdx preview of several attacks, or as a PDF or SVG,", "plots")
    from backdoorbench.pipeline import plan, preview
    from backdoorbench.reporting import display, picture

    found = [composed(settings, chosen.config_dirs) for settings, _ in jobs]
    refuse_sweep(chosen.settings, chosen.config_dirs, SHOWN)
    made = [plan.plan(resolved) for resolved in found]
    looks = [preview.look(one, chosen.images) for one in made]
    for one, seen in zip(made, looks, strict=True):
        print(f"{one.attack.name} on {one.dataset.name}: {seen}")
    named = usual_name([(one.attack.name, one.dataset.name) for one in made])
    file = Path(chosen.output or made[0].outputs.root / named)
    if not is_figure:
        preview.draw(looks[0], file)
    else:
        titles = []
        for one, seen, (_, more) in zip(made, looks, jobs, strict=True):
            names = [display.called("attack", one.attack.name), display.called("dataset", one.dataset.name), *more]
            titles.append(f"{' · '.join(names)}\n{seen}")
        _draw(titles, [picture.gallery(seen.clean, seen.triggered).numpy() for seen in looks], file)
    print(f"wrote {file}: {picture.SAID[0].lower()}{picture.SAID[1:-1]}")
    return 0


def usual_name(shown: Sequence[tuple[str, str]]) -> str:
    """The file of a preview of these attacks on these data sets.

    >>> usual_name([("badnets", "digits"), ("badnets", "gtsrb")])
    'preview-badnets-digits-gtsrb.png'
    """
    return f"preview-{'-'.join(dict.fromkeys(name for part in zip(*shown, strict=True) for name in part))}.png"


def each_of(settings: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """The settings of every job that lists of values make, and of these those that are no choice of an attack or a data set;
    mistakes are for whoever composes them.

    >>> each_of(["attack=badnets,sig", "seed=1"])
    [(['attack=badnets', 'seed=1'], []), (['attack=sig', 'seed=1'], [])]
    """
    choices = [_values(text) for text in settings]
    made = []
    for job in product(*choices):
        varied = [text for text, values in zip(job, choices, strict=True) if len(values) > 1]
        made.append((list(job), [text for text in varied if not text.startswith(("attack=", "dataset="))]))
    return made


def _values(text: str) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        return [text]
    if not override.is_sweep_override():
        return [text]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _draw(titles: Sequence[str], pictures: Sequence[Any], file: Path) -> None:
    from backdoorbench.reporting.plots import gallery, ink

    ink.write(gallery.labelled(list(zip(titles, pictures, strict=True))), file)
