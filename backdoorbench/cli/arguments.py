"""What the verbs share: their arguments, the words in them, and the runs and configurations that these name."""

import argparse
import gc
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from backdoorbench.cli import flags
from backdoorbench.config import plugins
from backdoorbench.errors import ConfigError, DataError, did_you_mean, join_words, shown
from backdoorbench.sweeps.hydra_errors import composed as composed

SWITCHES = ("-m", "--multirun")
WRITTEN = (".md", ".tex", ".csv", ".html", ".svg", ".pdf", ".png")  # how files end that hold tables or plots
LISTED = 20  # figures that a message names one by one: those of after-attacks are many more


class Parser(argparse.ArgumentParser):
    """A verb's arguments, `--config-dir` among them; a mistake in them is a BdxError like any other."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"bdx {verb}", description=description)
        self.add_argument(
            *flags.FOLDER_FLAGS, dest="config_dirs", metavar="DIR", action="append", default=[], type=flags.own_folder,
            help="a folder of your own yaml files, laid out as conf/ is",
        )  # fmt: skip
        self.add_argument(
            plugins.FLAG, metavar="DIR", help="code and yaml of your own: a plugin's folder"
        )  # read by main

    def error(self, message: str) -> NoReturn:
        message = message.replace(", KEY=VALUE", "")  # argparse calls them required, though none need be given
        raise ConfigError(f"{self.prog}: {message}. Expected: {' '.join(self.format_usage().split()[1:])}.")


def quoted(text: str) -> str:
    """A text as a setting's value: Hydra reads some characters otherwise, and of backslashes those before a quote, or at the
    end, two as one.

    >>> print(quoted("it's"), quoted("a\\\\b\\\\"))
    'it\\'s' 'a\\b\\\\'
    """
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: 2 * found[1] + found[2].replace("'", "\\'"), text) + "'"


def words_of(flag: str, text: str | None) -> list[str]:
    """The words of a list that is separated by commas. ConfigError where nothing stands between two of them."""
    words = [word.strip() for word in text.split(",")] if text else []
    if "" in words:
        raise ConfigError(f"{flag} is {shown(text)}; expected words with a comma between each two. Correct it.")
    return words


def figures_of(text: str | None, known: Sequence[str]) -> list[str]:
    """The figures of `--metric`, each once."""
    wanted = list(dict.fromkeys(words_of("--metric", text)))
    for name in wanted:
        if name not in known:
            told = list(known) if len(known) <= LISTED else [*known[:LISTED], f"{len(known) - LISTED} of after-attacks"]
            raise ConfigError(
                f"--metric is '{name}'; expected some of {join_words(told)}.{did_you_mean(name, known)} Change --metric."
            )
    return wanted


def need(package: str, verb: str, extra: str) -> None:
    """Raises ConfigError where a package that a verb draws with is missing."""
    if find_spec(package) is None:
        raise ConfigError(f"{verb} needs {package}, which is not installed. Add it: pip install 'bdx[{extra}]'.")


def outputs_folder(folder: str) -> Path:
    """The folder that a verb is to look through; DataError where it is none."""
    if not Path(folder).is_dir():
        raise DataError(f"'{folder}' is no folder; expected one that holds runs, such as outputs/. Name another.")
    return Path(folder)


def output_file(named: str, read: Sequence[Path] = ()) -> Path:
    """The file that `--output` names; ConfigError where that is a folder, a device, a run's file, or of `read`, what the verb
    reads."""
    from backdoorbench.storage import record

    file = Path(named)
    if file.is_dir():
        raise ConfigError(f"--output is '{named}', a folder; expected the file that is to be written. Name one in it.")
    if file.exists() and not file.is_file():  # to be replaced by a file would be its end
        raise ConfigError(
            f"--output is '{named}', a device or a pipe; expected a file that is to be written. Name one, or leave --output out "
            f"where the verb prints."
        )
    is_read = any(file.exists() and other.exists() and file.samefile(other) for other in read)
    is_of_run = file.exists() and file.suffix not in WRITTEN and (file.parent / record.FILE).is_file()
    if is_read or is_of_run:
        what = "which is read" if is_read else "a file of a run"
        raise ConfigError(f"--output is '{named}', {what}. Name another file: it is not overwritten.")
    return file


def run_folder(named: str) -> Path:
    """The folder of one run: itself, or found by the run's key, or its first digits, in outputs/; of several the latest."""
    from backdoorbench.storage import record
    from backdoorbench.storage.outputs import Outputs

    if (Path(named) / record.FILE).is_file():
        return Path(named)
    found: dict[str, Path] = {}
    if re.fullmatch(r"[0-9a-f]{4,}", named):
        for folder in sorted(Outputs(Path("outputs")).runs_of(f"{named}*")):
            if (folder / record.FILE).is_file():
                found[folder.name.rpartition("_")[2]] = folder
    if len(found) != 1:
        what = (
            f"is the start of {len(found)} keys"
            if found
            else f"holds no {record.FILE} and is no key of a run in outputs/"
        )
        raise ConfigError(f"'{named}' {what}; expected one run. bdx runs lists keys and folders: name one.")
    return next(iter(found.values()))


def add_where(parser: argparse.ArgumentParser) -> None:
    """`--where`, which chooses among the runs that a verb reads."""
    parser.add_argument(
        "--where", metavar="CHOICE", action="append", default=[],
        help="only runs with these settings: dataset=digits,defense=ft,fst; any dotted key, repeatable; "
        "defense.fst.alpha=0.2 binds fst alone",
    )  # fmt: skip


def read_runs(folders: Sequence[str], where: Sequence[str] = (), details: Sequence[str] = ()) -> dict[Path, Any]:
    """The runs below `folders` by the folder of their record, those that `--where` chooses, with a word on standard error about
    the others; DataError where one is no folder, or none holds a record.

    details  of stages, that tables do without"""
    return chosen_runs(folders, where, details)[0]


def chosen_runs(
    folders: Sequence[str], where: Sequence[str], details: Sequence[str] = ()
) -> tuple[dict[Path, Any], list[str]]:
    """The same, and these words again, for a document that should have them."""
    from backdoorbench.reporting import choosing
    from backdoorbench.reporting.content import tell_apart_by_content
    from backdoorbench.storage import record

    for folder in folders:
        outputs_folder(folder)
    found = record.collect(map(Path, folders), details)
    if not found:
        raise DataError(
            f"no record.json lies below {join_words(list(folders))}; expected at least one run. "
            f"Run something first: bdx attack=badnets defense=fst."
        )
    told = tell_apart_by_content(found)
    kept, said = choosing.choose([(folder, run.config) for folder, run in told.items()], choosing.parsed(where))
    say(said)
    gc.freeze()  # what was read lives as long as this process: no use in going through all of it again and again
    return tell_apart_by_content({folder: found[folder] for folder in kept}), said  # what is left out splits no row


def say(lines: Sequence[str]) -> None:
    """Remarks, on standard error: standard output may be a table that something reads."""
    for line in lines:
        print(f"bdx: {line}", file=sys.stderr)


def drawn_features(folder: Path) -> Any:
    """The figure of one run's features."""
    from backdoorbench.reporting import features
    from backdoorbench.reporting.plots.tsne import tsne
    from backdoorbench.storage import record

    if not (folder / record.FILE).is_file():
        raise ConfigError(
            f"'{folder}' holds no {record.FILE}; tsne draws one run. Name its folder, such as outputs/runs/NAME."
        )
    run = record.read(folder)
    return tsne(run, features.embed(run, folder))
