"""The verbs of `bdx`: list, show, report, plot, preview, export, reproduce, runs, cache, plan. No maths.

Each imports what it needs when it is called, so that help and mistakes answer at once.
"""

import argparse
import functools
import gc
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from backdoorbench import catalog
from backdoorbench.errors import BdxError, ConfigError, check_range, did_you_mean, join_words
from backdoorbench.mistakes import explained, refuse_null_groups

SWITCHES = ("-m", "--multirun")
RunHydra = Callable[..., int]  # the words of a run or sweep, and what to do with an ended sweep's folder -> exit code


def carry_out(name: str, words: Sequence[str], hydra: RunHydra) -> int:
    """Carries out the verb `name` and returns the exit code. hydra: what carries out a run or sweep."""
    verbs: dict[str, Callable[[Sequence[str]], int]] = {
        "list": _list,
        "show": _show,
        "report": _report,
        "plot": _plot,
        "preview": _preview,
        "export": _export,
        "reproduce": functools.partial(_reproduce, hydra=hydra),
        "runs": _runs,
        "cache": _cache,
        "plan": functools.partial(_plan, hydra=hydra),
    }
    if name not in verbs:
        raise ConfigError(
            f"'{name}' is no verb of bdx.{did_you_mean(name, verbs)} The verbs are {join_words(list(verbs))}; a run is "
            f"described by settings, such as attack=badnets."
        )
    return verbs[name](words)


def _list(words: Sequence[str]) -> int:
    """bdx list [GROUP]"""
    from backdoorbench import console

    parser = Parser("list", "What there is to choose from, and what each choice is.")
    parser.add_argument("group", nargs="?", help=f"one of {', '.join(catalog.GROUPS)}; all by default")
    wanted = parser.parse_args(words).group
    out = console.make_console()
    if wanted is not None:
        wanted = wanted.removesuffix("s") if wanted not in catalog.GROUPS else wanted
        if wanted not in catalog.GROUPS:
            raise ConfigError(
                f"group '{wanted}' is unknown.{did_you_mean(wanted, catalog.GROUPS)} The groups are "
                f"{join_words(list(catalog.GROUPS))}."
            )
    for group in [wanted] if wanted else catalog.GROUPS:
        options = [catalog.describe(group, name) for name in catalog.names(group)]
        console.print_options(out, [(option.name, option.summary) for option in options], group)
    out.print("  bdx show GROUP=OPTION explains one, with every setting", style="dim")
    return 0


def _show(words: Sequence[str]) -> int:
    """bdx show GROUP=OPTION"""
    from rich.text import Text

    from backdoorbench import console

    parser = Parser("show", "One option, explained: the method and every setting with its default.")
    parser.add_argument("option", help="such as defense=fst")
    group, _, name = parser.parse_args(words).option.partition("=")
    option = catalog.describe(group, name)
    out = console.make_console()
    out.print(Text(option.title or f"{group}={name}"), style="bold")
    out.print(Text(f"  {option.summary}"))
    for heading, text in option.method.items():
        lines = text.splitlines() or [""]
        out.print(Text(f"  {heading:<9}{lines[0]}"))
        for line in lines[1:]:
            out.print(Text(f"           {line}"))
    if option.command:
        out.print(Text(f"  Command  {option.command}"))
    if option.knobs:
        out.print()
        console.print_knobs(out, [(f"{group}.{knob.name}", knob.default, knob.comment) for knob in option.knobs])
    for dataset, knobs in option.overlays.items():
        out.print(Text(f"  on {dataset}: {', '.join(f'{knob.name} {knob.default}' for knob in knobs)}"), style="dim")
    return 0


