"""Hydra's own flags, looked over before Hydra is asked, which meets a wrong one with a traceback or twelve lines of usage."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from backdoorbench.errors import ConfigError, did_you_mean, join_words

FOLDER_FLAGS = ("--config-dir", "-cd")  # of Hydra, and of every verb
COMPLETION = ("install", "uninstall")  # beside what a shell asks while somebody types
SHELLS = ("bash", "fish", "zsh")


def own_folder(text: str) -> str:
    """The folder of a `--config-dir`; ConfigError where it is none, or holds what would not be read."""
    from backdoorbench.config.catalog import refuse_unread

    refuse_unread(Path(folder(text)))
    return text


def folder(text: str, named_by: str = "--config-dir") -> str:
    """The name of a folder; ConfigError where there is none.

    named_by  what names it, as the message says it"""
    if not text or not os.path.isdir(text):
        raise ConfigError(
            f"{named_by} is '{text}', which is no folder; expected one of your own yaml files. Name another."
        )
    return text


def folders_among(words: Sequence[str]) -> list[str]:
    """The folders of the words' `--config-dir DIR` or `--config-dir=DIR`."""
    found = [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    for flag, named in zip(words, [*words, ""][1:], strict=True):
        if flag in FOLDER_FLAGS:
            found.append(named)
    return [own_folder(text) for text in found]


def check(words: Sequence[str]) -> argparse.Namespace:
    """The words as Hydra parses them. ConfigError for a flag that is none, lacks its value or does not go with another."""
    chosen = _parsed(words)
    kinds = {
        "--cfg": chosen.cfg is not None, "-m": chosen.multirun, "--run": chosen.run, "--info": chosen.info is not None,
        "--shell-completion": chosen.shell_completion,
    }  # fmt: skip
    given = [flag for flag, is_there in kinds.items() if is_there]
    if len(given) > 1:
        raise ConfigError(
            f"{join_words(given)} each ask for something else. Give one of them; the runs of a sweep are listed by bdx plan, and "
            f"the configuration of one run is printed by --cfg job with the settings of that run."
        )
    if chosen.resolve and chosen.cfg is None:
        raise ConfigError("--resolve says how --cfg prints. Add --cfg job, or leave --resolve out.")
    if chosen.package is not None and chosen.cfg is None:
        raise ConfigError("--package says what part --cfg prints. Add --cfg job, or leave --package out.")
    if chosen.config_dir is not None:
        folder(chosen.config_dir)
    if len(named := folders_among(words)) > 1:
        raise ConfigError(
            f"--config-dir is given {len(named)} times, and a run takes one. Put your yaml files into one folder, "
            "laid out as conf/ is."
        )
    if chosen.config_path is not None:
        raise ConfigError(
            f"--config-path is '{chosen.config_path}', but bdx always starts from its own yaml files. Add yours "
            "with --config-dir DIR, a folder laid out as conf/ is."
        )
    if chosen.config_name is not None and not _is_config(chosen.config_name, chosen.config_dir):
        raise ConfigError(
            f"--config-name is '{chosen.config_name}', of which there is no yaml file. Leave it out: what a run "
            "needs is chosen by settings, and a pinned setting of your own is an experiment (conf/experiment/, experiment=NAME)."
        )
    if chosen.experimental_rerun is not None:
        raise ConfigError(
            "--experimental-rerun is not for bdx: a run's settings lie in its record.json. Repeat its command, "
            "with rerun=true to carry it out anew."
        )
    if chosen.shell_completion:
        _check_completion(chosen.overrides)
    return chosen


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        wrong = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        close = did_you_mean(wrong, flags) if message.startswith("unrecognized") else ""
        raise ConfigError(
            f"{message}.{close} A run is described by settings, KEY=VALUE; the flags beside them are "
            f"{join_words(sorted(flags))}, and bdx --help says more."
        )


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    return _Flags(prog="bdx", add_help=False, parents=[get_args_parser()]).parse_intermixed_args(list(words))


def _is_config(name: str, own: str | None) -> bool:
    from backdoorbench.config.catalog import REFINED
    from backdoorbench.config.compose import conf_dir
    from backdoorbench.config.groups import NAMES

    places = [conf_dir(), *([Path(own)] if own is not None else [])]
    is_option = name.lstrip("/").partition("/")[0] in (*NAMES, *REFINED, "hydra")  # of a group: no file to begin with
    return (
        not is_option
        and name.isprintable()
        and any((place / f"{name.removesuffix('.yaml')}.yaml").is_file() for place in places)
    )


def _check_completion(settings: Sequence[str]) -> None:
    name, _, shell = settings[0].partition("=") if len(settings) == 1 else ("", "", "")
    if shell not in SHELLS or (name not in COMPLETION and "COMP_LINE" not in os.environ):
        said = " ".join(settings) or "nothing"
        raise ConfigError(
            f"--shell-completion came with {said}; expected install=SHELL or uninstall=SHELL, of {join_words(list(SHELLS))}. For "
            f'instance: eval "$(bdx -sc install=bash)".'
        )
