"""bdx report DIR... [--rows LIST --columns LIST] [--metric LIST] [--verdicts] [--statistics] [--format FORMAT] [--where CHOICE]
[--output FILE]"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
IN_PRINT = ("latex", "html")  # which call options by their names in print


def carry_out(words: Sequence[str]) -> int:
    """Prints or writes the tables of what was run. Exit code."""
    parser = _parser()
    chosen = parser.parse_args(words)
    lines, columns = words_of(chosen.rows), words_of(chosen.columns)
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
    if chosen.format == "terminal" and chosen.output is None:
        terminal.print_tables(screen.make_console(), made, named)
        return
    if chosen.format == "html":
        from backdoorbench.reporting import page

        drawn = [drawn_features(Path(folder)) for folder in chosen.tsne]
        text = page.render(made, chosen.folders, Path(chosen.output), figures, drawn, named)
    elif chosen.format in LINES:
        lines = {"csv": report.csv, "runs-csv": report.runs_csv, "classes-csv": report.classes_csv}
        text = lines[chosen.format](made)
    else:
        prints = {"terminal": terminal.as_text, "md": report.markdown, "latex": report.latex}
        text = prints[chosen.format](made, named)
    if chosen.output is None:
        print(text, end="")
        return
    with store.storage_errors(Path(chosen.output).parent):
        Path(chosen.output).parent.mkdir(parents=True, exist_ok=True)
    store.write_text(Path(chosen.output), text)
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

    if bool(chosen.rows) != bool(chosen.columns):
        parser.error("argument --rows: it goes with --columns")
    if chosen.rows and chosen.format in LINES:
        parser.error(f"argument --rows: {chosen.format} holds one line a {LINES[chosen.format]}")
    for flag, is_given in (("--verdicts", chosen.verdicts), ("--statistics", chosen.statistics)):
        if is_given and chosen.format in ("runs-csv", "classes-csv"):
            parser.error(f"argument {flag}: {chosen.format} holds one line a {LINES[chosen.format]}")
    if chosen.statistics and chosen.verdicts and chosen.format == "csv":
        parser.error("argument --statistics: a csv holds them or the verdicts")
    if chosen.statistics and not set(figures) & set(contrasts.COMPARED):
        parser.error(
            f"argument --statistics: it compares {', '.join(contrasts.COMPARED)}, of which --metric names none"
        )
    if chosen.against is not None and not chosen.statistics:
        parser.error("argument --against: it goes with --statistics")
    if chosen.format == "html" and chosen.output is None:
        parser.error("argument --format: html needs --output FILE")
    if chosen.tsne and chosen.format != "html":
        parser.error("argument --tsne: it goes with --format html; alone, bdx plot tsne DIR draws it")


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