def _report(words: Sequence[str]) -> int:
    """bdx report DIR... [--rows attack --columns defense] [--metric asr,ca,ra,der] [--format FORMAT] [--output FILE]"""
    from backdoorbench import cache, console

    parser = Parser("report", "Tables of what was run: mean and spread over seeds, n, published figures, failures.")
    parser.add_argument("folders", nargs="+", metavar="DIR", help="outputs, or folders of single runs")
    parser.add_argument("--rows", metavar="LIST", help="with --columns: lays tables out by these, such as attack,rate")
    parser.add_argument(
        "--columns", metavar="LIST", help="such as defense; what neither names makes a table of its own"
    )
    parser.add_argument("--metric", metavar="LIST", help="of ca,asr,ra,der, in this order; ca,asr,ra by default")
    parser.add_argument(
        "--format",
        choices=("terminal", "csv", "runs-csv", "md", "latex", "html"),
        default="terminal",
        help="csv: a line a setting, over seeds; runs-csv: a line a run, for pandas; html: one page, with plots",
    )
    parser.add_argument("--output", metavar="FILE", help="write there instead of printing; html needs it")
    parser.add_argument(
        "--tsne", metavar="DIR", action="append", default=[], help="html: draws this run's features, too"
    )
    chosen = parser.parse_args(words)
    lines, columns = _words(chosen.rows), _words(chosen.columns)
    figures = _figures(chosen.metric, ("ca", "asr", "ra", "der")) or ["ca", "asr", "ra"]
    if bool(lines) != bool(columns):
        parser.error("argument --rows: it goes with --columns")
    if lines and chosen.format in ("csv", "runs-csv"):
        parser.error(
            f"argument --rows: {chosen.format} holds one line a {'run' if '-' in chosen.format else 'setting'}"
        )
    if chosen.format == "html" and chosen.output is None:
        parser.error("argument --format: html needs --output FILE")
    if chosen.tsne and chosen.format != "html":
        parser.error("argument --tsne: it goes with --format html; alone, bdx plot tsne DIR draws it")
    if chosen.format == "html":
        _need("jinja2", "bdx report --format html", "page")
        _need("matplotlib", "bdx report --format html", "page")
    from backdoorbench.reporting import report

    made = report.make(_read_runs(chosen.folders), figures, lines, columns)
    if chosen.format == "terminal" and chosen.output is None:
        console.print_tables(console.make_console(), made)
        return 0
    if chosen.format == "html":
        from backdoorbench.reporting import page

        drawn = [_tsne(Path(folder)) for folder in chosen.tsne]
        text = page.render(made, chosen.folders, Path(chosen.output), figures, drawn)
    elif chosen.format == "terminal":
        text = console.as_text(made)
    else:
        writers = {"csv": report.csv, "runs-csv": report.runs_csv, "md": report.markdown, "latex": report.latex}
        text = writers[chosen.format](made)
    if chosen.output is None:
        print(text, end="")
    else:
        with cache.storage_errors(Path(chosen.output).parent):
            Path(chosen.output).parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(Path(chosen.output), text)
        print(f"wrote {chosen.output}")
    return 0


def _words(text: str | None) -> list[str]:
    return text.split(",") if text else []


def _figures(text: str | None, known: Sequence[str]) -> list[str]:
    """The figures of `--metric`, each once."""
    wanted = list(dict.fromkeys(_words(text)))
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--metric is '{name}'; expected some of {join_words(list(known))}. Change --metric.")
    return wanted


def _need(package: str, verb: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(f"{verb} needs {package}, which is not installed. Add it: pip install 'bdx[{extra}]'.")


def _plot(words: Sequence[str]) -> int:
    """bdx plot KIND DIR... --output FILE [--metric LIST]"""
    kinds = {
        "curves": "CA, ASR and RA against the defense's epoch",
        "rates": "figures against the poison rate, a line a defense",
        "scatter": "CA and ASR, from the infected model to the purified",
        "heatmap": "a figure, attacks by defenses",
        "gallery": "triggers: clean, triggered, difference, out of the runs' folders",
        "tsne": "what one run's classifier reads, before and after",
    }
    figures = {"rates": ("ca", "asr", "ra"), "heatmap": ("ca", "asr", "ra", "der")}
    parser = Parser("plot", "A plot of what was run, as SVG, PDF or PNG.")
    parser.add_argument("kind", choices=kinds, help="; ".join(f"{kind}: {what}" for kind, what in kinds.items()))
    parser.add_argument("folders", nargs="+", metavar="DIR", help="outputs, or folders of single runs")
    parser.add_argument("--output", metavar="FILE", required=True, help="ends in .svg, .pdf or .png")
    parser.add_argument("--metric", metavar="LIST", help="of rates, asr,ca by default; of heatmap one, asr by default")
    chosen = parser.parse_args(words)
    if chosen.kind not in figures and chosen.metric is not None:
        parser.error(f"argument --metric: {chosen.kind} has its own; it goes with rates and heatmap")
    wanted = _figures(chosen.metric, figures.get(chosen.kind, ()))
    if chosen.kind == "heatmap" and len(wanted) > 1:
        parser.error("argument --metric: a heatmap shows one")
    _need("matplotlib", "bdx plot", "plots")
    from backdoorbench.reporting import plot, table

    plot.check_name(Path(chosen.output))
    if chosen.kind == "tsne":
        if len(chosen.folders) > 1:
            parser.error("argument DIR: tsne draws one run")
        figure = _tsne(Path(chosen.folders[0]))
    else:
        found = _read_runs(chosen.folders)
        runs = list(found.values())
        figure = {
            "curves": lambda: plot.curves(runs),
            "rates": lambda: plot.against_rate(runs, wanted or ("asr", "ca")),
            "scatter": lambda: plot.scatter(runs),
            "heatmap": lambda: plot.heatmap(table.aggregate(runs), wanted[0] if wanted else "asr"),
            "gallery": lambda: plot.gallery(found),
        }[chosen.kind]()
    plot.write(figure, Path(chosen.output))
    print(f"wrote {chosen.output}")
    return 0


def _tsne(folder: Path) -> Any:
    """The figure of one run's features."""
    from backdoorbench.reporting import features, plot, record

    if not (folder / "record.json").is_file():
        raise ConfigError(
            f"'{folder}' holds no record.json; tsne draws one run. Name its folder, such as outputs/runs/NAME."
        )
    run = record.read(folder)
    return plot.tsne(run, features.embed(run, folder))


def _preview(words: Sequence[str]) -> int:
    """bdx preview [KEY=VALUE ...] [--output FILE] [--images N]"""
    parser = Parser("preview", "A picture of what an attack's trigger does; nothing is trained.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for a run: attack=sig dataset=cifar10")
    parser.add_argument("--output", metavar="FILE", help="a PNG; preview-ATTACK-DATASET.png in the outputs by default")
    parser.add_argument("--images", type=int, default=8, help="columns; 8 by default")
    chosen = parser.parse_intermixed_args(words)
    check_range("--images", chosen.images, 1, 100)
    if chosen.output is not None and not chosen.output.lower().endswith(".png"):
        raise ConfigError(f"'{chosen.output}' is no name for a preview; expected one in .png. Rename it.")
    from backdoorbench import plans, preview

    made = plans.plan(_composed(chosen.settings))
    file = Path(chosen.output or made.outputs / f"preview-{made.attack.name}-{made.dataset.name}.png")
    figures = preview.draw(made, file, chosen.images)
    print(
        f"{made.attack.name} on {made.dataset.name}: PSNR {figures['psnr']:.1f} dB, SSIM {figures['ssim']:.3f} (medians), "
        f"largest change {figures['largest_levels']:.0f} of 255"
    )
    print(f"wrote {file}")
    return 0


def _export(words: Sequence[str]) -> int:
    """bdx export [KEY=VALUE ...] --to DIR [--format png|npz]"""
    parser = Parser("export", "The poisoned training set, for those who train elsewhere; nothing is trained.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for a run: attack=badnets dataset=cifar10")
    parser.add_argument("--to", metavar="DIR", required=True, help="a new folder")
    parser.add_argument("--format", choices=("png", "npz"), default="png", help="images and labels.csv, or train.npz")
    chosen = parser.parse_intermixed_args(words)
    from backdoorbench import export, plans

    made = plans.plan(_composed(chosen.settings))
    counts = export.write(made, Path(chosen.to), chosen.format)
    print(f"wrote {chosen.to}: " + ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in counts.items()))
    return 0


