"""bdx plot KIND DIR... --output FILE [--metric LIST]"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backdoorbench.cli.arguments import Parser, add_where, drawn_features, figures_of, need, output_file, read_runs, say
from backdoorbench.errors import join_words

KINDS = {
    "curves": "CA, ASR and RA against the defense's epoch",
    "rates": "figures against the poison rate, a line a defense",
    "sweep": "figures against a setting that was swept, --x defense.alpha",
    "scatter": "CA and ASR, from the infected model to the purified",
    "after": "ASR after an attack on the purified model, against the setting of it that was swept",
    "trials": "ASR by trial of such an attack: variations of a trigger, points of a line of weights",
    "heatmap": "a figure, attacks by defenses",
    "classes": "CA and ASR by the images' true class",
    "ranks": "mean ranks of defenses over attacks and seeds, with the critical difference",
    "gallery": "triggers: clean, triggered, difference, out of the runs' folders",
    "tsne": "what one run's classifier reads, before and after",
}
FIGURES = {
    "rates": ("ca", "asr", "ra", "holdout_ca"),
    "sweep": ("ca", "asr", "ra", "holdout_ca"),
    "classes": ("ca", "asr", "ra"),
    "heatmap": ("ca", "asr", "ra", "der", "holdout_ca"),
    "ranks": ("ca", "asr", "ra", "der"),
}


def marked(runs: Sequence[Any]) -> list[Any]:
    """The rows of these runs, with what became of purified models afterwards."""
    from backdoorbench.metrics import LIMITS
    from backdoorbench.reporting import comebacks, rows

    return comebacks.mark(rows.aggregate(runs), rows.afters(runs), LIMITS)


def carry_out(words: Sequence[str]) -> int:
    """Draws one plot to a file. Exit code."""
    chosen, wanted = parsed(words)
    need("matplotlib", "bdx plot", "plots")
    from backdoorbench.reporting import display
    from backdoorbench.reporting.classes import DETAILS
    from backdoorbench.reporting.plots import ink

    ink.check_name(output_file(chosen.output))
    if chosen.kind == "tsne":
        found: dict[Path, Any] = {}
        figure = drawn_features(Path(chosen.folders[0]))
    else:
        found = read_runs(chosen.folders, chosen.where, DETAILS if chosen.kind == "classes" else ())
        figure = drawn(chosen, wanted, found)
    say(display.unknown(found.values(), chosen.names))
    named = display.chosen(found, chosen.names, True)
    say(display.confused(found.values(), named))
    ink.rename(figure, named)
    ink.write(figure, Path(chosen.output))
    print(f"wrote {chosen.output}")
    return 0


def parsed(words: Sequence[str]) -> tuple[Namespace, list[str]]:
    """What the words ask for, and the figures among it. ConfigError where it does not go together."""
    from backdoorbench.reporting import comebacks

    parser = Parser("plot", "A plot of what was run, as SVG, PDF or PNG.")
    parser.add_argument("kind", choices=KINDS, help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    parser.add_argument("folders", nargs="+", metavar="DIR", help="outputs, or folders of single runs")
    parser.add_argument("--output", metavar="FILE", required=True, help="ends in .svg, .pdf or .png")
    parser.add_argument("--x", metavar="SETTING", help="of sweep: the setting, such as defense.alpha")
    parser.add_argument(
        "--metric",
        metavar="LIST",
        help="of rates, sweep and classes some; of heatmap one, of ranks some, asr by default",
    )
    parser.add_argument(
        "--names", metavar="FILE", help="a yaml file of OPTION: NAME, what plots call options; `ids`: as they are typed"
    )
    add_where(parser)
    chosen = parser.parse_args(words)
    if chosen.kind not in FIGURES and chosen.metric is not None:
        parser.error(f"argument --metric: {chosen.kind} has its own; it goes with {join_words(list(FIGURES))}")
    if chosen.kind != "sweep" and chosen.x is not None:
        parser.error(f"argument --x: it goes with sweep, not with {chosen.kind}")
    if chosen.kind == "sweep" and chosen.x is None:
        parser.error("argument KIND: sweep needs --x SETTING, such as --x defense.alpha")
    more = comebacks.figures() if chosen.kind == "heatmap" else ()
    wanted = figures_of(chosen.metric, (*FIGURES.get(chosen.kind, ()), *more))
    if chosen.kind == "heatmap" and len(wanted) > 1:
        parser.error("argument --metric: a heatmap shows one")
    if chosen.kind == "tsne" and len(chosen.folders) > 1:
        parser.error("argument DIR: tsne draws one run")
    if chosen.kind == "tsne" and chosen.where:
        parser.error("argument --where: tsne draws one run, which DIR names")
    return chosen, wanted


def drawn(chosen: Namespace, wanted: Sequence[str], found: Mapping[Path, Any]) -> Any:
    """The figure of a plot over many runs.

    wanted  the figures that it is to show, where some were named; found: the runs by their folders"""
    from backdoorbench.reporting import choosing, contrasts, rows
    from backdoorbench.reporting.plots import after, curves, gallery, heatmap, ranks, rates, scatter, sweep
    from backdoorbench.reporting.plots import classes as by_class

    runs = list(found.values())
    is_asked = contrasts.TUNING in choosing.parsed(chosen.where)  # who names it wants runs that chose settings, too
    return {
        "curves": lambda: curves.curves(runs),
        "rates": lambda: rates.against_rate(runs, wanted or ("asr", "ca")),
        "sweep": lambda: sweep.against_setting(runs, chosen.x, wanted or ("ca", "asr", "ra")),
        "scatter": lambda: scatter.scatter(runs),
        "after": lambda: after.against_setting(runs),
        "trials": lambda: after.by_trial(runs),
        "heatmap": lambda: heatmap.heatmap(marked(runs), wanted[0] if wanted else "asr"),
        "classes": lambda: by_class.by_class(runs, wanted or ("ca", "asr")),
        "ranks": lambda: ranks.ranks(
            contrasts.standings(rows.aggregate(runs), wanted or ["asr"], keeps_tuning=is_asked)
        ),
        "gallery": lambda: gallery.gallery(found),
    }[chosen.kind]()
