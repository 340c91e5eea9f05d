"""bdx plot KIND DIR... --output FILE [--metric LIST]"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdoorbench.cli.arguments import Parser, add_where, drawn_features, figures_of, need, read_runs

KINDS = {
    "curves": "CA, ASR and RA against the defense's epoch",
    "rates": "figures against the poison rate, a line a defense",
    "scatter": "CA and ASR, from the infected model to the purified",
    "after": "ASR after an attack on the purified model, against the setting of it that was swept",
    "trials": "ASR by trial of such an attack: variations of a trigger, points of a line of weights",
    "heatmap": "a figure, attacks by defenses",
    "gallery": "triggers: clean, triggered, difference, out of the runs' folders",
    "tsne": "what one run's classifier reads, before and after",
}
FIGURES = {"rates": ("ca", "asr", "ra"), "heatmap": ("ca", "asr", "ra", "der")}


def marked(runs: Sequence[Any]) -> list[Any]:
    """The rows of these runs, with what became of purified models afterwards."""
    from backdoorbench.metrics import LIMITS
    from backdoorbench.reporting import comebacks, rows

    return comebacks.mark(rows.aggregate(runs), rows.afters(runs), LIMITS)


def carry_out(words: Sequence[str]) -> int:
    """Draws one plot to a file. Exit code."""
    parser = Parser("plot", "A plot of what was run, as SVG, PDF or PNG.")
    parser.add_argument("kind", choices=KINDS, help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    parser.add_argument("folders", nargs="+", metavar="DIR", help="outputs, or folders of single runs")
    parser.add_argument("--output", metavar="FILE", required=True, help="ends in .svg, .pdf or .png")
    parser.add_argument("--metric", metavar="LIST", help="of rates, asr,ca by default; of heatmap one, asr by default")
    add_where(parser)
    chosen = parser.parse_args(words)
    if chosen.kind not in FIGURES and chosen.metric is not None:
        parser.error(f"argument --metric: {chosen.kind} has its own; it goes with rates and heatmap")
    from backdoorbench.reporting import comebacks

    more = comebacks.figures() if chosen.kind == "heatmap" else ()
    wanted = figures_of(chosen.metric, (*FIGURES.get(chosen.kind, ()), *more))
    if chosen.kind == "heatmap" and len(wanted) > 1:
        parser.error("argument --metric: a heatmap shows one")
    need("matplotlib", "bdx plot", "plots")
    from backdoorbench.reporting.plots import after, curves, gallery, heatmap, ink, rates, scatter

    ink.check_name(Path(chosen.output))
    if chosen.kind == "tsne":
        if len(chosen.folders) > 1:
            parser.error("argument DIR: tsne draws one run")
        if chosen.where:
            parser.error("argument --where: tsne draws one run, which DIR names")
        figure = drawn_features(Path(chosen.folders[0]))
    else:
        found = read_runs(chosen.folders, chosen.where)
        runs = list(found.values())
        figure = {
            "curves": lambda: curves.curves(runs),
            "rates": lambda: rates.against_rate(runs, wanted or ("asr", "ca")),
            "scatter": lambda: scatter.scatter(runs),
            "after": lambda: after.against_setting(runs),
            "trials": lambda: after.by_trial(runs),
            "heatmap": lambda: heatmap.heatmap(marked(runs), wanted[0] if wanted else "asr"),
            "gallery": lambda: gallery.gallery(found),
        }[chosen.kind]()
    ink.write(figure, Path(chosen.output))
    print(f"wrote {chosen.output}")
    return 0
