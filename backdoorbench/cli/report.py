"""bdx report DIR... [--rows LIST --columns LIST] [--metric LIST] [--verdicts] [--statistics] [--format FORMAT] [--where CHOICE]
[--output FILE]"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backdoorbench.cli.arguments import (
    Parser,
    add_where,
    chosen_runs,
    drawn_features,
    figures_of,
    need,
    output_file,
    say,
    words_of,
)
from backdoorbench.errors import ConfigError, check_range, shown
from backdoorbench.metrics import LIMITS, Limits

if TYPE_CHECKING:
    from backdoorbench.reporting.report import Report

FORMATS = ("terminal", "csv", "runs-csv", "classes-csv", "md", "latex", "html")

LINES = {"csv": "setting", "runs-csv": "run", "classes-csv": "class of a run"}  # what a line of a format is
OF_VERDICTS, OF_STATISTICS = "csv of --verdicts", "csv of --statistics"
OF_ALL = (
    "--rows", "--columns", "--metric", "--verdicts", "--statistics", "--ca-loss", "--asr-below", "--names", "--published",
)  # fmt: skip
IN_VAIN = {  # what bears on nothing that a format holds
    "csv": ("--rows", "--columns", "--names"),
    OF_VERDICTS: ("--rows", "--columns", "--names", "--metric", "--published"),
    OF_STATISTICS: ("--rows", "--columns", "--names", "--published", "--ca-loss", "--asr-below"),
    "runs-csv": OF_ALL,
    "classes-csv": OF_ALL,
}
ENDS = {  # of files -> the formats they hold
    ".csv": tuple(LINES), ".md": ("md",), ".tex": ("latex",), ".html": ("html",),
}  # fmt: skip
IN_PRINT = ("latex", "html")  # which call options by their names in print


def carry_out(words: Sequence[str]) -> int:
    """Prints or writes the tables of what was run. Exit code."""
    parser = _parser()
    chosen = parser.parse_args(words)
    lines, columns = words_of("--rows", chosen.rows), words_of("--columns", chosen.columns)
    from backdoorbench.reporting import choosing, classes, comebacks, contrasts, display, published, report

    figures = figures_of(chosen.metric, (*report.METRICS, *comebacks.figures())) or ["ca", "asr", "ra"]
    _refuse_contradictions(parser, chosen, figures)
    limits = Limits(
        _share("--ca-loss", chosen.ca_loss, LIMITS.ca_loss, 0),
        _share("--asr-below", chosen.asr_below, LIMITS.asr, 0.01),
    )
    if chosen.format == "html":
        need("jinja2", "bdx report --format html", "page")
        need("matplotlib", "bdx report --format html", "page")
    files = [file for file in chosen.published or () if file and file not in published.experiments()]
    nearest = [name for name in chosen.published or () if name in published.experiments()]
    own = [figure for file in files for figure in published.read_figures(Path(file))]
    if chosen.output is not None:
        output_file(chosen.output, [Path(file) for file in (*files, chosen.names) if file])
    found, said = chosen_runs(chosen.folders, chosen.where, classes.DETAILS if chosen.format == "classes-csv" else ())
    made = report.make(
        found,
        figures,
        lines,
        columns,
        limits,
        chosen.verdicts,
        (chosen.against or "") if chosen.statistics else None,
        published.Asked(own, nearest) if chosen.published is not None else None,
        contrasts.TUNING in choosing.parsed(chosen.where),  # who names it wants runs that chose settings, too
    )
    say([*published.doubts(own, made.rows), *published.unmet(nearest, made.beside.values())])
    say(made.otherwise if chosen.format == "csv" else [])  # which has no place for them
    say(display.unknown(made.found.values(), chosen.names))
    made.notes.extend(said)
    write(made, chosen, figures)
    return 0


def write(made: Report, chosen: argparse.Namespace, figures: Sequence[str]) -> None:
    """The report in the format that is chosen, to the file that is chosen, or printed."""
    from backdoorbench import screen
    from backdoorbench.reporting import display, report, terminal
    from backdoorbench.storage import store

    named = display.chosen(made.found, chosen.names, chosen.format in IN_PRINT)
    say(display.confused(made.found.values(), named))
    if chosen.format == "terminal" and chosen.output is None:
        terminal.print_tables(screen.make_console(), made, named)
        return
    if chosen.format == "html":
        from backdoorbench.reporting import page

        drawn = [drawn_features(Path(folder)) for folder in chosen.tsne]
        words = [word for text in chosen.where for word in ("--where", text)]
        words += ["--names", chosen.names] if chosen.names else []
        text = page.render(made, chosen.folders, Path(chosen.output), figures, drawn, named, words)
    elif chosen.format in LINES:
        lines: dict[str, Callable[[Report], str]] = {
            "csv": partial(report.csv, figures=figures),
            "runs-csv": report.runs_csv,
            "classes-csv": report.classes_csv,
        }
        text = lines[chosen.format](made)
    else:
        prints = {"terminal": terminal.as_text, "md": report.markdown, "latex": report.latex}
        text = prints[chosen.format](made, named)
    if chosen.output is None:
        print(text, end="")
        return
    file = Path(os.path.realpath(chosen.output))  # a link stays one
    with store.storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    store.write_text(file, text)
    print(f"wrote {chosen.output}")


def _parser() -> Parser:
    parser = Parser("report", "Tables of what was run: mean and spread over seeds, n, published figures, failures.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="outputs, or folders of single runs")
    parser.add_argument("--rows", metavar="LIST", help="with --columns: lays tables out by these, such as attack,rate")
    parser.add_argument(
        "--columns", metavar="LIST", help="such as defense; what neither names makes a table of its own"
    )
    parser.add_argument(
        "--metric",
        metavar="LIST",
        help="of ca,asr,ra,der, in this order; ca,asr,ra by default; of detectors auroc and others; after attacks on purified "
        "models asr_retuned and others",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="terminal",
        help="csv: a line a setting, over seeds; runs-csv: a line a run, for pandas; classes-csv: a class of a run; html: a page",
    )
    parser.add_argument(
        "--verdicts",
        action="store_true",
        help="ranks the defenses over the attacks and rates that all of them have; csv: a line a defense instead",
    )
    parser.add_argument(
        "--statistics",
        action="store_true",
        help="differences between defenses over attacks and seeds, with intervals, tests and ranks; csv: a line a pair instead",
    )
    parser.add_argument("--against", metavar="DEFENSE", help="statistics: compares all others with this one alone")
    parser.add_argument(
        "--ca-loss",
        metavar="POINTS",
        help=f"of CA, at most, for a verdict's `met` and for `fragile`; {100 * LIMITS.ca_loss:g} by default",
    )
    parser.add_argument(
        "--asr-below",
        metavar="PERCENT",
        help=f"what a defense must bring ASR below, for the same; {100 * LIMITS.asr:g} by default",
    )
    parser.add_argument(
        "--names",
        metavar="FILE",
        help="a yaml file of OPTION: NAME, what tables call options, or `ids`: as they are typed; LaTeX and HTML have ours",
    )
    parser.add_argument(
        "--published",
        metavar="FIGURES",
        nargs="?",
        const="",
        action="append",
        help="puts published figures into the tables: those of exactly these settings, of a csv of your own (docs/report.md has "
        "its columns), or those nearest of an experiment, such as backdoorbench",
    )
    parser.add_argument("--output", metavar="FILE", help="write there instead of printing; html needs it")
    parser.add_argument(
        "--tsne", metavar="DIR", action="append", default=[], help="html: draws this run's features, too"
    )
    add_where(parser)
    return parser


def _refuse_contradictions(parser: Parser, chosen: argparse.Namespace, figures: Sequence[str]) -> None:
    """Ends the command where flags do not go together."""
    from backdoorbench.reporting import contrasts

    for flag, other, is_there in (("--rows", "--columns", chosen.columns), ("--columns", "--rows", chosen.rows)):
        if _is_given(chosen, flag) and not is_there:
            parser.error(f"argument {flag}: it goes with {other}")
    if chosen.statistics and chosen.verdicts and chosen.format == "csv":
        parser.error("argument --statistics: a csv holds them or the verdicts")
    _refuse_vain(parser, chosen, figures)
    if chosen.statistics and not set(figures) & set(contrasts.COMPARED):
        parser.error(
            f"argument --statistics: it compares {', '.join(contrasts.COMPARED)}, of which --metric names none"
        )
    if chosen.against is not None and not chosen.statistics:
        parser.error("argument --against: it goes with --statistics")
    if chosen.format == "html" and chosen.output is None:
        parser.error("argument --format: html needs --output FILE")
    end = Path(chosen.output or "").suffix.lower()
    if chosen.format not in ENDS.get(end, (chosen.format,)):
        parser.error(
            f"argument --output: '{chosen.output}' ends as a file of --format {' or '.join(ENDS[end])} does, and the format is "
            f"{chosen.format}"
        )
    if chosen.tsne and chosen.format != "html":
        parser.error("argument --tsne: it goes with --format html; alone, bdx plot tsne DIR draws it")


def _refuse_vain(parser: Parser, chosen: argparse.Namespace, figures: Sequence[str]) -> None:
    """Ends the command where a flag bears on nothing of what is asked for."""
    from backdoorbench.reporting import report

    held = chosen.format
    if held == "csv":
        held = OF_VERDICTS if chosen.verdicts else OF_STATISTICS if chosen.statistics else held
    for flag in IN_VAIN.get(held, ()):
        if _is_given(chosen, flag) and not (flag == "--names" and chosen.names == "ids"):  # which a csv has
            what = {OF_VERDICTS: "defense", OF_STATISTICS: "pair of defenses"}.get(held) or LINES[held]
            parser.error(f"argument {flag}: {held} holds one line a {what}, on which it does not bear")
    strange = [name for name in figures if name in (*report.OF_DETECTORS, *report.OF_AFTER)]
    if held == "csv" and strange:
        parser.error(
            f"argument --metric: csv holds one line a setting of a model, and {strange[0]} is of a detector or an after-attack; "
            f"runs-csv has it"
        )


def _is_given(chosen: argparse.Namespace, flag: str) -> bool:
    return getattr(chosen, flag.lstrip("-").replace("-", "_")) not in (None, False, [])


def _share(flag: str, text: str | None, usual: float, least: float) -> float:
    """A number of percent or of points as a fraction."""
    if text is None:
        return usual
    try:
        percent = float(text)
    except ValueError:
        raise ConfigError(f"{flag} is {shown(text)}; expected a number. Change {flag}.") from None
    check_range(flag, percent, least, 100)
    return percent / 100