def _composed(settings: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run; mistakes in it as those of a run are told."""
    from backdoorbench.config import compose

    refuse_null_groups(settings)
    try:
        return compose(settings)
    except BdxError:
        raise
    except Exception as error:
        raise explained(error, settings) from None


def _read_runs(folders: Sequence[str]) -> dict[Path, Any]:
    """The runs below `folders` by the folder of their record; DataError where one is no folder, or none holds a record."""
    from backdoorbench.errors import DataError
    from backdoorbench.reporting import record

    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"'{folder}' is no folder; expected one that holds runs, such as outputs/. Name another.")
    found = record.collect(map(Path, folders))
    if not found:
        raise DataError(
            f"no record.json lies below {join_words(list(folders))}; expected at least one run. "
            f"Run something first: bdx attack=badnets defense=fst."
        )
    gc.freeze()  # what was read lives as long as this process: no use in going through all of it again and again
    return found


def _reproduce(words: Sequence[str], hydra: RunHydra) -> int:
    """bdx reproduce PAPER [--scale full|small|digits] [--attacks LIST] ... [KEY=VALUE ...]"""
    from backdoorbench.reproduce import reproduce

    description = (
        "A paper's evaluation: runs what is missing, and prints its figures, ours, and the settings that differ."
    )
    return reproduce(words, Parser("reproduce", description), hydra)


def _runs(words: Sequence[str]) -> int:
    """bdx runs [DIR] [--status LIST] [--last N]"""
    from backdoorbench import housekeeping

    return housekeeping.runs(words, Parser("runs", "What was run: state, settings that differ, figures."))


def _cache(words: Sequence[str]) -> int:
    """bdx cache [list] | why KEY KEY | prune [--older-than AGE] [--unreferenced] [--max-size SIZE] [--yes]"""
    from backdoorbench import housekeeping

    return housekeeping.cached(words, Parser)


def _plan(words: Sequence[str], hydra: RunHydra) -> int:
    """bdx plan KEY=VALUES ..."""
    parser = Parser(
        "plan", "The runs of a sweep: what is done, what is cached, what the rest will take. Nothing is trained."
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUES", help="as after bdx -m: defense=ft,fst seed=0,1,2")
    settings = [word for word in parser.parse_args(words).settings if word not in SWITCHES]
    if any(word.startswith("hydra/sweeper=") for word in settings):
        raise ConfigError(
            "bdx plan lists the runs of a grid, and a search chooses its runs as it goes. Leave hydra/sweeper out, and list "
            "values."
        )
    from backdoorbench.launchers import grid

    def show(runs: Sequence[Any]) -> None:
        from backdoorbench import console
        from backdoorbench.launchers import outlook

        console.print_plan(console.make_console(), runs, outlook.forecast(runs))

    grid.Grid.only_look = staticmethod(show)
    try:
        return hydra(["-m", *settings])
    finally:
        grid.Grid.only_look = None


class Parser(argparse.ArgumentParser):
    """A verb's arguments; a mistake in them is a BdxError like any other."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"bdx {verb}", description=description)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. Expected: {' '.join(self.format_usage().split()[1:])}.")
