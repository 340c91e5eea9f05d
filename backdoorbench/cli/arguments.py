"""What the verbs share: their arguments, the words in them, and the runs and configurations that these name."""

import argparse
import gc
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from backdoorbench.cli import flags
from backdoorbench.cli.hydra_errors import explained, refuse_no_options
from backdoorbench.errors import BdxError, ConfigError, DataError, join_words

SWITCHES = ("-m", "--multirun")


class Parser(argparse.ArgumentParser):
    """A verb's arguments, `--config-dir` among them; a mistake in them is a BdxError like any other."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"bdx {verb}", description=description)
        self.add_argument(
            *flags.FOLDER_FLAGS, dest="config_dirs", metavar="DIR", action="append", default=[], type=flags.folder,
            help="a folder of your own yaml files, laid out as conf/ is",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        message = message.replace(", KEY=VALUE", "")  # argparse calls them required, though none need be given
        raise ConfigError(f"{self.prog}: {message}. Expected: {' '.join(self.format_usage().split()[1:])}.")


def words_of(text: str | None) -> list[str]:
    """The words of a list that is separated by commas."""
    return text.split(",") if text else []


def figures_of(text: str | None, known: Sequence[str]) -> list[str]:
    """The figures of `--metric`, each once."""
    wanted = list(dict.fromkeys(words_of(text)))
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--metric is '{name}'; expected some of {join_words(list(known))}. Change --metric.")
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


def composed(settings: Sequence[str], folders: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run; mistakes in it as those of a run are told."""
    from backdoorbench.config.compose import compose

    refuse_no_options(settings)
    try:
        return compose(settings, folders)
    except BdxError:
        raise
    except Exception as error:
        raise explained(error, settings, folders) from None


def read_runs(folders: Sequence[str], details: Sequence[str] = ()) -> dict[Path, Any]:
    """The runs below `folders` by the folder of their record; DataError where one is no folder, or none holds a record.

    details  of stages, that tables do without"""
    from backdoorbench.reporting.content import tell_apart_by_content
    from backdoorbench.storage import record

    for folder in folders:
        outputs_folder(folder)
    found = tell_apart_by_content(record.collect(map(Path, folders), details))
    if not found:
        raise DataError(
            f"no record.json lies below {join_words(list(folders))}; expected at least one run. "
            f"Run something first: bdx attack=badnets defense=fst."
        )
    gc.freeze()  # what was read lives as long as this process: no use in going through all of it again and again
    return found


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
