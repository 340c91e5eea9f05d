"""`bdx`: verbs, runs, sweeps, and one paragraph for whatever a user got wrong. No maths.

A bare first word is a verb; anything else goes to Hydra. torch is imported only when work starts.
"""

import argparse
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from backdoorbench import catalog
from backdoorbench.config import conf_dir, plain
from backdoorbench.errors import BdxError, ConfigError, check_range, did_you_mean, join_words

USER_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130  # exit codes
SWITCHES = ("-m", "--multirun")
PLUGINS = {
    "submitit": "slurm",
    "joblib": "joblib",
    "ray": "ray",
    "optuna": "optuna",
}  # of Hydra: the extra that brings it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `bdx` with the given arguments (those of the process by default) and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads that spin slow a shared machine down sixty-fold
    try:
        with _logging():
            if words and words[0] == "--version":
                from importlib.metadata import version

                print(f"bdx {version('bdx')}")
                return 0
            if words and not words[0].startswith(("-", "+", "~")) and "=" not in words[0]:
                return _verb(words[0], words[1:])
            return _hydra(words)
    except BdxError as error:
        print(f"bdx: {error}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("bdx: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return FAILURE


# ---- verbs ----------------------------------------------------------------------------------------------------------


def _verb(name: str, words: Sequence[str]) -> int:
    verbs: dict[str, Callable[[Sequence[str]], int]] = {
        "list": _list,
        "show": _show,
        "report": _report,
        "plot": _plot,
        "preview": _preview,
        "export": _export,
        "reproduce": _reproduce,
        "runs": _runs,
        "cache": _cache,
        "plan": _plan,
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

    parser = _Parser("list", "What there is to choose from, and what each choice is.")
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

    parser = _Parser("show", "One option, explained: the method and every setting with its default.")
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

    parser = _Parser("report", "Tables of what was run: mean and spread over seeds, n, published figures, failures.")
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
    parser = _Parser("plot", "A plot of what was run, as SVG, PDF or PNG.")
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
    parser = _Parser("preview", "A picture of what an attack's trigger does; nothing is trained.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for a run: attack=sig dataset=cifar10")
    parser.add_argument("--output", metavar="FILE", help="a PNG; preview-ATTACK-DATASET.png in the outputs by default")
    parser.add_argument("--images", type=int, default=8, help="columns; 8 by default")
    chosen = parser.parse_intermixed_args(words)
    check_range("--images", chosen.images, 1, 100)
    if chosen.output is not None and not chosen.output.lower().endswith(".png"):
        raise ConfigError(f"'{chosen.output}' is no name for a preview; expected one in .png. Rename it.")
    from backdoorbench import pipeline, preview

    made = pipeline.plan(_composed(chosen.settings))
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
    parser = _Parser("export", "The poisoned training set, for those who train elsewhere; nothing is trained.")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as for a run: attack=badnets dataset=cifar10")
    parser.add_argument("--to", metavar="DIR", required=True, help="a new folder")
    parser.add_argument("--format", choices=("png", "npz"), default="png", help="images and labels.csv, or train.npz")
    chosen = parser.parse_intermixed_args(words)
    from backdoorbench import export, pipeline

    made = pipeline.plan(_composed(chosen.settings))
    counts = export.write(made, Path(chosen.to), chosen.format)
    print(f"wrote {chosen.to}: " + ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in counts.items()))
    return 0


def _composed(settings: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run; mistakes in it as those of a run are told."""
    from backdoorbench.config import compose

    _refuse_null_groups(settings)
    try:
        return compose(settings)
    except BdxError:
        raise
    except Exception as error:
        raise _explained(error, settings) from None


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
    return found


def _reproduce(words: Sequence[str]) -> int:
    """bdx reproduce PAPER [--scale full|small|digits] [--attacks LIST] ... [KEY=VALUE ...]"""
    from backdoorbench.reproduce import reproduce

    description = (
        "A paper's evaluation: runs what is missing, and prints its figures, ours, and the settings that differ."
    )
    return reproduce(words, _Parser("reproduce", description), _hydra)


def _runs(words: Sequence[str]) -> int:
    """bdx runs [DIR] [--status LIST]"""
    from backdoorbench import housekeeping

    return housekeeping.runs(words, _Parser("runs", "What was run: state, settings that differ, figures."))


def _cache(words: Sequence[str]) -> int:
    """bdx cache [list] | why KEY KEY | prune [--older-than AGE] [--unreferenced] [--max-size SIZE] [--yes]"""
    from backdoorbench import housekeeping

    return housekeeping.cached(words, _Parser)


def _plan(words: Sequence[str]) -> int:
    """bdx plan KEY=VALUES ..."""
    parser = _Parser(
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
        return _hydra(["-m", *settings])
    finally:
        grid.Grid.only_look = None


class _Parser(argparse.ArgumentParser):
    """A verb's arguments; a mistake in them is a BdxError like any other."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"bdx {verb}", description=description)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. Expected: {' '.join(self.format_usage().split()[1:])}.")


# ---- runs and sweeps ------------------------------------------------------------------------------------------------


def _hydra(words: Sequence[str], finish: Callable[[Path], int] | None = None) -> int:
    """Hands the arguments to Hydra and turns what comes back into an exit code.

    finish  what to do with an ended sweep's folder, beside its table"""
    import hydra

    from backdoorbench.launchers import sweep

    switches = [word for word in words if word in SWITCHES]
    rest = [word for word in words if word not in SWITCHES]
    _refuse_null_groups(rest)
    sweep.flags[:] = _flags(rest)
    outcome = _Outcome()
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(outcome.task)
    kept = sys.argv
    sys.argv = ["bdx", *switches, *rest]
    try:
        with _full_errors():
            entry()
    except BdxError:
        raise
    except SystemExit as error:  # --help and its like
        return int(error.code or 0) if isinstance(error.code, int | None) else FAILURE
    except sweep.SweepStopped as stopped:
        return max(FAILURE, _print_sweep(stopped.folder))
    except Exception as error:
        if sweep.begun:  # a launcher that gives up where a job was killed; what the others did is not lost
            print(f"bdx: the launcher gave up: {type(error).__name__}: {error}", file=sys.stderr)
            return max(FAILURE, _print_sweep(sweep.begun[-1]))
        if outcome.started:
            raise
        raise _explained(error, rest) from None
    finally:
        sys.argv = kept
        sweep.begun.clear()
    if outcome.error is not None:
        raise outcome.error
    return outcome.close(finish)


def _flags(words: Sequence[str]) -> list[str]:
    """Hydra's own flags among the words, such as `--config-dir DIR`: part of any command that repeats a job."""
    flags: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word.startswith("-") or (before.startswith("-") and "=" not in before + word):
            flags.append(word)
    return flags


class _Outcome:
    """What the task function saw, for the exit code and the sweep's table."""

    def __init__(self) -> None:
        self.started = False
        self.error: BaseException | None = (
            None  # of a single run, raised after Hydra, which would print a line of its own
        )

    def task(self, config: Any) -> float | None:
        """One job; the figure that a search over settings goes by. In a sweep, a failure is written down and the others go on."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        self.started = True
        hydra_config = HydraConfig.get()
        if hydra_config.mode == RunMode.RUN:
            try:
                return objective(_one(plain(config)))
            except BaseException as error:
                self.error = error
            return None
        overrides = list(hydra_config.overrides.task)
        return sweep_job(plain(config), Path(hydra_config.runtime.output_dir), overrides)

    def close(self, finish: Callable[[Path], int] | None) -> int:
        """The table of the sweep that ended, if one did, and the exit code."""
        from backdoorbench.launchers import sweep

        code = 0
        while sweep.ended:
            folder = sweep.ended.pop(0)
            code = max(code, _print_sweep(folder), finish(folder) if finish else 0)
        return code


def _one(resolved: dict[str, Any], watch: Callable[[Any, str], None] | None = None) -> Any:
    """Carries out one configuration with its console output; the finished `Job`.

    watch  told the run and its stage too"""
    from backdoorbench import console, job

    out = console.make_console()
    console.install(out, resolved["runtime"]["progress"])
    package = logging.getLogger("backdoorbench")
    handler = console.ConsoleHandler(out)
    package.addHandler(handler)

    def announce(run: Any, stage: str) -> None:
        if stage == "planned":
            out.print(f"\n  {console.heading(run)}", style="bold", markup=False)
        elif stage != "curve":
            out.print(console.stage_line(run, stage), markup=False)
        if watch is not None:
            watch(run, stage)

    try:
        done = job.carry_out(resolved, announce)
    finally:
        package.removeHandler(handler)
    console.print_outcome(out, done.run, done.folder, done.repeated)
    return done


def objective(done: Any) -> float | None:
    """What a search over a defense's settings goes by: accuracy on the holdout, which a defender has. Never the test set."""
    found: float | None = done.run.details.get("holdout_ca")
    return found


def sweep_job(
    resolved: dict[str, Any], folder: Path, overrides: Sequence[str], watch: Callable[[Any, str], None] | None = None
) -> float | None:
    """One job of a sweep: whatever happens is left in `folder` for the table at the end. Its objective."""
    from backdoorbench.launchers import sweep

    try:
        with _logging():  # a launcher's worker does not come through `main`
            done = _one(resolved, watch)
    except Exception as error:
        mistake = isinstance(error, BdxError)
        sweep.leave(folder, overrides, error=f"{type(error).__name__}: {error}", mistake=mistake)
        print(f"bdx: job {folder.name} failed: {error}", file=sys.stderr)
        if not mistake:
            traceback.print_exc()
        if resolved["fail_fast"]:
            raise sweep.SweepStopped(folder.parent) from None
        return None
    found = objective(done)
    sweep.leave(folder, overrides, record=str(done.folder), objective=found)
    return found


def _print_sweep(folder: Path) -> int:
    """The aggregated table of a sweep; 0 if every job succeeded, 2 if only the user's mistakes failed, else 1."""
    from backdoorbench import console
    from backdoorbench.launchers import sweep
    from backdoorbench.reporting import record

    jobs = sweep.collect(folder)
    out = console.make_console()
    runs = [record.read(Path(left.record)) for left in jobs.values() if left.record]
    console.print_report(out, runs)
    tried = [left for left in jobs.values() if left.objective is not None]
    if tried and not sweep.planned(folder):  # a search
        best = max(tried, key=lambda left: left.objective or 0.0)
        out.print(f"\n  best accuracy on the holdout, {100 * (best.objective or 0):.2f} %, of {len(tried)} runs:")
        out.print(f"  bdx {shlex.join(best.overrides)}", markup=False, soft_wrap=True)
    failed = {number: left for number, left in jobs.items() if left.error}
    if not failed:
        return 0
    out.print(f"\n  {len(failed)} of {len(jobs)} jobs failed; the same command repeats only those", style="red")
    for number, left in failed.items():
        out.print(f"  job {number}: {left.error}", markup=False, soft_wrap=True)
    if commands := sweep.rerun_commands(folder, list(failed.values())):
        out.print("  these alone:", style="dim")
    for command in commands:
        out.print(f"  {command}", markup=False, soft_wrap=True)
    return USER_MISTAKE if all(left.mistake for left in failed.values()) else FAILURE


# ---- mistakes on the command line -----------------------------------------------------------------------------------


def _refuse_null_groups(words: Sequence[str]) -> None:
    for word in words:
        group, mark, value = word.partition("=")
        if mark and group in catalog.GROUPS and value in ("", "null"):
            raise ConfigError(
                f"{group} is '{value}'; expected one of its options: {', '.join(catalog.names(group))}. Say {group}=none for "
                f"nothing, where that is one of them."
            )


def _explained(error: Exception, words: Sequence[str]) -> Exception:
    """A mistake in the overrides as one paragraph; whatever else it is, itself."""
    from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

    cause = error.__cause__ or error
    if isinstance(cause, BdxError):  # of a launcher's settings, wrapped by Hydra
        return cause
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        if group.startswith("hydra/"):
            return _missing_plugin(name, f"{group}={name}") or ConfigError(
                f"{group}={name} is not there. Those here: {', '.join(sorted(error.options))}."
            )
        return ConfigError(catalog.unknown_option(group, name, sorted(error.options)))
    if isinstance(error, OverrideParseException):
        said = str(error).splitlines()[0]
        return ConfigError(
            f"'{error.override}' cannot be read as a setting ({said}). Write KEY=VALUE, and quote values with blanks, commas or "
            f"brackets twice: \"key='a b'\"."
        )
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        parent = cause.parent_node
        known = [str(key) for key in parent] if parent is not None else []
        where, _, key = str(cause.full_key).rpartition(".")
        place = where or "the configuration"
        inside = (
            "; bdx --cfg job prints the whole configuration" if not where else f"; it knows {join_words(sorted(known))}"
        )
        return ConfigError(f"{place} has no setting '{key}'.{did_you_mean(key, known)} Correct the name{inside}.")
    text = str(error).splitlines()
    if text and "plugin class" in text[0] and (missing := _missing_plugin(text[0], "the sweep")):
        return missing
    if isinstance(error, ConfigCompositionException) and text and text[0].startswith("Could not override"):
        key = text[0].split("'")[1]
        from_groups = [*catalog.GROUPS, "seed", "control", "force", "rerun", "fail_fast", "plugins", "curve", "gates"]
        return ConfigError(
            f"'{key}' is no group or setting.{did_you_mean(key, from_groups)} The groups are {join_words(list(catalog.GROUPS))}; "
            f"bdx --cfg job prints every setting."
        )
    if isinstance(error, ConfigCompositionException) and "Ambiguous value" in str(error):
        word = next((word for word in words if "," in word), "")
        return ConfigError(
            f"'{word}' holds several values, and this is no sweep. Give one value, or add -m to run them all."
        )
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        reason = str(cause).splitlines()[0]
        return ConfigError(
            f"the configuration cannot be composed: {reason}. bdx --cfg job with fewer settings shows what is there."
        )
    if isinstance(error, ValueError) and "override" in str(error).lower():
        return ConfigError(f"the settings cannot be read: {error}. Write KEY=VALUE for each.")
    return error


def _missing_plugin(said: str, what: str) -> ConfigError | None:
    """Hydra's word for a launcher or sweeper of another package that is not there, with the extra that brings it."""
    for plugin, extra in PLUGINS.items():
        if plugin in said:
            return ConfigError(
                f"{what} needs Hydra's {plugin} plugin, which is not installed. Add it: pip install 'bdx[{extra}]'; or take "
                f"hydra/launcher=pool, which needs nothing more."
            )
    return None


@contextmanager
def _full_errors() -> Iterator[None]:
    """Hydra raises its errors instead of printing them; the user's own setting returns afterwards, for child processes."""
    kept = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if kept is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = kept


@contextmanager
def _logging() -> Iterator[None]:
    """This package's log lines are let through; where they go is decided where work starts."""
    package = logging.getLogger("backdoorbench")
    level, propagate = package.level, package.propagate
    package.setLevel(logging.DEBUG)
    package.propagate = False
    try:
        yield
    finally:
        package.setLevel(level)
        package.propagate = propagate


if __name__ == "__main__":
    sys.exit(main())
